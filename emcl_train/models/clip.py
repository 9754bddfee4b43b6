"""CLIP's two towers: from a hub name, a local folder, OpenAI's archive, or a small one with random weights."""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from emcl_train.config import ModelConfig
from emcl_train.errors import UserError
from emcl_train.flags import flag
from emcl_train.models.clip_file import Vocabulary, archive_config, archived_clip, configuration_of, look_at_file
from emcl_train.models.features import widened
from emcl_train.runs.files import json_if_whole
from emcl_train.runs.torch_file import load_torch_file
from emcl_train.weights.elsewhere import require_built_here
from emcl_train.weights.files import read_state
from emcl_train.weights.hub import CLIP_WAY_OUT, hub_options, not_loaded, require_place, require_places
from emcl_train.weights.open_clip import OPEN_CLIP_CONFIG, prepared_otherwise
from emcl_train.weights.openai import PIXEL_MEAN, PIXEL_STD


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
        return CLIPTowers(CLIPModel(CLIPConfig.from_dict(dict(clip_config))))
    if sizes is None and config.clip == "random":
        return CLIPTowers(random_clip(config, vocabulary, image_size=image_size, max_words=max_words))

    # Built from a checkpoint.
    source = f"model.init_from {config.init_from}" if sizes is not None else config.clip
    if sizes is not None:
        clip = CLIPModel(archive_config(config, sizes, vocabulary, source, recorded or configuration_of(config.clip)))
    elif Path(config.clip).expanduser().is_file():
        clip = archived_clip(config, vocabulary, recorded)
    else:
        clip = pretrained_clip(config.clip, goes_on=recorded is not None)

    # It has to take the frames, the captions and the token ids of the run.
    expected_size = clip.vision_model.config.image_size
    longest = clip.text_model.config.max_position_embeddings
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
    if vocabulary.size > clip.text_model.config.vocab_size:
        raise UserError(
            f"the tokenizer has {vocabulary.size} tokens but the text tower of {source} knows "
            f"{clip.text_model.config.vocab_size}; tokenizer and weights must come from the same checkpoint"
        )
    return CLIPTowers(clip)


def look_at_clip(config: ModelConfig, *, goes_on: bool = False) -> None:
    """Look at what `config.clip` and `config.init_from` name, before anything that takes time.

    Args:
        config: of the model.
        goes_on: whether a run goes on, which has found `init_from` good already.

    Raises:
        UserError: there is no such thing, a file is damaged or holds no CLIP, or a folder is of another model.
    """
    require_places(config)
    if config.init_from is not None:
        # The towers come from there, and `clip` only names the tokenizer.
        if not goes_on:
            require_built_here(read_state(config.init_from.expanduser()), config.init_from)
        return

    path = Path(config.clip).expanduser()
    if path.is_file():
        look_at_file(path, goes_on=goes_on)
    elif config.clip != "random":
        require_clip(config.clip, goes_on=goes_on)


def random_clip(config: ModelConfig, vocabulary: Vocabulary, *, image_size: int, max_words: int) -> CLIPModel:
    """A CLIP of `config.random_clip`'s size with freshly drawn weights.

    Raises:
        UserError: heads do not divide the width, or patches the image.
    """
    size = config.random_clip
    if size.width % size.heads:
        raise UserError(
            f"model.random_clip.width is {size.width}, which model.random_clip.heads = {size.heads} does not divide; "
            f"choose a width that is a multiple of the heads"
        )
    if image_size % size.patch_size:
        raise UserError(
            f"data.image_size is {image_size}, which model.random_clip.patch_size = {size.patch_size} does not divide; "
            f"choose an image size that is a multiple of the patch size"
        )

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
    vision = {"image_size": image_size, "patch_size": size.patch_size}
    return CLIPModel(CLIPConfig(text_config=tower | text, vision_config=tower | vision, projection_dim=size.width))


def require_clip(name: str, *, goes_on: bool = False) -> str:
    """The folder or hub name behind `model.clip`; a run that goes on has its pictures prepared as when it began.

    Raises:
        UserError: there is no such thing, or it is of another model.
    """
    require_place(name, "model.clip", CLIP_WAY_OUT)
    path = Path(name).expanduser()
    folder = str(path) if path.is_dir() else name
    if (path / OPEN_CLIP_CONFIG).is_file() and not (path / "config.json").is_file():
        files = sorted(
            file.name for pattern in ("open_clip*.safetensors", "open_clip*.bin") for file in path.glob(pattern)
        )
        raise UserError(
            f"model.clip is {name}, a folder of OpenCLIP; pass --model.clip the file of weights in it"
            f"{f', {path / files[0]}' if files else ''}"
        )

    try:
        model_type = CLIPConfig.get_config_dict(folder, **hub_options(name))[0].get("model_type")
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.clip is {name}, which cannot be had: {not_loaded(name, error)}; {CLIP_WAY_OUT}"
        ) from error

    if model_type != "clip":
        raise UserError(f"model.clip is {name}, a checkpoint of type {model_type!r} instead of 'clip'; {CLIP_WAY_OUT}")

    # What a folder says of the pictures, if it does.
    pictures = json_if_whole(path / "preprocessor_config.json")
    if isinstance(pictures, dict) and not goes_on:
        known = {"mean": pictures.get("image_mean"), "std": pictures.get("image_std")}
        try:
            otherwise = list(prepared_otherwise(known))
        except ValueError as error:
            said = str(error).replace("preprocess_cfg.", "image_")
            raise UserError(f"preprocessor_config.json of {name} is damaged: {said}; {CLIP_WAY_OUT}") from error
        if otherwise:
            raise UserError(
                f"model.clip is {name}, whose preprocessor_config.json prepares pictures otherwise than CLIP, as is "
                f"done here: it has {', '.join(otherwise)}; {CLIP_WAY_OUT}"
            )
    return folder


def _broken_file(folder: Path) -> str | None:
    """The first file of `torch.save` in a folder that cannot be read, with what it is."""
    for path in sorted(folder.glob("*.bin")):
        try:
            load_torch_file(path)
        except ValueError as error:
            return f"{path.name}: {error}"
    return None


def pretrained_clip(name: str, *, goes_on: bool = False) -> CLIPModel:
    """Weights from a hub name or a local folder in the layout of `save_pretrained`; every weight must be there.

    Args:
        name: of the hub, or the folder.
        goes_on: whether a run goes on, which began when weights that CLIP has not were left out.
    """
    # A missing weight, or one of another shape, is reported and not raised, so that it can be named below.
    options = {"output_loading_info": True, "ignore_mismatched_sizes": True, **hub_options(name)}
    try:
        loaded: Any = CLIPModel.from_pretrained(require_clip(name, goes_on=goes_on), **options)
        clip, loading = loaded
    except (OSError, ValueError, RuntimeError, KeyError, EOFError, UnpicklingError, SafetensorError) as error:
        reason = _broken_file(Path(name).expanduser()) or not_loaded(name, error)
        raise UserError(f"model.clip is {name}, which could not be loaded: {reason}; {CLIP_WAY_OUT}") from error

    # transformers fills what a checkpoint lacks with random numbers, which would look like a bad result.
    absent = sorted(loading["missing_keys"]) + sorted(str(key[0]) for key in loading["mismatched_keys"])
    if absent:
        raise UserError(
            f"model.clip is {name}, which lacks {len(absent)} of CLIP's weights, or has them in another shape "
            f"(first: {absent[0]}); {CLIP_WAY_OUT}"
        )

    # And it leaves out what CLIP does not have. Old checkpoints hold positions that are only counted, no weights.
    others = sorted(str(key) for key in loading["unexpected_keys"] if not str(key).endswith(".position_ids"))
    if others and not goes_on:
        raise UserError(
            f"model.clip is {name}, which has {len(others)} weights that CLIP has not (first: {others[0]}); without "
            f"them it would be another model; {CLIP_WAY_OUT}"
        )
    return clip.float()
