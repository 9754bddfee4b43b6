"""CLIP's two towers: from a hub name, a local folder, OpenAI's archive, or a small one with random weights."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from emcl_train.config import ModelConfig
from emcl_train.errors import UserError
from emcl_train.flags import flag
from emcl_train.models.clip_file import (
    Vocabulary,
    archive_config,
    archived_clip,
    configuration_of,
    look_at_file,
    openai_sizes,
)
from emcl_train.models.clip_folder import clip_config_in, pretrained_clip, require_clip
from emcl_train.models.features import widened
from emcl_train.models.interface import TrainedModel
from emcl_train.runs.clip_config import build_clip, clip_config_of_fields
from emcl_train.weights.elsewhere import require_built_here
from emcl_train.weights.files import read_state
from emcl_train.weights.hub import require_places
from emcl_train.weights.openai import PIXEL_MEAN, PIXEL_STD
from emcl_train.weights.release import towers_in

MAX_LOGIT_SCALE = 100.0
"""CLIP's factor never rises above this in training; see `TowersModel.hold_logit_scale`."""


class CLIPTowers(nn.Module):
    """Captions and frames to CLIP's shared space, not normalised."""

    text_inputs = ("input_ids", "attention_mask")
    """Entries of a batch that `encode_text` takes."""
    frame_inputs = ("frames",)
    """Entries of a batch that `encode_frames` takes."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip
        self.width: int = clip.visual_projection.out_features

    def encode_text(
        self, input_ids: Int64[Tensor, "A L"], attention_mask: Int64[Tensor, "A L"], *, tokens: bool = False
    ) -> tuple[Float[Tensor, "A D"], Float[Tensor, "A L D"] | None]:
        """Features of captions in CLIP's shared space, not normalised.

        Args:
            input_ids: of the tokens, start and end included.
            attention_mask: 1 for tokens, 0 for padding.
            tokens: whether the features of every token are wanted too.

        Returns:
            The feature of each whole caption, read at its end token; with `tokens` that of every token, else None.
        """
        encoded = self.clip.text_model(input_ids=input_ids, attention_mask=attention_mask)
        caption = widened(self.clip.text_projection(encoded.pooler_output))
        if not tokens:
            return caption, None
        return caption, widened(self.clip.text_projection(encoded.last_hidden_state))

    def encode_frames(self, frames: UInt8[Tensor, "B F 3 S S"]) -> Float[Tensor, "B F D"]:
        """Features of single frames, each for itself, from their uint8 pixels in RGB."""
        # Constants of the precision of the weights: rounded to float32 first, they would be off by 1e-7 in float64.
        exact = torch.promote_types(self.clip.visual_projection.weight.dtype, torch.float32)
        mean = torch.tensor(PIXEL_MEAN, dtype=exact, device=frames.device).view(3, 1, 1)
        std = torch.tensor(PIXEL_STD, dtype=exact, device=frames.device).view(3, 1, 1)

        pixels = (frames.flatten(0, 1).to(exact) / 255 - mean) / std  # [B·F, 3, S, S]
        encoded = self.clip.vision_model(pixel_values=pixels)
        features = widened(self.clip.visual_projection(encoded.pooler_output))
        return features.unflatten(0, frames.shape[:2])


class LogitScale(nn.Module):
    """Where `CLIPModel` has it, without the rest."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(clip.logit_scale.detach().clone())


class StoredTowers(nn.Module):
    """In place of towers whose features lie in files: passes them on, and keeps CLIP's logit scale, which may learn."""

    text_inputs = ("caption_features", "token_features")
    frame_inputs = ("frame_features",)

    def __init__(self, towers: CLIPTowers) -> None:
        super().__init__()
        self.width = towers.width
        self.clip = LogitScale(towers.clip)

    def encode_text(
        self, caption_features: Float[Tensor, "A D"], token_features: Float[Tensor, "A L D"], *, tokens: bool = False
    ) -> tuple[Float[Tensor, "A D"], Float[Tensor, "A L D"] | None]:
        """What `CLIPTowers.encode_text` gave of the captions. Without `tokens`, L may be 0: nothing was read."""
        return caption_features, token_features if tokens else None

    def encode_frames(self, frame_features: Float[Tensor, "B F D"]) -> Float[Tensor, "B F D"]:
        """What `CLIPTowers.encode_frames` gave of the clips."""
        return frame_features


class TowersModel(TrainedModel):
    """A model on CLIP's towers, or on what lies in files in place of them: it learns CLIP's logit scale."""

    towers: CLIPTowers | StoredTowers

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """CLIP's factor from cosine to logits."""
        # Not clamped: OpenAI's weights store a value whose exp is 100.0000076, from which a clamp at 100 would keep
        # every gradient.
        scale: Tensor = self.towers.clip.logit_scale.exp()
        return scale.reshape(())  # [1] if it is sharded

    @torch.no_grad()
    def hold_logit_scale(self) -> None:
        """Bring CLIP's factor back to 100 if a step of the optimizer has taken it higher, as all peers do."""
        self.towers.clip.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))


def build_towers(
    config: ModelConfig,
    vocabulary: Vocabulary,
    *,
    image_size: int,
    max_words: int,
    clip_config: Mapping[str, Any] | None = None,
    sizes: Mapping[str, Tensor] | None = None,
    recorded: Mapping[str, Any] | None = None,
) -> CLIPTowers:
    """The towers that `config.clip` names, checked against the data they will see.

    Args:
        config: says which.
        vocabulary: of the tokenizer.
        image_size: height and width of the frames in pixels.
        max_words: tokens of a caption at most.
        clip_config: build these towers, with random weights, instead; nothing is read.
        sizes: CLIP's weights under OpenAI's names: build towers of their sizes, with random weights, instead.
        recorded: for what no shape shows, the configuration that was saved with `sizes`, or with which a run began;
            without it, that of `config.clip`.

    Raises:
        UserError: the checkpoint cannot be read, is not CLIP's, or does not fit the data.
    """
    # Built from what is known: nothing to compare with the data.
    if clip_config is not None:
        said_by = "the configuration of the towers (clip_config.json)"
        clip = build_clip(clip_config_of_fields(clip_config, said_by))
        _require_data(clip, vocabulary, image_size, max_words, said_by)
        return CLIPTowers(clip)
    if sizes is None and config.clip == "random":
        return CLIPTowers(random_clip(config, vocabulary, image_size=image_size, max_words=max_words))

    # Built from a checkpoint.
    source = f"model.init_from {config.init_from}" if sizes is not None else config.clip
    if sizes is not None:
        clip = build_clip(archive_config(config, sizes, vocabulary, source, recorded or configuration_of(config.clip)))
    elif Path(config.clip).expanduser().is_file():
        clip = archived_clip(config, vocabulary, recorded)
    else:
        clip = pretrained_clip(config.clip, goes_on=recorded is not None)

    _require_data(clip, vocabulary, image_size, max_words, source)
    return CLIPTowers(clip)


def _require_data(clip: CLIPModel, vocabulary: Vocabulary, image_size: int, max_words: int, source: str) -> None:
    """Raise a UserError where towers do not take the frames, the captions and the token ids of a run."""
    expected_size = clip.vision_model.config.image_size
    longest = clip.text_model.config.max_position_embeddings
    require_inputs(expected_size, longest, image_size=image_size, max_words=max_words, source=source)
    if vocabulary.size > clip.text_model.config.vocab_size:
        raise UserError(
            f"the tokenizer has {vocabulary.size} tokens but the text tower of {source} knows "
            f"{clip.text_model.config.vocab_size}; tokenizer and weights must come from the same checkpoint"
        )


def require_inputs(expected_size: int, longest: int, *, image_size: int, max_words: int, source: str) -> None:
    """Raise a UserError where towers do not take frames of this size, or captions of so many tokens."""
    if image_size != expected_size:
        raise UserError(
            f"data.image_size is {image_size} but the vision tower of {source} takes {expected_size}; "
            f"pass {flag('data.image_size')} {expected_size}"
        )
    if max_words > longest:
        raise UserError(
            f"data.max_words is {max_words} but the text tower of {source} takes at most {longest} tokens; "
            f"pass {flag('data.max_words')} {longest} or less"
        )


def look_at_clip(config: ModelConfig, *, goes_on: bool = False) -> dict[str, Any] | None:
    """Look at what `config.clip` and `config.init_from` name, before anything that takes time.

    Args:
        config: of the model.
        goes_on: whether a run goes on, which has found `init_from` good already.

    Returns:
        The sizes of the towers, as arguments of transformers' CLIPConfig; None where `config` itself says them, or
        where a run goes on.

    Raises:
        UserError: there is no such thing, a file is damaged or holds no CLIP, or a folder is of another model.
    """
    require_places(config)
    if config.init_from is not None:
        # The towers come from there, and `clip` only names the tokenizer.
        if goes_on:
            return None
        state = read_state(config.init_from.expanduser())
        require_built_here(state, config.init_from)
        towers = towers_in(state)
        source = f"model.init_from {config.init_from}"
        return openai_sizes(towers, source, heads=None, eos_token_id=0, pad_token_id=0) if towers else None

    path = Path(config.clip).expanduser()
    if path.is_file():
        return look_at_file(path, goes_on=goes_on)
    if config.clip == "random":
        return None
    require_clip(config.clip, goes_on=goes_on)
    return dict(clip_config_in(config.clip).to_dict())


def require_random_sizes(config: ModelConfig, *, image_size: int) -> None:
    """Raise a UserError where heads do not divide the width of a random CLIP, or patches the image."""
    size = config.random_clip
    if size.width % size.heads:
        raise UserError(
            f"model.random_clip.width is {size.width}, which model.random_clip.heads = {size.heads} does not divide; "
            f"choose a width that is a multiple of the heads"
        )
    patch_size = size.patch_of(image_size)
    if image_size % patch_size:
        raise UserError(
            f"data.image_size is {image_size}, which model.random_clip.patch_size = {patch_size} does not divide; "
            f"choose an image size that is a multiple of the patch size"
        )


def random_clip(config: ModelConfig, vocabulary: Vocabulary, *, image_size: int, max_words: int) -> CLIPModel:
    """A CLIP of `config.random_clip`'s size with freshly drawn weights.

    Raises:
        UserError: heads do not divide the width, or patches the image.
    """
    require_random_sizes(config, image_size=image_size)
    size = config.random_clip

    # Both towers are of one size.
    tower = {
        "hidden_size": size.width,
        "intermediate_size": 4 * size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "projection_dim": size.width,
    }
    text = {
        "vocab_size": vocabulary.size,
        "max_position_embeddings": max_words,
        "eos_token_id": vocabulary.eos_token_id,
        "pad_token_id": vocabulary.pad_token_id,
        "bos_token_id": None,
    }
    vision = {"image_size": image_size, "patch_size": size.patch_of(image_size)}
    return build_clip(CLIPConfig(text_config=tower | text, vision_config=tower | vision, projection_dim=size.width))
