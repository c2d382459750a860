"""The flight recorder: rings that wrap and go back, every rank's norms under the right name, and no waiting."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from configs.errors import DataError
from configs.schema import Config
from data.documents import locate
from data.samples import Samples
from parallel import topology as topologies
from parallel.gradients import sum_partial_gradients
from parallel.linear import ShardedLinear
from parallel.spectral import SpectralReparam
from parallel.topology import TensorParallel
from stability.alarms import Alarm
from stability.flight import FlightRecorder, Ring, part_names
from stability.record import Record
from tests.distributed import spawn
from tests.layouts import config, single_topology, update
from training.batches import Batches
from training.build import Trainer, build_chunks, build_trainer
from training.reductions import mean_loss

ALARM = Alarm("loss_spike", 4, "alarm", "loss 7 deviations above its mean", 3.0, 2.0, {"layer": 1})
STEPS = 6


def flight_config(stdlib_bytes: Path, runs: Path, world_size: int, **sections: dict) -> Config:
    return config(
        world_size,
        run={"dir": str(runs), "name": "flight"},
        data={"sources": [{"path": str(stdlib_bytes)}]},
        monitoring={"record_steps": 4},
        model={"reparam": {"kind": "sigma"}} | sections.pop("model", {}),
        **sections,
    )


def make(cfg: Config, topology: topologies.Topology) -> tuple[Trainer, Samples, FlightRecorder]:
    samples = Samples(cfg.data.sources, "train", cfg.training.sequence_length, cfg.training.seed)
    trainer = build_trainer(cfg, topology, samples.vocab_size)
    return trainer, samples, FlightRecorder(cfg, trainer, topology, samples)


def own_norms(trainer: Trainer) -> dict[str, float]:
    """Norms of this rank's gradients, part by part, computed one at a time in fp64."""
    norms = {}
    for name, parameter in trainer.named_parameters():
        names, blocks = part_names(name, parameter), parameter.sharding.blocks
        sizes = [size for _, size in blocks] if len(blocks) > 1 else [parameter.shape[0]]
        for part, gradient in zip(names, parameter.grad.split(sizes), strict=True):
            norms[part] = gradient.double().square().sum().sqrt().item()
    return norms


def record_steps(cfg: Config) -> tuple[list[dict[str, float]], list[dict[str, tuple[float, float]]], str | None]:
    """Train, note and write as one rank: its norms and spectra by step, and the record's path."""
    topology = topologies.start(cfg.parallel, "cpu")
    trainer, samples, flight = make(cfg, topology)
    batches = Batches(samples, cfg.training.global_batch_size, topology)
    norms, spectra = [], []
    for step in range(1, STEPS + 1):
        with trainer.engine.accumulate():
            loss_here = trainer.pipeline.train(*batches.step(step - 1))
            sum_partial_gradients(trainer.parameters(), topology.tensor)
            trainer.spectral.pull_back()
            norms.append(own_norms(trainer))
            flight.note_gradients(step)
        grad_norm = update(trainer, cfg)
        trainer.spectral.refresh()
        flight.note_spectra(step)
        spectra.append({m.name: (m.sigma.item(), m.gamma.item()) for m in trainer.spectral.matrices})
        loss = mean_loss(loss_here, trainer.pipeline, topology)
        flight.note_step(step, loss=loss, grad_norm=grad_norm, lr=1e-3, seconds=0.1, kept=step != 5, batch=step - 1)
    path = flight.write([ALARM])
    return norms, spectra, None if path is None else str(path)


LAYOUTS = {
    "one": (1, {}),
    "tp2": (2, {"tp": 2}),
    "pp2": (2, {"pp": 2}),
    "dp2": (2, {}),
    "tp2pp2": (4, {"tp": 2, "pp": 2}),
}


@pytest.mark.parametrize(
    "layout", [pytest.param(name, marks=[pytest.mark.slow] if name in ("tp2", "pp2") else []) for name in LAYOUTS]
)
def test_a_record_has_the_norms_of_every_rank(stdlib_bytes: Path, tmp_path: Path, layout: str) -> None:
    world_size, parallel = LAYOUTS[layout]
    cfg = flight_config(stdlib_bytes, tmp_path, world_size, parallel=parallel)
    results = spawn(world_size, record_steps, cfg)
    assert [path is None for _, _, path in results] == [False] + [True] * (world_size - 1)
    record = Record.read(Path(results[0][2]))
    gradient, names = record.tracks["gradient"], list(record.labels["parameter"])
    assert gradient.steps.tolist() == [3, 4, 5, 6] and gradient.values.shape == (4, world_size, len(names))
    assert set(names) == {name for norms, _, _ in results for name in norms[0]}
    for rank, (norms, _, _) in enumerate(results):
        assert {name for name, held in zip(names, record.labels["holds"][rank], strict=True) if held} == set(norms[0])
        for row, step in enumerate(gradient.steps):
            for column, name in enumerate(names):
                expected = norms[step - 1].get(name, np.nan)
                assert gradient.values[row, rank, column] == pytest.approx(expected, rel=1e-5, nan_ok=True), name
    matrices = list(record.labels["matrix"])
    for row, step in enumerate(record.tracks["sigma"].steps):
        told = {name: pair for _, spectra, _ in results for name, pair in spectra[step - 1].items()}
        assert set(told) == set(matrices)
        for column, name in enumerate(matrices):
            assert record.tracks["sigma"].values[row, column] == np.float32(told[name][0])
            assert record.tracks["gamma"].values[row, column] == np.float32(told[name][1])
    places = record.header.ranks
    assert [place.rank for place in places] == list(range(world_size))
    assert max(p.tp for p in places) + 1 == parallel.get("tp", 1)
    assert max(p.pp for p in places) + 1 == parallel.get("pp", 1)
    assert len(record.header.random_states) == world_size


class Lone:
    """One rank's model without process groups: a collective would raise."""

    def __init__(self, cfg: Config, vocab_size: int) -> None:
        self.chunk = build_chunks(cfg, single_topology(), vocab_size)[0]
        linears = [(name, m) for name, m in self.chunk.named_modules() if isinstance(m, ShardedLinear)]
        self.spectral = SpectralReparam(linears, TensorParallel())

    def named_parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        return list(self.chunk.named_parameters())

    def set_gradients(self, value: float) -> None:
        for _, parameter in self.named_parameters():
            parameter.grad = torch.full_like(parameter, value)


class Waits(TorchDispatchMode):
    """Counts reads of a device's numbers by the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func is torch.ops.aten._local_scalar_dense.default or func is torch.ops.aten._to_copy.default
        return func(*args, **(kwargs or {}))


class Seen:
    """A measurement."""

    def __init__(self, **arrays: object) -> None:
        self._arrays = {name: np.asarray(values) for name, values in arrays.items()}

    def arrays(self) -> dict[str, np.ndarray]:
        return self._arrays


@pytest.fixture
def alone(stdlib_bytes: Path, tmp_path: Path) -> tuple[Lone, Samples, FlightRecorder, Path]:
    cfg = flight_config(stdlib_bytes, tmp_path, 1)
    samples = Samples(cfg.data.sources, "train", cfg.training.sequence_length, cfg.training.seed)
    lone = Lone(cfg, samples.vocab_size)
    return lone, samples, FlightRecorder(cfg, lone, single_topology(), samples), cfg.run_dir


def note(flight: FlightRecorder, lone: Lone, step: int, *, batch: int | None = None, loss: float = 2.0) -> None:
    lone.set_gradients(step)
    flight.note_gradients(step)
    flight.note_spectra(step)
    index = step - 1 if batch is None else batch
    flight.note_step(step, loss=loss, grad_norm=1.0, lr=0.1, seconds=0.5, kept=True, batch=index)


def test_a_ring_keeps_the_last_steps_and_goes_back() -> None:
    ring = Ring(3, 2, torch.device("cpu"))
    assert ring.track().steps.tolist() == []
    for step in range(1, 6):
        ring.note(step, torch.tensor([step, 10.0 * step]))
    assert ring.track().steps.tolist() == [3, 4, 5]
    assert ring.track().values.tolist() == [[3, 30], [4, 40], [5, 50]]
    ring.drop_after(4)
    assert ring.track().steps.tolist() == [3, 4]
    ring.note(5, torch.tensor([7.0, 8.0]))
    assert ring.track().values.tolist() == [[3, 30], [4, 40], [7, 8]]


def test_notes_wait_for_nothing_and_talk_to_nobody(alone) -> None:
    lone, _, flight, _ = alone
    lone.set_gradients(1.0)
    assert not torch.distributed.is_initialized()
    with Waits() as waits:
        for step in range(1, 10):
            flight.note_gradients(step)
            flight.note_spectra(step)
            flight.note_step(step, loss=1.0, grad_norm=1.0, lr=0.1, seconds=0.1, kept=True, batch=step)
    assert waits.count == 0


def test_a_parameter_without_a_gradient_counts_as_zero(alone) -> None:
    lone, _, flight, _ = alone
    note(flight, lone, 1)
    lone.chunk.head.gamma.grad = None
    lone.chunk.layers["0"].attention.qkv.weight.grad = None
    flight.note_gradients(2)
    record = Record.read(flight.write([ALARM]))
    at = dict(zip(record.labels["parameter"], record.tracks["gradient"].values[1, 0], strict=True))
    assert at["head.gamma"] == 0 and at["layers.0.attention.qkv.k.weight"] == 0
    assert at["head.weight"] > 0


def test_the_record_explains_itself(alone) -> None:
    lone, samples, flight, run_dir = alone
    for step in range(1, 4):
        note(flight, lone, step)
        matrices = Seen(matrix=["a", "b"], sigma=[1.0, step])
        flight.note_measurement(step, matrices if step == 3 else Seen(entropy=np.full((4, 4), step)))
    fatal = Alarm("non_finite", 4, "fatal", "loss is not finite", float("inf"), 0.0, {"rank": 0})
    path = flight.write([ALARM, fatal])
    assert path == run_dir / "spikes" / "000004-loss_spike.npz"
    record = Record.read(path)
    assert record.header.alarms == [ALARM, fatal] and record.alarm == ALARM
    assert record.header.run == "flight" and record.header.config["training"]["global_batch_size"] == 8
    assert record.header.versions["torch"] == torch.__version__.split("+")[0] or record.header.versions["torch"]
    assert record.tracks["loss"].values.tolist() == [2.0, 2.0, 2.0] and record.tracks["kept"].values.all()
    assert record.tracks["measured.entropy"].steps.tolist() == [1, 2]
    assert record.tracks["measured.sigma"].values.tolist() == [[1.0, 3.0]]
    assert list(record.labels["measured.matrix"]) == ["a", "b"]
    at = locate(samples, 2 * 8 + 3)
    assert record.tracks["samples.id"].values[2, 3] == at.sample
    assert record.tracks["samples.offset"].values[2, 3] == at.offset
    assert record.tracks["samples.first_document"].values[2, 3] == at.pieces[0].document


def test_the_samples_are_those_of_the_batch_not_of_the_step(alone) -> None:
    lone, _, flight, _ = alone
    note(flight, lone, 1, batch=40)
    assert Record.read(flight.write([ALARM])).tracks["samples.id"].values.tolist() == [list(range(320, 328))]


def test_a_later_write_adds_the_aftermath(alone) -> None:
    lone, _, flight, run_dir = alone
    for step in range(1, 5):
        note(flight, lone, step)
    first = flight.write([ALARM])
    for step in range(5, 7):
        note(flight, lone, step)
    assert flight.write([ALARM]) == first
    assert Record.read(first).tracks["loss"].steps.tolist() == [3, 4, 5, 6]
    assert [path.name for path in (run_dir / "spikes").iterdir()] == [first.name]


def test_a_rollback_drops_steps_and_leaves_the_record_of_them(alone) -> None:
    lone, _, flight, _ = alone
    for step in range(1, 5):
        note(flight, lone, step, loss=9.0 if step == 4 else 2.0)
        flight.note_measurement(step, Seen(tev=step))
    path = flight.write([ALARM])
    flight.rollback(2)
    for step in range(3, 6):
        note(flight, lone, step, batch=step + 10)
    again = flight.write([ALARM])
    assert again.stem == f"{path.stem}-2", "the same step alarms again, in another course of training"
    assert 9.0 not in Record.read(again).tracks["loss"].values
    assert Record.read(path).tracks["loss"].values.tolist() == [2.0, 2.0, 2.0, 9.0]
    later = Record.read(flight.write([Alarm("grad_spike", 5, "alarm", "x", 1.0, 1.0)]))
    assert later.tracks["loss"].steps.tolist() == [2, 3, 4, 5] and 9.0 not in later.tracks["loss"].values
    assert later.tracks["batch"].values.tolist() == [1, 13, 14, 15]
    assert later.tracks["measured.tev"].steps.tolist() == [1, 2]
    assert later.tracks["gradient"].steps.tolist() == [2, 3, 4, 5]


def test_a_disk_that_refuses_stops_nothing(alone, capsys) -> None:
    lone, _, flight, run_dir = alone
    note(flight, lone, 1)
    run_dir.mkdir(parents=True)
    (run_dir / "spikes").write_text("in the way")
    assert flight.write([ALARM]) is None
    assert "step 4: no forensic record" in capsys.readouterr().err


def test_a_damaged_record_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(DataError, match="not a forensic record, or damaged"):
        Record.read(tmp_path / "x.npz")
    with pytest.raises(DataError, match="no such record"):
        Record.read(tmp_path / "y.npz")
