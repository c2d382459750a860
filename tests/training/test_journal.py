"""What a run's own record says of its time, and of being ended from outside."""

from pathlib import Path

import pytest

from configs.schema import Config
from monitoring.recorder import STOPPED, read_events, read_metrics, write_json
from tests.layouts import single_topology
from training.journal import Journal
from training.meter import Meter


@pytest.mark.parametrize(
    ("stopped", "kinds"),
    [(None, ["failed"]), ({"reason": "loss above its first for 50 steps"}, ["stop"])],
    ids=["killed", "by its sweep"],
)
def test_a_run_ended_by_its_sweep_has_not_failed(
    tmp_path: Path, stopped: dict[str, str] | None, kinds: list[str]
) -> None:
    config = Config.model_validate(
        {"data": {"sources": [{"path": "x"}]}, "run": {"dir": str(tmp_path)}, "tracking": {"kind": "none"}}
    )
    journal = Journal(config, 1, Meter(config, single_topology(), 257), None, enabled=True)
    if stopped is not None:
        write_json(config.run_dir / STOPPED, stopped)
    with pytest.raises(SystemExit), journal:
        raise SystemExit(143)
    events = read_events(config.run_dir)
    assert [event["kind"] for event in events] == kinds
    assert stopped is None or events[0]["reason"] == stopped["reason"]


def test_the_split_of_evaluated_steps_is_the_mean_since_the_one_before(tmp_path: Path) -> None:
    config = Config.model_validate(
        {"data": {"sources": [{"path": "x"}]}, "run": {"dir": str(tmp_path)}, "tracking": {"kind": "none"}}
    )
    rest = {"loss": 1.0, "grad_norm": 1.0, "lr": 1e-3, "seconds": 0.1, "measured": None, "more": {}}
    with Journal(config, 1, Meter(config, single_topology(), 257), None, enabled=True) as journal:
        for step, val_loss in ((1, None), (2, 2.0), (3, 2.0)):
            split = {"forward": float(step)} | ({"evaluation": 5.0} if val_loss else {})
            journal.step(step, val_loss=val_loss, split=split, **rest)
    times = [{key: x for key, x in line.items() if key.startswith("time/")} for line in read_metrics(config.run_dir)]
    assert times == [{}, {"time/forward": 1.5, "time/evaluation": 2.5}, {"time/forward": 3.0, "time/evaluation": 5.0}]
