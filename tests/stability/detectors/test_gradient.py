"""One matrix, head or rank out of line, in made-up measurements."""

import math

import numpy as np
import pytest

from configs.stability import GradientConfig
from stability.detectors.gradient import FROZEN_FOR, FrozenHead, MatrixGradient, Shard
from tests.stability.detectors.runs import alarms_of, assert_same_after_a_resume, measured, steps

pytestmark = pytest.mark.filterwarnings("error")
CONFIG = GradientConfig()


def matrix() -> MatrixGradient:
    return MatrixGradient(CONFIG)


def head() -> FrozenHead:
    return FrozenHead(CONFIG)


def gradients(seed: int = 0, length: int = 50, matrices: int = 13) -> np.ndarray:
    """(S, M) gradient norms: matrices of several sizes that fall together, and scatter together and alone."""
    rng = np.random.default_rng(seed)
    size_M = rng.lognormal(0, 1.5, matrices)
    drift_S1 = np.exp(-np.arange(length) / 20)[:, None] + 0.05
    return size_M * drift_S1 * rng.lognormal(0, 0.5, (length, 1)) * rng.lognormal(0, 0.4, (length, matrices))


@pytest.mark.parametrize("matrices", [1, 2, 13])
@pytest.mark.parametrize("seed", range(5))
def test_matrices_that_fall_and_scatter_are_no_alarm(seed: int, matrices: int) -> None:
    assert alarms_of(matrix(), measured(grad_norm=gradients(seed, matrices=matrices))) == []


def test_what_changes_all_gradients_together_is_no_alarm() -> None:
    grad_SM = gradients()
    grad_SM[30] *= 1e4
    assert alarms_of(matrix(), measured(grad_norm=grad_SM)) == []


@pytest.mark.parametrize(("share", "found"), [(1.0, []), (1000.0, ["layers.4.weight"])])
def test_a_matrix_whose_gradient_sets_in_is_no_alarm_until_it_is_larger_than_the_others(
    share: float, found: list[str]
) -> None:
    grad_SM = gradients()
    grad_SM[:, 4] = np.median(grad_SM, axis=1) * np.where(np.arange(50) < 30, 1e-5, share)
    assert [alarm.where["matrix"] for alarm in alarms_of(matrix(), measured(grad_norm=grad_SM[:31]))] == found


def test_a_matrix_whose_gradient_passes_the_others_step_by_step_is_no_alarm() -> None:
    """Keys of a healthy run: 4e-4 of the median at first, 26 times it in the 15th measurement."""
    course = (0.022, 0.0011, 3e-4, 8e-4, 0.0015, 0.026, 0.063, 0.046, 0.076, 0.17, 0.28, 0.37, 0.86, 7.5, 26, 24, 15)
    grad_SM = np.ones((len(course), 13))
    grad_SM[:, 4] = course
    assert alarms_of(matrix(), measured(grad_norm=grad_SM)) == []
    grad_SM[13:, 4] *= 100
    assert [alarm.step for alarm in alarms_of(matrix(), measured(grad_norm=grad_SM))] == [140]


@pytest.mark.parametrize("at", [5, 30, 49])
def test_a_matrix_out_of_proportion_is_named(at: int) -> None:
    grad_SM = gradients()
    grad_SM[at, 4] *= 1000
    (alarm,) = alarms_of(matrix(), measured(grad_norm=grad_SM))
    assert (alarm.step, alarm.severity, alarm.where) == (10 * (at + 1), "alarm", {"matrix": "layers.4.weight"})
    assert 100 < alarm.value < 10000 and alarm.threshold == CONFIG.factor


def test_a_matrix_is_not_judged_before_it_is_known() -> None:
    grad_SM = gradients()
    grad_SM[CONFIG.minimum - 1, 4] *= 1000
    assert alarms_of(matrix(), measured(grad_norm=grad_SM)) == []


def test_a_gradient_of_zero_at_first_and_one_of_any_size_are_numbers() -> None:
    grad_SM = gradients()
    grad_SM[0] = 0.0  # as of what comes after a projection that begins at zero
    assert alarms_of(matrix(), measured(grad_norm=grad_SM)) == []
    grad_SM[:20, 3] = 0.0
    grad_SM[20, 3] = 1e300
    assert [alarm.where["matrix"] for alarm in alarms_of(matrix(), measured(grad_norm=grad_SM[:21]))] == [
        "layers.3.weight"
    ]


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_left_to_another_detector_and_spoils_nothing(odd: float) -> None:
    grad_SM = gradients()
    grad_SM[10:13, 2] = odd
    grad_SM[20, 4] *= 1000
    assert [alarm.step for alarm in alarms_of(matrix(), measured(grad_norm=grad_SM))] == [210]


def head_gradients(seed: int = 0, length: int = 30, shape: tuple[int, int] = (4, 4)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    layer_L1 = 10.0 ** -np.arange(shape[0])[:, None]  # deeper layers get more
    return layer_L1 * rng.lognormal(0, 1.0, (length, *shape))


@pytest.mark.parametrize("shape", [(4, 4), (1, 1), (1, 4), (3, 1)])
def test_heads_that_learn_are_no_alarm(shape: tuple[int, int]) -> None:
    assert alarms_of(head(), measured(head_grad=head_gradients(shape=shape))) == []
    assert alarms_of(head(), measured(head_grad=np.zeros((9, *shape)))) == [], "nor is a model that gets no gradient"


def test_a_layer_whose_queries_get_little_while_its_tokens_are_alike_is_no_alarm() -> None:
    grad_SLA = head_gradients()
    grad_SLA[2:8, 2:] *= 1e-7
    assert alarms_of(head(), measured(head_grad=grad_SLA)) == []


def test_a_head_without_gradient_is_told_once_and_again_when_it_stops_again() -> None:
    grad_SLA = head_gradients()
    grad_SLA[5, 2, 1] = 0.0  # one batch gave it nothing
    grad_SLA[10:20, 2, 1] *= 1e-7
    grad_SLA[25:, 2, 1] = 0.0
    alarms = alarms_of(head(), measured(head_grad=grad_SLA))
    assert [alarm.step for alarm in alarms] == [10 * (10 + FROZEN_FOR), 10 * (25 + FROZEN_FOR)]
    for alarm in alarms:
        assert alarm.where == {"layer": 2, "head": 1} and alarm.severity == "warning"
        assert alarm.value < alarm.threshold == CONFIG.frozen


def test_most_heads_of_a_layer_or_a_layer_of_one_head_can_freeze() -> None:
    grad_SLA = head_gradients()
    grad_SLA[10:, 1, 1:] = 0.0
    (alarm,) = alarms_of(head(), measured(head_grad=grad_SLA))
    assert alarm.where == {"layer": 1, "head": 1} and "2 more heads" in alarm.reason
    grad_SLA = head_gradients(shape=(3, 1))
    grad_SLA[10:, 2] = 0.0
    assert [alarm.where for alarm in alarms_of(head(), measured(head_grad=grad_SLA))] == [{"layer": 2, "head": 0}]


def test_head_gradients_that_are_not_finite_are_passed_over() -> None:
    grad_SLA = head_gradients()
    grad_SLA[10:, 2, 1] = 0.0
    grad_SLA[11, 0, 0], grad_SLA[12, 0, 0] = math.nan, math.inf
    assert [alarm.step for alarm in alarms_of(head(), measured(head_grad=grad_SLA))] == [140]


def shards(seed: int = 0, length: int = 30, ranks: int = 4, matrices: int = 5) -> np.ndarray:
    """(S, M, P) root mean squares of weights that grow by a factor of 100, ranks nearly alike."""
    rng = np.random.default_rng(seed)
    growth_S11 = np.geomspace(0.02, 2.0, length)[:, None, None]
    return growth_S11 * rng.lognormal(0, 0.1, (length, matrices, ranks))


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("matrices", [1, 5])
def test_shards_that_grow_together_are_no_alarm(ranks: int, matrices: int) -> None:
    rms_SMP = shards(ranks=ranks, matrices=matrices)
    assert alarms_of(Shard(), measured(shard_rms=rms_SMP)) == []
    rms_SMP[0] = 0.0  # a projection that begins at zero
    assert alarms_of(Shard(), measured(shard_rms=rms_SMP)) == []


@pytest.mark.parametrize(("before", "now"), [(1, 4), (2, 4), (4, 2), (4, 1)])
def test_shards_of_another_layout_are_not_compared(before: int, now: int) -> None:
    """A resume may change the number of tensor-parallel ranks; the next measurement is compared again."""
    saved, resumed = Shard(), Shard()
    alarms_of(saved, measured(shard_rms=shards(ranks=before)))
    resumed.load(saved.state())
    rms_SMP = shards(ranks=now)
    assert alarms_of(resumed, measured(shard_rms=rms_SMP)) == []
    rms_SMP[20:, 0, 0] *= 1e6
    assert len(alarms_of(resumed, measured(shard_rms=rms_SMP))) == 1


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("factor", [1e36, 1e-20, 0.0, math.inf, math.nan])
def test_a_shard_that_jumps_alone_is_named_whichever_way_it_jumps(ranks: int, factor: float) -> None:
    rms_SMP = shards(ranks=ranks)
    rms_SMP[12:, 3, ranks - 1] *= factor
    (alarm,) = alarms_of(Shard(), measured(shard_rms=rms_SMP))
    assert (alarm.step, alarm.severity) == (130, "fatal")
    assert alarm.where == {"matrix": "layers.3.weight", "tp_rank": ranks - 1}
    assert ("shrank" if factor < 1 else "grew") in alarm.reason


def test_beside_peers_a_smaller_jump_is_enough() -> None:
    rms_SMP = shards(ranks=2)
    rms_SMP[12:, 3, 0] *= 50
    (alarm,) = alarms_of(Shard(), measured(shard_rms=rms_SMP))
    assert (alarm.step, alarm.where["tp_rank"]) == (130, 0)
    assert alarms_of(Shard(), measured(shard_rms=rms_SMP[..., :1])) == []


def test_all_shards_jumping_together_is_training() -> None:
    rms_SMP = shards(ranks=4)
    rms_SMP[12:] *= 500
    assert alarms_of(Shard(), measured(shard_rms=rms_SMP)) == []


@pytest.mark.parametrize("build", [matrix, head, Shard])
def test_steps_without_the_arrays_are_passed_over(build: type) -> None:
    assert alarms_of(build(), steps([2.0] * 20)) == []
    assert alarms_of(build(), measured(something_else=np.full((20, 4, 4), math.nan))) == []


def test_a_resumed_run_raises_the_same_alarms() -> None:
    grad_SM = gradients(length=70)
    grad_SM[[20, 60], 4] *= 1000
    grad_SM[30, 1] = math.nan
    assert_same_after_a_resume(matrix, measured(grad_norm=grad_SM))
    grad_SLA = head_gradients()
    grad_SLA[10:20, 2, 1] = 0.0
    grad_SLA[22:, 0, 3] = 0.0
    assert_same_after_a_resume(head, measured(head_grad=grad_SLA))
    rms_SMP = shards()
    rms_SMP[12:, 3, 1] *= 1e30
    rms_SMP[20:, 0, 2] = math.nan
    assert_same_after_a_resume(Shard, measured(shard_rms=rms_SMP))
