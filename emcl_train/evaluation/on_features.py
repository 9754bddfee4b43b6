"""The model of a run on stored features: what is left of it without its towers."""

from pathlib import Path
from typing import Any

from torch import Tensor

from emcl_train.config import RunConfig
from emcl_train.data.features import TOWERS, WAY_OUT, read_features
from emcl_train.errors import UserError
from emcl_train.evaluation.provenance import (
    clip_config_of_features,
    hash_of_towers,
    require_features_of,
    towers_of,
)
from emcl_train.models import RetrievalModel, build_model
from emcl_train.runs.state import read_tensors


def model_on_features(config: RunConfig, tokenizer: Any) -> RetrievalModel:
    """The model that a run on features starts with: its weights are those it would have with its towers."""
    folder = Path(config.from_features or "")
    towers = read_tensors(folder / TOWERS, WAY_OUT)
    model = build_model(config, tokenizer, clip_config_of_features(folder), towers)
    model.store_towers()
    return model


def without_towers(state: dict[str, Tensor], config: RunConfig, run_dir: Path) -> dict[str, Tensor]:
    """Weights of a run without its towers.

    Raises:
        UserError: the features were made by other towers.
    """
    made_by = read_features(Path(config.from_features or ""))["weights"]
    towers = towers_of(state)
    if not towers:
        require_features_of(run_dir, made_by, config.from_features)
    elif hash_of_towers(state) != made_by:
        raise UserError(
            f"the features in {config.from_features} are of towers with weights {made_by}, and {run_dir} has "
            f"{hash_of_towers(state)}; embed with the towers of the run: emcl-train embed {run_dir} --out DIR"
        )
    return {name: value for name, value in state.items() if name not in towers}
