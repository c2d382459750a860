"""What the shell is offered at the Tab key: run folders, configuration files, sites, checkpoints' steps, ...

Asked at every keystroke: file names only, nothing heavy is imported, and what cannot be read is not offered.
"""

from collections.abc import Iterator
from contextlib import suppress
from os.path import dirname
from pathlib import Path

import typer

import configs

RUNS = "runs"
RUN, STUDY = "config.yaml", "study.yaml"
OF_OTHER_KINDS = ("recipes", "sites", "studies")
"""Folders of `configs/` whose files are no runs."""


def runs(incomplete: str) -> list[str]:
    """Folders of runs: two levels below what is typed, or below `runs`."""
    return _folders(incomplete, (RUN,))


def runs_and_studies(incomplete: str) -> list[str]:
    """Folders of runs and of studies."""
    return _folders(incomplete, (RUN, STUDY))


def studies(incomplete: str) -> list[str]:
    """Folders of studies."""
    return _folders(incomplete, (STUDY,))


def config_files(incomplete: str) -> list[str]:
    """YAML files that can be a run's configuration."""
    return [path for path in _yaml(incomplete) if not set(Path(path).parts[:-1]) & set(OF_OTHER_KINDS)]


def study_files(incomplete: str) -> list[str]:
    """YAML files of studies, by their folder."""
    return [path for path in _yaml(incomplete) if "studies" in Path(path).parts[:-1]]


def sites(incomplete: str) -> list[str]:
    """Names of sites, and YAML files."""
    known = sorted(path.stem for path in (Path(configs.__file__).parent / "sites").glob("*.yaml"))
    return [name for name in known if name.startswith(incomplete)] + config_files(incomplete)


def recipes(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of the study's recipes, after the commas that are there."""
    from configs.errors import ConfigError
    from configs.files import parse_yaml

    study, (before, comma, begun) = _argument(ctx, "study"), incomplete.rpartition(",")
    if study is None:
        return []
    with suppress(OSError, UnicodeDecodeError, ConfigError):
        values = parse_yaml(study.read_text("utf-8"), str(study))
        names = values.get("recipes") if isinstance(values, dict) else None
        return [f"{before}{comma}{name}" for name in names or () if str(name).startswith(begun)]
    return []


def steps(ctx: typer.Context, incomplete: str) -> list[str]:
    """Steps of the run's checkpoints, newest first."""
    names = [path.name.removeprefix("step-") for path in _inside(ctx, "checkpoints", "step-*")]
    found = [str(int(name)) for name in reversed(names) if name.isdecimal()]
    return [step for step in found if step.startswith(incomplete)]


def spikes(ctx: typer.Context, incomplete: str) -> list[str]:
    """Ids of the run's records of alarms."""
    return [path.stem for path in _inside(ctx, "spikes", "*.npz") if path.stem.startswith(incomplete)]


def devices(incomplete: str) -> list[str]:
    """GPUs that `plan` knows."""
    from monitoring.devices import DEVICES

    return [name for name in DEVICES if name.startswith(incomplete)]


def _folders(incomplete: str, markers: tuple[str, ...]) -> list[str]:
    base = Path(dirname(incomplete)) if "/" in incomplete else Path(RUNS)
    found = {path.parent for marker in markers for depth in ("*", "*/*") for path in _glob(base, f"{depth}/{marker}")}
    shown = sorted(f"{incomplete[:2] if incomplete.startswith('./') else ''}{path}" for path in found)
    return [path for path in shown if path.startswith(incomplete)]


def _yaml(incomplete: str) -> list[str]:
    """Of the folder that is typed and the one below it; where none is, of this one and of `configs`."""
    if "/" in incomplete:
        base = Path(dirname(incomplete))
        found = [*_glob(base, "*.yaml"), *_glob(base, "*/*.yaml")]
    else:
        found = [*_glob(Path(), "*.yaml"), *_glob(Path("configs"), "*.yaml"), *_glob(Path("configs"), "*/*.yaml")]
    shown = (f"{'./' if incomplete.startswith('./') else ''}{path}" for path in found)
    return [path for path in shown if path.startswith(incomplete)]


def _inside(ctx: typer.Context, folder: str, pattern: str) -> list[Path]:
    run = _argument(ctx, "run")
    return [] if run is None else list(_glob(run / folder, pattern))


def _argument(ctx: typer.Context, name: str) -> Path | None:
    """The first argument, as far as it was parsed: the option that is being completed has no value yet."""
    given = ctx.params.get(name) or next(iter(ctx.args), None)
    return None if given is None else Path(given)


def _glob(base: Path, pattern: str) -> Iterator[Path]:
    with suppress(OSError):
        yield from sorted(path for path in base.glob(pattern) if not path.name.startswith("."))
