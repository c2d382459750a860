"""What is asked for, checked as a whole before anything is written or queued."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import ConfigError
from configs.load import Loaded, load_with_origins
from configs.schema import Config
from configs.site_rules import minutes
from configs.sites import Site, load_site


@dataclass(frozen=True)
class Request:
    """A configuration and the site it shall run on. `config` is not yet resolved: a job may get fewer nodes."""

    site_name: str
    site: Site
    config: Config

    @property
    def world_sizes(self) -> list[int]:
        """Processes, for each number of nodes the job may get."""
        return self.site.resources.world_sizes


def read_request(
    cluster: str, options: Mapping[str, Any], path: Path, overrides: Sequence[str], *, container: str | None = None
) -> Request:
    """Read site and configuration and check that they fit each other, and that the data are there.

    `container` replaces the site's. Raises ConfigError or DataError, one line per mistake.
    """
    site = load_site(cluster, options)
    if container is not None:
        if site.kind == "local":
            raise ConfigError(f"--container = {container}: --cluster local starts its processes without one")
        site = site.model_copy(update={"container": container})
    loaded = load_with_origins(path, overrides)
    _check_layout(site, loaded)
    check_fit(site, loaded.config)
    return Request(cluster, site, on_its_devices(site, loaded.config))


def on_its_devices(site: Site, config: Config) -> Config:
    """With `auto`, a job that asks for GPUs needs them: a node that has lost its own must not train on the CPU."""
    if config.training.device != "auto" or site.resources.gpus_per_node == 0:
        return config
    return config.model_copy(update={"training": config.training.model_copy(update={"device": "cuda"})})


def check_fit(site: Site, config: Config) -> None:
    """What holds for a run of any layout: its devices, time, path and data. Raises ConfigError, DataError."""
    _check_devices(site, config)
    _check_time(site)
    _check_path(config)
    _check_data(config)


def _check_layout(site: Site, loaded: Loaded) -> None:
    """The layout must fit every number of nodes that the job may get."""
    for world_size in site.resources.world_sizes:
        try:
            loaded.resolve(world_size)
        except ConfigError as error:
            nodes = world_size // site.resources.tasks
            many = "s" if nodes > 1 else ""
            where = f"on {nodes} node{many} x {site.resources.tasks} processes"
            raise ConfigError("\n".join(f"{line} ({where})" for line in str(error).splitlines())) from None


def _check_devices(site: Site, config: Config) -> None:
    gpus, tasks = site.resources.gpus_per_node, site.resources.tasks
    if config.training.device == "cuda" and gpus == 0:
        raise ConfigError("training.device = cuda: the job asks for no GPU; set --gpus-per-node, or use cpu")
    if gpus and tasks > gpus and config.training.device != "cpu":
        raise ConfigError(
            f"--tasks-per-node = {tasks}: must be at most --gpus-per-node, {gpus}: each process needs a GPU of its own "
            "(training.device=cpu needs none)"
        )
    if tasks < gpus and config.training.device != "cpu":
        raise ConfigError(
            f"--tasks-per-node = {tasks}: each process uses one GPU, so {gpus - tasks} of --gpus-per-node = {gpus} "
            "would be idle; leave it out for a process on each GPU"
        )


def _check_time(site: Site) -> None:
    """Slurm sends a warning that is due before the start at once: every attempt would stop at its first step."""
    limit_s = 60 * minutes(site.resources.time)
    if site.kind == "slurm" and site.grace_s >= limit_s:
        raise ConfigError(
            f"--time = {site.resources.time}: must be longer than the site's grace_s, {site.grace_s} s: "
            "so long before its end the job is asked to save and stop"
        )


def _check_path(config: Config) -> None:
    """Slurm and submitit read `%` in a log's name as a pattern, sbatch drops `\\`, and `:` divides PYTHONPATH."""
    folder = str(config.run_dir.absolute())
    found = next((sign for sign in folder if sign in "%\\:" or not sign.isprintable()), None)
    if found is not None:
        raise ConfigError(
            f"run.dir = {config.run.dir}: the path of a job's run must not hold {found!r} (it is {folder!r}); "
            "choose another"
        )


def _check_data(config: Config) -> None:
    """Datasets that are missing or damaged are told now and not hours later, when the job starts."""
    from data.samples import Samples

    training = config.training
    for split in ("train", "validation"):
        Samples(config.data.sources, split, training.sequence_length, training.seed)
