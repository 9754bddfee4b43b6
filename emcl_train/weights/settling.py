"""Settings of a run that follow from the model it begins with, where the user has said nothing else.

A model that is not CLIP brings its own pictures, captions and loss. They are put into the configuration before anything
else reads it: frames are cached, features compared, and runs resumed by what `config.json` then shows.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from emcl_train.config import RunConfig, flattened
from emcl_train.errors import UserError
from emcl_train.kinds import TOWERS
from emcl_train.reading.picture_fields import SQUARES
from emcl_train.reading.plain_files import LARGEST_DESCRIPTION
from emcl_train.reading.tower_fields import FIELDS
from emcl_train.recipes import RECIPES
from emcl_train.runs.contents import CLIP_CONFIG, CONFIG, FEATURES, load_config
from emcl_train.runs.files import json_if_whole, read_json
from emcl_train.weights.hub import CLIP_WAY_OUT, TRANSFORMERS_CONFIG, file_of
from emcl_train.weights.prepared import captions_of, family_of, pictures_of

FOLLOWING = (
    "data.image_size", "data.resize", "data.max_words", "data.clean_captions", "data.num_frames", "data.frame_sampling",
    "train.loss",
)  # fmt: skip
"""Settings that a model may bring along."""


def settled(config: RunConfig, said: Collection[str] | None = None) -> RunConfig:
    """A configuration with what its model brings along; CLIP brings nothing, and its configurations stay as they are.

    Args:
        config: of a run that begins. One that goes on has all of it in its own config.json.
        said: names of settings that the user has said, which stay, such as "train.loss". None: those that are not as
            the recipe has them. The loss of a configuration that was settled before stays anyhow.

    Raises:
        UserError: the model's files are damaged, or prepare pictures in a way that is not built here.
    """
    if config.resume or config.model.system != "clip" or config.answers_questions:
        return config
    brought = _brought(config)
    if not brought:
        return config
    said = _said_by_values(config) if said is None else set(said)
    if config.data.resize in SQUARES:  # no recipe has these: it was settled before, and its loss is somebody's choice
        said.add("train.loss")

    data = {name.removeprefix("data."): value for name, value in brought.items() if name.startswith("data.")}
    data = {name: value for name, value in data.items() if f"data.{name}" not in said}
    loss = config.train.loss if "train.loss" in said else brought["train.loss"]
    return replace(config, data=replace(config.data, **data), train=replace(config.train, loss=loss))


def said_in(arguments: Sequence[str]) -> set[str]:
    """Names of the settings behind the flags that a user has typed."""
    flags = (argument.split("=")[0] for argument in arguments if argument.startswith("--"))
    return {flag[2:].replace("-", "_") for flag in flags}


def _said_by_values(config: RunConfig) -> set[str]:
    make = RECIPES.get(config.recipe)
    usual = flattened(asdict(RunConfig() if make is None else make()))
    now = flattened(asdict(config))
    return {name for name in FOLLOWING if now[name] != usual[name]}


def _brought(config: RunConfig) -> dict[str, Any]:
    """What the model brings along, by the names of settings; {} for a CLIP."""
    if config.from_features is not None:
        return _of_record(config.from_features / FEATURES, "clip_config", config)
    if config.model.init_from is not None:
        return _of_run(config.model.init_from.expanduser().parent)
    family = family_of(config.model.clip)
    if family == "clip":
        return {}

    # The settings of the text tower are read again, each of its kind, where towers are described.
    file = file_of(config.model.clip, TRANSFORMERS_CONFIG)
    content = read_json(file, CLIP_WAY_OUT, keys=(), largest=LARGEST_DESCRIPTION)
    try:
        positions = FIELDS[family].positions(content)
        frames = FIELDS[family].frames(content)
    except ValueError as error:
        raise UserError(f"{file} does not describe a {TOWERS[family].label}: {error}; {CLIP_WAY_OUT}") from error
    pictures = pictures_of(config.model.clip)
    tokenizer = config.model.clip if config.model.tokenizer is None else config.model.tokenizer
    captions = captions_of(tokenizer, family, positions)
    full = TOWERS[family].full_length
    of_clips = {} if frames is None else {"data.num_frames": frames, "data.frame_sampling": "uniform"}
    return of_clips | {
        "data.image_size": pictures.image_size,
        "data.resize": pictures.resize,
        "data.max_words": positions if full else min(config.data.max_words, captions.longest),
        "data.clean_captions": captions.cleaning,
        "train.loss": TOWERS[family].loss,
    }


def _of_run(folder: Path) -> dict[str, Any]:
    """What the towers of another run brought along, from its folder."""
    described = json_if_whole(folder / CLIP_CONFIG)
    family = described.get("model_type") if isinstance(described, dict) else None
    if not isinstance(family, str) or family not in FIELDS or not (folder / CONFIG).is_file():
        return {}
    data = load_config(folder).data
    names = [name.removeprefix("data.") for name in FOLLOWING if name.startswith("data.")]
    own = {f"data.{name}": getattr(data, name) for name in names if _follows(name, family)}
    return own | {"train.loss": TOWERS[family].loss}


def _follows(name: str, family: str) -> bool:
    """Whether a setting of the data follows from towers: which frames are taken, only of those that see all at once."""
    return not TOWERS[family].per_frame or name.removeprefix("data.") not in ("num_frames", "frame_sampling")


def _of_record(path: Path, key: str, config: RunConfig) -> dict[str, Any]:
    """What the towers brought along that made a folder of features."""
    record = json_if_whole(path)
    described = record.get(key) if isinstance(record, dict) else None
    family = described.get("model_type") if isinstance(described, dict) else None
    if not isinstance(record, dict) or not isinstance(family, str) or family not in FIELDS:
        return {}
    settings = record.get("settings")
    made = settings if isinstance(settings, dict) else {}
    usual = flattened(asdict(config))
    found = {}
    for name in FOLLOWING[:-1]:
        value = made.get(name)
        # Values of other kinds are refused where features are opened.
        if _follows(name, family) and type(value) is type(usual[name]):
            found[name] = value
    return found | {"train.loss": TOWERS[family].loss}
