"""Sweeps of real processes: resuming, failing, being interrupted."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from filelock import FileLock
from rich.console import Console

from comparison.analysis import analyse
from comparison.plan import dry_run
from comparison.report import page
from comparison.selection import Selection
from comparison.study import load_study
from comparison.sweep import sweep
from comparison.trials import has_ended, prepare, unfinished
from configs.errors import ConfigError, LaunchError
from configs.load import dump, load
from monitoring.tracker import NoTracker
from tests.comparison.conftest import STUDY, fake_train, write_study
from tests.comparison.fake_trial import INITIAL
from tests.comparison.test_processes import is_running, make_fifo


def quiet() -> Console:
    return Console(file=io.StringIO(), width=120)


def test_a_sweep_runs_every_trial_and_writes_the_report(study_file):
    console = quiet()
    folder = sweep(study_file, command=fake_train(), console=console)
    study = load_study(study_file)
    assert folder == Path("runs/demo")
    assert all((trial.config.run_dir / "summary.json").exists() for trial in study.trials)
    assert (folder / "report.html").exists()
    assert load(folder / "configs/pre-ln/lr-3e-02/seed-0.yaml") == study.trials[2].config
    lines = console.file.getvalue().splitlines()
    assert lines[0].startswith("Study demo: 4 trials (2 recipes x 2 learning rates x 1 seed), ")
    assert [line.split()[0] for line in lines[1:]] == ["1/4", "2/4", "3/4", "4/4", "drawing"]


def test_a_second_sweep_runs_only_what_is_left(study_file):
    modes = {"pre-ln/lr-1e-03": "ok", "sigma-reparam/lr-1e-03": "half"}
    write_study(load_study(study_file), lambda trial: modes.get(trial.config.run.name.rpartition("/")[0]))
    first = load_study(study_file).trials[0]
    configs = Path("runs/demo/configs/pre-ln/lr-1e-03/seed-0.yaml")
    configs.parent.mkdir(parents=True)
    configs.write_text(dump(first.config))
    ran = []

    def record(config: Path) -> list[str]:
        ran.append(config.parent.parent.name + "/" + config.parent.name)
        return fake_train()(config)

    console = quiet()
    sweep(study_file, jobs=1, command=record, console=console)
    assert ran == ["sigma-reparam/lr-1e-03", "pre-ln/lr-3e-02", "sigma-reparam/lr-3e-02"]
    assert "1 already finished" in console.file.getvalue()


def test_a_hopeless_trial_is_ended_and_stays_ended(study_file):
    study_file.write_text(STUDY + "stopping: {above_initial: 10}\n")
    console = quiet()
    command = fake_train(lambda config: "hopeless" if "pre-ln/lr-3e-02" in str(config) else "ok")
    sweep(study_file, command=command, console=console)
    said = console.file.getvalue()
    assert "pre-ln  lr 3e-02  seed 0  stopped at step 30: loss above its first for 10 steps" in said
    run_dir = load_study(study_file).trials[2].config.run_dir
    stopped = json.loads((run_dir / "stopped.json").read_text())
    assert (stopped["step"], stopped["rule"], stopped["initial_loss"]) == (30, "above_initial", INITIAL)
    assert stopped["loss"] == pytest.approx(INITIAL + 0.01 * 19.5)
    assert not any((run_dir / name).exists() for name in ("summary.json", "failure.json"))
    study = load_study(study_file)
    assert unfinished(study, study.trials) == []


def test_a_part_of_a_study(study_file):
    console = quiet()
    sweep(study_file, only=Selection(recipes="pre-ln", learning_rates="0.03"), command=fake_train(), console=console)
    assert [trial.label for trial in load_study(study_file).trials if has_ended(trial)] == ["pre-ln  lr 3e-02  seed 0"]
    assert ", 1 of them now, " in console.file.getvalue()


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ({"recipes": "pre-ln,pre-lm"}, "--recipes = pre-lm: not in the study; did you mean pre-ln?"),
        ({"shapes": "d64"}, "--shapes = d64: the study has none"),
        ({"learning_rates": "1e-3,1e-2"}, "--learning-rates = 1e-2: not in the study, which has 0.001 or 0.03"),
        ({"learning_rates": "fast"}, "--learning-rates = fast: not in the study"),
        ({"seeds": "0,"}, "--seeds = : not in the study, which has 0"),
    ],
    ids=lambda value: str(value),
)
def test_a_part_that_the_study_does_not_have(study_file, only, message):
    with pytest.raises(ConfigError) as refusal:
        sweep(study_file, only=Selection(**only), command=fake_train(), console=quiet())
    assert str(refusal.value).startswith(f"command line: {message}")
    assert not Path("runs").exists()


def test_what_would_run_is_said_and_nothing_is_run(study_file):
    study_file.write_text(STUDY + "budget: {tokens: 1e5}\nshapes: {d32: {model: {hidden_size: 32}}}\nseeds: [0, 1]\n")
    assert dry_run(study_file, only=Selection(seeds="1")) == [
        "Study demo: 8 trials (2 recipes x 1 shape x 2 learning rates x 2 seeds), in runs/demo",
        "  pre-ln  d32         2 learning rates x 1 seed, each 97 steps, 99,328 tokens",
        "  sigma-reparam  d32  2 learning rates x 1 seed, each 97 steps, 99,328 tokens",
        "To run: 4 of the 4 trials asked for, 397,312 tokens; 0 have a result",
    ]
    assert not Path("runs").exists()


def test_failures_are_recorded_and_the_rest_goes_on(study_file):
    command = fake_train(lambda config: "fail" if "pre-ln/lr-3e-02" in str(config) else "ok")
    with pytest.raises(LaunchError) as error:
        sweep(study_file, command=command, console=quiet())
    assert (
        "1 of 4 trials failed, the first pre-ln at lr 3e-2, seed 0 (exit code 1): model.heads = 5: no such luck"
        in str(error.value)
    )
    failure = json.loads(Path("runs/demo/trials/pre-ln/lr-3e-02/seed-0/failure.json").read_text())
    assert failure["exit_code"] == 1
    assert failure["reason"] == "model.heads = 5: no such luck"
    assert "failed: model.heads = 5: no such luck" in Path("runs/demo/report.html").read_text()
    sweep(study_file, command=fake_train(), console=quiet())  # the same command again
    assert not Path("runs/demo/trials/pre-ln/lr-3e-02/seed-0/failure.json").exists()


def test_divergence_is_a_result(study_file):
    command = fake_train(lambda config: "diverge" if "pre-ln/lr-3e-02" in str(config) else "ok")
    sweep(study_file, command=command, console=quiet())
    page = Path("runs/demo/report.html").read_text()
    assert "Diverged, or ended above the initial loss: pre-ln at 3e-2 (1 of 1 trials)." in page


def test_an_exit_without_a_summary_is_a_failure(study_file):
    study_file.write_text(STUDY.replace("[1.0e-3, 3.0e-2]", "[1.0e-3]"))
    with pytest.raises(LaunchError, match=r"2 of 2 trials failed.*it wrote no summary\.json and nothing to stderr"):
        sweep(study_file, command=lambda config: ["true"], console=quiet())


def test_an_edited_study_is_refused_naming_the_key(study_file):
    sweep(study_file, command=fake_train(), console=quiet())
    with pytest.raises(ConfigError, match=r"^study\.yaml: training\.steps = 70: the finished trial .* ran with 60; "):
        sweep(study_file, ["training.steps=70"], command=fake_train(), console=quiet())


def test_a_part_of_a_study_must_agree_with_the_results_of_the_other_parts(study_file):
    study = write_study(load_study(study_file), lambda trial: "ok" if trial.recipe == "pre-ln" else None)
    prepare(study, study.trials, NoTracker())
    with pytest.raises(ConfigError, match=r"training\.steps = 70: the finished trial .* ran with 60; "):
        dry_run(study_file, ["training.steps=70"], Selection(recipes="sigma-reparam"))


def test_the_report_names_the_overrides_of_the_command_line(study_file):
    study = write_study(load_study(study_file, ["training.steps=70", "run.dir=my runs"]))
    assert "steadytrain sweep study.yaml training.steps=70 &#39;run.dir=my runs&#39;" in page(
        analyse(study.dir), {}, {}
    )


def test_a_result_without_its_configuration_is_refused(study_file):
    write_study(load_study(study_file))
    with pytest.raises(ConfigError, match=r"seed-0\.yaml: is gone, so what .* ran is unknown; delete"):
        sweep(study_file, command=fake_train(), console=quiet())


def test_two_sweeps_of_one_study_are_refused(study_file):
    Path("runs/demo").mkdir(parents=True)
    with (
        FileLock("runs/demo/.lock"),
        pytest.raises(LaunchError, match="another sweep is running this study"),
    ):
        sweep(study_file, command=fake_train(), console=quiet())


SWEEP_THAT_HANGS = """
from pathlib import Path
from comparison import processes
from comparison.sweep import sweep
from tests.comparison.conftest import fake_train
processes.GRACE_SECONDS = 0.2
try:
    sweep(Path("study.yaml"), jobs=2, command=fake_train(lambda config: "hang"))
except KeyboardInterrupt:
    raise SystemExit(130)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_leaves_no_process(study_file, number):
    fifos = [make_fifo(trial.config.run_dir) for trial in load_study(study_file).trials[:2]]
    process = subprocess.Popen([sys.executable, "-c", SWEEP_THAT_HANGS], stdout=subprocess.DEVNULL)
    for fifo in fifos:
        assert len(fifo.read_text().split()) == 2
    family = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    assert len(family) == 6  # two trials with two children each
    os.kill(process.pid, number)
    assert process.wait(timeout=60) == 130
    assert not any(is_running(pid) for pid in family)


def test_trials_are_children_of_the_study_in_mlflow(study_file):
    from mlflow import MlflowClient

    base = Path("base.yaml")
    base.write_text(base.read_text().replace("tracking: {kind: none}", "tracking: {experiment: studies}"))
    study_file.write_text(STUDY.replace("[1.0e-3, 3.0e-2]", "[3.0e-2]"))
    command = fake_train(lambda config: "fail" if "sigma" in str(config) else "ok")
    with pytest.raises(LaunchError):
        sweep(study_file, command=command, console=quiet())
    client = MlflowClient(f"sqlite:///{Path('runs/mlflow.db').resolve()}")
    experiment = client.get_experiment_by_name("studies")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"demo", "pre-ln/lr-3e-02/seed-0"}
    parent, child = runs["demo"], runs["pre-ln/lr-3e-02/seed-0"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (parent.info.status, child.info.status) == ("FAILED", "FINISHED")  # one of its trials failed
    assert parent.data.metrics["collapsed_trials/pre-ln"] == 1
    artifacts = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"report.html", "study.yaml", "collapse-and-cure.png"} <= artifacts


def test_a_runs_folder_that_cannot_be_made(study_file, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^run.dir = .*file: cannot write "):
        sweep(study_file, [f"run.dir={tmp_path / 'file'}"])
