"""CLIP2Video's aggregation and head against numpy of the specification, in float64; their sizes; EM at inference."""

import clip2video_oracle as oracle
import numpy as np
import pytest
import torch

from emcl_kernels import EMCL
from emcl_train.config import ModelConfig, RandomClipConfig, RunConfig, check_config
from emcl_train.errors import UserError
from emcl_train.evaluation.encode import Embeddings
from emcl_train.models import TextFeatures, VideoFeatures
from emcl_train.models.clip import Vocabulary, build_towers
from emcl_train.models.clip2video import AlignedHead, DifferenceAggregation, ProjectedDifferenceAggregation
from emcl_train.models.heads import build_head
from emcl_train.models.temporal import build_temporal
from emcl_train.training.losses import symmetric_info_nce
from emcl_train.weights.clip2video import BLOCKS, NAMES, POSITIONS
from emcl_train.weights.openai import layer_to_openai

WIDTH, HEADS, LAYERS, FRAMES, WORDS = 16, 2, 2, 5, 6
pytestmark = pytest.mark.usefixtures("one_thread")


def test_numbers_of_the_aligned_embeddings_are_looked_at():
    rows, mask = torch.ones(2, 3), torch.ones(2, 1, dtype=torch.bool)
    broken = torch.full((2, 3), torch.inf)
    text = TextFeatures(rows, aligned_tokens=broken)
    video = VideoFeatures(rows[:, None], mask, aligned_frames=broken)
    for features in (text, video):
        assert any(column is broken for column in features.compared())


class Parts(torch.nn.Module):
    """An aggregation and its head under the names that they have in a model."""

    def __init__(self, projected=False):
        super().__init__()
        kind = ProjectedDifferenceAggregation if projected else DifferenceAggregation
        self.temporal = kind(WIDTH, layers=LAYERS, heads=HEADS, hidden_act="quick_gelu", num_positions=9)
        self.head = AlignedHead(WIDTH, heads=HEADS)
        generator = torch.Generator().manual_seed(3)
        self.double().eval()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))

    def features(self, captions, tokens, words, frames, mask):
        text = TextFeatures(captions, aligned_tokens=self.head.align_text(tokens, words))
        aligned = self.head.align_video(frames, mask, self.temporal)
        return text, VideoFeatures(self.temporal(frames, mask), mask, None, aligned)

    def released(self):
        """Its weights under the authors' names, renamed here from the specification's table."""
        state = {name: value.detach() for name, value in self.state_dict().items()}
        blocks = BLOCKS | {f"temporal.layers.{i}": f"transformerClip.resblocks.{i}" for i in range(LAYERS)}
        found = {"frame_position_embeddings.weight": state[POSITIONS]}
        for name, value in state.items():
            inside = next((block for block in blocks if name.startswith(f"{block}.")), None)
            if inside is not None:
                found |= layer_to_openai({name.removeprefix(f"{inside}."): value}, state, inside, blocks[inside])
            elif name != POSITIONS:
                found[NAMES[name]] = value
        return {name: value.numpy() for name, value in found.items()}


def inputs(texts=7, clips=7, seed=0, frames=FRAMES):
    generator = torch.Generator().manual_seed(seed)
    captions = torch.randn(texts, WIDTH, generator=generator, dtype=torch.float64)
    tokens = torch.randn(texts, WORDS, WIDTH, generator=generator, dtype=torch.float64)
    words = torch.arange(WORDS) < torch.randint(2, WORDS + 1, (texts, 1), generator=generator)
    of_frames = torch.randn(clips, frames, WIDTH, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, frames + 1, (clips, 1), generator=generator)
    lengths[:4] = torch.tensor([[1], [2], [3], [frames]]).clamp(max=frames)
    return captions, tokens, words, of_frames, torch.arange(frames) < lengths


def by_the_oracle(parts, captions, tokens, words, frames, mask, **settings):
    w = parts.released()
    captions, tokens, words, frames, mask = (x.numpy() for x in (captions, tokens, words, frames, mask))
    texts = np.array([oracle.unit(x) for x in captions])
    of_clips = [oracle.temporal_frames(w, f, m, HEADS, LAYERS) for f, m in zip(frames, mask, strict=True)]
    clips = np.array([oracle.whole_clip(t, m) for t, m in zip(of_clips, mask, strict=True)])
    of_text = np.array([oracle.aligned_caption(w, t, list(m)) for t, m in zip(tokens, words, strict=True)])
    of_video = np.array([oracle.aligned_clip(w, f, list(m), HEADS) for f, m in zip(frames, mask, strict=True)])
    return oracle.whole_similarity(texts, clips, **settings), of_text @ of_video.T


def close(found, expected):
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("frames", [1, 2, 5, 6])
@pytest.mark.parametrize("projected", [False, True], ids=["block", "projection"])
def test_the_head_is_the_specifications(projected, frames):
    parts, given = Parts(projected), inputs(frames=frames)
    text, video = parts.features(*given)
    of_whole, of_aligned = parts.head.similarities(text, video, None, None)
    expected = by_the_oracle(parts, *given)
    close(of_whole, expected[0])
    close(of_aligned, expected[1])
    close(parts.head.similarity(text, video, None, None), (expected[0] + expected[1]) / 2)


@pytest.mark.parametrize("projected", [False, True], ids=["block", "projection"])
def test_differences_and_frames_are_the_specifications(projected):
    parts = Parts(projected)
    _, _, _, frames, mask = inputs()
    w = parts.released()
    found = parts.temporal.tokens.differences(frames, mask)
    tokens, token_mask = parts.temporal.tokens(frames, mask)
    outputs = parts.temporal(frames, mask)
    for i, (x, m) in enumerate(zip(frames.numpy(), mask.numpy(), strict=True)):
        close(found[i], oracle.difference_tokens(w, x, m, HEADS))
        expected, seen = oracle.interleaved(w, x, m, HEADS)
        close(tokens[i], expected)
        assert token_mask[i].tolist() == seen
        close(outputs[i], oracle.temporal_frames(w, x, m, HEADS, LAYERS))


@pytest.mark.parametrize("block", [None, 3, 64])
def test_em_at_inference_acts_on_the_whole_alone_and_leaves_lengths(block):
    """K 7, T 10, λ 0.1, β 4, in blocks as released (there of 64) and as one map; no cosine comes of it."""
    parts, given = Parts(), inputs()
    torch.manual_seed(1)
    emcl = EMCL(num_bases=7, num_iters=10, temperature=0.1, residual_weight=4.0).double().eval()
    text, video = parts.features(*given)
    settings = {"start": emcl.bases.numpy(), "num_iters": 10, "temperature": 0.1, "weight": 4.0}
    of_whole, of_aligned = by_the_oracle(parts, *given, block=block, **settings)

    stream = parts.head.stream(text, video, emcl, block)
    rows = list(stream)
    assert len(rows) == len(stream)
    close(torch.cat(rows), (of_whole + of_aligned) / 2)
    if block != 3:
        close(parts.head.similarity(text, video, emcl, None), (of_whole + of_aligned) / 2)
        assert of_whole.max() > 1.5
    without = torch.cat(list(parts.head.stream(text, video, None, None)))
    close(without, sum(by_the_oracle(parts, *given)) / 2)


def test_the_loss_is_the_mean_of_that_of_both_similarities():
    parts, given = Parts(), inputs()
    text, video = parts.features(*given)
    scale = torch.tensor(7.0, dtype=torch.float64)
    losses = [symmetric_info_nce(similarity, scale) for similarity in parts.head.similarities(text, video, None, None)]
    expected = [oracle.info_nce(7.0 * similarity) for similarity in by_the_oracle(parts, *given)]
    close(torch.stack(losses).mean(), np.mean(expected))


def test_the_difference_at_the_border_of_padding_reads_padding():
    """As released: it counts as a token, and is made of a frame of padding, which counts nowhere else."""
    parts = Parts()
    captions, tokens, words, frames, _ = inputs()
    frames = frames[:1]
    mask = torch.tensor([[True, True, False, False, False]])
    changed = frames.clone()
    changed[:, 2] += torch.linspace(-1, 1, WIDTH)
    later = frames.clone()
    later[:, 3:] += torch.linspace(-1, 1, WIDTH)
    first, second, third = (
        parts.features(captions, tokens, words, some, mask)[1].frames[:, :2] for some in (frames, changed, later)
    )
    assert (first - second).abs().max() > 1e-4
    torch.testing.assert_close(first, third, rtol=0, atol=0)


def test_a_caption_of_its_start_alone_and_padding_of_nan_are_no_trouble():
    parts = Parts()
    _, tokens, words, _, _ = inputs()
    broken = tokens.masked_fill(~words[..., None], torch.nan)
    torch.testing.assert_close(
        parts.head.align_text(broken, words), parts.head.align_text(tokens, words), rtol=0, atol=0
    )
    nothing = torch.zeros_like(words)
    assert torch.equal(parts.head.align_text(tokens, nothing), torch.zeros(len(tokens), WIDTH, dtype=torch.float64))


def of_clip(temporal="difference", *, clip="openai/clip-vit-base-patch32", width=16, heads=2, layers=2, words=7):
    torch.manual_seed(0)
    config = ModelConfig(
        clip="random",
        temporal=temporal,
        temporal_layers=layers,
        temporal_eps=1e-5,
        head="aligned",
        random_clip=RandomClipConfig(width, layers, heads, 8),
    )
    towers = build_towers(config, Vocabulary(20, 1, 0), image_size=16, max_words=words)
    config.clip = clip
    made = build_temporal(config, towers.clip, width=width, num_frames=5)
    return made, build_head(config, towers.clip, width=width), towers.clip.text_model


@pytest.mark.parametrize(("temporal", "expected"), [("difference", 18_960_896), ("difference-mlp", 16_070_656)])
def test_the_parameters_are_as_many_as_published(temporal, expected):
    """18.96 million beside CLIP, of four temporal layers, two single blocks, 77 positions, and five centres twice."""
    made, head, _ = of_clip(temporal, width=512, heads=8, layers=4, words=77)
    assert sum(p.numel() for module in (made, head) for p in module.parameters()) == expected


def test_it_starts_from_the_text_towers_blocks_and_positions():
    made, head, text = of_clip()
    layers = text.encoder.layers
    positions = text.embeddings.position_embedding.weight
    assert torch.equal(made.tokens.position_embedding, positions)
    assert torch.equal(made.tokens.type_embedding, positions[:2])
    for block, source in ((made.tokens.block, 0), (made.layers[0], 0), (made.layers[1], 1), (head.block, 0)):
        for name, value in block.state_dict().items():
            assert torch.equal(value, layers[source].state_dict()[name])
    assert 0.09 < head.centers.std().item() < 0.16
    assert 0.09 < head.center_weight.std().item() < 0.16
    random, _, text = of_clip(clip="random")
    assert not torch.equal(random.tokens.position_embedding, text.embeddings.position_embedding.weight)


@pytest.mark.parametrize("temporal", ["mean", "lstm", "transformer"])
def test_the_head_needs_differences(temporal):
    config = RunConfig(model=ModelConfig(head="aligned", temporal=temporal))
    with pytest.raises(
        UserError, match=f"model.temporal is {temporal}, expected difference or difference-mlp, which the"
    ):
        check_config(config)
    parts = Parts()
    _, _, _, frames, mask = inputs()
    with pytest.raises(TypeError, match="needs an aggregation of differences, got Linear"):
        parts.head.align_video(frames, mask, torch.nn.Linear(1, 1))


def test_features_without_aligned_embeddings_are_refused():
    parts = Parts()
    captions, _, _, frames, mask = inputs()
    with pytest.raises(ValueError, match="no aligned embeddings"):
        parts.head.similarity(TextFeatures(captions), VideoFeatures(frames, mask), None, None)


def test_both_aligned_embeddings_are_kept_with_the_others():
    """Under names of their own: a file of embeddings has those of captions and clips side by side."""
    parts = Parts()
    text, video = parts.features(*inputs())
    tensors = Embeddings(text, video, torch.arange(7)).tensors()
    assert torch.equal(tensors["aligned_tokens"], text.aligned_tokens)
    assert torch.equal(tensors["aligned_frames"], video.aligned_frames)
    assert len(VideoFeatures.cat(video.split(3))) == 7
