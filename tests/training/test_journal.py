"""How a run's own record tells that it was ended from outside."""

from pathlib import Path

import pytest

from configs.schema import Config
from monitoring.recorder import STOPPED, read_events, write_json
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
