"""The commands that the documentation prints: found, and run as a reader would."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHELLS = {"", "sh", "console"}
"""Languages of blocks that hold commands; without one, or `console`, they may hold output too."""
PROGRAMS = ("steadytrain", "python", "make", "mlflow", "torchrun")
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^(?P=indent)```", re.M | re.S
)
INLINE = re.compile(r"`((?:\.venv/bin/)?steadytrain [a-z][^`]*)`")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    language: str
    title: str | None
    text: str

    def commands(self) -> Iterator[str]:
        """Its commands, one line each, without prompt and comment; output that stands beside them is passed over."""
        for line in self.text.replace("\\\n", " ").splitlines():
            if self.language == "console" and not line.startswith("$ "):
                continue
            command = line.removeprefix("$ ").strip()
            if self.language == "sh" or re.match(rf"(\w+=\S+ )*(\.venv/bin/)?({'|'.join(PROGRAMS)})( |$)", command):
                yield command


def pages() -> list[Path]:
    """Every page that a reader may copy a command from."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    for folder in ("docs", "examples", "cluster", "benchmarks"):
        found += sorted((ROOT / folder).rglob("*.md"))
    return [page for page in found if ".local" not in page.parts]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in its order."""
    name, text = page.relative_to(ROOT).as_posix(), page.read_text(encoding="utf-8")
    return [Block(name, fence["language"], fence["title"], fence["text"]) for fence in FENCE.finditer(text)]


def commands(page: Path) -> list[str]:
    """Every command in the fenced blocks of a page."""
    return [command for block in blocks(page) if block.language in SHELLS for command in block.commands()]


def inline_commands(page: Path) -> list[str]:
    """Commands within sentences; they may be in part only."""
    return INLINE.findall(FENCE.sub("", page.read_text(encoding="utf-8")))


def words(command: str) -> list[str]:
    """A command's words without variables before it, comment, pipe, `.venv/bin/` and `...` for what is left out."""
    parts = shlex.split(command, comments=True)
    while parts and re.fullmatch(r"\w+=\S*", parts[0]):
        parts = parts[1:]
    for sign in ("|", ">", "&&", ";"):
        parts = parts[: parts.index(sign)] if sign in parts else parts
    if not parts:
        return []
    return [parts[0].removeprefix(".venv/bin/"), *(part for part in parts[1:] if part != "...")]


def workplace(folder: Path) -> Path:
    """A folder like a fresh clone after its installation: everything of the checkout but what runs leave."""
    for entry in ROOT.iterdir():
        if entry.name not in ("runs", "site", ".git"):
            (folder / entry.name).symlink_to(entry)
    return folder


def run(command: str, folder: Path, environment: dict[str, str], timeout: float) -> str:
    """Run a line in bash; its output. AssertionError with the output, if it fails."""
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, f"{command}\nended with {done.returncode}:\n{output}"
    return output


NUMBER = r"[-\d,.]*\d[\d,.]*(?:e[-+]?\d+)?[KMk]?"
CURVE = "▁▂▃▄▅▆▇█\u00d7?"


def says(output: str, line: str) -> bool:
    """Whether an output has what a printed line says: its words; any number for a number, any curve for a curve.

    `...` stands for anything; how words are spaced, or wrapped, does not matter.
    """
    parts = re.split(rf"({NUMBER}|\.\.\.|[{CURVE}]+|\s+)", line.strip())
    return re.search("".join(map(_pattern, filter(None, parts))), output) is not None


def _pattern(part: str) -> str:
    if part == "...":
        return ".*"
    if part.isspace():
        return r"\s+"
    if re.fullmatch(NUMBER, part):
        return NUMBER
    if re.fullmatch(rf"[{CURVE}]+", part):
        return rf"[{CURVE}]+"
    return re.escape(part)
