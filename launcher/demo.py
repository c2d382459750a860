"""`make demo`: the main job, by the commands a user would type.

Two datasets from the Python standard library's own source, a study of three recipes over four learning rates, one run
over four processes, the report; `runs/demo/summary.json` has the numbers.
"""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from comparison.record import read_record
from comparison.report import REPORT
from monitoring.mlflow_store import default_uri, ui_command
from monitoring.recorder import read_summary, write_json

RUNS = Path("runs")
STUDY = RUNS / "demo"
PARALLEL = STUDY / "parallel"
TP = PP = 2

STEPS = {
    "Bytes of the standard library's source": [
        "prepare", "stdlib", "--out", "runs/data/demo-bytes", "--max-bytes", "4000000",
    ],
    "The same source in 4,096 SentencePiece pieces": [
        "prepare", "stdlib", "--tokenizer", "bpe", "--vocab-size", "4096", "--out", "runs/data/stdlib-bpe",
    ],
    "Three recipes, four learning rates": ["sweep", "configs/studies/demo.yaml"],
    "One model over four processes: tensor parallel 2 x pipeline parallel 2": [
        "train", "configs/stdlib-bpe.yaml", f"parallel.tp={TP}", f"parallel.pp={PP}", "run.name=demo/parallel",
        "--overwrite",
    ],
    "The report": ["compare", str(STUDY)],
}  # fmt: skip


def main() -> int:
    """Run the demo; returns the exit code of the first command that failed, or 0."""
    console = Console(highlight=False)
    started = time.monotonic()
    for number, (title, arguments) in enumerate(STEPS.items(), 1):
        console.rule(f"[bold]{number}/{len(STEPS)}  {title}", align="left")
        console.print(f"[dim]$ {command_name()} {' '.join(arguments)}", soft_wrap=True)
        code = subprocess.run([sys.executable, "-m", "launcher", *arguments], check=False).returncode
        if code != 0:
            console.print(f"[red]steadytrain {arguments[0]} ended with exit code {code}")
            return code
    write_json(STUDY / "summary.json", summary())
    console.rule(f"[bold]Done in {time.monotonic() - started:.0f} s", align="left")
    console.print(f"Report:   {STUDY / REPORT}")
    console.print(f"Numbers:  {STUDY / 'summary.json'}")
    console.print(f"Tracking: {ui_command(default_uri(RUNS))}", soft_wrap=True)
    return 0


def command_name() -> str:
    """What to type for `steadytrain` here: the command of this environment, as seen from the working directory."""
    command = Path(sys.executable).with_name("steadytrain")
    return str(command.relative_to(Path.cwd())) if command.is_relative_to(Path.cwd()) else str(command)


def summary() -> dict[str, Any]:
    """What every trial and the parallel run came to."""
    keys = ("val_loss", "entropy_ratio", "max_logit")
    trials = []
    for trial in read_record(STUDY).trials:
        run_dir = STUDY / trial.run_dir
        ended = read_summary(run_dir)
        assert ended is not None, f"{run_dir} has no summary although the sweep succeeded"
        trials.append(
            {"recipe": trial.recipe, "lr": trial.lr, "seed": trial.seed}
            | {key: ended[key] for key in keys}
            | {"run_dir": str(run_dir)}
        )
    ended = read_summary(PARALLEL)
    assert ended is not None, f"{PARALLEL} has no summary although the run succeeded"
    parallel = {"tp": TP, "pp": PP, "val_loss": ended["val_loss"], "run_dir": str(PARALLEL)}
    return {"trials": trials, "parallel_run": parallel}


if __name__ == "__main__":
    sys.exit(main())
