"""The commands that use a trained model: write text, measure its loss."""

from pathlib import Path
from typing import Annotated

import typer

from configs.errors import ConfigError
from launcher import complete

Run = Annotated[
    Path,
    typer.Argument(
        help="Folder of a run, or of one of its checkpoints.",
        metavar="RUN",
        show_default=False,
        autocompletion=complete.runs,
    ),
]
Step = Annotated[
    int | None,
    typer.Option(help="Step of the checkpoint; default: the newest good one.", min=0, autocompletion=complete.steps),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Dtype = Annotated[str | None, typer.Option(help="fp32 or bf16; default: what the run computed in.")]


def generate(
    run: Run,
    prompt: Annotated[str | None, typer.Option(help="Text to go on from; '' for a new document.")] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="File with the prompt, taken as it is; - for standard input.")
    ] = None,
    step: Step = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Most tokens; default: 100, fewer where learned positions end.", min=1)
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Divides the logits; default: 1.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from the k most probable tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the fewest tokens whose probabilities reach p.")
    ] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Take the most probable token; draw nothing.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of what is drawn.", min=0)] = 0,
    samples: Annotated[int, typer.Option(help="Continuations, side by side.", min=1)] = 1,
    tokenizer: Annotated[
        Path | None, typer.Option(help="The run's tokenizer (.model, tokenizer.json), or byte, if its data have gone.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with the ids of the tokens.")] = False,
) -> None:
    """Let a run's model go on from a prompt: to the end of the document, or for --max-tokens.

    Only what follows the prompt is printed, as it comes; several continuations when all are done.

    \b
    Examples:
      steadytrain generate runs/tiny --prompt 'def main'
      steadytrain generate runs/tiny --prompt-file prompt.txt --top-p 0.9 --samples 3
      steadytrain generate runs/tiny --prompt 'import ' --greedy --json

    JSON: {"checkpoint", "step", "prompt", "seed", "sampler", "samples": [{"tokens", "text", "ended"}, ...]}

    Exit codes: 0 written, 2 no such run, checkpoint, tokenizer or device, or options that do not go together,
    130 interrupted.
    """
    if greedy and (temperature, top_k, top_p) != (None, None, None):
        raise ConfigError("command line: --greedy: draws nothing: leave --temperature, --top-k and --top-p out")
    if greedy and samples > 1:
        raise ConfigError(f"command line: --samples = {samples}: with --greedy all are the same: leave one out")
    from inference.sampling import Sampler
    from launcher.generate import Request, read_prompt, write

    sampler = Sampler(1.0 if temperature is None else temperature, top_k, top_p, greedy)
    request = Request(read_prompt(prompt, prompt_file), sampler, max_tokens, samples, seed, as_json)
    write(request, run, step=step, device=device, dtype=dtype, model=tokenizer)


def evaluate(
    run: Run,
    data: Annotated[
        Path | None, typer.Option(help="A prepared dataset; default: the run's own data.", metavar="DIR")
    ] = None,
    split: Annotated[str, typer.Option(help="validation or train.")] = "validation",
    step: Step = None,
    all_steps: Annotated[bool, typer.Option("--all-steps", help="Every checkpoint of the run.")] = False,
    samples: Annotated[
        int | None, typer.Option(help="Sequences; default: as many as the run's own evaluations.", min=1)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Sequences at a time.", min=1)] = 8,
    device: Device = "auto",
    dtype: Dtype = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure a run's loss on prepared data: with its standard error, perplexity, and bits per byte of text.

    By default these are the samples of the run's own evaluations, and `logged` is what the run found on them.

    \b
    Examples:
      steadytrain evaluate runs/tiny
      steadytrain evaluate runs/tiny --all-steps --samples 256
      steadytrain evaluate runs/tiny --data runs/data/books --split train --json

    JSON: [{"checkpoint", "step", "loss", "standard_error", "perplexity", "bits_per_byte", "samples", "tokens", "bytes",
    "logged_val_loss"}, ...], newest first

    Exit codes: 0 measured, 2 no such run, checkpoint, data or device, or data of another tokenizer,
    130 interrupted.
    """
    if split not in ("validation", "train"):
        raise ConfigError(f"command line: --split = {split}: must be validation or train")
    if all_steps and step is not None:
        raise ConfigError("command line: --step and --all-steps: give one of them")
    from rich.console import Console

    from launcher.as_json import as_json as json
    from launcher.evaluate import Request, evaluate_run, records, table
    from launcher.standard_output import echo, printing

    request = Request(data, "train" if split == "train" else "validation", samples, batch_size, device, dtype)
    found = evaluate_run(request, run, step=step, all_steps=all_steps)
    if as_json:
        echo(json(records(found)) + "\n")
        return
    with printing():
        Console(highlight=False).print(table(found))
