"""`steadytrain spike`: the list, one record, its picture, mistakes; and reruns that leave the run as it is."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from configs.load import dump, load
from configs.schema import Config
from data.documents import sample_table
from data.samples import Samples
from launcher.cli import app
from stability.alarms import Alarm
from stability.record import Record, Track
from tests.stability.bad_batch import plant
from tests.stability.records import record

ROOT = Path(__file__).parents[2]


def run(*arguments: str):
    return CliRunner(env={"COLUMNS": "120"}).invoke(app, ["spike", *arguments])


def made(data: Path, step: int = 36) -> Record:
    """A record of a run on `data`, with the places of its samples."""

    def fault(arrays) -> None:
        arrays["gradient"][step - 3 :, :, 3] *= 90
        arrays["loss"][step - 1 :] += 2

    it = record(fault, step=step)
    config = Config.model_validate(it.header.config | {"data": {"sources": [{"path": str(data)}]}})
    samples = Samples(config.data.sources, "train", config.training.sequence_length, config.training.seed)
    ids = it.tracks["batch"].values[:, None] * config.training.global_batch_size + np.arange(8)
    steps = it.tracks["batch"].steps
    table = {f"samples.{k}": Track(steps, v) for k, v in ({"id": ids} | sample_table(samples, ids)).items()}
    header = replace(it.header, config=config.model_dump(mode="json"), data_fingerprint=samples.fingerprint)
    return Record(header, it.tracks | table, it.labels)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("")
    return folder


def test_json_of_all_records_and_of_one(run_dir: Path, stdlib_bytes: Path) -> None:
    made(stdlib_bytes).write(run_dir)
    (listed,) = json.loads(run(str(run_dir), "--json").stdout)
    assert (listed["id"], listed["step"], listed["severity"]) == ("000136-loss_spike", 136, "alarm")
    one = json.loads(run(str(run_dir), "136", "--json").stdout)
    assert one.items() > listed.items()
    assert one["conclusion"].startswith("First: ") and one["findings"][0]["step"] < 136
    assert not list((run_dir / "spikes").glob("*.png"))


def test_one_record_is_shown(run_dir: Path, stdlib_bytes: Path) -> None:
    made(stdlib_bytes).write(run_dir)
    result = run(str(run_dir))
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == f"{run_dir}, record 000136-loss_spike, steps 101 to 140"
    assert "step 136: alarm: loss_spike: loss far above its mean" in lines
    assert "First: layers.1.feedforward.up.weight gradient norm x " in result.output
    assert "2 steps before the loss" in result.output
    config = Config.model_validate(made(stdlib_bytes).header.config)
    samples = Samples(config.data.sources, "train", 16, 0)
    assert "batch 35 of step 136: samples 280 to 287" in lines
    (place,) = (line for line in lines if line.startswith("sample 280: "))
    source, window, offset = samples.locate(280)
    assert source == 0 and f"{stdlib_bytes}, document" in place and f"window {window}, offset {offset:,}" in place
    text = lines[lines.index(place) + 1]
    assert text == "  " + bytes(samples[280].tolist()).decode().replace("\n", "\\n")
    assert "... and 4 more (--samples 8 shows all)" in lines
    assert (run_dir / "spikes" / "000136-loss_spike.png").read_bytes().startswith(b"\x89PNG")


def test_several_records_are_listed_and_one_chosen(run_dir: Path, stdlib_bytes: Path) -> None:
    first, second = made(stdlib_bytes), made(stdlib_bytes, step=39)
    first.write(run_dir)
    nan = Alarm("non_finite", 139, "fatal", "the loss is not finite", 0.0, 0.0, {"layer": 0, "head": 2})
    replace(second, header=replace(second.header, id="000139-non_finite", alarms=[nan])).write(run_dir)
    result = run(str(run_dir))
    rows = [" ".join(line.split()) for line in result.output.splitlines()]
    assert "000136-loss_spike 136 alarm - loss far above its mean" in rows
    assert "000139-non_finite 139 fatal layer 0, head 2 the loss is not finite" in rows
    for wanted in ("000139-non_finite", "139", "000139"):
        assert "record 000139-non_finite" in run(str(run_dir), wanted, "--samples", "0").output


def test_data_that_are_gone_are_said_to_be(run_dir: Path, stdlib_bytes: Path) -> None:
    it = made(stdlib_bytes)
    it.header.config["data"]["sources"][0]["path"] = "no/such/data"
    it.write(run_dir)
    result = run(str(run_dir))
    assert result.exit_code == 0
    assert "no text of the batch: no/such/data/manifest.json: missing" in result.output
    assert "sample 280: no/such/data, document" in result.output


def test_data_that_are_others_are_said_to_be(run_dir: Path, stdlib_bytes: Path) -> None:
    it = made(stdlib_bytes)
    replace(it, header=replace(it.header, data_fingerprint="other")).write(run_dir)
    assert "no text of the batch: the prepared data are not those of the run" in run(str(run_dir)).output


def test_mistakes_are_one_line(run_dir: Path, stdlib_bytes: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    damaged = tmp_path / "damaged"
    (damaged / "spikes").mkdir(parents=True)
    (damaged / "config.yaml").write_text("")
    (damaged / "spikes" / "000001-x.npz").write_bytes(b"no")
    assert_mistake("no such folder", str(tmp_path / "nothing"))
    assert_mistake("is no run (there is no config.yaml)", str(tmp_path / "empty"))
    assert_mistake("has no forensic records", str(run_dir))
    assert_mistake("not a forensic record, or damaged", str(damaged))
    made(stdlib_bytes).write(run_dir)
    made(stdlib_bytes, step=37).write(run_dir)
    assert_mistake("has no record 000136-los_; did you mean 000136-loss_spike?", str(run_dir), "000136-los_")
    assert_mistake("has no record loss_spike; did you mean ", str(run_dir), "loss_spike")
    assert_mistake("has no record 13; did you mean ", str(run_dir), "13")
    assert_mistake("--layout = x: must be same, single or both", str(run_dir), "136", "--layout", "x")


def assert_mistake(message: str, *arguments: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2 and message in result.stderr, result.output
    assert len(result.stderr.splitlines()) == 1


def command(*arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, "-m", "launcher", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


SPIKING = [
    "tracking.kind=none",
    "training.steps=32",
    "optimizer.lr=3e-3",
    "checkpoint.interval=10",
    "checkpoint.keep=9",
    "schedule.kind=cosine",
    "monitoring.zoom_steps=2",
    "stability.detectors.spike.window=12",
    "stability.detectors.spike.minimum=8",
]


@pytest.fixture(scope="module")
def spiked(stdlib_bytes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in two ranks (tp 2) of which batch 26 is garbage."""
    folder = tmp_path_factory.mktemp("spiked")
    tiny = str(ROOT / "configs" / "tiny.yaml")
    plant(stdlib_bytes, folder / "data", load(tiny, [f"data.sources.0.path={stdlib_bytes}"]), 26)
    fixed = [f"data.sources.0.path={folder / 'data'}", f"run.dir={folder}", "run.name=run", "parallel.tp=2"]
    trained = command("train", tiny, *fixed, *SPIKING)
    assert trained.returncode == 0, trained.stderr
    return folder / "run"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_bad_batch_is_reproduced_in_both_layouts_and_the_run_stays_as_it_is(spiked: Path) -> None:
    before = contents(spiked)
    result = command("spike", str(spiked), "27", "--replay")
    assert result.returncode == 0, result.stderr
    after = contents(spiked)
    assert {name for name in after if name not in before} == {"spikes/000027-loss_spike.png"}
    assert all(after[name] == content for name, content in before.items())
    rows = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert sum("step-00000020" in row and row.endswith("the end yes") for row in rows) == 2, result.stdout
    assert "Reproduced in both layouts: the model or the data are unstable here" in result.stdout
    assert "suspect batch 26" in result.stdout
    (worst,) = (row for row in rows if row.startswith("worst sample of the batch: "))
    assert 26 * 16 <= int(worst.split()[5].rstrip(",")) < 27 * 16


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_without_an_earlier_checkpoint_it_begins_at_the_start(spiked: Path, tmp_path: Path) -> None:
    for checkpoint in (spiked / "checkpoints").glob("step-00000*"):
        if checkpoint.name != "step-00000030":
            checkpoint.rename(tmp_path / checkpoint.name)
    try:
        result = command("spike", str(spiked), "27", "--replay", "--layout", "single")
    finally:
        for checkpoint in tmp_path.glob("step-*"):
            checkpoint.rename(spiked / "checkpoints" / checkpoint.name)
    (row,) = (" ".join(line.split()) for line in result.stdout.splitlines() if line.startswith(" one process"))
    assert row.startswith("one process the start 5.") and row.endswith("yes"), result.stdout
    assert "Reproduced in one process; what that means" in result.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_configuration_of_a_record_is_the_run_s(spiked: Path) -> None:
    it = Record.read(spiked / "spikes" / "000027-loss_spike.npz")
    assert dump(Config.model_validate(it.header.config)) == (spiked / "config.yaml").read_text()
