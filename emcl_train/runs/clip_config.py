"""The configuration of a run's towers, as it was when the run was started, and how towers are built of one.

All configurations of CLIP go through here, whoever wrote them: a run's own, a folder's of transformers, that in the
metadata of an exported file, that of stored features. Known settings are taken, of their kinds and within bounds.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPConfig, CLIPModel

from emcl_train.errors import UserError
from emcl_train.flags import flag
from emcl_train.reading.clip_fields import ALWAYS, MOST_NUMBERS, known_fields, numbers_of
from emcl_train.reading.plain_files import LARGEST_DESCRIPTION
from emcl_train.runs.contents import CLIP_CONFIG, CONFIG, WEIGHTS
from emcl_train.runs.files import json_if_whole, read_json, write_json_atomic

ATTENTION = "sdpa"
"""How attention is computed: by torch's own function, whatever a configuration names."""
TOWERS = "towers.safetensors"
"""The weights of towers beside the features that they made."""
SMALLEST_NUMBER = 2
"""Bytes of a weight in half precision."""


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
    picture, patch = sizes["vision_config"]["image_size"], sizes["vision_config"]["patch_size"]
    if patch > picture:
        raise UserError(
            f"{said_by} does not describe a CLIP: vision_config.patch_size is {patch}, larger than its image_size "
            f"{picture}; {_way_out()}"
        )

    asked = numbers_of(sizes)
    most = MOST_NUMBERS if weights is None else weights + ALWAYS
    if asked > most:
        there = "no CLIP has more than" if weights is None else "its file of weights, if that is whole, holds at most"
        raise UserError(f"{said_by} describes towers of {asked} weights, and {there} {most}; {_way_out()}")
    return config


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
    return dict(clip_config_of_fields(content, str(path), weights=most).to_dict())


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
    if different := _differing(known_fields(saved), known_fields(clip_config)):
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
