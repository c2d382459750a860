"""Which process torchrun or srun made of us."""

import pytest

from configs.errors import LaunchError
from launcher.environment import Rank, started_rank

TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "h", "MASTER_PORT": "1"}
SRUN = {
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "4",
    "MASTER_ADDR": "h",
    "MASTER_PORT": "1",
}


def test_nobody_started_us():
    assert started_rank({}) is None


def test_torchrun_started_us():
    assert started_rank(TORCHRUN) == Rank(3, 1, 4, "torchrun")


def test_srun_started_us():
    assert started_rank(SRUN) == Rank(3, 1, 4, "srun")


@pytest.mark.parametrize("step", [{}, {"SLURM_STEP_ID": "batch"}])
def test_a_batch_script_is_no_rank(step):
    environ = {name: value for name, value in SRUN.items() if name != "SLURM_STEP_ID"}
    assert started_rank(environ | step) is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"RANK": "first"}, "environment: RANK = first: torchrun sets a whole number >= 0 for each process"),
        ({"MASTER_PORT": ""}, "environment: MASTER_PORT must be set: the address of rank 0's machine, a port"),
    ],
)
def test_an_incomplete_environment_is_refused(wrong, message):
    with pytest.raises(LaunchError) as caught:
        started_rank(TORCHRUN | wrong)
    assert str(caught.value) == message
