"""Two towers, temporal aggregation, a similarity head and EMCL in one model."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from emcl_kernels import EMCL, SimilarityStream
from emcl_train.config import EMCLConfig, ModelConfig, RunConfig
from emcl_train.errors import UserError
from emcl_train.flags import flag
from emcl_train.kinds import HEADS, TEMPORALS, TOWERS
from emcl_train.models.clip import TowersModel
from emcl_train.models.clip_file import Vocabulary
from emcl_train.models.features import Batch, TextFeatures, VideoFeatures
from emcl_train.models.heads import Head, build_head
from emcl_train.models.interface import PairModel
from emcl_train.models.start import starting_towers
from emcl_train.models.temporal import build_temporal
from emcl_train.models.towers import StoredTowers, Towers
from emcl_train.reading.tower_fields import FIELDS
from emcl_train.runs.clip_config import family_in
from emcl_train.weights.keys import require_keys

FIRST_BIAS = -10.0
"""Of the sigmoid loss where the towers bring none, as SigLIP begins: at first, nearly all pairs are wrong ones."""


@runtime_checkable
class Tokenizer(Protocol):
    """What the text tower has to know of a tokenizer."""

    eos_token_id: int
    pad_token_id: int

    def __len__(self) -> int: ...


class RetrievalModel(TowersModel, PairModel):
    """Texts [A] and clips [B] to cosine similarities [A, B].

    `forward` (or `encode_text` and `encode_video`) makes features of a batch, `similarity` compares them. Only the
    former needs parameters, so data parallelism wraps it alone.
    """

    towers: Towers
    emcl: EMCL

    def __init__(self, towers: Towers, temporal: nn.Module, head: Head, emcl: EMCL, *, sigmoid: bool = False) -> None:
        """`sigmoid`: whether the loss is, whose bias is learnt; towers without one get one beside them."""
        super().__init__()
        self.towers = towers
        self.temporal = temporal
        self.head = head
        self.emcl = emcl

        self.own_bias: nn.Parameter | None = None
        if (bias := towers.logit_bias) is not None:
            bias.requires_grad_(sigmoid)
        elif sigmoid:
            self.own_bias = nn.Parameter(torch.tensor(FIRST_BIAS))
        self.sigmoid = sigmoid

    @property
    def logit_bias(self) -> Float[Tensor, ""] | None:
        """What the sigmoid loss adds to logits; None with another loss."""
        if not self.sigmoid:
            return None
        bias = self.towers.logit_bias if self.own_bias is None else self.own_bias
        assert bias is not None
        return bias.reshape(())  # [1] in SigLIP's weights

    def store_towers(self) -> None:
        """Do without the towers from now on: a batch then has their features in place of token ids and frames."""
        self.towers = StoredTowers(self.towers)
        if (bias := self.towers.logit_bias) is not None:
            bias.requires_grad_(self.sigmoid)

    def encode_text(self, batch: Batch) -> TextFeatures:
        """Features of the captions of a batch.

        Args:
            batch: has `attention_mask` [A, L], and what the towers read: `input_ids` [A, L], or stored features
                (see `StoredTowers`).
        """
        inputs = {name: batch[name] for name in self.towers.text_inputs}

        if not self.head.needs_tokens:
            caption, _ = self.towers.encode_text(**inputs, tokens=False)
            return TextFeatures(caption)

        caption, tokens = self.towers.encode_text(**inputs, tokens=True)
        assert tokens is not None
        mask = batch["attention_mask"].bool()
        aligned = self.head.align_text(tokens, mask)
        if aligned is not None:
            return TextFeatures(caption, aligned_tokens=aligned)
        return TextFeatures(caption, tokens, mask, self.head.weigh_text(tokens, mask))

    def encode_video(self, batch: Batch) -> VideoFeatures:
        """Features of the clips of a batch.

        Args:
            batch: has `frame_mask` [B, F], and what the towers read: `frames` [B, F, 3, S, S], or stored features
                (see `StoredTowers`).
        """
        inputs = {name: batch[name] for name in self.towers.frame_inputs}
        mask = self.towers.rows_mask(batch["frame_mask"])
        single = self.towers.encode_frames(**inputs)
        frames = self.temporal(single, mask)

        aligned = self.head.align_video(single, mask, self.temporal)
        return VideoFeatures(frames, mask, self.head.weigh_video(frames, mask), aligned)

    def similarity(
        self,
        text: TextFeatures,
        video: VideoFeatures,
        *,
        emcl: bool,
        add_up: Callable[[Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "A B"]:
        """Cosine similarity of each text with each clip, as the head defines it.

        Args:
            text: features of the texts.
            video: features of the clips.
            emcl: run one EM over all rows that the head compares first.
            add_up: sums over processes with other texts and the same clips, for one EM over the rows of all; see
                `EMCL`.

        Returns:
            Similarities [A, B].
        """
        return self.head.similarity(text, video, self.emcl if emcl else None, add_up)

    def similarities(
        self,
        text: TextFeatures,
        video: VideoFeatures,
        *,
        emcl: bool,
        add_up: Callable[[Tensor], Tensor] | None = None,
    ) -> list[Tensor]:
        """Those that the loss is the mean over, [A, B] each; mostly `similarity` alone, which has these arguments."""
        return self.head.similarities(text, video, self.emcl if emcl else None, add_up)

    def similarity_stream(
        self,
        text: TextFeatures,
        video: VideoFeatures,
        *,
        emcl: bool,
        em_block: int | None = None,
        add_up: Callable[[Tensor], Tensor] | None = None,
    ) -> SimilarityStream:
        """Rows of `similarity` in bounded memory, for evaluation: without gradient, and the bases stay as they are.

        Args:
            text: features of the texts.
            video: features of the clips.
            emcl: run EM over the rows that the head compares first.
            em_block: with emcl, run EM inside tiles of this many texts and clips, in dataset order, as the authors'
                code evaluates; None: over everything at once.
            add_up: as of `similarity`, for one EM over everything. With em_block each process has whole blocks of
                texts, and needs none.

        Returns:
            Steps that give the rows of [A, B] in order.
        """
        return self.head.stream(text, video, self.emcl if emcl else None, em_block, add_up)


def build_model(
    config: RunConfig,
    tokenizer: Tokenizer,
    clip_config: Mapping[str, Any] | None = None,
    clip_weights: Mapping[str, Tensor] | None = None,
) -> RetrievalModel:
    """The model of a run, its random parts drawn from torch's global generator, its weights those the run starts with.

    Args:
        config: the run's.
        tokenizer: the run's.
        clip_config: description of the towers; the checkpoint that `config.model.clip` names is then not read.
        clip_weights: for them, in the layout of their library. With `clip_config` and no such weights the model waits
            for those of a run, and `config.model.init_from` is not read either.

    Raises:
        UserError: a checkpoint cannot be read, or does not fit.
    """
    waits = clip_config is not None and clip_weights is None
    start = starting_towers(config, vocabulary_of(tokenizer), clip_config, waits=waits)
    towers = start.towers
    if clip_weights is not None:
        expected = {name: value.shape for name, value in towers.inner.state_dict().items()}
        require_keys(clip_weights, expected, source="towers.safetensors beside the features")
        towers.inner.load_state_dict(clip_weights)
    start.settle()

    described = towers.description()
    require_parts(config.model, family_in(described))
    require_frames(described, config.data.num_frames)
    temporal = build_temporal(config.model, towers.clip_layers, width=towers.width, num_frames=config.data.num_frames)
    emcl = build_emcl(config.emcl, width=towers.width)
    # Last: the numbers that the rest is drawn from do not depend on the head.
    head = build_head(config.model, towers.clip_layers, width=towers.width)
    model = RetrievalModel(towers, temporal, head, emcl, sigmoid=config.train.loss == "sigmoid")
    start.put_into(model)
    return model


def require_frames(towers: Mapping[str, Any], num_frames: int) -> None:
    """Raise a UserError where described towers look at all frames of a clip together, and expect another number."""
    family = family_in(towers)
    expected = None if family == "clip" else FIELDS[family].frames(towers)
    if expected not in (None, num_frames):
        raise UserError(
            f"data.num_frames is {num_frames}, and {TOWERS[family].label} looks at {expected} frames of a clip "
            f"together; pass {flag('data.num_frames')} {expected}"
        )


def require_parts(config: ModelConfig, family: str) -> None:
    """Raise a UserError where the head or the temporal layers need what towers of a family do not give."""
    towers = TOWERS[family]
    head = HEADS[config.head]
    problem = None
    if head.differences and family != "clip":
        setting, problem = "head", f"leaves out CLIP's start token and begins from CLIP's layers, and {towers.label}"
        problem += " has neither"
    elif head.tokens and not towers.tokens:
        setting, problem = "head", f"compares every token, and {towers.label} gives whole captions alone"
    elif not towers.per_frame and not head.whole:
        setting, problem = "head", f"compares single frames, and {towers.label} gives one feature a clip"
    elif not towers.per_frame and config.temporal != "mean":
        setting, problem = "temporal", f"relates frames, and {towers.label} gives one feature a clip"
    if problem is None:
        return

    kinds = HEADS if setting == "head" else TEMPORALS
    fitting = [name for name in kinds if setting == "temporal" and name == "mean"]
    if setting == "head":
        fitting = [
            name
            for name, kind in HEADS.items()
            if not kind.differences and (towers.tokens or not kind.tokens) and (towers.per_frame or kind.whole)
        ]
    raise UserError(
        f"model.{setting} is {getattr(config, setting)}, which {problem}; pass {flag(f'model.{setting}')} "
        f"{' or '.join(fitting)}"
    )


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """What the text tower has to know of a tokenizer."""
    return Vocabulary(len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)


def build_emcl(config: EMCLConfig, *, width: int) -> EMCL:
    """The EMCL layer of a run, with no more bases than the features are wide; cut to that if it is off.

    Raises:
        UserError: it is on, and has more bases than the features are wide.
    """
    if config.mode == "off":
        config = replace(config, num_bases=min(config.num_bases, width))
    require_bases(config, width=width)
    return EMCL(**config.of_layer())


def require_bases(config: EMCLConfig, *, width: int) -> None:
    """Raise a UserError where EMCL is on, and has more bases than the features are wide."""
    if config.mode == "off":
        return
    if not 1 <= config.num_bases <= width:
        raise UserError(
            f"emcl.num_bases is {config.num_bases}, expected 1 to {width}, the width of the features; "
            f"pass {flag('emcl.num_bases')} {min(32, width)}"
        )
