"""Similarity heads: how the features of a caption and of a clip become one number, without EMCL and with it.

What a head learns is applied per caption or per clip (`weigh_text`, `weigh_video`), inside the forward pass that data
parallelism wraps; comparing takes no weights at all, and happens once over the features of all processes.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import CLIPModel

from emcl_kernels import EMCL, SimilarityStream, pooled_cosine_similarity, pooled_cosine_similarity_stream
from emcl_train.config import ModelConfig
from emcl_train.kinds import HEADS, class_of
from emcl_train.models.em_features import AddUp, UnitRows, rows_similarity, rows_stream, unit_rows
from emcl_train.models.features import TextFeatures, VideoFeatures, widened


class Pairs(NamedTuple):
    """Rows that should agree channel by channel: one pair of rows, and its share in the batch, for each entry."""

    first: Float[Tensor, "P D"]
    second: Float[Tensor, "P D"]
    share: Float[Tensor, " P"]


class Head(nn.Module):
    """What a model asks of its head. `emcl_train/kinds.py` registers each one."""

    needs_tokens = False
    """Whether it compares every token of a caption, as its registration says."""
    decorrelates = False
    """Whether `train.decorrelation_weight` is for it; it then has `pairs`."""

    @classmethod
    def of_config(cls, config: ModelConfig, clip: CLIPModel | None, *, width: int) -> "Head":
        """The head that these settings ask for.

        Args:
            config: of the model.
            clip: whose text layers a head may take over if they are trained; None for towers of another family.
            width: of the features.
        """
        raise NotImplementedError

    def weigh_text(self, tokens: Float[Tensor, "A L D"], mask: Bool[Tensor, "A L"]) -> Float[Tensor, "A L"] | None:
        """The share of each token in its caption, if the head learns that."""
        return None

    def weigh_video(self, frames: Float[Tensor, "B F D"], mask: Bool[Tensor, "B F"]) -> Float[Tensor, "B F"] | None:
        """The share of each frame in its clip, if the head learns that."""
        return None

    def align_text(self, tokens: Float[Tensor, "A L D"], mask: Bool[Tensor, "A L"]) -> Float[Tensor, "A D"] | None:
        """One embedding of each caption's tokens, if the head compares those; tokens are then not kept."""
        return None

    def align_video(
        self, frames: Float[Tensor, "B F D"], mask: Bool[Tensor, "B F"], temporal: nn.Module
    ) -> Float[Tensor, "B D"] | None:
        """One embedding of each clip's frames, which are those before the temporal aggregation."""
        return None

    def pairs(self, text: TextFeatures, video: VideoFeatures) -> list[Pairs]:
        """Rows that should agree channel by channel."""
        raise NotImplementedError

    def similarities(
        self, text: TextFeatures, video: VideoFeatures, emcl: EMCL | None, add_up: AddUp | None
    ) -> list[Tensor]:
        """Those that the loss is the mean over, [A, B] each."""
        return [self.similarity(text, video, emcl, add_up)]

    def similarity(
        self, text: TextFeatures, video: VideoFeatures, emcl: EMCL | None, add_up: AddUp | None
    ) -> Float[Tensor, "A B"]:
        """Each caption with each clip; see `RetrievalModel.similarity`."""
        raise NotImplementedError

    def stream(
        self,
        text: TextFeatures,
        video: VideoFeatures,
        emcl: EMCL | None,
        em_block: int | None,
        add_up: AddUp | None = None,
    ) -> SimilarityStream:
        """Its rows in bounded memory; see `RetrievalModel.similarity_stream`."""
        raise NotImplementedError


class TextConditionedHead(Head):
    """EMCL-Net: frames are pooled for each text. EM runs over all pooled pairs and texts, then the cosine is taken."""

    def __init__(self, pooling_temperature: float) -> None:
        super().__init__()
        self.pooling_temperature = pooling_temperature

    @classmethod
    def of_config(cls, config: ModelConfig, clip: CLIPModel | None, *, width: int) -> "TextConditionedHead":
        return cls(config.pooling_temperature)

    def similarity(
        self, text: TextFeatures, video: VideoFeatures, emcl: EMCL | None, add_up: AddUp | None
    ) -> Float[Tensor, "A B"]:
        inputs = (text.caption, video.frames, video.frame_mask)
        temperature = self.pooling_temperature

        if emcl is None:
            return pooled_cosine_similarity(*inputs, pooling_temperature=temperature)
        return emcl.pooled_similarity(*inputs, pooling_temperature=temperature, add_up=add_up)

    def stream(
        self,
        text: TextFeatures,
        video: VideoFeatures,
        emcl: EMCL | None,
        em_block: int | None,
        add_up: AddUp | None = None,
    ) -> SimilarityStream:
        inputs = (text.caption, video.frames, video.frame_mask)
        temperature = self.pooling_temperature

        if emcl is None:
            return pooled_cosine_similarity_stream(*inputs, pooling_temperature=temperature)
        return emcl.pooled_similarity_stream(*inputs, em_block=em_block, pooling_temperature=temperature, add_up=add_up)


class RowHead(Head):
    """A head that compares unit rows of captions with unit rows of clips, one or several of each.

    EM runs over exactly those rows, padding left out; what it makes of them is brought to length one again.
    """

    unit_after_em = True
    """Whether it is; else lengths are left as they come."""

    def text_rows(self, text: TextFeatures) -> UnitRows:
        """The rows of each caption."""
        raise NotImplementedError

    def video_rows(self, video: VideoFeatures) -> UnitRows:
        """The rows of each clip."""
        raise NotImplementedError

    def compare(self, text: UnitRows, video: UnitRows) -> Float[Tensor, "*G A B"]:
        """Similarities of all captions with all clips, from their rows."""
        raise NotImplementedError

    def similarity(
        self, text: TextFeatures, video: VideoFeatures, emcl: EMCL | None, add_up: AddUp | None
    ) -> Float[Tensor, "A B"]:
        rows = self.text_rows(text), self.video_rows(video)
        return rows_similarity(*rows, self.compare, emcl, add_up, unit=self.unit_after_em)

    def stream(
        self,
        text: TextFeatures,
        video: VideoFeatures,
        emcl: EMCL | None,
        em_block: int | None,
        add_up: AddUp | None = None,
    ) -> SimilarityStream:
        text_side = (text, self.text_rows)
        video_side = (video, self.video_rows)
        return rows_stream(
            text_side,
            video_side,
            self.compare,
            emcl=emcl,
            em_block=em_block,
            unit=self.unit_after_em,
            add_up=add_up,
        )


class MeanHead(RowHead):
    """CLIP4Clip: the cosine of the text with the mean of the clip's unit frames."""

    @classmethod
    def of_config(cls, config: ModelConfig, clip: CLIPModel | None, *, width: int) -> "MeanHead":
        return cls()

    def text_rows(self, text: TextFeatures) -> UnitRows:
        return UnitRows(normalize(text.caption, dim=-1).unsqueeze(1))

    def video_rows(self, video: VideoFeatures) -> UnitRows:
        frames = unit_rows(video.frames, video.frame_mask)
        count = video.frame_mask.sum(1, keepdim=True).clamp_min(1)
        return UnitRows(normalize(frames.sum(1) / count, dim=-1).unsqueeze(1))

    def compare(self, text: UnitRows, video: UnitRows) -> Float[Tensor, "*G A B"]:
        return text.values.squeeze(-2) @ video.values.squeeze(-2).mT

    def pairs(self, text: TextFeatures, video: VideoFeatures) -> list[Pairs]:
        """Each caption with its clip: caption i with clip i."""
        first = self.text_rows(text).values.squeeze(1)
        second = self.video_rows(video).values.squeeze(1)
        return [Pairs(first, second, first.new_ones(len(first)))]


class TokenWiseHead(RowHead):
    """DRL's weighted token-wise interaction (WTI).

    Every token takes its best frame and every frame its best token; similarity is the weighted mean of the former plus
    that of the latter, halved. Weights are a softmax over what a small network says of each token, or frame, alone.

    Args:
        width: of the features.
        padding_counts: whether a padding token or frame is one to choose from, of similarity 0, as DRL was released; it
            is the best where all others are negative.
    """

    needs_tokens = True
    decorrelates = True

    def __init__(self, width: int, *, padding_counts: bool = False) -> None:
        super().__init__()
        self.of_padding = 0.0 if padding_counts else -torch.inf
        self.text_weight = weight_network(width)
        self.video_weight = weight_network(width)

    @classmethod
    def of_config(cls, config: ModelConfig, clip: CLIPModel | None, *, width: int) -> "TokenWiseHead":
        return cls(width, padding_counts=config.wti_padding == "zero")

    def weigh_text(self, tokens: Float[Tensor, "A L D"], mask: Bool[Tensor, "A L"]) -> Float[Tensor, "A L"]:
        """The share of each token in its caption; they sum to one."""
        return masked_softmax(widened(self.text_weight(tokens).squeeze(-1)), mask)

    def weigh_video(self, frames: Float[Tensor, "B F D"], mask: Bool[Tensor, "B F"]) -> Float[Tensor, "B F"]:
        """The share of each frame in its clip; they sum to one."""
        return masked_softmax(widened(self.video_weight(frames).squeeze(-1)), mask)

    def text_rows(self, text: TextFeatures) -> UnitRows:
        if text.tokens is None or text.token_mask is None:
            raise ValueError("text features have no tokens, which this head compares; encode them with this model")
        return UnitRows(unit_rows(text.tokens, text.token_mask), text.token_mask, text.token_weights)

    def video_rows(self, video: VideoFeatures) -> UnitRows:
        return UnitRows(unit_rows(video.frames, video.frame_mask), video.frame_mask, video.frame_weights)

    def compare(self, text: UnitRows, video: UnitRows) -> Float[Tensor, "*G A B"]:
        text_mask, text_shares = mask_and_shares(text)
        video_mask, video_shares = mask_and_shares(video)

        # Every token with every frame.
        products = text.flat @ video.flat.mT  # [*, A·L, B·F]
        products = products.unflatten(-1, video.values.shape[-3:-1]).unflatten(-3, text.values.shape[-3:-1])

        # Each token's best frame, and each frame's best token.
        of_tokens = best(products, video_mask[..., None, None, :, :], self.of_padding, dim=-1)  # [*, A, L, B]
        of_frames = best(products, text_mask[..., :, :, None, None], self.of_padding, dim=-3)  # [*, A, B, F]

        by_tokens = (of_tokens * text_shares[..., :, :, None]).sum(-2)
        by_frames = (of_frames * video_shares[..., None, :, :]).sum(-1)
        return (by_tokens + by_frames) / 2

    def pairs(self, text: TextFeatures, video: VideoFeatures) -> list[Pairs]:
        """In each pair of a caption and its clip: every token with its best frame, every frame with its best token."""
        tokens = self.text_rows(text)
        frames = self.video_rows(video)
        token_mask, token_shares = mask_and_shares(tokens)
        frame_mask, frame_shares = mask_and_shares(frames)

        # Which is best is a choice, and has no gradient.
        products = tokens.values.detach() @ frames.values.detach().mT  # [B, L, F]
        frame_of_token = products.masked_fill(~frame_mask[:, None, :], self.of_padding).argmax(2)
        token_of_frame = products.masked_fill(~token_mask[:, :, None], self.of_padding).argmax(1)

        # Padding that counts may be chosen, with the features that the towers gave it.
        all_tokens = tokens.values
        all_frames = frames.values
        if self.of_padding == 0 and text.tokens is not None:
            all_tokens = normalize(text.tokens, dim=-1)
            all_frames = normalize(video.frames, dim=-1)

        of_tokens = all_frames.gather(1, frame_of_token[..., None].expand_as(tokens.values))
        of_frames = all_tokens.gather(1, token_of_frame[..., None].expand_as(frames.values))
        return [
            Pairs(tokens.values[token_mask], of_tokens[token_mask], token_shares[token_mask]),
            Pairs(frames.values[frame_mask], of_frames[frame_mask], frame_shares[frame_mask]),
        ]


def weight_network(width: int) -> nn.Sequential:
    """A row to one number: two layers, of the sizes and the start of DRL's second architecture."""
    first = nn.Linear(width, width)
    last = nn.Linear(width, 1)
    for layer in (first, last):
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(first, nn.ReLU(), last)


def mask_and_shares(rows: UnitRows) -> tuple[Tensor, Tensor]:
    """Both of rows that are compared one by one."""
    if rows.mask is None or rows.shares is None:
        raise ValueError("features have no mask or no weights for each row; encode them with the model of this head")
    return rows.mask, rows.shares


def masked_softmax(logits: Float[Tensor, "N L"], mask: Bool[Tensor, "N L"]) -> Float[Tensor, "N L"]:
    """Softmax over what is no padding; zero there, and everywhere where all is padding."""
    lowest = torch.finfo(logits.dtype).min
    return torch.softmax(logits.masked_fill(~mask, lowest), dim=-1).masked_fill(~mask, 0.0)


def best(
    products: Float[Tensor, "*any"], mask: Bool[Tensor, "*other"], of_padding: float = -torch.inf, *, dim: int
) -> Float[Tensor, "*less"]:
    """The greatest, with `of_padding` in place of what is padding; zero where all is padding that does not count."""
    greatest = products.masked_fill(~mask, of_padding).amax(dim)
    return greatest.masked_fill(greatest == -torch.inf, 0.0)


def build_head(config: ModelConfig, clip: CLIPModel | None, *, width: int) -> Head:
    """The head of `config.head`; for the arguments see `Head.of_config`."""
    kind = HEADS[config.head]
    head: Head = class_of(kind).of_config(config, clip, width=width)
    if head.needs_tokens != kind.tokens:
        raise TypeError(f"kinds.py says tokens={kind.tokens} of {config.head!r}, and {kind.built_by} has another one")
    return head
