"""What the loop tells the outside: the run folder, the tracker and the progress bar, on the logging rank only."""

import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Any, Literal, Self

from configs.errors import SteadytrainError
from configs.schema import Config
from monitoring.alerts import Alerts
from monitoring.measure import Measurement
from monitoring.recorder import Recorder, describe, last_metrics, read_stopped, read_summary
from monitoring.tracker import Tracker
from parallel.clock import Part
from training.checkpoint.saver import Resumed
from training.meter import Meter
from training.progress import TrainingProgress

Status = Literal["finished", "diverged", "stopped"]


@dataclass(frozen=True)
class Summary:
    """How a run ended, as `summary.json` has it. Entropy and logits are of the last measured step (None: never)."""

    status: Status
    steps: int
    initial_loss: float
    val_loss: float
    entropy_mean: float | None
    entropy_ratio: float | None
    max_logit: float | None
    tokens_per_s: float
    wall_s: float
    parameters: int
    peak_memory_bytes: int | None
    """Largest over ranks, of the last attempt (`training.reductions.peak_memory`)."""


class Journal:
    """One line per step, arrays of measured steps, and the summary; silent where `enabled` is false."""

    def __init__(
        self, config: Config, parameters: int, meter: Meter, resumed: Resumed | None, *, enabled: bool
    ) -> None:
        self._config, self._parameters, self._meter = config, parameters, meter
        self._recorder = _open_recorder(config) if enabled else None
        self._progress = TrainingProgress(config.run.name, config.training.steps, enabled=enabled)
        self._tokens_per_step = config.training.global_batch_size * config.training.sequence_length
        self._started = time.perf_counter()
        self._spent: Counter[Part] = Counter()  # seconds of the steps since the last line that told them
        self._laps = 0
        self._last: dict[str, float] = resumed.journal["last"] if resumed else {}
        self._initial_loss: float = resumed.journal["initial_loss"] if resumed else math.nan
        self._first_step = self._steps = resumed.step if resumed else 0
        self._earlier_end = read_summary(config.run_dir) if enabled and resumed is not None else None
        if self._recorder is not None and resumed is not None:
            self._recorder.resume(resumed.step)
            self._recorder.event(resumed.step, "resume", resumed.message)
        elif self._recorder is not None and last_metrics(config.run_dir) is not None:
            self._recorder.resume(0)
            self._recorder.event(0, "restart", "killed before its first checkpoint: begins again")

    def __enter__(self) -> Self:
        self._progress.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.__exit__(kind, error, at)
        if self._recorder is None or kind is None:
            return
        stopped = read_stopped(self._config.run_dir)
        if stopped is None:
            self._recorder.close("failed", "" if error is None else describe(error))
        else:  # ended by its sweep, which has judged it hopeless: no failure
            self.stopping(self._steps, stopped["reason"])
            self._recorder.close("stopped", stopped["reason"])

    def step(
        self,
        step: int,
        *,
        loss: float,
        grad_norm: float,
        lr: float,
        seconds: float,
        measured: Measurement | None,
        val_loss: float | None,
        split: Mapping[Part, float] | None,
        more: Mapping[str, float],
    ) -> None:
        """Record update `step` (from 1), which took `seconds` without evaluation and bookkeeping.

        `split`: what the clock's last lap went to, in seconds; lines of measured and evaluated steps have its mean over
        the steps since the one before; `more`: `sharpness` and `qk_clipped` of a run that has them.
        """
        tokens_per_s = self._tokens_per_step / seconds
        rates = self._meter.rates(tokens_per_s)
        self._steps = step
        self._initial_loss = loss if step == 1 else self._initial_loss
        extra = {} if val_loss is None else {"val_loss": val_loss}
        if measured is not None:
            self._last = measured.aggregates()
            extra |= self._last
        if self._recorder is not None:
            tokens = step * self._tokens_per_step
            line = {"tokens": tokens, "loss": loss, "grad_norm": grad_norm, "lr": lr, "tokens_per_s": tokens_per_s}
            if split is not None:
                self._spent.update(split)
                self._laps += 1
            times = self._mean_split() if extra else {}  # lines with more than every step's numbers; others stay short
            self._recorder.log(step, **line, **rates, **more, **extra, **times)
            if measured is not None:
                self._recorder.signals(step, **measured.arrays())
        self._progress.update(step, loss, tokens_per_s, self._last.get("entropy_ratio"), rates.get("mfu"))

    def _mean_split(self) -> dict[str, float]:
        """Seconds per step that each part of the steps since the last such line took."""
        times = {f"time/{part}": round(spent / self._laps, 6) for part, spent in self._spent.items()}
        self._spent.clear()
        self._laps = 0
        return times

    def event(self, step: int, kind: str, reason: str, **details: Any) -> None:
        """Record what the watch has to say of update `step`."""
        if self._recorder is not None:
            self._recorder.event(step, kind, reason, **details)
            if kind in ("alarm", "rollback", "lower_lr"):
                self._progress.say(f"step {step}: {details.get('detector', kind)}: {reason}")

    def diverged(self, step: int, reason: str, loss: float, grad_norm: float) -> None:
        """Record that training does not go on after update `step`."""
        self.event(step, "diverged", reason, loss=loss, grad_norm=grad_norm)

    def rolled_back(self, step: int, back: Resumed, reason: str) -> None:
        """Record that training goes on from a checkpoint; lines of later steps go."""
        self._last, self._steps = back.journal["last"], back.step
        self._mean_split()  # of steps that are undone
        if self._recorder is not None:
            self._recorder.rollback(back.step)
        self.event(step, "rollback", f"{reason}; {back.message}", to=back.step)

    def stopping(self, step: int, reason: str | None) -> None:
        """Record that training ends early, after update `step`; `reason`: what this rank was told, if it was."""
        if self._recorder is not None:
            self._recorder.event(step, "stop", reason or "another rank was asked to stop")

    def report(self, step: int, kind: str, message: str) -> None:
        """Record what a checkpoint's writer says, from its thread."""
        if self._recorder is not None:
            self._recorder.event(step, kind, message)
            if kind == "checkpoint_failed":
                self._progress.say(f"step {step}: no checkpoint: {message}")

    def state(self) -> dict[str, Any]:
        """What a resumed run's journal needs to go on (`Resumed.journal`)."""
        return {"initial_loss": self._initial_loss, "last": self._last}

    def finish(self, status: Status, val_loss: float, peak_memory_bytes: int | None) -> Summary:
        """Write the summary and close the record; a run that stopped early has no summary, since it goes on."""
        wall_s = time.perf_counter() - self._started
        summary = Summary(
            status=status,
            steps=self._steps,
            initial_loss=self._initial_loss,
            val_loss=val_loss,
            entropy_mean=self._last.get("entropy_mean"),
            entropy_ratio=self._last.get("entropy_ratio"),
            max_logit=self._last.get("max_logit"),
            tokens_per_s=(self._steps - self._first_step) * self._tokens_per_step / wall_s,
            wall_s=wall_s,
            parameters=self._parameters,
            peak_memory_bytes=peak_memory_bytes,
        )
        if self._earlier_end is not None and self._earlier_end["steps"] == self._first_step == self._steps:
            # Nothing was left to do: what the run cost is known from when it was done.
            summary = replace(
                summary,
                tokens_per_s=self._earlier_end["tokens_per_s"],
                wall_s=self._earlier_end["wall_s"],
                peak_memory_bytes=self._earlier_end.get("peak_memory_bytes"),
            )
        if self._recorder is not None:
            if status != "stopped":
                self._recorder.summary(asdict(summary))
                self._draw()
            self._recorder.close(status)
        return summary

    def _draw(self) -> None:
        """The pictures of the run, before the tracker sends them. A disk that is full costs them, not the run."""
        if not self._config.monitoring.pictures:
            return
        from monitoring.pictures import draw_pictures  # brings matplotlib

        try:
            draw_pictures(self._config.run_dir)
        except (OSError, SteadytrainError) as error:
            self.event(self._steps, "pictures_failed", str(error))


def _open_recorder(config: Config) -> Recorder:
    """The run folder, the tracker, and who is told of events."""
    alerts = Alerts(config.alerts, config.run_dir)
    return Recorder(config.run_dir, Tracker.open(config, config.run_dir, alerts), alerts)
