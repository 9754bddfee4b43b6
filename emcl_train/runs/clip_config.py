"""The configuration of a run's towers, as it was when the run was started."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import CLIPConfig

from emcl_train.errors import UserError
from emcl_train.flags import flag
from emcl_train.runs.contents import CLIP_CONFIG
from emcl_train.runs.files import as_json, read_json, write_json_atomic

NOT_OF_THE_TOWERS = ("transformers_version", "_name_or_path")
"""Settings that only say what wrote them."""


def read_clip_config(run_dir: Path) -> dict[str, Any] | None:
    """Configuration of a run's towers; None in folders of versions that did not write it.

    Raises:
        UserError: the file is damaged.
    """
    path = run_dir / CLIP_CONFIG
    if not path.is_file():
        return None
    return dict(read_json(path, "copy it again from the run, or train anew", keys=()))


def keep_clip_config(run_dir: Path, clip_config: dict[str, Any]) -> None:
    """Write the configuration of a run's towers if there is none yet; it stays what the run was started with.

    Raises:
        UserError: the run goes on with towers of another one.
    """
    saved = read_clip_config(run_dir)
    if saved is None:
        write_json_atomic(run_dir / CLIP_CONFIG, clip_config)
        return

    # Through CLIPConfig, which fills in what an earlier version of transformers did not write.
    then = as_json(CLIPConfig.from_dict(saved).to_dict())
    if different := _differing(then, as_json(clip_config)):
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
        elif value != before and name not in NOT_OF_THE_TOWERS:
            found.append(f"{prefix}{name} was {before}, now {value}")
    return found
