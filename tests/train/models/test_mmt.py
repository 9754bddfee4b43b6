"""MMT: numbers of the original module, an oracle of its equations, missing experts, and its number of weights."""

from dataclasses import replace
from pathlib import Path

import mmt_oracle as oracle
import numpy as np
import pytest
import torch
from tiny_mmt import (
    SIZES,
    TOKEN_TYPES,
    agrees,
    as_oracle,
    keep_missing_not,
    max_margin,
    release_state,
    text_batch,
    tiny_model,
    video_batch,
)

from emcl_train.config import ExpertsConfig, RunConfig
from emcl_train.errors import UserError
from emcl_train.experts.choosing import mmt_sizes_of
from emcl_train.experts.mmt import BertSizes, mmt_sizes, reduced
from emcl_train.models.experts.bert import build_bert
from emcl_train.models.experts.mmt import MultiModalTransformer
from emcl_train.weights.mmt import mmt_from_authors

pytestmark = pytest.mark.usefixtures("one_thread")
FIXTURE = Path(__file__).parent / "fixtures" / "mmt.npz"


@pytest.fixture(scope="module")
def numbers():
    with np.load(FIXTURE) as file:
        return dict(file)


def of_original(numbers, *, video_heads=4, text_heads=2):
    """The model with the original's weights, and its inputs. Heads are not in the numbers; these are the right ones."""
    sizes = replace(SIZES, heads=video_heads, bert=replace(SIZES.bert, heads=text_heads))
    model = MultiModalTransformer(sizes, build_bert(sizes.bert)).double().eval()
    state = {name[6:]: torch.from_numpy(value) for name, value in numbers.items() if name.startswith("state/")}
    model.load_state_dict(mmt_from_authors(state, model.state_dict(), source=str(FIXTURE))[0])

    ours = {"features": "features", "features_ind": "present", "features_t": "positions", "features_maxpool": "maxpool"}
    videos = {
        name: {expert: torch.from_numpy(numbers[f"{theirs}/{expert}"]) for expert in SIZES.names}
        for theirs, name in ours.items()
    }
    tokens = torch.from_numpy(numbers["token_ids"]).long()[:, 0]
    return model, videos, {"input_ids": tokens[..., 0], "attention_mask": tokens[..., 1]}


def test_numbers_of_the_original_module(numbers):
    model, videos, tokens = of_original(numbers)
    video, text = model.encode_video(**videos), model.encode_text(**tokens)
    agrees(video.embeddings, numbers["eval/video"])
    agrees(text.embeddings, numbers["eval/text"][:, :, 0])
    agrees(text.weights, numbers["eval/text_weights"][:, 0])

    similarity = model.similarity(text, video)
    agrees(similarity, numbers["eval/sims"])
    loss = max_margin(similarity)
    agrees(loss, numbers["eval/loss"])
    loss.backward()
    agrees(model.reduce["s3d"].weight.grad, numbers["eval/d_reduce_s3d"])


@pytest.mark.parametrize(("video_heads", "text_heads"), [(2, 2), (4, 3), (8, 2), (16, 2)])
def test_with_other_heads_they_are_not_the_original_s(numbers, video_heads, text_heads):
    model, videos, tokens = of_original(numbers, video_heads=video_heads, text_heads=text_heads)
    found = model.similarity(model.encode_text(**tokens), model.encode_video(**videos)).detach().numpy()
    assert np.abs(found - numbers["eval/sims"]).max() > 1e-5


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("captions", "videos"), [(7, 6), (2, 41)])
def test_it_is_the_oracle(training, captions, videos):
    model = tiny_model(training=training)
    state = release_state(model)
    batch, tokens = video_batch(videos), text_batch(captions)
    video, text = model.encode_video(**batch), model.encode_text(**tokens)

    of_videos = oracle.video_side(as_oracle(batch), state, token_types=TOKEN_TYPES, heads=4, training=training)
    first = oracle.bert(tokens["input_ids"].numpy(), tokens["attention_mask"].numpy(), state, heads=2)
    of_texts, weights = oracle.text_side(first, TOKEN_TYPES, state, training=training)
    agrees(video.embeddings, of_videos)
    agrees(text.embeddings, of_texts)
    agrees(text.weights, weights)
    agrees(model.similarity(text, video), oracle.similarity(of_texts, of_videos, weights))


def test_the_text_side_alone_from_stored_states():
    model = tiny_model()
    first = torch.randn(5, 24, dtype=torch.float64)
    rows, weights = oracle.text_side(first.numpy(), TOKEN_TYPES, release_state(model))
    text = model.text_of(first)
    agrees(text.embeddings, rows)
    agrees(text.weights, weights)


def test_a_missing_expert_keeps_its_weight_as_released():
    model = tiny_model()
    batch, tokens = video_batch(), text_batch()
    video, text = model.encode_video(**batch), model.encode_text(**tokens)
    assert not video.available[1, SIZES.names.index("ocr")]
    assert (video.embeddings.norm(dim=-1) - 1).abs().max() < 1e-12  # an output also where nothing was given

    # Over all experts: what is said of the missing one counts.
    found = model.similarity(text, video)
    agrees(found, oracle.similarity(*(x.detach().numpy() for x in (text.embeddings, video.embeddings, text.weights))))

    # And left out, the others' weights sum to one.
    other = tiny_model(sizes=keep_missing_not())
    rows, videos, weights = (x.detach().numpy() for x in (text.embeddings, video.embeddings, text.weights))
    shares = weights[:, None] * video.available.numpy()[None]
    cosines = np.einsum("amd,vmd->avm", rows, videos)
    total = shares.sum(-1)
    by_hand = np.where(total > 0, (shares * cosines).sum(-1) / np.where(total > 0, total, 1), 0)
    agrees(other.similarity(text, video), by_hand)
    assert np.abs(by_hand - found.detach().numpy()).max() > 1e-3


def test_what_stands_where_nothing_is_does_not_matter():
    model = tiny_model()
    batch = video_batch()
    changed = {name: {expert: value.clone() for expert, value in by.items()} for name, by in batch.items()}
    for expert in SIZES.names:
        gone = ~batch["present"][expert]
        changed["features"][expert][gone] = torch.nan
        changed["positions"][expert][gone] = 3.0
        changed["maxpool"][expert][gone.all(1)] = torch.nan
    assert gone.any()
    found, expected = model.encode_video(**changed), model.encode_video(**batch)
    torch.testing.assert_close(found.embeddings, expected.embeddings, rtol=0, atol=1e-13)
    assert torch.equal(found.available, expected.available)


def test_order_of_the_experts_and_of_the_kind_of_mask_does_not_matter():
    model = tiny_model()
    batch = video_batch()
    reversed_batch = {name: dict(reversed(list(by.items()))) for name, by in batch.items()}
    reversed_batch["present"] = {name: there.double() for name, there in reversed_batch["present"].items()}
    assert torch.equal(model.encode_video(**reversed_batch).embeddings, model.encode_video(**batch).embeddings)


def test_times_beyond_the_table_share_its_last_row_and_are_cut_to_whole_seconds():
    model = tiny_model()
    batch = video_batch()

    def with_times(function):
        times = {name: function(value) for name, value in batch["positions"].items()}
        return model.encode_video(**(batch | {"positions": times})).embeddings

    assert torch.equal(with_times(lambda t: t + 100), with_times(lambda t: torch.full_like(t, 7.0)))
    assert torch.equal(with_times(lambda t: torch.full_like(t, 2.0)), with_times(lambda t: torch.full_like(t, 2.99)))
    assert not torch.equal(with_times(lambda t: torch.full_like(t, 2.0)), with_times(lambda t: torch.full_like(t, 3.0)))


def test_gradients_reach_all_but_the_poolers():
    model = tiny_model(training=True)
    max_margin(model.similarity(model.encode_text(**text_batch()), model.encode_video(**video_batch()))).backward()
    without = {name for name, value in model.named_parameters() if value.grad is None}
    assert without == {f"{side}.weight" for side in POOLERS} | {f"{side}.bias" for side in POOLERS}
    assert {name for name, value in model.named_parameters() if not value.requires_grad} == without


POOLERS = ("bert.pooler.dense", "video.pooler")


def test_dropout_acts_in_training_alone():
    model = tiny_model(sizes=replace(SIZES, dropout=0.5))
    batch, tokens = video_batch(), text_batch()
    assert torch.equal(model.encode_video(**batch).embeddings, model.encode_video(**batch).embeddings)
    model.train()
    assert not torch.equal(model.encode_video(**batch).embeddings, model.encode_video(**batch).embeddings)
    assert not torch.equal(model.encode_text(**tokens).weights, model.encode_text(**tokens).weights)


def test_mixed_precision_gives_float32():
    model = tiny_model().float()
    batch, tokens = video_batch(), text_batch()
    floats = {
        name: {expert: value if value.dtype == torch.bool else value.float() for expert, value in by.items()}
        for name, by in batch.items()
    }
    with torch.autocast("cpu", torch.bfloat16):
        video, text = model.encode_video(**floats), model.encode_text(**tokens)
        found = model.similarity(text, video)
    exact = model.similarity(model.encode_text(**tokens), model.encode_video(**floats))
    assert video.embeddings.dtype == text.embeddings.dtype == text.weights.dtype == torch.float32
    assert (found - exact).abs().max() < 0.1


# ---- sizes -----------------------------------------------------------------------------------------------------------


def on_meta(data_set, *, gated_video=False):
    with torch.device("meta"):
        return MultiModalTransformer(mmt_sizes(data_set), build_bert(BertSizes()), gated_video=gated_video)


def test_as_many_weights_as_published():
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in on_meta("msrvtt").named_children()}
    assert sum(parts.values()) == 133_357_063
    assert parts["bert"] == 108_310_272
    assert parts["video"] == 17_097_728


@pytest.mark.parametrize("data_set", ["msrvtt", "activitynet", "lsmdc"])
def test_emcl_adds_a_gate_an_expert(data_set):
    without, within = on_meta(data_set), on_meta(data_set, gated_video=True)
    experts = len(mmt_sizes(data_set).names)
    added = sum(p.numel() for p in within.parameters()) - sum(p.numel() for p in without.parameters())
    assert added == experts * (2 * (512 * 512 + 512) + 2 * 512)


def test_sizes_of_the_data_sets():
    assert mmt_sizes("lsmdc").experts["face"].width == 128
    assert mmt_sizes("activitynet").names == ("s3d", "vggish")
    assert [mmt_sizes(name).token_types for name in ("msrvtt", "activitynet", "lsmdc")] == [19, 10, 10]
    small = reduced(mmt_sizes("activitynet"))
    assert MultiModalTransformer(small, build_bert(small.bert)).bert.config.max_position_embeddings == 100


def test_the_table_of_token_types_may_be_longer():
    config = RunConfig(experts=ExpertsConfig(sizes="activitynet", token_types=19))
    widths = {"s3d": 1024, "vggish": 128}
    assert mmt_sizes_of(config, widths).token_types == 19
    config.experts.token_types = 2
    with pytest.raises(UserError, match=r"experts\.token_types is 2, expected at least 3 .*--experts\.token-types 3"):
        mmt_sizes_of(config, widths)


@pytest.mark.parametrize("name", ["clip.vit-b32", "type", "items", "train", "training", "%2E", "a b"])
def test_an_expert_has_any_name(name):
    model = tiny_model(sizes=replace(SIZES, experts={name: SIZES.experts["s3d"]}))
    batch = {kind: {name: by["s3d"]} for kind, by in video_batch(2).items()}
    of_usual_name = tiny_model(sizes=replace(SIZES, experts={"s3d": SIZES.experts["s3d"]}))
    expected = of_usual_name.encode_video(**{kind: {"s3d": by[name]} for kind, by in batch.items()})
    assert torch.equal(model.encode_video(**batch).embeddings, expected.embeddings)


def test_an_unknown_data_set():
    with pytest.raises(UserError, match="MMT has no sizes for 'msvd'; expected one of msrvtt, activitynet, lsmdc"):
        mmt_sizes("msvd")


# ---- what does not fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "width is 16, which 3 heads do not divide"),
        ({"token_types": 7}, r"token types \[7, 1, 2\]; expected .* from 1 to 6"),
        ({"max_positions": 1}, "max_positions is 1; expected at least 2"),
        ({"experts": {}}, "at least one expert"),
        ({"bert": replace(SIZES.bert, heads=5)}, "BERT is 24 wide, which 5 heads do not divide"),
    ],
)
def test_sizes_that_do_not_fit(change, message):
    sizes = replace(SIZES, **change)
    with pytest.raises(ValueError, match=message):
        MultiModalTransformer(sizes, build_bert(sizes.bert))


def test_inputs_that_do_not_fit():
    model = tiny_model()
    batch = video_batch()
    with pytest.raises(ValueError, match="maxpool lacks s3d; the model's experts are ocr, s3d, vggish"):
        model.encode_video(**(batch | {"maxpool": {k: v for k, v in batch["maxpool"].items() if k != "s3d"}}))
    with pytest.raises(ValueError, match="present has rgb, which the model has not"):
        model.encode_video(**(batch | {"present": batch["present"] | {"rgb": batch["present"]["s3d"]}}))
    wide = batch["features"] | {"vggish": torch.zeros(6, 5, 128, dtype=torch.float64)}
    with pytest.raises(ValueError, match="features of vggish are 128 wide; the model's are 5"):
        model.encode_video(**(batch | {"features": wide}))
