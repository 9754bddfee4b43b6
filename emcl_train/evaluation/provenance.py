"""What the figures of a run depend on besides its weights: its towers, and how frames were taken from files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape
from torch import Tensor

from emcl_train.config import RunConfig
from emcl_train.data.features import TOWERS, read_features
from emcl_train.data.provenance import changes, provenance
from emcl_train.errors import UserError
from emcl_train.models import TowersModel
from emcl_train.models.towers import is_scalar
from emcl_train.runs.clip_config import numbers_in, towers_of_fields
from emcl_train.runs.contents import FEATURES, load_environment
from emcl_train.runs.state import hash_of_tensors
from emcl_train.terminal import say
from emcl_train.weights.release import TOWERS as OF_TOWERS


def clip_config_of(model: TowersModel, config: RunConfig) -> dict[str, Any]:
    """Description of a model's towers, or of those that made its features; see `runs/clip_config.py`."""
    if config.from_features is not None:
        return clip_config_of_features(config.from_features)
    return model.towers.description()


def clip_config_of_features(folder: Path) -> dict[str, Any]:
    """Known settings of the towers that made stored features.

    Raises:
        UserError: `features.json` describes no towers, or larger ones than their weights.
    """
    content = read_features(folder)["clip_config"]
    return towers_of_fields(content, str(folder / FEATURES), weights=numbers_in(folder / TOWERS))


def frames_of(config: RunConfig) -> dict[str, Any]:
    """How frames were taken from files: here and now, or when the features of a run were made.

    Of a system on experts, which one, and how long its texts and videos are at most.
    """
    if config.model.system != "clip":
        system = {"sampler": None, "system": config.model.system}
        return {**system, "sampling": {"max_words": config.data.max_words, "max_steps": config.experts.max_steps}}
    if config.from_features is not None:
        record = read_features(config.from_features)
        return {**record["frames"], "features": record["weights"]}
    return provenance(config.data)


def warn_of_frames(run_dir: Path, config: RunConfig) -> None:
    """Say where frames come out otherwise than in training."""
    for change in changes(load_environment(run_dir), frames_of(config)):
        say(
            f"[yellow]warning:[/yellow] {run_dir} was trained on other frames: {escape(change)}; the figures may "
            f"differ from the run's own"
        )


def towers_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the towers in those of a model, without what no feature depends on: logit scale and bias."""
    return {name: value for name, value in state.items() if name.startswith(OF_TOWERS) and not is_scalar(name)}


def hash_of_towers(state: Mapping[str, Tensor]) -> str:
    """Fingerprint of the towers in a model's weights."""
    return hash_of_tensors(towers_of(state))


def require_features_of(run_dir: Path, made_by: str, folder: Path | None) -> None:
    """Raise a UserError unless a run without towers was started on those with this fingerprint, found in `folder`."""
    own = load_environment(run_dir).get("features")
    if own != made_by:
        raise UserError(
            f"the features in {folder} are of towers with weights {made_by}, and {run_dir} has {own}; bring the folder "
            f"back that the run was started on, or embed again as then, with the same model.clip or run"
        )
