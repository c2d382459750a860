"""`steadytrain generate`: what a run's model writes after a prompt."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from configs.errors import ConfigError
from exchange.origin import tokenizer_of, unchecked
from exchange.plain import PlainWeights, open_run
from inference.generate import Continuation, generate, tokens_to_make
from inference.load import load_decoder, place
from inference.room import require_room
from inference.sampling import Sampler
from launcher.as_json import as_json
from launcher.passed_over import tell_passed_over, tell_unchecked
from launcher.standard_output import echo


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    prompt: str
    sampler: Sampler
    max_tokens: int | None
    samples: int
    seed: int
    as_json: bool

    @property
    def streams(self) -> bool:
        """Whether text is shown as it comes: several continuations are shown one after the other, at the end."""
        return self.samples == 1 and not self.as_json


def read_prompt(text: str | None, file: Path | None) -> str:
    """The prompt, or a file's text as it is; `-`: standard input's. Raises: ConfigError unless there is just one."""
    if text is not None and file is None:
        return _unicode(text)
    if text is not None or file is None:
        raise ConfigError("command line: give one of --prompt TEXT and --prompt-file FILE (- for standard input)")
    try:
        return (sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()).decode()
    except OSError as error:
        raise ConfigError(f"command line: --prompt-file = {file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"command line: --prompt-file = {file}: is no UTF-8 text: byte {error.start}") from None


def _unicode(text: str) -> str:
    """An argument; Python has bytes of it that are no UTF-8 as lone surrogates. Raises: ConfigError if there are."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        first = len(text[: error.start].encode())
        raise ConfigError(f"command line: --prompt: is no UTF-8 text: byte {first}") from None
    return text


def write(request: Request, run: Path, *, step: int | None, device: str, dtype: str | None, model: Path | None) -> None:
    """Print what is asked for. `model`: of the tokenizer, if the run's data have gone."""
    weights = open_run(run, step)
    tell_passed_over(weights.passed_over)
    where = place(weights.config, device, dtype)
    tokenizer = tokenizer_of(weights, model)
    tell_unchecked(unchecked(weights, model))
    prompt = tokenizer.encode(request.prompt).tolist() or [tokenizer.eod]  # a document follows the end of another
    made = tokens_to_make(weights.config, len(prompt), request.max_tokens)
    length = len(prompt) + made - 1
    require_room(weights, where, tokenizer.vocab_size, samples=request.samples, length=length)
    _say_if_longer_than_trained(weights, length)
    continuations = generate(
        load_decoder(weights, tokenizer.vocab_size, where, length=length),
        tokenizer,
        prompt,
        request.sampler,
        samples=request.samples,
        max_tokens=made,
        seed=request.seed,
        show=_show if request.streams else _show_nothing,
    )
    if request.as_json:
        _print_json(request, weights, continuations)
    elif request.streams:
        echo("\n")
    else:
        for number, continuation in enumerate(continuations, 1):
            echo(f"--- {number} of {request.samples}\n{continuation.text}\n")


def _say_if_longer_than_trained(weights: PlainWeights, length: int) -> None:
    trained = weights.config.training.sequence_length
    if length > trained:
        typer.echo(
            f"prompt and text may take {length} tokens: the model was trained on sequences of {trained}, "
            "and what comes after so many may be worse",
            err=True,
        )


def _show(_: int, piece: str) -> None:
    echo(piece)


def _show_nothing(_: int, piece: str) -> None:
    pass


def _print_json(request: Request, weights: PlainWeights, continuations: list[Continuation]) -> None:
    found = {
        "checkpoint": str(weights.folder),
        "step": weights.manifest.step,
        "prompt": request.prompt,
        "seed": request.seed,
        "sampler": asdict(request.sampler),
        "samples": [asdict(continuation) for continuation in continuations],
    }
    echo(as_json(found) + "\n")
