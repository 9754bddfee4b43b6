"""Settings of a run that follow from the model it begins with, where the user has said nothing else.

A model that is not CLIP brings its own pictures, captions and loss. They are put into the configuration before anything
else reads it: frames are cached, features compared, and runs resumed by what `config.json` then shows.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from emcl_train.config import RunConfig, flattened
from emcl_train.errors import UserError
from emcl_train.kinds import TOWERS
from emcl_train.reading.open_clip_fields import words_of
from emcl_train.reading.tower_fields import FIELDS, OPEN_CLIP
from emcl_train.recipes import RECIPES
from emcl_train.runs.contents import CLIP_CONFIG, CONFIG, FEATURES, load_config
from emcl_train.runs.files import json_if_whole
from emcl_train.weights.hub import CLIP_WAY_OUT
from emcl_train.weights.prepared import captions_of, description_of, family_of, pictures_of

FOLLOWING = (
    "data.image_size", "data.resize", "data.max_words", "data.clean_captions", "data.num_frames", "data.frame_sampling",
    "train.loss",
)  # fmt: skip
"""Settings that a model may bring along."""
OF_A_MODEL = ("model.clip", "model.init_from", "from_features")
"""Settings that say which one it is."""


def settled(config: RunConfig, said: Collection[str] | None = None) -> RunConfig:
    """A configuration with what its model brings along; CLIP brings nothing, and its configurations stay as they are.

    A configuration is settled once: what was said as the recipe has it cannot be seen in its values any more.

    Args:
        config: of a run. One that goes on takes what its own config.json has.
        said: names of settings that the user has said, which stay, such as "train.loss". None: those that are not as
            the recipe has them.

    Raises:
        UserError: the model's files are damaged, or prepare pictures in a way that is not built here.
    """
    if config.model.system != "clip" or config.answers_questions:
        return config
    goes_on = config.resume and (config.out / CONFIG).is_file()
    brought = _of_run_that_goes_on(config.out) if goes_on else _brought(config)
    if not brought:
        return config
    said = _said_by_values(config) if said is None else said
    data = {name.removeprefix("data."): value for name, value in brought.items() if name.startswith("data.")}
    data = {name: value for name, value in data.items() if f"data.{name}" not in said}
    loss = config.train.loss if "train.loss" in said else brought["train.loss"]
    return replace(config, data=replace(config.data, **data), train=replace(config.train, loss=loss))


def said_in(arguments: Sequence[str]) -> set[str]:
    """Names of the settings behind the flags that a user has typed."""
    flags = (argument.split("=")[0] for argument in arguments if argument.startswith("--"))
    return {flag[2:].replace("-", "_") for flag in flags}


def of_another_model(config: RunConfig, base: RunConfig, run: Path | None) -> dict[str, Any]:
    """The recipe's settings, by their names, in place of those that another model has brought along.

    Args:
        config: whose model is to be taken.
        base: the settings of a file or a run, of which `config` was made.
        run: the folder of the run; None: of a file.

    Returns:
        {} where the model is the same.

    Raises:
        UserError: the file's model cannot be had.
    """
    asked, before = flattened(asdict(config)), flattened(asdict(base))
    if base.model.system != "clip" or all(asked[name] == before[name] for name in OF_A_MODEL):
        return {}
    usual = _usual(base)
    brought = usual | (_brought(base) if run is None else _of_run(run))
    return {name: usual[name] for name in FOLLOWING if before[name] == brought[name]}


def _usual(config: RunConfig) -> dict[str, Any]:
    make = RECIPES.get(config.recipe)
    usual = flattened(asdict(RunConfig() if make is None else make()))
    return {name: usual[name] for name in FOLLOWING}


def _said_by_values(config: RunConfig) -> set[str]:
    usual = _usual(config)
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
    content, file = description_of(config.model.clip, family)
    try:
        positions = FIELDS[family].positions(content)
        frames = FIELDS[family].frames(content)
        words = words_of(content) if family == OPEN_CLIP else None
    except ValueError as error:
        raise UserError(f"{file} does not describe a {TOWERS[family].label}: {error}; {CLIP_WAY_OUT}") from error
    pictures = pictures_of(config.model.clip, family)
    tokenizer = config.model.clip if config.model.tokenizer is None else config.model.tokenizer
    captions = captions_of(tokenizer, family, positions)
    full = TOWERS[family].full_length
    of_clips = {} if frames is None else {"data.num_frames": frames, "data.frame_sampling": "uniform"}
    return of_clips | {
        "data.image_size": pictures.image_size,
        "data.resize": pictures.resize,
        "data.max_words": positions if full else min(config.data.max_words, captions.longest),
        "data.clean_captions": captions.cleaning if words is None else words.cleaning,
        "train.loss": _loss(family, content),
    }


def _loss(family: str, described: Mapping[str, Any]) -> str:
    """What described towers were trained with."""
    return FIELDS[family].loss(described) or TOWERS[family].loss


def _of_run(folder: Path) -> dict[str, Any]:
    """What the towers of another run brought along, from its folder."""
    described = json_if_whole(folder / CLIP_CONFIG)
    family = described.get("model_type") if isinstance(described, dict) else None
    if not isinstance(family, str) or family not in FIELDS or not (folder / CONFIG).is_file():
        return {}
    data = load_config(folder).data
    names = [name.removeprefix("data.") for name in FOLLOWING if name.startswith("data.")]
    own = {f"data.{name}": getattr(data, name) for name in names if _follows(name, family)}
    return own | {"train.loss": _loss(family, described)}


def _of_run_that_goes_on(folder: Path) -> dict[str, Any]:
    """As `_of_run`, with the loss that the run was started with, whosever choice it was."""
    brought = _of_run(folder)
    return brought and brought | {"train.loss": load_config(folder).train.loss}


def _follows(name: str, family: str) -> bool:
    """Whether a setting of the data follows from towers: which frames are taken, only of those that see all at once."""
    return not TOWERS[family].per_frame or name.removeprefix("data.") not in ("num_frames", "frame_sampling")


def _of_record(path: Path, key: str, config: RunConfig) -> dict[str, Any]:
    """What the towers brought along that made a folder of features."""
    record = json_if_whole(path)
    described = record.get(key) if isinstance(record, dict) else None
    family = described.get("model_type") if isinstance(described, dict) else None
    if not (isinstance(record, dict) and isinstance(described, dict) and isinstance(family, str) and family in FIELDS):
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
    return found | {"train.loss": _loss(family, described)}
