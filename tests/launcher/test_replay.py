"""How a rerun is set up: where it ends, which batches it takes, and that nothing leaves its folder."""

from dataclasses import replace
from pathlib import Path

import pytest

from configs.errors import DataError
from configs.schema import Config
from launcher.replay import Plan, Reached, Until, _config, _rewinds, recorded_config
from stability.rewind import Rewinds, Rollback
from tests.layouts import config
from tests.stability.records import record


def test_the_loop_ends_when_it_begins_the_step_after_the_last() -> None:
    stop = Until(3)
    for step in (1, 2, 3):
        stop.step = step
    assert not stop.requested
    with pytest.raises(Reached):
        stop.step = 4


def test_rollbacks_before_the_alarm_count_and_later_ones_do_not(tmp_path: Path) -> None:
    """Steps 101 to 140 had taken batches 110 to 149: one rollback skipped 10; a later one skips around the alarm."""
    made = record()
    made.tracks["batch"].values[:] = made.tracks["batch"].steps - 1 + 10
    before = Rollback(to=50, spike=60, skip_from=55, skipped=10, reason="", complete=True)
    after = Rollback(to=100, spike=135, skip_from=125, skipped=30, reason="")
    Rewinds([before, after]).write(tmp_path)
    assert _rewinds(made, tmp_path).entries == (replace(before, to=0),)
    Rewinds([after]).write(tmp_path)
    with pytest.raises(DataError, match="do not explain the batches"):
        _rewinds(made, tmp_path)


@pytest.mark.parametrize("single", [True, False])
def test_nothing_reaches_beyond_the_folder(tmp_path: Path, single: bool) -> None:
    then = config(
        4,
        parallel={"tp": 2, "pp": 2, "sequence_parallel": True},
        tracking={"kind": "mlflow"},
        alerts={"command": "mail"},
        checkpoint={"interval": 5},
        stability={"policy": {"loss_spike": "rollback", "grad_spike": "lower_lr", "non_finite": "rollback"}},
    )
    made = _config(then, tmp_path, Plan(last=37, batch=36, sample_losses=single), single=single)
    assert made.run_dir == tmp_path / "rerun" and made.tracking.kind == "none"
    assert made.alerts.command is None and made.checkpoint.interval == (36 if single else 0)
    policy = made.stability.policy
    assert (policy.loss_spike, policy.grad_spike, policy.non_finite) == ("warn", "lower_lr", "stop")
    assert made.training.steps == then.training.steps and made.schedule == then.schedule  # the learning rate's course
    assert (made.parallel.tp, made.parallel.pp, made.parallel.dp) == ((1, 1, 1) if single else (2, 2, 1))


def test_a_configuration_of_another_version_is_one_line() -> None:
    made = record()
    made.header.config["model"]["novelty"] = 1
    with pytest.raises(DataError, match=r"of another version of steadytrain: model\.novelty"):
        recorded_config(made)
    del made.header.config["model"]["novelty"]
    assert isinstance(recorded_config(made), Config)
