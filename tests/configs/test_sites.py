"""Sites: every template loads, values are understood as Slurm would, mistakes are one line each."""

from pathlib import Path

import pytest
import yaml

from configs.errors import ConfigError
from configs.site_rules import minutes, node_range
from configs.sites import SITES, Resources, Site, load_site, site_names


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def refusal(name: str, **options: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_site(name, options)
    return str(caught.value)


@pytest.mark.parametrize("name", site_names())
def test_every_site_of_the_package_loads(name):
    site = load_site(name)
    assert site.kind == ("local" if name == "local" else "slurm")
    assert site == load_site(str(SITES / f"{name}.yaml"))


@pytest.mark.parametrize("name", ["cpu", "h100-infiniband"])
def test_every_line_of_a_template_that_is_commented_out_is_right_too(name, tmp_path):
    """A user takes the sign away: keys and values must be the schema's."""
    text = (SITES / f"{name}.yaml").read_text()
    lines = [line for line in text.splitlines() if not line.startswith(("# A template", "# names", "# `--cluster"))]
    uncommented = [line.replace("# ", "", 1) if line.lstrip().startswith("# ") else line for line in lines]
    site = load_site(write(tmp_path, "\n".join(uncommented)))
    assert site.resources.account == "myproject"
    if name == "h100-infiniband":
        assert site.container and site.python and site.setup and site.preflight.command
        assert site.resources.gpu_type == "h100" and len(site.srun_args) == 3


def test_the_gpu_template_fills_its_nodes():
    site = load_site("h100-infiniband", {"nodes": "2-4"})
    assert site.resources.world_sizes == [16, 24, 32]
    assert site.environment["NCCL_IB_TIMEOUT"] == "22"


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("90", 90), ("90:00", 90), ("90:01", 91), ("0:30", 1), ("1:30:00", 90), ("0-1", 60), ("1-0", 1440),
        ("0-1:30", 90), ("2-03:04:05", 3065), (" 5 ", 5),
    ],
)  # fmt: skip
def test_times_are_slurm_s(time, expected):
    assert minutes(time) == expected


@pytest.mark.parametrize("time", ["", "0", "0:00", "0-0", "1h", "-5", "1:2:3:4", "1.5", "1-", "٣", "UNLIMITED"])
def test_other_times_are_refused(time):
    with pytest.raises(ValueError, match="must be"):
        minutes(time)


@pytest.mark.parametrize("nodes", ["0", "4-2", "0-1", "1-", "-1", "1-2-3", "two", "", "1,2", "²"])
def test_other_numbers_of_nodes_are_refused(nodes):
    with pytest.raises(ValueError, match="must be a number of nodes"):
        node_range(nodes)


@pytest.mark.parametrize(
    ("written", "understood"),
    [("60", 60), ("1:30:00", 90), ('"1:30:00"', 90), ("0-12", 720), ("90:00", 90), ("12:34:56", 755)],
)
def test_a_time_without_quotes_is_no_number_in_base_60(tmp_path, written, understood):
    assert minutes(load_site(write(tmp_path, f"resources: {{time: {written}}}")).resources.time) == understood


def test_numbers_stand_for_text(tmp_path):
    site = load_site(
        write(tmp_path, "resources: {nodes: 2, account: 7, qos: '8'}\nenvironment: {A: 1, B: on, C: 0x10, D: ''}\n")
    )
    assert (site.resources.nodes, site.resources.account, site.resources.qos) == ("2", "7", "8")
    assert site.environment == {"A": "1", "B": "on", "C": "0x10", "D": ""}


def test_an_option_takes_the_place_of_the_site_s_value_even_of_a_wrong_one(tmp_path):
    site = load_site(write(tmp_path, "resources: {nodes: none, time: 5}"), {"nodes": "3", "time": None})
    assert (site.resources.nodes, site.resources.time) == ("3", "5")


@pytest.mark.parametrize("text", ["", "resources:\n", "# nothing\n"])
def test_a_site_may_leave_everything_out(tmp_path, text):
    assert load_site(write(tmp_path, text)) == Site()


@pytest.mark.parametrize(
    "dependency",
    ["afterok:1", "after:1+5", "afterany:1:2,afternotok:3", "afterok:1?afterany:2", "singleton", "aftercorr:12_3",
     "afterok:7_*"],
)  # fmt: skip
def test_dependencies_are_slurm_s(dependency):
    assert Resources(dependency=dependency).dependency == dependency


WRONG = {
    "- a": "PATH: must be a mapping of a site's keys: kind, resources, ",
    "resources: [1]": "PATH: resources = [1]: must be a section with nodes, tasks_per_node, ",
    "requeu: 1": "PATH: requeu: no such key; did you mean requeue?",
    "resources: {nodez: 1}": "PATH: resources.nodez: no such key; did you mean nodes?",
    "resources: {xyz: 1}": "PATH: resources.xyz: no such key; there are nodes, ",
    "preflight: {timeout: 1}": "PATH: preflight.timeout: no such key; did you mean timeout_s?",
    "kind: pbs": "PATH: kind = pbs: must be slurm or local",
    "grace_s: 1.5": "PATH: grace_s = 1.5: must be a whole number >= 1",
    "grace_s: true": "PATH: grace_s = true: must be a whole number >= 1",
    "retries: -1": "PATH: retries = -1: must be a whole number >= 0",
    "requeue: maybe": "PATH: requeue = maybe: must be true or false",
    "resources: {time: 1.5}": "PATH: resources.time = 1.5: must be ",
    "resources: {time: true}": "PATH: resources.time = true: must be ",
    "resources: {gpus_per_node: all}": "PATH: resources.gpus_per_node = all: must be a whole number >= 0",
    "resources: {gpus_per_node: true}": "PATH: resources.gpus_per_node = true: must be a whole number >= 0",
    "resources: {mem_gb: .inf}": "PATH: resources.mem_gb = .inf: must be a number >= 0.001 or null",
    "resources: {partition: [a]}": "PATH: resources.partition = [a]: must be text or null",
    "resources: {partition: 'a b'}": "PATH: resources.partition = a b: must be one word, as Slurm knows it",
    "resources: {dependency: 12}": "PATH: resources.dependency = 12: must be ",
    "environment: {A B: x}": "PATH: environment = {A B: x}: A B is no name of a variable: letters, digits and '_' only",
    "environment: {RANK: 0}": "PATH: environment = {RANK: 0}: RANK is set by the launcher in every process; ",
    "environment: {A: 1.5}": "PATH: environment.A = 1.5: must be names with their values, each text or a whole ",
    "environment: {A: true}": "PATH: environment.A = true: must be names with their values, ",
    "setup: module load": "PATH: setup = module load: must be a list of texts",
    "setup: [1]": "PATH: setup.0 = 1: must be a list of texts",
    "container: ''": "PATH: container = '': must be one line of shell",
    "python: ~/venv/bin/python": "PATH: python = ~/venv/bin/python: must be a path from the root or a command's name: ",
    "sbatch: {--exclusive: true}": "PATH: sbatch = {--exclusive: true}: --exclusive must be the long name of a ",
    "sbatch: {time: 5}": "PATH: sbatch = {time: 5}: time is written from resources.time; set that",
    "sbatch: {ntasks_per_node: 5}": "PATH: sbatch = {ntasks_per_node: 5}: ntasks_per_node is written from ",
    "sbatch: {output: x}": "PATH: sbatch = {output: x}: output is set by the launcher; leave it out",
    r'sbatch: {comment: "a\nb"}': "PATH: sbatch = ",
    "sbatch: {gres: [1]}": "PATH: sbatch.gres = [1]: must be names with their values, ",
    "resources: {nodes: 1": "PATH:1:21: not valid YAML: ",
    "retries: 1\nretries: 2": "PATH:2:1: not valid YAML: key retries is written twice",
}


@pytest.mark.parametrize(("text", "line"), WRONG.items(), ids=WRONG)
def test_a_wrong_site_is_one_line(tmp_path, text, line):
    path = write(tmp_path, text)
    said = refusal(path)
    assert said.startswith(line.replace("PATH", path)) and "\n" not in said


def test_every_mistake_of_a_site_has_its_line(tmp_path):
    path = write(tmp_path, yaml.safe_dump({"requeu": 1, "resources": {"nodes": "4-2"}, "grace_s": 0}))
    lines = refusal(path, gpus_per_node=-1).replace(f"{path}: ", "").splitlines()
    assert sorted(line.split()[0] for line in lines) == ["--gpus-per-node", "grace_s", "requeu:", "resources.nodes"]


def test_an_option_is_named_as_it_was_typed():
    assert refusal("lab", gpus_per_node=-1) == "--gpus-per-node = -1: must be a whole number >= 0"


def test_an_unknown_site(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = "must be cpu, h100-infiniband, lab or local, or a site's YAML file"
    assert refusal("loca") == f"--cluster = loca: {known}; did you mean local?"
    assert refusal("xyz") == f"--cluster = xyz: {known}"
    assert refusal("") == f"--cluster = : {known}"
    assert refusal("../sites/lab") == f"--cluster = ../sites/lab: {known}; did you mean lab?"
    assert refusal("mine.yaml") == "--cluster = mine.yaml: no such file"
    write(tmp_path, "")
    assert refusal("min.yaml") == "--cluster = min.yaml: no such file; did you mean mine.yaml?"
    Path("folder.yaml").mkdir()
    assert refusal("folder.yaml").startswith("--cluster = folder.yaml: no such file")


def test_a_site_that_is_no_text(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"kind: \xff\n")
    assert refusal(str(path)) == f"{path}: is not UTF-8 text (byte 6)"


def test_ranks_in_a_container():
    assert Site(container="apptainer exec i.sif").in_container
    assert Site(srun_args=["--container-image=i"]).in_container
    assert not Site(srun_args=["--cpu-bind=none"]).in_container
