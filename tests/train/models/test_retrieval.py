"""The similarity: EMCL on and off, and EM by blocks."""

import pytest
import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from emcl_train.config import DataConfig, EMCLConfig, ModelConfig, RandomClipConfig, RunConfig
from emcl_train.errors import UserError
from emcl_train.models import BatchFeatures, TextFeatures, VideoFeatures, build_model


class Tokenizer:
    eos_token_id, pad_token_id = 1, 0

    def __len__(self):
        return 20


def model(head="text-conditioned", **emcl):
    torch.manual_seed(0)
    config = RunConfig(
        data=DataConfig(num_frames=4, image_size=16, max_words=7),
        model=ModelConfig(clip="random", random_clip=RandomClipConfig(16, 1, 2, 8), temporal_layers=1, head=head),
        emcl=EMCLConfig(**({"num_bases": 4, "init": "normal", "temperature": 0.1} | emcl)),
    )
    return build_model(config, Tokenizer())


def features(texts=7, clips=5):
    generator = torch.Generator().manual_seed(3)
    mask = torch.ones(clips, 4, dtype=torch.bool)
    mask[0, 2:] = False
    text, frames = torch.randn(texts, 16, generator=generator), torch.randn(clips, 4, 16, generator=generator)
    return TextFeatures(text), VideoFeatures(frames, mask)


def batch(pairs=3, words=7, frames=4):
    """Pairs with ends and padding, as a loader names their tensors."""
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(2, 20, (pairs, words), generator=generator)
    ids[:, 4], ids[:, 5:] = Tokenizer.eos_token_id, Tokenizer.pad_token_id
    return {
        "input_ids": ids,
        "attention_mask": (ids != Tokenizer.pad_token_id).long(),
        "frames": torch.randint(0, 256, (pairs, frames, 3, 16, 16), dtype=torch.uint8, generator=generator),
        "frame_mask": torch.arange(frames) < torch.tensor([[4], [2], [1]])[:pairs],
        "index": torch.arange(pairs),
    }


@pytest.mark.parametrize(("head", "tensors"), [("text-conditioned", 3), ("mean", 3), ("wti", 7)])
def test_what_wraps_a_model_finds_every_tensor_of_its_features(head, tensors):
    """Data parallelism and sharding look for tensors with a gradient in what `forward` returns."""
    found = model(head=head)(batch())
    leaves, structure = tree_flatten(found)
    there = [leaf for leaf in leaves if leaf is not None]
    assert len(there) == tensors + 1 == len(found.tensors())
    assert all(any(leaf is tensor for leaf in there) for tensor in found.tensors())

    back = tree_unflatten(leaves, structure)
    assert type(back) is BatchFeatures
    for side in ("text", "video"):
        before, after = getattr(found, side).tensors(), getattr(back, side).tensors()
        assert before.keys() == after.keys()
        assert all(before[name] is after[name] for name in before)


@pytest.mark.parametrize("head", ["text-conditioned", "mean", "wti"])
def test_stored_features_stand_in_for_the_towers(head):
    net, inputs = model(head=head).eval(), batch()
    expected = net(inputs)
    caption, tokens = net.towers.encode_text(inputs["input_ids"], inputs["attention_mask"], tokens=True)
    frames = net.towers.encode_frames(inputs["frames"])
    net.store_towers()
    stored = {"caption_features": caption, "token_features": tokens, "frame_features": frames}
    found = net({name: inputs[name] for name in ("attention_mask", "frame_mask")} | stored)
    assert all(torch.equal(one, other) for one, other in zip(found.tensors(), expected.tensors(), strict=True))


def test_token_ids_are_no_stored_features():
    net = model()
    net.store_towers()
    with pytest.raises(KeyError, match="caption_features"):
        net(batch())


def test_em_changes_the_similarity_and_leaves_it_a_cosine():
    net = model().eval()
    on, off = net.similarity(*features(), emcl=True), net.similarity(*features(), emcl=False)
    assert on.shape == off.shape == (7, 5)
    assert not torch.allclose(on, off, atol=1e-3)
    assert max(on.abs().max(), off.abs().max()) <= 1 + 1e-5


def test_blocks_are_tiles_in_dataset_order_with_an_em_of_their_own():
    net, (text, video) = model().eval(), features()

    def stream(**options):
        return torch.cat(list(net.similarity_stream(text, video, **options)))

    blocks = stream(emcl=True, em_block=3)
    alone = net.similarity(text[3:6], video[3:5], emcl=True)
    torch.testing.assert_close(blocks[3:6, 3:5], alone)
    whole = net.similarity(text, video, emcl=True)
    assert not torch.allclose(blocks, whole, atol=1e-4)
    torch.testing.assert_close(stream(emcl=True, em_block=100), whole)
    torch.testing.assert_close(stream(emcl=True), whole)
    torch.testing.assert_close(stream(emcl=False), net.similarity(text, video, emcl=False))


def test_only_training_with_em_moves_the_bases():
    net = model()
    before = net.emcl.bases.clone()
    net.similarity(*features(), emcl=False)
    net.eval().similarity(*features(), emcl=True)
    assert torch.equal(net.emcl.bases, before)
    net.train().similarity(*features(), emcl=True)
    assert not torch.equal(net.emcl.bases, before)


def test_the_bases_are_part_of_the_weights():
    assert "emcl.bases" in model().state_dict()


def test_the_logit_scale_is_held_at_one_hundred():
    net = model()
    assert net.logit_scale.item() == pytest.approx(1 / 0.07, rel=1e-3)
    torch.nn.init.constant_(net.towers.clip.logit_scale, 9.0)
    net.hold_logit_scale()
    assert net.logit_scale.item() == pytest.approx(100)


def test_more_bases_than_channels_are_refused():
    with pytest.raises(UserError, match=r"emcl.num_bases is 17, expected 1 to 16.*pass --emcl.num-bases 16"):
        model(num_bases=17)
