"""EMCL-Net: CLIP's towers, temporal aggregation, and a similarity that pools frames for each text."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from emcl_kernels import EMCL, SimilarityStream, pooled_cosine_similarity, pooled_cosine_similarity_stream
from emcl_train.config import EMCLConfig, RunConfig
from emcl_train.errors import UserError
from emcl_train.models.clip import CLIPTowers, Vocabulary, build_towers
from emcl_train.models.temporal import build_temporal

MAX_LOGIT_SCALE = 100.0


@runtime_checkable
class Tokenizer(Protocol):
    """What the text tower has to know of a tokenizer."""

    eos_token_id: int
    pad_token_id: int

    def __len__(self) -> int: ...


class RetrievalModel(nn.Module):
    """Texts [A] and clips [B] to cosine similarities [A, B]."""

    def __init__(self, towers: CLIPTowers, temporal: nn.Module, emcl: EMCL, *, pooling_temperature: float) -> None:
        super().__init__()
        self.towers = towers
        self.temporal = temporal
        self.emcl = emcl
        self.pooling_temperature = pooling_temperature

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """CLIP's factor from cosine to logits, at most 100."""
        return self.towers.clip.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)

    def encode_text(
        self, input_ids: Int64[Tensor, "A L"], attention_mask: Int64[Tensor, "A L"]
    ) -> Float[Tensor, "A D"]:
        return self.towers.encode_text(input_ids, attention_mask)

    def encode_video(
        self, frames: UInt8[Tensor, "B F 3 S S"], frame_mask: Bool[Tensor, "B F"]
    ) -> Float[Tensor, "B F D"]:
        return self.temporal(self.towers.encode_frames(frames), frame_mask)

    def forward(
        self,
        input_ids: Int64[Tensor, "B L"],
        attention_mask: Int64[Tensor, "B L"],
        frames: UInt8[Tensor, "B F 3 S S"],
        frame_mask: Bool[Tensor, "B F"],
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B F D"], Float[Tensor, ""]]:
        """What one process computes of a training step: text features, frame features and the logit scale."""
        text = self.encode_text(input_ids, attention_mask)
        return text, self.encode_video(frames, frame_mask), self.logit_scale

    def similarity(
        self,
        text: Float[Tensor, "A D"],
        frames: Float[Tensor, "B F D"],
        frame_mask: Bool[Tensor, "B F"],
        *,
        emcl: bool,
        add_up: Callable[[Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "A B"]:
        """Cosine of each text with each clip's frames as pooled for that text.

        Args: emcl: run one EM over all pooled pairs and texts first. add_up: sums over processes with other texts and
            the same clips, for one EM over the rows of all; see `EMCL`.
        """
        if not emcl:
            return pooled_cosine_similarity(text, frames, frame_mask, pooling_temperature=self.pooling_temperature)
        return self.emcl.pooled_similarity(
            text, frames, frame_mask, pooling_temperature=self.pooling_temperature, add_up=add_up
        )

    def similarity_stream(
        self,
        text: Float[Tensor, "A D"],
        frames: Float[Tensor, "B F D"],
        frame_mask: Bool[Tensor, "B F"],
        *,
        emcl: bool,
        em_block: int | None = None,
    ) -> SimilarityStream:
        """Rows of `similarity` in bounded memory, for evaluation: without gradient, and the bases stay as they are.

        Args: em_block: with emcl, run EM inside tiles of this many texts and clips, in dataset order, as the release
            evaluates; None: over everything at once.
        """
        temperature = self.pooling_temperature
        if not emcl:
            return pooled_cosine_similarity_stream(text, frames, frame_mask, pooling_temperature=temperature)
        return self.emcl.pooled_similarity_stream(
            text, frames, frame_mask, em_block=em_block, pooling_temperature=temperature
        )


def build_model(config: RunConfig, tokenizer: Tokenizer) -> RetrievalModel:
    """The model of a run, its random parts drawn from torch's global generator."""
    vocabulary = Vocabulary(len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    towers = build_towers(config.model, vocabulary, image_size=config.data.image_size, max_words=config.data.max_words)
    temporal = build_temporal(config.model, towers.clip, width=towers.width, num_frames=config.data.num_frames)
    emcl = build_emcl(config.emcl, width=towers.width)
    return RetrievalModel(towers, temporal, emcl, pooling_temperature=config.model.pooling_temperature)


def build_emcl(config: EMCLConfig, *, width: int) -> EMCL:
    """The EMCL layer of a run, with no more bases than the features are wide."""
    if not 1 <= config.num_bases <= width:
        raise UserError(
            f"emcl.num_bases is {config.num_bases}, expected 1 to {width}, the width of the features; "
            f"pass --emcl.num-bases {min(32, width)}"
        )
    return EMCL(
        num_bases=config.num_bases,
        num_iters=config.num_iters,
        temperature=config.temperature,
        residual_weight=config.residual_weight,
        momentum=config.momentum,
        init=config.init,
        scale=config.scale,
        gradient=config.gradient,
    )
