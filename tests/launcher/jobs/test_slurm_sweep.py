"""A study as an array of jobs on a real Slurm: trials are killed, the rerun runs only those, the report is the same as
that of a sweep on this machine."""

import json
import signal
from pathlib import Path

import pytest
import yaml

from cluster.lab import Lab
from comparison.analysis import analyse
from comparison.study import load_study
from launcher.jobs.attempt import attempts, read_ranks
from launcher.jobs.queue import ENDED
from tests.launcher.jobs.slurm_runs import ROOT, Runs
from tests.slurm import until

pytestmark = [pytest.mark.timeout(1200), pytest.mark.usefixtures("slurm")]

KILLED = ("sigma/lr-1e-02/seed-0", "pre-ln/lr-3e-02/seed-0")
RECIPES: dict[str, dict] = {
    "pre-ln": {},
    "sigma": {"model": {"reparam": {"kind": "sigma"}}},
    "qk-norm": {"model": {"qk_norm": True}},
}
GRIDS = {"2 trials": (2, [1e-2], [0]), "18 trials": (3, [1e-3, 1e-2, 3e-2], [0, 1])}
"""Recipes, learning rates, seeds. The smaller study has one of the trials that are killed."""


@pytest.fixture
def runs(slurm_session: Lab, stdlib_bytes: Path, tmp_path: Path) -> Runs:
    return Runs(slurm_session, stdlib_bytes, tmp_path)


@pytest.fixture(params=[pytest.param(grid, marks=pytest.mark.slow) for grid in GRIDS])
def study(request: pytest.FixtureRequest, stdlib_bytes: Path, tmp_path: Path) -> Path:
    recipes, learning_rates, seeds = GRIDS[request.param]
    path = tmp_path / "study.yaml"
    content = {
        "name": "small",
        "base": str(ROOT / "configs" / "tiny.yaml"),
        "overrides": {
            "data": {"sources": [{"path": str(stdlib_bytes)}]},
            "training": {"steps": 40, "eval_samples": 16},
            "model": {"reparam": {"kind": "none"}},
            "monitoring": {"interval": 10},
            "checkpoint": {"interval": 10},
            "tracking": {"kind": "none"},
        },
        "recipes": dict(list(RECIPES.items())[:recipes]),
        "learning_rates": learning_rates,
        "seeds": seeds,
    }
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The local Slurm, where a crash is not tried again."""
    path = tmp_path / "site.yaml"
    path.write_text((ROOT / "configs" / "sites" / "lab.yaml").read_text() + "retries: 0\n")
    return path


def test_a_study_as_an_array(runs: Runs, study: Path, site: Path, tmp_path: Path) -> None:
    folder = tmp_path / "slurm" / "small"
    names = [trial.config.run.name for trial in load_study(study).trials]
    trials, killed = len(names), [name for name in KILLED if any(known.endswith(name) for known in names)]
    sweep = ["sweep", str(study), "--cluster", str(site), "--tasks-per-node", "1", f"run.dir={folder.parent}"]
    first = runs.command(*sweep, "--jobs", "2")  # the trial killed second begins when the first two are over
    assert first.returncode == 0, first.stderr
    assert f"{trials} trials queued as job" in first.stdout
    again = runs.command(*sweep)
    assert "nothing to queue" in again.stdout and f"{trials} under way" in again.stdout
    for name in killed:
        until(lambda name=name: len(ranks_of(folder / "trials" / name)) == 1, 300, f"{name} has begun")
        ranks_of(folder / "trials" / name)[0].send_signal(signal.SIGKILL)
    wait_for_report(runs, folder)
    assert sorted(path.parent for path in folder.rglob("failure.json")) == sorted(folder / "trials" / n for n in killed)
    failure = json.loads((folder / "trials" / killed[0] / "failure.json").read_text())
    assert "killed by SIGKILL" in failure["reason"]
    finished = len(list((folder / "trials").rglob("summary.json")))
    assert finished == trials - len(killed)
    assert f"Not complete: {len(killed)} of {trials} trials have no result yet" in (folder / "report.html").read_text()

    (folder / "report.html").unlink()
    rerun = runs.command(*sweep)
    assert rerun.returncode == 0, rerun.stderr
    assert f"{len(killed)} trial" in rerun.stdout and f"{trials - len(killed)} have a result" in rerun.stdout
    wait_for_report(runs, folder)
    tried = {path: len(attempts(path)) for path in (folder / "trials").rglob("job")}
    twice = {path.parent.relative_to(folder / "trials").as_posix() for path, count in tried.items() if count == 2}
    assert twice == set(killed)
    assert len(tried) == trials and set(tried.values()) == {1, 2}

    local = tmp_path / "local" / "small"
    done = runs.command("sweep", str(study), f"run.dir={local.parent}", "--jobs", "2")
    assert done.returncode == 0, done.stderr
    assert numbers(folder) == numbers(local)
    assert said(runs, folder) == said(runs, local)


def said(runs: Runs, folder: Path) -> list[str]:
    """What `compare` prints, without the cost, which no two sweeps have alike, and the place of the report."""
    lines = runs.command("compare", str(folder)).stdout.partition("\nreport: ")[0].split("\n- ")
    return [line for line in lines if not line.startswith("Tokens per second")]


def ranks_of(run_dir: Path) -> list:
    """Live processes of a trial that have taken at least a step."""
    import psutil

    if not (run_dir / "metrics.jsonl").exists():
        return []
    records = [record for folder in attempts(run_dir / "job") for record in read_ranks(folder) if record.how is None]
    return [psutil.Process(record.pid) for record in records if psutil.pid_exists(record.pid)]


def wait_for_report(runs: Runs, folder: Path) -> None:
    """Until the last job of the study has ended."""
    until(lambda: not alive(runs), 900, "the end of all jobs")
    assert (folder / "report.html").exists(), "the comparing job wrote the report"


def alive(runs: Runs) -> list[str]:
    states = runs.lab.run("squeue", "--noheader", "--array", "--format=%T").split()
    return [state for state in states if state not in ENDED]


def numbers(folder: Path) -> dict[str, list]:
    """What the report says, from the run folders alone."""
    result = analyse(folder).parts[""]
    return {
        "trials": [(trial.recipe, trial.lr, trial.seed, trial.loss, trial.collapse_step) for trial in result.trials],
        "recipes": [(name, r.best_loss, r.best_lr, r.lr_sensitivity) for name, r in result.recipes.items()],
    }
