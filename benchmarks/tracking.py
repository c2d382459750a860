"""What tracking costs training, and how fast points reach a real MLflow server.

    .venv/bin/python -m benchmarks.tracking

An `mlflow server` of its own (SQLite, loopback) is started and ended. First part: so many steps of so many metrics

    ours               logged as fast as possible: the time inside `log`, and until the server has all of them
    log_batch          MLflow's own, one request per step, timed on 200 steps and extrapolated
    log_metric         MLflow's own, one request per point, timed on 2,000 points and extrapolated

Second part: steps of a small decoder, one that logs its metrics and one that does not in turn, with the server

    fine     answering
    frozen   stopped by SIGSTOP: requests run into their time-out
    gone     killed: connections are refused

Machines are not steady to a hundredth over seconds, so that blocks one after another say nothing about it. Printed are
the median step with `log` over the median step without; the CPU time of the delivering thread per logged step over the
median step, which is the most it can cost a training that has no second core; and how much longer a step takes during
which that thread was at work (it serves both kinds of step alike, so that the first ratio does not show it).
"""

import argparse
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass, field
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
from monitoring.tracker import Tracker
from tests.monitoring.servers import Server

SAMPLE, SAMPLED_STEPS = 2000, 200
"""Points and steps that are timed of MLflow's own ways; the rest is extrapolated."""
METRICS = 30
"""Numbers that a step of the second part logs; a run of twelve layers logs ten, and four hundred every tenth step."""
BUSY_SECONDS = 1e-4
"""A delivering thread that ran for less during a pair of steps only looked at its clock."""
STATES = ("fine", "frozen", "gone")


def main() -> None:
    """Measure and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--metrics", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=1000, help="pairs of steps of the second part, per state")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(highlight=False)
    with sigterm_exits(), tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        try:
            server.start()
            console.print(delivery(server, Path(folder), arguments.steps, arguments.metrics))
            console.print(step_times(server, Path(folder), arguments.pairs))
        finally:
            server.kill()


def metrics_of(count: int, step: int) -> dict[str, float]:
    """The numbers of one step; names as long as those of signals per layer and matrix."""
    return {f"layers.{index}/attention/entropy_mean": 1 / (step + index + 1) for index in range(count)}


def config_of(folder: Path, name: str, uri: str) -> Config:
    """A run that is tracked at `uri`."""
    return Config(
        run=RunConfig(name=name, dir=folder),
        data=DataConfig(sources=[DataSource(path=Path("none"))]),
        tracking=TrackingConfig.model_validate({"kind": "mlflow", "uri": uri, "experiment": "benchmark"}),
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
class Steps:
    """Seconds of each step with and without `log`, and CPU seconds of the delivering thread during each."""

    logged: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    delivering: list[float] = field(default_factory=list)  # of a pair, in the order of the others

    def ratio(self) -> float:
        """Median step with `log` over that without."""
        return statistics.median(self.logged) / statistics.median(self.plain)

    def thread_share(self) -> float:
        """CPU time of the delivering thread per logged step, in median steps without `log`."""
        return sum(self.delivering) / len(self.logged) / statistics.median(self.plain)

    def disturbed(self) -> tuple[float, float]:
        """Share of the pairs during which the delivering thread ran, and how much longer they took than the others."""
        pairs = [(a + b, thread) for a, b, thread in zip(self.logged, self.plain, self.delivering, strict=True)]
        beside = [pair for pair, thread in pairs if thread > BUSY_SECONDS]
        alone = [pair for pair, thread in pairs if thread <= BUSY_SECONDS]
        longer = statistics.median(beside) / statistics.median(alone) - 1 if beside and alone else 0.0
        return len(beside) / len(pairs), longer


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


def step_times(server: Server, folder: Path, pairs: int) -> Table:
    """Step times with the server in each state."""
    training = Training()
    for _ in range(20):
        training.step()
    table = Table(title=f"{pairs:,} pairs of steps, one of each with {METRICS} metrics logged")
    for heading in ("server", "step", "with log / without", "delivering thread", "pairs beside it", "they take"):
        table.add_column(heading, justify="left" if heading == "server" else "right")
    for state in STATES:
        steps = measure(training, server, folder, state, pairs)
        share, longer = steps.disturbed()
        step_ms = statistics.median(steps.plain) * 1e3
        row = (
            f"{step_ms:.1f} ms",
            f"{steps.ratio():.4f}",
            f"{steps.thread_share():.2%}",
            f"{share:.1%}",
            f"{longer:+.1%}",
        )
        print(state, *row, flush=True)  # it takes minutes: lose nothing
        table.add_row(state, *row)
    return table


def measure(training: Training, server: Server, folder: Path, state: str, pairs: int) -> Steps:
    """Steps in one state; the server is as it should be before and after."""
    config = config_of(folder, state, server.uri)
    tracker = Tracker.open(config, config.run_dir)
    assert isinstance(tracker, Tracker) and tracker.run_id() is not None
    (thread,) = (found for found in threading.enumerate() if found.name == "mlflow")
    assert thread.ident is not None
    clock = time.pthread_getcpuclockid(thread.ident)
    recorder = Recorder(config.run_dir, tracker)
    {"frozen": server.freeze, "gone": server.kill}.get(state, lambda: None)()
    steps = Steps()
    for pair in range(pairs):
        before = time.clock_gettime(clock)
        # The order within a pair changes, so that nothing of it is in the ratio.
        for logged in (True, False) if pair % 2 else (False, True):
            began = time.perf_counter()
            loss = training.step()
            if logged:
                recorder.log(pair + 1, loss=loss, **metrics_of(METRICS, pair + 1))
            (steps.logged if logged else steps.plain).append(time.perf_counter() - began)
        steps.delivering.append(time.clock_gettime(clock) - before)
    {"frozen": server.thaw, "gone": server.start}.get(state, lambda: None)()
    recorder.close("finished")
    return steps


if __name__ == "__main__":
    main()
