"""`steadytrain prepare`: messages name the options that the user gave."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from launcher.cli import app


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--validation-fraction", "2"], "command line: --validation-fraction = 2.0: must lie between 0 and 1"),
        (["--max-bytes", "0"], "command line: --max-bytes = 0: must be at least 1"),
        (["--tokenizer", "bpe", "--vocab-size", "9"], "command line: --vocab-size = 9: must be at least 300"),
        (["--tokenizer", "max_bytes"], "command line: --tokenizer = max_bytes: must be byte, bpe, unigram, or"),
        (["--max-bytes", "8"], " --max-bytes = 8"),
        (["--text-field", "body"], "no field 'body' (fields: 'text'): choose one with --text-field"),
    ],
)
def test_settings_are_named_as_options(options: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "only this document"}\n')
    done = CliRunner().invoke(app, ["prepare", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "out"), *options])
    assert done.exit_code == 2 and message in done.stderr.splitlines()[-1]  # progress comes before
