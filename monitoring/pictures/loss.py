"""Loss over steps, and below it every event of the run: what happened, how often, when."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from configs.stability import DetectorsConfig
from monitoring.curves import is_huge, thin
from monitoring.history import History, Steps, Values
from monitoring.pictures.axes import headline, log_axis, step_axis
from monitoring.style import LIGHT
from monitoring.words import Weight, name_of, place_of, weight_of

MOST_LANES = 12
MOST_MARKS = 30
"""More of one weight would hide the curve they are on; their lanes show them."""
COLOURS: dict[Weight, str] = {
    "bad": LIGHT.lines[0], "warning": LIGHT.lines[4], "action": LIGHT.lines[2], "routine": LIGHT.muted,
}  # fmt: skip
MARKS: dict[Weight, str] = {"bad": "v", "warning": "v", "action": "D", "routine": "|"}
ORDER: tuple[Weight, ...] = ("bad", "warning", "action", "routine")


@dataclass
class Lane:
    """All events of one name."""

    name: str
    weight: Weight
    steps: list[int] = field(default_factory=list)
    place: str = ""
    """Where the first of them points to."""


def loss_and_events(history: History, detectors: DetectorsConfig) -> Figure | None:
    """The loss above, a lane for each kind of event below."""
    step_S, loss_S = history.metric("loss")
    if not step_S.size:
        return None
    lanes = lanes_of(history.events)
    figure = Figure(figsize=(11.5, 4.6 + 0.27 * len(lanes)))
    heights = [4.0, 0.27 * len(lanes) + 0.05] if lanes else [1.0]
    all_axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    upper, lower = all_axes[0], all_axes[-1]
    headline(figure, title(history))
    _draw_loss(upper, history, step_S, loss_S)
    _draw_marks(upper, history.events, step_S, loss_S)
    step_axis(lower, step_S)
    if lanes:
        _draw_lanes(lower, lanes)
    upper.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=6, frameon=False, borderpad=0, handletextpad=0.4)
    return figure


def title(history: History) -> str:
    """How the loss went and what was first to be wrong with it, in a sentence."""
    step_S, loss_S = history.metric("loss")
    validation_step_S, validation_S = history.metric("val_loss")
    validation = f", validation {validation_S[-1]:.3f}" if validation_step_S.size else ""
    text = f"Loss {loss_S[-1]:.3f}{validation} at step {step_S[-1]:,}"
    alarms = [event for event in history.events if event["kind"] in ("alarm", "diverged")]
    if not alarms:
        return f"{text}; no alarm"
    place = place_of(alarms[0])
    first = f"{name_of(alarms[0])}{f' in {place}' if place else ''} at step {alarms[0]['step']:,}"
    return f"{text}; first alarm: {first}" if len(alarms) > 1 else f"{text}; one alarm: {first}"


def lanes_of(events: list[dict[str, Any]]) -> list[Lane]:
    """The events by name: the weightiest kinds first, in each the earliest first; never more than a picture holds."""
    lanes: dict[str, Lane] = {}
    for event in events:
        name = name_of(event)
        lanes.setdefault(name, Lane(name, weight_of(event), place=place_of(event))).steps.append(event["step"])
    ordered = sorted(lanes.values(), key=lambda lane: (ORDER.index(lane.weight), min(lane.steps)))
    if len(ordered) <= MOST_LANES:
        return ordered
    rest = ordered[MOST_LANES - 1 :]
    return [
        *ordered[: MOST_LANES - 1],
        Lane("other events", rest[0].weight, [at for lane in rest for at in lane.steps]),
    ]


def _draw_loss(axes: Axes, history: History, step_S: Steps, loss_S: Values) -> None:
    finite_S = np.isfinite(loss_S)
    axes.plot(*thin(step_S[finite_S], loss_S[finite_S]), color=LIGHT.lines[2], linewidth=1.0, label="training loss")
    validation_step_S, validation_S = history.metric("val_loss")
    if validation_step_S.size:
        axes.plot(
            validation_step_S,
            validation_S,
            color=LIGHT.ink,
            marker="o",
            markersize=5,
            linewidth=1.4,
            label="validation loss",
        )
    if is_huge(loss_S):
        log_axis(axes)
    axes.set_ylabel("loss, nats per token" + (" (log scale)" if is_huge(loss_S) else ""))
    if not finite_S.all():
        gone_S = step_S[~finite_S]
        axes.plot(
            gone_S, np.ones(gone_S.size), "x", color=LIGHT.lines[0], markersize=9, markeredgewidth=2.4, clip_on=False,
            transform=axes.get_xaxis_transform(), label="loss is not a finite number",
        )  # fmt: skip


def _draw_marks(axes: Axes, events: list[dict[str, Any]], step_S: Steps, loss_S: Values) -> None:
    """Alarms and actions on the curve, where they happened."""
    labels: dict[Weight, str] = {"bad": "alarm", "warning": "warning", "action": "action taken"}
    counted = Counter(weight_of(event) for event in events)
    for weight, label in labels.items():
        at = sorted({event["step"] for event in events if weight_of(event) == weight})
        if not 0 < len(at) <= MOST_MARKS or not np.isfinite(loss_S).any():
            continue
        heights = np.interp(at, step_S[np.isfinite(loss_S)], loss_S[np.isfinite(loss_S)])
        axes.plot(
            at, heights, MARKS[weight], color=COLOURS[weight], markersize=8, markeredgecolor=LIGHT.paper, zorder=4,
            label=f"{label} ({counted[weight]})",
        )  # fmt: skip


def _draw_lanes(axes: Axes, lanes: list[Lane]) -> None:
    for row, lane in enumerate(lanes):
        axes.plot(
            lane.steps,
            [row] * len(lane.steps),
            MARKS[lane.weight],
            color=COLOURS[lane.weight],
            markersize=7,
            clip_on=False,
        )
        if lane.place:
            _write_place(axes, row, lane)
    axes.set_yticks(range(len(lanes)), [f"{lane.name} ({len(lane.steps)})" for lane in lanes])
    for lane, label in zip(lanes, axes.get_yticklabels(), strict=True):
        label.set_color(COLOURS[lane.weight])
    axes.set_ylim(len(lanes) - 0.5, -0.5)
    axes.spines["left"].set_visible(False)


def _write_place(axes: Axes, row: int, lane: Lane) -> None:
    """Where the first of a lane points to, in the widest gap between its marks."""
    left, right = axes.get_xlim()
    marks = sorted({*lane.steps})
    gaps = np.diff([left, *marks, right])
    widest = int(gaps.argmax())
    axes.annotate(
        lane.place if len(marks) == 1 else f"first: {lane.place}",
        (marks[widest - 1] if widest else marks[0], row),
        xytext=(9 if widest else -9, 0),
        textcoords="offset points",
        ha="left" if widest else "right",
        va="center",
        color=COLOURS[lane.weight],
    )
