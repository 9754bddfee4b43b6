"""CLIP from a folder in the layout of transformers, or from an entry of the hub, which has the same files.

The configuration is read here and known settings are taken from it; transformers gets these and reads the weights. What
else a folder may hold for it to follow, such as adapters to other models, is refused.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPConfig, CLIPModel

from emcl_train.errors import UserError
from emcl_train.reading.archives import require_unpacked_size
from emcl_train.reading.plain_files import LARGEST_DESCRIPTION
from emcl_train.runs.clip_config import ATTENTION, clip_config_of_fields, numbers_in, without_warnings
from emcl_train.runs.files import json_if_whole, read_json
from emcl_train.runs.torch_file import load_torch_file
from emcl_train.weights.hub import (
    CLIP_WAY_OUT,
    OPEN_CLIP_CONFIG,
    TRANSFORMERS_CONFIG,
    file_of,
    hub_options,
    not_loaded,
    optional_file,
    require_place,
)
from emcl_train.weights.open_clip import prepared_otherwise

WEIGHTS = ("*.safetensors", "*.bin")
ADAPTERS = "adapter_config.json"
"""With it in a folder, transformers would load the model that it names, from wherever that is."""


def require_clip(name: str, *, goes_on: bool = False) -> str:
    """The folder or hub name behind `model.clip`; a run that goes on has its pictures prepared as when it began.

    Raises:
        UserError: there is no such thing, or it is of another model.
    """
    require_place(name, "model.clip", CLIP_WAY_OUT)
    path = Path(name).expanduser()
    folder = str(path) if path.is_dir() else name
    if (path / OPEN_CLIP_CONFIG).is_file() and not (path / TRANSFORMERS_CONFIG).is_file():
        files = sorted(
            file.name for pattern in ("open_clip*.safetensors", "open_clip*.bin") for file in path.glob(pattern)
        )
        raise UserError(
            f"model.clip is {name}, a folder of OpenCLIP; pass --model.clip the file of weights in it"
            f"{f', {path / files[0]}' if files else ''}"
        )
    clip_config_in(name)

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


def clip_config_in(name: str) -> CLIPConfig:
    """The known settings of the CLIP that a folder or hub name holds.

    Raises:
        UserError: there is none, it is of another model, or its towers are larger than its weights.
    """
    try:
        file = file_of(name, TRANSFORMERS_CONFIG)
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.clip is {name}, which cannot be had: {not_loaded(name, error)}; {CLIP_WAY_OUT}"
        ) from error

    content = read_json(file, CLIP_WAY_OUT, what="a configuration", keys=(), largest=LARGEST_DESCRIPTION)
    model_type = content.get("model_type")
    if model_type != "clip":
        raise UserError(
            f"model.clip is {name}, a checkpoint of type {str(model_type)[:60]!r} instead of 'clip'; {CLIP_WAY_OUT}"
        )
    weights = numbers_in(*files_of_weights(Path(name).expanduser()))
    return clip_config_of_fields(content, str(file), weights=weights)


def pretrained_clip(name: str, *, goes_on: bool = False) -> CLIPModel:
    """Weights from a hub name or a local folder in the layout of `save_pretrained`; every weight must be there.

    Args:
        name: of the hub, or the folder.
        goes_on: whether a run goes on, which began when weights that CLIP has not were left out.
    """
    folder = require_clip(name, goes_on=goes_on)
    require_weights_alone(name, "model.clip", CLIP_WAY_OUT)

    chosen = {"config": clip_config_in(name), "attn_implementation": ATTENTION}
    clip: CLIPModel = loaded_whole(CLIPModel, folder, name, "CLIP", CLIP_WAY_OUT, goes_on=goes_on, **chosen)
    return clip


def loaded_whole(
    model_class: Any, folder: str, name: str, label: str, way_out: str, *, goes_on: bool = False, **chosen: Any
) -> Any:
    """A model of transformers with all weights of a folder or hub entry, each of them accounted for, in float32.

    Args:
        model_class: of transformers.
        folder: the folder, or the hub name.
        name: as it was given, for errors.
        label: of the model, for errors.
        way_out: what else `model.clip` may be.
        goes_on: whether a run goes on, which began when weights that the model has not were left out.
        **chosen: further arguments of `from_pretrained`, its configuration among them.

    Raises:
        UserError: weights are missing, too many, of another shape, or damaged.
    """
    # A missing weight, or one of another shape, is reported and not raised, so that it can be named below.
    options: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True, **hub_options(name)}
    try:
        with without_warnings():  # what is missing, or too much, is said below
            loaded: Any = model_class.from_pretrained(
                folder, trust_remote_code=False, dtype=torch.float32, **chosen, **options
            )
        model, loading = loaded
    except MemoryError:
        raise
    except Exception as error:  # readers raise whatever damaged bytes lead to
        reason = broken_file(Path(name).expanduser()) or not_loaded(name, error)
        raise UserError(f"model.clip is {name}, which could not be loaded: {reason}; {way_out}") from error

    # transformers fills what a checkpoint lacks with random numbers, which would look like a bad result.
    absent = sorted(loading["missing_keys"]) + sorted(str(key[0]) for key in loading["mismatched_keys"])
    if absent:
        raise UserError(
            f"model.clip is {name}, which lacks {len(absent)} of {label}'s weights, or has them in another shape "
            f"(first: {absent[0]}); {way_out}"
        )

    # And it leaves out what the model does not have. Old checkpoints hold positions that are only counted, no weights.
    others = sorted(str(key) for key in loading["unexpected_keys"] if not str(key).endswith(".position_ids"))
    if others and not goes_on:
        raise UserError(
            f"model.clip is {name}, which has {len(others)} weights that {label} has not (first: {others[0]}); without "
            f"them it would be another model; {way_out}"
        )
    return model.float()


def files_of_weights(folder: Path) -> Iterator[Path]:
    """The files of weights in a folder, if it is one."""
    if folder.is_dir():
        for pattern in WEIGHTS:
            yield from sorted(folder.glob(pattern))


def require_weights_alone(name: str, setting: str, way_out: str) -> None:
    """Raise a UserError where a checkpoint would lead transformers to other files, or unpacks to more than it may.

    Args:
        name: of the hub, or the folder.
        setting: that names it, for errors.
        way_out: what else the setting may be.
    """
    folder = Path(name).expanduser()
    try:
        adapters = (folder / ADAPTERS).exists() or optional_file(name, ADAPTERS) is not None
    except (OSError, ValueError) as error:
        raise UserError(f"{setting} is {name}, which cannot be had: {not_loaded(name, error)}; {way_out}") from error
    if adapters:
        raise UserError(
            f"{setting} is {name}, which holds {ADAPTERS}: adapters, which name the model that they belong to. Merge "
            f"them into it, and save it by save_pretrained; {way_out}"
        )
    if not folder.is_dir():
        return

    # An index names the files that the weights are spread over.
    for index in sorted(folder.glob("*.index.json")):
        places = read_json(index, way_out, what="an index of weights", keys=("weight_map",))["weight_map"]
        names = set(map(str, places.values())) if isinstance(places, dict) else {str(places)[:60]}
        if elsewhere := sorted(file for file in names if Path(file).name != file):
            raise UserError(
                f"{index} names a file outside its folder, {elsewhere[0]!r}; bring the folder with its own files"
            )

    for path in folder.glob("*.bin"):
        try:
            require_unpacked_size(path)
        except ValueError as error:
            raise UserError(f"{setting} is {name}, which could not be loaded: {path.name}: {error}") from error


def broken_file(folder: Path) -> str | None:
    """The first file of `torch.save` in a folder that cannot be read, with what it is."""
    for path in sorted(folder.glob("*.bin")):
        try:
            load_torch_file(path)
        except ValueError as error:
            return f"{path.name}: {error}"
    return None
