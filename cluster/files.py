"""The files of a cluster: its folders, configuration and client programs, below a path that Slurm can take."""

import hashlib
import os
import pwd
import re
import secrets
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from cluster.packages import CLIENTS, Slurm
from configs.errors import LaunchError

MEMORY_MB = 64_000
FOLDERS = ("bin", "dev", "etc", "log", "munge", "run", "sbin", "spool", "state")

# A socket's path has at most 107 bytes, and slurmd adds /spool/127.0.1.NNN/127.0.1.NNN_JOB.STEP to ours.
LONGEST_ROOT = 107 - len("/spool/127.0.1.254/127.0.1.254_4294967295.4294967295")
_PLAIN = re.compile(r"[A-Za-z0-9/._+-]+")  # slurm.conf gives meaning to spaces, commas, brackets, #, % and =


def root_of(folder: Path) -> Path:
    """The path by which Slurm knows `folder`: itself, or where it is long or has unusual characters, a link in /tmp.

    Raises LaunchError in one line if the link's place is not ours alone.
    """
    if len(str(folder)) <= LONGEST_ROOT and _PLAIN.fullmatch(str(folder)):
        return folder
    private = Path(f"/tmp/steadytrain-{os.getuid()}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]}")
    try:
        private.mkdir(mode=0o700, exist_ok=True)
        owner = private.lstat()
        if owner.st_uid != os.getuid() or owner.st_mode & 0o77 or private.is_symlink():
            raise LaunchError(
                f"{private}: must be a folder of yours with mode 0700; remove it, or choose another folder"
            )
        link = private / "lab"
        link.unlink(missing_ok=True)
        link.symlink_to(folder)
    except OSError as error:
        raise LaunchError(
            f"{folder}: Slurm needs a path of at most {LONGEST_ROOT} plain characters, and no short link to it can be "
            f"made ({error}); choose a shorter folder, for example by STEADYTRAIN_CLUSTER_DIR"
        ) from None
    return link


def remove_link(root: Path, folder: Path) -> None:
    """Take away what `root_of` made beside `folder`."""
    if root != folder:
        root.unlink(missing_ok=True)
        root.parent.rmdir()


def write(root: Path, slurm: Slurm, *, controller_port: int, nodes: Mapping[str, int], cpus: int, gpus: int) -> None:
    """Write everything the daemons read below `root`. `nodes` maps each node's name to the port of its slurmd."""
    for name in FOLDERS:
        (root / name).mkdir(mode=0o700, exist_ok=True)
    for node in nodes:
        (root / "spool" / node).mkdir(mode=0o700, exist_ok=True)
    key = root / "munge" / "key"
    if not key.exists():
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
    template = Environment(
        loader=PackageLoader("cluster", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    ).get_template("slurm.conf.j2")
    values = {"controller_port": controller_port, "nodes": nodes, "cpus": cpus, "gpus": gpus, "memory_mb": MEMORY_MB}
    etc = root / "etc"
    (etc / "slurm.conf").write_text(template.render(values, root=root, plugins=slurm.plugins, user=_user()))
    (etc / "gres.conf").write_text("".join(f"{line}\n" for line in _gpus(root / "dev", gpus)))
    # slurmd starts a cgroup plugin even where nothing uses it, which a container may forbid; 23.11 can go without.
    year, month = map(int, slurm.version().split(".")[:2])
    (etc / "cgroup.conf").write_text(f"CgroupPlugin={'disabled' if (year, month) >= (23, 11) else 'autodetect'}\n")
    _write_programs(root, slurm)


def munge_options(root: Path) -> list[str]:
    """Arguments of munged. `--force`: it objects to a socket that others cannot reach, as ours shall be."""
    munge = root / "munge"
    options = {"socket": "socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
    return ["--foreground", "--force", *(f"--{name}={munge / file}" for name, file in options.items())]


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        raise LaunchError(f"user id {os.getuid()}: has no name in /etc/passwd, and Slurm starts jobs by name") from None


def _gpus(devices: Path, count: int) -> list[str]:
    """Lines of gres.conf. Slurm counts only device files; a link to /dev/null is one, and anyone may make it."""
    for number in range(count):
        device = devices / f"nvidia{number}"
        device.unlink(missing_ok=True)
        device.symlink_to(os.devnull)
    return [f"Name=gpu File={devices}/nvidia[0-{count - 1}] Flags=nvidia_gpu_env"] if count else []


def machine(mode: str) -> list[str]:
    """The beginning of a command line that goes through machine.py."""
    return [sys.executable, "-I", "-S", str(Path(__file__).with_name("machine.py")), mode]


def step_daemon(root: Path) -> Path:
    """The program that slurmd starts for each step."""
    return root / "sbin" / "slurmstepd"


def _write_programs(root: Path, slurm: Slurm) -> None:
    """Programs that always mean this cluster: without SLURM_CONF Slurm's own would look in /etc, at a real one."""
    stand_in = [sys.executable, "-I", "-S", str(Path(__file__).with_name("sacct.py")), str(root / "bin" / "squeue")]
    commands = {name: slurm.command(name) for name in CLIENTS if name in slurm.programs} | {"sacct": stand_in}
    scripts = {root / "bin" / name: command for name, command in commands.items()}
    scripts[step_daemon(root)] = [*machine("become"), str(slurm.programs["slurmstepd"])]
    conf = shlex.quote(str(root / "etc" / "slurm.conf"))
    for script, command in scripts.items():
        script.write_text(f'#!/bin/sh\nSLURM_CONF={conf}\nexport SLURM_CONF\nexec {shlex.join(command)} "$@"\n')
        script.chmod(0o755)
