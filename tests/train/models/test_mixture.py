"""What CE and MMT share: gated embeddings, and similarities weighed by the text over the experts that are there."""

import numpy as np
import pytest
import torch

from emcl_train.models.experts.mixture import (
    ExpertText,
    ExpertVideo,
    GatedEmbedding,
    mixture_similarity,
    only_available,
    unit,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def rows(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def by_hand(text, video, weights, available):
    """The double sum, pair by pair."""
    result = np.zeros((len(text), len(video)))
    for a, v in np.ndindex(result.shape):
        shares = weights[a] * available[v]
        if shares.sum() > 0:
            result[a, v] = sum(shares[m] * text[a, m] @ video[v, m] for m in range(len(shares))) / shares.sum()
    return result


def test_two_experts_by_hand():
    text = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    video = torch.tensor([[[0.5, 9.0], [9.0, 0.25]], [[0.5, 9.0], [9.0, 0.25]], [[0.5, 9.0], [9.0, 0.25]]])
    weights = torch.tensor([[0.75, 0.25]])
    available = torch.tensor([[True, True], [False, True], [False, False]])
    found = mixture_similarity(text, video, weights, available)
    torch.testing.assert_close(found, torch.tensor([[0.75 * 0.5 + 0.25 * 0.25, 0.25, 0.0]]))


@pytest.mark.parametrize(("captions", "videos", "experts", "width"), [(1, 1, 1, 1), (7, 3, 2, 5), (5, 41, 9, 3)])
def test_it_is_the_double_sum(captions, videos, experts, width):
    text, video = rows(captions, experts, width), rows(videos, experts, width)
    weights = torch.softmax(rows(captions, experts), dim=1)
    available = torch.rand(videos, experts) < 0.6
    arrays = text.numpy(), video.numpy(), weights.numpy()

    found = mixture_similarity(text, video, weights, available)
    np.testing.assert_allclose(found, by_hand(*arrays, available.numpy()), atol=1e-12)
    everything = mixture_similarity(text, video, weights, None)
    np.testing.assert_allclose(everything, by_hand(*arrays, np.ones((videos, experts))), atol=1e-12)


def test_a_video_without_experts_gives_no_gradient_that_is_not_finite():
    text, weights = rows(2, 3, 4).requires_grad_(), torch.softmax(rows(2, 3), dim=1).requires_grad_()
    mixture_similarity(text, rows(1, 3, 4), weights, torch.zeros(1, 3, dtype=torch.bool)).sum().backward()
    assert not text.grad.any()
    assert not weights.grad.any()


@pytest.mark.parametrize("of_unit_length", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_a_gated_embedding_is_its_formula(training, of_unit_length):
    made = GatedEmbedding(5, 3, unit=of_unit_length).double().train(training)
    norm = made.gate_norm
    for value in (norm.weight, norm.bias, norm.running_mean):
        torch.nn.init.normal_(value)
    torch.nn.init.uniform_(norm.running_var, 0.5, 2.0)
    mean, var = norm.running_mean.numpy().copy(), norm.running_var.numpy().copy()
    x = rows(7, 5)
    found = made(x).detach().numpy()

    def linear(layer, x):
        return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()

    y = linear(made.embed, x.numpy())
    gate = linear(made.gate, y)
    if training:
        mean, var = gate.mean(0), gate.var(0)
    gate = (gate - mean) / np.sqrt(var + 1e-5) * norm.weight.detach().numpy() + norm.bias.detach().numpy()
    expected = y / (1 + np.exp(-gate))
    if of_unit_length:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_zeros_have_no_direction():
    found = unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def test_rows_of_missing_experts_become_zeros():
    video = ExpertVideo(rows(5, 3, 4), torch.rand(5, 3) < 0.5)
    found = only_available(video)
    assert torch.equal(found.available, video.available)
    assert torch.equal(found.embeddings[video.available], video.embeddings[video.available])
    assert not found.embeddings[~video.available].any()


def test_videos_and_captions_are_cut_and_joined():
    video = ExpertVideo(rows(5, 3, 4), torch.rand(5, 3) < 0.5)
    text = ExpertText(rows(7, 3, 4), rows(7, 3))
    for whole in (video, text):
        again = type(whole).cat(whole.split(2))
        assert len(again) == len(whole)
        assert all(torch.equal(value, again.tensors()[name]) for name, value in whole.tensors().items())
