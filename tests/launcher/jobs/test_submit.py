"""From a configuration to a queued job, and what is left where Slurm or the run's folder says no."""

import json
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import Result
from safetensors.numpy import save_file
from typer.testing import CliRunner

from configs.checks import resolve
from configs.load import load
from data.samples import Samples
from launcher.cli import app
from launcher.jobs.job import read_job
from tests.launcher.jobs.fake_slurm import FakeSlurm, install, write_configuration
from training.checkpoint import store

RUN = Path("runs/a")
REFUSED = (
    "Slurm refuses the job: invalid partition specified: nix; Invalid partition name specified; --dry-run shows what"
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stdlib_bytes: Path) -> Path:
    """A working folder with a configuration, a dataset and a site; without Slurm."""
    monkeypatch.chdir(tmp_path)
    write_configuration(tmp_path / "c.yaml", stdlib_bytes)
    (tmp_path / "site.yaml").write_text("resources: {partition: main}\n")
    monkeypatch.setenv("PATH", _without_slurm())
    return tmp_path


@pytest.fixture
def slurm(place: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return install(place / "slurm", monkeypatch)


@pytest.fixture
def checkpointed(place: Path) -> Path:
    """A run that was ended after its first checkpoint."""
    config = load("c.yaml")
    scratch = store.begin(RUN / "checkpoints", 10)
    save_file({"w": np.zeros(2)}, scratch / "w.safetensors")
    fingerprint = Samples(config.data.sources, "train", 64, config.training.seed).fingerprint
    manifest = store.Manifest(
        step=10,
        created=10.0,
        layout={},
        config=resolve(config, 1).model_dump(mode="json"),
        data_fingerprint=fingerprint,
        journal={},
        files={"w.safetensors": store.describe(scratch / "w.safetensors")},
    )
    store.commit(scratch, manifest)
    (RUN / "metrics.jsonl").write_text('{"step": 10}\n')
    return RUN


def _without_slurm() -> str:
    folders = os.environ["PATH"].split(os.pathsep)
    return os.pathsep.join(folder for folder in folders if not (Path(folder) / "sbatch").exists())


def submit(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["submit", "c.yaml", "--cluster", "site.yaml", *arguments])


def refusal(*arguments: str, code: int) -> str:
    result = submit(*arguments)
    assert result.exit_code == code, result.output
    (line,) = result.output.splitlines()
    return line


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_submission(place, slurm):
    result = submit("--nodes", "2", "--retries", "7")
    assert (result.exit_code, result.output) == (
        0, f"job 100 on site.yaml: {place}/runs/a begins; steadytrain status {place}/runs/a\n",
    )  # fmt: skip
    job = read_job(RUN)
    assert (job.ids, job.kind, job.retries, job.resources["nodes"]) == (["100"], "slurm", 7, "2")
    (snapshot,) = (RUN / "job" / "snapshot").iterdir()
    assert load(snapshot / "config.yaml").run_dir == place / "runs" / "a"
    assert f"#SBATCH --chdir={place}/{snapshot}/code\n" in slurm.scripts[0]
    assert (RUN / "job" / "submitit" / "100_submitted.pkl").is_file()


def test_what_submitit_would_execute_is_the_user_s_alone(place, slurm):
    submit()
    assert stat.S_IMODE((RUN / "job").stat().st_mode) == 0o700


def test_a_dry_run_shows_what_slurm_refuses(place, slurm):
    result = submit("--partition", "nix", "--dry-run")
    assert result.exit_code == 1
    assert "#SBATCH --partition=nix\n" in result.stdout and result.stderr.startswith(REFUSED)
    assert not Path("runs").exists() and slurm.scripts == []


@pytest.mark.parametrize("arguments", [[], ["--chain", "3"], ["--overwrite"]], ids=str)
def test_what_slurm_refuses_leaves_nothing(place, slurm, arguments):
    assert refusal("--partition", "nix", *arguments, code=1).startswith(REFUSED)
    assert not Path("runs").exists() and slurm.scripts == []


@pytest.mark.parametrize(
    ("sbatch", "arguments", "words"),
    [
        ({}, ["--reservation", "nix"], "Requested reservation is invalid"),
        ({"foo": 1}, [], "unrecognized option '--foo=1'"),
        ({}, ["--nodes", "9"], "Requested node configuration is not available"),
    ],
)
def test_slurm_s_own_words(place, slurm, sbatch, arguments, words):
    Path("site.yaml").write_text(yaml.safe_dump({"sbatch": sbatch}))
    line = refusal(*arguments, "training.global_batch_size=18", code=1)
    assert line == f"Slurm refuses the job: {words}; --dry-run shows what it is asked for"
    assert not Path("runs").exists() and slurm.scripts == []


def test_a_refusal_deletes_no_earlier_run(place, slurm, checkpointed):
    before = contents(checkpointed)
    assert refusal("--overwrite", "--partition", "nix", code=1).startswith(REFUSED)
    assert contents(checkpointed) == before


def test_a_refusal_after_all_leaves_nothing_of_the_job(place, slurm):
    (slurm.folder / "full").write_text("0")  # passes the test, as a limit reached meanwhile would
    assert refusal(code=1) == "Slurm refuses the job: Job violates accounting/QOS policy"
    assert not RUN.exists() and slurm.scripts == []


def test_a_refusal_after_all_leaves_an_earlier_run_and_its_job(place, slurm, checkpointed):
    assert submit().exit_code == 0
    before, record = contents(checkpointed / "checkpoints"), read_job(RUN)
    (slurm.folder / "full").write_text("1")
    assert refusal(code=1) == "Slurm refuses the job: Job violates accounting/QOS policy"
    assert read_job(RUN) == record and contents(checkpointed / "checkpoints") == before
    assert not (RUN / "job" / "snapshot").exists()


def test_a_chain_waits_for_the_job_asked_for_and_then_for_itself(place, slurm):
    assert submit("--chain", "3", "--dependency", "afterok:12").exit_code == 0
    waits = [line for script in slurm.scripts for line in script.splitlines() if "--dependency" in line]
    assert [line.partition("=")[2] for line in waits] == ["afterok:12", "afterany:100", "afterany:101"]
    assert (read_job(RUN).ids, read_job(RUN).requeue) == (["100", "101", "102"], False)


def test_of_a_chain_all_links_are_queued_or_none(place, slurm):
    (slurm.folder / "full").write_text("2")
    assert refusal("--chain", "3", code=1) == "Slurm refuses the job: Job violates accounting/QOS policy"
    assert (slurm.folder / "cancelled").read_text() == "100 101\n"
    assert not RUN.exists()


def test_a_run_is_queued_once(place, slurm):
    submit()
    before = contents(RUN)
    slurm.queue("100|PENDING|N/A||Priority")
    assert refusal(code=2) == (
        f"{place}/runs/a: job 100 is queued or running for this run; `steadytrain cancel` ends it, or choose another "
        "run.name"
    )
    (slurm.folder / "squeue").write_text(
        "#!/bin/sh\necho 'squeue: error: Unable to contact slurm controller' >&2; exit 1"
    )
    assert refusal(code=1) == "squeue: Unable to contact slurm controller"
    assert contents(RUN) == before and len(slurm.scripts) == 1


def test_the_next_submission_drops_the_code_of_the_last(place, slurm):
    submit()
    (RUN / "job" / "snapshot" / "older" / "code").mkdir(parents=True)
    assert submit().exit_code == 0
    (snapshot,) = (RUN / "job" / "snapshot").iterdir()
    assert snapshot.name != "older" and f"{snapshot}/code" in slurm.scripts[1]


def test_a_run_with_checkpoints_is_continued_unless_it_would_train_something_else(place, slurm, checkpointed):
    before = contents(RUN)
    line, *differences = submit("model.layers=8").output.splitlines()
    assert line.startswith(f"{place}/runs/a/checkpoints/step-00000010: the run cannot be continued with")
    assert any("model.layers" in difference for difference in differences)
    assert submit("--fresh").exit_code == 2
    assert contents(RUN) == before and slurm.scripts == []
    assert "runs/a continues from step-00000010;" in submit("training.steps=40").output


def test_a_folder_of_somebody_else_is_left_alone(place, slurm, checkpointed, monkeypatch):
    before = contents(RUN)
    monkeypatch.setattr("launcher.jobs.submit.os.getuid", lambda: 4711)
    line = refusal("--overwrite", code=2)
    assert line == f"{place}/runs/a: belongs to another user; choose another run.name or run.dir"
    assert contents(RUN) == before and slurm.scripts == []


def test_a_folder_that_cannot_be_made(place, slurm):
    Path("runs").write_text("")
    assert refusal(code=2) == f"run.dir = {place}/runs: cannot write {place}/runs/a: File exists"
    assert slurm.scripts == []


def test_a_full_disk_is_one_line_and_leaves_nothing(place, slurm, monkeypatch):
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr("launcher.jobs.snapshot.shutil.copyfile", full)
    assert refusal(code=2).endswith("/__init__.py: cannot be written: No space left on device")
    assert not RUN.exists() and slurm.scripts == []


def test_no_slurm_on_this_machine(place):
    assert refusal(code=1) == (
        "there is no sbatch on this machine: submit from a login node, use --dry-run to see the script, --cluster "
        "local to run here, or `python -m cluster start` for a Slurm of your own"
    )
    assert not Path("runs").exists()


def test_a_dry_run_needs_no_slurm_and_writes_nothing(place):
    result = submit("--dry-run", "--nodes", "1-2", "run.name=deep/er")
    assert result.exit_code == 0 and result.output.startswith("#!/bin/bash\n")
    assert "#SBATCH --nodes=1-2\n" in result.output and "#SBATCH --job-name=deep.er\n" in result.output
    assert f"#SBATCH --output={place}/runs/deep/er/job/submitit/%j_0_log.out\n" in result.output
    assert not Path("runs").exists()


def test_a_dry_run_is_what_would_be_submitted(place, slurm):
    shown = submit("--dry-run").output.rstrip("\n")
    assert slurm.scripts == [] and not Path("runs").exists()
    submit()
    (snapshot,) = (RUN / "job" / "snapshot").iterdir()
    assert slurm.scripts[0].replace(f"snapshot/{snapshot.name}/", "snapshot/") == shown


def test_a_dry_run_without_a_script(place):
    assert refusal("--cluster", "local", "--dry-run", code=2) == (
        "--dry-run: --cluster local has no batch script; it starts the processes on this machine"
    )


def test_a_submission_from_inside_a_job(place, slurm, monkeypatch):
    for name, value in {"SLURM_JOB_ID": "1", "SBATCH_PARTITION": "nix", "RANK": "3", "SLURM_CONF": "/x"}.items():
        monkeypatch.setenv(name, value)
    assert submit().exit_code == 0
    heard = slurm.environment
    assert heard["SLURM_CONF"] == "/x" and not {"SLURM_JOB_ID", "SBATCH_PARTITION", "RANK"} & heard.keys()


def test_a_damaged_record_is_a_line(place, slurm):
    submit()
    record = RUN / "job" / "job.json"
    record.write_text(json.dumps({"folder": 1, "surprise": 2}))
    assert refusal(code=2).startswith(f"{place}/{record}: is no record of a job: ")
    shutil.rmtree(RUN)
    assert submit().exit_code == 0
