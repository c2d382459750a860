"""How much memory an export takes: a checkpoint of 1.5 billion parameters, as tp 2 x pp 2 writes it, to a Llama.

    .venv/bin/python -m benchmarks.export_memory

Nothing is trained: the four ranks' files are written with random numbers under the names, in the shapes and with the
header that the checkpoint writer gives them; sigmaReparam's gammas and sigmas too, so that there is something to fold.
The tokenizer has as many made-up pieces as the model has rows. `steadytrain export` then runs as a process of its own,
whose largest resident memory the kernel tells (file pages that are mapped at the time are in it). 9 GB of disk are
taken, and given back.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import chain, islice, product
from pathlib import Path
from string import ascii_lowercase

import torch
from sentencepiece import sentencepiece_model_pb2 as pieces
from torch import Tensor

from configs.load import load_with_origins
from configs.schema import Config
from data.tokenizer import SPACE_MARK
from formats.architectures.ours import parameter_shapes
from training.checkpoint import store
from training.checkpoint.manifest import FileRecord, Manifest, write_manifest
from training.checkpoint.tensor_file import TensorPlan, encode_header, write_file
from training.checkpoint.writer import sharding_metadata

ROOT = Path(__file__).parents[1]
TP, PP = 2, 2
VOCAB = 128_256
GIB = 2**30


def main() -> None:
    """Write the checkpoint, export it, print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--model", type=Path, default=ROOT / "configs" / "models" / "1b.yaml")
    parser.add_argument("--layers", type=int, help="fewer, to try it out")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="export-memory-") as folder:
        config = _config(arguments.model, arguments.layers, Path(folder))
        tokenizer = _tokenizer(Path(folder))
        size = _write_checkpoint(config)
        print(f"checkpoint: {size / GIB:.2f} GiB in {TP * PP} files, tp {TP} x pp {PP}, fp32")
        for dtype in ("bf16", "fp32"):
            out = Path(folder) / dtype
            seconds, peak = _export(config.run_dir, out, dtype, tokenizer)
            written = sum(path.stat().st_size for path in out.iterdir())
            print(
                f"export to {dtype}: {written / GIB:.2f} GiB in {seconds:.0f} s, at most {peak / GIB:.2f} GiB resident"
            )
            for path in out.iterdir():
                path.unlink()


def _config(model: Path, layers: int | None, folder: Path) -> Config:
    overrides = [f"run.dir={folder}", f"data.sources=[{{path: {folder / 'gone'}}}]", "model.reparam.kind=sigma"]
    overrides += [f"parallel.tp={TP}", f"parallel.pp={PP}", *([f"model.layers={layers}"] if layers else [])]
    return load_with_origins(model, overrides).resolve(TP * PP)


def _tokenizer(folder: Path) -> Path:
    """A SentencePiece model of VOCAB pieces: the special ones, bytes, and words that nobody uses."""
    model = pieces.ModelProto()
    kind = pieces.ModelProto.SentencePiece
    special = [("<unk>", kind.UNKNOWN), ("<s>", kind.CONTROL), ("</s>", kind.CONTROL)]
    special += [(f"<0x{byte:02X}>", kind.BYTE) for byte in range(256)]
    longer = ("".join(word) for word in product(ascii_lowercase, repeat=4))
    words = [(word, kind.NORMAL) for word in islice(chain(SPACE_MARK, ascii_lowercase, longer), VOCAB - len(special))]
    for score, (piece, piece_type) in enumerate([*special, *words]):
        model.pieces.add(piece=piece, score=-score / VOCAB if piece_type == kind.NORMAL else 0.0, type=piece_type)
    model.trainer_spec.model_type = model.trainer_spec.UNIGRAM
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.vocab_size = VOCAB
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    path = folder / "made-up.model"
    path.write_bytes(model.SerializeToString())
    return path


def _write_checkpoint(config: Config) -> int:
    folder = config.run_dir / store.FOLDER / "step-00000001"
    folder.mkdir(parents=True)
    files: dict[str, FileRecord] = {}
    for stage in range(PP):
        for rank in range(TP):
            name = f"shard-{stage * TP + rank + 1:05d}-model-00001-of-00001.safetensors"
            files[name] = _write_rank(folder / name, config, stage, rank)
    manifest = Manifest(
        step=1,
        created=time.time(),
        layout={"tp": TP, "pp": PP},
        config=config.model_dump(mode="json"),
        data_fingerprint="made up",
        journal={},
        files=files,
    )
    write_manifest(folder, manifest)
    return sum(record.size for record in files.values())


def _write_rank(path: Path, config: Config, stage: int, rank: int) -> FileRecord:
    """The parts of one rank: (name, its shape, where it begins in the whole)."""
    parts = sorted(_parts(config, stage, rank))
    plans = [TensorPlan(name, torch.float32, shape) for name, shape, _ in parts]
    header = encode_header(plans, sharding_metadata({name: offsets for name, _, offsets in parts}))
    return write_file(path, header, (_random(shape) for _, shape, _ in parts))


def _parts(config: Config, stage: int, rank: int) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    layers = range(config.model.layers * stage // PP, config.model.layers * (stage + 1) // PP)
    for name, shape in parameter_shapes(config.model, VOCAB, config.training.sequence_length).items():
        first = int(name.split(".")[1]) in layers if name.startswith("layers.") else None
        if not (stage == (0 if name == "embedding.weight" else PP - 1) if first is None else first):
            continue
        dim = 1 if name.endswith(("output.weight", "down.weight")) else 0
        offsets = [0] * len(shape)
        if len(shape) == 2:
            offsets[dim] = rank * shape[dim] // TP
            shape = tuple(size // TP if side == dim else size for side, size in enumerate(shape))
        elif rank > 0:
            continue  # a replicated tensor is written once
        yield f"model/{name}", shape, tuple(offsets)
        if len(shape) == 2 and rank == 0 and name != "embedding.weight" and not name.endswith(("/k", "/v", "/up")):
            layer = name.partition(".weight")[0]
            matrices = {"q": 3, "gate": 2}.get(name.partition("/")[2], 1)
            yield f"model/{layer}.gamma", (matrices,), (0,)
            yield f"spectral/{layer}/sigma", (matrices,), (0,)


def _random(shape: tuple[int, ...]) -> Tensor:
    """Random numbers, cheaply: one row of them, scaled anew for each."""
    tensor = torch.rand(shape[-1]).add_(0.5)
    return tensor if len(shape) == 1 else torch.rand(shape[0], 1) * tensor


def _export(run: Path, out: Path, dtype: str, tokenizer: Path) -> tuple[float, int]:
    """Seconds, and the largest resident memory in bytes."""
    command = [sys.executable, "-m", "launcher", "export", str(run), "--out", str(out), "--dtype", dtype]
    started = time.perf_counter()
    process = subprocess.Popen([*command, "--tokenizer", str(tokenizer)], cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(process.returncode)
    return time.perf_counter() - started, usage.ru_maxrss * 1024


if __name__ == "__main__":
    main()
