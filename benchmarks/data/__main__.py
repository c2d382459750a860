"""What data cost: `prepare` beside SentencePiece's encoder, and the loader at 1, 10 and 100 GB of indexed tokens.

    .venv/bin/python -m benchmarks.data
    .venv/bin/python -m benchmarks.data --quick
    .venv/bin/python -m benchmarks.data --parts loader --gigabytes 1 100

**prepare**: MB of text per second on the standard library's sources, with 1 and 2 workers, and `sp.encode` in a loop
over the same documents; the best of the repeats. `of_ideal` is the rate over that of the loop times the workers. The
loop only encodes: reading, splitting, end-of-document ids, writing and hashing are in `prepare` alone, and the start of
its workers too. `cpu_of_loop` is CPU time, of workers too, over the loop's: what a busy machine disturbs least.

**loader**: a fresh process opens a dataset and takes batches from all over it. Tokens are a hole in a sparse file, so
no disk is waited for; the index is a real one, dropped from the page cache before. `imports` is what the interpreter
with numpy and torch takes before there is any data; `start`, `read` (after all batches), `located` (after looking up
documents of samples) and `peak` are resident memory beyond that, mapped files included. `needed_per_s` is what a rank
can ask for at most: a model of 125M parameters at the full peak rate of an H100, computed and not measured.
"""

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.data.loader import SEQUENCE_LENGTH, run_loader
from benchmarks.data.preparation import encoder_loop, preparing, train_tokenizer
from benchmarks.data.sparse import VOCABULARY, forget, make_sparse
from configs.schema import ModelConfig
from model.flops import training_flops
from monitoring.devices import DEVICES

PARTS = ("prepare", "loader")
START_LIMIT_S, MEMORY_LIMIT_MB = 2.0, 200.0


def main() -> None:
    """Measure, print and save."""
    arguments = _arguments()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    console, found = harness.console(), {}
    for part in arguments.parts:
        rows = found[part] = []
        for row in {"prepare": _prepare, "loader": _loader}[part](arguments):
            rows.append(row)
            console.print("  ".join(f"{name} {_short(value)}" for name, value in row.items()))
            harness.save(arguments.out, "data", [], **found)
    if "prepare" in found:
        console.print(harness.table("prepare", found["prepare"]))
    if "loader" in found:
        console.print(harness.table("loader", _turned(found["loader"])))
    for row in found.get("loader", []):
        good = row["start_s"] <= START_LIMIT_S and row["peak_mb"] <= MEMORY_LIMIT_MB
        limits = f"{START_LIMIT_S:g} s and {MEMORY_LIMIT_MB:g} MiB"
        console.print(f"{row['gigabytes']:g} GB: {'within' if good else 'NOT within'} {limits}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--gigabytes", nargs="+", type=float, default=[1, 10, 100])
    parser.add_argument("--megabytes", type=float, default=16.0, help="of text, for prepare")
    parser.add_argument("--repeats", type=int, default=3, help="of prepare and of the encoder's loop, in turn")
    parser.add_argument("--steps", type=int, default=300, help="batches that the loader gives")
    parser.add_argument("--folder", type=Path, help="for datasets that are made, 530 MB (default: a temporary one)")
    parser.add_argument("--quick", action="store_true", help="little of everything: whether it runs, not what it finds")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/data.json"))
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.gigabytes, arguments.megabytes, arguments.repeats, arguments.steps = [0.5, 2], 4.0, 1, 20
    return arguments


def _prepare(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The best of the repeats of each, taken in turn."""
    with tempfile.TemporaryDirectory() as folder:
        model = train_tokenizer(Path(folder) / "model", min(arguments.megabytes, 4.0))
        best: dict[str, dict[str, Any]] = {}
        for _ in range(arguments.repeats):
            rows = [encoder_loop(model, arguments.megabytes)]
            rows += [preparing(model, arguments.megabytes, workers) for workers in (1, 2)]
            for row in rows:
                key = f"{row['what']} {row['workers']}"
                best[key] = min(best.get(key, row), row, key=lambda one: one["seconds"])
    loop = best["sp.encode in a loop 1"]
    for row in best.values():
        ideal, cpu = loop["mb_per_s"] * row["workers"], loop["cpu_s_per_mb"]
        yield row | {"of_ideal": row["mb_per_s"] / ideal, "cpu_of_loop": row["cpu_s_per_mb"] / cpu}


def _loader(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for gigabytes in arguments.gigabytes:
            place = Path(folder) / f"{gigabytes:g}"
            documents = make_sparse(place, int(gigabytes * 1e9))
            forget(place)
            row = run_loader(place, arguments.steps)
            yield {"gigabytes": gigabytes, "documents": documents, **row, "needed_per_s": _needed()}
            shutil.rmtree(place)


def _turned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per quantity and a column per size: there are too many quantities for columns."""
    sizes = [f"{row['gigabytes']:g} GB" for row in rows]
    names = [name for name in rows[0] if name != "gigabytes"]
    return [{"": name} | {size: row[name] for size, row in zip(sizes, rows, strict=True)} for name in names]


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


def _needed() -> float:
    """Samples per second that one rank can ask for at most."""
    model = ModelConfig(layers=12, hidden_size=768, heads=12)
    flops = training_flops(model, VOCABULARY, SEQUENCE_LENGTH).total
    return DEVICES["h100"].tflops["bf16"] * 1e12 / flops / SEQUENCE_LENGTH


if __name__ == "__main__":
    main()
