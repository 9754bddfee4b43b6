"""Logits, loss and gradients against the recipe's formulas written down independently, from token ids and frames on."""

import math
from types import SimpleNamespace

import pytest
import torch
import transcription
from released_optimizer import ReleasedOptimizer
from transcription import Settings

from emcl_train.config import DataConfig, EMCLConfig, ModelConfig, RandomClipConfig, RunConfig, TrainConfig
from emcl_train.models import build_model
from emcl_train.training.optim import build_optimizer, freeze_inputs, rate_share, set_learning_rate
from emcl_train.training.trainer import Run
from emcl_train.weights.release import model_to_layout

EOS, WORDS, FRAMES, BASES = 1, 7, 4, 5
CASES = [
    ("text-conditioned", "transformer"),
    ("text-conditioned", "mean"),
    ("text-conditioned", "lstm"),
    ("mean", "mean"),
    ("mean", "lstm"),
    ("mean", "transformer"),
    ("wti", "transformer"),
]
RELATIVE = {"scale": "relative", "residual_weight": -0.5}
pytestmark = pytest.mark.usefixtures("one_thread")


class Tokenizer:
    eos_token_id, pad_token_id = EOS, 0

    def __len__(self):
        return 30


def model_and_weights(head, temporal, wti_padding="left-out", **emcl):
    """A small model whose weights are all random, and the same weights under the public names in float64."""
    torch.manual_seed(0)
    config = RunConfig(
        data=DataConfig(num_frames=FRAMES, image_size=16, max_words=WORDS),
        model=ModelConfig("random", RandomClipConfig(16, layers=2, heads=2, patch_size=8), temporal, 2, head),
        emcl=EMCLConfig(**({"num_bases": BASES, "init": "normal", "num_iters": 3, "temperature": 0.3} | emcl)),
        train=TrainConfig(decorrelation_weight=0.05, decorrelation_off_diagonal=0.3),
    )
    config.model.wti_padding = wti_padding
    model = build_model(config, Tokenizer())
    with torch.no_grad():
        for parameter in model.parameters():  # no bias is zero and no norm the identity
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.towers.clip.logit_scale.fill_(2.0)
        # Texts about as long as frames are: longer ones make float32's error in the pooling's softmax the larger.
        model.towers.clip.text_projection.weight.mul_(0.3)
    weights = {name: value.double() for name, value in model_to_layout(model.state_dict(), "emcl")[0].items()}
    mu = weights.pop("emcl.mu")[0]
    settings = Settings(
        head,
        temporal,
        heads=2,
        eos=EOS,
        num_iters=config.emcl.num_iters,
        temperature=config.emcl.temperature,
        weight=config.emcl.residual_weight,
        relative=config.emcl.scale == "relative",
        padding=0.0 if wti_padding == "zero" else -math.inf,
    )
    return model, config, {name: value.requires_grad_() for name, value in weights.items()}, mu, settings


PEERS = {
    "EMCL-Net": ("text-conditioned", "transformer", {}, "conv1", 0.0),
    "CLIP4Clip meanP": ("mean", "mean", {"mode": "off"}, "clip4clip", 0.0),
    "CLIP4Clip seqLSTM": ("mean", "lstm", {"mode": "off"}, "clip4clip", 0.0),
    "CLIP4Clip seqTransf": ("mean", "transformer", {"mode": "off"}, "clip4clip", 0.0),
    "DRL": ("wti", "transformer", {"mode": "off"}, "none", 0.05),
    "DRL, padding as released": ("wti", "transformer", {"mode": "off", "wti_padding": "zero"}, "none", 0.05),
    "EMCL-Net with an LSTM": ("text-conditioned", "lstm", {}, "conv1", 0.0),
}
"""Head, temporal aggregation, EM, frozen weights, and the weight of CDCR."""
FROZEN = {
    "none": (),
    "conv1": ("clip.visual.conv1.",),
    "clip4clip": (
        "clip.visual.conv1.",
        "clip.visual.class_embedding",
        "clip.visual.positional_embedding",
        "clip.visual.ln_pre.",
        "clip.token_embedding.",
        "clip.positional_embedding",
    ),
}
"""By the names of the release."""


def inputs(captions, clips, seed=1):
    """Captions of different lengths, some as long as can be, and clips with fewer frames than places."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 30, (captions, WORDS), generator=generator)
    lengths = torch.randint(2, WORDS + 1, (captions,), generator=generator)
    place = torch.arange(WORDS)
    ids = ids.masked_fill(place > lengths[:, None] - 1, 0).masked_fill(place == lengths[:, None] - 1, EOS)
    frames = torch.randint(0, 256, (clips, FRAMES, 3, 16, 16), dtype=torch.uint8, generator=generator)
    valid = torch.randint(1, FRAMES + 1, (clips,), generator=generator)
    return ids, (place < lengths[:, None]).long(), frames, torch.arange(FRAMES) < valid[:, None]


def named(ids, mask, frames, frame_mask):
    """As a loader names them."""
    return {"input_ids": ids, "attention_mask": mask, "frames": frames, "frame_mask": frame_mask}


@pytest.mark.parametrize("emcl", [{}, RELATIVE, {"mode": "off"}], ids=["on", "relative", "off"])
@pytest.mark.parametrize(("head", "temporal"), CASES)
def test_a_training_step(head, temporal, emcl):
    model, config, weights, mu, settings = model_and_weights(head, temporal, **emcl)
    ids, mask, frames, frame_mask = inputs(6, 6)
    on = config.emcl.mode == "train"
    batch = ids, mask.bool(), frames, frame_mask
    expected, bases = transcription.training_loss(weights, *batch, mu if on else None, settings, 0.05, 0.3)
    expected.backward()

    features = model.train()(named(ids, mask, frames, frame_mask))
    loss = Run.loss(SimpleNamespace(model=model, config=config, processes=1), features, {})
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    if on:
        torch.testing.assert_close(model.emcl.bases.double(), bases, atol=1e-5, rtol=1e-5)
    state = {name: value.grad for name, value in model.named_parameters()} | {"emcl.bases": model.emcl.bases}
    found, left_out = model_to_layout(state, "clip4clip")
    assert left_out == ["emcl.bases"]
    total = torch.cat([value.grad.flatten() for value in weights.values() if value.grad is not None]).norm()
    compared = 0
    for name, value in weights.items():
        if value.grad is None:
            # Of the LSTM's frame positions: the layout has them, and nothing reads them.
            assert (name, temporal) == ("frame_position_embeddings.weight", "lstm")
            continue
        # The layout's further frame positions are no parameters here.
        difference = found[name] - value.grad
        error = (difference[:FRAMES] if name == "frame_position_embeddings.weight" else difference).norm()
        assert error <= 1e-5 * value.grad.norm() + 1e-6 * total, name
        compared += 1
    assert compared >= 50


@pytest.mark.parametrize("peer", PEERS)
def test_twenty_steps_from_pixels_and_ids_to_weights(peer):
    """In float64: gradients of each step, and the weights after all of them, with clips of one frame and more."""
    head, temporal, emcl, frozen, decorrelation = PEERS[peer]
    model, config, weights, mu, settings = model_and_weights(head, temporal, **emcl)
    on = config.emcl.mode == "train"
    train = config.train
    train.optimizer, train.frozen, train.lr, train.clip_lr_factor = "bertadam", frozen, 1e-3, 0.1
    train.decorrelation_weight = decorrelation
    model = model.double().train()
    freeze_inputs(model, frozen)
    optimizer = build_optimizer(model, config)
    run = SimpleNamespace(model=model, config=config, processes=1)

    # From OpenAI's logit scale, at which a step may not rise.
    torch.nn.init.constant_(model.towers.clip.logit_scale, 4.605170249938965)
    with torch.no_grad():
        weights["clip.logit_scale"].copy_(model.towers.clip.logit_scale)
    learning = {name: value for name, value in weights.items() if not name.startswith(FROZEN[frozen])}
    start = {name: value.detach().clone() for name, value in weights.items()}
    expected = ReleasedOptimizer(
        learning, 20, of_clip=lambda name: name.startswith("clip."), lr=1e-3, clip_lr=1e-4, decay=train.weight_decay
    )

    for step in range(20):
        ids, mask, frames, frame_mask = inputs(6, 6, seed=step)
        batch = ids, mask.bool(), frames, frame_mask
        loss, mu = transcription.training_loss(
            weights, *batch, mu if on else None, settings, decorrelation, train.decorrelation_off_diagonal
        )
        of_learning = torch.autograd.grad(loss, list(learning.values()), allow_unused=True)
        gradients = {name: g for name, g in zip(learning, of_learning, strict=True) if g is not None}
        expected.step(gradients)
        with torch.no_grad():
            weights["clip.logit_scale"].clamp_(max=math.log(100))

        found = Run.loss(run, model(named(ids, mask, frames, frame_mask)), {})
        assert found.item() == pytest.approx(loss.item(), rel=1e-9)
        optimizer.zero_grad()
        found.backward()
        # In exact arithmetic the last biases of token weights have no gradient at all.
        total = torch.cat([value.flatten() for value in gradients.values()]).norm()
        require_close(gradients_of(model), gradients, 1e-8, rounding=1e-12 * total)
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.max_grad_norm)
        set_learning_rate(optimizer, rate_share(train, step, total_steps=20, steps_per_epoch=1))
        optimizer.step()
        model.hold_logit_scale()

    layout, _ = model_to_layout(model.state_dict(), "emcl")
    if temporal == "lstm":
        del weights["frame_position_embeddings.weight"]  # which nothing reads
    require_close(layout, weights, 1e-8)
    if on:
        torch.testing.assert_close(layout["emcl.mu"][0], mu, rtol=1e-8, atol=1e-10)
    # All that learns has moved, but for the last biases of token weights, which have no gradient.
    moved = {name for name, value in weights.items() if not torch.equal(value, start[name])}
    idle = {"text_weight_fc.2.bias", "video_weight_fc.2.bias"}
    assert moved - idle == learning.keys() & weights.keys() - idle


def gradients_of(model):
    """By the names of the release; zeros for what is frozen."""
    parameters = dict(model.named_parameters())
    gradients = {
        name: torch.zeros_like(value) if value.grad is None else value.grad for name, value in parameters.items()
    }
    return model_to_layout(gradients, "clip4clip")[0]


def require_close(found, expected, tolerance, rounding=0.0):
    for name, value in expected.items():
        difference = found[name] - value
        if name == "frame_position_embeddings.weight":
            difference = difference[:FRAMES]  # further ones are no parameters here
        assert difference.norm() <= tolerance * value.norm() + rounding, name


@pytest.mark.parametrize("emcl", [{}, RELATIVE, {"mode": "off"}], ids=["on", "relative", "off"])
@pytest.mark.parametrize(("head", "temporal"), CASES)
def test_evaluation_in_blocks_of_32(head, temporal, emcl):
    model, config, weights, mu, settings = model_and_weights(head, temporal, **emcl)
    ids, mask, frames, frame_mask = inputs(39, 41)
    on = config.emcl.mode == "train"
    with torch.no_grad():
        batch = ids, mask.bool(), frames, frame_mask
        expected = transcription.evaluation(weights, *batch, mu if on else None, settings, 32)
        features = model.eval()(named(ids, mask, frames, frame_mask))
    found = torch.cat(list(model.similarity_stream(features.text, features.video, emcl=on, em_block=32)))
    assert found.shape == (39, 41)
    assert (found - expected).abs().max() <= 1e-5
    assert expected.std() > 0.01
    logits, right = model.logit_scale * found, transcription.logit_scale(weights) * expected
    torch.testing.assert_close(logits.double(), right, atol=1e-4, rtol=1e-5)


def test_the_formulas_differ():
    """Else one head could stand for another, and blocks for the whole."""
    seen = []
    for head in ("text-conditioned", "mean", "wti"):
        _, _, weights, mu, settings = model_and_weights(head, "mean")
        ids, mask, frames, frame_mask = inputs(39, 41)
        with torch.no_grad():
            for start, block in ((None, 64), (mu, 64), (mu, 32)):
                batch = ids, mask.bool(), frames, frame_mask
                seen.append(transcription.evaluation(weights, *batch, start, settings, block))
    for i, one in enumerate(seen):
        assert all((one - other).abs().max() > 1e-3 for other in seen[:i])
