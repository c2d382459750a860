"""What of a Hugging Face checkpoint is refused, in which words; and the file that `steadytrain import` writes."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from configs.checks import resolve
from configs.errors import CheckpointError, ConfigError
from configs.load import load
from configs.schema import Config, ModelConfig
from exchange.model_file import write_model_file
from formats.hub import HubCheckpoint
from launcher.cli import app
from launcher.jobs.snapshot import with_absolute_paths
from tests.exchange.models import LENGTH, random_weights
from tests.formats.test_architectures import GELU, LEARNED, SWIGLU, theirs
from tests.layouts import VOCAB
from training.checkpoint.hub import choose_hub
from training.checkpoint.source import check_before_launch

LLAMA = {**SWIGLU, "kv_heads": 2}


def hub(folder: Path, model: dict[str, Any], **changes: Any) -> Path:
    """A checkpoint with random weights of an architecture, as transformers would save it."""
    _, _, tensors, config = theirs(model)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | changes))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def changed(folder: Path, change: dict[str, Tensor | None]) -> Path:
    """With other tensors; None takes one away."""
    tensors = load_file(folder / "model.safetensors") | change
    save_file({name: t for name, t in tensors.items() if t is not None}, folder / "model.safetensors")
    return folder


def config(folder: Path, model: dict[str, Any], **training: Any) -> Config:
    return resolve(
        Config.model_validate(
            {
                "data": {"sources": [{"path": "unused"}]},
                "model": {"layers": 2, "hidden_size": 32, "heads": 4, "vocab_multiple": 32, **model},
                "training": {"sequence_length": LENGTH, **training},
                "init_from": f"hf:{folder}",
            }
        ),
        1,
    )


def refusal(cfg: Config, vocab_size: int = VOCAB) -> str:
    with pytest.raises((CheckpointError, ConfigError)) as error:
        choose_hub(cfg, SimpleNamespace(vocab_size=vocab_size))  # type: ignore[arg-type]
    return str(error.value)


def test_another_model_is_refused_key_by_key(tmp_path: Path) -> None:
    folder = hub(tmp_path / "hub", LLAMA)
    cfg = config(folder, {**LLAMA, "kv_heads": 4, "rope_theta": 5e5, "qk_norm": True})
    lines = refusal(cfg).splitlines()
    assert lines[0] == (
        f"init_from = hf:{folder}: {folder}: its weights are of another model; take its values, or other weights:"
    )
    assert sorted(lines[1:-1]) == [
        "  model.kv_heads = 4: the checkpoint has 2",
        "  model.qk_norm = true: the checkpoint has false",
        "  model.rope_theta = 500000.0: the checkpoint has 10000.0",
    ]
    with pytest.raises(CheckpointError, match="its weights are of another model"):
        check_before_launch(cfg)


def test_the_same_model_is_taken(tmp_path: Path) -> None:
    folder = hub(tmp_path / "hub", LLAMA)
    check_before_launch(config(folder, LLAMA))
    weights = choose_hub(config(folder, LLAMA), SimpleNamespace(vocab_size=VOCAB))  # type: ignore[arg-type]
    sigma = config(folder, {**LLAMA, "reparam": {"kind": "sigma"}})
    assert weights.message(sigma) == (
        f"weights of {folder} (LlamaForCausalLM); u, v, sigma found from W and gamma = sigma"
    )


def test_rows_beyond_the_vocabulary_of_the_data_are_left_out(tmp_path: Path) -> None:
    folder = hub(tmp_path / "hub", LLAMA)
    weights = choose_hub(config(folder, LLAMA), SimpleNamespace(vocab_size=VOCAB - 4))  # type: ignore[arg-type]
    assert weights.message(config(folder, LLAMA)).endswith("; 4 rows after the 57 tokens of the data left out")


def test_too_small_a_vocabulary(tmp_path: Path) -> None:
    folder = hub(tmp_path / "hub", LLAMA)
    assert refusal(config(folder, LLAMA), 257) == (
        f"init_from = hf:{folder}: data.sources: a vocabulary of 257 tokens: {folder} has rows for 61"
    )


def test_another_tokenizer(stdlib_bytes: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    folder = hub(tmp_path / "hub", LLAMA)
    Tokenizer(models.WordLevel({"T": 0, "?": 1}, unk_token="?")).save(str(folder / "tokenizer.json"))
    cfg = config(folder, LLAMA)
    source = cfg.data.sources[0].model_copy(update={"path": stdlib_bytes})
    cfg = cfg.model_copy(update={"data": cfg.data.model_copy(update={"sources": [source]})})
    assert refusal(cfg) == (
        f"init_from = hf:{folder}: data.sources: {stdlib_bytes} has another tokenizer than {folder}/tokenizer.json: "
        "'The quick brown fox jumps over the lazy dog.' is [1] ... there and [84, 104, 101, 32] ... here; "
        "prepare data with that tokenizer"
    )


def test_learned_positions_are_of_one_length(tmp_path: Path) -> None:
    folder = hub(tmp_path / "hub", LEARNED)
    assert refusal(config(folder, LEARNED, sequence_length=8)) == (
        f"init_from = hf:{folder}: training.sequence_length = 8: {folder} has learned positions of 16"
    )


def test_biases_that_ours_has_not_must_be_zero(tmp_path: Path) -> None:
    folder = hub(tmp_path / "hub", GELU)
    choose_hub(config(folder, GELU), SimpleNamespace(vocab_size=VOCAB))  # type: ignore[arg-type]
    changed(folder, {"model.norm.bias": torch.full((32,), 1e-3)})
    assert refusal(config(folder, GELU)) == (
        f"init_from = hf:{folder}: {folder}: model.norm.bias is not zero, and with model.bias = false there is no such "
        "bias"
    )


def test_heads_share_one_scale(tmp_path: Path) -> None:
    model = {**GELU, "activation": "swiglu", "qk_norm": True}
    name = "model.layers.1.self_attn.k_layernorm.norms.{}.weight"
    folder = changed(hub(tmp_path / "hub", model), {name.format(3): torch.ones(8)})
    assert refusal(config(folder, model)) == (
        f"init_from = hf:{folder}: {folder}: {name.format(3)} differs from {name.format(0)}: all heads share one scale "
        "here"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.norm.weight": None}, "{folder}: model.norm.weight: is missing"),
        ({"extra": torch.zeros(1)}, "{folder}: extra: LlamaForCausalLM has no such tensor here"),
        (
            {"model.norm.weight": torch.ones(31)},
            "{folder}: model.norm.weight: is F32 (31,); config.json says floating point (32,)",
        ),
        (
            {"model.norm.weight": torch.ones(32, dtype=torch.int8)},
            "{folder}: model.norm.weight: is I8 (32,); config.json says floating point (32,)",
        ),
    ],
    ids=["missing", "unexpected", "shape", "dtype"],
)
def test_tensors_that_are_not_the_model_s(change: dict[str, Tensor | None], message: str, tmp_path: Path) -> None:
    folder = changed(hub(tmp_path / "hub", LLAMA), change)
    assert refusal(config(folder, LLAMA)) == f"init_from = hf:{folder}: {message.format(folder=folder)}"


def test_folders_that_are_no_checkpoints(tmp_path: Path) -> None:
    assert refusal(config(tmp_path / "none", LLAMA)) == (
        f"init_from = hf:{tmp_path}/none: no such folder; hf: is followed by one with config.json and .safetensors"
    )
    folder = hub(tmp_path / "hub", LLAMA, quantization_config={"bits": 4})
    assert "config.json: quantization_config: quantised weights cannot be read" in refusal(config(folder, LLAMA))
    (folder / "model.safetensors").write_bytes(b"torn")
    (folder / "config.json").write_text((hub(tmp_path / "other", LLAMA) / "config.json").read_text())
    assert f"{folder}/model.safetensors: is no whole safetensors file: " in refusal(config(folder, LLAMA))
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").touch()
    assert refusal(config(folder, LLAMA)).endswith(
        "holds no model.safetensors or model.safetensors.index.json (pickled weights are not opened)"
    )
    (folder / "config.json").write_text("{")
    assert f"{folder}/config.json: is no JSON: " in refusal(config(folder, LLAMA))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[" * 100_000, "is no JSON: maximum recursion depth exceeded"),
        ('{"vocab_size": NaN}', "is no JSON: NaN is no number"),
        ({"num_hidden_layers": 10**7}, "num_hidden_layers = 10000000: there are only 21 tensors"),
        ({"vocab_size": True}, "vocab_size = true: must be a whole number"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_a_configuration_cannot_say(config: Any, message: str, tmp_path: Path) -> None:
    folder = hub(tmp_path / "hub", LLAMA, **(config if isinstance(config, dict) else {}))
    if isinstance(config, str):
        (folder / "config.json").write_text(config)
    with pytest.raises(CheckpointError) as error:
        HubCheckpoint(folder, ModelConfig())
    assert str(error.value).startswith(f"{folder}/config.json: {message}")


def test_as_many_heads_as_a_configuration_likes(tmp_path: Path) -> None:
    """An architecture with a norm for each head: the width is looked at before they are named."""
    folder = hub(tmp_path / "hub", {**GELU, "activation": "swiglu", "qk_norm": True})
    config = json.loads((folder / "config.json").read_text())
    many = {"hidden_size": 10**9, "num_attention_heads": 10**9, "num_key_value_heads": 10**9}
    (folder / "config.json").write_text(json.dumps(config | many))
    with pytest.raises(CheckpointError, match=r"model\.embed_tokens\.weight: is F32"):
        HubCheckpoint(folder, ModelConfig())


def test_a_head_beside_a_tied_one_must_be_equal(tmp_path: Path) -> None:
    """Also where a config.json does not say that it is tied, and transformers takes it to be."""
    folder = hub(tmp_path / "hub", {**GELU, "tie_embeddings": True})
    values = json.loads((folder / "config.json").read_text())
    assert values.pop("tie_word_embeddings")
    (folder / "config.json").write_text(json.dumps(values))
    table = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    changed(folder, {"lm_head.weight": table.clone()})
    write_model_file(folder, tmp_path / "equal.yaml")
    changed(folder, {"lm_head.weight": table + 1e-3})
    with pytest.raises(CheckpointError) as error:
        write_model_file(folder, tmp_path / "model.yaml")
    assert str(error.value) == (
        f"{folder}: lm_head.weight differs from model.embed_tokens.weight, and config.json means "
        "tie_word_embeddings = true"
    )
    changed(folder, {"lm_head.weight": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"lm_head.weight: is F32 \(3,\)"):
        write_model_file(folder, tmp_path / "model.yaml")


def sharded(folder: Path) -> dict[str, Any]:
    """The same tensors in two files; returns what the index says, and writes it."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(sorted(tensors))}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in tensors if files[name] == file}, folder / file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_only_the_files_of_the_checkpoint_are_read(tmp_path: Path) -> None:
    """Whatever other files lie beside them."""
    folder = hub(tmp_path / "hub", LLAMA)
    expected = load_file(folder / "model.safetensors")["model.norm.weight"]
    for beside in (folder / "model.old.safetensors", folder / "zz.safetensors"):
        save_file({"model.norm.weight": expected + 1, "other": expected}, beside)
    assert torch.equal(HubCheckpoint(folder, ModelConfig()).read("final_norm.weight"), expected)
    sharded(folder)
    assert torch.equal(HubCheckpoint(folder, ModelConfig()).read("final_norm.weight"), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.norm.weight": "gone.safetensors"}, "gone.safetensors: no such file"),
        (
            {"model.norm.weight": "../model-00001-of-00002.safetensors"},
            "weight_map.model.norm.weight = ../model-00001-of-00002.safetensors: must be a file in the same folder",
        ),
        ({"extra": "model-00001-of-00002.safetensors"}, "model-00001-of-00002.safetensors holds no extra"),
        (
            {"model.norm.weight": None},
            "model-00001-of-00002.safetensors is not said to hold model.norm.weight",
        ),
    ],
    ids=["missing file", "elsewhere", "no such tensor", "tensor left out"],
)
def test_an_index_that_is_wrong(change: dict[str, str | None], message: str, tmp_path: Path) -> None:
    folder = hub(tmp_path / "hub", LLAMA)
    index = sharded(folder)
    files = index["weight_map"] | change
    index["weight_map"] = {name: file for name, file in files.items() if file is not None}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError) as error:
        HubCheckpoint(folder, ModelConfig())
    assert str(error.value) == f"{folder}/model.safetensors.index.json: {message}"


@pytest.mark.parametrize(
    ("model", "theirs", "ours"),
    [
        (LLAMA, "model.layers.0.mlp.up_proj.weight", "layers.0.feedforward.gate_up.weight/up"),
        (LEARNED, "transformer.h.0.attn.c_attn.weight", "layers.0.attention.qkv.weight/q"),
    ],
    ids=["as it is", "transposed"],
)
@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_numbers_that_are_not_finite(
    model: dict[str, Any], theirs: str, ours: str, number: float, tmp_path: Path
) -> None:
    """They are refused where they are read."""
    folder = hub(tmp_path / "hub", model)
    tensor = load_file(folder / "model.safetensors")[theirs]
    tensor[5, 7] = number
    checkpoint = HubCheckpoint(changed(folder, {theirs: tensor}), ModelConfig())
    with pytest.raises(CheckpointError) as error:
        checkpoint.read(ours)
    assert str(error.value).startswith(f"{folder}: {theirs}: 1 of ") and "not finite" in str(error.value)
    assert checkpoint.read(ours, (slice(10, 20), slice(10, 20))).isfinite().all()


def test_a_folder_with_a_line_break_in_its_name(tmp_path: Path) -> None:
    folder = hub(tmp_path / "a\nlayers: 3", LLAMA)
    write_model_file(folder, tmp_path / "model.yaml")
    assert yaml.safe_load((tmp_path / "model.yaml").read_text())["init_from"] == f"hf:{folder}"


def test_half_precision_is_read_as_fp32_and_parts_as_asked(tmp_path: Path) -> None:
    folder = hub(tmp_path / "hub", LEARNED)
    tensors = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    weights = random_weights(**LEARNED)
    checkpoint = HubCheckpoint(folder, weights.config.model)
    for name in ("embedding.weight", "layers.1.attention.qkv.weight/k", "layers.0.feedforward.down.weight"):
        expected = weights.read(name).half().float()[: VOCAB if name == "embedding.weight" else None]
        assert torch.equal(checkpoint.read(name), expected)
        assert torch.equal(checkpoint.read(name, (slice(3, 9), slice(1, 30))), expected[3:9, 1:30])


@pytest.mark.parametrize(
    ("model", "bias"), [(LEARNED, False), ({**LEARNED, "bias": True}, True), (LLAMA, False)], ids=str
)
def test_the_model_file_is_a_run(model: dict[str, Any], bias: bool, tmp_path: Path) -> None:
    """With data it is one that begins from the checkpoint."""
    folder = hub(tmp_path / "hub", model)
    out = tmp_path / "model.yaml"
    result = CliRunner().invoke(app, ["import", str(folder), "--out", str(out)])
    assert result.exit_code == 0, result.output
    (tmp_path / "run.yaml").write_text("extends: model.yaml\ndata: {sources: [{path: books}]}\n")
    cfg = load(tmp_path / "run.yaml", [f"training.sequence_length={LENGTH}"])
    assert (cfg.hub_folder, cfg.model.bias) == (folder, bias)
    check_before_launch(resolve(cfg, 1))
    assert f"sequence_length: {LENGTH}" in out.read_text()
    if model["positions"] == "learned":
        assert load(tmp_path / "run.yaml").training.sequence_length == LENGTH
    again = CliRunner().invoke(app, ["import", str(folder), "--out", str(out)])
    assert (again.exit_code, again.stderr) == (2, f"command line: --out = {out}: cannot be written: File exists\n")


def test_a_checkpoint_that_cannot_be_expressed(tmp_path: Path) -> None:
    folder = hub(tmp_path / "hub", LLAMA, rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4})
    with pytest.raises(CheckpointError) as error:
        write_model_file(folder, tmp_path / "model.yaml")
    assert str(error.value) == (
        f"{folder}/config.json: rope_parameters.rope_type = yarn: only default can be expressed here"
    )


def test_a_job_finds_the_checkpoint_from_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    absolute = with_absolute_paths(config(Path("hub"), LLAMA))
    assert absolute.hub_folder == tmp_path / "hub"
    assert with_absolute_paths(absolute) == absolute
