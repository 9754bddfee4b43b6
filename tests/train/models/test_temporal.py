"""Temporal aggregation: order matters to it, padding does not."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from emcl_train.config import ModelConfig, RandomClipConfig
from emcl_train.errors import UserError
from emcl_train.models.clip import Vocabulary, build_towers
from emcl_train.models.temporal import build_temporal


def aggregation(temporal, *, clip="random", layers=2, width=16, **settings):
    torch.manual_seed(0)
    config = ModelConfig(
        clip="random",
        temporal=temporal,
        temporal_layers=layers,
        random_clip=RandomClipConfig(width, 2, 2, 8),
        **settings,
    )
    towers = build_towers(config, Vocabulary(20, 1, 0), image_size=16, max_words=7)
    config.clip = clip
    return build_temporal(config, towers.clip, width=width, num_frames=5).eval(), towers.clip


@pytest.mark.parametrize("temporal", ["mean", "lstm", "transformer"])
def test_padding_frames_do_not_change_the_valid_ones(temporal):
    module, _ = aggregation(temporal)
    frames = torch.randn(3, 5, 16)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]).bool()
    changed = torch.where(mask[..., None], frames, torch.randn(3, 5, 16))
    torch.testing.assert_close(module(changed, mask)[mask], module(frames, mask)[mask])


LENGTHS = [[5, 3, 1], [2, 2, 4], [1, 1, 1], [5, 5, 5]]


@pytest.mark.parametrize("lengths", LENGTHS)
def test_an_lstm_adds_nothing_to_padding(lengths):
    """As a packed sequence that is padded with zeros again, whatever else is in the batch."""
    module, _ = aggregation("lstm")
    frames = torch.randn(3, 5, 16)
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    packed = pack_padded_sequence(frames, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
    outputs, _ = pad_packed_sequence(module.lstm(packed)[0], batch_first=True, total_length=5)

    found = module(frames, mask)

    torch.testing.assert_close(found, frames + outputs)
    assert torch.equal(found[~mask], frames[~mask])
    alone = module(frames[1:2], mask[1:2])
    torch.testing.assert_close(found[1:2], alone)


def test_an_lstm_of_a_run_made_before_runs_on_through_padding():
    module, _ = aggregation("lstm", lstm_padding="run-on")
    frames = torch.randn(3, 5, 16)
    mask = torch.arange(5) < torch.tensor(LENGTHS[0])[:, None]
    assert torch.equal(module(frames, mask), frames + module.lstm(frames)[0])


@pytest.mark.parametrize("eps", [1e-12, 1e-5])
def test_norms_of_the_temporal_transformer_add_its_own_eps(eps):
    """Frames that differ by little: CLIP's eps would be most of their variance. The text tower keeps its own."""
    settings = {} if eps == 1e-12 else {"temporal_eps": eps}
    module, clip = aggregation("transformer", clip="openai/clip-vit-base-patch32", **settings)
    x = 1e-4 * torch.randn(3, 5, 16, dtype=torch.float64)
    centred = x - x.mean(-1, keepdim=True)
    expected = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + eps)

    for layer, source in zip(module.layers, clip.text_model.encoder.layers, strict=True):
        for norm, other in ((layer.layer_norm1, source.layer_norm1), (layer.layer_norm2, source.layer_norm2)):
            torch.testing.assert_close(norm.double()(x), expected, rtol=1e-9, atol=0)
            assert other.eps == 1e-5


@pytest.mark.parametrize(("temporal", "sees_order"), [("mean", False), ("lstm", True), ("transformer", True)])
def test_order_of_frames(temporal, sees_order):
    module, _ = aggregation(temporal)
    frames, mask = torch.randn(2, 5, 16), torch.ones(2, 5, dtype=torch.bool)
    backwards = module(frames.flip(1), mask).flip(1)
    assert torch.allclose(module(frames, mask), backwards, atol=1e-5) != sees_order


def test_the_transformer_starts_from_the_text_tower_of_trained_weights():
    module, clip = aggregation("transformer", clip="openai/clip-vit-base-patch32")
    text = clip.text_model
    torch.testing.assert_close(module.position_embedding, text.embeddings.position_embedding.weight[:5])
    for layer, source in zip(module.layers, text.encoder.layers, strict=True):
        torch.testing.assert_close(layer.mlp.fc1.weight, source.mlp.fc1.weight, rtol=0, atol=0)


def test_it_starts_at_random_where_the_text_tower_has_too_few_layers():
    module, clip = aggregation("transformer", clip="openai/clip-vit-base-patch32", layers=3)
    assert not torch.equal(module.layers[0].mlp.fc1.weight, clip.text_model.encoder.layers[0].mlp.fc1.weight)


def test_heads_must_divide_the_width():
    _, clip = aggregation("mean")
    with pytest.raises(UserError, match="15 wide, which the text tower's 2 heads do not divide"):
        build_temporal(ModelConfig(clip="x", temporal="transformer"), clip, width=15, num_frames=5)
