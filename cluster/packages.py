"""Where Slurm is: unpacked from Debian packages by `install`, without root, or installed on this machine."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from configs.errors import ConfigError, LaunchError

DAEMONS = ("slurmctld", "slurmd", "slurmstepd", "munged")
CLIENTS = ("salloc", "sattach", "sbatch", "sbcast", "scancel", "scontrol", "sdiag", "sinfo", "sprio", "squeue", "srun")
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "munge", "libmunge2")
HOME_VARIABLE = "STEADYTRAIN_CLUSTER_DIR"
STATE_FILE = "lab.json"  # in the folder of every cluster

_SYSTEM_FOLDERS = (Path("/usr/local/sbin"), Path("/usr/sbin"), Path("/sbin"))  # not on an ordinary user's PATH


@dataclass(frozen=True)
class Slurm:
    """The programs of one Slurm and, where they were unpacked, the folder that holds them in place of /."""

    programs: Mapping[str, Path]
    prefix: Path | None = None

    @property
    def plugins(self) -> Path | None:
        """PluginDir, where it is not the compiled-in one."""
        found = sorted(self.prefix.glob("usr/lib/*/slurm*/auth_munge.so")) if self.prefix else []
        return found[0].parent if found else None

    @property
    def libraries(self) -> str:
        """Folders of shared libraries beside the system's, as in LD_LIBRARY_PATH; empty for an installed Slurm."""
        return f"{self.plugins.parent}:{self.plugins}" if self.plugins else ""

    def command(self, name: str) -> list[str]:
        """The command line that runs a program as a user does.

        An unpacked one is started through the dynamic loader, which is told where the libraries are: a variable in the
        environment would travel with sbatch and srun into every job.
        """
        program = self.programs[name]
        if not self.prefix:
            return [str(program)]
        return [_dynamic_loader(program), "--library-path", self.libraries, str(program)]

    def version(self) -> str:
        """Slurm's version, for example 22.05.8."""
        return _run([*self.command("slurmctld"), "-V"]).stdout.split()[-1]


def home() -> Path:
    """The folder of packages and clusters: $STEADYTRAIN_CLUSTER_DIR, or `.local` beside this file."""
    return Path(os.environ.get(HOME_VARIABLE) or Path(__file__).parent / ".local").absolute()


def find() -> Slurm | None:
    """The Slurm that `install` unpacked, else the installed one, else None."""
    return unpacked(home() / "packages") or installed()


def unpacked(prefix: Path) -> Slurm | None:
    """The Slurm whose packages were unpacked in `prefix`."""
    return _slurm([prefix / "usr" / "bin", prefix / "usr" / "sbin"], prefix)


def installed() -> Slurm | None:
    """The Slurm on PATH, or where PATH of the administrator leads."""
    path = [Path(folder) for folder in os.get_exec_path()]
    # `env` puts the programs of a cluster on PATH; another cluster must not be started through them.
    return _slurm([*(folder for folder in path if not (folder.parent / STATE_FILE).exists()), *_SYSTEM_FOLDERS], None)


def install(*, unpack: bool = False) -> Slurm:
    """Make a Slurm available: the one that is there already, or the Debian packages, unpacked below `home()`.

    `unpack` takes the packages even where a Slurm is installed. Raises LaunchError if they cannot be had,
    ConfigError if `home()` cannot be written.
    """
    found = find()
    if found and (found.prefix or not unpack):
        return found
    try:
        home().mkdir(parents=True, exist_ok=True)
        (home() / "install.lock").touch()
    except OSError as error:
        raise ConfigError(f"{home()}: {error.strerror}; choose another folder by {HOME_VARIABLE}") from None
    with FileLock(home() / "install.lock"):
        found = find()
        if not (found and found.prefix):
            _unpack(home() / "packages")
            found = find()
    if not (found and found.prefix):
        raise LaunchError(
            f"{home() / 'packages'}: the packages {', '.join(PACKAGES)} do not hold the programs of Slurm"
        )
    return found


def _slurm(folders: list[Path], prefix: Path | None) -> Slurm | None:
    path = os.pathsep.join(map(str, folders))
    found = {name: shutil.which(name, path=path) for name in DAEMONS + CLIENTS}
    if found["slurmd"]:  # its step daemon is installed beside it, which may be in no folder of PATH
        beside = Path(found["slurmd"]).resolve().with_name("slurmstepd")
        found["slurmstepd"] = found["slurmstepd"] or shutil.which(beside)
    if any(found[name] is None for name in (*DAEMONS, "sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun")):
        return None
    return Slurm({name: Path(place) for name, place in found.items() if place}, prefix)


def _unpack(target: Path) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise LaunchError(
            "Slurm: slurmctld, slurmd and munged are not on PATH, and this machine has no apt-get to download them; "
            "install Slurm and munge with the machine's package manager"
        )
    work = target.with_name("packages.new")
    shutil.rmtree(work, ignore_errors=True)
    (work / "debs").mkdir(parents=True)
    options = ["-o", "APT::Sandbox::User=root", "-o", "Debug::NoLocking=true"]
    try:
        names = _wanted(options)
    except LaunchError:
        # An image without package lists, which only root could fetch to their usual place: fetch our own.
        lists = work / "lists"
        (lists / "partial").mkdir(parents=True)
        options += ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={work}"]
        _run(["apt-get", *options, "-qq", "update"])
        names = _wanted(options)
    _run(["apt-get", *options, "-qq", "download", *names], folder=work / "debs")
    for package in sorted((work / "debs").glob("*.deb")):
        _run(["dpkg-deb", "--extract", str(package), str(work / "root")])
    # Debian's daemons have a suffix, and links with the plain names are made at installation. They matter: a daemon
    # that is not called slurmd takes itself for a client, and leaves Gres= of its node out.
    for daemon in (work / "root" / "usr" / "sbin").glob("slurm*-wlm"):
        daemon.with_name(daemon.name.removesuffix("-wlm")).symlink_to(daemon.name)
    shutil.rmtree(target, ignore_errors=True)
    (work / "root").rename(target)
    shutil.rmtree(work)


def _wanted(options: list[str]) -> list[str]:
    """PACKAGES and the libraries they need that this machine lacks: what apt would install."""
    plan = _run(["apt-get", *options, "--simulate", "--reinstall", "--no-install-recommends", "install", *PACKAGES])
    return [line.split()[1] for line in plan.stdout.splitlines() if line.startswith("Inst ")]


def _run(command: list[str], folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"}
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise LaunchError(
            f"Slurm: {command[0]} failed: {reason}; `apt-get install {' '.join(PACKAGES)}` as root works too"
        )
    return done


def _dynamic_loader(program: Path) -> str:
    """The loader a program asks for in its ELF header, for example /lib64/ld-linux-x86-64.so.2."""
    with program.open("rb") as file:
        match = re.search(rb"/lib[^\0]*/ld-[^\0]+", file.read(4096))
    if match is None:
        raise LaunchError(f"{program}: names no dynamic loader; is it a program of this machine?")
    return match[0].decode()
