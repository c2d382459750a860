"""One frame of `steadytrain watch`: lines of text that fit the terminal, from a history and where the run stands.

Letters: S steps, L layers, A heads, C columns of characters.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import numpy as np
from rich.text import Text

from launcher.jobs.standing import Standing
from launcher.jobs.status import BAD, GOOD, WAITING, duration
from launcher.watch.blocks import CROSS, cell, columns_of, means, spark
from launcher.watch.findings import Findings
from monitoring.curves import is_huge
from monitoring.history import History, Steps, Values
from monitoring.words import Weight, name_of, place_of, weight_of

STYLES: dict[Weight, str] = {"bad": "bold red", "warning": "yellow", "action": "cyan", "routine": "dim"}
MARKS: dict[Weight, str] = {"action": "*", "warning": "?", "bad": "!"}
"""Under the curve and before the event, the weightiest last: it covers the others."""
COLLAPSED, LOW, HEALTHY = "bold white on red", "yellow", "cyan"
LOW_SHARE = 0.5
LABEL = 9
"""Width of what stands left of the curve: its highest and lowest value."""
MARGIN = 13
"""Width of what stands left of what moved."""
MOST_EVENTS, FEWEST_EVENTS = 8, 3
RECENT = 50
"""Steps whose speed tells the time that is left."""


@dataclass(frozen=True)
class Plan:
    """What the run is called, how many updates it shall have, and which attempt it is."""

    name: str
    steps: int | None
    attempt: int


def frame(
    plan: Plan, standing: Standing, history: History, findings: Findings, *, width: int, height: int | None, now: float
) -> Text:
    """The frame; `height` None: as long as it is, otherwise at most so many lines. `now`: seconds since 1970."""
    head = [_header(plan, standing, history), *_damage(history), *_moves(findings, width)]
    loss = _loss(history, width, rows=3 if height is None or height >= 20 else 2)
    spectra = _spectra(findings)
    room = None if height is None else height - len(head) - len(loss) - len(spectra) - 2
    wanted = [event for event in history.events if weight_of(event) != "routine"] or history.events
    events = min(
        len(wanted), MOST_EVENTS, MOST_EVENTS if room is None else max(FEWEST_EVENTS, room - 2 - _layers(findings))
    )
    attention = _attention(findings, width, None if room is None else room - events - bool(events))
    lines = [*head, Text(), *loss, *([Text(), *attention] if attention else []), *spectra]
    if events:
        lines += [Text(), *(_event(event, now) for event in wanted[-events:])]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return Text("\n").join(lines[:height])


def _header(plan: Plan, standing: Standing, history: History) -> Text:
    state = standing.state
    style = (
        "bold green" if state in GOOD else "bold red" if state in BAD else "bold yellow" if state in WAITING else "bold"
    )
    line = Text.assemble((plan.name, "bold"), "  ", (state, style))
    if standing.detail:
        line.append(f" ({standing.detail})")
    step = history.last_step
    if plan.steps:
        line.append(f"  step {step:,} of {plan.steps:,}, {step / plan.steps:.0%}")
    elif step:
        line.append(f"  step {step:,}")
    speed = _tokens_per_s(history)
    if speed is not None:
        line.append(f"  {speed:,.0f} tokens/s")
        left = _seconds_left(plan, history, speed)
        if state == "running" and left is not None:
            line.append(f"  {duration(left)} left")
    if plan.attempt > 1:
        line.append(f"  attempt {plan.attempt}")
    return line


def _damage(history: History) -> list[Text]:
    count = history.unreadable
    text = f"{count} damaged record{'s are' if count > 1 else ' is'} left out of what follows"
    return [Text(text, "bold red")] if count else []


def _tokens_per_s(history: History) -> float | None:
    speed_S = history.metric("tokens_per_s")[1][-RECENT:]
    return float(np.median(speed_S)) if speed_S.size else None


def _seconds_left(plan: Plan, history: History, speed: float) -> float | None:
    tokens, step = history.last("tokens"), history.last_step
    if plan.steps is None or not tokens or not step or not speed > 0:
        return None
    return max(0, plan.steps - step) * tokens / step / speed


def _moves(findings: Findings, width: int) -> list[Text]:
    """What moved first, and what else did."""
    if not findings.moves:
        return [Text.assemble(("moved first  ", "bold"), findings.calm())]
    first, *rest = findings.moves
    lines = wrap(str(first), max(width - MARGIN, 20))
    return [
        Text.assemble(("moved first  ", "bold"), (lines[0], "bold red")),
        *(Text(" " * MARGIN + line, "bold red") for line in lines[1:]),
        *(Text(f"{'then':>{MARGIN - 2}}  {move}") for move in rest),
    ]


def _loss(history: History, width: int, rows: int) -> list[Text]:
    """The loss in numbers; its curve; below it, where there were alarms, actions and evaluations."""
    step_S, loss_S = history.metric("loss")
    if not step_S.size:
        return [Text("loss  no step yet")]
    columns = columns_of(step_S.size, max(width - LABEL, 1))
    mean_C = means(loss_S, columns)
    numbers = Text.assemble(("loss ", "bold"), f"{loss_S[-1]:.3f}")
    validation_S, validation = history.metric("val_loss")
    if validation_S.size:
        numbers.append(f"   v validation {validation[-1]:.3f} at step {validation_S[-1]:,}")
    for name, text in (("grad_norm", "grad norm"), ("lr", "lr")):
        value = history.last(name)
        if value is not None:
            numbers.append(f"   {text} {value:.3g}")
    finite = mean_C[np.isfinite(mean_C)]
    labels = [""] * rows
    if finite.size:
        labels[0], labels[-1] = f"{finite.max():.4g}", f"{finite.min():.4g}"
    curve = spark(mean_C, rows, log=is_huge(mean_C))
    drawn = [Text(f"{label:>{LABEL - 1}} {row}", HEALTHY) for label, row in zip(labels, curve, strict=True)]
    return [numbers, *drawn, _marks(history, step_S, columns, validation_S)]


def _marks(history: History, step_S: Steps, columns: list[tuple[int, int]], validation_S: Steps) -> Text:
    """`MARKS` and `v` for evaluation, under the column of the curve they belong to."""
    begin_C = step_S[[begin for begin, _ in columns]]
    found = [("v", "", validation_S.tolist())]
    for weight, mark in MARKS.items():
        steps = [event["step"] for event in history.events if weight_of(event) == weight]
        found.append((mark, STYLES[weight], steps))
    marks = {}
    for mark, style, steps in found:
        for step in steps:
            marks[max(0, int(np.searchsorted(begin_C, step, side="right")) - 1)] = (mark, style)
    row = Text(" " * LABEL)
    for column in range(begin_C.size):
        row.append(*marks.get(column, (" ", "")))
    return row


def _layers(findings: Findings) -> int:
    return findings.ratio_SLA.shape[1] if findings.step_S.size else 0


def _attention(findings: Findings, width: int, room: int | None) -> list[Text]:
    """A line per layer: its heads now, its lowest head over the run, when it collapsed, its largest logit."""
    layers = _layers(findings)
    if not layers:
        return []
    floor = findings.detectors.entropy.floor
    heads = min(findings.ratio_SLA.shape[2], max(4, width // 5))
    cosine = findings.cosine_S.size > 0
    strip = max(1, width - 9 - max(heads, 5) - 2 - 7 - 11 - 9 - (7 if cosine else 0))
    shown = _telling(findings, layers if room is None else max(1, room - 3))
    title = Text.assemble(
        ("attention", "bold"), f" at step {findings.step_S[-1]:,}: entropy of each head over its maximum; ",
        (CROSS, COLLAPSED), f" under {floor:.0%}",
    )  # fmt: skip
    heading = f"{'':9}{'heads':<{max(heads, 5)}}  {'lowest':>6} {'its lowest head over the run'[:strip]:<{strip}}"
    heading += f"{'since step':>11}{'logit':>9}" + (f"{'cosine':>7}" if cosine else "")
    lines = [title, Text(heading, "dim")]
    since = {crossing.layer: crossing.step for crossing in findings.collapses}
    first = findings.collapses[0].layer if findings.collapses else None
    for layer in shown:
        line = Text(f"layer {layer:<3}", "bold red" if layer == first else "")
        line.append_text(_cells(_lowest(findings.ratio_SLA[-1, layer], heads), floor))
        line.append(" " * (2 + max(0, 5 - heads)))
        line.append(f"{_percent(findings.lowest_SL[-1, layer]):>6} ")
        line.append_text(_cells(_lowest(findings.lowest_SL[:, layer], strip), floor))
        line.append(f"{since[layer]:>11,}" if layer in since else f"{'-':>11}", "bold red" if layer == first else "")
        line.append(f"{_short(_largest(findings, layer)):>9}")
        if cosine:
            line.append(f"{findings.cosine_SL[-1, layer]:>7.2f}")
        lines.append(line)
    if len(shown) < layers:
        rest = np.delete(findings.lowest_SL[-1], shown)
        lowest = f"{_percent(np.nanmin(rest))}" if np.isfinite(rest).any() else "not a number"
        lines.append(Text(f"{layers - len(shown)} more layers, lowest {lowest}", "dim"))
    return lines


def _telling(findings: Findings, most: int) -> list[int]:
    """Layers to show where there is no room for all: those that collapsed first, then the lowest now; in order."""
    lowest_L = np.nan_to_num(findings.lowest_SL[-1], nan=-1.0)
    order = dict.fromkeys([crossing.layer for crossing in findings.collapses] + np.argsort(lowest_L).tolist())
    return sorted(list(order)[:most])


def _lowest(value_S: Values, width: int) -> Values:
    """`width` columns, each the lowest of the values that it shows."""
    return np.array([np.fmin.reduce(value_S[begin:end]) for begin, end in columns_of(value_S.size, width)])


def _cells(share_C: Values, floor: float) -> Text:
    cells = Text()
    for share in share_C:
        if share < floor:
            cells.append(CROSS, COLLAPSED)
        else:
            cells.append(cell(share), HEALTHY if share >= LOW_SHARE else LOW)
    return cells


def _largest(findings: Findings, layer: int) -> float:
    if not findings.logit_S.size or layer >= findings.logit_SLA.shape[1]:
        return math.nan
    return float(np.fmax.reduce(findings.logit_SLA[-1, layer]))


def _spectra(findings: Findings) -> list[Text]:
    """The outermost matrix of sigma and of gamma."""
    return [
        Text.assemble(
            (f"{'|gamma|' if found.value < 0 else found.quantity:<9}", "bold"),
            f"largest {abs(found.value):.3g} in matrix {found.matrix}, median {found.median:.3g}",
        )
        for found in findings.matrices
    ]


def _event(event: Mapping[str, Any], now: float) -> Text:
    place = place_of(event)
    weight = weight_of(event)
    return Text.assemble(
        (MARKS.get(weight, " "), STYLES[weight]),
        f" step {event['step']:,}  {duration(now - event.get('time', now))} ago  ",
        (name_of(event), STYLES[weight]),
        f"{f' in {place}' if place else ''}: {event.get('reason', '')}",
    )


def _percent(share: float) -> str:
    return f"{share:.0%}" if math.isfinite(share) else "nan"


def _short(value: float) -> str:
    """About four characters: 0.2, 22, 4.2k, 3.0M."""
    if not math.isfinite(value):
        return str(value)
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}{letter}"
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"
