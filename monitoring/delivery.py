"""From the spools of a run folder to its MLflow run: every point exactly once, tags, files, and how the run ended.

The tracker's thread delivers while the run lives; its watchdog, `steadytrain sync` or the next attempt deliver what was
left. A file lock lets one of them work at a time, and `Position` tells the next one where to go on.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from configs.schema import Config
from monitoring import mlflow_store as store
from monitoring.mlflow_store import BATCH, LOST, Point
from monitoring.recorder import EVENTS, METRICS, json_line
from monitoring.spool import (
    FOLDER,
    LOCK,
    Line,
    Position,
    attempts,
    last_words,
    numbers,
    read_header,
    read_lines,
    read_on,
    spool_path,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

ARTIFACTS = ("config.yaml", "study.yaml", "summary.json", "events.jsonl", "report.html", "*.png")
ARTIFACTS_IN_FOLDERS = ("pictures/*.png", "spikes/*")
LOCK_SECONDS = 30.0
"""How long another process may still deliver: it looks for a newer attempt before each request."""


class Superseded(Exception):
    """A newer attempt of the run has begun, which delivers what is left."""


class Delivery:
    """Delivers the spools up to that of `attempt`. Where `live`, that attempt is running and its run is RUNNING."""

    def __init__(self, config: Config, run_dir: Path, attempt: int, *, live: bool) -> None:
        self._config, self._run_dir, self._attempt, self._live = config, run_dir, attempt, live
        self.uri = store.tracking_uri(config)
        self.delivered = 0
        """Points delivered so far."""
        self.run_id: str | None = None
        self._found = False  # the run, in the store as it is now
        self._client: MlflowClient | None = None
        self._events = EventCounts(run_dir / EVENTS)
        self._tags: dict[str, str] = {}  # as the store has them
        self._certain = False  # that the next points have not arrived yet

    def deliver(self, end: Line | None = None) -> bool:
        """Deliver what the spools hold; returns whether that was the last of the run.

        `end`: how the attempt ended, where its spool does not say so itself.
        Raises: Superseded; whatever MLflow, the network, the lock or the disk raise. To be called again then.
        """
        with FileLock(self._run_dir / FOLDER / LOCK, timeout=LOCK_SECONDS):
            self._require_newest()
            try:
                return self._deliver(end)
            except BaseException:
                self._found = False  # the store may come back without it
                self._tags.clear()
                raise

    def _deliver(self, end: Line | None) -> bool:
        if self._client is None:
            self._client = store.connect(self.uri)
        client = self._client
        position = self._begin(client)
        for attempt in attempts(self._run_dir)[:-1]:
            if attempt >= position.attempt:
                position = self._deliver_earlier(client, position, attempt)
            self._path(attempt).unlink()
        if position.attempt < self._attempt:
            position = Position(position.run_id, self._attempt, last_step=position.last_step)
        said = self._drain(client, position) or end
        self._set_tags(client, position.run_id, self._events.tags())
        if said is not None:
            self._finish(client, position.run_id, said)
        return said is not None

    def _deliver_earlier(self, client: "MlflowClient", position: Position, attempt: int) -> Position:
        """The spool of an attempt that is over; returns where the next one begins."""
        if attempt > position.attempt:
            position = Position(position.run_id, attempt, last_step=position.last_step)
        end = self._drain(client, position) or conclude(self._run_dir, attempt).line
        self._set_tags(client, position.run_id, _attempt_tags(read_header(self._path(attempt)), end))
        position = Position(position.run_id, attempt + 1, last_step=self._position().last_step)
        position.write(self._run_dir)
        return position

    def _begin(self, client: "MlflowClient") -> Position:
        """The run to deliver to and how much of it is there."""
        if self.run_id is None or not self._found:
            run_id = store.find_run(client, self._run_dir)
            self._certain = run_id is None
            run_id = run_id or store.create_run(client, self._config, self._run_dir, self.uri)
            if self._live:
                client.update_run(run_id, status="RUNNING")
                tags = {store.STATUS_TAG: "running", store.REASON_TAG: "", store.ATTEMPTS_TAG: str(self._attempt)}
                self._set_tags(client, run_id, tags | _attempt_tags(read_header(self._path(self._attempt)), None))
            self.run_id, self._found = run_id, True
        position = Position.read(self._run_dir)
        if position is not None and position.run_id == self.run_id:
            return position
        # Of a run that is new to the store, earlier attempts' points are in metrics.jsonl (see `_catch_up`); those of
        # attempts that never reached any store are in their spools.
        waiting = attempts(self._run_dir)
        position = Position(self.run_id, waiting[-1] if position is not None else waiting[0])
        for attempt in waiting:
            if attempt < position.attempt:
                self._path(attempt).unlink()
        position.write(self._run_dir)
        return position

    def _drain(self, client: "MlflowClient", position: Position) -> Line | None:
        """Deliver one spool from `position`; returns its last line if that tells how the attempt ended."""
        while lines := read_lines(self._path(position.attempt), position.offset, BATCH):
            points: list[Point] = []
            for line, offset in lines:
                if "end" in line:
                    self._send(client, position, points)
                    return line
                if "resume" in line:
                    self._send(client, position, points)
                    points, position = [], self._catch_up(client, position, line)
                elif "rollback" in line:
                    last = min(position.last_step, line["rollback"])
                    position = replace(position, last_step=last, skip_until=min(position.skip_until, last))
                elif "system" in line:
                    points += _points(line)
                elif "step" in line and line["step"] > position.skip_until:
                    points += _points(line)
                    position = replace(position, last_step=max(position.last_step, line["step"]))
                position = replace(position, offset=offset)
            self._send(client, position, points)
        return None

    def _send(self, client: "MlflowClient", position: Position, points: list[Point]) -> None:
        """Deliver points, then say that all before `position` is delivered."""
        self._require_newest()
        if points:
            certain, self._certain = self._certain, False  # until the answer says that they have arrived
            store.log_points(client, position.run_id, points, certain=certain)
            self._certain = True
            self.delivered += len(points)
        position.write(self._run_dir)

    def _catch_up(self, client: "MlflowClient", position: Position, line: Line) -> Position:
        """At a resume: send what no spool told up to its step, and skip what an earlier attempt's did after it."""
        lines = _recorded(self._run_dir / METRICS, position.last_step, line["resume"], line["time"])
        while batch := list(itertools.islice(lines, 100)):
            position = replace(position, last_step=batch[-1]["step"])
            self._send(client, position, [point for line in batch for point in _points(line)])
        return replace(position, skip_until=position.last_step)

    def _finish(self, client: "MlflowClient", run_id: str, end: Line) -> None:
        """Files, tags and status; then nothing is left to deliver."""
        for path, folder in _artifacts(self._run_dir):
            client.log_artifact(run_id, str(path), folder)
        told = not self._live and self._is_told(client, run_id)
        self._set_tags(client, run_id, _attempt_tags(read_header(self._path(self._attempt)), end))
        if not told:
            self._set_tags(client, run_id, {store.STATUS_TAG: end["end"], store.REASON_TAG: end["reason"]})
            client.set_terminated(run_id, status=store.MLFLOW_STATUS[end["end"]], end_time=end["time"])
        self._set_tags(client, run_id, {store.ATTEMPTS_TAG: str(self._attempt)})  # from here on, its end is told
        self._path(self._attempt).unlink()

    def _is_told(self, client: "MlflowClient", run_id: str) -> bool:
        """Whether somebody has said how this attempt ended: the launcher, or who cancelled its job."""
        run = client.get_run(run_id)
        known = int(run.data.tags.get(store.ATTEMPTS_TAG, "0"))
        return run.info.status != "RUNNING" and known >= self._attempt

    def _set_tags(self, client: "MlflowClient", run_id: str, tags: dict[str, str]) -> None:
        """Those that the store does not have yet."""
        new = dict(tags.items() - self._tags.items())
        if new:
            store.set_tags(client, run_id, new)
            self._tags |= new

    def _require_newest(self) -> None:
        if attempts(self._run_dir)[-1:] != [self._attempt]:
            raise Superseded

    def _position(self) -> Position:
        position = Position.read(self._run_dir)
        assert position is not None, "written when the delivery began"
        return position

    def _path(self, attempt: int) -> Path:
        return spool_path(self._run_dir, attempt)


class EventCounts:
    """How often each kind of event happened, read from events.jsonl as it grows."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0
        self._counts: Counter[str] = Counter()

    def tags(self) -> dict[str, str]:
        """A tag for each kind."""
        if self._path.exists():
            for line, offset in read_on(self._path, self._offset):
                self._counts[line["kind"]] += 1
                self._offset = offset
        return {f"steadytrain.events.{kind}": str(count) for kind, count in self._counts.items()}


@dataclass(frozen=True)
class End:
    """How an attempt that is over ended: its spool's last line, the newest step in it, and whether it is ours."""

    step: int
    line: Line
    is_new: bool


def conclude(run_dir: Path, attempt: int) -> End:
    """The end of an attempt whose processes are gone; one that was killed gets its last line now. Raises OSError."""
    path = spool_path(run_dir, attempt)
    step, said = last_words(path)
    if said is not None:
        return End(step, said, is_new=False)
    end = {"end": "failed", "reason": LOST, "time": int(path.stat().st_mtime * 1000)}
    with path.open("ab", buffering=0) as spool:
        spool.write(b"\n" + json_line(end).encode())  # behind a line that the kill may have torn
    return End(step, end, is_new=True)


def _points(line: Line) -> list[Point]:
    return [(key, float(value), line["time"], line["step"]) for key, value in numbers(line).items()]


def _recorded(path: Path, after: int, last: int, time_ms: int) -> Iterator[Line]:
    """Lines of metrics.jsonl of the steps behind `after` up to `last`, as a spool has them."""
    if path.exists():
        for record, _ in read_on(path, 0):
            step = record.pop("step")
            if after < step <= last:
                yield {"step": step, "metrics": record, "time": time_ms}


def _attempt_tags(header: Line, end: Line | None) -> dict[str, str]:
    """When and where an attempt ran, and how it ended, as JSON."""
    if not header:
        return {}
    told: dict[str, Any] = {"started": _utc(header["time"]), "host": header["host"]}
    if header["job"] is not None:
        told["job"] = header["job"]
    if end is not None:
        told |= {"ended": _utc(end["time"]), "status": end["end"], "reason": end["reason"]}
    return {f"steadytrain.attempt.{header['attempt']}": json.dumps(told)}


def _utc(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds")


def _artifacts(run_dir: Path) -> Iterator[tuple[Path, str | None]]:
    """Files, each with the folder that it has among the run's artifacts."""
    for pattern in ARTIFACTS:
        yield from ((path, None) for path in sorted(run_dir.glob(pattern)))
    for pattern in ARTIFACTS_IN_FOLDERS:
        yield from ((path, path.parent.name) for path in sorted(run_dir.glob(pattern)) if path.is_file())
