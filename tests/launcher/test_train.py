"""Training in this process, and the devices it asks for."""

import os

import pytest

from configs.errors import ConfigError, LaunchError
from configs.load import load
from launcher.outcome import Outcome
from launcher.train import train

FINISH = "tests.launcher.ranks:finish"


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "c.yaml"
    path.write_text("data: {sources: [{path: x}]}\n")
    return path


def test_one_process_leaves_no_trace_in_the_environment(path):
    before = dict(os.environ)
    assert train(path, [], entry=FINISH) == Outcome("finished", 2.5, "runs/run")
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("count", "overrides", "message"),
    [
        (0, [], "training.device = cuda: this machine has no CUDA device that torch can use; use auto or cpu"),
        (
            1,
            ["parallel.tp=2"],
            "training.device = cuda: 2 processes need a device each; this machine has 1; "
            "lower parallel.tp, pp or dp, or use cpu",
        ),
    ],
)
def test_missing_devices_are_one_line(path, monkeypatch, count, overrides, message):
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    with pytest.raises(ConfigError) as caught:
        train(path, ["training.device=cuda", *overrides], entry=FINISH)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("count", "device", "said"),
    [
        (0, "auto", ""),
        (1, "cpu", "training.device = auto: 1 CUDA device for 2 processes: training on the CPU\n"),
        (2, "auto", ""),
    ],
)
def test_auto_takes_cuda_only_with_a_device_for_each_process(path, monkeypatch, capsys, count, device, said):
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.setattr("launcher.local.launch", lambda config_path, *_: load(config_path).training.device)
    assert train(path, ["parallel.tp=2"], entry=FINISH) == device
    assert capsys.readouterr().err == said


def test_nproc_is_refused_under_torchrun(path, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"^command line: --nproc = 2: must not be set under torchrun$"):
        train(path, [], nproc=2, entry=FINISH)


def test_another_rank_says_which_it_is(path, monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"^rank 1: command line: model.layerz: no such key"):
        train(path, ["model.layerz=1"], entry=FINISH)


def test_a_crash_of_one_process_is_one_line_and_a_traceback_in_a_file(path):
    with pytest.raises(LaunchError, match=r"^training failed: ZeroDivisionError: .*; traceback in .*rank-0.traceback$"):
        train(path, [], entry="tests.launcher.test_train:crash")
    assert "in crash" in (path.parent / "runs" / "run" / "logs" / "rank-0.traceback").read_text()


def crash(config):
    return 1 / 0
