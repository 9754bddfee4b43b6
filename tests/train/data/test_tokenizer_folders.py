"""Folders with a tokenizer as transformers writes them are read, with the ids that transformers gives, and silently."""

import json
import sys
from pathlib import Path

import pytest

from emcl_train.config import DataConfig, ModelConfig, RunConfig
from emcl_train.data.text import load_tokenizer
from emcl_train.errors import UserError
from emcl_train.reading.tokenizer_files import require_survived

CAPTIONS = ["a dog runs", "cat a dog", "a bird", "dog"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "cat", "runs", "##s", "[NEW]"]
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}

OTHER_CLASSES = [
    "MPNetTokenizer", "T5Tokenizer", "CamembertTokenizer", "ElectraTokenizer", "DebertaV2TokenizerFast",
    "LlamaTokenizerFast", "TokenizersBackend", "SomeTokenizerOfTomorrow",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """What transformers itself writes of a BERT, with a token added."""
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS[:-1]) + "\n")
    tokenizer = transformers.BertTokenizer.from_pretrained(tmp_path)
    tokenizer.add_tokens(["[NEW]"])
    tokenizer.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())["tokenizer_class"]
    return tmp_path / "saved"


def edit(path: Path, **values: object) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({key: value for key, value in (content | values).items() if value is not None}))


def ids_of(folder: Path) -> list[list[int]]:
    data = DataConfig(max_words=12, clean_captions="none")
    ids, mask = load_tokenizer(RunConfig(data=data, model=ModelConfig(tokenizer=str(folder)))).encode(CAPTIONS)
    return [row[: int(kept.sum())].tolist() for row, kept in zip(ids, mask, strict=True)]


def of_transformers(folder: Path) -> list[list[int]]:
    from transformers import AutoTokenizer

    return [list(ids) for ids in AutoTokenizer.from_pretrained(folder)(CAPTIONS)["input_ids"]]


def decoder() -> dict[str, dict[str, object]]:
    special = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {str(WORDS.index(word)): {"content": word, **special} for word in (*SPECIAL.values(), "[NEW]")}


def test_a_saved_folder_is_read_as_transformers_does(folder, capfd):
    expected = of_transformers(folder)
    capfd.readouterr()
    assert ids_of(folder) == expected
    assert capfd.readouterr().out == ""


def test_one_with_its_added_tokens_listed_is_read_silently(folder, capfd):
    edit(folder / "tokenizer_config.json", added_tokens_decoder=decoder())
    expected = of_transformers(folder)
    capfd.readouterr()
    assert ids_of(folder) == expected
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("token", ["[NEW]", 1, None, {"text": "[NEW]"}])
def test_a_listed_token_without_content_is_named(token, folder):
    edit(folder / "tokenizer_config.json", added_tokens_decoder=decoder() | {"10": token})
    with pytest.raises(UserError, match=r"added_tokens_decoder\.10 is .*expected an object"):
        ids_of(folder)


@pytest.mark.parametrize("of_class", OTHER_CLASSES)
def test_with_a_tokenizer_json_the_class_does_not_matter(of_class, folder):
    expected = of_transformers(folder)
    edit(folder / "tokenizer_config.json", tokenizer_class=of_class)
    assert ids_of(folder) == expected


def test_a_tokenizer_json_and_its_settings_are_enough(folder):
    expected = of_transformers(folder)
    for path in folder.iterdir():
        if path.name not in ("tokenizer.json", "tokenizer_config.json"):
            path.unlink()
    edit(folder / "tokenizer_config.json", tokenizer_class=None)
    assert ids_of(folder) == expected


@pytest.mark.parametrize("of_class", ["BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer"])
def test_a_folder_with_a_list_of_words_alone_is_read(of_class, folder, tmp_path):
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(WORDS[:-1]) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": of_class, **SPECIAL}))
    (folder / "added_tokens.json").write_text('{"[NEW]": 10}')
    assert ids_of(folder) == of_transformers(folder)


def test_a_class_that_would_have_to_be_built_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    edit(folder / "tokenizer_config.json", tokenizer_class="BertJapaneseTokenizer")
    with pytest.raises(UserError, match="tokenizer_class is 'BertJapaneseTokenizer', expected one of"):
        ids_of(folder)


@pytest.mark.parametrize("entry", ["", "."])
def test_a_trial_imports_nothing_from_the_folder_of_the_user(entry, tmp_path, monkeypatch):
    (tmp_path / "tokenizers.py").write_text("open('code-was-run', 'w')\nraise SystemExit(0)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry, *sys.path])
    with pytest.raises(ValueError, match="expected ident"):
        require_survived("no tokenizer")
    assert not (tmp_path / "code-was-run").exists()
