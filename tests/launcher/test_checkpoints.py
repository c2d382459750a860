"""`steadytrain checkpoints`: the table, the JSON, and damaged ones among good ones."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from configs.schema import Config
from launcher.cli import app
from training.checkpoint import store

ROOT = Path(__file__).parents[2]


def run(*arguments: str):
    return CliRunner(env={"COLUMNS": "140"}).invoke(app, ["checkpoints", *arguments])


@pytest.fixture
def run_dir(tmp_path, monkeypatch) -> Path:
    """A run with three good checkpoints."""
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/a")
    for step, age in ((10, 7300), (20, 3.5 * 86400), (30, 100)):
        scratch = store.begin(folder / "checkpoints", step)
        save_file({"w": np.arange(1000.0)}, scratch / "w.safetensors")
        manifest = store.Manifest(
            step=step,
            created=time.time() - age,
            layout={"tp": 2, "pp": 1, "dp": 4, "schedule": "1f1b"},
            config=Config.model_validate({"data": {"sources": [{"path": "x"}]}}).model_dump(mode="json"),
            data_fingerprint="f",
            val_loss=None if step == 10 else 2.5,
            journal={},
            files={"w.safetensors": store.describe(scratch / "w.safetensors")},
        )
        store.commit(scratch, manifest)
    (folder / "config.yaml").write_text("")
    return folder


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def rows(output: str) -> list[list[str]]:
    return [" ".join(line.split()).split() for line in output.splitlines()[3:] if line.strip()]


def test_the_table(run_dir):
    result = run(str(run_dir))
    assert result.exit_code == 0
    words = ["8.1", "KB", "2", "x", "1", "x", "4"]
    verdict = ["sizes", "right"]
    assert rows(result.output) == [
        ["30", "30,720", *words, "2", "min", "2.5000", *verdict],
        ["20", "20,480", *words, "4", "d", "2.5000", *verdict],
        ["10", "10,240", *words, "2", "h", "-", *verdict],
    ]


def test_a_flipped_byte_is_found_by_reading_every_byte(run_dir):
    flip_a_byte(run_dir / "checkpoints/step-00000020/w.safetensors")
    assert [entry["good"] for entry in json.loads(run(str(run_dir), "--json").stdout)] == [True, True, True]
    result = run(str(run_dir), "--verify", "--json")
    assert result.exit_code == 0
    assert [(entry["step"], entry["good"], entry["verdict"]) for entry in json.loads(result.stdout)] == [
        (30, True, "good, every byte"),
        (20, False, "w.safetensors: changed since it was written: its checksum does not match manifest.json"),
        (10, True, "good, every byte"),
    ]


def test_damage_leaves_the_others_listed(run_dir):
    (run_dir / "checkpoints/step-00000030/manifest.json").write_text("torn")
    (run_dir / "checkpoints/step-00000010/w.safetensors").unlink()
    torn, good, missing = json.loads(run(str(run_dir), "--json").stdout)
    assert (torn["step"], torn["good"], torn["tokens"], torn["layout"]) == (30, False, None, None)
    assert torn["verdict"].startswith("manifest.json: is no manifest of a checkpoint, or torn")
    assert (good["step"], good["good"], good["bytes"], good["val_loss"]) == (20, True, 8072, 2.5)
    assert good["layout"] == {"tp": 2, "pp": 1, "dp": 4, "schedule": "1f1b"}
    assert (missing["verdict"], missing["tokens"]) == ("w.safetensors: is missing", 10_240)
    assert rows(run(str(run_dir)).output)[0][:6] == ["30", "-", "-", "-", "-", "-"]


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("nowhere", "nowhere: no such folder; give the folder of a run, such as runs/tiny"),
        ("runs", "runs: is no run (there is no config.yaml); give the folder of a run"),
        ("runs/b", "runs/b: has no checkpoints; checkpoint.interval sets when a run saves them"),
    ],
)
def test_nothing_to_list_is_one_line(run_dir, folder, message):
    Path("runs/b").mkdir()
    Path("runs/b/config.yaml").write_text("")
    store.begin(Path("runs/b/checkpoints"), 10)  # half of one is none
    result = run(folder)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", message + "\n")


def test_listing_imports_no_torch(run_dir):
    script = (
        "import sys; from launcher.cli import app\n"
        f"try: app(['checkpoints', {str(run_dir)!r}, '--verify'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert result.stdout.endswith("\nFalse\n"), result
