"""Captions as MMT reads them."""

import json

import pytest

from emcl_train.data.bert_tokens import bert_tokenizer, sentence, word_pieces
from emcl_train.errors import UserError

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "run", "##s", "##ning", ".", "cafe", "?", "Dog"]
VOCABULARY = {piece: number for number, piece in enumerate(PIECES)}


@pytest.mark.parametrize(
    ("words", "most", "expected"),
    [
        (["a", "dog", "runs"], 30, "A dog runs."),
        (["a", "dog", "runs"], 2, "A dog."),
        (["is", "it", "a", "Dog?"], 30, "Is it a dog?"),
        (["stop", "!"], 30, "Stop !"),
        (["a", "dog", ""], 30, "A dog."),
        ([], 30, "."),
    ],
)
def test_words_to_a_sentence(words, most, expected):
    assert sentence(words, most) == expected


def test_pieces_in_lower_case_without_accents_between_start_and_end():
    ids, mask = word_pieces(VOCABULARY, 9).encode(["A Dog runs.", "Café?"])
    assert ids.tolist() == [[2, 4, 5, 6, 7, 9, 3, 0, 0], [2, 10, 11, 3, 0, 0, 0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0, 0]]


def test_a_long_caption_keeps_its_end():
    ids, mask = word_pieces(VOCABULARY, 4).encode(["a dog runs running"])
    assert ids.tolist() == [[2, 4, 5, 3]]
    assert mask.all()


def test_unknown_words_and_an_empty_caption():
    assert word_pieces(VOCABULARY, 4).encode(["xyz", ""])[0].tolist() == [[2, 1, 3, 0], [2, 3, 0, 0]]


def test_it_is_saved_and_read_again(tmp_path):
    made = word_pieces(VOCABULARY, 9)
    made.save(tmp_path / "tokenizer.json")
    again = type(made).load(tmp_path / "tokenizer.json", "none")
    assert again.encode(["A running dog"])[0].equal(made.encode(["A running dog"])[0])


def test_the_vocabulary_of_a_cased_bert_s_folder_is_cut_in_lower_case(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    of_tokenizer = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(of_tokenizer))
    ids, _ = bert_tokenizer(str(tmp_path), 5).encode(["A Dog"])
    assert ids.tolist() == [[2, 4, 5, 3, 0]]


def test_what_is_no_bert_s(tmp_path):
    with pytest.raises(UserError, match=r"experts\.text is '.*', of which no vocabulary can be loaded \(it has no tok"):
        bert_tokenizer(str(tmp_path), 5)
    with pytest.raises(ValueError, match=r"it lacks \[CLS\]"):
        word_pieces({piece: number for piece, number in VOCABULARY.items() if piece != "[CLS]"}, 5)
    with pytest.raises(UserError, match=r"experts\.text is \./none, which is neither"):
        bert_tokenizer("./none", 5)
