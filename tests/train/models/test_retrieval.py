"""The similarity: EMCL on and off, and EM by blocks."""

import pytest
import torch

from emcl_train.config import DataConfig, EMCLConfig, ModelConfig, RandomClipConfig, RunConfig
from emcl_train.errors import UserError
from emcl_train.models import TextFeatures, VideoFeatures, build_model


class Tokenizer:
    eos_token_id, pad_token_id = 1, 0

    def __len__(self):
        return 20


def model(**emcl):
    torch.manual_seed(0)
    config = RunConfig(
        data=DataConfig(num_frames=4, image_size=16, max_words=7),
        model=ModelConfig(clip="random", random_clip=RandomClipConfig(16, 1, 2, 8), temporal_layers=1),
        emcl=EMCLConfig(**({"num_bases": 4, "init": "normal", "temperature": 0.1} | emcl)),
    )
    return build_model(config, Tokenizer())


def features(texts=7, clips=5):
    generator = torch.Generator().manual_seed(3)
    mask = torch.ones(clips, 4, dtype=torch.bool)
    mask[0, 2:] = False
    text, frames = torch.randn(texts, 16, generator=generator), torch.randn(clips, 4, 16, generator=generator)
    return TextFeatures(text), VideoFeatures(frames, mask)


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


def test_the_logit_scale_stops_at_one_hundred():
    net = model()
    assert net.logit_scale.item() == pytest.approx(1 / 0.07, rel=1e-3)
    torch.nn.init.constant_(net.towers.clip.logit_scale, 9.0)
    assert net.logit_scale.item() == 100


def test_more_bases_than_channels_are_refused():
    with pytest.raises(UserError, match=r"emcl.num_bases is 17, expected 1 to 16.*pass --emcl.num-bases 16"):
        model(num_bases=17)
