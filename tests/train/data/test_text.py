"""Captions as token ids."""

import pytest
import torch
from tiny_videos import write_data_set

from emcl_train.config import DataConfig, ModelConfig, RunConfig
from emcl_train.data.text import CaptionTokenizer, load_tokenizer, tokenizer_name, word_tokenizer
from emcl_train.errors import UserError

CAPTIONS = ["A red ball, rolling.", "a red cube", "the ball"]


def test_words_and_punctuation_are_tokens_whatever_their_case():
    tokenizer = word_tokenizer(CAPTIONS, max_words=8)
    # by falling count: a 2, ball 2, red 2, then `,` `.` cube rolling the
    ids, mask = tokenizer.encode(["a RED ball, rolling."])
    assert ids.tolist() == [[2, 4, 6, 5, 7, 10, 8, 3]]
    assert mask.tolist() == [[1] * 8]
    assert len(tokenizer) == tokenizer.vocab_size == 12
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 2, 3)


def test_short_captions_are_padded_and_unknown_words_have_a_token():
    ids, mask = word_tokenizer(CAPTIONS, max_words=6).encode(["a zebra", ""])
    assert ids.tolist() == [[2, 4, 1, 3, 0, 0], [2, 3, 0, 0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]]
    assert ids.dtype == mask.dtype == torch.int64


def test_a_long_caption_keeps_its_end_token():
    ids, mask = word_tokenizer(CAPTIONS, max_words=4).encode(["a red ball a red ball a red ball"])
    assert ids.tolist() == [[2, 4, 6, 3]]
    assert mask.all()


def test_no_captions_are_an_empty_batch():
    ids, mask = word_tokenizer(CAPTIONS, max_words=4).encode([])
    assert ids.shape == mask.shape == (0, 4)


def test_the_order_of_captions_does_not_matter():
    first, second = word_tokenizer(CAPTIONS, 6), word_tokenizer(CAPTIONS[::-1], 6)
    assert torch.equal(first.encode(CAPTIONS)[0], second.encode(CAPTIONS)[0])


def test_a_saved_tokenizer_is_the_same(tmp_path):
    tokenizer = word_tokenizer(CAPTIONS, 7)
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = CaptionTokenizer.load(tmp_path / "tokenizer.json")
    assert torch.equal(loaded.encode(CAPTIONS)[0], tokenizer.encode(CAPTIONS)[0])
    assert (loaded.eos_token_id, loaded.pad_token_id, len(loaded)) == (3, 0, len(tokenizer))


def test_a_run_makes_its_tokenizer_once(tmp_path):
    root = write_data_set(tmp_path / "set")
    config = RunConfig(data=DataConfig(root=root, max_words=9), model=ModelConfig(clip="random"))
    first = load_tokenizer(config, tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()
    (root / "MSRVTT_data.json").unlink()
    assert len(load_tokenizer(config, tmp_path)) == len(first) > 10


def test_a_tokenizer_in_a_folder_keeps_its_own_ids(tmp_path):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    raw = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "?": 2, "dog": 3, "cat": 4}, unk_token="?"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "?"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=raw, **special).save_pretrained(tmp_path / "clip")
    config = RunConfig(data=DataConfig(max_words=4), model=ModelConfig(clip=str(tmp_path / "clip")))
    tokenizer = load_tokenizer(config)
    ids, mask = tokenizer.encode(["dog", "cat dog cat dog"])
    assert ids.tolist() == [[0, 3, 1, 1], [0, 4, 3, 1]]
    assert mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 1


def test_the_tokenizer_belongs_to_the_weights_unless_it_is_named(tmp_path):
    archive = tmp_path / "ViT-B-32.pt"
    archive.write_bytes(b"")
    names = [
        tokenizer_name(ModelConfig(clip=clip, tokenizer=tokenizer))
        for clip in ("random", "openai/clip-vit-base-patch16", str(tmp_path), str(archive))
        for tokenizer in (None, "some/folder")
    ]
    assert names[::2] == [None, "openai/clip-vit-base-patch16", str(tmp_path), "openai/clip-vit-base-patch32"]
    assert set(names[1::2]) == {"some/folder"}


def test_a_tokenizer_out_of_reach_is_named_with_its_setting(tmp_path):
    with pytest.raises(
        UserError, match=r"model.tokenizer is .*absent, which is neither a file .* pass --model.tokenizer"
    ):
        load_tokenizer(RunConfig(model=ModelConfig(clip="random", tokenizer=str(tmp_path / "absent"))))


def test_counted_words_are_those_that_the_weights_were_trained_with(tmp_path, monkeypatch):
    monkeypatch.setattr("emcl_train.data.text.load_annotations", lambda data: pytest.fail("words were counted again"))
    word_tokenizer(["a thing"], 8).save(tmp_path / "tokenizer.json")
    config = RunConfig(model=ModelConfig(clip="random", init_from=tmp_path / "model.safetensors"))
    config.data.max_words = 8
    assert load_tokenizer(config).encode(["a thing"])[0][0, :4].tolist() == [2, 4, 5, 3]
    config.data.max_words = 9
    with pytest.raises(
        UserError, match=r"data\.max_words is 9 but the run of model\.init_from has 8; pass --data\.max-words 8"
    ):
        load_tokenizer(config)
