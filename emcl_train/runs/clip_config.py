"""The configuration of a run's towers, as it was when the run was started, and how towers are built of one.

All configurations of towers go through here, whoever wrote them: a run's own, a folder's of transformers, that in the
metadata of an exported file, that of stored features. Known settings are taken, of their kinds and within bounds.

CLIP's is that of transformers' `CLIPModel`. Towers of other families are described by their known settings, their
`model_type`, the width of their features as `projection_dim`, and how their `pictures` are prepared.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPConfig, CLIPModel
from transformers.utils import logging

from emcl_train.errors import UserError
from emcl_train.flags import flag
from emcl_train.kinds import TOWERS as FAMILIES
from emcl_train.reading.clip_fields import ALWAYS, MOST_NUMBERS, known_fields, numbers_of
from emcl_train.reading.picture_fields import pictures_of_record
from emcl_train.reading.plain_files import LARGEST_DESCRIPTION
from emcl_train.reading.tower_fields import FIELDS
from emcl_train.runs.contents import CLIP_CONFIG, CONFIG, WEIGHTS
from emcl_train.runs.files import json_if_whole, read_json, write_json_atomic
from emcl_train.runs.open_clip_library import numbers_of_trunk

ATTENTION = "sdpa"
"""How attention is computed: by torch's own function, whatever a configuration names."""
TOWERS = "towers.safetensors"
"""The weights of towers beside the features that they made."""
SMALLEST_NUMBER = 2
"""Bytes of a weight in half precision."""


def towers_of_fields(content: Mapping[str, Any], said_by: str, *, weights: int | None = None) -> dict[str, Any]:
    """The description of towers, of known settings alone; see the module for what it holds.

    Args:
        content: of a file that this program wrote; or of one in transformers' format, for CLIP, which has no pictures.
        said_by: names it in errors.
        weights: as of `clip_config_of_fields`.

    Raises:
        UserError: a setting is of a wrong kind, out of bounds, or larger than the weights.
    """
    if family_in(content) == "clip":
        return dict(clip_config_of_fields(content, said_by, weights=weights).to_dict())
    try:
        pictures = pictures_of_record(content.get("pictures"))
    except ValueError as error:
        raise UserError(f"{said_by} does not describe towers: {error}; {_way_out()}") from error
    return sized_towers(content, said_by, weights=weights) | {"pictures": pictures.as_json()}


def family_in(content: Mapping[str, Any]) -> str:
    """The family of described towers; what names none, or none that is known, is read as a CLIP."""
    family = content.get("model_type")
    return family if isinstance(family, str) and family in FIELDS else "clip"


def sized_towers(content: Mapping[str, Any], said_by: str, *, weights: int | None = None) -> dict[str, Any]:
    """The description of towers that are not CLIP's, but for pictures, from a configuration in transformers' format.

    For the arguments and errors see `towers_of_fields`.
    """
    family = family_in(content)
    fields = FIELDS[family]
    try:
        known = fields.known(content)
        if fields.config is not None:
            with without_warnings():  # of tokens that the family has no use for
                known = fields.known(getattr(transformers, fields.config).from_dict(known).to_dict())
        towers = {"model_type": family} | known
        towers["projection_dim"] = fields.width(towers)
        fields.require_fitting(towers)
        asked = fields.numbers(towers)
        if (trunk := fields.trunk(towers)) is not None:
            asked += numbers_of_trunk(trunk)
    except (StrictDataclassError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{said_by} does not describe a {FAMILIES[family].label}: {reason}; {_way_out()}") from error

    if fields.config is not None:
        _require_patches(towers, said_by, FAMILIES[family].label)
    _require_numbers(asked, weights, said_by)
    return towers


def config_of_towers(towers: Mapping[str, Any]) -> Any:
    """The configuration of transformers for described towers that are not CLIP's."""
    fields = FIELDS[family_in(towers)]
    if fields.config is None:
        raise ValueError(f"{family_in(towers)} has no configuration of transformers")
    with without_warnings():
        return getattr(transformers, fields.config).from_dict(fields.known(towers))


def clip_config_of_fields(content: Mapping[str, Any], said_by: str, *, weights: int | None = None) -> CLIPConfig:
    """A configuration in transformers' format, of known settings alone.

    Args:
        content: of the file.
        said_by: names it in errors.
        weights: numbers in the file of weights that it belongs to, at most; None where there is no file to ask.

    Raises:
        UserError: a setting is of a wrong kind, out of bounds, or larger than the weights.
    """
    try:
        config = CLIPConfig.from_dict(known_fields(content), attn_implementation=ATTENTION)
    except (StrictDataclassError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{said_by} does not describe a CLIP: {reason}; {_way_out()}") from error

    sizes = config.to_dict()
    _require_patches(sizes, said_by, "CLIP")
    _require_numbers(numbers_of(sizes), weights, said_by)
    return config


def _require_patches(sizes: Mapping[str, Any], said_by: str, label: str) -> None:
    picture, patch = sizes["vision_config"]["image_size"], sizes["vision_config"]["patch_size"]
    if patch > picture:
        raise UserError(
            f"{said_by} does not describe a {label}: vision_config.patch_size is {patch}, larger than its image_size "
            f"{picture}; {_way_out()}"
        )


def _require_numbers(asked: int, weights: int | None, said_by: str) -> None:
    most = MOST_NUMBERS if weights is None else weights + ALWAYS
    if asked > most:
        there = "no CLIP has more than" if weights is None else "its file of weights, if that is whole, holds at most"
        raise UserError(f"{said_by} describes towers of {asked} weights, and {there} {most}; {_way_out()}")


@contextmanager
def without_warnings() -> Iterator[None]:
    """Let transformers say nothing inside the block."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _way_out() -> str:
    return f"bring the file that belongs to these weights, or pass another {flag('model.clip')}"


def build_clip(config: CLIPConfig) -> CLIPModel:
    """CLIP with random weights; attention is computed as it is everywhere here."""
    config._attn_implementation = ATTENTION
    return CLIPModel(config)


def numbers_in(*files: Path) -> int | None:
    """How many weights some files may hold at most; None where none of them is there."""
    sizes = [path.stat().st_size for path in files if path.is_file()]
    return sum(sizes) // SMALLEST_NUMBER if sizes else None


def read_clip_config(run_dir: Path, weights: Path | None = None) -> dict[str, Any] | None:
    """Known settings of a run's towers; None in folders of versions that did not write it.

    Args:
        run_dir: the folder.
        weights: the file of weights that it is asked for; None: those of the run.

    Raises:
        UserError: the file is damaged, or describes towers that its weights are too few for.
    """
    path = run_dir / CLIP_CONFIG
    if not os.path.lexists(path):
        return None
    content = read_json(path, "copy it again from the run, or train anew", keys=(), largest=LARGEST_DESCRIPTION)
    most = _numbers_of(run_dir) if weights is None or weights == run_dir / WEIGHTS else numbers_in(weights)
    return towers_of_fields(content, str(path), weights=most)


def _numbers_of(run_dir: Path) -> int | None:
    """How many weights a run has for its towers, at most: its own, or those beside the features of its training."""
    config = json_if_whole(run_dir / CONFIG)
    features = config.get("from_features") if isinstance(config, dict) else None
    if isinstance(features, str):
        return numbers_in(Path(features) / TOWERS)
    return numbers_in(run_dir / WEIGHTS)


def keep_clip_config(run_dir: Path, clip_config: dict[str, Any]) -> None:
    """Write the configuration of a run's towers if there is none yet; it stays what the run was started with.

    Raises:
        UserError: the run goes on with towers of another one.
    """
    saved = read_clip_config(run_dir)
    if saved is None:
        write_json_atomic(run_dir / CLIP_CONFIG, clip_config)
        return

    # Known settings alone: what else a version of transformers writes does not change the towers.
    now = clip_config
    if family_in(saved) == family_in(now) == "clip":
        saved, now = known_fields(saved), known_fields(now)
    if different := _differing(saved, now):
        raise UserError(
            f"the towers of {run_dir} are no longer those that it was started with: {'; '.join(different[:5])}; bring "
            f"back the checkpoint that model.clip named then, or start a new run with another {flag('out')}"
        )


def _differing(saved: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Settings of towers that differ, with both values."""
    found = []
    for name, value in now.items():
        before = saved.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            found += _differing(before, value, f"{prefix}{name}.")
        elif value != before:
            found.append(f"{prefix}{name} was {before}, now {value}")
    return found
