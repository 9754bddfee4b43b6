"""CE, MMT and JSFusion behind one interface: what evaluation streams is what they compare, EM included."""

from dataclasses import replace

import pytest
import torch

from emcl_train.config import EMCLConfig, ModelConfig, RunConfig
from emcl_train.errors import UserError
from emcl_train.experts.ce import CEExpert, CESizes, CEText
from emcl_train.experts.jsfusion import JSFusionSizes
from emcl_train.experts.mmt import BertSizes, EMSizes, Expert, MMTSizes
from emcl_train.models.experts.bert import build_bert
from emcl_train.models.experts.build import build_expert_model, start_from
from emcl_train.models.experts.ce import CollaborativeExperts
from emcl_train.models.experts.em import ExpertEM
from emcl_train.models.experts.jsfusion import JSFusion
from emcl_train.models.experts.mixture import ExpertText, ExpertVideo, mixture_similarity
from emcl_train.models.experts.mmt import MultiModalTransformer
from emcl_train.models.experts.retrieval import JSFusionModel, MixtureModel, by_expert
from emcl_train.weights.mmt import mmt_to_authors

EXPERTS, WIDTH = 3, 8
SIZES = CESizes(
    {"a": CEExpert(4), "b": CEExpert(5, 3, 2, flaky=True), "c": CEExpert(6, flaky=True)},
    CEText(7, max_words=6, clusters=2, ghost_clusters=1),
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


def of_ce():
    batch = {f"features/{name}": torch.randn(5, e.width) for name, e in SIZES.experts.items() if e.clusters is None}
    batch["features/b"] = torch.randn(5, 3, 5)
    return mixture(), batch | {f"available/{name}": torch.ones(5) for name in "abc"} | {"text": torch.randn(5, 6, 7)}


def of_mmt():
    torch.manual_seed(0)
    bert = build_bert(BertSizes(vocab_size=9, width=8, layers=1, heads=2, inner_width=8, max_positions=4))
    sizes = MMTSizes({"a": Expert(4, 1), "b": Expert(5, 2)}, width=WIDTH, layers=1, heads=2, inner_width=8)
    model = MixtureModel(MultiModalTransformer(sizes, bert, gated_video=True), ExpertEM(2, EMSizes(4, 3)))
    batch = {"input_ids": torch.ones(5, 4, dtype=torch.int64), "attention_mask": torch.ones(5, 4, dtype=torch.int64)}
    for name, expert in sizes.experts.items():
        batch |= {f"features/{name}": torch.randn(5, 3, expert.width), f"present/{name}": torch.ones(5, 3).bool()}
        batch |= {f"positions/{name}": torch.ones(5, 3), f"maxpool/{name}": torch.randn(5, expert.width)}
    return model, batch


def of_jsfusion():
    torch.manual_seed(0)
    sizes = JSFusionSizes(4, 9, 7, 7, 3, video_channels=4, width=4, recurrent=4, fused=3, last=2)
    batch = {"features": torch.randn(5, 7, 4), "mask": torch.ones(5, 7)}
    words = torch.randint(1, 9, (5, 7))
    return JSFusionModel(JSFusion(sizes)), batch | {"word_ids": words, "word_mask": torch.ones_like(words)}


@pytest.mark.parametrize("made", [of_ce, of_mmt, of_jsfusion])
def test_a_step_in_mixed_precision(made):
    """The towers alone run in 16 bits; what they give is compared outside of autocast."""
    model, batch = made()
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        features = model(batch)
    similarity = model.similarity(features.text, features.video, emcl=model.emcl is not None)
    assert similarity.dtype == torch.float32
    similarity.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


def test_a_user_is_told_what_a_checkpoint_lacks_and_what_is_left_out(tmp_path, capsys):
    model, _ = of_mmt()
    theirs = mmt_to_authors(model.system.state_dict())
    path = tmp_path / "HowTo100M.pth"
    torch.save({name.replace(".b.", ".c."): value for name, value in theirs.items()}, path)
    start_from(model, path)
    said = capsys.readouterr().err
    assert f"{path}: the model has no place for moe_fc_txt.c.bias, moe_fc_txt.c.weight, " in said
    assert f"{path} has nothing of the experts b, which start from random weights" in said


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
