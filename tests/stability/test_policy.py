"""Which action follows which alarm, and how often."""

import json
from typing import get_args

import pytest

from configs.stability import Action, DetectorsConfig, PolicyConfig
from stability.alarms import Alarm, Severity
from stability.detectors import build_detectors
from stability.policy import Policy

RULE_OF = {
    "loss_spike": "loss_spike",
    "grad_spike": "grad_spike",
    "divergence": "divergence",
    "non_finite": "non_finite",
    "entropy_collapse": "entropy_collapse",
    "early_warning": "early_warning",
    "logit_explosion": "logit_explosion",
    "rank_collapse": "rank_collapse",
    "gradient": "gradient",
    "frozen_head": "gradient",
    "shard": "gradient",
}
SEVERITY_OF: dict[str, Severity] = {"non_finite": "fatal", "logit_explosion": "fatal", "shard": "fatal"}


def alarm(detector: str, step: int = 5, severity: Severity | None = None) -> Alarm:
    return Alarm(detector, step, severity or SEVERITY_OF.get(detector, "alarm"), f"{detector} of step {step}", 2.0, 1.0)


def config(**fields: object) -> PolicyConfig:
    return PolicyConfig.model_validate(fields)


def test_there_is_a_rule_for_every_detector() -> None:
    assert {detector.name for detector in build_detectors(DetectorsConfig())} == set(RULE_OF)
    assert set(RULE_OF.values()) <= set(PolicyConfig.model_fields)


def actions_of(rule: str) -> tuple[Action, ...]:
    return get_args(PolicyConfig.model_fields[rule].annotation)


@pytest.mark.parametrize(
    ("detector", "action"), [(d, action) for d, rule in RULE_OF.items() for action in actions_of(rule)]
)
def test_the_action_is_that_of_the_detectors_rule_and_of_no_other(detector: str, action: Action) -> None:
    policy = Policy(config(**{RULE_OF[detector]: action}))
    decision = policy.decide([alarm(detector)], rollbacks=0)
    assert decision.action == action
    if action != "warn":
        assert decision.alarm == alarm(detector) and decision.reason == f"{detector} of step 5"
    for other in set(RULE_OF) - {"non_finite"}:
        if RULE_OF[other] != RULE_OF[detector]:
            assert policy.decide([alarm(other)], rollbacks=0).action == "warn"


def test_by_default_only_what_is_not_finite_stops_training() -> None:
    actions = {name: Policy(config()).decide([alarm(name)], 0).action for name in RULE_OF}
    assert actions == dict.fromkeys(RULE_OF, "warn") | {"non_finite": "stop"}


@pytest.mark.parametrize(
    ("detector", "severity"),
    [("non_finite", "warning"), ("loss_spike", "warning"), ("grad_spike", "warning"), ("logit_explosion", "alarm")],
)
def test_nothing_is_done_about_a_spike_that_was_left_out_or_a_logit_that_is_not_fatal(
    detector: str, severity: Severity
) -> None:
    policy = Policy(config(**{RULE_OF[detector]: "stop"}))
    assert policy.decide([alarm(detector, severity=severity)], 0).action == "warn"
    assert policy.decide([alarm(detector)], 0).action == "stop"


def test_no_alarm_no_action() -> None:
    decision = Policy(config(loss_spike="stop")).decide([], rollbacks=9)
    assert (decision.action, decision.reason, decision.alarm) == ("warn", "", None)


@pytest.mark.parametrize(
    ("rules", "strongest"),
    [
        ({"loss_spike": "lower_lr", "grad_spike": "rollback", "early_warning": "warn"}, "grad_spike"),
        ({"loss_spike": "stop", "grad_spike": "rollback"}, "loss_spike"),
        ({"early_warning": "lower_lr"}, "early_warning"),
        ({"loss_spike": "rollback", "grad_spike": "rollback"}, "loss_spike"),
    ],
)
@pytest.mark.parametrize("reverse", [False, True])
def test_the_strongest_action_wins_and_the_first_of_equals(
    rules: dict[str, Action], strongest: str, reverse: bool
) -> None:
    alarms = [alarm(name) for name in ("loss_spike", "grad_spike", "early_warning")]
    if reverse and len(set(rules.values())) == len(rules):
        alarms.reverse()
    decision = Policy(config(**rules)).decide(alarms, 0)
    assert decision.action == rules[strongest] and decision.alarm == alarm(strongest)


def test_the_learning_rate_is_lower_for_exactly_so_many_updates() -> None:
    policy = Policy(config(loss_spike="lower_lr", lr_factor=0.25, lr_steps=7))
    assert policy.decide([alarm("loss_spike", step=5)], 0).action == "lower_lr"
    rates = [policy.lr(updates, 8.0) for updates in range(5, 20)]  # the update after the 5th is the first that can be
    assert rates == [2.0] * 7 + [8.0] * 8


def test_another_alarm_meanwhile_begins_the_time_anew_and_does_not_lower_further() -> None:
    policy = Policy(config(loss_spike="lower_lr", lr_factor=0.5, lr_steps=10))
    policy.decide([alarm("loss_spike", step=5)], 0)
    policy.decide([alarm("loss_spike", step=9)], 0)
    assert [policy.lr(updates, 1.0) for updates in (9, 18, 19)] == [0.5, 0.5, 1.0]


def test_after_its_limit_lowering_only_warns() -> None:
    policy = Policy(config(loss_spike="lower_lr", lr_limit=2, lr_steps=10))
    actions = [policy.decide([alarm("loss_spike", step=100 * n)], 0).action for n in range(1, 5)]
    assert actions == ["lower_lr", "lower_lr", "warn", "warn"]
    assert policy.lr(300, 1.0) == 1.0


def test_a_stronger_action_does_not_use_up_the_limit_of_lowering() -> None:
    policy = Policy(config(loss_spike="lower_lr", grad_spike="rollback", lr_limit=1))
    assert policy.decide([alarm("loss_spike"), alarm("grad_spike")], 0).action == "rollback"
    assert policy.lr(5, 1.0) == 1.0
    assert policy.decide([alarm("loss_spike")], 1).action == "lower_lr"


@pytest.mark.parametrize("detector", ["loss_spike", "non_finite"])
def test_after_its_limit_a_rollback_stops_and_says_why(detector: str) -> None:
    policy = Policy(config(**{detector: "rollback"}, rollback_limit=2))
    actions = [policy.decide([alarm(detector)], rollbacks).action for rollbacks in range(4)]
    assert actions == ["rollback", "rollback", "stop", "stop"]
    assert policy.decide([alarm(detector)], 2).reason == f"{detector} of step 5; rolled back 2 times already"


def test_limits_and_the_lowered_learning_rate_outlive_json() -> None:
    rules = config(loss_spike="lower_lr", lr_limit=2, lr_steps=10)
    before = Policy(rules)
    before.decide([alarm("loss_spike", step=5)], 0)
    after = Policy(rules)
    after.load(json.loads(json.dumps(before.state(), allow_nan=False)))
    assert [after.lr(updates, 1.0) for updates in (14, 15)] == [0.5, 1.0]
    assert [after.decide([alarm("loss_spike", step=50)], 0).action for _ in range(2)] == ["lower_lr", "warn"]
