"""When a trial is hopeless: curves written by hand, judged as they grow."""

from pathlib import Path

import pytest

from comparison.stopping import Curve, Watch
from comparison.study import Trial, load_study
from comparison.study_file import StoppingRule
from monitoring.recorder import json_line
from tests.comparison.conftest import STUDY

STEPS = 60  # of the study's base


@pytest.fixture
def trials(study_file: Path) -> list[Trial]:
    """Of two recipes at two learning rates: the first and the third differ in the learning rate alone."""
    trials = load_study(study_file).trials
    for trial in trials:
        trial.config.run_dir.mkdir(parents=True)
    return trials


def write(trial: Trial, losses: list[float]) -> None:
    lines = "".join(json_line({"step": step, "loss": loss}) for step, loss in enumerate(losses, 1))
    (trial.config.run_dir / "metrics.jsonl").write_text(lines)


def watch(rule: StoppingRule, *trials: Trial, ended: tuple[Trial, ...] = ()) -> Watch:
    found = Watch(rule, ended)
    for trial in trials:
        found.begin(trial, now=0.0)
    return found


@pytest.mark.parametrize(
    ("losses", "step"),
    [
        ([5.0] + [5.1] * 19, 20),
        ([5.0] + [float("nan")] * 19, 20),  # no number is above any
        ([5.0] + [5.1] * 13, None),  # not a quarter of the steps yet
        ([5.0] + [5.1] * 8 + [4.9] + [5.1] * 9, None),  # nine in a row
        ([5.0] + [5.1] * 8 + [4.9] + [5.1] * 10, 20),
        ([5.0] + [5.0] * 30, None),  # as high is not above
        ([5.0] + [5.1] * 59, None),  # its last step: ends by itself
        ([], None),
    ],
)
def test_above_its_initial_loss(trials: list[Trial], losses: list[float], step: int | None) -> None:
    found = watch(StoppingRule(above_initial=10), trials[0])
    write(trials[0], losses)
    stopped = found.look(trials[0])
    assert (stopped.step if stopped else None) == step
    if stopped:
        assert (stopped.rule, stopped.initial_loss) == ("above_initial", 5.0)
        assert stopped.reason == "loss above its first for 10 steps"


def test_behind_the_best_of_its_seed(trials: list[Trial]) -> None:
    low, high, other_recipe = trials[0], trials[2], trials[1]
    found = watch(StoppingRule(above_initial=None, behind=1.0), low, high, other_recipe)
    write(other_recipe, [0.1] * STEPS)
    write(high, [3.5] * 30)
    assert found.look(high) is None  # no other trial of its recipe has come so far
    write(low, [2.4] * 29)
    assert found.look(high) is None
    write(low, [5.0] * 10 + [2.4] * 50)
    stopped = found.look(high)
    assert stopped is not None
    assert (stopped.step, stopped.rule, stopped.loss) == (30, "behind", pytest.approx(3.5))
    assert stopped.reason == "loss 1.10 nats behind that of learning rate 0.001"
    assert found.look(low) is None  # nothing is behind itself, nor behind one that is worse


def test_one_that_ended_in_an_earlier_sweep_is_compared_with(trials: list[Trial]) -> None:
    write(trials[0], [2.4] * STEPS)
    found = watch(StoppingRule(behind=1.0), trials[2], ended=(trials[0],))
    write(trials[2], [3.5] * 30)
    assert found.look(trials[2]) is not None


def test_what_an_earlier_attempt_wrote_is_not_judged(trials: list[Trial]) -> None:
    write(trials[0], [5.0] + [5.1] * 30)
    found = Watch(StoppingRule(above_initial=10), ())
    found.begin(trials[0], now=(trials[0].config.run_dir / "metrics.jsonl").stat().st_mtime + 1)
    assert found.look(trials[0]) is None


def test_a_run_that_went_back_is_read_anew(trials: list[Trial]) -> None:
    curve, path = Curve(trials[0].config.run_dir), trials[0].config.run_dir / "metrics.jsonl"
    write(trials[0], [5.0, 6.0, 7.0])
    curve.update()
    path.unlink()
    write(trials[0], [5.0, 4.0])
    with path.open("a") as file:
        file.write(json_line({"step": 3, "loss": 3.0}))
        file.write(json_line({"step": 2, "loss": 4.5}))
    curve.update()
    assert (curve.step, list(curve.last(5))) == (2, [5.0, 4.5])


def test_a_rule_of_the_study_file(study_file: Path) -> None:
    study_file.write_text(STUDY + "stopping: {behind: 2}\n")
    assert load_study(study_file).stopping == StoppingRule(after=0.25, above_initial=50, behind=2.0)
