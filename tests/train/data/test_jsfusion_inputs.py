"""Batches of JSFusion: which steps and words are taken, and where padding stands."""

import numpy as np
import pytest
import torch

from emcl_train.data.experts.features import ExpertReader, ExpertSteps
from emcl_train.data.experts.jsfusion_hdf5 import EXPERT, Vocabulary
from emcl_train.data.experts.jsfusion_inputs import chosen_steps, jsfusion_texts, jsfusion_videos, jsfusion_words
from emcl_train.errors import UserError


class Reader(ExpertReader):
    """Videos of as many steps as their names say, each step numbered."""

    experts = (EXPERT,)
    widths = {EXPERT: 2}  # noqa: RUF012

    def __contains__(self, video_id):
        return True

    def ids(self):
        return []

    def examine(self, video_id):
        raise NotImplementedError

    def read(self, video_id):
        steps = int(video_id)
        if not steps:
            return {EXPERT: None}
        numbers = np.arange(1, steps + 1, dtype=np.float32)
        return {EXPERT: ExpertSteps(np.stack([numbers, -numbers], 1), None)}


def test_padding_stands_before_steps_and_many_steps_are_chosen_evenly():
    found = jsfusion_videos(["3", "40", "41", "100"], Reader(), steps=40)

    assert found.mask.sum(1).tolist() == [3, 40, 40, 40]
    assert found.features[0, :, 0].tolist() == [0.0] * 37 + [1.0, 2.0, 3.0]
    assert not found.mask[0, :37].any()
    assert found.features[1, :, 0].tolist() == list(range(1, 41))
    assert found.features[2, -1].tolist() == [40.0, -40.0]
    assert found.features[3, :4, 0].tolist() == [1.0, 3.0, 6.0, 8.0]  # 0, 2.5, 5, 7.5 and one


@pytest.mark.parametrize("there", [1, 2, 5, 7, 39, 40, 41, 63, 1000])
def test_as_many_steps_as_there_are_and_never_one_twice(there):
    chosen = chosen_steps(there, 40)
    assert len(chosen) == min(there, 40)
    assert (np.diff(chosen) > 0).all()
    assert chosen[0] == 0
    assert chosen[-1] < there


def test_a_video_without_features_is_no_video_of_zeros():
    with pytest.raises(UserError, match="0 has no features of resnet"):
        jsfusion_videos(["0"], Reader(), steps=40)


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("He can't, won't and it's John's!", "he ca n't , wo n't and it 's john 's !"),
        ("We've said they're late; I'd go, I'll go.", "we 've said they 're late i 'd go , i 'll go"),
        ("(a) _____ walks?", "( a ) _____ walks ?"),
        ("Café №5: naïve—yes", "caf 5 na ve yes"),
        ("THREE 3 the dogs' `x`", "three 3 the dogs' `x`"),
        (" . ; \t", ""),
    ],
)
def test_words_as_the_release_cuts_them(caption, words):
    assert jsfusion_words(caption) == words.split()


def test_unknown_words_are_left_out_before_captions_are_cut():
    vocabulary = Vocabulary({"a": 3, "man": 4, "runs": 5}, np.zeros((6, 2), np.float32))

    found = jsfusion_texts(["A zebra man zebra runs a", "zebra"], vocabulary, max_words=3)

    assert found.word_ids.tolist() == [[3, 4, 5], [0, 0, 0]]
    assert found.mask.tolist() == [[True] * 3, [False] * 3]
    assert found.word_ids.dtype == torch.int64
