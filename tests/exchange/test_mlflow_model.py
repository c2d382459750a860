"""An exported model in a real SQLite store: loaded back, it computes what the exported folder computes."""

import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from launcher.cli import app
from tests.distributed import spawn
from tests.exchange.runs import LLAMA, SMALL
from tests.training.test_run import tiny
from training.run import train


def run(*arguments: str):  # type: ignore[no-untyped-def]
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.mark.slow
def test_logged_registered_and_loaded_back(stdlib_bytes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # MLflow puts what it is not told a place for into the working folder
    store = f"sqlite:///{tmp_path}/mlflow.db"
    cfg = tiny(stdlib_bytes, tmp_path, 1, *SMALL, *LLAMA, "tracking.kind=mlflow", "run.name=a/b")
    spawn(1, train, cfg)
    run_id = (cfg.run_dir / "mlflow_run_id").read_text().strip()
    before = mlflow.MlflowClient(store).get_run(run_id).info
    result = run("export", cfg.run_dir, "--out", "out", "--log-to-mlflow", "--register", "tiny", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout.splitlines()[-1])["mlflow"]
    assert (told["tracking_uri"], told["run_id"], told["registered"]) == (store, run_id, "tiny/1")
    after = mlflow.MlflowClient(store).get_run(run_id)
    assert (after.info.status, after.info.end_time) == (before.status, before.end_time)
    assert [output.model_id for output in after.outputs.model_outputs] == [told["model_uri"].removeprefix("models:/")]
    assert not (tmp_path / "mlruns").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    mlflow.set_tracking_uri(store)
    loaded = mlflow.pyfunc.load_model("models:/tiny/1")
    tokens_BT = np.array([[72, 105, 33, 10], [1, 2, 3, 256]])
    logits_BTV = loaded.predict(tokens_BT)
    with torch.no_grad():
        expected_BTV = AutoModelForCausalLM.from_pretrained("out")(torch.from_numpy(tokens_BT)).logits.numpy()
    assert np.array_equal(logits_BTV, expected_BTV)
    assert loaded.metadata.signature.inputs.to_dict()[0]["tensor-spec"] == {"dtype": "int64", "shape": (-1, -1)}
    assert loaded.metadata.signature.outputs.to_dict()[0]["tensor-spec"]["shape"] == (-1, -1, 257)


def test_registering_needs_logging() -> None:
    result = run("export", "runs/x", "--out", "y", "--register", "tiny")
    assert (result.exit_code, result.stderr) == (2, "command line: --register = tiny: needs --log-to-mlflow\n")


def test_plain_weights_are_no_mlflow_model() -> None:
    result = run("export", "runs/x", "--out", "y", "--to", "plain", "--log-to-mlflow")
    assert (result.exit_code, result.stderr) == (2, "command line: --log-to-mlflow: needs --to hf, not --to plain\n")


def test_names_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    for out, name in (("v1.0", "tiny"), ("v1", "a/b")):
        result = run("export", "runs/x", "--out", tmp_path / out, "--log-to-mlflow", "--register", name)
        option = "--out = v1.0" if out == "v1.0" else "--register = a/b"
        assert result.exit_code == 2
        assert result.stderr.startswith(f"command line: {option}: MLflow takes no such name: Invalid model name ")
    assert list(tmp_path.iterdir()) == []
