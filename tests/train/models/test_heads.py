"""The similarity heads: masks are exact, tiles are the whole, and blocks are tiles with an EM of their own."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch

from emcl_kernels import EMCL
from emcl_train.models import TextFeatures, VideoFeatures
from emcl_train.models import em_features as rows
from emcl_train.models.heads import MeanHead, TextConditionedHead, TokenWiseHead, best

WIDTH, WORDS, FRAMES = 16, 5, 4
pytestmark = pytest.mark.usefixtures("one_thread")


def head(name):
    torch.manual_seed(0)
    heads = {
        "text-conditioned": lambda: TextConditionedHead(3.0),
        "mean": MeanHead,
        "wti": lambda: TokenWiseHead(WIDTH),
    }
    made = heads[name]()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def features(made, texts=9, clips=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(texts, WORDS, WIDTH, generator=generator)
    frames = torch.randn(clips, FRAMES, WIDTH, generator=generator)
    words = torch.arange(WORDS) < torch.randint(1, WORDS + 1, (texts, 1), generator=generator)
    valid = torch.randint(1, FRAMES + 1, (clips, 1), generator=generator)
    valid[2] = 1
    mask = torch.arange(FRAMES) < valid
    if not isinstance(made, TokenWiseHead):
        return TextFeatures(tokens[:, 0]), VideoFeatures(frames, mask)
    weights = made.weigh_text(tokens, words), made.weigh_video(frames, mask)
    return TextFeatures(tokens[:, 0], tokens, words, weights[0]), VideoFeatures(frames, mask, weights[1])


def layer(**settings):
    torch.manual_seed(1)
    return EMCL(**({"num_bases": 4, "num_iters": 3, "temperature": 0.1, "init": "normal"} | settings)).eval()


def joined(stream):
    parts = list(stream)
    assert len(parts) == len(stream)
    assert not any(part.requires_grad for part in parts)
    return torch.cat(parts)


@pytest.mark.parametrize(("counts", "expected"), [(False, -1.0), (True, -0.5)])
def test_padding_is_no_partner_unless_it_counts_as_released(counts, expected):
    """A token against a frame that is its opposite, and a place for a second frame: of similarity 0, or none."""
    made = TokenWiseHead(2, padding_counts=counts)
    token = torch.tensor([[[1.0, 0.0]]])
    frames = torch.tensor([[[-2.0, 0.0], [0.3, 0.4]]])
    text = TextFeatures(token[:, 0], token, torch.tensor([[True]]), torch.tensor([[1.0]]))
    video = VideoFeatures(frames, torch.tensor([[True, False]]), torch.tensor([[1.0, 0.0]]))
    assert made.similarity(text, video, None, None).item() == pytest.approx(expected)

    # So is the partner of the pair that should agree channel by channel.
    of_token, of_frame = made.pairs(text, video)
    partner = [0.6, 0.8] if counts else [-1.0, 0.0]
    torch.testing.assert_close(of_token.second, torch.tensor([partner]))
    torch.testing.assert_close(of_frame.second, torch.tensor([[1.0, 0.0]]))


@pytest.mark.parametrize("tile", [1, 200, 1 << 22])
@pytest.mark.parametrize("scale", ["release", "relative"])
@pytest.mark.parametrize("name", ["mean", "wti"])
def test_the_stream_gives_the_rows_of_the_similarity(monkeypatch, name, scale, tile):
    made, emcl = head(name), layer(scale=scale, residual_weight=0.7)
    text, video = features(made)
    with torch.no_grad():
        on, off = made.similarity(text, video, emcl, None), made.similarity(text, video, None, None)
    monkeypatch.setattr(rows, "TILE", tile)
    torch.testing.assert_close(joined(made.stream(text, video, emcl, None)), on, atol=1e-5, rtol=0)
    torch.testing.assert_close(joined(made.stream(text, video, None, None)), off, atol=1e-5, rtol=0)
    torch.testing.assert_close(joined(made.stream(text, video, None, 3)), off, atol=1e-5, rtol=0)
    assert (on - off).abs().max() > 0.01


@pytest.mark.parametrize("tile", [1, 1 << 22])
@pytest.mark.parametrize("block", [1, 3, 7, 100])
@pytest.mark.parametrize("name", ["mean", "wti"])
def test_each_block_is_an_em_of_its_own(monkeypatch, name, block, tile):
    monkeypatch.setattr(rows, "TILE", tile)
    made, emcl = head(name), layer()
    text, video = features(made)
    found = joined(made.stream(text, video, emcl, block))
    for a in range(0, 9, block):
        for b in range(0, 7, block):
            part = slice(a, a + block), slice(b, b + block)
            with torch.no_grad():
                alone = made.similarity(text[part[0]], video[part[1]], emcl, None)
            torch.testing.assert_close(found[part], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("parts", [(4, 9), (1, 8, 9)])
@pytest.mark.parametrize("tile", [200, 1 << 22])
@pytest.mark.parametrize("name", ["text-conditioned", "mean", "wti"])
def test_processes_with_captions_of_their_own_give_the_rows_of_one(monkeypatch, name, tile, parts):
    """Threads stand for the processes. What each adds up is what `similarity` adds up."""
    monkeypatch.setattr(rows, "TILE", tile)
    made, emcl = head(name), layer(scale="relative", residual_weight=0.7)
    text, video = features(made)
    expected = joined(made.stream(text, video, emcl, None))
    meeting = threading.Barrier(len(parts), timeout=60)
    given = {}

    def of_process(number, part):
        def add_up(vector):
            given[number] = vector
            meeting.wait()
            return sum(given.values())

        return joined(made.stream(text[part], video, emcl, None, add_up))

    bounds = [slice(start, end) for start, end in pairwise([0, *parts])]
    with ThreadPoolExecutor() as pool:
        found = torch.cat(list(pool.map(of_process, range(len(parts)), bounds)))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert {vector.shape for vector in given.values()} == {(16 * 16 + 16 + 1,)}


def test_a_block_has_a_caption_and_a_clip():
    made = head("mean")
    with pytest.raises(ValueError, match="em_block is 0; expected at least 1"):
        made.stream(*features(made), layer(), 0)


@pytest.mark.parametrize("block", [None, 3])
@pytest.mark.parametrize("emcl", [None, layer()], ids=["off", "on"])
@pytest.mark.parametrize("name", ["mean", "wti"])
def test_padding_is_never_read(name, emcl, block):
    made = head(name)
    text, video = features(made)
    broken = VideoFeatures(
        video.frames.masked_fill(~video.frame_mask[..., None], torch.nan), video.frame_mask, video.frame_weights
    )
    words = text
    if text.tokens is not None:
        nan = text.tokens.masked_fill(~text.token_mask[..., None], torch.nan)
        words = TextFeatures(text.caption, nan, text.token_mask, text.token_weights)
    torch.testing.assert_close(
        joined(made.stream(words, broken, emcl, block)), joined(made.stream(text, video, emcl, block)), rtol=0, atol=0
    )
    if emcl is None:
        shorter = VideoFeatures(
            video.frames[2:3, :1], video.frame_mask[2:3, :1], None if name == "mean" else torch.ones(1, 1)
        )
        assert video.frame_mask[2].tolist() == [True, False, False, False]
        alone = joined(made.stream(text, shorter, None, None))
        torch.testing.assert_close(alone[:, 0], joined(made.stream(text, video, None, None))[:, 2])


@pytest.mark.parametrize("name", ["mean", "wti"])
def test_a_clip_of_padding_alone_has_no_similarity(name):
    made = head(name)
    text, video = features(made)
    empty = VideoFeatures(video.frames, torch.zeros_like(video.frame_mask))
    if name == "wti":
        empty = VideoFeatures(video.frames, empty.frame_mask, made.weigh_video(video.frames, empty.frame_mask))
    for emcl in (None, layer()):
        with torch.no_grad():
            assert torch.equal(made.similarity(text, empty, emcl, None), torch.zeros(9, 7))


def test_interaction_by_hand():
    """Two tokens, two frames: each token's best frame and each frame's best token, by their weights."""
    made = TokenWiseHead(2)
    tokens = torch.tensor([[[2.0, 0.0], [0.0, 3.0]]])
    frames = torch.tensor([[[1.0, 0.0], [0.6, 0.8]]])
    yes = torch.ones(1, 2, dtype=torch.bool)
    text = TextFeatures(tokens[:, 0], tokens, yes, torch.tensor([[0.25, 0.75]]))
    video = VideoFeatures(frames, yes, torch.tensor([[0.5, 0.5]]))
    # e = [[1, 0.6], [0, 0.8]]: tokens find 1 and 0.8, frames 1 and 0.8.
    expected = (0.25 * 1 + 0.75 * 0.8 + 0.5 * 1 + 0.5 * 0.8) / 2
    assert made.similarity(text, video, None, None).item() == pytest.approx(expected)


def test_mean_pooling_by_hand():
    frames = torch.tensor([[[5.0, 0.0], [0.0, 2.0], [9.0, 9.0]]])
    video = VideoFeatures(frames, torch.tensor([[True, True, False]]))
    text = TextFeatures(torch.tensor([[3.0, 0.0]]))
    assert MeanHead().similarity(text, video, None, None).item() == pytest.approx(2**-0.5)


def test_features_without_tokens_are_refused():
    made, mean = head("wti"), head("mean")
    text, video = features(mean)
    with pytest.raises(ValueError, match="text features have no tokens"):
        made.similarity(text, video, None, None)


@pytest.mark.parametrize("name", ["mean", "wti"])
def test_streams_leave_the_bases_alone_and_training_moves_them(name):
    made, emcl = head(name), layer().train()
    before = emcl.bases.clone()
    text, video = features(made)
    joined(made.stream(text, video, emcl, None))
    joined(made.stream(text, video, emcl, 3))
    assert torch.equal(emcl.bases, before)
    made.similarity(text, video, emcl, None)
    assert not torch.equal(emcl.bases, before)


@pytest.mark.parametrize("gradient", ["identity", "linear", "full"])
@pytest.mark.parametrize("name", ["mean", "wti"])
def test_gradients_by_finite_differences(name, gradient):
    """In "full" the gradient is that of the value; the others leave out what goes through EM."""
    made, emcl = head(name), layer(gradient=gradient, temperature=1.0).double()
    text, video = features(made, 3, 3)
    frames = video.frames.double().requires_grad_()
    double = {key: value.double() if value.is_floating_point() else value for key, value in text.tensors().items()}
    text = TextFeatures(**{key: value.detach() for key, value in double.items()})
    weights = None if video.frame_weights is None else video.frame_weights.double().detach()

    def value(frames):
        return made.similarity(text, VideoFeatures(frames, video.frame_mask, weights), emcl, None).square().sum()

    if gradient == "full":
        assert torch.autograd.gradcheck(value, (frames,), atol=1e-6)
    else:
        value(frames).backward()
        step = torch.randn_like(frames) * 1e-6
        slope = (value(frames + step) - value(frames - step)).item() / 2
        assert (frames.grad * step).sum().item() != pytest.approx(slope, rel=1e-4)


def test_only_a_row_of_padding_is_brought_to_zero():
    """NaN and infinity are the sign of broken features, and stay."""
    products = torch.tensor([[1.0, -2.0], [torch.nan, 1.0], [torch.inf, 1.0], [5.0, 6.0]])
    mask = torch.tensor([[False, True], [True, True], [True, True], [False, False]])
    expected = torch.tensor([-2.0, torch.nan, torch.inf, 0.0])
    torch.testing.assert_close(best(products, mask, dim=-1), expected, equal_nan=True)
