"""Exported models compute what training computed, are loaded by transformers, and come back to the bit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from configs.errors import CheckpointError, ConfigError, DataError
from configs.load import load
from data.samples import Samples
from exchange import export as export_module
from exchange import plain as plain_module
from exchange.export import Exported, Wanted, export
from exchange.plain import CheckpointGone, open_run
from inference.load import load_decoder, place
from launcher.cli import app
from tests.exchange.runs import LENGTH, Made, begun, made, ours, tokens
from training.checkpoint.manifest import read_manifest, write_manifest

BOUND = 1e-4
QWEN3 = ["model.qk_norm=true"]
TIED = ["model.tie_embeddings=true", "model.reparam.head=false"]
PLAIN = ["model.reparam.kind=none"]
GPT2 = [
    "model.norm=layernorm",
    "model.positions=learned",
    "model.activation=gelu",
    "model.kv_heads=4",
    "model.bias=true",
]
RUNS = {
    "sigma": ("tp2 pp2", []),
    "plain": ("tp2 pp2", PLAIN),
    "fused sigma": ("tp2 pp2", ["model.reparam.qkv=qk+v", "model.reparam.gate_up=fused", *QWEN3]),
    "tied": ("tp2", TIED),
    "bf16": ("tp2 pp2", ["training.precision=bf16"]),
    "gpt2": ("tp2", GPT2),
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in RUNS if name != "sigma"]

Runs = Callable[[str], Made]


@pytest.fixture(scope="module")
def runs(stdlib_bytes: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The run of a name, trained once."""
    done: dict[str, Made] = {}

    def of(name: str) -> Made:
        if name not in done:
            layout, overrides = RUNS[name]
            done[name] = made(stdlib_bytes, tmp_path_factory.mktemp("runs"), layout, *overrides)
        return done[name]

    return of


def exported(run: Made | Path, out: Path, **changes: object) -> Exported:
    return export(Wanted(run.folder if isinstance(run, Made) else run, out, **changes))  # type: ignore[arg-type]


def opened(folder: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def logits_of(model: torch.nn.Module, tokens_BT: Tensor) -> Tensor:
    with torch.no_grad():
        return model(tokens_BT).logits.float()


@pytest.mark.parametrize("name", ["sigma", *SLOW])
def test_logits_and_loss_are_those_of_training(name: str, runs: Runs, stdlib_bytes: Path, tmp_path: Path) -> None:
    run = runs(name)
    cfg, overrides = run.config, RUNS[name][1]
    exported(run, tmp_path / "out", dtype="fp32")
    model, inputs_BT = opened(tmp_path / "out"), tokens(cfg)
    expected_BTV = ours(stdlib_bytes, tmp_path / "again", cfg.run_dir, *overrides, "training.precision=fp32")
    assert expected_BTV.shape == (4, LENGTH, 257) and expected_BTV.std(1).mean() > 0.3
    assert (logits_of(model, inputs_BT) - expected_BTV).abs().max() < BOUND
    windows = Samples(cfg.data.sources, "validation", LENGTH, 0)
    rows_BT = torch.stack([torch.from_numpy(windows[k]) for k in range(32)])
    loss = F.cross_entropy(logits_of(model, rows_BT[:, :-1]).flatten(0, 1), rows_BT[:, 1:].flatten())
    assert loss.item() == pytest.approx(run.val_loss, rel=5e-3 if name == "bf16" else 1e-5)


def test_greedy_tokens_are_ours(runs: Runs, tmp_path: Path) -> None:
    """Of transformers' generate, token by token: each the argmax of our logits of all tokens before it."""
    run = runs("sigma")
    exported(run, tmp_path / "out")
    model, tokenizer = opened(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
    decoder = load_decoder(open_run(run.folder), 257, place(run.config, "cpu", None))
    made = set()
    for text in ("def main(", "import os\n", "[1, 2, 3]", "# Ünicode"):
        prompt = tokenizer(text, return_tensors="pt")
        ids = list(text.encode())
        assert prompt["input_ids"].tolist() == [ids]
        theirs = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0].tolist()
        while len(ids) < len(theirs):
            with torch.no_grad():
                ids.append(int(decoder(torch.tensor([ids]))[0, -1].argmax()))
        assert ids == theirs
        made |= set(ids[len(text.encode()) :])
    assert len(made) > 3


@pytest.mark.slow
def test_bf16_weights_are_as_near_to_fp32_as_training_s_own(runs: Runs, stdlib_bytes: Path, tmp_path: Path) -> None:
    """bf16 is the default dtype of a bf16 run. Two bf16 implementations round apart, each as far from fp32."""
    run = runs("bf16")
    assert exported(run, tmp_path / "out").dtype == "bf16"
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    exact_BTV = ours(stdlib_bytes, tmp_path / "fp32", run.folder)
    ours_BTV = ours(stdlib_bytes, tmp_path / "bf16", run.folder, *RUNS["bf16"][1])
    theirs_BTV = logits_of(opened(tmp_path / "out", torch.bfloat16), tokens(run.config))
    own_error = (ours_BTV - exact_BTV).square().mean().sqrt()
    assert 0 < own_error < 0.05 * exact_BTV.std()
    assert (theirs_BTV - exact_BTV).square().mean().sqrt() < 1.3 * own_error


@pytest.mark.parametrize(
    ("name", "layout", "reparam"),
    [
        ("sigma", "tp2", "sigma"),
        pytest.param("sigma", "tp2 pp2", "none", marks=pytest.mark.slow),
        pytest.param("fused sigma", "tp2 pp2", "sigma", marks=pytest.mark.slow),
        pytest.param("tied", "one", "sigma", marks=pytest.mark.slow),
        pytest.param("gpt2", "tp2", "sigma", marks=pytest.mark.slow),
        pytest.param("bf16", "tp2 pp2", "sigma", marks=pytest.mark.slow),
    ],
)
def test_export_import_export_is_bit_equal(
    name: str, layout: str, reparam: str, runs: Runs, stdlib_bytes: Path, tmp_path: Path
) -> None:
    """Weights, configurations and tokenizer; and the imported run's logits are the exported model's."""
    overrides = [*RUNS[name][1], f"model.reparam.kind={reparam}"]
    exported(runs(name), tmp_path / "first")
    folder = begun(stdlib_bytes, tmp_path / "runs", layout, f"hf:{tmp_path / 'first'}", *overrides)
    exported(folder, tmp_path / "second")
    names = {path.name for path in (tmp_path / "first").iterdir()} - {"README.md"}
    assert names == {path.name for path in (tmp_path / "second").iterdir()} - {"README.md"}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= names
    for file in names:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes(), file


def test_an_imported_run_has_the_exported_model_s_logits(runs: Runs, stdlib_bytes: Path, tmp_path: Path) -> None:
    """With sigmaReparam on top, before the first step."""
    run = runs("sigma")
    exported(run, tmp_path / "out")
    logits_BTV = ours(stdlib_bytes, tmp_path / "new", f"hf:{tmp_path / 'out'}")
    assert (logits_BTV - logits_of(opened(tmp_path / "out"), tokens(run.config))).abs().max() < BOUND


def test_shards(runs: Runs, tmp_path: Path) -> None:
    run = runs("sigma")
    one = exported(run, tmp_path / "one")
    exported(run, tmp_path / "many", max_shard_bytes=40_000)
    files = sorted((tmp_path / "many").glob("model-*.safetensors"))
    assert [path.name for path in files] == [
        f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)
    ]
    assert len(files) > 5
    parts = [load_file(path) for path in files]
    assert all(len(part) == 1 or sum(t.nbytes for t in part.values()) <= 40_000 for part in parts)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == one.bytes == sum(t.nbytes for part in parts for t in part.values())
    assert index["weight_map"] == {name: path.name for path, part in zip(files, parts, strict=True) for name in part}
    whole, shards = opened(tmp_path / "one").state_dict(), opened(tmp_path / "many").state_dict()
    assert all(torch.equal(whole[name], shards[name]) for name in whole)
    assert one.parameters == sum(tensor.numel() for tensor in load_file(tmp_path / "one/model.safetensors").values())


def test_plain_weights_are_folded_and_under_our_names(runs: Runs, tmp_path: Path) -> None:
    run = runs("sigma")
    done = exported(run, tmp_path / "plain", to="plain")
    exported(run, tmp_path / "hf")
    plain, theirs = load_file(tmp_path / "plain/model.safetensors"), load_file(tmp_path / "hf/model.safetensors")
    assert done.architecture is None and not any(name.endswith(".gamma") for name in plain)
    assert torch.equal(plain["layers.3.attention.qkv.weight/k"], theirs["model.layers.3.self_attn.k_proj.weight"])
    assert torch.equal(plain["embedding.weight"], theirs["model.embed_tokens.weight"])
    assert plain["head.weight/head"].shape == (257, 32)  # 288 rows in the run
    written = load(tmp_path / "plain" / "config.yaml")
    same = {"reparam": written.model.reparam, "vocab_multiple": 1}
    assert written.model == run.config.model.model_copy(update=same)
    assert written.model.reparam.kind == "none"


def test_plain_weights_are_opened_as_a_run_is(runs: Runs, tmp_path: Path) -> None:
    """Exported once more they give the same model; a changed byte is found."""
    run = runs("sigma")
    exported(run, tmp_path / "plain", to="plain", max_shard_bytes=100_000)
    exported(run, tmp_path / "one")
    exported(tmp_path / "plain", tmp_path / "two")
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()
    assert (tmp_path / "one/config.json").read_bytes() == (tmp_path / "two/config.json").read_bytes()
    with pytest.raises(CheckpointError, match=r"^.*plain: holds the weights of one step: leave --step 3 out$"):
        exported(tmp_path / "plain", tmp_path / "three", step=3)
    file = sorted((tmp_path / "plain").glob("model-*.safetensors"))[1]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        exported(tmp_path / "plain", tmp_path / "three")
    assert str(error.value) == f"{file}: changed since it was written: its checksum is another"


def test_the_card_tells_where_the_model_comes_from(runs: Runs, stdlib_bytes: Path, tmp_path: Path) -> None:
    run = runs("sigma")
    exported(run, tmp_path / "out", command="steadytrain export runs/x --out out")
    text = (tmp_path / "out" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["steadytrain"],
    }
    checkpoint = run.folder / "checkpoints" / "step-00000003"
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    dataset = json.loads((stdlib_bytes / "manifest.json").read_text())
    for told in (
        f"- validation loss: {run.val_loss:.4f} (step 3)",
        f"`{manifest['data_fingerprint']}`",
        f"fingerprint `{dataset['fingerprint']}`",
        "sigmaReparam",
        "steadytrain export runs/x --out out",
        "layout: tp 2, pp 2",
    ):
        assert told in body
    section = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    assert section["model"] == run.config.model.model_dump(mode="json")


def test_the_command(runs: Runs, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["export", str(runs("sigma").folder), "--out", str(out), "--json"])
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert (told["architecture"], told["step"], told["dtype"]) == ("LlamaForCausalLM", 3, "fp32")
    assert told["folder"] == str(out) and told["bytes"] == 4 * told["parameters"]
    again = CliRunner().invoke(app, ["export", str(runs("sigma").folder), "--out", str(out)])
    assert again.exit_code == 2
    assert again.stderr == f"command line: --out = {out}: is not empty; name a new folder, or an empty one\n"
    for size in ("2 pounds", "٣MB"):
        wrong = CliRunner().invoke(app, ["export", "x", "--out", str(out), "--max-shard-size", size])
        assert wrong.stderr == f"command line: --max-shard-size = {size}: must be a size such as 500MB, 2GB or 4GiB\n"


def test_an_empty_folder_is_taken(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    exported(runs("sigma"), tmp_path / "out")
    assert (tmp_path / "out" / "config.json").exists()


def test_nothing_is_left_of_an_export_that_fails(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise DataError("x.model: has no equal among fast tokenizers")

    monkeypatch.setattr(export_module, "write_fast_tokenizer", fail)
    with pytest.raises(DataError):
        exported(runs("sigma"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_is_a_file(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as error:
        exported(runs("sigma"), tmp_path / "file" / "out")
    expected = f"command line: --out = {tmp_path}/file/out: cannot be written: {tmp_path}/file: File exists"
    assert str(error.value) == expected


def test_a_name_that_is_too_long(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be written: /.*/nnn+: File name too long$"):
        exported(runs("sigma"), tmp_path / ("n" * 300))


def test_a_full_disk(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=11)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(ConfigError, match=r"/out: cannot be written: No space left on device: \d+ bytes to write"):
        exported(runs("sigma"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_data_that_are_gone(runs: Runs, stdlib_bytes: Path, tmp_path: Path) -> None:
    run = runs("sigma")
    hidden = stdlib_bytes.rename(stdlib_bytes.with_name("gone"))
    try:
        with pytest.raises(ConfigError) as error:
            exported(run, tmp_path / "out")
        assert str(error.value) == (
            f"{stdlib_bytes}: the data of this run are not there; name their tokenizer with --tokenizer "
            "(a SentencePiece .model file, a tokenizer.json, or byte)"
        )
        exported(run, tmp_path / "out", tokenizer=Path("byte"))
    finally:
        hidden.rename(stdlib_bytes)
    assert "not there when this was written" in (tmp_path / "out" / "README.md").read_text()


def other_tokenizer(runs: Runs, folder: Path) -> Path:
    """As large as the run's own; two tokens have changed places."""
    exported(runs("sigma"), folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder / "tokenizer.json"


def of_other_data(runs: Runs, folder: Path) -> Path:
    """A copy of the run whose checkpoint was trained on data that are no more: others lie in their place."""
    shutil.copytree(runs("sigma").folder, folder / "run", symlinks=True)
    checkpoint = folder / "run" / "checkpoints" / "step-00000003"
    write_manifest(checkpoint, read_manifest(checkpoint).model_copy(update={"data_fingerprint": "of others"}))
    return folder / "run"


def test_a_tokenizer_named_by_hand_must_be_the_data_s(runs: Runs, stdlib_bytes: Path, tmp_path: Path) -> None:
    other, run = other_tokenizer(runs, tmp_path / "other"), runs("sigma")
    exported(run, tmp_path / "plain", to="plain", tokenizer=Path("byte"))
    for model, home in ((run.folder, stdlib_bytes), (tmp_path / "plain", tmp_path / "plain")):
        told = CliRunner().invoke(app, ["generate", str(model), "--prompt", "x", "--tokenizer", str(other)])
        folder = model / "checkpoints" / "step-00000003" if model == run.folder else model
        said = f"is not the tokenizer of {folder}, which lies in {home}: leave it out"
        assert (told.exit_code, told.stderr) == (2, f"command line: --tokenizer = {other}: {said}\n")


def test_a_tokenizer_that_cannot_be_checked_is_told(runs: Runs, stdlib_bytes: Path, tmp_path: Path) -> None:
    """On standard error, in the card, and by what is made of the plain weights; other data are not taken for theirs."""
    run, out = of_other_data(runs, tmp_path), tmp_path / "plain"
    options = ["--to", "plain", "--tokenizer", "byte", "--out", str(out)]
    done = CliRunner().invoke(app, ["export", str(run), *options])
    assert done.exit_code == 0
    said = f"given by hand: --tokenizer = byte: only its size could be checked: {stdlib_bytes}: not the data that"
    assert done.stderr.startswith(f"the tokenizer is {said}")
    again = CliRunner().invoke(app, ["export", str(out), "--out", str(tmp_path / "hf")])
    assert again.exit_code == 0 and again.stderr == done.stderr
    for folder in (out, tmp_path / "hf"):
        card = (folder / "README.md").read_text()
        assert f"- the tokenizer was {said}" in card
        assert f"- `{stdlib_bytes}` (what lay there when this was written is not known to be it)" in card
        assert json.loads((stdlib_bytes / "manifest.json").read_text())["fingerprint"] not in card
    told = CliRunner().invoke(app, ["evaluate", str(out), "--samples", "1"])
    assert told.exit_code == 2
    assert told.stderr == f"{stdlib_bytes}: not the data that {out} was trained on: prepared anew since\n"


@pytest.mark.parametrize("file", ["tokenizer.json", "config.yaml"])
def test_files_beside_plain_weights_are_sealed(file: str, runs: Runs, tmp_path: Path) -> None:
    exported(runs("sigma"), tmp_path / "plain", to="plain")
    with (tmp_path / "plain" / file).open("a") as changed:
        changed.write("\n")
    with pytest.raises(CheckpointError) as error:
        open_run(tmp_path / "plain")
    assert str(error.value) == f"{tmp_path}/plain/{file}: changed since it was written: its checksum is another"


@pytest.mark.parametrize("place", ["checkpoints", "checkpoints/new", "checkpoints/step-00000003/a/b"])
def test_places_of_checkpoints_are_left_alone(place: str, runs: Runs) -> None:
    out = runs("sigma").folder / place
    with pytest.raises(
        ConfigError, match=r"^command line: --out = .*: (is inside .*, which holds checkpoints|is not em)"
    ):
        exported(runs("sigma"), out)
    assert place == "checkpoints" or not out.exists()


def test_a_link_is_no_place(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "out").symlink_to("empty")
    with pytest.raises(ConfigError, match=r"--out = .*/out: is a symbolic link; name a new folder, or an empty one$"):
        exported(runs("sigma"), tmp_path / "out")


def test_the_second_of_two_exports_to_one_folder(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_meanwhile(*_: object) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "first").touch()

    monkeypatch.setattr(export_module, "write_card", write_meanwhile)
    with pytest.raises(ConfigError, match=r"/out: is not empty; name a new folder, or an empty one$"):
        exported(runs("sigma"), tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "first"]


def test_a_checkpoint_that_is_pruned_meanwhile(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest is taken then, unless that very one was asked for."""
    shutil.copytree(runs("sigma").folder, tmp_path / "run", symlinks=True)
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000003"
    weights, aside, write = open_run(tmp_path / "run"), checkpoint.with_name("aside"), export_module.write_shards

    def prune_first(*arguments: Any) -> Any:
        checkpoint.rename(aside)
        return write(*arguments)

    monkeypatch.setattr(export_module, "write_shards", prune_first)
    with pytest.raises(CheckpointGone, match=r"step-00000003: is gone: pruned by the run meanwhile$"):
        exported(tmp_path / "run", tmp_path / "out", step=3)
    with pytest.raises(CheckpointGone):
        weights.describe_manifest()
    with pytest.raises(CheckpointGone), plain_module._reading(checkpoint):
        raise RuntimeError("unable to open file")  # torch's, if it goes between two looks at one file
    aside.rename(checkpoint)
    tried = []

    def prune_once(*arguments: Any) -> Any:
        tried.append(1)
        if len(tried) == 1:
            raise CheckpointGone("x")
        return write(*arguments)

    monkeypatch.setattr(export_module, "write_shards", prune_once)
    exported(tmp_path / "run", tmp_path / "out")
    assert len(tried) == 2 and (tmp_path / "out" / "config.json").exists()


def test_names_with_newlines_stay_on_their_line(runs: Runs, tmp_path: Path) -> None:
    exported(runs("sigma"), tmp_path / "a\n# b")
    assert "\n# a # b\n" in (tmp_path / "a\n# b" / "README.md").read_text()


def test_no_such_step(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no checkpoint of step 7"):
        exported(runs("sigma"), tmp_path / "out", step=7)
