"""Encode the clips and captions of a split."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from emcl_train.config import RunConfig
from emcl_train.data.annotations import Split
from emcl_train.data.loader import caption_loader, clip_loader
from emcl_train.errors import UserError
from emcl_train.models import RetrievalModel, TextFeatures, VideoFeatures, on_device
from emcl_train.models.features import squares_are_finite
from emcl_train.terminal import with_progress


@dataclass(frozen=True)
class Embeddings:
    """What the towers make of a split, on the CPU: Q captions and G clips."""

    text: TextFeatures
    video: VideoFeatures
    caption_clip: Int64[Tensor, "Q"]

    def tensors(self) -> dict[str, Tensor]:
        """As embeddings.safetensors names them: by their fields, and the feature of a whole caption "text"."""
        text = self.text.tensors()
        text["text"] = text.pop("caption")
        return {**text, **self.video.tensors(), "caption_clip": self.caption_clip}


@torch.no_grad()
def embed_split(
    model: RetrievalModel, split: Split, tokenizer: Any, config: RunConfig, device: torch.device | str = "cpu"
) -> Embeddings:
    """Encode every clip and every caption of a split.

    Args:
        model: encodes in evaluation mode, in float32 whatever the training precision was.
        split: the clips and captions.
        tokenizer: of the captions.
        config: how frames are sampled and captions cut, and `eval.batch_size`.
        device: where the model is.

    Raises:
        UserError: a tower gives NaN or infinity; the first input it happened on is named.
    """
    was_training = model.training
    model.eval()
    try:
        video = _encode_clips(model, split, config, device)
        text = _encode_captions(model, split, tokenizer, config, device)
    finally:
        model.train(was_training)
    return Embeddings(text, video, torch.tensor(split.caption_clip))


def _encode_clips(model: RetrievalModel, split: Split, config: RunConfig, device: torch.device | str) -> VideoFeatures:
    parts = []
    loader = clip_loader(split, config.data, batch_size=config.eval.batch_size)
    for batch in with_progress(loader, f"Encode {split.name}: clips"):
        part = model.encode_video(on_device(batch, device)).to("cpu")

        # Padding is no frame, and whatever a tower makes of it is never read.
        names = [split.clips[i].video_id for i in batch["index"].tolist()]
        _require_finite(part.frames.masked_fill(~part.frame_mask[..., None], 0.0), "video", "clip", names)
        parts.append(part)
    return VideoFeatures.cat(parts)


def _encode_captions(
    model: RetrievalModel, split: Split, tokenizer: Any, config: RunConfig, device: torch.device | str
) -> TextFeatures:
    parts = []
    loader = caption_loader(split, tokenizer, config.data, batch_size=config.eval.batch_size)
    for batch in with_progress(loader, f"Encode {split.name}: captions"):
        part = model.encode_text(on_device(batch, device)).to("cpu")
        _require_finite(part.caption, "text", "caption", [split.captions[i] for i in batch["index"].tolist()])
        parts.append(part)
    return TextFeatures.cat(parts)


def _require_finite(features: Tensor, tower: str, unit: str, names: list[str]) -> None:
    broken = [name for name, item in zip(names, features, strict=True) if not squares_are_finite(item)]
    if broken:
        raise UserError(
            f"the {tower} tower gave NaN, infinity, or numbers whose squares overflow, for {len(broken)} of "
            f"{len(names)} {unit}s of a batch, first for {broken[0]!r}; the weights have diverged: train again with a "
            "lower train.lr, or with train.precision no"
        )
