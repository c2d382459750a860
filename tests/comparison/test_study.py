"""From a study file to paired trials, and what is said about a wrong one."""

from pathlib import Path

import pytest
import yaml

from comparison.record import read_record, record_of
from comparison.study import format_lr, load_study
from configs.errors import ConfigError, DataError
from tests.comparison.conftest import STUDY


def test_trials_are_every_combination(study_file):
    study = load_study(study_file, ["training.steps=7"])
    assert [(trial.recipe, trial.lr, trial.seed) for trial in study.trials] == [
        ("pre-ln", 1e-3, 0),
        ("sigma-reparam", 1e-3, 0),
        ("pre-ln", 3e-2, 0),
        ("sigma-reparam", 3e-2, 0),
    ]
    assert all(trial.config.training.steps == 7 for trial in study.trials)
    assert study.trials[3].config.run_dir == Path("runs/demo/trials/sigma-reparam/lr-3e-02/seed-0")
    assert study.trials[3].config.optimizer.lr == 3e-2


def test_trials_of_one_seed_differ_only_in_the_recipe(study_file):
    study_file.write_text(STUDY + "seeds: [3, 4]\n")
    for seed in (3, 4):
        trials = [trial for trial in load_study(study_file).trials if trial.seed == seed and trial.lr == 1e-3]
        plain, sigma = (trial.config.model_dump(exclude={"run"}) for trial in trials)
        assert plain["training"]["seed"] == sigma["training"]["seed"] == seed
        assert plain["model"].pop("reparam")["kind"] == "none"
        assert sigma["model"].pop("reparam")["kind"] == "sigma"
        assert plain == sigma


def test_command_line_overrides_come_after_the_recipe_and_move_the_study(study_file):
    study = load_study(study_file, ["run.dir=elsewhere", "model.reparam.kind=none"])
    assert study.dir == Path("elsewhere/demo")
    assert {trial.config.model.reparam.kind for trial in study.trials} == {"none"}


@pytest.mark.parametrize("key", ["optimizer.lr", "training.seed", "run.name"])
def test_what_a_study_sets_itself_is_refused_elsewhere(study_file, key):
    with pytest.raises(ConfigError, match=rf"^command line: {key}: must not be set here; a study "):
        load_study(study_file, [f"{key}=1"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("name: demo\n", ""), "study.yaml: name: must be set"),
        (("name: demo", "name: a/b"), "study.yaml: name = a/b: must start with a letter"),
        (("3.0e-2]", "3.0e-2]\nseed: [1]"), "study.yaml: seed: no such key; did you mean seeds?"),
        (("3.0e-2", "1.0e-3"), "learning_rates = [0.001, 0.001]: must be a list of different numbers > 0"),
        (("3.0e-2", "-1"), "learning_rates = [0.001, -1]: must be"),
        (("3.0e-2]", "3.0e-2]\nseeds: []"), "seeds = []: must be a list of different whole numbers"),
        (("3.0e-2]", "3.0e-2]\noverrides: 3"), "overrides = 3: must be sections"),
        (("pre-ln.yaml", "pre-lm.yaml"), "pre-lm.yaml: no such file; did you mean pre-ln.yaml?"),
        (("base.yaml", "bass.yaml"), "bass.yaml: no such file; did you mean base.yaml?"),
        (("kind: sigma", "kind: sigmoid"), "study.yaml: recipes.sigma-reparam: model.reparam.kind = sigmoid: must be"),
        (("kind: sigma", "kinds: sigma"), "model.reparam.kinds: no such key; did you mean model.reparam.kind?"),
        (("3.0e-2]", "3.0e-2]\noverrides: {model: {heads: 5}}"), "study.yaml: overrides: model.heads = 5"),
        (("[1.0e-3", "{1.0e-3"), "study.yaml:"),
        (("3.0e-2]", "3.0e-2]\nshapes: [d32]"), "shapes = [d32]: must map names"),
        (
            ("3.0e-2]", "3.0e-2]\nshapes: {d30: {model: {hidden_size: 30}}}"),
            "study.yaml: shapes.d30: model.heads = 4 (default): must divide model.hidden_size = 30",
        ),
        (
            ("3.0e-2]", "3.0e-2]\nshapes: {post: {model: {norm_placement: post}}}"),
            "study.yaml: shapes.post: model.norm_placement = post: recipe pre-ln sets it to pre, and shape post",
        ),
        (
            ("3.0e-2]", "3.0e-2]\nshapes: {slow: {optimizer: {lr: 1}}}"),
            "study.yaml: shapes.slow: optimizer.lr: must not be set here",
        ),
        (("3.0e-2]", "3.0e-2]\nbudget: {tokens: 1, flops: 1}"), "must be {tokens: number > 0} or {flops: number > 0}"),
        (("3.0e-2]", "3.0e-2]\nbudget: {tokens: 0}"), "budget = {tokens: 0}: must be"),
        (
            ("3.0e-2]", "3.0e-2]\nbudget: {tokens: 1e6}\noverrides: {training: {steps: 9}}"),
            "study.yaml: overrides: training.steps: must not be set here; the study's budget sets it",
        ),
        (
            ("3.0e-2]", "3.0e-2]\nbudget: {tokens: 10240}\noverrides: {schedule: {warmup_steps: 20}}"),
            "study.yaml: overrides: schedule.warmup_steps = 20: must be at most 10 with schedule.kind = constant and "
            "training.steps = 10; the budget is 10 steps of pre-ln",
        ),
        (("3.0e-2]", "3.0e-2]\nstopping: {before: 1}"), "stopping = {before: 1}: must have above_initial"),
        (("3.0e-2]", "3.0e-2]\nstopping: {above_initial: null}"), "stopping = {above_initial: null}: must have"),
        (("3.0e-2]", "3.0e-2]\nstoping: {}"), "stoping: no such key; did you mean stopping?"),
        (("3.0e-2", "1.00000001e-3"), "study.yaml: learning_rates: 0.00100000001 and another are both lr-1e-03"),
        (
            ("3.0e-2]", "3.0e-2]\noverrides: {optimizer: {lr: 5}}"),
            "study.yaml: overrides: optimizer.lr: must not be set here; a study takes it from learning_rates",
        ),
    ],
    ids=lambda value: value[1].strip() if isinstance(value, tuple) else None,
)
def test_wrong_study_files_are_refused_in_one_line(study_file, change, message):
    study_file.write_text(STUDY.replace(*change))
    with pytest.raises(ConfigError) as refusal:
        load_study(study_file)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_wrong_recipe_file_is_named(study_file):
    Path("pre-ln.yaml").write_text("model: {layerz: 3}\n")
    with pytest.raises(ConfigError, match=r"^pre-ln\.yaml: model\.layerz: no such key; did you mean model\.layers\?$"):
        load_study(study_file)


SHAPES = "shapes:\n  d32: {model: {hidden_size: 32}}\n  d64: wide.yaml\n"


def test_every_recipe_in_every_shape(study_file):
    Path("wide.yaml").write_text("model: {hidden_size: 64, norm_placement: pre}\n")  # as the recipe has it: no conflict
    study_file.write_text(STUDY + SHAPES)
    study = load_study(study_file)
    assert [(trial.recipe, trial.shape, trial.config.model.hidden_size) for trial in study.trials[:4]] == [
        ("pre-ln", "d32", 32),
        ("pre-ln", "d64", 64),
        ("sigma-reparam", "d32", 32),
        ("sigma-reparam", "d64", 64),
    ]
    assert study.trials[0].config.run_dir == Path("runs/demo/trials/pre-ln/d32/lr-1e-03/seed-0")
    assert study.shapes["d64"] == {"model.hidden_size": 64, "model.norm_placement": "pre"}
    record = record_of(study, None)
    assert [(trial.shape, trial.steps) for trial in record.trials[:2]] == [("d32", 60), ("d64", 60)]


def test_a_budget_in_tokens_sets_the_steps(study_file):
    study_file.write_text(STUDY + "budget: {tokens: 5e4}\n")  # at 16 x 64 = 1,024 tokens a step
    study = load_study(study_file)
    assert {trial.config.training.steps for trial in study.trials} == {48}
    assert study.trials[0].tokens == 49_152
    assert (record_of(study, None).budget, record_of(study, None).steps) == ({"tokens": 5e4}, 48)
    larger = load_study(study_file, ["training.global_batch_size=4096"])
    assert larger.trials[0].config.training.steps == 1  # one at least


def test_records_of_studies_without_shapes_and_budgets_are_read(study_file, tmp_path):
    study = load_study(study_file)
    older = record_of(study, None).model_dump(mode="json", exclude={"shapes", "budget", "stopping"})
    for trial in older["trials"]:
        del trial["shape"], trial["steps"]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(older))
    record = read_record(tmp_path)
    assert (record.shapes, record.budget, record.stopping) == ({}, {}, {})
    assert [(trial.shape, trial.steps) for trial in record.trials] == [("", 60)] * 4


def test_learning_rates_as_folder_names():
    assert [format_lr(lr) for lr in (3e-2, 1.5e-3, 1.0, 12.0)] == ["3e-02", "1.5e-03", "1e+00", "1.2e+01"]


def test_a_record_that_is_not_text_is_named(tmp_path):
    (tmp_path / "study.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"study.yaml: is not a study record"):
        read_record(tmp_path)
