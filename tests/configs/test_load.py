"""Files that extend files, overrides, origins, and the way back to YAML."""

from pathlib import Path

import pytest
import yaml

from configs.checks import resolve
from configs.errors import ConfigError
from configs.load import dump, load, load_with_origins

CONFIGS = Path(__file__).parents[2] / "configs"

DATA = "data: {sources: [{path: runs/data/x}]}\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write files into the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(**texts: str) -> None:
        for name, text in texts.items():
            path = tmp_path / f"{name.replace('__', '/')}.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)

    return write


def error(path: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return str(caught.value)


def test_a_file_lays_its_sections_over_those_it_extends(write):
    write(
        base=DATA + "model: {layers: 2, heads: 8}\ntraining: {steps: 7}\n", top="extends: base.yaml\nmodel: {layers: 6}"
    )
    config = load("top.yaml")
    assert (config.model.layers, config.model.heads, config.training.steps) == (6, 8, 7)


def test_later_bases_win_and_the_file_itself_wins_over_all(write):
    write(
        one=DATA + "model: {layers: 1, heads: 1}\nrun: {name: one}",
        two="model: {layers: 2, heads: 2}",
        top="extends: [one.yaml, two.yaml]\nmodel: {layers: 3}",
    )
    config = load("top.yaml")
    assert (config.model.layers, config.model.heads, config.run.name) == (3, 2, "one")


def test_bases_are_found_beside_the_file_that_names_them(write):
    write(data=DATA, inner__middle="extends: ../data.yaml", inner__top="extends: middle.yaml")
    assert load("inner/top.yaml").data.sources[0].path == Path("runs/data/x")


def test_one_base_may_be_reached_by_two_ways(write):
    write(base=DATA, one="extends: base.yaml", two="extends: base.yaml", top="extends: [one.yaml, two.yaml]")
    load("top.yaml")


def test_lists_are_replaced_as_a_whole(write):
    write(base="data: {sources: [{path: a}, {path: b}]}", top="extends: base.yaml\ndata: {sources: [{path: c}]}")
    assert [source.path.name for source in load("top.yaml").data.sources] == ["c"]


def test_files_cannot_extend_in_a_circle(write):
    write(one="extends: two.yaml", two="extends: one.yaml")
    assert error("one.yaml") == (
        "two.yaml: extends = one.yaml: a file cannot extend itself (one.yaml -> two.yaml -> one.yaml)"
    )


def test_an_error_names_the_file_that_set_the_key(write):
    write(base=DATA + "model: {heads: 3}", top="extends: base.yaml\ntraining: {steps: 0}")
    assert error("top.yaml").splitlines() == ["top.yaml: training.steps = 0: must be a whole number >= 1"]
    assert error("top.yaml", "training.steps=1") == (
        "base.yaml: model.heads = 3: must divide model.hidden_size = 64 (1, 2, 4, 8, 16, 32 or 64)"
    )


def test_a_default_is_blamed_on_the_key_it_disagrees_with(write):
    write(base=DATA + "model: {hidden_size: 6}", top="extends: base.yaml")
    assert error("top.yaml") == (
        "base.yaml: model.heads = 4 (default): must divide model.hidden_size = 6 (1, 2, 3 or 6)"
    )


def test_an_overridden_key_comes_from_the_command_line(write):
    write(base=DATA + "model: {layers: -1}")
    assert error("base.yaml", "model.layers=-2").startswith("command line: model.layers = -2:")


def test_all_errors_are_told_a_line_each(write):
    write(base=DATA + "model: {layers: 0, norm: lyernorm}\ntrainig: {}")
    assert error("base.yaml", "optimizer.lr=0", "nonsense").splitlines() == [
        "command line: nonsense: must be key=value, for example model.layers=8",
        "base.yaml: model.layers = 0: must be a whole number >= 1",
        "base.yaml: model.norm = lyernorm: must be layernorm, rmsnorm or none; did you mean layernorm?",
        "command line: optimizer.lr = 0: must be a number > 0",
        "base.yaml: trainig: no such key; did you mean training?",
    ]


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("optimizer.lr=1e-3", "optimizer", "lr", 1e-3),
        ("optimizer.betas=[0.8, 0.99]", "optimizer", "betas", (0.8, 0.99)),
        ("model.kv_heads=null", "model", "kv_heads", None),
        ("model.bias=true", "model", "bias", True),
        ("run.name=2024", "run", "name", "2024"),
        ("run.name=1e-3", "run", "name", "1e-3"),
        ("run.name=on", "run", "name", "on"),
        ("run.name=null", "run", "name", "null"),
        ("tracking.uri=null", "tracking", "uri", None),
        ("tracking.uri=sqlite:///x=y.db", "tracking", "uri", "sqlite:///x=y.db"),
        ("model.norm=none", "model", "norm", "none"),
        ("model={layers: 8}", "model", "layers", 8),
    ],
)
def test_overrides_are_read_as_yaml(write, override, section, key, value):
    write(base=DATA)
    assert getattr(getattr(load("base.yaml", [override]), section), key) == value


def test_an_override_reaches_into_a_list(write):
    write(base="data: {sources: [{path: a}, {path: b, weight: 2}]}")
    sources = load("base.yaml", ["data.sources.1.path=c"]).data.sources
    assert [(source.path.name, source.weight) for source in sources] == [("a", 1.0), ("c", 2.0)]


def test_yaml_11_is_not_spoken_here(write):
    write(base=DATA + "run: {name: on}\noptimizer: {lr: 1e-3}\ntracking: {experiment: 2024-01-01}")
    config = load("base.yaml")
    assert (config.run.name, config.optimizer.lr, config.tracking.experiment) == ("on", 1e-3, "2024-01-01")


@pytest.mark.parametrize("name", ["run", "1e-3", "on", "0x10", "2024-01-01", "null", "12", "1.5", "a/b"])
def test_the_dump_loads_back_equal(write, name):
    write(base=DATA)
    overrides = [f"run.name={name}", "optimizer.eps=1e-15", "optimizer.lr=3e-2", "model.kv_heads=2", "run.dir=räume"]
    config = load("base.yaml", overrides)
    write(again=dump(config))
    assert load("again.yaml") == config
    assert yaml.safe_load(dump(config))["run"]["name"] == name  # other readers of config.yaml agree


def test_the_resolved_configuration_is_complete_and_loads_back_equal(write):
    write(base=DATA + "model: {activation: swiglu}\nparallel: {pp: 2, schedule: interleaved_1f1b}")
    config = resolve(load("base.yaml"), 4)
    write(again=dump(config))
    assert load("again.yaml") == config == resolve(config, 4)
    assert (config.parallel.dp, config.parallel.stages_per_rank) == (2, 2)
    assert (config.model.kv_heads, config.model.ffn_size) == (4, 192)
    assert config.training.micro_batch_size == 2  # 16 sequences / (dp 2 x 4 stages)


def test_the_world_size_is_judged_with_the_origin_of_the_keys(write):
    write(base=DATA + "parallel: {tp: 2}")
    with pytest.raises(ConfigError) as caught:
        load_with_origins("base.yaml").resolve(3)
    assert str(caught.value) == (
        "base.yaml: parallel.tp = 2: parallel.tp x pp = 2 x 1 = 2 must divide the number of processes, 3 "
        "(2, 4, 6, ... processes would do)"
    )


OTHER_KINDS = ("studies", "sites")  # not configurations of a run; they have tests of their own
SHIPPED = [path for path in Path(__file__).parents[2].glob("configs/**/*.yaml") if path.parent.name not in OTHER_KINDS]


@pytest.mark.parametrize("path", sorted(SHIPPED), ids=lambda path: path.stem)
def test_every_file_we_ship_is_valid(path, write):
    write(top=f"extends: {path}\n{DATA}")
    load("top.yaml")


@pytest.mark.parametrize("model", sorted((CONFIGS / "models").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_can_be_laid_over_every_model(write, model):
    for recipe in sorted((CONFIGS / "recipes").glob("*.yaml")):
        write(base=f"extends: [{model}, {recipe}]\n{DATA}")
        load("base.yaml")
