"""Encode the clips and captions of a split."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from emcl_train.config import RunConfig
from emcl_train.data.annotations import Split
from emcl_train.data.loader import caption_loader, clip_loader
from emcl_train.errors import NotFinite
from emcl_train.models import PairModel, TextFeatures, on_device
from emcl_train.models.features import ItemTensors, squares_are_finite
from emcl_train.processes import (
    agreed,
    gather_objects,
    moved_rows,
    rank_and_world,
    rows_in_all,
    rows_in_first,
    rows_of_each,
)
from emcl_train.terminal import with_progress


@dataclass(frozen=True)
class Embeddings:
    """What a model makes of a split, on the CPU: Q captions and G clips."""

    text: ItemTensors
    video: ItemTensors
    caption_clip: Int64[Tensor, "Q"]

    def tensors(self) -> dict[str, Tensor]:
        """As embeddings.safetensors names them: by their fields, and the feature of a whole caption "text".

        Of systems on experts, whose fields have the same names on both sides, as "text_…" and "video_…".
        """
        text = self.text.tensors()
        video = self.video.tensors()
        if isinstance(self.text, TextFeatures):
            text["text"] = text.pop("caption")
        else:
            text = {f"text_{name}": value for name, value in text.items()}
            video = {f"video_{name}": value for name, value in video.items()}
        return {**text, **video, "caption_clip": self.caption_clip}


@dataclass(frozen=True)
class OwnRows:
    """This process's part of what several have encoded: captions, or clips."""

    kind: type[ItemTensors]
    tensors: dict[str, Tensor]
    """Of its own rows; empty if it has none."""
    parts: list[range]
    """The rows of each process."""

    @classmethod
    def of(cls, batches: list[ItemTensors], parts: list[range]) -> "OwnRows":
        """Batch after batch. All processes take part: one without a batch is told what the others have."""
        kinds = gather_objects(type(batches[0]) if batches else None)
        kind = next(of_process for of_process in kinds if of_process is not None)
        return cls(kind, _joined(batches).tensors() if batches else {}, parts)

    @property
    def features(self) -> ItemTensors | None:
        """Its own rows; None if it has none."""
        return self.kind(**self.tensors) if self.tensors else None

    def in_all(self) -> ItemTensors:
        """The rows of all processes, in each of them."""
        return self.kind(**rows_in_all(self.tensors, self.parts))

    def in_first(self) -> ItemTensors | None:
        """The rows of all processes, in the first one; None in the others."""
        found = rows_in_first(self.tensors, self.parts)
        return None if found is None else self.kind(**found)

    def in_blocks(self, size: int) -> "OwnRows":
        """The same rows divided into whole blocks of so many, for which those between two processes move."""
        wanted = rows_of_each(self.parts[-1].stop, size)
        moved = moved_rows(self.tensors, self.parts, wanted)
        return OwnRows(self.kind, moved if wanted[rank_and_world()[0]] else {}, wanted)


@dataclass(frozen=True)
class OwnEmbeddings:
    """This process's part of `Embeddings`."""

    text: OwnRows
    video: OwnRows
    caption_clip: Int64[Tensor, "Q"]

    def in_first(self) -> Embeddings | None:
        """All of them, in the first process; None in the others."""
        text = self.text.in_first()
        video = self.video.in_first()
        return None if text is None or video is None else Embeddings(text, video, self.caption_clip)


@torch.no_grad()
def embed_split(
    model: PairModel, split: Split, tokenizer: Any, config: RunConfig, device: torch.device | str = "cpu"
) -> Embeddings:
    """Encode every clip and every caption of a split.

    Args:
        model: encodes in evaluation mode, in float32 whatever the training precision was.
        split: the clips and captions.
        tokenizer: of the captions.
        config: how frames are sampled and captions cut, and `eval.batch_size`.
        device: where the model is.

    Raises:
        NotFinite: a tower gives NaN or infinity; the first input it happened on is named.
    """
    encoding = _Encoding(model, split, tokenizer, config, device)
    clips, captions = encoding.parts(range(len(split.clips)), range(len(split.captions)))
    return Embeddings(_joined(captions), _joined(clips), torch.tensor(split.caption_clip))


@torch.no_grad()
def embed_split_together(
    model: PairModel, split: Split, tokenizer: Any, config: RunConfig, device: torch.device | str = "cpu"
) -> OwnEmbeddings:
    """`embed_split` by several processes, each of which encodes a part of the batches that one would encode.

    Raises:
        UserError: in every process, what one of them has met.
    """
    encoding = _Encoding(model, split, tokenizer, config, device)
    parts = [rows_of_each(len(items), config.eval.batch_size) for items in (split.clips, split.captions)]
    rank = rank_and_world()[0]
    clips, captions = agreed(lambda: encoding.parts(*(of_each[rank] for of_each in parts)))

    own_clips = OwnRows.of(clips, parts[0])
    return OwnEmbeddings(OwnRows.of(captions, parts[1]), own_clips, torch.tensor(split.caption_clip))


@dataclass(frozen=True)
class _Encoding:
    """What a split is encoded with."""

    model: PairModel
    split: Split
    tokenizer: Any
    config: RunConfig
    device: torch.device | str

    def parts(self, clips: range, captions: range) -> tuple[list[ItemTensors], list[ItemTensors]]:
        """Features of these clips and of these captions, batch by batch."""
        was_training = self.model.training
        self.model.eval()
        try:
            return self._clips(clips), self._captions(captions)
        finally:
            self.model.train(was_training)

    def _clips(self, rows: range) -> list[ItemTensors]:
        if not rows:
            return []
        parts = []
        config = self.config
        loader = clip_loader(self.split, config.data, batch_size=config.eval.batch_size, rows=rows)
        for batch in _with_progress(loader, f"Encode {self.split.name}: clips"):
            part = self.model.encode_video(on_device(batch, self.device)).to("cpu")
            names = [self.split.clips[i].video_id for i in batch["index"].tolist()]
            _require_finite(part, "video", "clip", names)
            parts.append(part)
        return parts

    def _captions(self, rows: range) -> list[ItemTensors]:
        if not rows:
            return []
        parts = []
        config = self.config
        loader = caption_loader(self.split, self.tokenizer, config.data, batch_size=config.eval.batch_size, rows=rows)
        for batch in _with_progress(loader, f"Encode {self.split.name}: captions"):
            part = self.model.encode_text(on_device(batch, self.device)).to("cpu")
            names = [self.split.captions[i] for i in batch["index"].tolist()]
            _require_finite(part, "text", "caption", names)
            parts.append(part)
        return parts


def _with_progress(loader: Any, description: str) -> Iterable[Any]:
    """A bar, in the first process alone."""
    return with_progress(loader, description) if rank_and_world()[0] == 0 else loader


def _joined(parts: list[ItemTensors]) -> ItemTensors:
    return type(parts[0]).cat(parts)


def _require_finite(features: ItemTensors, tower: str, unit: str, names: list[str]) -> None:
    columns = features.compared()
    broken = [name for i, name in enumerate(names) if not all(squares_are_finite(column[i]) for column in columns)]
    if broken:
        raise NotFinite(
            f"the {tower} tower gave NaN, infinity, or numbers whose squares overflow, for {len(broken)} of "
            f"{len(names)} {unit}s of a batch, first for {broken[0]!r}; the weights have diverged: train again with a "
            "lower train.lr, or with train.precision no"
        )
