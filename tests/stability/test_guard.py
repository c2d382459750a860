"""The guard beside plain loops over the numbers that it saw."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from configs.stability import SkipConfig, ZClipConfig
from stability.guard import Guard, OutlierRule, ZClip

CPU = torch.device("cpu")
SMALL = SkipConfig(enabled=True, window=16, minimum=8, sigmas=2.0)
OFF = SkipConfig()
NO_ZCLIP = ZClipConfig()
ZCLIP = ZClipConfig(enabled=True)


def series(seed: int, steps: int) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step, with outliers of all sizes, nans and infinities."""
    rng = np.random.default_rng(seed)
    values = np.stack([rng.normal(3.0, 0.1, steps), rng.lognormal(0.0, 0.3, steps)], axis=1)
    values *= np.where(rng.random((steps, 2)) < 0.05, rng.uniform(1.0, 5.0, (steps, 2)), 1.0)
    odd = rng.random((steps, 2)) < 0.04
    values[odd] = rng.choice([np.nan, np.inf, -np.inf], odd.sum())
    return [(float(loss), float(norm)) for loss, norm in values]


def is_kept(before: list[tuple[float, float]], now: tuple[float, float], config: SkipConfig) -> bool:
    """OLMo-core's rule in numpy: no number is `sigmas` sd above the mean of those of the last `window` steps."""
    for kind, value in enumerate(now):
        if not math.isfinite(value):
            return False
        window = np.array([step[kind] for step in before[-config.window :]])
        window = window[np.isfinite(window)]
        if len(window) >= config.minimum and value > window.mean() + config.sigmas * window.std(ddof=1):
            return False
    return True


def judge(rule: OutlierRule, now: tuple[float, float]) -> bool:
    return bool(rule.judge(torch.tensor(now, dtype=torch.float64)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("config", [SMALL, SkipConfig(enabled=True, sigmas=4.0)], ids=["small", "default window"])
def test_each_decision_of_the_outlier_rule_is_that_of_numpy(config: SkipConfig, seed: int) -> None:
    steps = series(seed, 4 * config.window + 5)  # the window wraps around several times
    rule = OutlierRule(config, CPU)
    decisions = [judge(rule, now) for now in steps]
    expected = [is_kept(steps[:step], now, config) for step, now in enumerate(steps)]
    assert decisions == expected
    finite = [kept for kept, now in zip(decisions, steps, strict=True) if np.isfinite(now).all()]
    assert True in finite and False in finite, "the series must try both"


def test_the_outlier_rule_judges_only_when_it_has_seen_enough_steps() -> None:
    config = SkipConfig(enabled=True, window=8, minimum=4, sigmas=3.0)
    for count, kept in [(3, True), (4, False)]:
        rule = OutlierRule(config, CPU)
        for step in range(count):
            assert judge(rule, (2.0 + 0.1 * (step % 2), 1.0))
        assert judge(rule, (9.0, 1.0)) is kept
    assert not judge(OutlierRule(config, CPU), (math.nan, 1.0)), "what is not finite is left out from the first step on"


def test_a_low_loss_is_no_outlier_and_a_change_for_good_is_followed() -> None:
    rule = OutlierRule(SMALL, CPU)
    for step in range(20):
        assert judge(rule, (3.0 + 0.1 * (step % 2), 1.0))
    assert judge(rule, (0.5, 1.0))
    later = [judge(rule, (8.0, 1.0)) for _ in range(SMALL.window)]
    assert not later[0] and later[-1]


def test_the_outlier_rule_goes_on_bit_equal_from_json_after_any_step() -> None:
    steps = series(7, 3 * SMALL.window)
    rule = OutlierRule(SMALL, CPU)
    states, decisions = [], []
    for now in steps:
        states.append(json.dumps(rule.state(), allow_nan=False))
        decisions.append(judge(rule, now))
    end = json.dumps(rule.state())
    for step, state in enumerate(states):
        resumed = OutlierRule(SMALL, CPU)
        resumed.load(json.loads(state))
        assert [judge(resumed, now) for now in steps[step:]] == decisions[step:]
        assert json.dumps(resumed.state()) == end


@pytest.mark.parametrize("seen", [3, 16, 21, 40])
@pytest.mark.parametrize("window", [8, 24])
def test_another_window_length_goes_on_from_the_newest_steps(window: int, seen: int) -> None:
    steps = series(3, 100)
    before = OutlierRule(SMALL, CPU)
    for now in steps[:seen]:
        judge(before, now)
    config = SMALL.model_copy(update={"window": window, "minimum": 4})
    after = OutlierRule(config, CPU)
    after.load(json.loads(json.dumps(before.state())))
    first = max(0, seen - SMALL.window)  # older ones were forgotten before
    for step in range(seen, len(steps)):
        assert judge(after, steps[step]) is is_kept(steps[first:step], steps[step], config), step


def zclip_by_hand(norms: list[float], config: ZClipConfig) -> list[float]:
    """The norm that each step allows (inf: no limit), by Kumar et al. 2025, Algorithm 1, in plain Python."""
    allowed, first, mean, variance = [], [], 0.0, 0.0
    for norm in norms:
        allowed.append(math.inf)
        if not math.isfinite(norm):
            continue
        if len(first) < config.warmup:
            first.append(norm)
            mean = sum(first) / len(first)
            variance = sum((x - mean) ** 2 for x in first) / len(first)
            continue
        sd = math.sqrt(variance)
        z = (norm - mean) / (sd + 1e-12)
        if z > config.threshold:
            norm = allowed[-1] = mean + config.threshold**2 / z * sd
        mean = config.decay * mean + (1 - config.decay) * norm
        variance = config.decay * variance + (1 - config.decay) * (norm - mean) ** 2
    return allowed


@pytest.mark.parametrize("seed", range(4))
def test_zclip_allows_what_a_plain_loop_allows(seed: int) -> None:
    norms = [abs(norm) for _, norm in series(seed, 300)]
    rule = ZClip(ZCLIP, CPU)
    allowed = [rule.allow(torch.tensor(norm, dtype=torch.float64)).item() for norm in norms]
    expected = zclip_by_hand(norms, ZCLIP)
    np.testing.assert_allclose(allowed, expected, rtol=1e-12)
    assert 5 < np.isfinite(expected).sum() < 60, "the series must try both"
    assert not np.isfinite(expected[: ZCLIP.warmup]).any()


def test_zclip_clips_a_worse_outlier_harder_but_never_below_the_mean() -> None:
    limits = []
    for norm in (3.0, 10.0, 1e6):
        rule = ZClip(ZCLIP, CPU)
        for step in range(30):
            rule.allow(torch.tensor(1.0 + 0.1 * (step % 2), dtype=torch.float64))
        limits.append(rule.allow(torch.tensor(norm, dtype=torch.float64)).item())
    assert limits[0] > limits[1] > limits[2] > 1.0


def test_zclip_ignores_what_is_not_finite_and_goes_on_bit_equal_from_json() -> None:
    norms = [abs(norm) for _, norm in series(11, 120)]
    rule = ZClip(ZCLIP, CPU)
    states, allowed = [], []
    for norm in norms:
        before = json.dumps(rule.state(), allow_nan=False)
        states.append(before)
        allowed.append(rule.allow(torch.tensor(norm, dtype=torch.float64)).item())
        assert (json.dumps(rule.state()) == before) is not math.isfinite(norm)
    for step in range(0, len(norms), 7):
        resumed = ZClip(ZCLIP, CPU)
        resumed.load(json.loads(states[step]))
        assert [resumed.allow(torch.tensor(n, dtype=torch.float64)).item() for n in norms[step:]] == allowed[step:]


def totals(loss: float = 3.0, requests: float = 0.0) -> torch.Tensor:
    return torch.tensor([loss, requests], dtype=torch.float64)


@pytest.mark.parametrize("clip", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("size", [1e-3, 0.5, 1.0, 40.0])
def test_clipping_alone_is_deepspeeds_to_the_bit_and_torchs_to_rounding(clip: float, size: float) -> None:
    parameter = torch.nn.Parameter(torch.zeros(50))
    parameter.grad = torch.randn(50, generator=torch.Generator().manual_seed(0)) * size
    norm = parameter.grad.norm()
    guard = Guard(OFF, NO_ZCLIP, clip, CPU)
    judged = guard.judge(totals(), norm)
    assert judged.scale is not None and judged.scale.dtype == torch.float32
    assert torch.equal(judged.scale, torch.clamp((norm + 1e-6) / clip, min=1.0))
    clipped = parameter.grad / judged.scale
    torch.nn.utils.clip_grad_norm_([parameter], clip)
    torch.testing.assert_close(clipped, parameter.grad)
    assert judged.keep and judged.clipped_to == math.inf and judged.grad_norm == norm.item()


def test_without_clipping_gradients_are_left_as_they_are() -> None:
    judged = Guard(OFF, NO_ZCLIP, 0.0, CPU).judge(totals(2.5, 1.0), torch.tensor(9.0))
    assert judged.scale is None
    assert (judged.loss, judged.stopping, judged.grad_norm, judged.keep) == (2.5, True, 9.0, True)


def steady(guard: Guard, steps: int = 70) -> Guard:
    for step in range(steps):
        judged = guard.judge(totals(3.0 + 0.01 * (step % 2)), torch.tensor(1.0 + 0.1 * (step % 2)))
        assert judged.keep and judged.clipped_to == math.inf and not judged.stopping
    return guard


def test_zclip_without_a_fixed_limit_scales_the_norm_to_what_it_allows() -> None:
    judged = steady(Guard(OFF, ZCLIP, 0.0, CPU)).judge(totals(), torch.tensor(20.0))
    assert judged.scale is not None and 1.0 < judged.clipped_to < 1.2
    assert 20.0 / judged.scale.item() == pytest.approx(judged.clipped_to, rel=1e-6)
    within = steady(Guard(OFF, ZCLIP, 0.0, CPU)).judge(totals(), torch.tensor(1.1))
    assert within.scale is not None and within.scale.item() == 1.0


def test_the_lower_of_two_limits_counts_and_zclip_is_named_only_where_it_is_the_lower() -> None:
    lower = steady(Guard(OFF, ZCLIP, 5.0, CPU)).judge(totals(), torch.tensor(20.0))
    assert lower.scale is not None and 20.0 / lower.scale.item() == pytest.approx(lower.clipped_to, rel=1e-6)
    higher = steady(Guard(OFF, ZCLIP, 0.5, CPU)).judge(totals(), torch.tensor(20.0))
    assert higher.scale is not None and 20.0 / higher.scale.item() == pytest.approx(0.5, rel=1e-6)
    assert higher.clipped_to == math.inf


@pytest.mark.parametrize(
    ("loss", "norm"), [(9.0, 1.0), (3.0, 50.0), (math.nan, 1.0), (3.0, math.inf)], ids=["loss", "norm", "nan", "inf"]
)
def test_an_outlier_in_loss_or_norm_is_left_out(loss: float, norm: float) -> None:
    guard = steady(Guard(SkipConfig(enabled=True), ZCLIP, 1.0, CPU))
    judged = guard.judge(totals(loss), torch.tensor(norm))
    assert not judged.keep
    assert guard.judge(totals(), torch.tensor(1.0)).keep


def test_a_guard_goes_on_from_json_and_a_rule_switched_on_later_begins_anew() -> None:
    steps = series(5, 200)
    skip = SkipConfig(enabled=True)

    def run(guard: Guard, numbers: list[tuple[float, float]]) -> list[str]:
        return [repr(guard.judge(totals(loss), torch.tensor(abs(norm)))) for loss, norm in numbers]

    straight = run(Guard(skip, ZCLIP, 1.0, CPU), steps)
    first, second = Guard(skip, ZCLIP, 1.0, CPU), Guard(skip, ZCLIP, 1.0, CPU)
    assert run(first, steps[:90]) == straight[:90]
    second.load(json.loads(json.dumps(first.state(), allow_nan=False)))
    assert run(second, steps[90:]) == straight[90:]

    without = Guard(skip, NO_ZCLIP, 1.0, CPU)
    assert set(without.state()) == {"skip"}
    first.load(without.state())
    steady(first, 10)


class HostReads(TorchFunctionMode):
    """Counts what makes the host wait for a number of the device."""

    READS = ("tolist", "item", "__bool__", "__int__", "__float__", "__index__", "__array__", "numpy", "cpu", "nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += getattr(func, "__name__", "") in self.READS
        return func(*args, **(kwargs or {}))


class ScalarReads(TorchDispatchMode):
    """Counts reads from inside torch, as an index or a condition on a tensor makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def reads(guard: Guard) -> int:
    loss_and_stop, norm = totals(), torch.tensor(30.0)
    with HostReads() as outer, ScalarReads() as inner:
        guard.judge(loss_and_stop, norm)
    return outer.count + inner.count


@pytest.mark.parametrize("zclip", [NO_ZCLIP, ZCLIP], ids=["no zclip", "zclip"])
@pytest.mark.parametrize("skip", [OFF, SkipConfig(enabled=True)], ids=["no skip", "skip"])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_judgement_reads_from_the_device_once(skip: SkipConfig, zclip: ZClipConfig, clip: float) -> None:
    guard = Guard(skip, zclip, clip, CPU)
    assert reads(guard) == 1
    assert reads(steady(copy.deepcopy(guard))) == 1


def test_a_second_read_would_be_counted() -> None:
    class Curious(Guard):
        def judge(self, totals, norm):  # type: ignore[no-untyped-def]
            assert norm > 0  # waits for the device
            return super().judge(totals, norm)

    assert reads(Curious(OFF, NO_ZCLIP, 1.0, CPU)) > 1
