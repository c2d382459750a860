"""`steadytrain watch`: its frames from runs in every state, at every width, and how it is left."""

import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.text import Text
from typer.testing import CliRunner

from comparison.record import STUDY_FILE
from launcher.cli import app
from launcher.jobs.standing import Standing
from launcher.run_folder import lock_path
from launcher.watch import Watch
from launcher.watch.blocks import CROSS, columns_of, means, spark
from launcher.watch.findings import Findings
from launcher.watch.frame import COLLAPSED, Plan, frame
from monitoring.crossings import detectors_of
from monitoring.history import History
from monitoring.recorder import Recorder, append_event
from tests.synthetic_run import FIRST, arrays, end, write_run

ROOT = Path(__file__).parents[2]
PATIENCE = 90.0


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("runs")


def invoke(*arguments: str, columns: int = 100):
    return CliRunner(env={"COLUMNS": str(columns)}).invoke(app, ["watch", *arguments])


def shown(run_dir: Path, *, state: str = "running", width: int = 100, height: int | None = None, attempt=1) -> Text:
    history = History(run_dir)
    history.update()
    findings = Findings.of(history, detectors_of(run_dir))
    plan = Plan(str(run_dir), 200, attempt)
    return frame(plan, Standing(state), history, findings, width=width, height=height, now=time.time())


def layer_row(text: str, layer: int) -> str:
    return next(line for line in text.splitlines() if line.startswith(f"layer {layer} "))


def test_it_says_what_moved_first(folder):
    text = shown(write_run(folder / "a", collapses=True)).plain
    layer, head, step = FIRST
    assert f"moved first  layer {layer} head {head} at step {step}: attention entropy under 10% of its maximum" in text
    assert "then layer 0 at 50" in " ".join(text.split())
    assert "then  layer 3 head 0 at step 80: attention logit over 1,000" in text
    assert "then  layer 1 at step 40: tokens alike (cosine over 0.99)" in text


def test_each_layer_has_its_heads_its_past_and_its_logit(folder):
    text = shown(write_run(folder / "a", collapses=True)).plain
    assert re.fullmatch(rf"layer 2  █{CROSS}██ +2% █*▄+{CROSS}+ +30 +6\.0 +0\.30", layer_row(text, 2))
    assert re.fullmatch(rf"layer 0  {CROSS * 4} +5% ▇+{CROSS}+ +50 +6\.0 +0\.10", layer_row(text, 0))
    assert re.fullmatch(r"layer 3  ████ +90% █+ +- +4\.2k +0\.40", layer_row(text, 3))
    assert "largest 12 in matrix layers.0.feedforward.up, median 1.35" in text
    assert "|gamma|  largest 3 in matrix layers.1.feedforward.up, median 1.15" in text


def test_a_healthy_run_has_not_moved(folder):
    text = shown(write_run(folder / "a", collapses=False)).plain
    assert "moved first  nothing; the lowest entropy is layer 1 head 3's, 62% of its maximum" in text
    assert CROSS not in text.split("under 10%")[1]


def test_the_header_and_the_loss(folder):
    run_dir = write_run(folder / "a", collapses=False)
    text = shown(run_dir, attempt=3).plain
    assert "runs/a  running  step 100 of 200, 50%  2,048 tokens/s  50 s left  attempt 3" in text
    assert re.search(r"loss \d\.\d{3}   v validation \d\.\d{3} at step 100   grad norm 1   lr 0\.03", text)
    assert "left" not in shown(run_dir, state="finished").plain.splitlines()[0]


def test_alarms_and_events_are_told_and_marked_under_the_curve(folder):
    run_dir = write_run(folder / "a", collapses=True)
    append_event(run_dir, 25, "checkpoint", "saved")
    append_event(
        run_dir,
        30,
        "alarm",
        "27 % of heads",
        detector="entropy_collapse",
        severity="alarm",
        where={"layer": 2, "head": 1},
    )
    append_event(run_dir, 50, "lower_lr", "halved for 100 steps")
    text = shown(run_dir, width=109).plain  # a column for each of 100 steps
    assert "! step 30  0 s ago  entropy collapse in layer 2 head 1: 27 % of heads" in text
    assert "* step 50  0 s ago  lower lr: halved for 100 steps" in text
    assert "checkpoint" not in text  # routine, while there is other news
    marks = next(line for line in text.splitlines() if "!" in line)
    assert {mark: marks.index(mark) - 9 + 1 for mark in "!*"} == {"!": 30, "*": 50}
    assert [at - 9 + 1 for at, mark in enumerate(marks) if mark == "v"] == [25, 75, 100]  # an action covers step 50


@pytest.mark.parametrize("width", [20, 40, 80, 140, 300])
@pytest.mark.parametrize("height", [None, 10, 23, 50])
def test_it_fits_every_terminal(folder, width, height):
    run_dir = write_run(folder / "a", collapses=True)
    for step in range(20):
        append_event(run_dir, step, "alarm", "a long reason " * 20, detector="loss_spike", severity="alarm")
    lines = shown(run_dir, width=width, height=height).plain.splitlines()
    assert all(Text(line).cell_len <= width for line in lines)
    assert height is None or len(lines) <= height


def test_where_not_all_layers_fit_those_that_moved_first_are_shown(folder):
    with Recorder(folder / "a") as recorder:
        for step in (10, 20):
            ratio = np.linspace(0.5, 0.9, 48)[:, None] * np.ones((48, 64))
            ratio[33, 7] = 0.5 if step == 10 else 0.01
            recorder.log(step, loss=1.0)
            recorder.signals(step, entropy_ratio=ratio)
    text = shown(folder / "a", width=80, height=20).plain
    rows = [int(line.split()[1]) for line in text.splitlines() if line.startswith("layer ")]
    assert 33 in rows and 0 in rows and rows == sorted(rows) and len(rows) < 20
    assert f"{48 - len(rows)} more layers, lowest 5" in text and CROSS in layer_row(text, 33).split()[2]


def test_collapse_stands_out_in_colour_too(folder):
    drawn = shown(write_run(folder / "a", collapses=True))
    crosses = {at for at, character in enumerate(drawn.plain) if character == CROSS}
    coloured = {at for span in drawn.spans if span.style == COLLAPSED for at in range(span.start, span.end)}
    assert crosses == coloured


def test_runs_that_lack_files(folder):
    run_dir = folder / "a"
    run_dir.mkdir(parents=True)
    assert "nothing measured yet" in shown(run_dir).plain and "no step yet" in shown(run_dir).plain
    with Recorder(run_dir) as recorder:
        recorder.log(1, grad_norm=1.0)
    assert "step 1 of 200" in shown(run_dir).plain
    with Recorder(run_dir) as recorder:
        recorder.log(2, loss=float("nan"))
        recorder.signals(2, entropy_ratio=np.full((1, 2), np.nan))
    text = shown(run_dir).plain
    assert "loss nan" in text and "layer 0 head 0 at step 2: attention entropy is not a number" in text
    assert layer_row(text, 0).split()[2] == "??"


def test_a_growing_run_is_followed_and_damage_is_counted(folder):
    run_dir = write_run(folder / "a", collapses=True, steps=20)
    watched = Watch(run_dir)
    first = watched.look(100, None).plain
    assert "step 20 of 100" in first and "moved first  nothing" in first
    with Recorder(run_dir) as recorder:
        recorder.log(30, loss=1.0)
        recorder.signals(30, **arrays(30, collapses=True))
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('not a line of ours\n{"step": 31, "lo')
    later = watched.look(100, None).plain
    assert "step 30 of 100" in later and "moved first  layer 2 head 1 at step 30" in later
    assert "1 damaged record is left out" in later


@pytest.mark.parametrize("status", ["finished", "diverged", "stopped", "failed"])
def test_a_run_that_has_ended_is_shown_once(folder, status):
    run_dir = write_run(folder / "a", collapses=True)
    end(run_dir, status)
    result = invoke(str(run_dir))
    assert result.exit_code == 0 and f"runs/a  {status}  step 100 of 100, 100%" in result.stdout
    assert "\x1b" not in result.stdout


def test_a_run_whose_process_was_killed(folder):
    run_dir = write_run(folder / "a", collapses=False, steps=40)
    assert "runs/a  unfinished (its process has ended)  step 40 of 100, 40%" in invoke(str(run_dir)).stdout


def test_a_run_under_way_is_shown_once_where_there_is_no_terminal(folder):
    run_dir = write_run(folder / "a", collapses=False, steps=40)
    append_event(run_dir, 20, "resume", "from step 20")
    with lock_path(run_dir).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = invoke(str(run_dir))
    assert result.exit_code == 0
    assert "runs/a  running  step 40 of 100, 40%  2,048 tokens/s  30 s left  attempt 2" in result.stdout


def test_nothing_is_written(folder):
    run_dir = write_run(folder / "a", collapses=True)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    invoke(str(run_dir))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_mistakes_are_one_line(folder):
    write_run(folder / "a", collapses=False)
    for number in range(4):
        write_run(folder / "many" / str(number), collapses=False, steps=1)
    (folder / "empty").mkdir()
    for argument, line in {
        "nowhere": "nowhere: no such folder; give the folder of a run, such as runs/tiny",
        "a": "a: no such folder; did you mean runs/a?",
        "runs/empty": "runs/empty: holds no run and no study",
        "runs/many": "runs/many: is not one run but holds 4: runs/many/0, runs/many/1, runs/many/2 and 1 more; "
        "watch one of them",
    }.items():
        result = invoke(argument)
        assert (result.exit_code, result.stderr) == (2, line + "\n")
        assert CliRunner().invoke(app, ["pictures", argument]).stderr == line + "\n"
    (folder / "a/config.yaml").write_text("a: [")
    result = invoke("runs/a")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and "config.yaml" in result.stderr


def test_a_folder_that_may_not_be_read_or_written(folder, monkeypatch):
    run_dir = write_run(folder / "a", collapses=True)

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    result = CliRunner().invoke(app, ["pictures", str(run_dir)])
    assert result.exit_code == 2 and "pictures/loss.tmp: Permission denied; the pictures were not" in result.stderr
    monkeypatch.setattr(Path, "open", refuse)
    result = invoke(str(run_dir))
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1) and "cannot be read: Permission" in result.stderr


def test_a_damaged_study_is_named(folder):
    (folder / "study").mkdir(parents=True)
    (folder / "study" / STUDY_FILE).write_text("name: x\n")
    result = invoke("runs/study")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1


def test_pictures_are_drawn_on_demand(folder):
    run_dir = write_run(folder / "a", collapses=True)
    result = CliRunner().invoke(app, ["pictures", str(run_dir)])
    assert result.exit_code == 0 and result.stdout.splitlines()[0] == "runs/a/pictures/loss.png"
    assert (run_dir / "pictures/entropy.png").is_file()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_on_a_terminal_it_goes_on_until_it_is_interrupted(folder, number):
    run_dir = write_run(folder / "a", collapses=False, steps=40)
    with lock_path(run_dir).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with Terminal("watch", str(run_dir), "--interval", "0.1") as terminal:
            terminal.wait_for("step 40 of 100")
            with Recorder(run_dir) as recorder:
                recorder.log(41, loss=1.0)
            terminal.wait_for("step 41 of 100")
            terminal.process.send_signal(number)
            code, seen = terminal.wait(), terminal.seen
    assert code == (130 if number == signal.SIGINT else 143) and "Traceback" not in seen
    assert seen.count("\x1b[?1049h") == seen.count("\x1b[?1049l") == 1  # the screen is given back ...
    assert "step 41 of 100" in seen.split("\x1b[?1049l")[1]  # ... and the last frame stays


def test_on_a_terminal_it_ends_with_the_run(folder):
    run_dir = write_run(folder / "a", collapses=False, steps=40)
    with lock_path(run_dir).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with Terminal("watch", str(run_dir), "--interval", "0.1") as terminal:
            terminal.wait_for("running")
            end(run_dir, "diverged")
            assert terminal.wait() == 0
            assert "diverged" in terminal.seen.split("\x1b[?1049l")[1]


class Terminal:
    """The command in a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "launcher", *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
        )
        os.close(theirs)
        self.seen = ""

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def wait_for(self, text: str) -> None:
        """Read until `text` was seen."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.seen:
            assert time.monotonic() < deadline, f"{text!r} never came: {self.seen[-2000:]}"
            self._read(1.0)

    def wait(self) -> int:
        """Read all that is written until the process has ended; returns its exit code."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it does not end: {self.seen[-2000:]}"
            self._read(0.1)
        while self._read(0.0):
            pass
        return self.process.returncode

    def _read(self, seconds: float) -> bool:
        if not select.select([self._ours], [], [], seconds)[0]:
            return False
        try:
            self.seen += os.read(self._ours, 65536).decode("utf-8", errors="replace")
        except OSError:  # the other side is closed
            return False
        return True


def test_a_curve_has_its_extremes_at_top_and_bottom():
    assert spark(np.array([1.0, 2.0, 3.0]), 1) in (["▁▄█"], ["▁▅█"])
    top, bottom = spark(np.array([0.0, 10.0, np.nan]), 2)
    assert (top, bottom) == (" █ ", f"▁█{CROSS}")
    assert spark(np.array([5.0, 5.0]), 1) == ["▁▁"] and spark(np.array([np.nan]), 2) == [" ", CROSS]
    log = spark(np.array([1.0, 10.0, 100.0]), 1, log=True)[0]
    assert log[0] == "▁" and log[2] == "█" and log[1] in "▄▅"


def test_columns_cover_many_points_and_repeat_few():
    assert columns_of(4, 2) == [(0, 2), (2, 4)]
    assert [begin for begin, _ in columns_of(2, 4)] == [0, 0, 1, 1]
    assert means(np.array([1.0, 3.0, np.nan, np.nan]), columns_of(4, 2)).tolist()[0] == 2.0
    assert np.isnan(means(np.array([1.0, 3.0, np.nan, np.inf]), columns_of(4, 2))[1])
