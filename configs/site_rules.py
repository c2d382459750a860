"""What a site's values must be beyond their type: times, ranges of nodes, words of Slurm, names of variables."""

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

_TIME = re.compile(r"(?:(?P<d>\d+)-(?P<dh>\d+)(?::(?P<dm>\d+)(?::(?P<ds>\d+))?)?"
                   r"|(?P<h>\d+):(?P<hm>\d+):(?P<hs>\d+)|(?P<m>\d+)(?::(?P<s>\d+))?)", re.ASCII)  # fmt: skip
_JOB = r"\d+(?:_(?:\d+|\*))?(?:\+\d+)?"
_CONDITION = rf"(?:singleton|after(?:any|ok|notok|corr|burstbuffer)?(?::{_JOB})+)"
_DEPENDENCY = re.compile(rf"{_CONDITION}(?:,{_CONDITION})*|{_CONDITION}(?:\?{_CONDITION})*", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)

OUR_VARIABLES = ("PYTHONPATH", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What each process gets from the launcher; a site cannot set it."""
OUR_DIRECTIVES = (
    "array",
    "chdir",
    "error",
    "job-name",
    "no-requeue",
    "open-mode",
    "output",
    "requeue",
    "signal",
    "wrap",
)
"""What the batch script needs as it is; a site cannot set it."""
OTHER_KEYS = {
    "account": "account", "constraint": "constraint", "cpus-per-task": "cpus_per_task", "dependency": "dependency",
    "exclude": "exclude", "gpus-per-node": "gpus_per_node", "mem": "mem_gb", "nodes": "nodes",
    "ntasks-per-node": "tasks_per_node", "partition": "partition", "qos": "qos", "reservation": "reservation",
    "time": "time",
}  # fmt: skip
"""Directives that are written from `resources`, and which key of it."""


def minutes(time: str) -> int:
    """A Slurm time limit in whole minutes, rounded up: `90`, `90:00`, `1:30:00`, `0-1`, `0-1:30`, `0-1:30:00`.

    Raises ValueError for anything else, and for no time at all.
    """
    match = _TIME.fullmatch(time.strip())
    if match is None:
        raise ValueError("must be minutes, hours:minutes:seconds or days-hours:minutes, for example 90 or 1:30:00")
    part = {name: int(value or 0) for name, value in match.groupdict().items()}
    hours = 24 * part["d"] + part["dh"] + part["h"]
    seconds = 3600 * hours + 60 * (part["dm"] + part["hm"] + part["m"]) + part["ds"] + part["hs"] + part["s"]
    if seconds == 0:
        raise ValueError("must be more than nothing: Slurm would start the job and end it")
    return -(-seconds // 60)


def node_range(nodes: str) -> tuple[int, int]:
    """`2` or `1-4` as (fewest, most). Raises ValueError."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", nodes.strip(), re.ASCII)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= low <= high:
        raise ValueError("must be a number of nodes, or fewest-most such as 2-4")
    return low, high


def _as_text(value: Any) -> Any:
    """YAML reads `time: 60` and `nodes: 2` as numbers."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _checked_time(time: str) -> str:
    minutes(time)
    return time


def _checked_nodes(nodes: str) -> str:
    node_range(nodes)
    return nodes


def _one_word(text: str) -> str:
    if not text or re.search(r"[\s'\"\\#]", text):
        raise ValueError("must be one word, as Slurm knows it")
    return text


def _checked_dependency(dependency: str) -> str:
    if not _DEPENDENCY.fullmatch(dependency):
        raise ValueError("must be conditions and jobs such as afterok:123, afterany:123:124,afterok:130 or singleton")
    return dependency


def _checked_variables(variables: dict[str, str]) -> dict[str, str]:
    for name in variables:
        if not _VARIABLE.fullmatch(name):
            raise ValueError(f"{name} is no name of a variable: letters, digits and '_' only")
        if name in OUR_VARIABLES:
            raise ValueError(f"{name} is set by the launcher in every process; leave it out")
    return variables


def _checked_directives(directives: dict[str, str | int | bool]) -> dict[str, str | int | bool]:
    for name, value in directives.items():
        plain = name.lstrip("-").replace("_", "-")
        if plain in OTHER_KEYS:
            raise ValueError(f"{name} is written from resources.{OTHER_KEYS[plain]}; set that")
        if plain in OUR_DIRECTIVES:
            raise ValueError(f"{name} is set by the launcher; leave it out")
        if plain != name or not re.fullmatch(r"[a-z][a-z0-9-]+", name):
            raise ValueError(f"{name} must be the long name of a directive without its dashes, such as exclusive")
        if isinstance(value, str) and re.search(r"[\n\\]", value):
            raise ValueError(f"{name}: a directive is one line without backslashes")
    return directives


def _one_line(command: str) -> str:
    if not command.strip() or "\n" in command.strip():
        raise ValueError("must be one line of shell")
    return command.strip()


def _checked_python(python: str) -> str:
    if python.startswith("~") or not python.strip():
        raise ValueError("must be a path from the root or a command's name: the shell expands no ~ here")
    return python


def _unless_null(check: Callable[[str], str]) -> AfterValidator:
    return AfterValidator(lambda value: None if value is None else check(value))


Time = Annotated[str, BeforeValidator(_as_text), AfterValidator(_checked_time)]
Nodes = Annotated[str, BeforeValidator(_as_text), AfterValidator(_checked_nodes)]
Word = Annotated[str | None, BeforeValidator(_as_text), _unless_null(_one_word)]
Dependency = Annotated[str | None, _unless_null(_checked_dependency)]
Command = Annotated[str | None, _unless_null(_one_line)]
Python = Annotated[str | None, _unless_null(_checked_python)]
Variables = Annotated[dict[str, Annotated[str, BeforeValidator(_as_text)]], AfterValidator(_checked_variables)]
Directives = Annotated[dict[str, str | int | bool], AfterValidator(_checked_directives)]
