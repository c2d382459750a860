"""`python -m examples.lm_eval`: write the documents of the two tasks, from the standard library's source."""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from data.corpus import CorpusFile, find

OUT = Path("runs/examples/lm_eval")
"""Where the tasks' YAML files look for the documents, from the repository's folder."""

FILES, CHARACTERS, CHOICES, SEED = 24, 1536, 4, 0


def main() -> None:
    """Write text.jsonl and next_line.jsonl."""
    parser = argparse.ArgumentParser(prog="python -m examples.lm_eval", description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the documents")
    parser.add_argument("--files", type=int, default=FILES, help="files of the standard library to take")
    arguments = parser.parse_args()
    files = last_files(arguments.files)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, documents in (("text", texts(files)), ("next_line", next_lines(files))):
        lines = [json.dumps(document, ensure_ascii=False) for document in documents]
        path = arguments.out / f"{name}.jsonl"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        Console(highlight=False).print(f"{path}: {len(lines)} documents", soft_wrap=True)


def last_files(count: int) -> list[CorpusFile]:
    """The last long ones that `prepare stdlib` would read: none of them is in a dataset with a small --max-bytes."""
    return [file for file in find(["stdlib"]) if file.size > 2 * CHARACTERS][-count:]


def texts(files: list[CorpusFile]) -> Iterator[dict[str, str]]:
    """The beginning of each file."""
    for file in files:
        yield {"file": file.name, "text": _read(file)[:CHARACTERS]}


def next_lines(files: list[CorpusFile]) -> Iterator[dict[str, object]]:
    """Two lines of each file, the line after them, and lines of other files in its place."""
    rng = random.Random(SEED)
    lines = [[line for line in _read(file).splitlines(keepends=True) if 12 < len(line) < 42] for file in files]
    for index, own in enumerate(lines):
        first = rng.randrange(len(own) - 2)
        others = rng.sample([other for other in range(len(files)) if other != index], CHOICES - 1)
        choices = [rng.choice(lines[other]) for other in others]
        answer = rng.randrange(CHOICES)
        choices.insert(answer, own[first + 2])
        yield {"context": "".join(own[first : first + 2]), "choices": choices, "answer": answer}


def _read(file: CorpusFile) -> str:
    return file.path.read_text(encoding="utf-8")


if __name__ == "__main__":
    main()
