"""What moved first: the places of a record that left their usual course before, or when, the alarm fired.

Every series is compared with its own course before, in units of its own spread (`stability.series.robust_z`). Ranks
that hold the same parameter are peers: where one of them moves and the others do not, the rank is named.
"""

import math
from dataclasses import dataclass

import numpy as np

from stability.record import Record, Track
from stability.series import KINDS, THRESHOLD, Movement, Series, Where, movements, series_of

SHOWN_ALIKE = 3
"""Findings shown of those of one quantity in one step."""
FROZEN = 1e-4
"""A head's query gradient over the median of its layer's heads, below which it does not learn."""
EFFECTS = ("loss", "grad_norm")
"""What moves in the end, whatever moved first."""
AUDIBLE = 1 / 2
"""Of the size of the largest movement but effects: a smaller one before it is how training goes, not its beginning."""
ENDLESS = 1e3
"""Size from which movements are alike large, as those to what is not finite are."""
EVERYWHERE = 0.5
"""Share of the gradients that move in one step when the cause is in none of them."""


@dataclass(frozen=True)
class Finding:
    """One place that moved."""

    quantity: str
    where: Where
    step: int
    z: float
    """Robust standard deviations from what was to be expected; infinite if not finite."""
    before: float
    """What was to be expected from the steps before."""
    value: float
    sentence: str
    series: str
    index: tuple[int, int]
    """(peer, place) in the series, for a picture of it."""


@dataclass(frozen=True)
class Examination:
    """What a record shows: findings by step and size, and one sentence for who has no time for them."""

    findings: list[Finding]
    conclusion: str


def examine(record: Record, limit: int = 12) -> Examination:
    """Find what moved before or with the alarm; of one quantity in one step only the largest few are kept."""
    moved = [(series, movements(series, record.alarm.step)) for series in series_of(record)]
    reference = _reference(record, moved)
    order = {name: index for index, name in enumerate(KINDS)}
    # Measurements reach further back than the steps between them: what began to move there is how training goes.
    oldest = record.alarm.step - record.header.config["monitoring"]["record_steps"]
    found = [
        finding
        for series, movement in moved
        for finding in _findings(series, movement, record, reference)
        if finding.step > oldest
    ]
    loudest = max((_size(finding) for finding in found if finding.series not in EFFECTS), default=0.0)
    found = [finding for finding in found if _size(finding) >= loudest * AUDIBLE]
    found.sort(key=lambda f: (f.step, -abs(f.z), order.get(f.series, len(order))))
    shown: list[Finding] = []
    for finding in found:
        alike = sum(other.series == finding.series and other.step == finding.step for other in shown)
        if alike < SHOWN_ALIKE:
            shown.append(finding)
    findings = [*shown[:limit], *_frozen_heads(record, shown)]
    share = max(
        (_share(series, movement, findings) for series, movement in moved if series.name == "gradient"), default=0
    )
    return Examination(findings, _collapsed_before(record) + _conclude(record, findings, share))


def _collapsed_before(record: Record) -> str:
    """A sentence on heads that had collapsed when the record begins: what moved after that may be their doing."""
    track = record.tracks.get("measured.entropy_ratio")
    if track is None or not len(track.steps) or int(track.steps[0]) >= record.alarm.step:
        return ""
    floor = record.header.config["stability"]["detectors"]["entropy"]["floor"]
    layers = sorted({int(layer) for layer, _ in np.argwhere(track.values[_first_row(track, record)] < floor)})
    if not layers:
        return ""
    names = f"layer {layers[0]}" if len(layers) == 1 else f"layers {', '.join(map(str, layers))}"
    return f"Heads of {names} had collapsed before the steps looked at (see `steadytrain watch`). After that: "


def _first_row(track: Track, record: Record) -> int:
    """The measurement at which the steps that are looked at begin."""
    oldest = record.alarm.step - record.header.config["monitoring"]["record_steps"]
    return int(min(np.searchsorted(track.steps, oldest), len(track.steps) - 1))


def _size(finding: Finding) -> float:
    return min(abs(finding.z), ENDLESS)


def _conclude(record: Record, findings: list[Finding], share: float) -> str:
    """`share`: of all gradients, those that began to move in the step of the first finding."""
    if not findings:
        return "Nothing recorded left its usual course before the alarm."
    first = findings[0]
    at_once = [finding for finding in findings if finding.step == first.step]
    on_one_rank = next((finding for finding in at_once if {"rank", "tp"} & finding.where.keys()), None)
    track = record.tracks.get("batch")
    batches = [] if track is None else track.values[track.steps == first.step].tolist()
    suspect = f": suspect batch {int(batches[0])}" if batches else ""
    if on_one_rank is not None and share < EVERYWHERE:
        return f"First, and not on its peers: {on_one_rank.sentence}."
    if first.series == "lr":
        return f"First: {first.sentence}."
    if share >= EVERYWHERE and math.isinf(first.z):
        return f"At step {first.step}, and not before, gradients of all layers stopped being finite at once."
    if share >= EVERYWHERE:
        return f"At step {first.step}, and not before, {share:.0%} of all gradients moved at once{suspect}."
    if all(finding.series in EFFECTS for finding in at_once):
        return f"At step {first.step} the {first.quantity} moved, and no part of the model before it{suspect}."
    return f"First: {first.sentence}."


def _reference(record: Record, moved: list[tuple[Series, Movement]]) -> tuple[str, int]:
    """What findings are said to be early for: (`the loss`, the step at which it moved), else the alarm."""
    for series, movement in moved:
        if series.name == "loss" and movement.row_KN.max() >= 0:
            return "the loss", int(series.steps[movement.row_KN.max()])
    return "the alarm", record.alarm.step


def _findings(series: Series, movement: Movement, record: Record, reference: tuple[str, int]) -> list[Finding]:
    """One finding for each place of a series that moved, on all of its peers or on some."""
    found = []
    for place in np.flatnonzero((movement.row_KN >= 0).any(axis=0)):
        held = np.flatnonzero(series.held_KN[:, place])
        row = min(int(movement.row_KN[k, place]) for k in held if movement.row_KN[k, place] >= 0)
        z = {int(k): float(movement.z_SKN[row, k, place]) for k in held}
        movers = [k for k in z if movement.row_KN[k, place] == row]
        calm = [k for k in z if abs(z[k]) < THRESHOLD / 2 and _are_peers(series, record, int(place), k, movers[0])]
        alone = movers if calm and len(movers) <= len(held) / 2 else []
        peer = max(movers, key=lambda k: abs(z[k]))
        before = float(movement.expected_SKN[row, peer, place])
        if before == 0 and _is_vocabulary(series, int(place)):
            continue  # none of a shard's words had occurred in the steps before
        where = {**series.places[place], series.peers: peer} if alone and series.peers else series.places[place]
        step, value = int(series.steps[row]), float(series.values_SKN[row, peer, place])
        words = (
            _place_text(where),
            series.kind.words,
            _change(before, value, series),
            _peers_text(series, record, alone),
        )
        sentence = " ".join(filter(None, words)) + f" at step {step}{_lead(series, step, reference)}"
        found.append(
            Finding(series.kind.words, where, step, z[peer], before, value, sentence, series.name, (peer, int(place)))
        )
    return found


def _are_peers(series: Series, record: Record, place: int, one: int, other: int) -> bool:
    """Whether two holders of a parameter should behave alike: shards of the vocabulary hold other words each."""
    if not _is_vocabulary(series, place):
        return True
    return record.header.ranks[one].tp == record.header.ranks[other].tp


def _is_vocabulary(series: Series, place: int) -> bool:
    parameter = str(series.places[place].get("parameter", ""))
    return series.peers == "rank" and parameter.split(".")[0] in ("embedding", "head")


def _share(series: Series, movement: Movement, findings: list[Finding]) -> float:
    """Of all gradients of all ranks, those that began to move in the step of the first finding."""
    rows = np.flatnonzero(series.steps == findings[0].step).tolist() if findings else []
    return float((movement.row_KN == rows[0]).sum() / series.held_KN.sum()) if rows else 0.0


def _frozen_heads(record: Record, known: list[Finding]) -> list[Finding]:
    """Heads whose query gradient is next to nothing, when the alarm fired, beside those of their layer."""
    track = record.tracks.get("measured.head_grad")
    if track is None or not (track.steps <= record.alarm.step).any():
        return []
    latest = track.upto(record.alarm.step)
    values_LA, step = latest.values[-1].astype(float), int(latest.steps[-1])
    found = []
    for layer, head in zip(*np.nonzero(values_LA < FROZEN * np.median(values_LA, axis=1, keepdims=True)), strict=True):
        where: Where = {"layer": int(layer), "head": int(head)}
        if any(f.series == "measured.head_grad" and f.where == where for f in known):
            continue
        usual, value = float(np.median(values_LA[layer])), float(values_LA[layer, head])
        sentence = f"layer {layer}, head {head} gets next to no gradient: {value:.2g}, its layer's heads {usual:.2g}"
        place = int(layer) * values_LA.shape[1] + int(head)
        found.append(
            Finding("query gradient", where, step, 0.0, usual, value, sentence, "measured.head_grad", (0, place))
        )
    return found


def _place_text(where: Where) -> str:
    if "parameter" in where:
        return str(where["parameter"])
    if "matrix" in where:
        return str(where["matrix"])
    if "head" in where:
        return f"layer {where['layer']}, head {where['head']}:"
    return f"layer {where['layer']}:" if "layer" in where else ""


def _change(before: float, value: float, series: Series) -> str:
    if not math.isfinite(value):
        return "is not finite"
    if series.kind.scale == "log" and before > 0 and value > 0:
        return f"x {value / before:.3g}"
    return f"from {before:.4g} to {value:.4g}"


def _peers_text(series: Series, record: Record, movers: list[int]) -> str:
    """Which peers moved while others did not; nothing if all did."""
    if not movers:
        return ""
    if series.peers == "tp":
        return f"on tensor-parallel rank {', '.join(map(str, movers))} only"
    if len(movers) > 1:
        return f"on ranks {', '.join(map(str, movers[:4]))}{', ...' if len(movers) > 4 else ''} only"
    at = record.header.ranks[movers[0]]
    return f"on rank {at.rank} only (tp {at.tp}, pp {at.pp}, dp {at.dp}; {at.host}, {at.device})"


def _lead(series: Series, step: int, reference: tuple[str, int]) -> str:
    what, at = reference
    if series.name == "loss" or at < step:
        return ""
    return f", with {what}" if at == step else f", {at - step} step{'' if at - step == 1 else 's'} before {what}"
