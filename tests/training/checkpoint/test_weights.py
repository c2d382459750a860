"""`init_from`: the same function from the same weights in any layout and reparametrisation, and what is refused."""

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.tensor import DTensor

from configs.errors import CheckpointError, ConfigError
from configs.load import load
from configs.schema import Config
from data.samples import Samples
from monitoring.recorder import read_events, read_metrics, read_summary
from parallel import topology as topologies
from tests.distributed import spawn
from tests.training.test_run import TINY, tiny
from training.build import build_trainer
from training.checkpoint import store
from training.checkpoint.manifest import MANIFEST, read_manifest, write_manifest
from training.checkpoint.source import FREE, check_before_launch
from training.checkpoint.state import TrainingState
from training.checkpoint.weights import initial_weights
from training.evaluate import Evaluator
from training.run import train

ROOT = Path(__file__).parents[3]
KINDS = {
    "none": ["model.reparam.kind=none"],
    "sigma": ["model.reparam.kind=sigma"],
    "fused": ["model.reparam.kind=sigma", "model.reparam.qkv=qk+v", "model.reparam.gate_up=fused"],
}
LAYOUTS = {
    "one process": (1, []),
    "tp2": (2, ["parallel.tp=2"]),
    "tp2 pp2": (4, ["parallel.tp=2", "parallel.pp=2"]),
    "interleaved": (2, ["parallel.pp=2", "parallel.schedule=interleaved_1f1b"]),
}
JOURNEYS = [
    pytest.param("tp2", "tp2", marks=pytest.mark.slow),
    ("tp2 pp2", "one process"),
    pytest.param("one process", "tp2 pp2", marks=pytest.mark.slow),
    pytest.param("tp2 pp2", "interleaved", marks=pytest.mark.slow),
]
BOUND = 1e-6
"""Of the validation loss, relative, between two layouts: fp32 sums in another order. Within a layout it is equal."""

SWIGLU = ["model.activation=swiglu", "model.kv_heads=2", "model.qk_norm=true", "model.bias=true", "model.layers=4"]
TIED = ["model.tie_embeddings=true", "model.reparam.head=false", "model.norm_placement=post", "model.norm=rmsnorm"]
SMALL = [
    "model.hidden_size=32",
    "training.steps=4",
    "training.sequence_length=32",
    "training.eval_samples=32",
    "monitoring.interval=0",
    "checkpoint.interval=4",
    "optimizer.lr=1e-2",
]


class Began(NamedTuple):
    """What one rank holds before its first step: whole tensors as a checkpoint names them, and the loss."""

    tensors: dict[str, Tensor]
    val_loss: float


@dataclass(frozen=True)
class Made:
    """A run to begin from: its folder, its tensors and its validation loss at the end."""

    config: Config
    tensors: dict[str, Tensor]
    val_loss: float


def source(data: Path, runs: Path, layout: str, *overrides: str) -> Made:
    """Train a few steps in `layout`, with a checkpoint of the last."""
    world_size, parallel = LAYOUTS[layout]
    cfg = tiny(data, runs, world_size, *SMALL, *parallel, *overrides)
    val_loss = spawn(world_size, train, cfg)[0].val_loss
    return Made(cfg, tensors_of(store.steps(cfg.run_dir / "checkpoints")[0]), val_loss)


def tensors_of(checkpoint: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, whole."""
    saved = HuggingFaceStorageReader(str(checkpoint)).read_metadata().state_dict_metadata
    tensors = {name: torch.full(saved[name].size, torch.nan) for name in saved}
    dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(checkpoint)), no_dist=True)
    return tensors


def begin(configs: list[Config]) -> list[Began]:
    """Build each run as the loop does, up to its first step. Another seed: nothing is right unless it was loaded."""
    began = []
    for cfg in configs:
        topology = topologies.start(cfg.parallel, "cpu")
        samples = Samples(cfg.data.sources, "train", cfg.training.sequence_length, cfg.training.seed)
        weights = initial_weights(cfg, topology, samples)
        assert weights is not None
        trainer = build_trainer(cfg, topology, samples.vocab_size, weights)
        tensors = TrainingState(trainer, topology).to_save()
        whole = {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in tensors.items()}
        began.append(Began(whole, Evaluator(cfg, topology, trainer.pipeline).loss()))
        topologies.abandon()
    return began


def begun(layout: str, sources: list[Made], data: Path, runs: Path, *overrides: str) -> list[Began]:
    """Runs of `layout` that begin from each of `sources`."""
    world_size, parallel = LAYOUTS[layout]
    shared = [*SMALL, *parallel, "training.seed=1", *overrides]
    configs = [tiny(data, runs, world_size, *shared, f"init_from={made.config.run_dir}") for made in sources]
    ranks = spawn(world_size, begin, configs)
    return [merged([rank[index] for rank in ranks]) for index in range(len(sources))]


def merged(ranks: list[Began]) -> Began:
    tensors: dict[str, Tensor] = {}
    for rank in ranks:
        assert rank.val_loss == ranks[0].val_loss
        for name, tensor in rank.tensors.items():
            assert torch.equal(tensors.setdefault(name, tensor), tensor), f"{name} differs between ranks"
    return Began(tensors, ranks[0].val_loss)


def is_moment(name: str) -> bool:
    return name.startswith("exp_avg")


def assert_begins_from(actual: Began, made: Made, kinds: tuple[str, str], *, same_layout: bool) -> None:
    """The source's function with fresh moments; every tensor of it where nothing had to be translated."""
    assert all(not tensor.any() for name, tensor in actual.tensors.items() if is_moment(name))
    if same_layout:
        assert actual.val_loss == made.val_loss
    else:
        assert actual.val_loss == pytest.approx(made.val_loss, rel=BOUND)
    ours = {name: tensor for name, tensor in actual.tensors.items() if not is_moment(name)}
    theirs = {name: tensor for name, tensor in made.tensors.items() if not is_moment(name)}
    if kinds[0] == kinds[1]:
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        return
    assert (kinds[1] == "none") == (not any(name.startswith("spectral/") and name.endswith("/sigma") for name in ours))
    for name in (name for name in ours if name.startswith("spectral/") and name.endswith("/sigma")):
        assert torch.equal(ours[name], ours[f"model/{name.removeprefix('spectral/').removesuffix('/sigma')}.gamma"])
    names = [name for name in ours if name.startswith("model/") and not name.endswith(".gamma")]
    assert names == [name for name in ours if name in theirs and name.startswith("model/") and ".gamma" not in name]
    for name in names:
        scale = dense_scale(name, theirs, kinds[0])
        assert torch.equal(ours[name], theirs[name] * scale), name
    largest = torch.linalg.matrix_norm(ours["model/layers.0.attention.output.weight"].double(), ord=2)
    sigma = ours.get("spectral/layers.0.attention.output/sigma")
    assert sigma is None or sigma.item() == pytest.approx(largest.item(), rel=1e-5)


def dense_scale(name: str, tensors: dict[str, Tensor], kind: str) -> Tensor:
    """gamma / sigma of the matrix that a weight belongs to in the source; 1 where there is none."""
    layer, _, block = name.removeprefix("model/").partition(".weight")
    if f"model/{layer}.gamma" not in tensors or not name.partition(".weight")[1]:
        return torch.ones(())
    scale_K = tensors[f"model/{layer}.gamma"] / tensors[f"spectral/{layer}/sigma"]
    together = {"/q": 0, "/k": 0, "/v": 1, "/gate": 0, "/up": 0}
    apart = {"/q": 0, "/k": 1, "/v": 2, "/gate": 0, "/up": 1}
    return scale_K[(together if kind == "fused" else apart).get(block if len(scale_K) > 1 else "", 0)]


@pytest.fixture(scope="module")
def sources(stdlib_bytes: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Made]]:
    """A source of every kind, trained in the layout asked for; once each."""
    made: dict[str, dict[str, Made]] = {}

    def of(layout: str) -> dict[str, Made]:
        if layout not in made:
            runs = tmp_path_factory.mktemp("sources")
            made[layout] = {
                kind: source(stdlib_bytes, runs / kind, layout, *SWIGLU, *overrides)
                for kind, overrides in KINDS.items()
            }
        return made[layout]

    return of


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("first", "then"), JOURNEYS, ids=lambda name: name)
def test_the_function_stays(
    first: str, then: str, kind: str, sources: Callable[[str], dict[str, Made]], stdlib_bytes: Path, tmp_path: Path
) -> None:
    """From each kind of source to `kind`, from one layout to another."""
    made = sources(first)
    results = begun(then, list(made.values()), stdlib_bytes, tmp_path, *SWIGLU, *KINDS[kind])
    for (origin, one), result in zip(made.items(), results, strict=True):
        assert_begins_from(result, one, (origin, kind), same_layout=first == then)


def test_tied_embeddings_and_post_norm(stdlib_bytes: Path, tmp_path: Path) -> None:
    made = {
        kind: source(stdlib_bytes, tmp_path / kind, "one process", *TIED, *KINDS[kind]) for kind in ("none", "sigma")
    }
    for kind in made:
        results = begun("tp2", list(made.values()), stdlib_bytes, tmp_path, *TIED, *KINDS[kind])
        for (origin, one), result in zip(made.items(), results, strict=True):
            assert_begins_from(result, one, (origin, kind), same_layout=False)


def test_a_head_that_is_reparametrised_no_more(stdlib_bytes: Path, tmp_path: Path) -> None:
    made = source(stdlib_bytes, tmp_path, "one process", "model.reparam.head=true")
    (result,) = begun("one process", [made], stdlib_bytes, tmp_path / "new", "model.reparam.head=false")
    assert result.val_loss == made.val_loss
    assert "model/head.gamma" in made.tensors and "model/head.gamma" not in result.tensors


def test_gamma_is_sigma_even_where_power_iterations_only_come_near(stdlib_bytes: Path, tmp_path: Path) -> None:
    made = source(stdlib_bytes, tmp_path, "one process", "model.reparam.kind=none")
    overrides = ["model.reparam.start=power", "model.reparam.start_iterations=20", "model.reparam.gamma_init=one"]
    (result,) = begun("one process", [made], stdlib_bytes, tmp_path / "new", *overrides)
    assert result.val_loss == made.val_loss


STILL = ["optimizer.lr=1e-12", "training.steps=1", "checkpoint.interval=1"]
"""One step that moves no weight by more than 1e-12: the optimizer's own copies come to light."""


@pytest.fixture(scope="module")
def plain(stdlib_bytes: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A run with checkpoints of steps 2 and 4, as most tests below begin from."""
    return source(stdlib_bytes, tmp_path_factory.mktemp("plain"), "one process", "run.name=a", "checkpoint.interval=2")


@pytest.fixture
def copy(plain: Made, tmp_path: Path) -> Path:
    """A copy of it to damage: the run's folder."""
    return Path(shutil.copytree(plain.config.run_dir, tmp_path / "copied" / "a", symlinks=True))


@pytest.mark.parametrize(
    ("world_size", "layout"),
    [(2, ["parallel.zero_stage=2"]), (4, ["parallel.tp=2", "parallel.zero_stage=1"])],
    ids=["dp2 ZeRO-2", "tp2 dp2 ZeRO-1"],
)
def test_the_optimizer_goes_on_from_the_loaded_weights(
    world_size: int, layout: list[str], plain: Made, stdlib_bytes: Path, tmp_path: Path
) -> None:
    cfg = tiny(stdlib_bytes, tmp_path, world_size, *SMALL, *layout, *STILL, f"init_from={plain.config.run_dir}")
    summary = spawn(world_size, train, cfg)[0]
    assert summary.steps == 1
    (line,) = read_metrics(cfg.run_dir)
    assert (line["step"], line["tokens"]) == (1, 16 * 32)
    tensors = tensors_of(cfg.run_dir / "checkpoints" / "latest")
    for name in tensors:
        if name.startswith("model/"):
            assert torch.allclose(tensors[name], plain.tensors[name], rtol=0, atol=1e-9), name


def test_a_run_says_what_it_began_from_and_then_continues_its_own(
    plain: Made, stdlib_bytes: Path, tmp_path: Path
) -> None:
    """Its second start does not look at `init_from`: the source is gone by then."""
    origin = tmp_path / "origin"
    shutil.copytree(plain.config.run_dir, origin, symlinks=True)
    shared = [*SMALL, "checkpoint.interval=2", f"init_from={origin}", "model.reparam.kind=none"]
    cfg = tiny(stdlib_bytes, tmp_path, 1, *shared)
    spawn(1, train, cfg)
    (event,) = [event for event in read_events(cfg.run_dir) if event["kind"] == "init_from"]
    folder = origin / "checkpoints" / "step-00000004"
    assert (event["step"], event["reason"]) == (0, f"weights of {folder}, gamma / sigma folded into W")
    assert read_manifest(cfg.run_dir / "checkpoints" / "latest").config["init_from"] == str(origin)
    assert read_metrics(cfg.run_dir)[0]["loss"] < read_metrics(plain.config.run_dir)[0]["loss"] - 0.2
    shutil.rmtree(origin)
    spawn(1, train, tiny(stdlib_bytes, tmp_path, 1, *shared, "training.steps=6"))
    assert [event["kind"] for event in read_events(cfg.run_dir)].count("init_from") == 1
    assert [line["step"] for line in read_metrics(cfg.run_dir)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("named", ["checkpoints/step-00000002", "checkpoints/latest", "."])
def test_a_run_a_checkpoint_or_its_link_may_be_named(
    named: str, copy: Path, stdlib_bytes: Path, tmp_path: Path
) -> None:
    cfg = tiny(stdlib_bytes, tmp_path, 2, *SMALL, "parallel.tp=2", f"init_from={copy / named}")
    spawn(2, train, cfg)
    (event,) = [event for event in read_events(cfg.run_dir) if event["kind"] == "init_from"]
    step = 2 if named.endswith("2") else 4
    assert event["reason"] == f"weights of {copy}/checkpoints/step-0000000{step}, as they were"


def test_a_damaged_newest_checkpoint_of_a_run_is_passed_over(copy: Path, stdlib_bytes: Path, tmp_path: Path) -> None:
    file = flip_a_byte(copy / "checkpoints" / "step-00000004")
    cfg = tiny(stdlib_bytes, tmp_path, 1, *SMALL, f"init_from={copy}")
    spawn(1, train, cfg)
    (event,) = [event for event in read_events(cfg.run_dir) if event["kind"] == "init_from"]
    assert f"weights of {copy}/checkpoints/step-00000002, as they were; {file}: changed" in event["reason"]


def test_a_damaged_checkpoint_that_was_named_is_refused_on_every_rank(
    copy: Path, stdlib_bytes: Path, tmp_path: Path
) -> None:
    folder = copy / "checkpoints" / "step-00000004"
    file = flip_a_byte(folder)
    cfg = tiny(stdlib_bytes, tmp_path, 2, *SMALL, "parallel.tp=2", f"init_from={folder}")
    assert (
        spawn(2, refused, cfg)
        == [f"init_from = {folder}: {file}: changed since it was written: its checksum does not match {MANIFEST}"] * 2
    )
    assert not (cfg.run_dir / "metrics.jsonl").exists()


@pytest.mark.parametrize("resealed", [True, False])
def test_a_planted_pickle_is_never_opened(resealed: bool, copy: Path, stdlib_bytes: Path, tmp_path: Path) -> None:
    """Beside the tensors, or in place of them with a manifest that vouches for it."""
    folder, mark = copy / "checkpoints" / "step-00000004", tmp_path / "executed"
    file = next(folder.glob("*.safetensors")) if resealed else folder / ".metadata"
    file.write_bytes(pickle.dumps(Bomb(mark)))
    if resealed:
        manifest = read_manifest(folder)
        write_manifest(folder, manifest.model_copy(update={"files": {file.name: store.describe(file)}}))
    (message,) = spawn(1, refused, tiny(stdlib_bytes, tmp_path, 1, *SMALL, f"init_from={folder}"))
    expected = f"{file}: is no safetensors file and is not loaded: " if resealed else f"{folder}: '.metadata' does not "
    assert message.startswith(f"init_from = {folder}: {expected}") and "\n" not in message
    assert not mark.exists()


class Bomb:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model.hidden_size=64", "model.hidden_size = 64: the checkpoint has 32"),
        ("model.norm=rmsnorm", "model.norm = rmsnorm: the checkpoint has layernorm"),
        ("model.layers=8", "model.layers = 8: the checkpoint has 4"),
        ("model.norm_eps=1e-6", "model.norm_eps = 1.0e-06: the checkpoint has 1.0e-05"),
        ("model.qk_norm=true", "model.qk_norm = true: the checkpoint has false"),
    ],
)
def test_another_model_is_refused_before_anything_starts(
    override: str, line: str, plain: Made, stdlib_bytes: Path, tmp_path: Path
) -> None:
    cfg = tiny(stdlib_bytes, tmp_path, 1, *SMALL, f"init_from={plain.config.run_dir}", override)
    with pytest.raises(CheckpointError) as caught:
        check_before_launch(cfg)
    first, *different, last = str(caught.value).splitlines()
    folder = plain.config.run_dir / "checkpoints" / "step-00000004"
    assert first.startswith(f"init_from = {plain.config.run_dir}: {folder}: its weights are of another model")
    assert line in [other.strip() for other in different]
    assert last == f"What may differ in the model: {', '.join(FREE)}."
    if override == "model.norm=rmsnorm":
        assert spawn(1, refused, cfg) == [str(caught.value)]


def test_how_random_weights_would_start_may_differ(plain: Made, stdlib_bytes: Path, tmp_path: Path) -> None:
    overrides = ["model.init_std=0.5", "model.depth_scaled_init=true", "model.init=xavier", "model.reparam.kind=none"]
    check_before_launch(tiny(stdlib_bytes, tmp_path, 1, *SMALL, *overrides, f"init_from={plain.config.run_dir}"))


def test_learned_positions_are_of_one_length(plain: Made, stdlib_bytes: Path, tmp_path: Path) -> None:
    overrides = [f"init_from={plain.config.run_dir}", "training.sequence_length=64"]
    (message,) = spawn(1, refused, tiny(stdlib_bytes, tmp_path, 1, *SMALL, *overrides))
    folder = plain.config.run_dir / "checkpoints" / "step-00000004"
    assert message == (
        f"init_from = {plain.config.run_dir}: training.sequence_length = 64: {folder} has learned positions of 32"
    )


def test_other_tokens_are_refused_as_far_as_they_can_be_told(stdlib_bytes: Path, tmp_path: Path) -> None:
    """By the tokenizer's hash while the source's data are there, then by the number of rows, which padding hides."""
    from data.prepare import prepare

    data = tmp_path / "data"
    shutil.copytree(stdlib_bytes, data / "bytes")
    words = ["".join(letters) for letters in product("abcdef", repeat=4)]
    for name in ("first", "second"):
        (tmp_path / f"{name}.txt").write_text(f"{name}\n" + " ".join(words) + "\n")
    texts = [str(tmp_path / "first.txt"), str(tmp_path / "second.txt")]
    for size in (300, 400):
        out = data / f"bpe-{size}"
        prepare(texts, out, tokenizer="bpe", vocab_size=size, validation_fraction=0.5, workers=1, progress=False)
    made = source(data / "bytes", tmp_path, "one process", "model.reparam.kind=none")
    begins = [*SMALL, "run.name=b", "model.reparam.kind=none", f"init_from={made.config.run_dir}"]
    same_rows, more_rows = (tiny(data / f"bpe-{size}", tmp_path, 1, *begins) for size in (300, 400))
    folder = made.config.run_dir / "checkpoints" / "step-00000004"
    assert spawn(1, refused, same_rows) == [
        f"init_from = {made.config.run_dir}: data.sources have another tokenizer than {data}/bytes, which {folder} "
        "was trained on; its weights know those tokens only: prepare data with that tokenizer"
    ]
    shutil.rmtree(data / "bytes")
    assert spawn(1, refused, more_rows) == [
        f"init_from = {made.config.run_dir}: data.sources: a vocabulary of 400 tokens takes an embedding of 448 rows: "
        f"{folder} has 320"
    ]
    assert spawn(1, train, same_rows)[0].steps == 4


def refused(cfg: Config) -> str:
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        train(cfg)
    return str(caught.value)


def flip_a_byte(folder: Path) -> Path:
    file = next(folder.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    return file


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launcher", "train", str(TINY), "tracking.kind=none", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_the_command_line(plain: Made, stdlib_bytes: Path, tmp_path: Path) -> None:
    """A run from another, on two ranks; then a wrong source, which must not cost an earlier run its folder."""
    shared = [f"data.sources.0.path={stdlib_bytes}", f"run.dir={tmp_path}", "run.name=b", *SMALL]
    first = launch(*shared, f"init_from={plain.config.run_dir}", "parallel.tp=2", "model.reparam.kind=none")
    assert first.returncode == 0, first.stderr
    summary = read_summary(tmp_path / "b")
    assert summary is not None and summary["status"] == "finished"
    again = launch("--overwrite", *shared, f"init_from={tmp_path}/nowhere")
    assert (again.returncode, again.stderr) == (
        2,
        f"init_from = {tmp_path}/nowhere: no such folder; name a run, such as runs/tiny, or one of its checkpoints\n",
    )
    assert read_summary(tmp_path / "b") == summary


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("data", "init_from = {data}: {data}/manifest.json: is no manifest of a checkpoint, or torn: "),
        ("empty", "init_from = {empty}: holds no checkpoint; name a run that has some (checkpoint.interval sets "),
        ("torn", "init_from = {torn}: {torn}/checkpoints/step-00000004/manifest.json: torn or changed: its checksum "),
        ("file", "init_from = {file}: is a file; name a run, such as runs/tiny, or one of its checkpoints"),
        ("self", "must be another run: this one's folder is {self}; choose another run.name, or unset init_from"),
        ("checkpoint", "must be another run: this one's folder is {self}; choose another run.name, or unset init_from"),
    ],
)
def test_what_is_no_other_run_is_one_line(named: str, message: str, copy: Path, stdlib_bytes: Path) -> None:
    empty, file = copy.parent / "empty", copy.parent / "file"
    empty.mkdir()
    file.write_text("")
    paths = {"data": stdlib_bytes, "empty": empty, "file": file, "self": copy}
    paths["checkpoint"] = copy / "checkpoints" / "latest"
    paths["torn"] = shutil.copytree(copy, copy.parent / "torn")
    for folder in store.steps(paths["torn"] / "checkpoints"):
        os.truncate(folder / MANIFEST, 200)
    name = "a" if named in ("self", "checkpoint") else "b"
    shutil.copytree(copy, copy.parent / "b")
    where = [f"data.sources.0.path={stdlib_bytes}", f"run.dir={copy.parent}", f"run.name={name}", "--overwrite"]
    result = launch(*where, *SMALL, f"init_from={paths[named]}")
    assert result.returncode == 2
    assert message.format(**{key: str(path) for key, path in paths.items()}) in result.stderr
    assert result.stderr.removeprefix("command line: ").startswith("init_from = ")
    assert result.stderr.count("\n") == 1
    assert (copy.parent / name / "summary.json").exists(), "the earlier run was deleted"


def test_an_override_of_nothing_takes_it_back() -> None:
    assert load(TINY, ["init_from=null"]).init_from is None
