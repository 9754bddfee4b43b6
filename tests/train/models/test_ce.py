"""Collaborative Experts against its equations, in numpy, and against numbers of the original module."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ce_oracle import Oracle, max_margin

from emcl_train.experts.ce import CE, CEExpert, CESizes, CEText
from emcl_train.experts.mmt import EMSizes
from emcl_train.models.experts.ce import CollaborativeExperts
from emcl_train.models.experts.em import ExpertEM
from emcl_train.models.experts.netvlad import NetVLAD
from emcl_train.models.experts.retrieval import MixtureModel
from emcl_train.recipes import load_recipe
from emcl_train.weights.ce import ce_from_authors, ce_to_authors

FIXTURE = Path(__file__).parent / "fixtures" / "ce.npz"
EXACT: dict[str, Any] = {"atol": 1e-10, "rtol": 0}
pytestmark = pytest.mark.usefixtures("one_thread")


def small_sizes(width=6, ghosts=1):
    experts = {
        "speech": CEExpert(7, max_steps=5, clusters=2, flaky=True),
        "face": CEExpert(3, flaky=True),
        "audio": CEExpert(4, max_steps=3, clusters=3, flaky=True),
        "rgb": CEExpert(9),
    }
    return CESizes(experts, CEText(5, max_words=6, clusters=3, ghost_clusters=ghosts), width)


def small_model(sizes, seed=0):
    """In float64, with nothing at its start: neither the norms' weights nor their statistics."""
    generator = torch.Generator().manual_seed(seed)
    made = CollaborativeExperts(sizes).double()
    with torch.no_grad():
        for name, value in made.state_dict().items():
            if name.endswith("running_var"):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            elif value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=generator) / max(1, value.dim()))
    return made


def batch(sizes, videos, captions, seed=0, *, missing=True):
    """Experts, availability and texts of videos. Missing ones are NaN, and shorter ones have zeros behind."""
    random = np.random.default_rng(seed)
    experts, available = {}, {}
    for name, expert in sizes.experts.items():
        steps = () if expert.clusters is None else (expert.max_steps,)
        value = random.normal(size=(videos, *steps, expert.width))
        if steps:
            value[random.random((videos, expert.max_steps)) < 0.3] = 0.0
        available[name] = random.random(videos) < 0.6 if missing and expert.flaky else np.ones(videos, dtype=bool)
        value[~available[name]] = np.nan
        experts[name] = value
    text = random.normal(size=(videos * captions, sizes.text.max_words, sizes.text.width))
    text[:, -1] = 0.0
    return experts, available, text


def tensors(arrays):
    return {name: torch.tensor(value) for name, value in arrays.items()}


def arrays(state):
    return {name: value.detach().numpy().copy() for name, value in state.items()}


def compared(model, experts, available, text):
    video = model.encode_video(tensors(experts), tensors(available))
    captions = model.encode_text(torch.tensor(text))
    return video, captions, model.similarity(captions, video)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("videos", "captions", "width", "ghosts"), [(2, 1, 1, 0), (7, 1, 6, 1), (5, 3, 4, 2)])
def test_it_is_its_equations(videos, captions, width, ghosts, training):
    sizes = small_sizes(width, ghosts)
    model = small_model(sizes, seed=videos).train(training)
    experts, available, text = batch(sizes, videos, captions, seed=videos)
    oracle = Oracle(arrays(ce_to_authors(model.state_dict(), sizes.names)), training=training)

    video, captions_found, similarities = compared(model, experts, available, text)
    embeddings, weights = oracle.text(text, len(experts))
    np.testing.assert_allclose(video.embeddings.detach(), oracle.video(experts, available), **EXACT)
    np.testing.assert_allclose(captions_found.embeddings.detach(), embeddings, **EXACT)
    np.testing.assert_allclose(captions_found.weights.detach(), weights, **EXACT)

    expected = oracle.similarity(experts, available, text)
    np.testing.assert_allclose(similarities.detach(), expected, **EXACT)
    if captions == 1:
        loss = loss_of(similarities, margin=0.3).item()
        assert loss == pytest.approx(max_margin(expected, 0.3), abs=1e-10)
        assert loss > 0


def loss_of(similarities, margin):
    """The max-margin loss in torch, for its gradient."""
    pairs = similarities.diagonal()
    others = ~torch.eye(len(similarities), dtype=torch.bool)
    terms = [(margin - pairs.unsqueeze(1) + each).clamp_min(0) for each in (similarities, similarities.mT)]
    return torch.stack([term[others] for term in terms]).mean()


def test_running_statistics_follow_the_pairs_in_their_order():
    """The gating's norms are called once a pair, first with the first expert, whose steps thus count the least."""
    sizes = small_sizes()
    model = small_model(sizes).train()
    experts, available, text = batch(sizes, 7, 1)
    norm = model.gating.pair.second_norm
    before, calls = norm.running_mean.clone(), []
    norm.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0].detach().mean(0)))
    compared(model, experts, available, text)

    assert len(calls) == 16
    assert norm.num_batches_tracked == 16
    for mean in calls:
        before = 0.9 * before + 0.1 * mean
    torch.testing.assert_close(norm.running_mean, before, **EXACT)


def fixture():
    with np.load(FIXTURE) as file:
        stored = dict(file)

    def part(start):
        return {name.removeprefix(start): value for name, value in stored.items() if name.startswith(start)}

    sizes = CESizes(
        {
            "audio": CEExpert(128, max_steps=5, clusters=2, flaky=True),
            "face": CEExpert(8, flaky=True),
            "ocr": CEExpert(300, max_steps=4, clusters=2, flaky=True),
            "rgb": CEExpert(12),
        },
        CEText(10, max_words=7, clusters=3, ghost_clusters=1),
        width=16,
    )
    model = CollaborativeExperts(sizes).double().eval()
    state, dropped = ce_from_authors(tensors(part("state/")), model.state_dict(), sizes.names, source="ce.npz")
    model.load_state_dict(state)
    assert dropped == []
    available = {name: value == 1 for name, value in part("available/").items()}
    return model, part("experts/"), available, stored


def test_it_gives_the_numbers_of_the_original_module():
    model, experts, available, stored = fixture()
    text = torch.tensor(stored["text"]).requires_grad_()
    video = model.encode_video(tensors(experts), tensors(available))
    captions = model.encode_text(text.flatten(0, 1))
    similarities = model.similarity(captions, video)
    loss = loss_of(similarities, load_recipe("ce-msrvtt").train.margin)
    loss.backward()

    np.testing.assert_allclose(similarities.detach(), stored["eval/sims"], **EXACT)
    np.testing.assert_allclose(loss.item(), stored["eval/loss"], **EXACT)
    np.testing.assert_allclose(text.grad, stored["eval/d_text"], **EXACT)
    for i, name in enumerate(model.sizes.names):
        np.testing.assert_allclose(video.embeddings[:, i].detach(), stored[f"eval/video/{name}"], **EXACT)
        np.testing.assert_allclose(captions.embeddings[:, i].detach(), stored[f"eval/text/{name}"][:, 0], **EXACT)


def test_gating_from_copies_would_give_other_numbers():
    """The gating is sequential: an expert sees the earlier ones gated. From copies the result is a little different."""
    _, experts, available, stored = fixture()
    state = {name.removeprefix("state/"): value for name, value in stored.items() if name.startswith("state/")}
    text = stored["text"].reshape(-1, *stored["text"].shape[2:])
    from_copies = Oracle(state, from_copies=True).similarity(experts, available, text)
    assert np.abs(from_copies - stored["eval/sims"]).max() == pytest.approx(5e-5, rel=0.1)


def test_parameters_are_as_many_as_published():
    with torch.device("meta"):
        model = CollaborativeExperts(CE["msrvtt"])
    assert sum(parameter.numel() for parameter in model.parameters()) == 183_448_607


@pytest.mark.parametrize("dataset", sorted(CE))
def test_each_data_set_has_a_reduced_model_that_learns(dataset):
    sizes = CE[dataset].reduced(8)
    experts, available, text = batch(sizes, 4, 1, missing=True)
    model = CollaborativeExperts(sizes).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    margin = load_recipe(f"ce-{dataset}").train.margin
    losses = []
    for _ in range(5):
        losses.append(loss_of(compared(model, experts, available, text)[2], margin))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]


def em_by_loop(rows, start, *, num_iters, temperature, weight):
    """EM over rows [N, D], row by row as the equations have it, and the rows that it leaves."""
    bases = np.repeat(start[None], len(rows), axis=0)
    for _ in range(num_iters):
        logits = rows.T @ bases / temperature
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        shares /= 1e-6 + shares.sum(0)
        bases = rows @ shares
        bases /= 1e-6 + np.linalg.norm(bases, axis=0)
    after = rows + weight * bases @ shares.T
    return after / np.maximum(np.linalg.norm(after, axis=1, keepdims=True), 1e-12)


@pytest.mark.parametrize("missing", [False, True])
def test_em_runs_over_the_rows_of_each_expert_that_are_there(missing):
    """CE + EMCL, an experiment of ours: one EM an expert over all texts and the videos that have it."""
    sizes = small_sizes()
    model = MixtureModel(small_model(sizes), ExpertEM(4, EMSizes(num_bases=2, num_iters=3)).double()).eval()
    experts, available, text = batch(sizes, 7, 1, missing=missing)
    videos = {f"features/{name}": value for name, value in tensors(experts).items()}
    videos |= {f"available/{name}": value for name, value in tensors(available).items()}
    video = model.encode_video(videos)
    captions = model.encode_text({"text": torch.tensor(text)})

    oracle = Oracle(arrays(ce_to_authors(model.system.state_dict(), sizes.names)))
    of_video = oracle.video(experts, available)
    of_text, weights = oracle.text(text, 4)
    there = np.stack([available[name] for name in sizes.names], axis=1)
    total, share = 0.0, 0.0
    for m in range(4):
        rows = np.concatenate([of_video[there[:, m], m], of_text[:, m]])
        settings = {"num_iters": 3, "temperature": 1.0, "weight": 3.0}
        after = em_by_loop(rows, model.emcl.bases[m].numpy(), **settings)
        found = np.zeros_like(of_video[:, m])
        found[there[:, m]] = after[: there[:, m].sum()]
        weight = weights[:, m : m + 1] * there[:, m]
        total = total + weight * (after[there[:, m].sum() :] @ found.T)
        share = share + weight
    with torch.no_grad():
        np.testing.assert_allclose(model.similarity(captions, video, emcl=True), total / share, **EXACT)

    plain = model.similarity(captions, video, emcl=False).detach()
    np.testing.assert_allclose(plain, oracle.similarity(experts, available, text), **EXACT)
    assert np.abs(plain.numpy() - total / share).max() > 1e-3


@pytest.mark.parametrize("training", [True, False])
def test_a_missing_expert_is_zeros_whatever_stands_there(training):
    sizes = small_sizes()
    experts, available, text = batch(sizes, 5, 1)
    _, _, expected = compared(small_model(sizes).train(training), experts, available, text)
    other = {name: np.where(np.isnan(value), 1e6, value) for name, value in experts.items()}
    _, _, found = compared(small_model(sizes).train(training), other, available, text)
    assert torch.equal(found, expected)
    assert found.isfinite().all()


def test_padding_counts_in_netvlad():
    """As released: there is no mask, so more zeros give another row."""
    pool = NetVLAD(3, 2).double().eval()
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    longer = torch.cat([x, torch.zeros(2, 1, 3, dtype=torch.float64)], dim=1)
    assert (pool(x) - pool(longer)).abs().max() > 1e-3


def test_netvlad_by_hand():
    """Two clusters that a row belongs to equally: half of its difference from each, then of length one, twice."""
    pool = NetVLAD(2, 2, ghost_clusters=0).eval()
    with torch.no_grad():
        pool.assignment.zero_()
        pool.centres.copy_(torch.tensor([[0.0, 4.0], [0.0, 1.0]]))
    found = pool(torch.tensor([[[3.0, 4.0]]]))
    # Differences (3, 4) and (-1, 3); channel outside, cluster inside.
    expected = torch.tensor([[3 / 5, -1 / 10**0.5, 4 / 5, 3 / 10**0.5]]) / 2**0.5
    torch.testing.assert_close(found, expected)


def test_batches_that_do_not_fit_are_named():
    sizes = small_sizes()
    model = small_model(sizes)
    experts, available, text = batch(sizes, 3, 1)

    def refused(match, experts=experts, available=available):
        with pytest.raises(ValueError, match=match):
            compared(model, experts, available, text)

    refused("experts has audio, face, rgb; this model has audio, face, rgb, speech",
            {name: value for name, value in experts.items() if name != "speech"})  # fmt: skip
    refused(r"expert face is \[3, 4\], expected \[B, 3\]", experts | {"face": np.zeros((3, 4))})
    refused(r"expert audio is \[3, 4\], expected \[B, steps, 4\]", experts | {"audio": np.zeros((3, 4))})
    refused("rgb: NaN or infinite in videos where the expert is said to be available",
            experts | {"rgb": np.full((3, 9), np.nan)})  # fmt: skip
    refused("^rgb: NaN or infinite", experts | {"rgb": np.full((3, 9), np.inf)})


def test_sizes_are_sorted_and_say_what_does_not_fit():
    assert small_sizes().names == ("audio", "face", "rgb", "speech")
    assert CE["msrvtt"].names[:4] == ("audio", "face", "i3d.i3d.0", "imagenet.resnext101_32x48d.0")
    with pytest.raises(ValueError, match="an expert of 3 steps has no clusters"):
        CEExpert(5, max_steps=3)
    with pytest.raises(ValueError, match="CE has no experts"):
        replace(small_sizes(), experts={})
