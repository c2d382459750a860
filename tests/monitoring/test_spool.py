"""The spool: lines survive kills and full disks, batches are bounded, attempts are counted."""

import errno
import math
import os
import threading
from pathlib import Path

import pytest

from configs.errors import DataError
from monitoring.spool import (
    CONFIG,
    FOLDER,
    POSITION,
    Position,
    Spool,
    attempts,
    count_waiting,
    last_words,
    numbers,
    read_config,
    read_header,
    read_lines,
    read_on,
    spool_path,
)


def lines_of(run_dir: Path, attempt: int = 1) -> list[dict]:
    return [line for line, _ in read_on(spool_path(run_dir, attempt), 0)]


def test_lines_come_back_with_times_that_differ(tmp_path: Path):
    spool = Spool(tmp_path)
    for step in range(1, 101):
        spool.append(step=step, metrics={"loss": 1 / step, "grad_norm": math.inf})
    header, *lines = lines_of(tmp_path)
    assert (header["attempt"], header["job"]) == (1, None) and header["host"]
    assert [(line["step"], line["metrics"]["loss"]) for line in lines] == [(s, 1 / s) for s in range(1, 101)]
    assert all(line["metrics"]["grad_norm"] == math.inf for line in lines)
    assert len({line["time"] for line in (header, *lines)}) == 101  # a hundred lines in a few milliseconds


def test_a_batch_holds_its_number_of_points_and_one_line_at_least(tmp_path: Path):
    spool = Spool(tmp_path)
    for step in range(1, 8):
        spool.append(step=step, metrics={str(key): 0.0 for key in range(30 if step == 5 else 4)})
    path, offset, batches = spool_path(tmp_path, 1), 0, []
    while lines := read_lines(path, offset, 10):
        batches.append([line.get("step") for line, _ in lines])
        offset = lines[-1][1]
    assert batches == [[None, 1, 2], [3, 4], [5], [6, 7]]
    assert offset == path.stat().st_size


def test_a_torn_last_line_is_passed_over(tmp_path: Path):
    spool = Spool(tmp_path)
    spool.append(step=1, metrics={"loss": 1.0})
    path = spool_path(tmp_path, 1)
    with path.open("ab") as file:
        file.write(b'{"step": 2, "metrics": {"lo')
    assert [line.get("step") for line in lines_of(tmp_path)] == [None, 1]
    assert read_lines(path, path.read_bytes().rfind(b"\n") + 1, 1000) == []
    assert last_words(path) == (1, None)


def test_a_disk_that_was_full_for_a_while_costs_the_lines_of_that_while(tmp_path: Path, monkeypatch):
    spool = Spool(tmp_path)
    write = os.write

    def half(file: int, text: bytes) -> int:
        return write(file, text[:10])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OSError, match="half of a line"):
        spool.append(step=1, metrics={"loss": 1.0})

    def full(file: int, text: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        spool.append(step=2, metrics={"loss": 1.0})
    monkeypatch.undo()
    spool.append(step=3, metrics={"loss": 1.0})
    spool.append(step=4, metrics={"loss": 1.0})
    assert [line.get("step") for line in lines_of(tmp_path)] == [None, 3, 4]


def test_two_threads_share_a_spool(tmp_path: Path):
    spool = Spool(tmp_path)

    def write(key: str) -> None:
        for step in range(200):
            spool.append(step=step, metrics={key: float(step)})

    threads = [threading.Thread(target=write, args=(key,)) for key in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = lines_of(tmp_path)
    assert len(lines) == 601 and len({line["time"] for line in lines}) == 601


def test_attempts_are_counted_also_when_their_spools_are_gone(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert [Spool(tmp_path).attempt, Spool(tmp_path).attempt] == [1, 2]
    assert read_header(spool_path(tmp_path, 2))["job"] == "77"
    Position("run", attempt=2).write(tmp_path)
    for attempt in attempts(tmp_path):
        spool_path(tmp_path, attempt).unlink()
    assert Spool(tmp_path).attempt == 3
    assert attempts(tmp_path) == [3]


def test_what_waits_is_counted_from_the_position(tmp_path: Path):
    spool = Spool(tmp_path)
    for step in (1, 2, 3, 4):
        spool.append(step=step, metrics={"loss": 1.0, "lr": 1.0})
    spool.append(step=4, system={"system/cpu": 1.0})
    assert count_waiting(tmp_path) == 9
    (_, header), (_, first), *_ = read_on(spool_path(tmp_path, 1), 0)
    assert header < first
    Position("run", 1, offset=first, last_step=1, skip_until=3).write(tmp_path)
    assert count_waiting(tmp_path) == 3  # steps 2 and 3 were sent by an earlier attempt


def test_last_words(tmp_path: Path):
    spool, path = Spool(tmp_path), spool_path(tmp_path, 1)
    spool.append(resume=5)
    spool.append(step=6, metrics={"loss": 1.0})
    spool.append(step=7, metrics={"loss": 1.0})
    assert last_words(path) == (7, None)
    spool.append(rollback=5)
    assert last_words(path) == (5, None)
    spool.append(end="finished", reason="")
    step, end = last_words(path)
    assert step == 5 and end is not None and end["end"] == "finished"
    assert numbers(end) == {}


def test_a_damaged_folder_is_one_line_and_foreign_files_are_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir()
    (folder / "spool-abc.jsonl").write_text("not ours")
    assert attempts(tmp_path) == []
    (folder / POSITION).write_text("[1")
    with pytest.raises(DataError, match=r"delivered.json: damaged"):
        Position.read(tmp_path)
    (folder / CONFIG).write_text("{}")
    with pytest.raises(DataError, match=r"config.json: damaged"):
        read_config(tmp_path)
