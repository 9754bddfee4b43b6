"""Captions are tokenized once, by one process, and kept in little memory."""

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_videos import write_data_set

from emcl_train.config import DataConfig
from emcl_train.data import tokens
from emcl_train.data.annotations import Clip, Split, load_annotations
from emcl_train.data.loader import caption_loader, steps_per_epoch, training_loader
from emcl_train.data.text import word_tokenizer
from emcl_train.data.tokens import EncodedCaptions, encoded_captions


class Counting:
    """A tokenizer that remembers what it was asked to tokenize."""

    def __init__(self, captions, max_words=9):
        self.tokenizer = word_tokenizer(captions, max_words)
        self.seen = []

    def encode(self, captions):
        self.seen += captions
        return self.tokenizer.encode(captions)


def split_of(clips, captions):
    """A split with so many captions of each clip, no two of which are alike."""
    texts = tuple(f"caption {k} of clip {clip}" for clip in range(clips) for k in range(captions))
    owner = tuple(clip for clip in range(clips) for _ in range(captions))
    return Split("train", tuple(Clip(f"v{i}", Path(f"v{i}.mp4")) for i in range(clips)), texts, owner)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """10 training clips with 3 captions each."""
    return write_data_set(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture
def data(root):
    return DataConfig(root=root, num_frames=2, image_size=16, max_words=9, workers=0)


@pytest.mark.parametrize("train_captions", ["one", "all"])
@pytest.mark.parametrize(("clips", "captions", "batch"), [(10, 3, 4), (7, 1, 7), (130, 20, 128), (5, 2, 11)])
def test_the_length_of_an_epoch_needs_no_tokens(clips, captions, batch, train_captions):
    split = split_of(clips, captions)
    tokenizer = Counting(split.captions)
    config = DataConfig(train_captions=train_captions)
    steps = (clips if train_captions == "one" else clips * captions) // batch
    assert steps_per_epoch(split, config, batch) == steps
    assert len(training_loader(split, tokenizer, config, batch, 0, 0)) == steps
    assert tokenizer.seen == []


@pytest.mark.parametrize("train_captions", ["one", "all"])
@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_tokenize_each_caption_once(data, train_captions, workers):
    data.train_captions = train_captions
    data.workers = workers
    split = load_annotations(data).train
    tokenizer = Counting(split.captions)
    used = 0
    for epoch in range(4):
        for batch in training_loader(split, tokenizer, data, 4, 0, epoch):
            used += len(batch["index"])
            expected = tokenizer.tokenizer.encode(split.captions)[0].tolist()
            assert all(row in expected for row in batch["input_ids"].tolist())
    assert used > len(split.captions)
    assert len(tokenizer.seen) == len(set(tokenizer.seen)) <= len(split.captions)


def test_an_epoch_tokenizes_no_more_than_it_takes(data):
    split = load_annotations(data).train
    tokenizer = Counting(split.captions)
    list(training_loader(split, tokenizer, data, 4, 0, 0, start_batch=1))
    assert len(tokenizer.seen) == 4
    list(training_loader(split, tokenizer, data, 4, 0, 1, rank=1, world=2))
    assert len(tokenizer.seen) <= 8


def test_every_validation_finds_the_tokens_of_the_first(data):
    split = load_annotations(data).test
    tokenizer = Counting(split.captions)
    first, second = (torch.cat([b["input_ids"] for b in caption_loader(split, tokenizer, data, 2)]) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first, tokenizer.tokenizer.encode(split.captions)[0])
    assert len(tokenizer.seen) == len(split.captions)


@pytest.mark.parametrize("world", [2, 3, 8])
@pytest.mark.parametrize("number", [1, 7, 41])
def test_several_processes_tokenize_a_part_each(world, number):
    captions = split_of(number, 1).captions
    tokenizers = [Counting(captions) for _ in range(world)]
    stores = [EncodedCaptions(tokenizer, captions) for tokenizer in tokenizers]

    # One after the other, as far as the exchange; then all of them get what all of them gave.
    given = []

    class Given(Exception):
        pass

    def give(value):
        given.append(value)
        raise Given

    for rank, store in enumerate(stores):
        with pytest.raises(Given):
            store.encode_together(rank, world, give)
    for rank, store in enumerate(stores):
        store.encode_together(rank, world, lambda _: given)

    assert sorted(caption for tokenizer in tokenizers for caption in tokenizer.seen) == sorted(captions)
    expected = tokenizers[0].tokenizer.encode(captions)
    for store in stores:
        found = [store.row(number) for number in range(len(captions))]
        assert torch.equal(torch.stack([ids for ids, _ in found]), expected[0])
        assert torch.equal(torch.stack([mask for _, mask in found]), expected[1])
        assert found[0][0].dtype == found[0][1].dtype == torch.int64


def test_tokens_are_kept_in_five_bytes_each_and_made_in_parts(monkeypatch):
    monkeypatch.setattr(tokens, "AT_ONCE", 16)
    captions = split_of(41, 1).captions
    tokenizer = word_tokenizer(captions, 9)
    lengths = []
    real = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda texts: (lengths.append(len(texts)), real(texts))[1])
    store = EncodedCaptions(tokenizer, captions)
    store.encode(range(41))
    assert lengths == [16, 16, 9]
    arrays = [value for value in vars(store).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) == 41 * (9 * 5 + 1)


def test_tokens_go_with_their_split():
    split = split_of(3, 1)
    tokenizer = word_tokenizer(split.captions, 9)
    assert encoded_captions(tokenizer, split) is encoded_captions(tokenizer, split)
    assert encoded_captions(tokenizer, split) is not encoded_captions(word_tokenizer(split.captions, 9), split)
    del split
    gc.collect()
    assert tokens._encoded[tokenizer] == {}
