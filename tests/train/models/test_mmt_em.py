"""MMT + EMCL: EM of each expert in training and in evaluation, as released and as a map without a leak of pairing."""

import mmt_oracle as oracle
import numpy as np
import pytest
import torch
from tiny_mmt import (
    EM,
    TOKEN_TYPES,
    agrees,
    as_oracle,
    batch_of,
    max_margin,
    release_state,
    text_batch,
    tiny_mixture,
    tiny_model,
    video_batch,
)

from emcl_train.experts.mmt import EMSizes
from emcl_train.models.experts import em as em_module
from emcl_train.models.experts.em import ExpertEM

pytestmark = pytest.mark.usefixtures("one_thread")
ORACLE_EM = {"num_iters": EM.num_iters, "factor": 1 / EM.temperature, "weight": EM.residual_weight}


def rows(*shape, seed=3):
    """Clustered, of other lengths: EM on rows without any structure finds nothing, and could be anything."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, *shape[1:], generator=generator, dtype=torch.float64)
    chosen = torch.randint(0, 4, (shape[0],), generator=generator)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    lengths = torch.rand(shape[0], 1, 1, generator=generator, dtype=torch.float64) + 0.5
    return (centres[chosen] + 0.3 * noise) * lengths


def layer(experts=3, *, training=False, seed=0):
    torch.manual_seed(seed)
    return ExpertEM(experts, EM).double().train(training)


def by_oracle(em, text, video):
    return oracle.em_of_experts(
        video.detach().numpy(), text.detach().numpy(), em.bases.numpy().copy(), momentum=EM.momentum, **ORACLE_EM
    )


def release_similarity(model, batch, tokens, state, start, *, training):
    """The whole of MMT + EMCL by the oracle. Returns: similarities, and the start of the next batch."""
    video = oracle.video_side(as_oracle(batch), state, token_types=TOKEN_TYPES, heads=4, emcl=True, training=training)
    first = oracle.bert(tokens["input_ids"].numpy(), tokens["attention_mask"].numpy(), state, heads=2)
    text, weights = oracle.text_side(first, TOKEN_TYPES, state, emcl=True, training=training)
    video, text, moved = oracle.em_of_experts(video, text, start, momentum=EM.momentum, **ORACLE_EM)
    return oracle.similarity(text, video, weights), moved


def compared(model, videos, tokens, *, emcl=True):
    """Similarities as a training step makes them."""
    features = model(batch_of(videos, tokens))
    return model.similarity(features.text, features.video, emcl=emcl)


# ---- as released -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_it_is_the_oracle(training):
    model = tiny_mixture(training=training)
    state, start = release_state(model.system), model.emcl.bases.numpy().copy()
    batch, tokens = video_batch(7), text_batch(7)

    found = compared(model, batch, tokens)
    expected, moved = release_similarity(model, batch, tokens, state, start, training=training)

    agrees(found, expected)
    agrees(model.emcl.bases, moved if training else start)
    assert np.abs(moved - start).max() > 1e-3


@pytest.mark.parametrize(
    "name",
    [
        "video_dim_reduce.s3d.fc.weight",
        "vid_bert.encoder.layer.0.attention.self.query.weight",
        "vid_bert.embeddings.token_type_embeddings.weight",
        "video_GU.ocr.cg.fc.weight",
        "text_GU.vggish.fc.bias",
        "moe_fc_txt.s3d.weight",
        "txt_bert.encoder.layer.1.output.dense.weight",
        "txt_bert.embeddings.word_embeddings.weight",
    ],
)
def test_the_gradient_goes_past_em(name):
    """Against derivatives of the oracle, in which what EM adds is a constant; in training mode, with batch norms."""
    model = tiny_mixture(training=True)
    state, start = release_state(model.system), model.emcl.bases.numpy().copy()
    batch, tokens = video_batch(5), text_batch(5)
    parameters = dict(zip(state, model.system.state_dict(), strict=True))

    max_margin(compared(model, batch, tokens), 0.5).backward()
    gradient = dict(model.system.named_parameters())[parameters[name]].grad.numpy()

    def loss(weights):
        return oracle.max_margin(release_similarity(model, batch, tokens, weights, start, training=True)[0], 0.5)

    assert np.abs(gradient).max() > 1e-5
    for seed in range(3):
        direction = np.random.default_rng(seed).normal(size=gradient.shape)
        expected = oracle.derivative(loss, state, name, direction)
        np.testing.assert_allclose((gradient * direction).sum(), expected, rtol=0, atol=1e-10)


def test_one_call_of_the_op_takes_all_experts(monkeypatch):
    calls = []
    call = em_module.em_project
    monkeypatch.setattr(em_module, "em_project", lambda x, *a, **k: calls.append(tuple(x.shape)) or call(x, *a, **k))
    layer(training=True)(rows(7, 3, 16), rows(6, 3, 16))
    assert calls == [(3, 13, 16)]


def test_the_start_is_of_length_one_over_the_experts_and_differs_in_size():
    torch.manual_seed(0)
    bases = ExpertEM(7, EMSizes()).bases
    torch.testing.assert_close(bases.norm(dim=0), torch.ones(64), rtol=0, atol=1e-5)
    assert 0.3 < bases.abs().std() / bases.abs().mean() < 1.2
    assert (bases < 0).any()
    assert (bases > 0).any()


def test_two_batches_before_either_s_backward():
    """The start moves between them; what backward needs of the first is not changed."""
    em = layer(training=True)
    first, second = rows(5, 3, 16, seed=4).requires_grad_(), rows(5, 3, 16, seed=5).requires_grad_()
    losses = [sum(side.pow(3).sum() for side in em(x, x)) for x in (first, second)]
    sum(losses).backward()
    alone = first.detach().clone().requires_grad_()
    torch.manual_seed(0)
    sum(side.pow(3).sum() for side in layer(training=True)(alone, alone)).backward()
    assert torch.equal(first.grad, alone.grad)


def test_a_sum_over_processes_is_refused():
    features = tiny_mixture()(batch_of(video_batch(), text_batch()))
    with pytest.raises(ValueError, match="CE and MMT train in one process alone"):
        tiny_mixture().similarity(features.text, features.video, emcl=True, add_up=lambda vector: vector)


def test_the_start_is_saved_and_moves_with_the_model():
    model = tiny_mixture(training=True)
    other = tiny_mixture(seed=9)
    compared(model, video_batch(), text_batch())
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.emcl.bases, model.emcl.bases)
    assert not tiny_mixture().emcl.bases.equal(model.emcl.bases)


# ---- evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pairs", "block"), [(7, 3), (6, 3), (1, 1), (5, 32), (9, 4)])
def test_blocks_are_em_inside_each(pairs, block):
    em = layer()
    text, video = rows(pairs, 3, 16, seed=10), rows(pairs, 3, 16, seed=11)
    start = em.bases.clone()
    found_text, found_video = em.in_blocks(text, video, block)
    for begin in range(0, pairs, block):
        expected_video, expected_text, _ = by_oracle(em, text[begin : begin + block], video[begin : begin + block])
        agrees(found_text[begin : begin + block], expected_text)
        agrees(found_video[begin : begin + block], expected_video)
    assert torch.equal(em.bases, start)


def test_blocks_leave_the_start_alone_in_training_mode_too():
    em = layer(training=True)
    start = em.bases.clone()
    em.in_blocks(rows(4, 3, 16), rows(4, 3, 16), 2)
    em.fit(em.moments(rows(4, 3, 16)))
    assert torch.equal(em.bases, start)


@torch.no_grad()
def test_the_model_evaluates_in_blocks_or_over_everything():
    model = tiny_mixture()
    features = model(batch_of(video_batch(5), text_batch(5)))
    text, video = features.text, features.video
    everything = model.similarity(text, video, emcl=True).numpy()
    blocks = streamed(model, text, video, em_block=2)
    agrees(streamed(model, text, video, em_block=5), everything)
    agrees(streamed(model, text, video), everything)

    rows_text, rows_video = (side.numpy() for side in model.emcl.in_blocks(text.embeddings, video.embeddings, 2))
    agrees(blocks, oracle.similarity(rows_text, rows_video, text.weights.numpy()))
    assert (blocks.numpy() - everything).max() > 1e-4


def streamed(model, text, video, em_block=None):
    return torch.cat(list(model.similarity_stream(text, video, emcl=True, em_block=em_block)))


def test_in_blocks_a_text_depends_on_its_own_video_and_by_a_map_it_does_not():
    em = layer()
    text, video = rows(6, 3, 16, seed=12), rows(6, 3, 16, seed=13)
    others = video.roll(1, dims=0)
    assert (em.in_blocks(text, video, 2)[0] - em.in_blocks(text, others, 2)[0]).abs().max() > 1e-4
    maps, of_others = (em.fit(em.moments(text) + em.moments(side)) for side in (video, others))
    agrees(maps(text), of_others(text).numpy(), atol=1e-12)


def test_a_map_of_all_rows_is_em_over_everything():
    em = layer()
    text, video = rows(9, 3, 16, seed=14), rows(7, 3, 16, seed=15)
    expected_text, expected_video = em(text, video)

    # Moments add up over chunks, and each row is mapped as if it were alone.
    total = em.moments(text[:4]) + em.moments(text[4:]) + em.moments(video)
    maps = em.fit(total)
    agrees(maps(text), expected_text.numpy())
    agrees(maps(video[3:4]), expected_video[3:4].numpy())


def test_a_map_as_of_a_batch_does_not_depend_on_how_many_rows_there_are():
    em = layer()
    some = rows(20, 3, 16, seed=16)
    often = some.repeat(50, 1, 1)
    expected = em.fit(em.moments(some))(some).numpy()
    agrees(em.fit(em.moments(often), rows_of_batch=20)(some), expected)
    assert np.abs(em.fit(em.moments(often))(some).numpy() - expected).max() > 1e-3


@torch.no_grad()
def test_em_over_the_unit_rows_of_weights_that_were_trained_without_it():
    model = tiny_mixture(gated_video=False)
    features = model(batch_of(video_batch(5), text_batch(5)))
    text, video = features.text, features.video
    plain = tiny_model().encode_video(**video_batch(5))
    assert torch.equal(video.embeddings, plain.embeddings)
    expected_video, expected_text, _ = by_oracle(model.emcl, text.embeddings, video.embeddings)
    expected = oracle.similarity(expected_text, expected_video, text.weights.numpy())
    agrees(model.similarity(text, video, emcl=True), expected)


@torch.no_grad()
def test_gates_without_em_compare_unit_rows():
    model = tiny_mixture()
    features = model(batch_of(video_batch(5), text_batch(5)))
    text, video = features.text, features.video
    assert (video.embeddings.norm(dim=-1) - 1).abs().max() > 1e-2
    unit_text, unit_video = (oracle.unit(side.embeddings.numpy()) for side in (text, video))
    expected = oracle.similarity(unit_text, unit_video, text.weights.numpy())
    agrees(model.similarity(text, video, emcl=False), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda em: em.in_blocks(rows(3, 3, 16), rows(4, 3, 16), 2), "3 texts and 4 videos; .* one caption a video"),
        (lambda em: em.in_blocks(rows(3, 3, 16), rows(3, 3, 16), 0), "block is 0; expected at least 1 pair"),
        (lambda em: em.fit(em.moments(rows(3, 3, 16)), rows_of_batch=0), "rows_of_batch is 0; expected at least 1"),
    ],
)
def test_what_cannot_be(call, message):
    with pytest.raises(ValueError, match=message):
        call(layer())
