"""The commands that take models out, and bring them in."""

import re
import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from configs.errors import ConfigError
from launcher import complete

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def export(
    run: Annotated[
        Path,
        typer.Argument(
            help="Run folder, one of its checkpoints, or plain weights exported before.",
            metavar="RUN",
            autocompletion=complete.runs,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write: a new one, or an empty one.", show_default=False)],
    to: Annotated[
        Literal["hf", "plain"],
        typer.Option(help="hf: a model of transformers; plain: folded weights under our names."),
    ] = "hf",
    step: Annotated[
        int | None,
        typer.Option(help="Step of the checkpoint; default: the newest.", min=0, autocompletion=complete.steps),
    ] = None,
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"] | None,
        typer.Option(help="Of the weights; default: the run's training.precision.", show_default=False),
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest file of weights, such as 500MB or 4GiB.")] = "2GB",
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="The tokenizer's file, or byte, where the run's data are gone.", show_default=False),
    ] = None,
    log_to_mlflow: Annotated[
        bool, typer.Option("--log-to-mlflow", help="Log the folder to the run's MLflow run, as a model.")
    ] = False,
    register: Annotated[
        str | None, typer.Option(help="Register it under this name, too.", metavar="NAME", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a run's weights as a folder that others open: gamma / sigma folded in, whole whatever the layout was.

    A model that a stock architecture of transformers computes opens with AutoModelForCausalLM and AutoTokenizer,
    without code of ours; of another one, --to hf says which keys stand in the way. Memory holds one tensor at a time.

    \b
    Examples:
      steadytrain export runs/tiny --out exported/tiny
      steadytrain export runs/tiny --step 1000 --dtype bf16 --out exported/tiny-1000
      steadytrain export runs/tiny --to plain --out exported/tiny-plain
      steadytrain export runs/tiny --out exported/tiny --log-to-mlflow --register tiny

    JSON: {"folder", "checkpoint", "step", "architecture", "dtype", "parameters", "bytes", "vocab_size", "passed_over",
    "unchecked"}; with --log-to-mlflow also "mlflow".

    Exit codes: 0 written, 1 crashed, 2 no good checkpoint, no architecture for it, no tokenizer, or no such place,
    130 interrupted.
    """
    from exchange.export import Wanted
    from launcher.export import run_export
    from launcher.train import sigterm_exits

    if register is not None and not log_to_mlflow:
        raise ConfigError(f"command line: --register = {register}: needs --log-to-mlflow")
    command = shlex.join(["steadytrain", *sys.argv[1:]])
    wanted = Wanted(run, out, to, step, dtype, _bytes(max_shard_size), tokenizer, command)
    with sigterm_exits():
        typer.echo(run_export(wanted, log_to_mlflow=log_to_mlflow, register=register, as_json=as_json))


def import_(
    folder: Annotated[Path, typer.Argument(help="Hugging Face checkpoint on disk.", metavar="DIR")],
    out: Annotated[Path, typer.Option(help="File to write.", metavar="model.yaml", show_default=False)],
) -> None:
    """Write the configuration of a run that starts from a Hugging Face checkpoint: extend it, and add data.

    Weights stay where they are: init_from = hf:DIR reads them when the run begins, in any layout.

    \b
    Examples:
      steadytrain import llama-1b --out llama-1b.yaml
      steadytrain train llama-1b.yaml 'data.sources=[{path: data/books}]' model.reparam.kind=sigma

    Exit codes: 0 written, 1 crashed, 2 a checkpoint that cannot be expressed here, or a file that is there already.
    """
    from exchange.model_file import write_model_file

    typer.echo(write_model_file(folder, out))


def _bytes(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,18})\s*([A-Za-z]*)", text.strip())
    if found is None or found[2].upper() not in UNITS or int(found[1]) == 0:
        raise ConfigError(f"command line: --max-shard-size = {text}: must be a size such as 500MB, 2GB or 4GiB")
    return int(found[1]) * UNITS[found[2].upper()]
