"""What moved first, in records whose fault is known. Row i is step 101 + i; the alarm is at step 136, row 35."""

import math
from dataclasses import replace

import numpy as np
import pytest

from stability.culprit import examine
from stability.record import Track
from stability.series import MINIMUM, robust_z
from tests.stability.records import MEASURED, PARAMETERS, record

LAST = MEASURED - 2  # the last measurement before the alarm, at step 136


def test_a_healthy_record_shows_nothing() -> None:
    for seed in range(20):
        seen = examine(record(seed=seed, dp=2, tp=2))
        assert seen.findings == [] and seen.conclusion.startswith("Nothing recorded left its usual course")


def test_one_matrix_before_the_loss() -> None:
    def fault(arrays) -> None:
        arrays["gradient"][33:36, :, 3] *= [[84], [200], [300]]
        arrays["loss"][35:] += 2

    seen = examine(record(fault))
    first = seen.findings[0]
    assert first.where == {"layer": 1, "matrix": "layers.1.feedforward.up", "parameter": PARAMETERS[3]}
    assert first.step == 134 and first.value / first.before == pytest.approx(84, rel=0.5)
    assert first.sentence.startswith("layers.1.feedforward.up.weight gradient norm x ")
    assert first.sentence.endswith("at step 134, 2 steps before the loss")
    assert seen.conclusion == f"First: {first.sentence}."
    assert [f.quantity for f in seen.findings[1:]] == ["loss"] and seen.findings[1].sentence.endswith("at step 136")


def test_a_bad_batch_moves_everything_at_once() -> None:
    def fault(arrays) -> None:
        arrays["gradient"][35] *= 20
        arrays["grad_norm"][35] *= 6
        arrays["loss"][35] += 1

    seen = examine(record(fault, dp=2))
    assert seen.findings[0].step == 136 and not any("rank" in f.where for f in seen.findings)
    assert seen.conclusion == "At step 136, and not before, 100% of all gradients moved at once: suspect batch 35."
    assert sum(f.series == "gradient" for f in seen.findings) == 3  # the largest, not all six


def test_a_nan_in_one_rank_s_gradient_names_the_rank() -> None:
    def fault(arrays) -> None:
        arrays["gradient"][35, 3, 2] = math.nan
        arrays["grad_norm"][35] = math.inf

    first = examine(record(fault, dp=2, tp=2)).findings[0]
    assert first.where == {"layer": 1, "matrix": "layers.1.attention.qkv.q", "parameter": PARAMETERS[2], "rank": 3}
    assert math.isinf(first.z) and "is not finite on rank 3 only (tp 1, pp 0, dp 1; node3, cpu)" in first.sentence


def test_a_rank_far_from_its_peers_is_named() -> None:
    def fault(arrays) -> None:
        arrays["gradient"][34:, 1] *= 50

    seen = examine(record(fault, dp=4))
    assert {f.where["rank"] for f in seen.findings if f.series == "gradient"} == {1}
    assert "not on its peers" in seen.conclusion and "rank 1 only" in seen.conclusion


def test_a_parameter_that_few_ranks_hold_is_compared_among_those() -> None:
    made = record(lambda arrays: arrays["gradient"].__setitem__((35, slice(0, 2), 0), 9.0), dp=4)
    made.labels["holds"][2:, 0] = False
    made.tracks["gradient"].values[:, 2:, 0] = math.nan  # as in another pipeline stage
    (finding,) = (f for f in examine(made).findings if f.series == "gradient")
    assert "rank" not in finding.where and finding.where["parameter"] == PARAMETERS[0]


def test_shards_of_the_vocabulary_are_no_peers_but_replicas_are() -> None:
    def grown(*ranks: int, name: str) -> dict:
        made = record(lambda arrays: arrays["gradient"].__setitem__((35, ranks, 0), 9.0), dp=2, tp=2)
        made.labels["parameter"][0] = name
        return next(f for f in examine(made).findings if f.series == "gradient").where

    assert "rank" not in grown(1, 3, name="embedding.weight")
    made = record(lambda arrays: arrays["gradient"].__setitem__((slice(35), 0, 0), 0.0))
    made.labels["parameter"][0] = "embedding.weight"
    assert examine(made).findings == []  # words that had not occurred before
    assert grown(3, name="embedding.weight")["rank"] == 3
    assert grown(1, 3, name="layers.0.attention.output.weight")["rank"] in (1, 3)


def test_the_gradient_of_a_single_number_may_vanish_but_not_explode() -> None:
    def moved(value: float) -> list:
        made = record(lambda arrays: arrays["gradient"].__setitem__((35, 0, 2), value))
        made.labels["parameter"][2] = "layers.1.feedforward.up.gamma"
        return examine(made).findings

    assert moved(1e-9) == [] and moved(9.0)[0].where["parameter"] == "layers.1.feedforward.up.gamma"


def test_a_head_a_layer_and_a_matrix_are_named() -> None:
    def fault(arrays) -> None:
        arrays["measured.entropy"][LAST - 1 :, 2, 1] = 0.2
        arrays["measured.token_cosine"][LAST:, 0] = 0.99
        arrays["sigma"][35:, 4] *= 3

    found = {f.quantity: f for f in examine(record(fault)).findings}
    assert found["attention entropy"].where == {"layer": 2, "head": 1}
    assert found["attention entropy"].sentence.startswith("layer 2, head 1: attention entropy from 2.99")
    assert "4 steps before the alarm" in found["attention entropy"].sentence
    assert found["token cosine"].where == {"layer": 0}
    assert found["sigma"].where == {"layer": 2, "matrix": "layers.2.attention.qkv.q"}
    assert next(iter(found)) == "attention entropy"


def test_a_flipped_bit_names_the_shard() -> None:
    made = record(lambda arrays: arrays["measured.shard_rms"].__setitem__((slice(LAST, None), 5, 1), 0.05), tp=2)
    first = examine(made).findings[0]
    assert first.where == {"layer": 2, "matrix": "layers.2.feedforward.up", "tp": 1}
    assert "weight RMS x 2.5 on tensor-parallel rank 1 only" in first.sentence


def test_a_weight_that_grows_on_all_shards_names_none() -> None:
    made = record(lambda arrays: arrays["measured.shard_rms"].__setitem__((slice(LAST, None), 5), 0.05), tp=2)
    assert "tp" not in examine(made).findings[0].where


def test_a_learning_rate_pulse_comes_first() -> None:
    def fault(arrays) -> None:
        arrays["lr"][33:] *= 30
        arrays["gradient"][34:] *= 20
        arrays["loss"][35:] += 3

    seen = examine(record(fault))
    assert seen.findings[0].quantity == "learning rate" and seen.findings[0].step == 134
    assert seen.conclusion.startswith("First: learning rate x 30 at step 134, 2 steps before the loss")


def test_a_frozen_head_is_named_though_it_never_moved() -> None:
    made = record(lambda arrays: arrays["measured.head_grad"].__setitem__((slice(None), 1, 2), 0.0))
    (finding,) = examine(made).findings
    assert finding.where == {"layer": 1, "head": 2} and "next to no gradient" in finding.sentence


def test_a_head_that_freezes_is_named_once() -> None:
    made = record(lambda arrays: arrays["measured.head_grad"].__setitem__((slice(LAST, None), 1, 2), 0.0))
    (finding,) = examine(made).findings
    assert finding.where == {"layer": 1, "head": 2} and finding.step == 136


def test_what_happens_after_the_alarm_is_no_cause() -> None:
    assert examine(record(lambda arrays: arrays["gradient"].__setitem__(slice(36, None), 99.0))).findings == []


def test_what_came_back_long_before_the_alarm_is_no_cause() -> None:
    assert examine(record(lambda arrays: arrays["gradient"].__setitem__(12, 99.0))).findings == []


def test_a_movement_is_dated_to_where_it_began() -> None:
    first = examine(record(lambda arrays: arrays["gradient"].__setitem__((slice(22, None), 0, 1), 99.0))).findings[0]
    assert first.step == 123 and "13 steps before the alarm" in first.sentence


def test_weights_that_grow_steadily_do_not_move() -> None:
    growth = 1.05 ** np.arange(40.0)
    assert examine(record(lambda arrays: arrays["sigma"].__imul__(growth[:, None]))).findings == []


def test_what_has_lasted_longer_than_its_past_is_how_things_are() -> None:
    assert examine(record(lambda arrays: arrays["sigma"].__setitem__((slice(7, None), 1), 9.0))).findings == []


def test_a_quantity_of_a_later_version_is_looked_at_too() -> None:
    made = record(lambda a: a.__setitem__("measured.novelty", np.r_[np.ones(LAST), [50.0, 50.0]]))
    assert examine(made).findings[0].quantity == "novelty"


def test_few_steps_before_are_too_few_but_a_nan_is_not() -> None:
    values_SN = np.ones((MINIMUM + 1, 2))
    values_SN[2, 1], values_SN[MINIMUM - 1, 0] = math.nan, 99
    z_SN, _ = robust_z(values_SN, 0.1)
    assert np.isinf(z_SN[2, 1]) and (np.delete(z_SN, 2, axis=0) == 0).all()
    values_SN[MINIMUM - 1, 0], values_SN[MINIMUM, 0] = 1, 99
    assert robust_z(values_SN, 0.1)[0][MINIMUM, 0] == pytest.approx(980)


def test_what_moved_is_not_what_later_values_are_compared_with() -> None:
    values_SN = np.r_[np.zeros(17), np.ones(15)][:, None]
    z_SN, expected_SN = robust_z(values_SN, 0.1)
    assert z_SN[17:, 0] == pytest.approx(10) and expected_SN[17:, 0] == pytest.approx(0)


def test_what_had_collapsed_before_is_said_first() -> None:
    """Layers that follow must not be taken for the first."""
    it = record()
    steps = np.arange(it.alarm.step - 60, it.alarm.step, 10)
    ratio = np.full((len(steps), 2, 2), 0.9)
    ratio[:, 0, 1] = 0.05
    it.header.config["monitoring"]["record_steps"] = 64
    it.header.config["stability"] = {"detectors": {"entropy": {"floor": 0.1}}}
    seen = examine(replace(it, tracks={**it.tracks, "measured.entropy_ratio": Track(steps, ratio)}))
    assert seen.conclusion.startswith("Heads of layer 0 had collapsed before the steps looked at")
