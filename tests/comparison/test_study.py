"""From a study file to paired trials, and what is said about a wrong one."""

from pathlib import Path

import pytest

from comparison.record import read_record
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


def test_learning_rates_as_folder_names():
    assert [format_lr(lr) for lr in (3e-2, 1.5e-3, 1.0, 12.0)] == ["3e-02", "1.5e-03", "1e+00", "1.2e+01"]


def test_a_record_that_is_not_text_is_named(tmp_path):
    (tmp_path / "study.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"study.yaml: is not a study record"):
        read_record(tmp_path)
