"""`python -m examples.rank_collapse`: measure, print, and leave figures and numbers in a folder."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from configs.errors import SteadytrainError
from examples.figures import write_figure
from examples.rank_collapse import pictures
from examples.rank_collapse.collapse import Trained, train_all, unigram_loss
from examples.rank_collapse.depth import DEPTH, NORMS, SCALINGS, decoder_cosines, model_config
from examples.rank_collapse.theory import expected_cosines, measured_cosines
from examples.seeds import Interval, mean_interval
from examples.training import prepared_bytes
from monitoring.recorder import write_json

LAYERS = (4, 16, 64)
THEORY_SEEDS, DECODER_SEEDS = 40, 3
ALPHAS = {(name, layers): alpha for layers in LAYERS for name, alpha in (("1", 1.0), ("1/sqrt(L)", layers**-0.5))}


def main() -> int:
    """Run the three parts; 2 for a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m examples.rank_collapse", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/examples/rank-collapse"), help="folder for what it leaves"
    )
    out = parser.parse_args().out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    console = Console(width=120)
    try:
        theory = {key: _measure(alpha, key[1]) for key, alpha in ALPHAS.items()}
        console.print(_theory_table(theory))
        decoder = _decoder()
        console.print(_decoder_table(decoder))
        data = prepared_bytes(out / "data")
        runs, unigram = train_all(data, out / "runs"), unigram_loss(data)
        console.print(_training_table(runs, unigram))
    except SteadytrainError as error:
        console.print(str(error), markup=False)
        return 2
    write_json(out / "numbers.json", _numbers(theory, decoder, runs, unigram))
    write_figure(partial(pictures.theory_figure, theory, ALPHAS), out, "theory")
    write_figure(partial(pictures.depth_figure, decoder), out, "depth")
    write_figure(partial(pictures.training_figure, runs), out, "training")
    console.print(f"Figures and numbers: {out}", markup=False)
    return 0


def _measure(alpha: float, layers: int) -> Interval:
    return mean_interval([measured_cosines(alpha, layers, seed) for seed in range(THEORY_SEEDS)])


def _decoder() -> dict[tuple[str, str], Interval]:
    cases = [(norm, scaling) for scaling in SCALINGS for norm in NORMS]
    return {
        case: mean_interval([decoder_cosines(model_config(*case), seed) for seed in range(DECODER_SEEDS)])
        for case in cases
    }


def _theory_table(measured: dict[tuple[str, int], Interval]) -> Table:
    title = f"Cosine after the last layer: uniform attention, linear feed-forward ({THEORY_SEEDS} seeds)"
    table = Table("alpha", "layers", "measured", "expected", "measured / expected", title=title)
    for (scaling, layers), interval in measured.items():
        expected = expected_cosines(ALPHAS[scaling, layers], layers)[-1]
        last = Interval(*(end[-1] for end in interval))
        table.add_row(scaling, str(layers), last.text(4), f"{expected:.4f}", f"{last.mean / expected:.3f}")
    return table


def _decoder_table(cosines: dict[tuple[str, str], Interval]) -> Table:
    title = f"Cosine after layer {DEPTH} of the decoder at initialisation ({DECODER_SEEDS} seeds)"
    table = Table("norm", *SCALINGS, title=title)
    for norm in NORMS:
        table.add_row(norm, *(Interval(*(end[-1] for end in cosines[norm, scaling])).text(2) for scaling in SCALINGS))
    return table


def _training_table(runs: list[Trained], unigram: float) -> Table:
    heads = ("run", "token cosine by layer", "entropy / maximum by layer", "dW_Q / dW_V by layer", "validation loss")
    title = f"After {runs[0].steps_S[-1]} steps at 3e-2; byte frequencies alone have a loss of {unigram:.3f}"
    table = Table(*heads, title=title)
    for run in runs:
        rows = (run.cosine_SL[-1], run.entropy_SL[-1], run.gradient_ratio_SL[-1])
        texts = [" ".join(f"{x:{spec}}" for x in row) for row, spec in zip(rows, (".3f", ".2f", ".0e"), strict=True)]
        table.add_row(run.name, *texts, f"{run.val_loss:.3f}")
    return table


def _numbers(
    theory: dict[tuple[str, int], Interval],
    decoder: dict[tuple[str, str], Interval],
    runs: list[Trained],
    unigram: float,
) -> dict[str, Any]:
    return {
        "theory": [
            {"alpha": ALPHAS[key], "layers": key[1], "expected": expected_cosines(ALPHAS[key], key[1]).tolist()}
            | interval.json()
            for key, interval in theory.items()
        ],
        "decoder": [
            {"norm": norm, "residual": scaling} | interval.json() for (norm, scaling), interval in decoder.items()
        ],
        "training": [run.json() for run in runs],
        "unigram_loss": unigram,
    }


if __name__ == "__main__":
    raise SystemExit(main())
