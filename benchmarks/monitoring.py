"""What monitoring costs: step times with it on and off, and the cost of each group of signals.

    .venv/bin/python -m benchmarks.monitoring

One process, one model, random tokens. Three kinds of steps in turn, several times over, in the same process:

    off        no monitor at all
    ordinary   a step of a monitored run that is not measured (the same operations as `off`: the tests compare them)
    measured   every signal is taken

The ratio at interval n is ((n - 1) ordinary + measured) / (n off), with the medians of each kind; of the process's CPU
time too, which other processes on the machine disturb less. Groups are timed in further measured steps under Python's
profiler, so their sum is a little more than `measured` less `off`.
"""

import argparse
import cProfile
import os
import platform
import pstats
import statistics
import time
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from configs.checks import resolve
from configs.schema import Config
from monitoring.signals import Monitor
from parallel import topology as topologies
from parallel.gradients import sum_partial_gradients
from stability.guard import Guard
from training.build import build_trainer
from training.reductions import count_parameters

GROUPS = {
    "entropy, bound and largest logit of heads": [("attention.py", "see"), ("attention.py", "collect")],
    "token cosine, residual, RMS of activations": [("activations.py", "_see"), ("activations.py", "collect")],
    "RMS of activations' gradients": [("activations.py", "see_gradient")],
    "log Z, TEV": [("vocabulary.py", "_see"), ("vocabulary.py", "collect")],
    "gradient norms of matrices and heads, copy of weights": [("weights.py", "before_update")],
    "weights, shards, updates": [("weights.py", "collect")],
    "sigma, gamma": [("spectra.py", "collect")],
    "the gather": [("gather.py", "__call__")],
}
"""What is timed: the functions of monitoring/ that take each group."""


@dataclass
class Bench:
    """A trainer on random tokens that takes one step after the other."""

    config: Config
    vocab_size: int

    def __post_init__(self) -> None:
        self.topology = topologies.start(self.config.parallel, "cpu")
        self.trainer = build_trainer(self.config, self.topology, self.vocab_size)
        self.monitor = Monitor(self.trainer, self.topology, self.config)
        training, stability = self.config.training, self.config.stability
        self.guard = Guard(stability.skip, stability.zclip, self.config.optimizer.clip, self.topology.device)
        window_BT = torch.randint(self.vocab_size, (training.global_batch_size, training.sequence_length + 1))
        self.tokens_BT, self.targets_BT = window_BT[:, :-1].contiguous(), window_BT[:, 1:].contiguous()
        self.parameters = count_parameters(self.trainer.parameters(), self.topology)

    def step(self, kind: str) -> None:
        """One step of training."""
        trainer, measuring = self.trainer, kind == "measured"
        with trainer.engine.accumulate(), nullcontext() if kind == "off" else self.monitor.forward(measuring):
            loss = trainer.pipeline.train(self.tokens_BT, self.targets_BT)
            sum_partial_gradients(trainer.parameters(), self.topology.tensor)
            trainer.spectral.pull_back()
        if measuring:
            self.monitor.before_update()
        totals_2 = torch.stack([loss.double(), torch.zeros((), dtype=torch.float64)])
        trainer.engine.step(self.config.optimizer.lr, lambda norm: self.guard.judge(totals_2, norm))
        trainer.spectral.refresh()
        if measuring:
            self.monitor.collect()

    def groups(self) -> dict[str, float]:
        """Seconds of each group of signals in one measured step."""
        with cProfile.Profile() as profile:
            self.step("measured")
        spent = dict.fromkeys(GROUPS, 0.0)
        for (path, _, name), (_, _, _, seconds, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
            for group, functions in GROUPS.items():
                if any(path.endswith(f"monitoring/{file}") and name == function for file, function in functions):
                    spent[group] += seconds
        return spent


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--reparam", choices=["none", "sigma"], default="sigma")
    arguments = parser.parse_args()
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
    bench = Bench(config(arguments), arguments.vocabulary)
    kinds = ("off", "ordinary", "measured")
    wall: dict[str, list[float]] = {kind: [] for kind in kinds}
    cpu: dict[str, list[float]] = {kind: [] for kind in kinds}
    for kind in kinds:
        bench.step(kind)
    for repeat in range(arguments.repeats):
        for place in range(len(kinds)):
            kind = kinds[(repeat + place) % len(kinds)]
            started, busy = time.perf_counter(), time.process_time()
            bench.step(kind)
            wall[kind].append(time.perf_counter() - started)
            cpu[kind].append(time.process_time() - busy)
    groups = [bench.groups() for _ in range(5)]
    show(bench, wall, cpu, groups)


def config(arguments: argparse.Namespace) -> Config:
    """A pre-LN decoder of the given size, on one process."""
    values = {
        "data": {"sources": [{"path": "unused"}]},
        "model": {
            "layers": arguments.layers,
            "hidden_size": arguments.hidden_size,
            "heads": max(1, arguments.hidden_size // 64),
            "reparam": {"kind": arguments.reparam},
        },
        "training": {"global_batch_size": arguments.batch, "sequence_length": arguments.sequence_length},
    }
    return resolve(Config.model_validate(values), 1)


def show(
    bench: Bench, wall: dict[str, list[float]], cpu: dict[str, list[float]], groups: list[dict[str, float]]
) -> None:
    """Print the tables."""
    model, training, interval = bench.config.model, bench.config.training, bench.config.monitoring.interval
    console = Console()
    console.print(
        f"{bench.parameters / 1e6:.1f} M parameters: {model.layers} layers, width {model.hidden_size}, "
        f"{model.heads} heads, vocabulary {bench.vocab_size}, reparam {model.reparam.kind}; "
        f"{training.global_batch_size} sequences of {training.sequence_length} a step; "
        f"{torch.get_num_threads()} thread(s), {platform.machine()}, torch {torch.__version__}; "
        f"{len(wall['off'])} repeats"
    )
    median, busy = ({kind: statistics.median(values) for kind, values in one.items()} for one in (wall, cpu))
    table = Table("step", "median s", "lowest s", "highest s", "median s of CPU")
    for kind, values in wall.items():
        numbers = (median[kind], min(values), max(values), busy[kind])
        table.add_row(kind, *(f"{value:.3f}" for value in numbers))
    console.print(table)
    for name, of in (("time", median), ("CPU time", busy)):
        on = ((interval - 1) * of["ordinary"] + of["measured"]) / interval
        console.print(f"{name}, on / off at interval {interval}: {on / of['off']:.4f}")
    costs = Table("group", "ms in a measured step", f"of a step, at interval {interval}")
    for group in GROUPS:
        cost = statistics.median(times[group] for times in groups)
        costs.add_row(group, f"{cost * 1e3:.1f}", f"{cost / interval / median['off']:.3%}")
    console.print(costs)


if __name__ == "__main__":
    main()
