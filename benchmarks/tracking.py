"""What tracking costs training, and how fast points reach a real MLflow server.

    .venv/bin/python -m benchmarks.tracking

An `mlflow server` of its own (SQLite, loopback) is started and ended. First part: so many steps of so many metrics

    ours               logged as fast as possible: the time inside `log`, and until the server has all of them
    log_batch          MLflow's own, one request per step, timed on 200 steps and extrapolated
    log_metric         MLflow's own, one request per point, timed on 2,000 points and extrapolated

Second part: steps of a small decoder, each logging the metrics, in blocks that take turns:

    none     no tracker: the run folder only
    fine     the server answers
    frozen   it is stopped by SIGSTOP: requests run into their time-out
    gone     it was killed: connections are refused

A ratio is a block's mean step over that of the `none` block before it; shown are the median and the spread. The CPU
time of the whole process per step says the same on a machine that others use too, where wall time is noise.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from mlflow import MlflowClient
from rich.console import Console
from rich.table import Table
from torch import nn

from configs.schema import Config, DataConfig, DataSource, RunConfig, TrackingConfig
from launcher.train import sigterm_exits
from monitoring.mlflow_store import connect
from monitoring.recorder import Recorder
from monitoring.tracker import NoTracker, Tracker
from tests.monitoring.servers import Server

SAMPLE, SAMPLED_STEPS = 2000, 200
"""Points and steps that are timed of MLflow's own ways; the rest is extrapolated."""
STATES = ("none", "fine", "frozen", "gone")


def main() -> None:
    """Measure and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--metrics", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--block", type=int, default=150, help="steps of a block of the second part")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(highlight=False)
    with sigterm_exits(), tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        try:
            server.start()
            console.print(delivery(server, Path(folder), arguments.steps, arguments.metrics))
            console.print(step_times(server, Path(folder), arguments.repeats, arguments.block))
        finally:
            server.kill()


def metrics_of(count: int, step: int) -> dict[str, float]:
    """The numbers of one step; names as long as those of signals per layer and matrix."""
    return {f"layers.{index}/attention/entropy_mean": 1 / (step + index + 1) for index in range(count)}


def config_of(folder: Path, name: str, uri: str, kind: str = "mlflow") -> Config:
    """A run that is tracked at `uri`."""
    return Config(
        run=RunConfig(name=name, dir=folder),
        data=DataConfig(sources=[DataSource(path=Path("none"))]),
        tracking=TrackingConfig.model_validate({"kind": kind, "uri": uri, "experiment": "benchmark"}),
    )


def delivery(server: Server, folder: Path, steps: int, metrics: int) -> Table:
    """Time until all points have arrived, and how long the training thread was kept."""
    points = steps * metrics
    in_log, arrived = time_ours(server, folder, steps, metrics)
    run_id = _new_run(server)
    client = connect(server.uri)
    timed_steps = min(steps, SAMPLED_STEPS)
    began = time.perf_counter()
    for step in range(1, timed_steps + 1):
        _log_batch(client, run_id, step, metrics)
    by_batch = (time.perf_counter() - began) / timed_steps * steps
    run_id = _new_run(server)
    sample = [
        (key, value, step) for step in range(SAMPLE // metrics) for key, value in metrics_of(metrics, step).items()
    ]
    began = time.perf_counter()
    for key, value, step in sample:
        client.log_metric(run_id, key, value, step=step)
    one_by_one = time.perf_counter() - began
    extrapolated = one_by_one / len(sample) * points

    table = Table(title=f"{steps:,} steps x {metrics} metrics = {points:,} points")
    for heading in ("way", "in the training thread", "per step", "until delivered", "points per s"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    ways = (
        ("ours", in_log, arrived),
        (f"MLflow's log_batch, one per step, extrapolated from {timed_steps} steps", by_batch, by_batch),
        (f"MLflow's log_metric, extrapolated from {len(sample):,} points", extrapolated, extrapolated),
    )
    for way, kept, seconds in ways:
        per_step = f"{kept / steps * 1e3:,.3f} ms"
        table.add_row(way, f"{kept:,.2f} s", per_step, f"{seconds:,.1f} s", f"{points / seconds:,.0f}")
    return table


def time_ours(server: Server, folder: Path, steps: int, metrics: int) -> tuple[float, float]:
    """Seconds inside `log`, and from the first of them until the server has every point and the run has ended."""
    config = config_of(folder, "ours", server.uri)
    tracker = Tracker.open(config, config.run_dir)
    assert isinstance(tracker, Tracker) and tracker.run_id() is not None
    lines = [metrics_of(metrics, step) for step in range(1, steps + 1)]
    began = time.perf_counter()
    for step, line in enumerate(lines, 1):
        tracker.log(step, line)
    in_log = time.perf_counter() - began
    while tracker.run_id() is None or not _has_step(server, tracker, steps, metrics):
        time.sleep(0.05)
    arrived = time.perf_counter() - began
    tracker.close("finished")
    history = server.client().get_metric_history(tracker.run_id() or "", f"layers.{metrics - 1}/attention/entropy_mean")
    assert len(history) == steps, f"{len(history)} points of a metric arrived, not {steps}"
    return in_log, arrived


def _has_step(server: Server, tracker: Tracker, step: int, metrics: int) -> bool:
    newest = server.client().get_run(tracker.run_id() or "").data.to_proto().metrics
    return any(found.key.startswith(f"layers.{metrics - 1}/") and found.step == step for found in newest)


def _new_run(server: Server) -> str:
    return server.client().create_run("0").info.run_id


def _log_batch(client: MlflowClient, run_id: str, step: int, metrics: int) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    points = [Metric(key, value, now, step) for key, value in metrics_of(metrics, step).items()]
    client.log_batch(run_id, metrics=points)


@dataclass
class Block:
    """Mean wall and CPU seconds of a step of one block."""

    wall: float
    cpu: float


class Training:
    """A small decoder on random tokens: a step is forward, backward and AdamW."""

    def __init__(self, width: int = 256, layers: int = 4, length: int = 128, batch: int = 8) -> None:
        torch.manual_seed(0)
        block = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self._model = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), foreach=True)
        self._x_BTD = torch.randn(batch, length, width)

    def step(self) -> float:
        """Returns the loss."""
        loss = self._model(self._x_BTD).square().mean()
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return loss.item()


def step_times(server: Server, folder: Path, repeats: int, steps: int) -> Table:
    """The ratio of step times with the server in each state."""
    training = Training()
    for _ in range(10):
        training.step()
    ratios: dict[str, list[tuple[float, float]]] = {state: [] for state in STATES[1:]}
    plain: list[Block] = []
    for repeat in range(repeats):
        for state in STATES[1:]:
            plain.append(measure(training, server, folder, f"none-{state}-{repeat}", "none", steps))
            block = measure(training, server, folder, f"{state}-{repeat}", state, steps)
            wall, cpu = block.wall / plain[-1].wall, block.cpu / plain[-1].cpu
            ratios[state].append((wall, cpu))
            print(f"{repeat}: {state}: wall {wall:.3f}, CPU {cpu:.3f}", flush=True)  # it takes minutes: lose nothing
    step_ms = statistics.median(block.wall for block in plain) * 1e3
    table = Table(
        title=f"step time over that without a tracker ({step_ms:.0f} ms), {repeats} blocks of {steps} steps each"
    )
    for heading in ("server", "wall time", "CPU time of the process"):
        table.add_column(heading, justify="left" if heading == "server" else "right")
    for state, pairs in ratios.items():
        table.add_row(state, spread([wall for wall, _ in pairs]), spread([cpu for _, cpu in pairs]))
    return table


def measure(training: Training, server: Server, folder: Path, name: str, state: str, steps: int) -> Block:
    """One block; the server is as it should be before it and answers again after it."""
    config = config_of(folder, name, server.uri, kind="none" if state == "none" else "mlflow")
    tracker = Tracker.open(config, config.run_dir)
    if isinstance(tracker, Tracker):
        assert tracker.run_id() is not None
    recorder = Recorder(config.run_dir, tracker)
    assert isinstance(tracker, NoTracker) == (state == "none")
    {"frozen": server.freeze, "gone": server.kill}.get(state, lambda: None)()
    wall, cpu = time.perf_counter(), time.process_time()
    for step in range(1, steps + 1):
        loss = training.step()
        recorder.log(step, loss=loss, **metrics_of(30, step))
    block = Block((time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps)
    {"frozen": server.thaw, "gone": server.start}.get(state, lambda: None)()
    recorder.close("finished")
    return block


def spread(values: list[float]) -> str:
    """Median, least and greatest."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
