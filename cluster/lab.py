"""A Slurm cluster on this machine: start it, break its nodes, stop it.

    lab = start(Path("/tmp/lab"), nodes=4)
    subprocess.run(["srun", "-N2", "hostname"], env=os.environ | lab.environment)
    lab.kill_node(lab.nodes[0])
    lab.stop()

All that is known about a running cluster is in `lab.json` of its folder, so that another process can `attach`.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from cluster import files, packages, processes
from cluster.packages import STATE_FILE
from configs.errors import ConfigError, LaunchError

LOCK_FILE = "lock"
PATIENCE_S = 20.0  # for a daemon to answer
FAREWELL_S = 2.0  # for jobs to end by themselves when the cluster stops
POLL_S = 0.05
UP = ("idle", "mixed", "allocated", "completing")
PORTS = range(10_000, 32_768)  # from 32768 on, outgoing connections take theirs between our choosing one and its use


class Daemon(NamedTuple):
    """A process by pid and start time in clock ticks since boot: a pid alone may by now be another process."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        return processes.started(self.pid) == self.started


@dataclass
class Lab:
    """A cluster that was started. `folder` holds all of it; `root` is the path by which Slurm knows that folder.

    `ports` has the port of each node's slurmd, and `daemons` the processes: munged, slurmctld, one machine per node.
    """

    folder: Path
    root: Path
    controller_port: int
    ports: dict[str, int]
    daemons: dict[str, Daemon] = field(default_factory=dict)

    @property
    def nodes(self) -> list[str]:
        """The names of the nodes, which are addresses of the loopback device."""
        return list(self.ports)

    @property
    def running(self) -> bool:
        """Whether any of its processes is alive."""
        return any(daemon.alive for daemon in self.daemons.values())

    @property
    def slurm_conf(self) -> Path:
        """The value of SLURM_CONF."""
        return self.root / "etc" / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which programs find this cluster: merge them into `os.environ`."""
        path = os.environ.get("PATH", os.defpath)
        return {"SLURM_CONF": str(self.slurm_conf), "PATH": f"{self.root / 'bin'}{os.pathsep}{path}"}

    def run(self, *command: str, timeout_s: float = 30.0) -> str:
        """Output of one of Slurm's programs, for example `run("squeue", "--noheader")`.

        Raises LaunchError with its message if it fails.
        """
        words = [str(self.root / "bin" / command[0]), *command[1:]]
        environment = os.environ | self.environment  # a job that is submitted here finds srun too
        try:
            done = subprocess.run(
                words, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise LaunchError(f"{' '.join(command)}: no answer within {timeout_s:.0f} s") from None
        if done.returncode != 0:
            raise LaunchError(f"{' '.join(command)}: {done.stderr.strip() or f'exit status {done.returncode}'}")
        return done.stdout

    def state(self, node: str) -> str:
        """What Slurm says of a node: idle, mixed, allocated, down, ...; behind it `*` if the node does not answer."""
        return self.run("sinfo", "--noheader", "--partition=low", f"--nodes={self._known(node)}", "--format=%T").strip()

    def kill_node(self, node: str) -> None:
        """Cut a node's power: slurmd, its step daemons and all processes of jobs get SIGKILL. Slurm has to find out."""
        machine = self.daemons[self._known(node)]
        if machine.alive:
            processes.power_off(machine.pid)

    def fail_node(self, node: str) -> None:
        """Set a node down: its jobs end with NODE_FAIL at once. It stays down until `start_node`."""
        self.run("scontrol", "update", f"nodename={self._known(node)}", "state=down", "reason=set down by hand")

    def start_node(self, node: str) -> None:
        """Bring a node back, whatever happened to it; returns when Slurm gives it work again."""
        machine = self.daemons[self._known(node)]
        if machine.alive:
            os.kill(machine.pid, signal.SIGUSR1)
        else:
            self._start_machine(node, _slurm_of(self.root))
            self._save()
        self._wait(lambda: _listens(node, self.ports[node]) and self._resumed(node), f"node {node}", node)

    def stop(self, *, wipe: bool = False) -> None:
        """End all jobs and daemons: no process is left. `wipe` removes the folder too; else job ids go on from here."""
        with _locked(self.folder):
            if (controller := self.daemons.get("slurmctld")) and controller.alive:
                self._say_farewell()
            self._end()
        if wipe:
            shutil.rmtree(self.folder)

    def _known(self, node: str) -> str:
        if node not in self.ports:
            raise ConfigError(f"{node}: no node of this cluster; its nodes are {', '.join(self.nodes)}")
        return node

    def _say_farewell(self) -> None:
        """Cancel all jobs: what waits for them (srun, submitit) ends too, and none comes back at the next start."""
        with suppress(LaunchError):  # a controller that does not answer is ended all the same
            self.run("scancel", f"--user={os.getuid()}", timeout_s=5)
            deadline = time.monotonic() + FAREWELL_S
            while time.monotonic() < deadline and self.run("squeue", "--noheader", timeout_s=5):
                time.sleep(POLL_S)

    def _end(self) -> None:
        for name in self.nodes:
            if name in self.daemons:
                self.kill_node(name)
        for name in ("slurmctld", "munged"):
            if (daemon := self.daemons.get(name)) and daemon.alive:
                processes.end(daemon.pid)
        for pid in processes.strays(str(self.slurm_conf)):  # of a machine that was itself killed
            processes.end(pid, signal.SIGKILL)
        self.daemons.clear()
        self._save()
        files.remove_link(self.root, self.folder)

    def _resumed(self, node: str) -> bool:
        state = self.state(node)
        if state.startswith(("down", "drain")):
            with suppress(LaunchError):  # Slurm may have brought it back in between
                self.run("scontrol", "update", f"nodename={node}", "state=resume")
        return state in UP

    def _start(self, slurm: packages.Slurm) -> None:
        socket_file = self.root / "munge" / "socket"
        socket_file.unlink(missing_ok=True)
        self._spawn("munged", [str(slurm.programs["munged"]), *files.munge_options(self.root)], slurm)
        self._wait(socket_file.is_socket, "munged", "munged")
        self._spawn("slurmctld", [str(slurm.programs["slurmctld"]), "-D"], slurm)
        for node in self.nodes:
            self._start_machine(node, slurm)
        self._wait(lambda: _listens("127.0.0.1", self.controller_port), "slurmctld", "slurmctld")
        for node in self.nodes:
            self._wait(lambda node=node: self.state(node) == "idle", f"node {node}", node)  # type: ignore[misc]

    def _start_machine(self, node: str, slurm: packages.Slurm) -> None:
        slurmd = [str(slurm.programs["slurmd"]), "-D", "-N", node, "-d", str(files.step_daemon(self.root))]
        self._spawn(node, [*files.machine("run"), *slurmd], slurm)

    def _spawn(self, name: str, command: list[str], slurm: packages.Slurm) -> None:
        # Nothing of the caller's environment: it may be that of a job of a real cluster.
        environment = {"SLURM_CONF": str(self.slurm_conf), "PATH": os.defpath, "LANG": "C"}
        if slurm.libraries:
            environment["LD_LIBRARY_PATH"] = slurm.libraries
        pid = processes.spawn(command, environment, self._log(name))
        self.daemons[name] = Daemon(pid, processes.started(pid) or 0)

    def _log(self, name: str) -> Path:
        return self.root / "log" / f"{name}.err"  # what it says before its own log file is open is here too

    def _wait(self, condition: Callable[[], bool], what: str, name: str) -> None:
        """Until the condition holds. Raises LaunchError with the last errors in the daemon's log if it does not."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline or not self.daemons[name].alive:
                raise LaunchError(f"{what} has not come up: {_complaints(self._log(name))}")
            time.sleep(POLL_S)

    def _save(self) -> None:
        state = {
            "root": str(self.root),
            "controller_port": self.controller_port,
            "ports": self.ports,
            "daemons": self.daemons,
        }
        new = self.folder / f"{STATE_FILE}.new"
        new.write_text(json.dumps(state, indent=1) + "\n")
        new.replace(self.folder / STATE_FILE)


def start(folder: Path, *, nodes: int = 4, cpus: int = 8, gpus: int = 4) -> Lab:
    """Start a cluster in `folder` and return when all its nodes are idle.

    Each of the `nodes` has `cpus` CPUs, `gpus` fake GPUs and 64 GB, whatever this machine has.
    Raises ConfigError for impossible numbers and for a folder of something else, LaunchError if it does not start.
    """
    _check(nodes, cpus, gpus)
    slurm = packages.find()
    if slurm is None:
        raise LaunchError("Slurm: not on this machine; `python -m cluster install` unpacks it, without root")
    folder = folder.absolute()
    _claim(folder)
    with _locked(folder), ExitStack() as undo:
        if (folder / STATE_FILE).exists() and attach(folder).running:
            raise LaunchError(f"{folder}: a cluster runs here already; `python -m cluster stop` ends it")
        root = files.root_of(folder)
        controller_port, *ports = _free_ports(nodes + 1)
        lab = Lab(folder, root, controller_port, {f"127.0.1.{k}": port for k, port in enumerate(ports, start=1)})
        undo.callback(lab._end)
        (root / "slurm").unlink(missing_ok=True)
        if slurm.prefix:
            (root / "slurm").symlink_to(slurm.prefix)
        slurm = _slurm_of(root)
        files.write(root, slurm, controller_port=controller_port, nodes=lab.ports, cpus=cpus, gpus=gpus)
        lab._start(slurm)
        lab._save()
        undo.pop_all()
    return lab


def attach(folder: Path) -> Lab:
    """The cluster that was started in `folder`, running or not. Raises ConfigError if there was none."""
    folder = folder.absolute()
    try:
        state = json.loads((folder / STATE_FILE).read_text())
    except FileNotFoundError:
        raise ConfigError(f"{folder}: no cluster was started here; `python -m cluster start` does") from None
    daemons = {name: Daemon(*pid_and_time) for name, pid_and_time in state["daemons"].items()}
    return Lab(folder, Path(state["root"]), state["controller_port"], state["ports"], daemons)


def _check(nodes: int, cpus: int, gpus: int) -> None:
    for name, value, low, high in (("nodes", nodes, 1, 64), ("cpus", cpus, 1, 1024), ("gpus", gpus, 0, 64)):
        if not low <= value <= high:
            raise ConfigError(f"{name} = {value}: must be from {low} to {high}")


def _claim(folder: Path) -> None:
    """Make `folder` a private one of ours: jobs run as the user who can write here."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (folder / STATE_FILE).exists() and any(child.name != LOCK_FILE for child in folder.iterdir()):
            raise ConfigError(f"{folder}: must be empty or of a stopped cluster")
        folder.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be the folder of a cluster: {error.strerror}") from None


def _locked(folder: Path) -> FileLock:
    return FileLock(folder / LOCK_FILE)


def _slurm_of(root: Path) -> packages.Slurm:
    """The Slurm a cluster was started with; an unpacked one by a link, so that its paths are as plain as `root`."""
    slurm = packages.unpacked(root / "slurm") or packages.installed()
    if slurm is None:
        raise LaunchError(f"{root}: the Slurm of this cluster is gone; `python -m cluster install` brings it back")
    return slurm


def _free_ports(count: int) -> list[int]:
    """Ports nobody listens on, each different."""
    ports: list[int] = []
    with ExitStack() as held:
        for port in random.sample(PORTS, len(PORTS)):
            listener = held.enter_context(socket.socket())
            with suppress(OSError):
                listener.bind(("", port))
                ports.append(port)
            if len(ports) == count:
                return ports
    raise LaunchError(f"ports {PORTS.start} to {PORTS.stop - 1}: {count} free ones are needed, {len(ports)} are")


def _listens(address: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((address, port), timeout=1):
        return True
    return False


def _complaints(log: Path) -> str:
    """The last errors in a daemon's log, on one line: the very last is often a mere consequence."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    errors = [line.strip() for line in lines if "error:" in line.lower() or "fatal:" in line.lower()]
    return f"{'; '.join(errors[-3:] or lines[-1:]) or 'it wrote nothing'} ({log})"
