"""The pictures of one run, from the files of its folder alone; each module draws one kind.

loss.png       loss, validation loss, and below them every event
entropy.png    attention entropy of every head over steps; the first collapsed head is named
logits.png     largest attention logit of every layer
tokens.png     how alike the tokens of a sequence are after every layer
spectra.png    spectral norm and gamma of every matrix
"""

import io
import os
from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from configs.stability import DetectorsConfig
from monitoring.crossings import detectors_of
from monitoring.history import History
from monitoring.pictures.heads import entropy_of_heads
from monitoring.pictures.layers import largest_logits, token_cosines
from monitoring.pictures.loss import loss_and_events
from monitoring.pictures.spectra import spectral_norms
from monitoring.style import LIGHT

FOLDER = "pictures"
DPI = 110

Maker = Callable[[History, DetectorsConfig], Figure | None]
MAKERS: dict[str, Maker] = {
    "loss": loss_and_events,
    "entropy": entropy_of_heads,
    "logits": largest_logits,
    "tokens": token_cosines,
    "spectra": spectral_norms,
}
"""By file stem; a maker gives None where the run has no such data."""


def draw_pictures(run_dir: Path) -> list[Path]:
    """Write `pictures/*.png` of a run, finished or not, each all or nothing; returns those that were written.

    Raises: ConfigError, DataError if the run's config.yaml is not one; OSError if the folder cannot be written.
    """
    detectors = detectors_of(run_dir)
    history = History(run_dir)
    history.update()
    written = []
    with matplotlib.rc_context(LIGHT.rc):
        for name, make in MAKERS.items():
            figure = make(history, detectors)
            if figure is not None:
                written.append(_write(figure, run_dir / FOLDER / f"{name}.png"))
    return written


def _write(figure: Figure, path: Path) -> Path:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    path.parent.mkdir(exist_ok=True)
    scratch = path.with_suffix(".tmp")
    scratch.write_bytes(buffer.getvalue())
    os.replace(scratch, path)
    return path
