"""Folders of tokenizers that transformers wrote are read, whatever class they name, and to the same ids."""

import json

import pytest
from transformers import AutoTokenizer, BertTokenizer

from emcl_train.data.tokenizer_folder import load_from

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "runs", "##s")
TEXT, IDS = "a dog runs", [2, 5, 6, 7, 3]


@pytest.fixture
def words(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(WORDS))
    return path


@pytest.fixture
def folder(words, tmp_path):
    path = tmp_path / "saved"
    BertTokenizer(str(words)).save_pretrained(path)
    return path


def changed(folder, **values):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_it_gives_the_ids_of_the_folder_itself(folder):
    assert load_from(str(folder))(TEXT).input_ids == AutoTokenizer.from_pretrained(folder)(TEXT).input_ids == IDS


@pytest.mark.parametrize("name", ["MPNetTokenizer", "T5TokenizerFast", "OneOfTomorrow"])
def test_of_another_class_what_tokenizer_json_says_is_taken(folder, name, capfd):
    changed(folder, tokenizer_class=name)
    assert load_from(str(folder))(TEXT).input_ids == IDS
    assert capfd.readouterr().out == ""


def test_added_tokens_are_read_without_a_word(folder, capfd):
    changed(folder, added_tokens_decoder={"0": {"content": "[PAD]", "lstrip": False, "special": True}})
    assert load_from(str(folder))(TEXT).input_ids == IDS
    assert capfd.readouterr() == ("", "")


def test_an_added_token_that_is_only_a_text_is_named(folder):
    changed(folder, added_tokens_decoder={"0": "[PAD]"})
    with pytest.raises(ValueError, match=r"added_tokens_decoder\.0 is '\[PAD\]', expected an object"):
        load_from(str(folder))


def test_a_list_of_words_is_enough_for_a_class_that_reads_it(words):
    (words.parent / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    assert load_from(str(words.parent))(TEXT).input_ids == IDS


def test_another_class_needs_a_tokenizer_json(words):
    (words.parent / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertJapaneseTokenizer"}))
    with pytest.raises(ValueError, match="tokenizer_class"):
        load_from(str(words.parent))
