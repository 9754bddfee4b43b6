"""Every query of a page's list: by hand, and against the ranks of the metrics."""

import json

import pytest
import torch
from fake_run import make_run

from emcl_train.evaluation import metrics
from emcl_train.report.queries import clips_that_matter, data_of, text_to_video, video_to_text
from emcl_train.runs.folder import load_run


def run_with(path, similarity, owners):
    """A run with these similarities, [captions, clips]."""
    make_run(path, clips=similarity.shape[1], captions_per_clip=len(owners) // similarity.shape[1])
    run = load_run(path)
    run.tensors["similarity_on"] = similarity
    run.tensors["caption_clip"] = torch.tensor(owners)
    return run


def test_text_to_video_of_a_hand_computed_case(tmp_path):
    run = run_with(tmp_path, torch.tensor([[0.9, 0.1, 0.2], [0.5, 0.6, 0.1], [0.8, 0.7, 0.3]]), [0, 1, 2])
    found = text_to_video(run)
    assert found.rank.tolist() == [1.0, 1.0, 3.0]
    assert found.best.tolist() == [[0, 2, 1], [1, 0, 2], [0, 1, 2]]
    assert found.margin.tolist() == pytest.approx([0.7, 0.1, -0.5])
    assert found.own.tolist() == pytest.approx([0.9, 0.6, 0.3])
    assert found.right.tolist() == [0, 1, 2]


def test_video_to_text_takes_the_nearest_caption_of_each_clip(tmp_path):
    # Captions 0 and 2 belong to clip 0, captions 1 and 3 to clip 1.
    similarity = torch.tensor([[0.2, 0.1], [0.5, 0.3], [0.4, 0.9], [0.1, 0.6]])
    found = video_to_text(run_with(tmp_path, similarity, [0, 1, 0, 1]))
    assert found.best.tolist() == [[1, 2], [2, 3]]
    assert found.right.tolist() == [2, 3]
    assert found.rank.tolist() == [2.0, 2.0]
    assert found.margin.tolist() == pytest.approx([-0.1, -0.3])


@pytest.mark.parametrize("captions_per_clip", [1, 3])
def test_ranks_are_those_of_the_metrics_and_the_best_are_the_largest(tmp_path, captions_per_clip):
    make_run(tmp_path, clips=41, captions_per_clip=captions_per_clip)
    run = load_run(tmp_path)
    text, video = text_to_video(run), video_to_text(run)
    target = run.tensors["caption_clip"]
    assert torch.equal(text.rank, metrics.ranks(run.similarity, target))
    assert torch.equal(video.rank, metrics.video_to_text_ranks_by_similarity(run.similarity, target))
    for query in range(len(target)):
        assert text.scores[query].tolist() == run.similarity[query].sort(descending=True).values[:5].tolist()
    for clip in range(41):
        # Of each clip one caption, its nearest; rank 1 is where the right one leads.
        captions = video.best[clip]
        assert len(set(target[captions].tolist())) == 5
        assert run.similarity[captions, clip].tolist() == video.scores[clip].tolist()
        assert (video.margin[clip] > 0) == (video.rank[clip] == 1)


def test_all_queries_of_both_directions_are_in_the_data(tmp_path):
    make_run(tmp_path, clips=7, captions_per_clip=2)
    run = load_run(tmp_path)
    data = json.loads(json.dumps(data_of(run)))
    assert len(data["captions"]) == len(data["text"]["rank"]) == len(data["text"]["best"]) == 14
    assert len(data["clips"]) == len(data["video"]["rank"]) == len(data["video"]["scores"]) == 7
    assert all(len(row) == 5 for row in data["text"]["best"] + data["video"]["best"])


def test_a_run_of_one_clip_has_no_margin(tmp_path):
    make_run(tmp_path, clips=1)
    data = data_of(load_run(tmp_path))
    assert data["text"]["margin"] == data["video"]["margin"] == [None]
    assert data["text"]["best"] == [[0]]


def test_clips_of_the_largest_ranks_come_first_and_none_is_missing(tmp_path):
    run = run_with(tmp_path, torch.tensor([[0.9, 0.1, 0.2], [0.5, 0.6, 0.1], [0.8, 0.7, 0.3]]), [0, 1, 2])
    assert clips_that_matter(run, []) == [2, 0, 1]
    assert clips_that_matter(run, [1]) == [1, 2, 0]
