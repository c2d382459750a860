"""Wrong submissions: one clear line each, before anything is written or queued."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from configs import describe
from configs.schema import Config
from configs.sites import Resources, Site, site_names
from launcher.cli import app
from launcher.jobs.request import on_its_devices, read_request
from tests.launcher.jobs.fake_slurm import FakeSlurm, install, write_configuration

ROOT = Path(__file__).parents[3]
SITE = {"grace_s": 60, "resources": {"partition": "main", "tasks_per_node": 2, "time": 60}}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stdlib_bytes: Path) -> Path:
    """A working folder with a configuration, a dataset and a site."""
    monkeypatch.chdir(tmp_path)
    write_configuration(tmp_path / "c.yaml", stdlib_bytes)
    write_site(tmp_path, {})
    return tmp_path


@pytest.fixture
def slurm(place: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return install(place / "slurm", monkeypatch)


def write_site(place: Path, changes: dict) -> None:
    resources = SITE["resources"] | changes.get("resources", {})
    (place / "site.yaml").write_text(yaml.safe_dump(SITE | changes | {"resources": resources}))


def files(place: Path) -> list[Path]:
    """Everything below, but what the scripts note and the lock beside a run, which stays."""
    return sorted(path for path in place.rglob("*") if path.name not in ("environment", "runs", ".a.lock"))


def submit(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["submit", "c.yaml", "--cluster", "site.yaml", *arguments])


TIME = "must be minutes, hours:minutes:seconds or days-hours:minutes, for example 90 or 1:30:00"
NODES = "must be a number of nodes, or fewest-most such as 2-4"
JOBS = "must be conditions and jobs such as afterok:123, afterany:123:124,afterok:130 or singleton"
WORD = "must be one word, as Slurm knows it"

WRONG = {
    "layout": (
        ["parallel.tp=4"],
        "command line: parallel.tp = 4: parallel.tp x pp = 4 x 1 = 4 must divide the number of processes, 2 (4, 8, 12, "
        "... processes would do) (on 1 node x 2 processes)",
    ),
    "layout of one size of a range": (
        ["parallel.tp=4", "--nodes", "2-3"],
        "command line: parallel.tp = 4: parallel.tp x pp = 4 x 1 = 4 must divide the number of processes, 6 (4, 8, 12, "
        "... processes would do) (on 3 nodes x 2 processes)",
    ),
    "batch": (
        ["--nodes", "3"],
        "c.yaml: training.global_batch_size = 16: must be a multiple of parallel.dp = 6 (6, 12, 18, ...) (on 3 nodes "
        "x 2 processes)",
    ),
    "nodes 0": (["--nodes", "0"], f"--nodes = 0: {NODES}"),
    "nodes reversed": (["--nodes", "4-2"], f"--nodes = 4-2: {NODES}"),
    "nodes in words": (["--nodes", "two"], f"--nodes = two: {NODES}"),
    "no tasks": (["--tasks-per-node", "0"], "--tasks-per-node = 0: must be a whole number >= 1"),
    "fewer GPUs than processes": (
        ["--gpus-per-node", "1"],
        "--tasks-per-node = 2: must be at most --gpus-per-node, 1: each process needs a GPU of its own "
        "(training.device=cpu needs none)",
    ),
    "idle GPUs": (
        ["--gpus-per-node", "8", "--tasks-per-node", "1"],
        "--tasks-per-node = 1: each process uses one GPU, so 7 of --gpus-per-node = 8 would be idle; leave it out "
        "for a process on each GPU",
    ),
    "container on this machine": (
        ["--cluster", "local", "--container", "apptainer exec x.sif"],
        "--container = apptainer exec x.sif: --cluster local starts its processes without one",
    ),
    "negative GPUs": (["--gpus-per-node", "-1"], "--gpus-per-node = -1: must be a whole number >= 0"),
    "cuda without GPUs": (
        ["training.device=cuda"],
        "training.device = cuda: the job asks for no GPU; set --gpus-per-node, or use cpu",
    ),
    "time in words": (["--time", "1h"], f"--time = 1h: {TIME}"),
    "time of nothing": (["--time", "0"], "--time = 0: must be more than nothing: Slurm would start the job and end it"),
    "time with three colons": (["--time", "1:2:3:4"], f"--time = 1:2:3:4: {TIME}"),
    "grace longer than the time": (
        ["--time", "1"],
        "--time = 1: must be longer than the site's grace_s, 60 s: so long before its end the job is asked to save and "
        "stop",
    ),
    "no memory": (["--mem-gb", "0"], "--mem-gb = 0.0: must be a number >= 0.001"),
    "endless memory": (["--mem-gb", "inf"], "--mem-gb = inf: must be a number >= 0.001"),
    "no cores": (["--cpus-per-task", "0"], "--cpus-per-task = 0: must be a whole number >= 1"),
    "dependency": (["--dependency", "afterok=12"], f"--dependency = afterok=12: {JOBS}"),
    "dependency on nothing": (["--dependency", "afterok:"], f"--dependency = afterok:: {JOBS}"),
    "partition of two words": (["--partition", "a b"], f"--partition = a b: {WORD}"),
    "empty account": (["--account", ""], f"--account = '': {WORD}"),
    "override": (["model.layerz=2"], "command line: model.layerz: no such key; did you mean model.layers?"),
    "value": (["training.steps=many"], "command line: training.steps = many: must be a whole number >= 1"),
    "missing data": (
        ["data.sources.0.path=nodata"],
        "nodata/manifest.json: missing, no such dataset: make it with `steadytrain prepare`",
    ),
    "sequence longer than the data": (
        ["training.sequence_length=10000000", "model.positions=rope"],
        "DATA: the train split has 1785636 tokens, fewer than one window: training.sequence_length = 10000000 must be "
        "at most 1785635",
    ),
    "percent in a path": (
        ["run.dir=runs%j"],
        "run.dir = runs%j: the path of a job's run must not hold '%' (it is 'PLACE/runs%j/a'); choose another",
    ),
    "colon in a path": (
        ["run.dir=a:b"],
        "run.dir = a:b: the path of a job's run must not hold ':' (it is 'PLACE/a:b/a'); choose another",
    ),
    "missing source of weights": (
        ["init_from=old"],
        "init_from = PLACE/old: no such folder; name a run, such as runs/tiny, or one of its checkpoints",
    ),
    "unknown site": (
        ["--cluster", "locall"],
        "--cluster = locall: must be SITES, or a site's YAML file; did you mean local?",
    ),
    "missing site file": (["--cluster", "sites.yaml"], "--cluster = sites.yaml: no such file; did you mean site.yaml?"),
    "overwrite and fresh": (
        ["--overwrite", "--fresh"],
        "command line: --fresh, --overwrite: only one of them; --overwrite deletes the earlier run",
    ),
    "chain without Slurm": (
        ["--cluster", "local", "--chain", "2"],
        "--chain = 2: must be 1 with --cluster local: without a time limit one job is enough",
    ),
}


@pytest.mark.parametrize(
    ("gpus", "device", "expected"), [(4, "auto", "cuda"), (0, "auto", "auto"), (4, "cpu", "cpu"), (4, "cuda", "cuda")]
)
def test_a_job_that_asks_for_gpus_does_not_train_without(gpus, device, expected):
    config = Config.model_validate({"data": {"sources": [{"path": "d"}]}, "training": {"device": device}})
    site = Site(resources=Resources(gpus_per_node=gpus))
    assert on_its_devices(site, config).training.device == expected


@pytest.mark.parametrize(("arguments", "line"), WRONG.values(), ids=WRONG)
def test_a_wrong_submission_is_one_line_and_leaves_nothing(place, slurm, stdlib_bytes, arguments, line):
    before = files(place)
    result = submit(*arguments)
    line = line.replace("PLACE", str(place)).replace("DATA", str(stdlib_bytes))
    assert (result.exit_code, result.output) == (2, line.replace("SITES", describe.either(site_names())) + "\n")
    assert files(place) == before and slurm.scripts == []


@pytest.mark.parametrize(
    "arguments", [["--retries", "-1"], ["--chain", "0"], ["--mem-gb", "64G"], ["--gpus", "8"]], ids=" ".join
)
def test_what_the_command_line_itself_refuses(place, slurm, arguments):
    before = files(place)
    result = submit(*arguments)
    assert result.exit_code == 2 and arguments[0] in result.output
    assert files(place) == before and slurm.scripts == []


def test_options_win_over_the_site_and_numbers_are_as_good_as_text(place, slurm):
    write_site(place, {"resources": {"nodes": 2, "time": 90, "account": 1234}})
    request = read_request("site.yaml", {"time": "2:00:00", "nodes": None}, Path("c.yaml"), [])
    resources = request.site.resources
    assert (resources.nodes, resources.time, resources.account) == ("2", "2:00:00", "1234")
    assert request.world_sizes == [4]


def test_every_number_of_nodes_of_a_range_is_checked_and_kept(place):
    request = read_request("site.yaml", {"nodes": "1-4"}, Path("c.yaml"), ["training.global_batch_size=48"])
    assert request.world_sizes == [2, 4, 6, 8]


@pytest.mark.parametrize("arguments", [["--nodes", "0"], ["model.layerz=2"], ["data.sources.0.path=x"]], ids=" ".join)
def test_mistakes_are_told_without_torch_and_submitit(place, arguments):
    script = (
        "import sys; from launcher.cli import app\n"
        f"try: app(['submit', 'c.yaml', '--cluster', 'site.yaml', *{arguments!r}])\n"
        "except SystemExit as end: print('code', end.code, [name for name in sys.modules if name in "
        "('torch', 'submitit', 'megatron', 'mlflow')])"
    )
    done = subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.stdout == "code 2 []\n", done.stderr


def test_what_a_job_asks_of_its_data_needs_no_torch(place):
    script = (
        "import sys; from pathlib import Path; from launcher.jobs.request import read_request\n"
        "read_request('site.yaml', {}, Path('c.yaml'), []); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
