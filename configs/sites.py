"""The typed description of a place where jobs run: a Slurm cluster, or this machine.

A site is a YAML file; `--cluster NAME` finds `configs/sites/NAME.yaml` of the package, `--cluster PATH` any other. The
options of `steadytrain submit` replace values of `resources`.
"""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_origin

from pydantic import BaseModel, Field, ValidationError
from pydantic.fields import FieldInfo

from configs import describe
from configs.errors import ConfigError
from configs.files import parse_yaml
from configs.section import Section
from configs.site_rules import Command, Dependency, Directives, Nodes, Python, Time, Variables, Word, node_range

SITES = Path(__file__).parent / "sites"
BATCH_KEYS = ("setup", "srun_args", "sbatch", "container")
"""Keys of a site that only a batch script uses."""


class Resources(Section):
    """What a job asks Slurm for. An option of `steadytrain submit` has the same name."""

    nodes: Nodes = "1"
    """Nodes; `2-4` starts, and starts again after a lost node, on as many of them as there are."""
    tasks_per_node: int | None = Field(None, ge=1)
    """Processes on each node; default: gpus_per_node, or 1."""
    gpus_per_node: int = Field(0, ge=0)
    """GPUs on each node."""
    gpu_type: Word = None
    """Kind of the GPUs, where Slurm knows several: `h100`."""
    cpus_per_task: int | None = Field(None, ge=1)
    """CPU cores of each process."""
    mem_gb: float | None = Field(None, ge=0.001)
    """Memory of each node in GB."""
    time: Time = "60"
    """Time limit, as Slurm writes it; the run is saved and requeued when it is reached."""
    partition: Word = None
    """Partition, or several of which the first to have room is taken: `a,b`."""
    account: Word = None
    """Account that the time is charged to."""
    qos: Word = None
    """Quality of service."""
    constraint: Word = None
    """Features that the nodes must have."""
    reservation: Word = None
    """Reservation to run in."""
    exclude: Word = None
    """Nodes not to be used, as Slurm writes them: `node[3-5]`."""
    dependency: Dependency = None
    """Jobs to wait for, as Slurm writes them: `afterok:123`."""

    @property
    def tasks(self) -> int:
        """Processes on each node."""
        return self.tasks_per_node or self.gpus_per_node or 1

    @property
    def world_sizes(self) -> list[int]:
        """Processes of the whole job, for each number of nodes it may get."""
        low, high = node_range(self.nodes)
        return [nodes * self.tasks for nodes in range(low, high + 1)]


class Preflight(Section):
    """What each node must have before training starts on it; one that lacks it is left out of the next attempt."""

    min_free_memory_gb: float = Field(0.5, ge=0)
    """Free host memory."""
    min_free_disk_gb: float = Field(0.5, ge=0)
    """Free space where runs are written."""
    max_clock_skew_s: float = Field(30.0, gt=0)
    """Difference between a node's clock and rank 0's."""
    min_bandwidth_gb_s: float = Field(0.0, ge=0)
    """Bandwidth of an all-reduce over all ranks; 0: measured and shown only."""
    command: str | None = None
    """A health check of the site's own, run by the shell once on each node; it passes with exit code 0."""
    timeout_s: float = Field(60.0, gt=0)
    """How long the all-reduce and the command may take, each; to find each other, the ranks have 300 s more."""


class Site(Section):
    """One place where jobs run."""

    kind: Literal["slurm", "local"] = "slurm"
    """`local`: processes of this machine, without Slurm."""
    resources: Resources = Resources()
    """Defaults of what a job asks for."""
    grace_s: int = Field(120, ge=1)
    """Seconds before the time limit (or a preemption that warns) at which the run is asked to save and stop; a step, an
    evaluation and a save must fit."""
    requeue: bool = True
    """Whether a stopped or crashed job may be put back into the queue; if not, use `--chain`."""
    retries: int = Field(3, ge=0)
    """Crashes after which the job is given up."""
    setup: list[str] = Field(default_factory=list)
    """Shell lines run on the first node before training: `module load ...`."""
    environment: Variables = Field(default_factory=dict)
    """Variables of every process: NCCL, InfiniBand, ... Taken as written: a shell expands `setup` only."""
    container: Command = None
    """Command put before Python, such as `apptainer exec --nv image.sif`; paths must be the same inside."""
    python: Python = None
    """Python of the job (of the container, if there is one); default: the one that submits, which must be at the same
    path on the nodes."""
    srun_args: list[str] = Field(default_factory=list)
    """More arguments for srun: `--container-image=...` of pyxis, `--cpu-bind=...`."""
    sbatch: Directives = Field(default_factory=dict)
    """More directives of the batch script, without their dashes; `true` for one that has no value."""
    preflight: Preflight = Preflight()

    @property
    def in_container(self) -> bool:
        """Whether ranks run where the host's programs are not: `container`, or an srun plugin's (pyxis)."""
        return self.container is not None or any(argument.startswith("--container") for argument in self.srun_args)


def load_site(name: str, options: Mapping[str, Any] | None = None) -> Site:
    """The site called `name`, or described by the file of that name, with `options` in place of its resources.

    Raises ConfigError: no such site, or a wrong value (one line per mistake).
    """
    path = _site_path(name)
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"), str(path)) or {}
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must be a mapping of a site's keys: {', '.join(Site.model_fields)}")
    given = {key: value for key, value in (options or {}).items() if value is not None}
    resources = values.get("resources") or {}
    if isinstance(resources, dict):
        values = values | {"resources": resources | given}
    lines = list(_booleans(path, Site, values))
    try:
        site = Site.model_validate(values)
    except ValidationError as error:
        lines += [_line(path, dict(problem), given) for problem in error.errors()]
    else:
        lines += [f"{path}: {key}: must not be set where kind = local: only Slurm's jobs use it" for key in _idle(site)]
    if lines:
        raise ConfigError("\n".join(dict.fromkeys(lines)))
    return site


def _idle(site: Site) -> list[str]:
    """Keys that were set and do nothing."""
    return [key for key in BATCH_KEYS if site.kind == "local" and getattr(site, key)]


def site_names() -> list[str]:
    """Names that `--cluster` knows."""
    return sorted(path.stem for path in SITES.glob("*.yaml"))


def _site_path(name: str) -> Path:
    known, path = SITES / f"{name}.yaml", Path(name)
    if name in site_names():
        return known
    is_file_name = path.suffix in (".yaml", ".yml")
    if is_file_name and path.is_file():
        return path
    others = [other.name for other in path.parent.glob("*.y*ml")] if is_file_name else site_names()
    nearest = get_close_matches(path.name, others, 1)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    if is_file_name:
        raise ConfigError(f"--cluster = {name}: no such file{hint}")
    raise ConfigError(f"--cluster = {name}: must be {describe.either(site_names())}, or a site's YAML file{hint}")


def _booleans(path: Path, model: type[BaseModel], values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """What pydantic would let pass: `true` as a number."""
    for name, info in model.model_fields.items():
        section, value = describe.section_of(info), values.get(name)
        if section is not None and isinstance(value, dict):
            yield from _booleans(path, section, value, f"{prefix}{name}.")
        elif isinstance(value, bool) and {int, float} & set(describe.kinds(info)):
            yield f"{path}: {prefix}{name} = {describe.shown(value)}: {describe.allowed(info)}"


def _line(path: Path, problem: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Where the value came from, the value, what is allowed."""
    location = [str(part) for part in problem["loc"]]
    section, name = (Site, location[0]) if len(location) == 1 else (_section(location[0]), location[1])
    if problem["type"] == "extra_forbidden":
        nearest = get_close_matches(name, section.model_fields, 1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(section.model_fields)}"
        return f"{path}: {'.'.join(location)}: no such key; {hint}"
    info = section.model_fields[name if name in section.model_fields else location[0]]
    message = problem["msg"].removeprefix("Value error, ") if problem["type"] == "value_error" else _allowed(info)
    if location[0] == "resources" and len(location) > 1 and location[1] in given:
        value = "''" if problem["input"] == "" else problem["input"]
        return f"--{location[1].replace('_', '-')} = {value}: {message.removesuffix(' or null')}"
    return f"{path}: {_key(location)} = {describe.shown(problem['input'])}: {message}"


def _section(name: str) -> type[BaseModel]:
    """The section called so; the site itself for a list or mapping of its own."""
    return describe.section_of(Site.model_fields[name]) or Site


def _key(location: list[str]) -> str:
    """The dotted key, without what pydantic adds for the kinds of a union."""
    return ".".join(part for part in location if part not in ("str", "int", "bool"))


def _allowed(info: FieldInfo) -> str:
    kind = get_origin(info.annotation)
    if kind is list:
        return "must be a list of texts"
    if kind is dict:
        return "must be names with their values, each text or a whole number; quote others"
    return describe.allowed(info)
