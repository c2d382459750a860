"""A study on a Slurm that refuses it, and on a site that it does not fit: one line, and nothing is queued."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from launcher.cli import app
from monitoring.mlflow_store import RUN_ID, connect
from tests.launcher.jobs.fake_slurm import FakeSlurm, install
from tests.training.test_run import TINY

STUDY_DIR = Path("runs/s")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stdlib_bytes: Path) -> FakeSlurm:
    """A working folder with a study of two trials, two sites and a Slurm of small scripts."""
    monkeypatch.chdir(tmp_path)
    study = {
        "name": "s",
        "base": str(TINY),
        "overrides": {
            "run": {"dir": "runs"},
            "data": {"sources": [{"path": str(stdlib_bytes)}]},
            "training": {"steps": 20},
        },
        "recipes": {"plain": {}},
        "learning_rates": [1e-3, 1e-2],
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    (tmp_path / "site.yaml").write_text("resources: {partition: main}\n")
    (tmp_path / "gpus.yaml").write_text("resources: {partition: main, gpus_per_node: 2, tasks_per_node: 1}\n")
    return install(tmp_path / "slurm", monkeypatch)


def sweep(*arguments: str, site: str = "site.yaml") -> tuple[int, str]:
    result = CliRunner().invoke(app, ["sweep", "study.yaml", "--cluster", site, *arguments])
    return result.exit_code, result.stderr.strip()


def test_trials_and_their_comparison_are_queued(slurm: FakeSlurm) -> None:
    assert sweep("tracking.kind=none") == (0, "")
    trials, comparing = slurm.scripts
    assert "#SBATCH --array=0-1" in trials and "#SBATCH --dependency=afterany:100" in comparing


def test_a_part_of_a_study_is_queued_and_its_stopping_rule_said_to_be_idle(slurm: FakeSlurm) -> None:
    study = yaml.safe_load(Path("study.yaml").read_text())
    study |= {"stopping": {"above_initial": 50}, "shapes": {"d32": {"model": {"hidden_size": 32}}}}
    Path("study.yaml").write_text(yaml.safe_dump(study))
    arguments = ["--cluster", "site.yaml", "tracking.kind=none", "--learning-rates", "1e-2"]
    result = CliRunner().invoke(app, ["sweep", "study.yaml", *arguments])
    assert result.exit_code == 0
    assert "1 trial queued as job 100" in result.stdout and "on a cluster every trial runs to its end" in result.stdout
    assert [path.parent.parent for path in STUDY_DIR.rglob("job.json")] == [
        STUDY_DIR / "trials/plain/d32/lr-1e-02/seed-0"
    ]


@pytest.mark.parametrize(
    ("arguments", "site", "code", "line"),
    [
        (["--partition", "nix"], "site.yaml", 1, "Slurm refuses the job: invalid partition specified: nix"),
        (["--time", "1"], "site.yaml", 2, "--time = 1: must be longer than the site's grace_s"),
        (["run.dir=a%b"], "site.yaml", 2, "run.dir = "),
        (["data.sources.0.path=nix"], "site.yaml", 2, "nix"),
        ([], "gpus.yaml", 2, "--tasks-per-node = 1: each process uses one GPU"),
    ],
)
def test_what_cannot_run_is_one_line_before_anything_is_written(
    slurm: FakeSlurm, arguments: list[str], site: str, code: int, line: str
) -> None:
    overrides = [argument for argument in arguments if "=" in argument]
    options = [argument for argument in arguments if "=" not in argument]
    exit_code, said = sweep("training.device=auto", *overrides, *options, site=site)
    assert (exit_code, len(said.splitlines())) == (code, 1)
    assert line in said
    assert not Path("runs").exists() and slurm.scripts == []


@pytest.mark.parametrize("queued", [0, 1])
def test_a_refusal_after_all_leaves_no_trial_queued_and_no_study_running_in_mlflow(
    slurm: FakeSlurm, queued: int
) -> None:
    (slurm.folder / "full").write_text(str(queued))  # the array is refused, or the comparing job after it
    uri = f"sqlite:///{Path('mlflow.db').absolute()}"
    code, said = sweep(f"tracking.uri={uri}", "tracking.kind=mlflow")
    assert (code, said) == (1, "Slurm refuses the job: Job violates accounting/QOS policy")
    assert not list(STUDY_DIR.rglob("job.json"))
    cancelled = slurm.folder / "cancelled"
    assert (cancelled.read_text().split() if cancelled.exists() else []) == ["100"] * queued
    assert connect(uri).get_run((STUDY_DIR / RUN_ID).read_text().strip()).info.status == "FAILED"
