"""CLIP's towers, temporal aggregation, a similarity head and EMCL in one model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

from emcl_kernels import EMCL, SimilarityStream
from emcl_train.config import EMCLConfig, RunConfig
from emcl_train.errors import UserError
from emcl_train.flags import flag
from emcl_train.models.clip import CLIPTowers, StoredTowers, Vocabulary, build_towers
from emcl_train.models.features import TextFeatures, VideoFeatures
from emcl_train.models.heads import Head, TokenWiseHead, build_head
from emcl_train.models.temporal import build_temporal
from emcl_train.weights.files import clip_config_beside, read_state
from emcl_train.weights.release import load_into, towers_in

MAX_LOGIT_SCALE = 100.0


@runtime_checkable
class Tokenizer(Protocol):
    """What the text tower has to know of a tokenizer."""

    eos_token_id: int
    pad_token_id: int

    def __len__(self) -> int: ...


class RetrievalModel(nn.Module):
    """Texts [A] and clips [B] to cosine similarities [A, B]."""

    towers: CLIPTowers | StoredTowers

    def __init__(self, towers: CLIPTowers, temporal: nn.Module, head: Head, emcl: EMCL) -> None:
        super().__init__()
        self.towers = towers
        self.temporal = temporal
        self.head = head
        self.emcl = emcl

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """CLIP's factor from cosine to logits, at most 100."""
        return self.towers.clip.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE).reshape(())  # [1] where it is sharded

    def store_towers(self) -> None:
        """Do without the towers from now on: token ids and frames are then their features, see `StoredTowers`."""
        assert isinstance(self.towers, CLIPTowers)
        self.towers = StoredTowers(self.towers)

    def encode_text(self, input_ids: Shaped[Tensor, "A ..."], attention_mask: Int64[Tensor, "A L"]) -> TextFeatures:
        if not isinstance(self.head, TokenWiseHead):
            return TextFeatures(self.towers.encode_text(input_ids, attention_mask)[0])
        pooled, tokens = self.towers.encode_text(input_ids, attention_mask, tokens=True)
        mask = attention_mask.bool()
        assert tokens is not None
        return TextFeatures(pooled, tokens, mask, self.head.weigh_text(tokens, mask))

    def encode_video(self, frames: Shaped[Tensor, "B F ..."], frame_mask: Bool[Tensor, "B F"]) -> VideoFeatures:
        features = self.temporal(self.towers.encode_frames(frames), frame_mask)
        if not isinstance(self.head, TokenWiseHead):
            return VideoFeatures(features, frame_mask)
        return VideoFeatures(features, frame_mask, self.head.weigh_video(features, frame_mask))

    def forward(
        self,
        input_ids: Shaped[Tensor, "B ..."],
        attention_mask: Int64[Tensor, "B L"],
        frames: Shaped[Tensor, "B F ..."],
        frame_mask: Bool[Tensor, "B F"],
    ) -> tuple[Tensor, ...]:
        """What one process computes of a training step, all that has a gradient: features and the logit scale, last.

        `features` puts the former together again. Plain tensors, since wrappers and chunks pass nothing else on.
        """
        text, video = self.encode_text(input_ids, attention_mask), self.encode_video(frames, frame_mask)
        values = [*text.tensors().values(), *video.tensors().values()]
        return *(value for value in values if value.is_floating_point()), self.logit_scale

    def features(
        self, values: Sequence[Tensor], attention_mask: Int64[Tensor, "B L"], frame_mask: Bool[Tensor, "B F"]
    ) -> tuple[TextFeatures, VideoFeatures]:
        """What `forward` returned, without the logit scale, as features."""
        if not isinstance(self.head, TokenWiseHead):
            pooled, frames = values
            return TextFeatures(pooled), VideoFeatures(frames, frame_mask)
        pooled, tokens, text_weights, frames, frame_weights = values
        text = TextFeatures(pooled, tokens, attention_mask.bool(), text_weights)
        return text, VideoFeatures(frames, frame_mask, frame_weights)

    def similarity(
        self,
        text: TextFeatures,
        video: VideoFeatures,
        *,
        emcl: bool,
        add_up: Callable[[Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "A B"]:
        """Cosine similarity of each text with each clip, as the head defines it.

        Args: emcl: run one EM over all rows that the head compares first. add_up: sums over processes with other texts
            and the same clips, for one EM over the rows of all; see `EMCL`.
        """
        return self.head.similarity(text, video, self.emcl if emcl else None, add_up)

    def similarity_stream(
        self, text: TextFeatures, video: VideoFeatures, *, emcl: bool, em_block: int | None = None
    ) -> SimilarityStream:
        """Rows of `similarity` in bounded memory, for evaluation: without gradient, and the bases stay as they are.

        Args: em_block: with emcl, run EM inside tiles of this many texts and clips, in dataset order, as the release
            evaluates; None: over everything at once.
        """
        return self.head.stream(text, video, self.emcl if emcl else None, em_block)


def build_model(
    config: RunConfig,
    tokenizer: Tokenizer,
    clip_config: Mapping[str, Any] | None = None,
    clip_weights: Mapping[str, Tensor] | None = None,
) -> RetrievalModel:
    """The model of a run, its random parts drawn from torch's global generator, its weights those the run starts with.

    Args: clip_config: configuration of the towers; the checkpoint that `config.model.clip` names is then not read.
        clip_weights: for them, in the layout of transformers. Without any, the model is one that waits for the weights
        of a run, and `config.model.init_from` is not read either.
    Raises: UserError where a checkpoint cannot be read, or does not fit.
    """
    vocabulary = Vocabulary(len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    waits = clip_config is not None and clip_weights is None
    start = config.model.init_from.expanduser() if config.model.init_from and not waits else None
    state = read_state(start) if start else {}
    # Towers from a checkpoint draw as many numbers as their reader pleases; the rest starts alike whatever that is.
    seed = None if config.model.clip == "random" and start is None else int(torch.randint(2**31, ()))
    towers = build_towers(
        config.model,
        vocabulary,
        image_size=config.data.image_size,
        max_words=config.data.max_words,
        clip_config=clip_config,
        sizes=towers_in(state) or None,
        recorded=clip_config_beside(start) if start else None,
    )
    if clip_weights is not None:
        towers.clip.load_state_dict(clip_weights)
    if seed is not None:
        torch.manual_seed(seed)
    temporal = build_temporal(config.model, towers.clip, width=towers.width, num_frames=config.data.num_frames)
    emcl = build_emcl(config.emcl, width=towers.width)
    # Last: the numbers that the rest is drawn from do not depend on the head.
    model = RetrievalModel(towers, temporal, build_head(config.model, width=towers.width), emcl)
    if start:
        model.load_state_dict(load_into(model.state_dict(), state, start))
    return model


def build_emcl(config: EMCLConfig, *, width: int) -> EMCL:
    """The EMCL layer of a run, with no more bases than the features are wide; cut to that where it is off."""
    if config.mode == "off":
        config = replace(config, num_bases=min(config.num_bases, width))
    if not 1 <= config.num_bases <= width:
        raise UserError(
            f"emcl.num_bases is {config.num_bases}, expected 1 to {width}, the width of the features; "
            f"pass {flag('emcl.num_bases')} {min(32, width)}"
        )
    return EMCL(**config.of_layer())
