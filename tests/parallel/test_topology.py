"""Devices of ranks. (Groups are judged by the dense reference.)"""

import pytest

from configs.errors import ConfigError
from configs.schema import ParallelConfig
from parallel import topology


def test_a_rank_without_a_device_of_its_own_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ConfigError, match=r"^training.device = auto: local rank 1 needs a CUDA device of its own and "):
        topology.start(ParallelConfig(), "auto")
