"""`steadytrain spike`: the forensic records of a run, what moved first in one, its batch, a picture, and a rerun."""

import math
import time
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from configs.errors import ConfigError, DataError
from launcher.run_folder import CONFIG

if TYPE_CHECKING:
    from stability.culprit import Examination
    from stability.record import Record
    from stability.replay import Comparison, Rerun

LAYOUTS = ("same", "single", "both")
WIDTH = 120
"""Of tables that go to a file or a pipe."""
CHARACTERS = 300
"""Of each sample's text that are shown."""


def find(run_dir: Path) -> list[str]:
    """The ids of a run's records, by step.

    Raises: ConfigError if the folder is no run; DataError if it has no record.
    """
    if not run_dir.is_dir():
        raise ConfigError(f"{run_dir}: no such folder; give the folder of a run, such as runs/tiny")
    if not (run_dir / CONFIG).is_file():
        raise ConfigError(f"{run_dir}: is no run (there is no {CONFIG}); give the folder of a run")
    ids = sorted(path.stem for path in (run_dir / "spikes").glob("*.npz"))
    if not ids:
        raise DataError(f"{run_dir}: has no forensic records: no alarm went off, or monitoring.records = 0")
    return ids


def choose(run_dir: Path, ids: list[str], wanted: str) -> str:
    """The id that was meant: in full, or a beginning that only one has, such as the step. Raises: ConfigError."""
    if wanted in ids:
        return wanted
    by_step = [name for name in ids if wanted.isdecimal() and int(name.split("-")[0]) == int(wanted)]
    meant = by_step or [name for name in ids if not wanted.isdecimal() and name.startswith(wanted)]
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise ConfigError(f"{run_dir}: {wanted} may be {' or '.join(meant)}; give more of it")
    nearest = get_close_matches(wanted, ids, 1, cutoff=0.0)
    raise ConfigError(f"{run_dir}: has no record {wanted}; did you mean {nearest[0]}?")


def listed(run_dir: Path, ids: list[str]) -> list[dict[str, Any]]:
    """What scripts may want to know of records. Raises: DataError if one is damaged."""
    from stability.record import Record, path_of

    return [_described(name, Record.read(path_of(run_dir, name))) for name in ids]


def examined(run_dir: Path, name: str) -> dict[str, Any]:
    """The same of one record, and what moved. Raises: DataError if it is damaged."""
    from dataclasses import asdict

    from stability.culprit import examine
    from stability.record import Record, path_of

    record = Record.read(path_of(run_dir, name))
    seen = examine(record)
    findings = [asdict(finding) for finding in seen.findings]
    return _described(name, record) | {"conclusion": seen.conclusion, "findings": findings}


def _described(name: str, record: "Record") -> dict[str, Any]:
    alarm = record.alarm
    return {
        "id": name,
        "step": alarm.step,
        "severity": alarm.severity,
        "detector": alarm.detector,
        "where": alarm.where,
        "reason": alarm.reason,
    }


def listing(run_dir: Path, ids: list[str]) -> Table:
    """One row per record."""
    from stability.record import Record, path_of

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("id", "step", "severity", "where", "reason"):
        shown.add_column(heading, no_wrap=heading in ("id", "step"), justify="right" if heading == "step" else "left")
    for name in ids:
        alarm = Record.read(path_of(run_dir, name)).alarm
        where = ", ".join(f"{key} {value}" for key, value in alarm.where.items()) or "-"
        shown.add_row(name, f"{alarm.step:,}", alarm.severity, where, alarm.reason)
    return shown


def show(run_dir: Path, name: str, console: Console, *, samples: int, replay: bool, layout: str) -> None:
    """Print one record: what it is of, what moved first, the batch; draw it; rerun it if asked.

    Raises: DataError if the record is damaged; as `launcher.replay.rerun`.
    """
    from stability.culprit import examine
    from stability.picture import draw
    from stability.record import Record, path_of

    record = Record.read(path_of(run_dir, name))
    seen = examine(record)
    _show_header(record, run_dir, console)
    _show_movers(seen, console)
    text_of = _reader(record, console)
    _show_batch(record, console, samples, text_of)
    picture = path_of(run_dir, name).with_suffix(".png")
    try:
        draw(record, seen, picture)
        console.print(f"\npicture: {picture}", soft_wrap=True)
    except OSError as error:  # of somebody else's run
        console.print(f"\nno picture: cannot write {picture}: {error.strerror}", soft_wrap=True)
    if replay:
        _replay(record, run_dir, console, layout, text_of)


def _show_header(record: "Record", run_dir: Path, console: Console) -> None:
    header, parallel = record.header, record.header.config["parallel"]
    layout = " x ".join(f"{key} {parallel[key]}" for key in ("tp", "pp", "dp"))
    hosts = ", ".join(dict.fromkeys(rank.host for rank in header.ranks))
    written = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(header.written))
    steps = record.tracks["loss"].steps.tolist() if "loss" in record.tracks else []
    span = f", steps {steps[0]} to {steps[-1]}" if steps else ""
    console.print(f"{run_dir}, record {header.id}{span}", soft_wrap=True, style="bold")
    console.print(f"written {written}; {layout} on {hosts}; {_versions(header.versions)}", soft_wrap=True)
    console.print(f"seed {header.seed}, configuration {header.config_digest[:12]}", soft_wrap=True)
    for alarm in header.alarms:
        console.print(f"step {alarm.step}: {alarm.severity}: {alarm.detector}: {alarm.reason}", soft_wrap=True)


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items() if name in ("python", "torch", "cuda"))


def _show_movers(seen: "Examination", console: Console) -> None:
    console.print(f"\n{seen.conclusion}", soft_wrap=True, style="bold")
    if not seen.findings:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("what moved")
    table.add_column("deviation", justify="right", no_wrap=True)
    for finding in seen.findings:
        size = "-" if finding.z == 0 else f"{finding.z:+,.0f} sd" if math.isfinite(finding.z) else "not finite"
        table.add_row(str(finding.step), finding.sentence, size)
    console.print(table)


def _reader(record: "Record", console: Console) -> Callable[[int], str] | None:
    """What gives the text of a sample; None, and a line that says why, where the data are not there any more."""
    from data.documents import Reader
    from data.samples import Samples
    from launcher.replay import recorded_config

    config = recorded_config(record)
    try:
        samples = Samples(config.data.sources, "train", config.training.sequence_length, config.training.seed)
        if samples.fingerprint != record.header.data_fingerprint:
            raise DataError("the prepared data are not those of the run")
        return Reader(samples).text
    except DataError as error:
        console.print(f"\nno text of the batch: {error}", soft_wrap=True)
        return None


def _show_batch(record: "Record", console: Console, count: int, text_of: Callable[[int], str] | None) -> None:
    """Places of all samples of the alarm's batch that are shown, and the beginning of their text."""
    track = record.tracks.get("samples.id")
    rows = [] if track is None else (track.steps == record.alarm.step).nonzero()[0]
    if track is None or not len(rows):
        return
    ids = track.values[rows[0]].tolist()
    batch = int(record.tracks["batch"].values[rows[0]])
    console.print(f"\nbatch {batch} of step {record.alarm.step}: samples {ids[0]} to {ids[-1]}", style="bold")
    for column, k in enumerate(ids[:count]):
        _show_sample(record, console, (int(rows[0]), column), k, text_of)
    if len(ids) > count:
        console.print(f"... and {len(ids) - count} more (--samples {len(ids)} shows all)")


def _show_sample(
    record: "Record", console: Console, at: tuple[int, int], k: int, text_of: Callable[[int], str] | None
) -> None:
    place = {name: int(record.tracks[f"samples.{name}"].values[at]) for name in PLACE}
    folder = record.header.config["data"]["sources"][place["source"]]["path"]
    first, last = place["first_document"], place["last_document"]
    documents = f"document {first}" if first == last else f"documents {first} to {last}"
    start = f"from its token {place['document_offset']}" if first == last else f"from token {place['document_offset']}"
    where = f"sample {k}: {folder}, {documents} {start}; window {place['window']}, offset {place['offset']:,}"
    console.print(where, soft_wrap=True, style="cyan")
    if text_of is not None:
        console.print(f"  {_one_line(text_of(k))}", soft_wrap=True)


PLACE = ("source", "window", "offset", "first_document", "last_document", "document_offset")


def _one_line(text: str) -> str:
    """The beginning of a text, with what would move the cursor spelled out."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:CHARACTERS])
    return "".join(shown) + ("..." if len(text) > CHARACTERS else "")


def _replay(
    record: "Record", run_dir: Path, console: Console, layout: str, text_of: Callable[[int], str] | None
) -> None:
    from launcher.replay import is_single, recorded_config, rerun
    from stability.replay import compare, verdict

    alone = is_single(recorded_config(record))
    same = compare(record, rerun(record, run_dir, single=False)) if layout != "single" or alone else None
    single = compare(record, rerun(record, run_dir, single=True)) if layout != "same" and not alone else None
    console.print(_comparison_table([comparison for comparison in (same, single) if comparison is not None]))
    console.print(verdict(same, single, layout_is_single=alone), soft_wrap=True, style="bold")
    last = single or same
    assert last is not None
    _show_worst(last.rerun, console, text_of)


def _comparison_table(comparisons: "list[Comparison]") -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("rerun in", "from", "loss (recorded)", "gradient norm (recorded)", "same until", "reproduced"):
        table.add_column(heading)
    for it in comparisons:
        pairs = [f"{seen:.5g} ({then:.5g})" for seen, then in zip(it.seen, it.recorded, strict=True)]
        until = "the end" if it.differs_at is None else f"step {it.differs_at - 1}"
        table.add_row(it.rerun.layout, it.rerun.began, *pairs, until, "yes" if it.reproduced else "no")
    return table


def _show_worst(rerun: "Rerun", console: Console, text_of: Callable[[int], str] | None) -> None:
    """The sample of the batch with the largest loss before the step's update."""
    worst = rerun.worst_sample()
    if worst is None:
        return
    losses = sorted(rerun.sample_losses.values())
    usual = losses[len(losses) // 2]
    console.print(f"worst sample of the batch: {worst[0]}, loss {worst[1]:.4g}, the median {usual:.4g}", soft_wrap=True)
    if text_of is not None:
        console.print(f"  {_one_line(text_of(worst[0]))}", soft_wrap=True)
