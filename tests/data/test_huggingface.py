import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from configs.errors import ConfigError, DataError
from data.dataset import Split, verify
from data.huggingface import HuggingFaceTokenizer
from data.prepare import prepare
from data.tokenizer import load
from formats.tokenizer import write_fast_tokenizer

TEXTS = [f"def f{i}(x):\n    return  x + {i}  # été {i * i}\n\tpass\n" for i in range(300)]
END = "<|endoftext|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer as it is published: adds a token before texts, cuts and pads them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[END, "[MASK]", "<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $0", special_tokens=[("<s>", 2)])
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=9)
    tokenizer.add_tokens([AddedToken("return", normalized=False)])
    folder = tmp_path_factory.mktemp("hub")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": END, "special": True}}))
    return folder


@pytest.mark.parametrize("name", ["", "tokenizer.json"])
def test_only_the_text_is_encoded(folder: Path, name: str) -> None:
    tokenizer = HuggingFaceTokenizer(folder / name)
    assert (tokenizer.eod, tokenizer.vocab_size) == (0, 401)
    for text in [*TEXTS[:20], f"{END}[MASK]<s>", f"a {END}", "", "été 🙂 \x00 \u2581", TEXTS[0] * 50]:
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32
        assert not {0, 1, 2} & set(ids.tolist())
        assert tokenizer.decode(ids) == text
    ids = tokenizer.encode("x")
    assert tokenizer.decode([tokenizer.eod, *ids, tokenizer.eod]) == "x"
    assert 400 in tokenizer.encode("return")  # an added token that is not special is text


def test_another_end_is_another_tokenizer(folder: Path) -> None:
    tokenizer = HuggingFaceTokenizer(folder, "[MASK]")
    assert tokenizer.eod == 1
    assert tokenizer.hash != HuggingFaceTokenizer(folder).hash
    assert tokenizer.hash == HuggingFaceTokenizer(folder, 1).hash


def test_prepare_copies_it(folder: Path, corpus: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        out = tmp_path / str(workers)
        result = prepare([corpus], out, tokenizer=folder, workers=workers, progress=False)
        assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert (tmp_path / "1" / "train.bin").read_bytes() == (tmp_path / "2" / "train.bin").read_bytes()
    assert (result.vocab_size, result.manifest.tokenizer.kind) == (401, "huggingface")
    assert prepare([corpus], out, tokenizer=folder / "tokenizer.json", workers=1, progress=False).reused
    verify(out)
    split, first = Split(out, "validation"), json.loads(corpus.read_text().split("\n")[0])["text"]
    text = load(out).decode(split.read(0, split.tokens))
    whole = text + load(out).decode(Split(out, "train").read(0, Split(out, "train").tokens))
    assert first in whole
    with pytest.raises(DataError, match="made from other inputs or settings"):
        prepare([corpus], out, tokenizer=folder, eod="[MASK]", workers=1, progress=False)
    (out / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes() + b"\n")
    with pytest.raises(DataError, match=r"tokenizer\.json: not the tokenizer that"):
        load(out)


def test_export_gives_the_ids_of_training(folder: Path, tmp_path: Path) -> None:
    ours = HuggingFaceTokenizer(folder)
    write_fast_tokenizer(ours, tmp_path, context=32, texts=TEXTS)
    fast = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert fast.encode(TEXTS[0]).ids == ours.encode(TEXTS[0]).tolist()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (config["eos_token"], config["split_special_tokens"]) == (END, True)


def test_no_end_of_document(folder: Path, tmp_path: Path) -> None:
    file, config = tmp_path / "tokenizer.json", tmp_path / "tokenizer_config.json"
    file.write_bytes((folder / "tokenizer.json").read_bytes())
    with pytest.raises(
        DataError, match=r"which token ends a document\? There is no eos_token in .*: name it with --eod"
    ):
        HuggingFaceTokenizer(file)
    config.write_text('{"eos_token": null}')
    with pytest.raises(DataError, match="which token ends a document"):
        HuggingFaceTokenizer(file)
    config.write_text('{"eos_token": "</s>"}')
    with pytest.raises(DataError, match=r"tokenizer_config\.json: eos_token = </s>: not a token of"):
        HuggingFaceTokenizer(file)
    config.write_text("[broken")
    with pytest.raises(DataError, match=r"tokenizer_config\.json: not a tokenizer configuration"):
        HuggingFaceTokenizer(file)
    with pytest.raises(DataError, match=r"^--eod = END: not a token of"):
        HuggingFaceTokenizer(file, "END")
    assert HuggingFaceTokenizer(file, "<s>").eod == 2


def test_text_that_would_end_a_document(tmp_path: Path, corpus: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "END": 1, "a": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ours = HuggingFaceTokenizer(tmp_path, "END")
    assert ours.encode("a b").tolist() == [2, 0]
    with pytest.raises(DataError, match="text that spells 'END' becomes the end of a document in the middle of one"):
        ours.encode("a END a")


def test_files_that_are_none(folder: Path, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(DataError, match=r"x\.json: not a tokenizer\.json of Hugging Face tokenizers: "):
        HuggingFaceTokenizer(tmp_path / "x.json")
    with pytest.raises(DataError, match=r"tokenizer\.json: cannot be read: No such file"):
        prepare([corpus], tmp_path / "out", tokenizer=tmp_path, progress=False)
    with pytest.raises(ConfigError, match=r"^eod = </s>: only for a tokenizer\.json: byte has an end of its own"):
        prepare([corpus], tmp_path / "out", eod="</s>", progress=False)
    with pytest.raises(ConfigError, match=r"of a tokenizer\.json or of a folder that holds one$"):
        prepare([corpus], tmp_path / "out", tokenizer="nowhere", progress=False)
