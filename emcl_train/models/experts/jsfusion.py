"""JSFusion (Yu, Kim and Kim, ECCV 2018) for retrieval: one score for each pair of a video and a caption.

Both sides are encoded once. For a pair, each step of the video is multiplied with each word; a gated network of
convolutions over this plane of steps and words ends in a single number. So there is no embedding that could be compared
quickly: a pair costs 3.9·10⁹ multiply-adds, and 1000 videos × 1000 captions cost that a million times.

**Padding** stands before the steps of a video and behind the words of a caption, and masks shrink with the
convolutions: n valid positions become max(1, n - 2), twice, and max(1, ⌊(n - 1) / 2⌋) by the last one, whose stride is
2. A video keeps the rightmost ones, a caption the leftmost. With 40 steps the last convolution never looks at the
rightmost of its 36 columns, and that is the only valid one which a video of five steps or fewer has left. The score of
such a video is **one and the same number for every caption**, and for all such videos. Six steps are the fewest that
are compared at all. Captions begin at the other end and lose nothing.

**Training** takes the statistics of a batch normalization from one row of the matrix of scores, one video against all
captions of the batch, and moves the running ones once a row. So scores depend in training on which captions share a
batch; evaluation has the running statistics.

Inferred from TensorFlow's defaults, and not compared with a run of the release: batch normalization has an offset and
no scale; the gated features of a video stand before its input where both are put together; initial weights. From
memory: running variances are unbiased, as torch has them, which TensorFlow's fused kernel does for two and four axes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import batch_norm, leaky_relu

from emcl_train.experts.jsfusion import JSFusionSizes
from emcl_train.models.features import ItemTensors, widened

STRIDES = (1, 1, 2)
"""Of the convolutions over steps and words."""
LEAK = 0.2
"""Slope of the leaky ReLU below zero."""
EPS = 0.001
MOMENTUM = 1 - 0.999
"""What is new in running statistics: TensorFlow counts what stays."""
FORGET_BIAS = 1.0
"""What TensorFlow's LSTM adds to the forget gate whenever it runs; it is in no weight."""
PAIRS_AT_ONCE = 32
"""Pairs that are in memory together, in evaluation: each has several planes, of 3.3 MB at the paper's sizes."""
NO_EMCL = (
    "EMCL cannot act on JSFusion: it has one score for each pair of a video and a caption, and no rows of features "
    "that are compared; pass --emcl.mode off. What EMCL could act on are the outputs of the two encoders, "
    "[videos · 40, 512] and [captions · 40, 512], before they are multiplied: another system, which nobody published"
)
"""What to say where somebody asks for both."""


@dataclass(frozen=True)
class JSFusionVideo(ItemTensors):
    """Encoded steps of B videos, zeros where there is none."""

    steps: Float[Tensor, "B V D"]
    mask: Bool[Tensor, "B V"]


@dataclass(frozen=True)
class JSFusionText(ItemTensors):
    """Encoded words of B captions, zeros where there is none."""

    words: Float[Tensor, "B W D"]
    mask: Bool[Tensor, "B W"]


class JSFusion(nn.Module):
    """The retrieval model.

    Args:
        sizes: of everything in it.
    """

    def __init__(self, sizes: JSFusionSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.video_encoder = VideoEncoder(sizes)
        self.text_encoder = TextEncoder(sizes)
        self.fusion = Fusion(sizes)

    def encode_video(self, features: Float[Tensor, "B V C"], mask: Bool[Tensor, "B V"]) -> JSFusionVideo:
        """The steps of each video.

        Args:
            features: steps at the end, whatever before them.
            mask: which are steps.
        """
        self._require_shape(features.shape[1:], (self.sizes.steps, self.sizes.features), "features")
        return JSFusionVideo(widened(self.video_encoder(features, mask)), mask)

    def encode_text(self, word_ids: Int64[Tensor, "B W"], mask: Bool[Tensor, "B W"]) -> JSFusionText:
        """The words of each caption.

        Args:
            word_ids: words at the beginning, 0 behind them.
            mask: which are words.
        """
        self._require_shape(word_ids.shape[1:], (self.sizes.words,), "word_ids")
        return JSFusionText(widened(self.text_encoder(word_ids, mask)), mask)

    def scores(
        self, video: JSFusionVideo, text: JSFusionText, *, pairs_at_once: int = PAIRS_AT_ONCE
    ) -> Float[Tensor, "V T"]:
        """Each video with each caption.

        Args:
            video: one row of the result each.
            text: one column each.
            pairs_at_once: how many are in memory together. It bounds evaluation alone: in training a row is of a piece.

        Raises:
            ValueError: in training, a row of one caption, which has no statistics.
        """
        if pairs_at_once < 1:
            raise ValueError(f"pairs_at_once is {pairs_at_once}, expected 1 or more")
        if self.training and len(text) < 2:
            raise ValueError(
                "scores in training need two captions or more: batch normalization takes its statistics from one video "
                "with all captions; pass a larger batch, or call eval()"
            )
        if not len(video) or not len(text):
            return video.steps.new_zeros(len(video), len(text))

        captions = text.split(len(text) if self.training else pairs_at_once)
        return torch.stack([torch.cat(list(self._row(one, captions))) for one in video.split(1)])

    def _row(self, video: JSFusionVideo, captions: list[JSFusionText]) -> Iterator[Float[Tensor, " T"]]:
        """One video with all captions."""
        for some in captions:
            yield self.fusion(video, some)

    @staticmethod
    def _require_shape(found: torch.Size, expected: tuple[int, ...], name: str) -> None:
        if tuple(found) != expected:
            raise ValueError(
                f"{name} are of shape {list(found)} each, and the model was built for {list(expected)}; MSR-VTT's file "
                f"has 2048 channels, that of LSMDC with sound 2176"
            )


class VideoEncoder(nn.Module):
    """Three convolutions over time, half of the result gating the other half, beside what came in."""

    def __init__(self, sizes: JSFusionSizes) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList()
        for width in (sizes.features, sizes.video_channels, sizes.video_channels):
            convolution = nn.Conv1d(width, sizes.video_channels, 3, padding="same")
            _start_convolution(convolution)
            self.convolutions.append(convolution)
        self.join = NormalizedLinear(sizes.video_channels // 2 + sizes.features, sizes.width)

    def forward(self, features: Float[Tensor, "B V C"], mask: Bool[Tensor, "B V"]) -> Float[Tensor, "B V D"]:
        # What is no step may hold anything, NaN too, which a product with zero would keep.
        features = features.masked_fill(~mask.unsqueeze(-1), 0.0)

        # Biases reach padding, and from there the step next to it, as in the release.
        hidden = features.mT  # [B, C, V]
        for convolution in self.convolutions:
            hidden = torch.relu(convolution(hidden))
        content, gate = hidden.mT.chunk(2, dim=-1)

        joined = torch.cat([content * torch.sigmoid(gate), features], dim=-1)
        return torch.tanh(self.join(joined)) * mask.unsqueeze(-1)


class TextEncoder(nn.Module):
    """Word embeddings and one LSTM each way. Both run through padding, which is zeros."""

    def __init__(self, sizes: JSFusionSizes) -> None:
        super().__init__()
        self.embedding = nn.Embedding(sizes.vocabulary, sizes.word_width)
        self.forwards = LSTM(sizes.word_width, sizes.recurrent)
        self.backwards = LSTM(sizes.word_width, sizes.recurrent)
        self.dropout = nn.Dropout(sizes.dropout)
        self.join = NormalizedLinear(2 * sizes.recurrent, sizes.width)

    def forward(self, word_ids: Int64[Tensor, "B W"], mask: Bool[Tensor, "B W"]) -> Float[Tensor, "B W D"]:
        words = self.embedding(word_ids) * mask.unsqueeze(-1)

        # Each direction drops other inputs: in the release each cell has a wrapper of its own.
        ahead = self.forwards(self.dropout(words))
        back = self.backwards(self.dropout(words).flip(1)).flip(1)
        hidden = self.dropout(torch.cat([ahead, back], dim=-1))
        return torch.tanh(self.join(hidden)) * mask.unsqueeze(-1)


class LSTM(nn.Module):
    """An LSTM as TensorFlow has it: one bias, and a forget bias that is added at run time. It starts from zeros.

    Args:
        width_in: of what comes in.
        width: of the state and of what comes out.
    """

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        # Gates one under the other, in torch's order: input, forget, candidate, output.
        self.input_weight = nn.Parameter(torch.empty(4 * width, width_in))
        self.state_weight = nn.Parameter(torch.empty(4 * width, width))
        self.bias = nn.Parameter(torch.zeros(4 * width))
        bound = math.sqrt(6 / (width_in + width + 4 * width))  # both are one matrix in TensorFlow
        for weight in (self.input_weight, self.state_weight):
            nn.init.uniform_(weight, -bound, bound)

    def forward(self, x: Float[Tensor, "B W In"]) -> Float[Tensor, "B W D"]:
        into_gates = x @ self.input_weight.mT + self.bias  # [B, W, 4D]
        hidden = cell = x.new_zeros(x.shape[0], self.state_weight.shape[1])

        outputs = []
        for of_word in into_gates.unbind(1):
            into, forget, candidate, out = (of_word + hidden @ self.state_weight.mT).chunk(4, dim=-1)
            cell = cell * torch.sigmoid(forget + FORGET_BIAS) + torch.sigmoid(into) * torch.tanh(candidate)
            hidden = torch.tanh(cell) * torch.sigmoid(out)
            outputs.append(hidden)
        return torch.stack(outputs, dim=1)


class Fusion(nn.Module):
    """One video and any number of captions to a score for each: the plane of steps and words, and what looks at it."""

    def __init__(self, sizes: JSFusionSizes) -> None:
        super().__init__()
        self.relate = nn.ModuleList(NormalizedLinear(sizes.width, sizes.width) for _ in range(3))
        self.relate_gate = NormalizedLinear(sizes.width, 1)
        self.convolutions = nn.ModuleList(
            GatedConvolution(width, sizes.fused, stride)
            for width, stride in zip((sizes.width, sizes.fused, sizes.fused), STRIDES, strict=True)
        )
        self.layers = nn.ModuleList(
            NormalizedLinear(before, after)
            for before, after in ((sizes.fused, sizes.fused), (sizes.fused, sizes.fused), (sizes.fused, sizes.last))
        )
        self.score = NormalizedLinear(sizes.last, 1)

    def forward(self, video: JSFusionVideo, text: JSFusionText) -> Float[Tensor, " T"]:
        plane = video.steps.unsqueeze(2) * text.words.unsqueeze(1)  # [T, V, W, D]

        # Relate the two. The gate looks at the first of three layers, and closes what comes out of the last.
        related = torch.tanh(self.relate[0](plane))
        gate = torch.sigmoid(self.relate_gate(related))
        for layer in list(self.relate)[1:]:
            related = torch.tanh(layer(related))
        related = related * gate * _both(video.mask, text.mask).unsqueeze(-1)

        # Look at neighbours, in a plane that shrinks.
        hidden = related.movedim(-1, 1)  # [T, D, V, W]
        steps, words = video.mask.sum(1), text.mask.sum(1)
        for convolution, stride in zip(self.convolutions, STRIDES, strict=True):
            hidden = convolution(hidden)
            steps, words = shrunk(steps, stride), shrunk(words, stride)
            rows, columns = hidden.shape[2:]
            hidden = hidden * _both(last_of(rows, steps), first_of(columns, words)).unsqueeze(1)

        hidden = hidden.sum((2, 3)) / (steps * words).unsqueeze(1)  # [T, C]
        for layer in self.layers:
            hidden = leaky_relu(layer(hidden), LEAK)
        return self.score(hidden).squeeze(1)


class GatedConvolution(nn.Module):
    """A convolution over 3 steps × 3 words without padding, times a gate that looks at the same."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.content = nn.Conv2d(width_in, width, 3, stride)
        self.gate = nn.Conv2d(width_in, 1, 3, stride)
        _start_convolution(self.content)
        _start_convolution(self.gate)

    def forward(self, x: Float[Tensor, "T In V W"]) -> Float[Tensor, "T C V2 W2"]:
        return leaky_relu(self.content(x), LEAK) * torch.sigmoid(self.gate(x))


class NormalizedLinear(nn.Module):
    """A linear map without bias, and batch normalization with an offset and no scale, over all axes but the last."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, width, bias=False)
        nn.init.xavier_uniform_(self.linear.weight)
        self.offset = nn.Parameter(torch.zeros(width))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Float[Tensor, "*N In"]) -> Float[Tensor, "*N D"]:
        y = self.linear(x)
        rows = batch_norm(
            y.flatten(0, -2),
            self.running_mean,
            self.running_var,
            bias=self.offset,
            training=self.training,
            momentum=MOMENTUM,
            eps=EPS,
        )
        return rows.view_as(y)


def shrunk(valid: Int64[Tensor, " N"], stride: int) -> Int64[Tensor, " N"]:
    """How many positions stay valid under a convolution of width 3; one always does."""
    return torch.div(valid - 3 + stride, stride, rounding_mode="floor").clamp(min=1)


def first_of(length: int, valid: Int64[Tensor, " N"]) -> Bool[Tensor, "N {length}"]:
    """A mask that is true from the left, as that of words."""
    return torch.arange(length, device=valid.device) < valid.unsqueeze(1)


def last_of(length: int, valid: Int64[Tensor, " N"]) -> Bool[Tensor, "N {length}"]:
    """A mask that is true up to the right end, as that of steps."""
    return first_of(length, valid).flip(1)


def _both(steps: Bool[Tensor, "#T V"], words: Bool[Tensor, "T W"]) -> Bool[Tensor, "T V W"]:
    return steps.unsqueeze(2) & words.unsqueeze(1)


def _start_convolution(convolution: nn.Conv1d | nn.Conv2d) -> None:
    """Xavier's normal weights as slim draws them (from memory: cut off at two deviations), and biases of zero."""
    weight, bias = convolution.weight, convolution.bias
    fans = weight[0].numel() + weight[:, 0].numel()
    deviation = math.sqrt(1.3 * 2 / fans)
    nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation)
    assert bias is not None
    nn.init.zeros_(bias)
