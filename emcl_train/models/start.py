"""What a run starts with: the towers of its CLIP, or the weights of a whole model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from emcl_train.config import RunConfig
from emcl_train.models.clip import build_towers, described_with
from emcl_train.models.clip_file import Vocabulary
from emcl_train.models.towers import Towers
from emcl_train.runs.clip_config import read_clip_config
from emcl_train.weights.elsewhere import as_runs_began
from emcl_train.weights.files import clip_config_beside, read_state
from emcl_train.weights.release import load_into, towers_in


@dataclass(frozen=True)
class Start:
    """The towers of a run, and the weights of a whole model that it starts with, if it names some."""

    towers: Towers
    path: Path | None
    state: dict[str, Tensor]
    seed: int | None

    def settle(self) -> None:
        """Let the other layers start the same, however many random draws loading the towers has used."""
        if self.seed is not None:
            torch.manual_seed(self.seed)

    def put_into(self, model: nn.Module) -> None:
        """Give a whole model the weights, if there are some.

        Raises:
            UserError: they do not fit.
        """
        if self.path is not None:
            model.load_state_dict(load_into(model.state_dict(), self.state, self.path))


def starting_towers(
    config: RunConfig, vocabulary: Vocabulary, clip_config: Mapping[str, Any] | None, *, waits: bool
) -> Start:
    """The towers of a run, and what it starts with.

    Args:
        config: the run's.
        vocabulary: of the run's tokenizer.
        clip_config: configuration of the towers; the checkpoint that `config.model.clip` names is then not read.
        waits: whether the model waits for the weights of a run; `config.model.init_from` is then not read either.

    Raises:
        UserError: a checkpoint cannot be read, or does not fit the data.
    """
    # The weights of a whole model to start from.
    path = config.model.init_from.expanduser() if config.model.init_from and not waits else None
    state = read_state(path, goes_on=config.resume) if path else {}
    if config.resume:
        state = as_runs_began(state)
    sizes = towers_in(state) or None
    if path and clip_config is None:
        clip_config = described_with(config.model, state, goes_on=config.resume)

    # A seed that is drawn before a checkpoint is loaded, which uses an unknown number of draws.
    seed = None if config.model.clip == "random" and path is None else int(torch.randint(2**31, ()))
    towers = build_towers(
        config.model,
        vocabulary,
        image_size=config.data.image_size,
        max_words=config.data.max_words,
        clip_config=clip_config,
        sizes=sizes,
        recorded=(read_clip_config(config.out) if config.resume else None)
        or (clip_config_beside(path) if path else None),
    )
    return Start(towers, path, state, seed)
