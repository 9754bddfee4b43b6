"""Captions as token ids."""

import json
from random import Random

import pytest
import torch
from clip_tokenizer import FIXTURE, part_of_vocabulary
from tiny_videos import write_data_set
from tokenizers import Tokenizer

from emcl_train.config import BEFORE, DataConfig, ModelConfig, RunConfig
from emcl_train.data.cleaning import clean_caption
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


# CLIP's own ids. Its vocabulary is not here, but all of it that these captions come to.


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """CLIP's tokenizer as transformers writes it, with a part of its vocabulary."""
    transformers = pytest.importorskip("transformers")
    clip = part_of_vocabulary()
    folder = tmp_path_factory.mktemp("clip")
    transformers.CLIPTokenizer(vocab=clip.tokens, merges=list(clip.ranks)).save_pretrained(folder)
    return folder


def clip_tokenizer(folder, clean="clip", max_words=512):
    data = DataConfig(max_words=max_words, clean_captions=clean)
    return load_tokenizer(RunConfig(data=data, model=ModelConfig(clip=str(folder))))


def ids_of(tokenizer, captions):
    ids, mask = tokenizer.encode(captions)
    return [row[real.bool()].tolist() for row, real in zip(ids, mask, strict=True)]


CLIP_CAPTIONS = json.loads(FIXTURE.read_text())["captions"]


def test_captions_of_every_kind_have_clips_ids(clip_folder):
    assert len(CLIP_CAPTIONS) > 200
    captions = [caption for caption, _ in CLIP_CAPTIONS]
    found = ids_of(clip_tokenizer(clip_folder), captions)
    differing = [
        (caption, ids, expected)
        for ids, (caption, expected) in zip(found, CLIP_CAPTIONS, strict=True)
        if ids != expected
    ]
    assert differing == []


def test_the_transcription_gives_the_ids_that_the_whole_vocabulary_gave():
    clip = part_of_vocabulary()
    assert all(clip.encode(caption) == ids for caption, ids in CLIP_CAPTIONS)


@pytest.mark.parametrize("seed", range(3))
def test_captions_of_random_letters_have_clips_ids(clip_folder, seed):
    """Pieces of the captions above in any order: letters, entities and quotes meet that did not meet there."""
    random = Random(seed)
    pieces = [caption[i : i + 4] for caption, _ in CLIP_CAPTIONS for i in range(0, len(caption), 4)]
    captions = ["".join(random.choices(pieces, k=random.randint(1, 12))) for _ in range(300)]
    # CLIP takes the long s behind an apostrophe for "'s", without regard to case; transformers' tokenizer does not.
    captions = [caption for caption in captions if "'\u017f" not in caption]
    clip = part_of_vocabulary()
    found = ids_of(clip_tokenizer(clip_folder), captions)
    assert [caption for caption, ids in zip(captions, found, strict=True) if ids != clip.encode(caption)] == []


def test_printable_ascii_is_cleaned_as_all_else_is():
    """It does not go through ftfy, which would leave it as it is."""
    import ftfy

    random = Random(0)
    clip = part_of_vocabulary()
    for _ in range(2000):
        text = "".join(random.choices([chr(code) for code in range(32, 127)], k=random.randint(0, 40)))
        assert clean_caption(text) == clean_caption(ftfy.fix_text(text))
        assert clean_caption(text) == clip.clean(text)


def test_captions_were_left_to_the_tokenizer_before_and_are_on_request(clip_folder):
    captions = ["caf&eacute; &amp; cr\u00e8me", "sch\u00c3\u00b6n", "of\ufb01ce"]
    assert ids_of(clip_tokenizer(clip_folder, "none"), captions) != ids_of(clip_tokenizer(clip_folder), captions)
    saved = clip_tokenizer(clip_folder, "none")
    assert BEFORE["data.clean_captions"] == "none"
    raw = Tokenizer.from_file(str(clip_folder / "tokenizer.json"))
    assert ids_of(saved, captions) == [raw.encode(caption).ids for caption in captions]


def test_a_saved_tokenizer_of_clip_still_writes_lower_case_by_itself(clip_folder, tmp_path):
    clip_tokenizer(clip_folder).save(tmp_path / "tokenizer.json")
    raw = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    expected = ids_of(clip_tokenizer(clip_folder), ["a guitar"])[0]
    assert raw.encode("A Guitar").ids[: len(expected)] == expected
    loaded = CaptionTokenizer.load(tmp_path / "tokenizer.json")
    assert ids_of(loaded, ["caf&eacute;"]) == ids_of(clip_tokenizer(clip_folder), ["caf\u00e9"])


def test_counted_words_are_those_of_cleaned_captions():
    tokenizer = word_tokenizer(["a dog &amp; a cat", "\u201ccaf\u00c3\u00a9\u201d"], 9)
    assert ids_of(tokenizer, ["A cat & a dog"]) == ids_of(tokenizer, ["a cat &amp;amp; a dog"])
    assert 1 not in ids_of(tokenizer, ['"caf\u00e9"'])[0]
    assert len(tokenizer) == 4 + len(["a", "&", "cat", "dog", "caf\u00e9", '"'])


def test_captions_that_no_encoding_can_write_are_tokenized(clip_folder):
    """Half a surrogate pair, as broken JSON has it."""
    captions = ["\ud83d alone", "\ud83d\ude00 together"]
    found = ids_of(clip_tokenizer(clip_folder), captions)
    assert found == [part_of_vocabulary().encode(caption) for caption in captions]
    assert ids_of(word_tokenizer(captions, 9), captions)
