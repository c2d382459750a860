"""Wrong configurations: each gives its one line, exit code 2 and no traceback."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launcher.cli import app

CONFIG = """\
run: {name: tiny}
data: {sources: [{path: runs/data/x}]}
model: {layers: 4, hidden_size: 64, heads: 4}
training: {steps: 20, global_batch_size: 16, sequence_length: 64}
"""
INTERLEAVED = "parallel.schedule=interleaved_1f1b"
PP2 = "parallel.pp=2"
NO_NORM, SIGMA = "model.norm=none", "model.reparam.kind=sigma"
DEEPNORM, QK_CLIP, LOW_RANK = "model.residual.kind=deepnorm", "optimizer.qk_clip=100", "model.low_rank.targets=[q]"

WRONG_VALUES = {
    "unknown key": (["model.layerz=3"], "model.layerz: no such key; did you mean model.layers?"),
    "unknown section": (["modle.layers=3"], "modle.layers: no such key; did you mean model.layers?"),
    "key of another section": (["model.tp=2"], "model.tp: no such key; did you mean parallel.tp?"),
    "unknown inner key": (
        ["model.reparam.knd=sigma"],
        "model.reparam.knd: no such key; did you mean model.reparam.kind?",
    ),
    "key below a value": (["model.layers.x=3"], "model.layers.x: no such key; did you mean model.layers?"),
    "nothing like it": (
        ["monitoring.zzz=3"],
        "monitoring.zzz: no such key; monitoring has interval",
    ),
    "no value": (["model.layers"], "model.layers: must be key=value, for example model.layers=8"),
    "text for a number": (["model.layers=many"], "model.layers = many: must be a whole number >= 1"),
    "fraction": (["model.layers=2.5"], "model.layers = 2.5: must be a whole number >= 1"),
    "truth for a number": (["model.layers=true"], "model.layers = true: must be a whole number >= 1"),
    "number for truth": (["model.bias=7"], "model.bias = 7: must be true or false"),
    "null": (["model.layers=null"], "model.layers = null: must be a whole number >= 1"),
    "below the bound": (["optimizer.lr=0"], "optimizer.lr = 0: must be a number > 0"),
    "above the bound": (["schedule.min_ratio=2"], "schedule.min_ratio = 2: must be a number >= 0 and <= 1"),
    "infinite": (["optimizer.lr=.inf"], "optimizer.lr = .inf: must be a number > 0 and finite"),
    "misspelt choice": (
        ["model.norm=layrnorm"],
        "model.norm = layrnorm: must be layernorm, rmsnorm or none; did you mean layernorm?",
    ),
    "unknown choice": (["parallel.zero_stage=3"], "parallel.zero_stage = 3: must be 1 or 2"),
    "value for a section": (["tracking=mlflow"], "tracking = mlflow: must be a section with kind, uri, experiment, "),
    "tuple too short": (["optimizer.betas=[0.9]"], "optimizer.betas = [0.9]: must be a list of 2 numbers"),
    "betas": (["optimizer.betas=[0.9, 1]"], "optimizer.betas = [0.9, 1.0]: must be two numbers >= 0 and < 1"),
    "no source": (["data.sources=[]"], "data.sources = []: must have at least one entry, for example [{path: "),
    "source without a path": (["data.sources=[{weight: 1}]"], "data.sources.0.path: must be set: Folder written by "),
    "not in the list": (
        ["model.low_rank.targets=[q, x]"],
        "model.low_rank.targets = [q, x]: must be a list of q, k or v",
    ),
    "weight": (["data.sources.0.weight=-1"], "data.sources.0.weight = -1: must be a number > 0"),
    "index": (["data.sources.1.path=x"], "data.sources.1.path: data.sources has 1 entry, counted from 0; "),
    "run name": (
        ["run.name=../x"],
        "run.name = ../x: must be parts joined by '/', each a letter or digit followed by ",
    ),
    "not YAML": (["model.layers=[1"], "model.layers:1:3: not valid YAML: "),
}

IMPOSSIBLE = {
    "heads do not divide the width": (
        ["model.heads=3"],
        "model.heads = 3: must divide model.hidden_size = 64 (1, 2, 4, 8, 16, 32 or 64)",
    ),
    "odd heads with rope": (
        ["model.heads=64"],
        "model.heads = 64: gives heads of size 1 (model.hidden_size / model.heads); model.positions = rope needs ",
    ),
    "kv heads": (["model.kv_heads=3"], "model.kv_heads = 3: must divide model.heads = 4 (1, 2 or 4)"),
    "tp and heads": (["parallel.tp=3"], "parallel.tp = 3: must divide model.heads = 4 (1, 2 or 4)"),
    "tp and kv heads": (
        ["parallel.tp=4", "model.kv_heads=2"],
        "parallel.tp = 4: must divide model.kv_heads = 2 (1 or 2)",
    ),
    "tp and ffn": (
        ["parallel.tp=2", "model.ffn_size=25"],
        "parallel.tp = 2: must divide model.ffn_size = 25 (1, 5 or 25)",
    ),
    "tp and vocabulary": (
        ["parallel.tp=2", "model.vocab_multiple=1"],
        "parallel.tp = 2: must divide model.vocab_multiple = 1 (1)",
    ),
    "sequence parallel alone": (
        ["parallel.sequence_parallel=true"],
        "parallel.sequence_parallel = true: needs parallel.tp > 1",
    ),
    "sequence parallel and length": (
        ["parallel.sequence_parallel=true", "parallel.tp=2", "training.sequence_length=63"],
        "training.sequence_length = 63: must be a multiple of parallel.tp = 2 with parallel.sequence_parallel (2, ",
    ),
    "layers and stages": (
        [PP2, INTERLEAVED, "model.layers=6"],
        "model.layers = 6: must be a multiple of the pipeline's stages, parallel.pp x stages_per_rank = 2 x 2 = 4 "
        "(4, 8, 12, ...)",
    ),
    "stages without a pipeline": (
        ["parallel.stages_per_rank=2"],
        "parallel.stages_per_rank = 2: must be 1 with parallel.pp = 1",
    ),
    "stages of 1f1b": (
        [PP2, "parallel.stages_per_rank=2"],
        "parallel.stages_per_rank = 2: must be 1 with parallel.schedule = 1f1b",
    ),
    "stages of interleaved": (
        [PP2, "parallel.stages_per_rank=1", INTERLEAVED],
        "parallel.stages_per_rank = 1: must be at least 2 with parallel.schedule = interleaved_1f1b",
    ),
    "stages of zbv": (
        [PP2, "parallel.stages_per_rank=3", "parallel.schedule=zbv"],
        "parallel.stages_per_rank = 3: must be 2 with parallel.schedule = zbv",
    ),
    "zbv and recompute": (
        [PP2, "parallel.schedule=zbv", "training.recompute=full"],
        "training.recompute = full: must be none with parallel.schedule = zbv, ",
    ),
    "zero bubble and recompute": (
        [PP2, "parallel.schedule=interleaved_zero_bubble", "training.recompute=full"],
        "training.recompute = full: must be none with parallel.schedule = interleaved_zero_bubble, ",
    ),
    "zbv and compile": (
        [PP2, "parallel.schedule=zbv", "training.compile=true"],
        "training.compile = true: must be false with parallel.schedule = zbv, whose split backward ",
    ),
    "zero bubble and compile": (
        [PP2, "parallel.schedule=interleaved_zero_bubble", "training.compile=true"],
        "training.compile = true: must be false with parallel.schedule = interleaved_zero_bubble, ",
    ),
    "zero bubble and selective recompute": (
        [PP2, "parallel.schedule=interleaved_zero_bubble", "training.recompute=selective"],
        "training.recompute = selective: must be none with parallel.schedule = interleaved_zero_bubble, ",
    ),
    "QK-Clip and compile": (
        ["optimizer.qk_clip=100", "training.compile=true"],
        "training.compile = true: must be false with optimizer.qk_clip = 100, which looks at the logits of every step",
    ),
    "tied and pipeline": (
        [PP2, "model.tie_embeddings=true"],
        "model.tie_embeddings = true: must be false with parallel.pp = 2: embedding and head are on different stages",
    ),
    "tied and reparametrised head": (
        ["model.reparam.kind=sigma", "model.tie_embeddings=true"],
        "model.reparam.head = true (default): must be false with model.tie_embeddings = true: a tied head stays ",
    ),
    "batch and micro-batch": (
        ["training.micro_batch_size=3"],
        "training.micro_batch_size = 3: must divide training.global_batch_size = 16 (1, 2, 4, 8 or 16)",
    ),
    "batch, dp and micro-batch": (
        ["training.micro_batch_size=3", "parallel.dp=2"],
        "training.micro_batch_size = 3: must divide training.global_batch_size / parallel.dp = 8 (1, 2, 4 or 8)",
    ),
    "too few micro-batches": (
        [PP2, "parallel.dp=1", "training.micro_batch_size=16"],
        "training.micro_batch_size = 16: makes 1 micro-batch; parallel.schedule = 1f1b with parallel.pp = 2 needs at "
        "least 2 (training.micro_batch_size 1, 2, 4 or 8)",
    ),
    "uneven rounds": (
        [PP2, INTERLEAVED, "parallel.dp=1", "training.micro_batch_size=1", "training.global_batch_size=5"],
        "training.micro_batch_size = 1: makes 5 micro-batches; parallel.schedule = interleaved_1f1b with parallel.pp = "
        "2 needs equal rounds of about 2 (2, 4, 6, ...) (training.micro_batch_size 5)",
    ),
    "no default micro-batch": (
        ["parallel.pp=2", "training.global_batch_size=9"],
        "training.micro_batch_size: must be set (1 or 3): training.global_batch_size / dp = 9 sequences do not split "
        "into one micro-batch for each of 2 pipeline stages",
    ),
    "batch too small for the pipeline": (
        ["parallel.pp=4", "training.global_batch_size=2"],
        "training.global_batch_size = 2: gives 2 sequences per data-parallel rank; ",
    ),
    "world size": (
        ["--nproc", "4", "parallel.dp=2"],
        "parallel.dp = 2: parallel.tp x pp x dp = 1 x 1 x 2 = 2 must equal the number of processes, 4; leave "
        "parallel.dp unset to use them all",
    ),
    "processes and tp": (
        ["--nproc", "3", "parallel.tp=2"],
        "parallel.tp = 2: parallel.tp x pp = 2 x 1 = 2 must divide the number of processes, 3 (2, 4, 6, ... processes",
    ),
    "placement of no norms": (
        [NO_NORM, "model.norm_placement=peri"],
        "model.norm_placement = peri: places norms that model.norm = none does not have; leave it at pre, or choose ",
    ),
    "embedding norm without norms": (
        [NO_NORM, "model.embedding_norm=true"],
        "model.embedding_norm = true: must be false with model.norm = none; choose layernorm or rmsnorm",
    ),
    "deepnorm before the norm": (
        [DEEPNORM],
        "model.residual.kind = deepnorm: deepnorm is N(alpha x + f(x)): it needs model.norm_placement = post",
    ),
    "deepnorm and sigmaReparam": (
        [DEEPNORM, "model.norm_placement=post", SIGMA],
        "model.residual.kind = deepnorm: deepnorm scales the initial weights, which model.reparam with gamma_init = "
        "one does not see: W / sigma(W) is the same; set model.reparam.gamma_init = sigma",
    ),
    "deepnorm and depth-scaled weights": (
        [DEEPNORM, "model.norm_placement=post", "model.depth_scaled_init=true"],
        "model.depth_scaled_init = true: must be false with model.residual.kind = deepnorm, which scales the same ",
    ),
    "start of no LayerScale": (
        ["model.residual.layerscale_init=0.1"],
        "model.residual.layerscale_init = 0.1: is for model.residual.kind = layerscale; with plain it would do nothing",
    ),
    "QK-Clip and QK-norm": (
        [QK_CLIP, "model.qk_norm=true"],
        "optimizer.qk_clip = 100.0: must be 0 with model.qk_norm = true: queries and keys are normalised, so ",
    ),
    "QK-Clip and a cap": (
        [QK_CLIP, "model.attention_softcap=50"],
        "optimizer.qk_clip = 100.0: must be 0 with model.attention_softcap: both bound the same logits; take one",
    ),
    "QK-Clip and biases": (
        [QK_CLIP, "model.bias=true"],
        "optimizer.qk_clip = 100.0: must be 0 with model.bias = true: biases of queries and keys do not shrink with ",
    ),
    "QK-Clip and one gamma for all": (
        [QK_CLIP, SIGMA, "model.reparam.qkv=qkv"],
        "optimizer.qk_clip = 100.0: must be 0 with model.reparam.qkv = qkv: its one gamma scales the values too; take ",
    ),
    "rank of no low-rank projection": (
        ["model.low_rank.rank=8"],
        "model.low_rank.rank = 8: is for the projections in model.low_rank.targets, and there are none (q, k, v)",
    ),
    "heads of no low-rank projection": (
        ["model.low_rank.per_head=true"],
        "model.low_rank.per_head = true: is for the projections in model.low_rank.targets, and there are none (",
    ),
    "a projection twice": (
        ["model.low_rank.targets=[q, q]"],
        "model.low_rank.targets = [q, q]: each projection may occur once",
    ),
    "rank above the width": (
        [LOW_RANK, "model.low_rank.rank=65"],
        "model.low_rank.rank = 65: must be at most 64: a product of larger factors has no lower rank",
    ),
    "rank above the head's width": (
        [LOW_RANK, "model.low_rank.rank=17", "model.low_rank.per_head=true"],
        "model.low_rank.rank = 17: must be at most 16: a product of larger factors has no lower rank",
    ),
    "rank and tp": (
        [LOW_RANK, "model.low_rank.rank=7", "parallel.tp=2"],
        "model.low_rank.rank = 7: the inner width, 7, must be a multiple of parallel.tp = 2, whose ranks share it",
    ),
    "low rank and one gamma for several": (
        [LOW_RANK, SIGMA, "model.reparam.qkv=qk+v"],
        "model.reparam.qkv = qk+v: must be separate with model.low_rank.targets: factors are matrices of their own",
    ),
    "low rank and biases": (
        [LOW_RANK, "model.bias=true"],
        "model.low_rank.targets = [q]: must be empty with model.bias = true: which factor a bias belongs to is not ",
    ),
    "wsd without decay": (["schedule.kind=wsd"], "schedule.decay_steps = 0 (default): must be at least 1 with "),
    "wsd longer than the run": (
        ["schedule.kind=wsd", "schedule.decay_steps=15", "schedule.warmup_steps=10"],
        "schedule.decay_steps = 15: schedule.warmup_steps + decay_steps = 25 must be at most training.steps = 20",
    ),
    "decay without wsd": (
        ["schedule.decay_steps=5"],
        "schedule.decay_steps = 5: must be 0 with schedule.kind = constant; only wsd decays at the end",
    ),
    "warm-up for ever": (
        ["schedule.kind=cosine", "schedule.warmup_steps=20"],
        "schedule.warmup_steps = 20: must be at most 19 with schedule.kind = cosine and training.steps = 20",
    ),
}

WRONG_FILES = {
    "empty": ("", "c.yaml: is empty; it must set data.sources at least, or extend a file that does"),
    "list": ("- a\n", "c.yaml: is a list at the top; it must be a mapping of sections (data:, model:, ...)"),
    "text": ("hello\n", "c.yaml: is a single value at the top; it must be a mapping of sections (data:, model:, ...)"),
    "syntax": ("model: {layers: 4\nrun: x\n", "c.yaml:2:4: not valid YAML: "),
    "tab": ("model:\n\tlayers: 4\n", "c.yaml:2:1: not valid YAML: found character '\\t' that cannot start any token"),
    "control character": ("model: \x07\n", "c.yaml: not valid YAML: unacceptable character #x0007"),
    "two documents": ("a: 1\n---\nb: 2\n", "c.yaml:2:1: not valid YAML: but found another document"),
    "python object": ("run: !!python/object:os.system {}\n", "c.yaml:1:6: not valid YAML: could not determine a cons"),
    "duplicate key": ("model: {}\nrun: {}\nmodel: {}\n", "c.yaml:3:1: not valid YAML: key model is written twice"),
    "no data": ("model: {}\n", "c.yaml: data.sources: must be set: Prepared datasets, blended by weight"),
    "dotted key": (
        CONFIG + "training.seed: 3\n",
        "c.yaml: training.seed: is written with dots; in a file write it nested, training: {seed: ...}",
    ),
    "number as a key": (CONFIG + "7: x\n", "c.yaml: 7: no such key; a configuration has run, data, "),
    "missing base": ("extends: modle.yaml\n", "c.yaml: extends = modle.yaml: no such file; did you mean model.yaml?"),
    "itself": ("extends: c.yaml\n", "c.yaml: extends = c.yaml: a file cannot extend itself (c.yaml -> c.yaml)"),
    "alias of itself": ("a: &a [*a]\n", "c.yaml: is nested too deeply, or contains itself"),
    "deep": ("a: " + "[" * 2000, "c.yaml: is nested too deeply, or contains itself"),
    "endless number": (f"training: {{steps: {'1' * 5000}}}\n", "c.yaml: cannot be read: Exceeds the limit"),
    "extends a number": ("extends: 3\n", "c.yaml: extends = 3: must be a file name or a list of file names"),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(CONFIG)
    Path("model.yaml").write_text("model: {}")
    return tmp_path


def assert_one_line(code: int, stdout: str, stderr: str, expected: str) -> None:
    assert (code, stdout) == (2, ""), stderr
    assert len(stderr.splitlines()) == 1
    assert stderr.startswith(expected)
    assert "Traceback" not in stderr
    assert not Path("runs").exists()


def assert_refused(arguments: list[str], expected: str) -> None:
    result = CliRunner().invoke(app, ["train", *arguments])
    assert_one_line(result.exit_code, result.stdout, result.stderr, expected)


@pytest.mark.parametrize(("overrides", "expected"), WRONG_VALUES.values(), ids=WRONG_VALUES)
def test_a_wrong_value(overrides, expected):
    assert_refused(["c.yaml", *overrides], f"command line: {expected}")


@pytest.mark.parametrize(("overrides", "expected"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_impossible_combination(overrides, expected):
    assert_refused(["c.yaml", *overrides], f"command line: {expected}")


def test_the_file_is_named_for_a_value_that_an_override_made_impossible():
    expected = "c.yaml: training.global_batch_size = 16: must be a multiple of parallel.dp = 3 (3, 6, 9, ...)\n"
    assert_refused(["c.yaml", "parallel.dp=3"], expected)


@pytest.mark.parametrize(("text", "expected"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_a_wrong_file(text, expected):
    Path("c.yaml").write_text(text)
    assert_refused(["c.yaml"], expected)


def test_a_file_that_is_not_there():
    assert_refused(["modell.yaml"], "modell.yaml: no such file; did you mean model.yaml?")
    assert_refused(["model"], "model: no such file; did you mean model.yaml?")
    assert_refused(["conf/c.yaml"], "conf/c.yaml: no such file (there is no folder conf)")


def test_a_folder_and_bytes_are_no_file():
    Path("sub").mkdir()
    assert_refused(["sub"], "sub: is a folder; name a YAML file in it")
    Path("c.yaml").write_bytes(b"a: \xff\n")
    assert_refused(["c.yaml"], "c.yaml: is not UTF-8 text (byte 3)")


@pytest.mark.parametrize(
    "arguments",
    [
        ["c.yaml", *WRONG_VALUES["unknown key"][0]],
        ["c.yaml", *IMPOSSIBLE["tp and heads"][0]],
        ["c.yaml", *IMPOSSIBLE["processes and tp"][0]],
        ["nowhere.yaml"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_the_real_command_says_the_same(arguments):
    inside = CliRunner().invoke(app, ["train", *arguments])
    command = [sys.executable, "-m", "launcher", "train", *arguments]
    root = str(Path(__file__).parents[2])
    outside = subprocess.run(command, capture_output=True, text=True, timeout=60, env={"PYTHONPATH": root})
    assert_one_line(outside.returncode, outside.stdout, outside.stderr, inside.stderr)
