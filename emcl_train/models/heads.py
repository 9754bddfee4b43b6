"""Similarity heads: how the features of a caption and of a clip become one number, without EMCL and with it.

What a head learns is applied per caption or per clip (`weigh_text`, `weigh_video`), inside the forward pass that data
parallelism wraps; comparing takes no weights at all, and happens once over the features of all processes.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from emcl_kernels import EMCL, SimilarityStream, pooled_cosine_similarity, pooled_cosine_similarity_stream
from emcl_train.config import ModelConfig
from emcl_train.models.em_features import Rows, rows_similarity, rows_stream, unit_rows
from emcl_train.models.features import TextFeatures, VideoFeatures

AddUp = Callable[[Tensor], Tensor]


class Pairs(NamedTuple):
    """Rows that should agree channel by channel: one pair of rows, and its share in the batch, for each entry."""

    first: Float[Tensor, "P D"]
    second: Float[Tensor, "P D"]
    weight: Float[Tensor, " P"]


class TextConditionedHead(nn.Module):
    """EMCL-Net: frames are pooled for each text. EM runs over all pooled pairs and texts, then the cosine is taken."""

    def __init__(self, pooling_temperature: float) -> None:
        super().__init__()
        self.pooling_temperature = pooling_temperature

    def similarity(
        self, text: TextFeatures, video: VideoFeatures, emcl: EMCL | None, add_up: AddUp | None
    ) -> Float[Tensor, "A B"]:
        inputs, temperature = (text.pooled, video.frames, video.mask), self.pooling_temperature
        if emcl is None:
            return pooled_cosine_similarity(*inputs, pooling_temperature=temperature)
        return emcl.pooled_similarity(*inputs, pooling_temperature=temperature, add_up=add_up)

    def stream(
        self, text: TextFeatures, video: VideoFeatures, emcl: EMCL | None, em_block: int | None
    ) -> SimilarityStream:
        inputs, temperature = (text.pooled, video.frames, video.mask), self.pooling_temperature
        if emcl is None:
            return pooled_cosine_similarity_stream(*inputs, pooling_temperature=temperature)
        return emcl.pooled_similarity_stream(*inputs, em_block=em_block, pooling_temperature=temperature)


class RowHead(nn.Module):
    """A head that compares unit rows of captions with unit rows of clips, one or several of each.

    EM runs over exactly those rows, padding left out; what it makes of them is brought to length one again.
    """

    def text_rows(self, text: TextFeatures) -> Rows:
        raise NotImplementedError

    def video_rows(self, video: VideoFeatures) -> Rows:
        raise NotImplementedError

    def compare(self, text: Rows, video: Rows) -> Float[Tensor, "*G A B"]:
        raise NotImplementedError

    def similarity(
        self, text: TextFeatures, video: VideoFeatures, emcl: EMCL | None, add_up: AddUp | None
    ) -> Float[Tensor, "A B"]:
        return rows_similarity(self.text_rows(text), self.video_rows(video), self.compare, emcl, add_up)

    def stream(
        self, text: TextFeatures, video: VideoFeatures, emcl: EMCL | None, em_block: int | None
    ) -> SimilarityStream:
        sides = (text, self.text_rows), (video, self.video_rows)
        return rows_stream(*sides, self.compare, emcl=emcl, em_block=em_block)


class MeanHead(RowHead):
    """CLIP4Clip: the cosine of the text with the mean of the clip's unit frames."""

    def text_rows(self, text: TextFeatures) -> Rows:
        return Rows(normalize(text.pooled, dim=-1).unsqueeze(1))

    def video_rows(self, video: VideoFeatures) -> Rows:
        frames = unit_rows(video.frames, video.mask)
        count = video.mask.sum(1, keepdim=True).clamp_min(1)
        return Rows(normalize(frames.sum(1) / count, dim=-1).unsqueeze(1))

    def compare(self, text: Rows, video: Rows) -> Float[Tensor, "*G A B"]:
        return text.rows.squeeze(-2) @ video.rows.squeeze(-2).mT

    def pairs(self, text: TextFeatures, video: VideoFeatures) -> list[Pairs]:
        """Each caption with its clip: caption i with clip i."""
        first, second = self.text_rows(text).rows.squeeze(1), self.video_rows(video).rows.squeeze(1)
        return [Pairs(first, second, first.new_ones(len(first)))]


class TokenWiseHead(RowHead):
    """DRL's weighted token-wise interaction (WTI).

    Every token takes its best frame and every frame its best token; similarity is the weighted mean of the former plus
    that of the latter, halved. Weights are a softmax over what a small network says of each token, or frame, alone.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.text_weight, self.video_weight = weight_network(width), weight_network(width)

    def weigh_text(self, tokens: Float[Tensor, "A L D"], mask: Bool[Tensor, "A L"]) -> Float[Tensor, "A L"]:
        return masked_softmax(self.text_weight(tokens).squeeze(-1).float(), mask)

    def weigh_video(self, frames: Float[Tensor, "B F D"], mask: Bool[Tensor, "B F"]) -> Float[Tensor, "B F"]:
        return masked_softmax(self.video_weight(frames).squeeze(-1).float(), mask)

    def text_rows(self, text: TextFeatures) -> Rows:
        if text.tokens is None or text.mask is None:
            raise ValueError("text features have no tokens, which this head compares; encode them with this model")
        return Rows(unit_rows(text.tokens, text.mask), text.mask, text.weights)

    def video_rows(self, video: VideoFeatures) -> Rows:
        return Rows(unit_rows(video.frames, video.mask), video.mask, video.weights)

    def compare(self, text: Rows, video: Rows) -> Float[Tensor, "*G A B"]:
        (*leading, texts, tokens, width), (clips, frames) = text.rows.shape, video.rows.shape[-3:-1]
        products = text.rows.reshape(*leading, -1, width) @ video.rows.reshape(*leading, -1, width).mT
        products = products.view(*leading, texts, tokens, clips, frames)
        (text_mask, text_weights), (video_mask, video_weights) = mask_and_weights(text), mask_and_weights(video)
        of_tokens = best(products, video_mask[..., None, None, :, :], dim=-1)  # [*, A, L, B]
        of_frames = best(products, text_mask[..., :, :, None, None], dim=-3)  # [*, A, B, F]
        by_tokens = (of_tokens * text_weights[..., :, :, None]).sum(-2)
        by_frames = (of_frames * video_weights[..., None, :, :]).sum(-1)
        return (by_tokens + by_frames) / 2

    def pairs(self, text: TextFeatures, video: VideoFeatures) -> list[Pairs]:
        """In each pair of a caption and its clip: every token with its best frame, every frame with its best token."""
        t, v = self.text_rows(text), self.video_rows(video)
        (t_mask, t_weights), (v_mask, v_weights) = mask_and_weights(t), mask_and_weights(v)
        products = t.rows.detach() @ v.rows.detach().mT  # [B, L, F]
        frame_of_token = products.masked_fill(~v_mask[:, None, :], -torch.inf).argmax(2)
        token_of_frame = products.masked_fill(~t_mask[:, :, None], -torch.inf).argmax(1)
        of_tokens = v.rows.gather(1, frame_of_token[..., None].expand_as(t.rows))
        of_frames = t.rows.gather(1, token_of_frame[..., None].expand_as(v.rows))
        return [
            Pairs(t.rows[t_mask], of_tokens[t_mask], t_weights[t_mask]),
            Pairs(v.rows[v_mask], of_frames[v_mask], v_weights[v_mask]),
        ]


def weight_network(width: int) -> nn.Sequential:
    """A row to one number: two layers, of the sizes and the start of DRL's second architecture."""
    first, last = nn.Linear(width, width), nn.Linear(width, 1)
    for layer in (first, last):
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(first, nn.ReLU(), last)


def mask_and_weights(rows: Rows) -> tuple[Tensor, Tensor]:
    """Both of rows that are compared one by one."""
    if rows.mask is None or rows.weights is None:
        raise ValueError("features have no mask or no weights for each row; encode them with the model of this head")
    return rows.mask, rows.weights


def masked_softmax(logits: Float[Tensor, "N L"], mask: Bool[Tensor, "N L"]) -> Float[Tensor, "N L"]:
    """Softmax over what is no padding; zero there, and everywhere where all is padding."""
    lowest = torch.finfo(logits.dtype).min
    return torch.softmax(logits.masked_fill(~mask, lowest), dim=-1).masked_fill(~mask, 0.0)


def best(products: Float[Tensor, "*any"], mask: Bool[Tensor, "*other"], *, dim: int) -> Float[Tensor, "*less"]:
    """The greatest over what is no padding; zero where all is."""
    greatest = products.masked_fill(~mask, -torch.inf).amax(dim)
    return greatest.masked_fill(greatest == -torch.inf, 0.0)


Head = TextConditionedHead | MeanHead | TokenWiseHead


def build_head(config: ModelConfig, *, width: int) -> Head:
    """The head of `config.head`."""
    if config.head == "text-conditioned":
        return TextConditionedHead(config.pooling_temperature)
    return MeanHead() if config.head == "mean" else TokenWiseHead(width)
