"""`steadytrain status`: where runs stand, one row each; of a single run also its attempts and their preflight."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from shlex import quote
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from comparison.record import read_record
from configs.errors import SteadytrainError
from configs.files import parse_yaml
from launcher.jobs.attempt import END, PREFLIGHT, attempts, read_json, read_ranks
from launcher.jobs.job import Job
from launcher.jobs.runs import FoundRun, find_runs
from launcher.jobs.standing import Queue, Standing, ask_queue, job_of, own_attempts, standing
from launcher.run_folder import CONFIG
from monitoring.recorder import METRICS, last_metrics, read_events

WIDTH = 100
GOOD, BAD, WAITING = (
    ("finished", "running"),
    ("crashed", "lost", "diverged", "refused", "unreadable"),
    ("pending", "requeued"),
)
ROUTINE = ("checkpoint",)
"""Events that say nothing new."""
UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))
ENDS_TO_GO_ON_FROM = ("stopped", "crashed", "lost", "cancelled")


@dataclass(frozen=True)
class Event:
    """Something that happened to a run once; `time` in seconds since 1970."""

    kind: str
    reason: str
    time: float
    step: int


@dataclass(frozen=True)
class Attempt:
    """One attempt of a job. Times in seconds since 1970; `last_step` is None where nobody knows it."""

    number: int
    name: str
    nodes: list[str]
    ranks: int
    began: float | None
    ended: float | None
    first_step: int
    last_step: int | None
    verdict: str | None
    reason: str
    preflight: list[str]


@dataclass(frozen=True)
class RunStatus:
    """All that is known of a run. What it does not have yet is None."""

    run: str
    name: str
    study: str | None
    state: str
    detail: str
    alive: bool = False
    site: str | None = None
    job_ids: list[str] = field(default_factory=list)
    submitted: float | None = None
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None
    attempts: int = 0
    last_event: Event | None = None
    advice: str | None = None


def statuses(paths: Sequence[Path]) -> list[RunStatus]:
    """The status of every run below `paths`, with one question to Slurm for all of them.

    A run whose files are damaged is `unreadable`, and says why. Raises ConfigError for a path without runs.
    """
    found = find_runs(paths)
    jobs: dict[Path, Job | None] = {}
    damaged: dict[Path, str] = {}
    for run in found:
        try:
            jobs[run.path] = job_of(run.path)
        except SteadytrainError as error:
            damaged[run.path] = str(error)
    queue = ask_queue(jobs.values())
    return [
        _unreadable(run, damaged[run.path]) if run.path in damaged else _status(run, jobs[run.path], queue)
        for run in found
    ]


def attempts_of(run_dir: Path) -> list[Attempt]:
    """The attempts of a run's job, oldest first; none where it was not submitted as one."""
    job = job_of(run_dir)
    if job is None:
        return []
    folders, resumes = attempts(job.path), [event for event in _events(run_dir) if event.kind == "resume"]
    found = []
    for number, folder in enumerate(folders, start=1):
        is_last = number == len(folders)
        found.append(_attempt(run_dir, folder, number, resumes, is_last=is_last))
    return found


def _status(run: FoundRun, job: Job | None, queue: Queue) -> RunStatus:
    try:
        where = standing(run.path, job, queue)
        metrics = last_metrics(run.path) or {}
        notable = [event for event in _events(run.path) if event.kind not in ROUTINE]
        steps = _steps(run)
    except SteadytrainError as error:
        return _unreadable(run, str(error))
    step, tokens_per_s = metrics.get("step"), metrics.get("tokens_per_s")
    if where.alive and not _has_trained(run.path, job):
        tokens_per_s = None  # it was the last attempt's
    eta = None
    if where.state == "running" and step and steps and tokens_per_s:
        eta = max(0, steps - step) * metrics["tokens"] / step / tokens_per_s
    return RunStatus(
        run=str(run.path),
        name=run.name,
        study=None if run.study is None else str(run.study),
        state=where.state,
        detail=where.detail,
        alive=where.alive,
        site=None if job is None else job.site,
        job_ids=[] if job is None else job.ids,
        submitted=None if job is None else job.submitted,
        step=step,
        steps=steps,
        loss=metrics.get("loss"),
        tokens_per_s=tokens_per_s,
        eta_s=eta,
        attempts=0 if job is None else len(own_attempts(job)),
        last_event=notable[-1] if notable else None,
        advice=_advice(run.path, job, where),
    )


def _unreadable(run: FoundRun, why: str) -> RunStatus:
    study = None if run.study is None else str(run.study)
    nothing = dict.fromkeys(
        ("site", "submitted", "step", "steps", "loss", "tokens_per_s", "eta_s", "last_event", "advice")
    )
    return RunStatus(str(run.path), run.name, study, "unreadable", why, False, job_ids=[], attempts=0, **nothing)


def _advice(run_dir: Path, job: Job | None, where: Standing) -> str | None:
    """What to do about an end that is none."""
    if job is None or where.state not in ENDS_TO_GO_ON_FROM:
        return None
    from training.checkpoint import store

    saved = store.steps(run_dir / store.FOLDER)
    begins = f"it goes on from {saved[0].name}" if saved else "it begins again: it has no checkpoint"
    logs = f"`steadytrain logs {quote(str(run_dir))}` shows why; " if where.state in ("crashed", "lost") else ""
    return f"{logs}submit it again and {begins}"


def _has_trained(run_dir: Path, job: Job | None) -> bool:
    """Whether the last line of metrics is of the attempt under way and not of one before."""
    if job is None:
        return True
    folders = own_attempts(job)
    began = min((record.began for record in read_ranks(folders[-1])), default=None) if folders else None
    return _trained_since(run_dir, began)


def _steps(run: FoundRun) -> int | None:
    """How many steps the run shall have; of a trial that has not begun, its study knows."""
    try:
        text = (run.path / CONFIG).read_text("utf-8")
    except FileNotFoundError:
        return None if run.study is None else read_record(run.study).steps
    config = parse_yaml(text, str(run.path / CONFIG))
    return config.get("training", {}).get("steps") if isinstance(config, dict) else None


def _events(run_dir: Path) -> list[Event]:
    return [Event(event["kind"], event["reason"], event["time"], event["step"]) for event in read_events(run_dir)]


def _attempt(run_dir: Path, folder: Path, number: int, resumes: Sequence[Event], *, is_last: bool) -> Attempt:
    ranks, end = read_ranks(folder), read_json(folder / END)
    began = min((record.began for record in ranks), default=None)
    ends = [record.ended for record in ranks if record.ended is not None]
    ended = max(ends) if ends and len(ends) == len(ranks) else end["time"] if end is not None else None
    until = ended or float("inf")
    own_resume = [event for event in resumes if began is not None and began <= event.time <= until]
    last_step = max((record.step for record in ranks), default=0) or None
    if last_step is None and is_last and _trained_since(run_dir, began):
        last_step = (last_metrics(run_dir) or {}).get("step")
    preflight = read_json(folder / PREFLIGHT)
    return Attempt(
        number=number,
        name=folder.name,
        nodes=list(dict.fromkeys(record.node for record in ranks)),
        ranks=max((record.world_size for record in ranks), default=0),
        began=began,
        ended=ended,
        first_step=own_resume[-1].step + 1 if own_resume else 1,
        last_step=last_step,
        verdict=None if end is None else end["verdict"]["kind"],
        reason="" if end is None else end["decision"]["reason"],
        preflight=[] if preflight is None else preflight["lines"],
    )


def _trained_since(run_dir: Path, began: float | None) -> bool:
    """Whether metrics were written since the attempt began."""
    path = run_dir / METRICS
    return began is not None and path.exists() and path.stat().st_mtime >= began


def records(found: Sequence[RunStatus]) -> list[dict[str, Any]]:
    """All fields; of a single run its attempts too."""
    shown = [asdict(status) for status in found]
    if len(found) == 1:
        shown[0]["attempt_list"] = [asdict(attempt) for attempt in attempts_of(Path(found[0].run))]
    return shown


def report(found: Sequence[RunStatus], asked: Sequence[Path]) -> RenderableType:
    """The table; below it what a single run's attempts were, or how many runs of a study are in which state."""
    parts: list[RenderableType] = [_table(list(_rows(found, asked)), wrap=len(found) == 1)]
    if len(found) == 1:
        parts += _single(found[0])
    elif len({status.study for status in found}) == 1 and found[0].study is not None:
        parts.append(f"{found[0].study}: {len(found)} trials: {_counts(found)}")
    return Group(*parts)


def _rows(found: Sequence[RunStatus], asked: Sequence[Path]) -> Iterator[list[str | Text]]:
    """A row per run; a study among other runs is one row."""
    asked_for = {str(path) for path in asked}
    for study, group in groupby(found, key=lambda status: status.study):
        members = list(group)
        if study is None or str(study) in asked_for or len(members) == len(found):
            yield from (_row(status) for status in members)
        else:
            name = str(Path(study).relative_to(asked[0])) if len(asked) == 1 else study
            attempts = sum(status.attempts for status in members)
            steps, all_steps = (sum(getattr(status, key) or 0 for status in members) for key in ("step", "steps"))
            yield [
                name,
                f"{len(members)} trials",
                f"{steps:,}/{all_steps:,}",
                "",
                "",
                "",
                str(attempts or "-"),
                _counts(members),
            ]


def _table(rows: Sequence[Sequence[str | Text]], *, wrap: bool) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), expand=True)
    shown.add_column("run", overflow="fold")
    shown.add_column("state", no_wrap=True)
    for heading in ("step", "loss", "tok/s", "ETA", "tries"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("last event", no_wrap=not wrap, overflow="fold" if wrap else "ellipsis", ratio=1, min_width=16)
    for row in rows:
        shown.add_row(*row)
    return shown


def _row(status: RunStatus) -> list[str | Text]:
    style = (
        "green"
        if status.state in GOOD
        else "red"
        if status.state in BAD
        else "yellow"
        if status.state in WAITING
        else ""
    )
    return [
        status.name,
        Text(status.state, style),
        "-" if status.step is None and status.steps is None else f"{status.step or 0:,}/{status.steps or 0:,}",
        "-" if status.loss is None else f"{status.loss:.3f}",
        "-" if status.tokens_per_s is None else f"{status.tokens_per_s:,.0f}",
        "-" if status.eta_s is None else duration(status.eta_s),
        str(status.attempts or "-"),
        _news(status),
    ]


def _news(status: RunStatus) -> str:
    """Why it is in this state, and what happened last."""
    event = status.last_event
    if event is None:
        return status.detail
    age = f"{duration(time.time() - event.time)} ago"
    kind = event.kind.removeprefix("attempt_")
    reason = "" if event.reason == kind else f": {event.reason}"
    happened = f"{kind} {age}{reason}"
    return happened if not status.detail or status.detail == event.reason else f"{status.detail}; {happened}"


def _single(status: RunStatus) -> Iterator[RenderableType]:
    tried = attempts_of(Path(status.run))
    if status.job_ids:
        since = "" if status.submitted is None else f", submitted {duration(time.time() - status.submitted)} ago"
        yield f"job {', '.join(status.job_ids)} on {status.site}{since}"
    if tried:
        yield _attempt_table(tried, status)
        yield from tried[-1].preflight
    if status.advice is not None:
        yield Text(f"{status.state}: {status.advice}", "yellow")


def _attempt_table(tried: Sequence[Attempt], status: RunStatus) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for heading, justify in (
        ("try", "right"),
        ("nodes", "left"),
        ("began", "left"),
        ("took", "right"),
        ("steps", "right"),
    ):
        shown.add_column(heading, justify=justify, no_wrap=heading != "nodes")  # type: ignore[arg-type]
    shown.add_column("end", overflow="fold")
    for attempt in tried:
        began = "-" if attempt.began is None else time.strftime("%m-%d %H:%M:%S", time.localtime(attempt.began))
        took = "-" if None in (attempt.began, attempt.ended) else duration(attempt.ended - attempt.began)  # type: ignore[operator]
        nobody_judged = status.state if attempt is tried[-1] and not status.alive else "-"
        verdict = attempt.verdict or nobody_judged
        reason = "" if attempt.reason in ("", verdict) else f": {attempt.reason}"
        steps = f"{attempt.first_step:,}-{'?' if attempt.last_step is None else f'{attempt.last_step:,}'}"
        shown.add_row(str(attempt.number), _node_list(attempt.nodes), began, took, steps, f"{verdict}{reason}")
    return shown


def _node_list(nodes: Sequence[str]) -> str:
    return ", ".join(nodes) if len(nodes) <= 4 else f"{', '.join(nodes[:3])} and {len(nodes) - 3} more"


def _counts(found: Sequence[RunStatus]) -> str:
    counted = Counter(status.state for status in found)
    return ", ".join(f"{count} {state}" for state, count in counted.most_common())


def duration(seconds: float) -> str:
    """About how long, in one unit: `40 s`, `12 min`, `3.5 h`, `2.1 d`."""
    for length, unit in UNITS:
        if seconds >= length:
            count = seconds / length
            return f"{count:.0f} {unit}" if unit == "min" or count >= 10 else f"{count:.1f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
