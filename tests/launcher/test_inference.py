"""`steadytrain generate` and `evaluate`: what is printed, as text and as JSON, and what is refused in one line."""

import json
import math
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from configs.schema import Config
from data.tokenizer import ByteTokenizer
from launcher.cli import app
from monitoring.recorder import read_metrics
from tests.inference.conftest import learned_run
from training.checkpoint import store

__all__ = ["learned_run"]


def run(*arguments: str, text: str | bytes | None = None):
    return CliRunner(env={"COLUMNS": "120"}).invoke(app, list(arguments), input=text)


@pytest.fixture(scope="module")
def folder(learned_run: Config) -> str:
    return str(learned_run.run_dir)


def test_text_and_json_are_the_same_continuation(folder: str) -> None:
    options = [folder, "--prompt", "def é", "--max-tokens", "9", "--seed", "3"]
    plain, found = run("generate", *options), json.loads(run("generate", *options, "--json").stdout)
    (sample,) = found["samples"]
    assert plain.exit_code == 0 and plain.stdout == sample["text"] + "\n" and plain.stderr == ""
    assert sample["text"] == ByteTokenizer().decode(sample["tokens"]) and len(sample["tokens"]) == 9
    assert (found["step"], found["prompt"], found["seed"]) == (6, "def é", 3)
    assert run("generate", *options[:-1], "4").stdout != plain.stdout


def test_samples_are_numbered_and_prompts_come_from_files(folder: str, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("import é\n")
    several = run("generate", folder, "--prompt", "import é\n", "--max-tokens", "5", "--samples", "2")
    assert several.stdout.startswith("--- 1 of 2\n") and "\n--- 2 of 2\n" in several.stdout
    from_file = run("generate", folder, "--prompt-file", str(tmp_path / "prompt.txt"), "--max-tokens", "5")
    from_stdin = run("generate", folder, "--prompt-file", "-", "--max-tokens", "5", text="import é\n")
    assert several.stdout.startswith(f"--- 1 of 2\n{from_file.stdout}--- 2")
    assert from_stdin.stdout == from_file.stdout


def test_learned_positions_end_the_text(folder: str) -> None:
    found = json.loads(run("generate", folder, "--prompt", "", "--json").stdout)
    assert len(found["samples"][0]["tokens"]) == 64 or found["samples"][0]["ended"] == "end_of_document"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "command line: give one of --prompt TEXT and --prompt-file FILE (- for standard input)"),
        (["--prompt", "a", "--prompt-file", "b"], "command line: give one of --prompt TEXT and --prompt-file FILE"),
        (["--prompt-file", "none.txt"], "command line: --prompt-file = none.txt: cannot be read: No such file"),
        (["--prompt", "a", "--greedy", "--top-k", "3"], "command line: --greedy: draws nothing: leave --temperature,"),
        (["--prompt", "a", "--greedy", "--samples", "2"], "command line: --samples = 2: with --greedy all are the"),
        (["--prompt", "a", "--temperature", "0"], "command line: --temperature = 0: must be above 0; --greedy takes"),
        (["--prompt", "a", "--max-tokens", "65"], "command line: --max-tokens = 65: at most 64 after 1 tokens of"),
        (["--prompt", "a", "--samples", "1000000000"], "command line: --samples = 1000000000: at most "),
        (["--prompt", "a", "--step", "5"], "has no checkpoint of step 5 (those of 3, 6)"),
        (["--prompt", "a", "--device", "gpu"], "command line: --device = gpu: must be auto, cpu or cuda"),
    ],
)
def test_generate_refuses_in_one_line(folder: str, options: list[str], message: str) -> None:
    result = run("generate", folder, *options)
    assert result.exit_code == 2 and result.stdout == ""
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_a_prompt_that_is_no_text(folder: str) -> None:
    result = run("generate", folder, "--prompt-file", "-", text=b"ab\xff")
    assert (result.exit_code, result.stderr) == (2, "command line: --prompt-file = -: is no UTF-8 text: byte 2\n")


def test_an_argument_that_is_no_text(folder: str) -> None:
    result = run("generate", folder, "--prompt", "é\udcff\udcfeabc")
    assert (result.exit_code, result.stderr) == (2, "command line: --prompt: is no UTF-8 text: byte 2\n")


def test_evaluations_of_all_steps(folder: str, learned_run: Config) -> None:
    found = json.loads(run("evaluate", folder, "--all-steps", "--json").stdout)
    logged = {line["step"]: line["val_loss"] for line in read_metrics(learned_run.run_dir) if "val_loss" in line}
    assert [entry["step"] for entry in found] == [6, 3]
    for entry in found:
        assert entry["logged_val_loss"] == logged[entry["step"]] == pytest.approx(entry["loss"], rel=1e-6)
        assert entry["samples"] == 48 and entry["tokens"] == 48 * 64 and 0 < entry["bytes"] <= 48 * 64
        assert entry["bits_per_byte"] == pytest.approx(entry["loss"] * entry["tokens"] / math.log(2) / entry["bytes"])


def test_the_table_and_other_samples(folder: str, stdlib_bytes: Path) -> None:
    own = run("evaluate", folder)
    heading, _, row = [line.split() for line in own.stdout.strip().splitlines()]
    assert heading == ["step", "loss", "±", "perplexity", "bits/byte", "samples", "logged"]
    assert row[0] == "6" and row[1] == row[6] and row[5] == "48"
    fewer = run("evaluate", folder, "--samples", "5", "--split", "train").stdout.strip().splitlines()[-1].split()
    assert fewer[5:] == ["5", "-"] and fewer[1] != row[1]
    named = json.loads(run("evaluate", folder, "--data", str(stdlib_bytes), "--json").stdout)
    assert f"{named[0]['loss']:.4f}" == row[1] and named[0]["logged_val_loss"] is None


def test_small_data_are_read_again_and_that_is_told(folder: str, tmp_path: Path) -> None:
    from data.prepare import prepare

    (tmp_path / "few.jsonl").write_text("\n".join(json.dumps({"text": f"x = {i}\n" * 30}) for i in range(20)))
    prepare([str(tmp_path / "few.jsonl")], tmp_path / "few", tokenizer="byte", workers=1, progress=False)
    windows = (json.loads((tmp_path / "few" / "manifest.json").read_text())["validation"]["tokens"] - 1) // 64
    result = run("evaluate", folder, "--data", str(tmp_path / "few"), "--samples", str(windows + 1))
    assert result.exit_code == 0
    assert f"{windows + 1} samples of {windows} windows: some are read more than once" in result.stderr
    assert run("evaluate", folder, "--data", str(tmp_path / "few"), "--samples", str(windows)).stderr == ""


def test_no_such_data(folder: str) -> None:
    result = run("evaluate", folder, "--data", "unknown")
    assert result.exit_code == 2 and "no such dataset" in result.stderr and result.stderr.count("\n") == 1


def test_data_of_another_tokenizer(folder: str, stdlib_bytes: Path, tmp_path: Path) -> None:
    from data.prepare import prepare

    prepare(
        ["stdlib"],
        tmp_path / "bpe",
        tokenizer="bpe",
        vocab_size=600,
        max_bytes=1_000_000,
        validation_fraction=0.3,
        workers=1,
        progress=False,
    )
    result = run("evaluate", folder, "--data", str(tmp_path / "bpe"))
    assert result.exit_code == 2
    assert result.stderr == (
        f"command line: --data = {tmp_path / 'bpe'}: prepared with another tokenizer than {stdlib_bytes}, "
        "which the run was trained on: prepare it with that one\n"
    )


def test_an_exported_folder_writes_the_same_without_its_data(folder: str, tmp_path: Path) -> None:
    plain = str(tmp_path / "plain")
    assert run("export", folder, "--to", "plain", "--out", plain).exit_code == 0
    options = ["--prompt", "def ", "--max-tokens", "20", "--json"]
    own, exported = (run("generate", place, *options) for place in (folder, plain))
    assert exported.exit_code == 0, exported.stderr
    assert json.loads(exported.stdout)["samples"] == json.loads(own.stdout)["samples"]


def test_a_damaged_checkpoint_is_passed_over_aloud(folder: str, tmp_path: Path) -> None:
    damaged = tmp_path / "run"
    shutil.copytree(folder, damaged, symlinks=True)
    newest, older = store.steps(damaged / store.FOLDER)[:2]
    shard = next(newest.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    for command in (
        ["generate", "--prompt", "a", "--max-tokens", "1"],
        ["evaluate", "--samples", "1"],
        ["export", "--to", "plain", "--out", str(tmp_path / "out")],
    ):
        done = run(command[0], str(damaged), *command[1:], "--json")
        assert done.stderr.startswith(f"passed over: {shard}: changed since it was written"), done
        found = json.loads(done.stdout)
        assert (found[0] if isinstance(found, list) else found)["checkpoint"] == str(older.resolve())


def test_a_hugging_face_checkpoint_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    done = run("generate", str(tmp_path), "--prompt", "a")
    assert done.exit_code == 2 and f"init_from=hf:{tmp_path}" in done.stderr and done.stderr.count("\n") == 1
