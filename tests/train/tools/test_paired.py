"""The table of refine: ranks in blocks are those of the whole matrix, whatever the block."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from emcl_train.evaluation.metrics import ranks, video_to_text_ranks_by_similarity
from emcl_train.tools import paired
from emcl_train.tools.arrays import Embeddings
from emcl_train.tools.paired import query_ranks, text_to_video_ranks, video_to_text_ranks

BLOCKS = [1, 7, 63, 130, 1000, 1 << 24]


def signs(rows: int, seed: int) -> torch.Tensor:
    """Rows of ±1/4 in 16 dimensions: of length one, and their products are exact in any order, with many ties."""
    return (torch.randint(0, 2, (rows, 16), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1) / 4


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("texts", "videos"), [(1, 1), (41, 41), (63, 7), (130, 41)])
def test_ranks_in_blocks_are_those_of_the_whole(texts, videos, block):
    """Several texts of a video, videos without one, and ties, which share their mean rank."""
    text, video = signs(texts, 0), signs(videos, 1)
    caption_clip = torch.randint(0, videos, (texts,), generator=torch.Generator().manual_seed(2))
    similarity = text @ video.T
    assert torch.equal(text_to_video_ranks(text, video, caption_clip, block), ranks(similarity, caption_clip))
    with_text, owner = caption_clip.unique(return_inverse=True)
    whole = video_to_text_ranks_by_similarity(similarity[:, with_text], owner)
    assert torch.equal(video_to_text_ranks(text, video, caption_clip, block), whole)


def test_a_case_by_hand():
    text = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    video = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    caption_clip = torch.tensor([0, 2, 1])
    # Text 0 finds its video tied with another one; text 1 finds it behind both; text 2 behind one, tied with another.
    assert text_to_video_ranks(text, video, caption_clip, block=3).tolist() == [1.5, 3.0, 2.5]
    assert video_to_text_ranks(text, video, caption_clip, block=3).tolist() == [1.5, 3.0, 2.5]


def test_more_rows_than_a_matrix_of_scores_has_room_for(monkeypatch):
    """20 000 pairs have 400 million scores: the table is made in blocks, of which none is larger than it may be."""
    generator = np.random.default_rng(0)
    video = generator.normal(size=(20_001, 8)).astype(np.float32)
    text = (video + 0.3 * generator.normal(size=video.shape)).astype(np.float32)
    largest = 0
    real = paired.ranks

    def watched(similarity, target):
        nonlocal largest
        largest = max(largest, similarity.numel())
        return real(similarity, target)

    monkeypatch.setattr(paired, "ranks", watched)
    sides = {name: Embeddings(rows, Path(name), None) for name, rows in (("text", text), ("video", video))}
    found = query_ranks(sides, torch.arange(len(video)))
    assert largest <= paired.BLOCK
    unit = [normalize(torch.from_numpy(rows), dim=-1) for rows in (text, video)]
    for start in (0, 13_000):
        some = torch.arange(start, start + 100)
        expected = ranks(unit[0][some] @ unit[1].T, some)
        assert (found["text_to_video"][some] - expected).abs().max() <= 1  # the last bit may turn neighbours
