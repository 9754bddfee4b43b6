"""The model of a run, of whichever system."""

from pathlib import Path
from typing import Any

from emcl_train.config import RunConfig
from emcl_train.models.experts.build import build_expert_model
from emcl_train.models.interface import PairModel
from emcl_train.models.retrieval import build_model
from emcl_train.runs.clip_config import read_clip_config


def build_pair_model(config: RunConfig, texts: Any, *, of_run: Path | None = None) -> PairModel:
    """The model that a run begins with, or one that waits for the weights of a run.

    Args:
        config: of the run.
        texts: the run's tokenizer; of a system on experts, what its files give.
        of_run: the folder of the run whose weights will be put into it.

    Raises:
        UserError: a checkpoint cannot be read, or does not fit.
    """
    if config.model.system != "clip":
        return build_expert_model(config, texts, of_run=of_run)
    return build_model(config, texts, clip_config=None if of_run is None else read_clip_config(of_run))
