"""CE, MMT and JSFusion behind one interface: what evaluation streams is what they compare, EM included."""

from dataclasses import replace

import pytest
import torch

from emcl_train.config import EMCLConfig, ModelConfig, RunConfig
from emcl_train.errors import UserError
from emcl_train.experts.ce import CEExpert, CESizes, CEText
from emcl_train.experts.jsfusion import JSFusionSizes
from emcl_train.experts.mmt import EMSizes
from emcl_train.models.experts.build import build_expert_model
from emcl_train.models.experts.ce import CollaborativeExperts
from emcl_train.models.experts.em import ExpertEM
from emcl_train.models.experts.jsfusion import JSFusion
from emcl_train.models.experts.mixture import ExpertText, ExpertVideo, mixture_similarity
from emcl_train.models.experts.retrieval import JSFusionModel, MixtureModel, by_expert

EXPERTS, WIDTH = 3, 8
SIZES = CESizes(
    {"a": CEExpert(4), "b": CEExpert(5, 3, 2, flaky=True), "c": CEExpert(6, flaky=True)},
    CEText(7, max_words=6, clusters=2, ghost_clusters=1, source="openai-gpt"),
    WIDTH,
)


class Texts:
    sizes, vocabulary, word_vectors = SIZES, 0, None


def mixture(**em):
    torch.manual_seed(0)
    settings = EMSizes(**({"num_bases": 4, "num_iters": 3} | em))
    return MixtureModel(CollaborativeExperts(SIZES), ExpertEM(EXPERTS, settings)).eval()


def rows(texts, videos):
    torch.manual_seed(1)
    embeddings = torch.nn.functional.normalize(torch.randn(texts + videos, EXPERTS, WIDTH), dim=-1)
    available = torch.rand(videos, EXPERTS) < 0.7
    available[:, 0] = True
    text = ExpertText(embeddings[:texts], torch.rand(texts, EXPERTS).softmax(1))
    return text, ExpertVideo(embeddings[texts:], available)


def streamed(model, *sides, **how):
    stream = model.similarity_stream(*sides, **how)
    steps = list(stream)
    assert len(steps) == len(stream)
    return torch.cat(steps)


@pytest.mark.parametrize("tile", [1 << 22, 14])
@pytest.mark.parametrize(("texts", "videos"), [(1, 1), (7, 7), (9, 5), (5, 9)])
def test_the_stream_is_the_similarity(texts, videos, tile, monkeypatch):
    monkeypatch.setattr("emcl_train.models.experts.retrieval.TILE", tile)
    model = mixture()
    sides = rows(texts, videos)
    torch.testing.assert_close(streamed(model, *sides, emcl=False), model.similarity(*sides, emcl=False))
    # One map that is fitted to all rows is EM over all rows.
    torch.testing.assert_close(
        streamed(model, *sides, emcl=True), model.similarity(*sides, emcl=True), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("block", [1, 3, 7, 32])
def test_blocks_are_of_matching_pairs(block):
    model = mixture()
    text, video = rows(7, 7)
    found = streamed(model, text, video, emcl=True, em_block=block)
    after_text, after_video = model.emcl.in_blocks(text.embeddings, video.embeddings, block)
    expected = mixture_similarity(after_text, after_video, text.weights, video.available)
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="there are 7 texts and 6 videos"):
        streamed(model, text, video[:6], emcl=True, em_block=block)


def test_a_map_can_be_made_as_if_for_a_batch():
    model = mixture()
    sides = rows(40, 40)
    over_all = streamed(model, *sides, emcl=True)
    model.rows_of_batch = 8
    as_a_batch = streamed(model, *sides, emcl=True)
    off = streamed(model, *sides, emcl=False)
    assert (as_a_batch - off).norm() > (over_all - off).norm()


def test_the_start_moves_in_training_alone():
    model = mixture().train()
    sides = rows(7, 7)
    before = model.emcl.bases.clone()
    streamed(model, *sides, emcl=True)
    streamed(model, *sides, emcl=True, em_block=3)
    assert torch.equal(model.emcl.bases, before)
    model.similarity(*sides, emcl=False)
    assert torch.equal(model.emcl.bases, before)
    model.similarity(*sides, emcl=True)
    assert not torch.equal(model.emcl.bases, before)


def test_a_score_of_jsfusion_is_of_a_caption_with_a_video():
    torch.manual_seed(0)
    sizes = JSFusionSizes(4, 9, 7, 7, 3, video_channels=4, width=4, recurrent=4, fused=3, last=2)
    model = JSFusionModel(JSFusion(sizes)).eval()
    batch = {
        "features": torch.randn(5, 7, 4),
        "mask": torch.ones(5, 7),
        "word_ids": torch.randint(1, 9, (5, 7)),
        "word_mask": torch.ones(5, 7, dtype=torch.int64),
    }
    with torch.no_grad():
        features = model(batch)
        text, video = features.text[:4], features.video
        expected = model.system.scores(video, text).mT
        torch.testing.assert_close(model.similarity(text, video, emcl=False), expected)
        torch.testing.assert_close(streamed(model, text, video, emcl=False), expected)
    assert features.logit_scale.item() == 1
    for ask in (lambda: model.similarity(text, video, emcl=True), lambda: streamed(model, text, video, emcl=True)):
        with pytest.raises(UserError, match="EMCL cannot act on JSFusion"):
            ask()


def test_names_of_a_batch_are_kinds_and_experts():
    batch = {"features/rgb": torch.zeros(1), "features/i3d.i3d.0": torch.ones(1), "present/rgb": torch.ones(1)}
    assert set(by_expert(batch, "features")) == {"rgb", "i3d.i3d.0"}
    assert set(by_expert(batch, "present")) == {"rgb"}


def test_more_bases_than_the_rows_are_wide_are_an_error_where_em_is_on():
    config = RunConfig(model=ModelConfig(system="ce"), emcl=EMCLConfig(mode="off", num_bases=9))
    assert len(build_expert_model(config, Texts()).emcl.bases) == EXPERTS
    on = replace(config, emcl=replace(config.emcl, mode="inference"))
    with pytest.raises(UserError, match=r"emcl\.num_bases is 9, expected 1 to 8"):
        build_expert_model(on, Texts())
