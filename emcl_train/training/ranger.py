"""Ranger, as collaborative experts were trained with it: RAdam, and slow weights that follow it (Lookahead)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import RAdam

LOOK_AHEAD = 6
"""Steps k of the fast weights for one of the slow ones."""
SHARE = 0.5
"""The share α of the way that the slow weights then go."""
EPS = 1e-5
"""Added to the root of the second moment, before that is corrected for its start at zero."""


class Ranger(RAdam):
    """A step of RAdam; every sixth, slow ← slow + α (w − slow) and w ← slow.

    RAdam leaves the second moment out while its estimate rests on too few steps (N_sma at most 5, as in torch): these
    steps are lr · m / (1 − β₁ᵗ). Decay is w ← w · (1 − lr · decay), before the step. The slow weights begin as the
    weights before the first step, one tensor for each, in the state of the optimizer under "slow".

    Args:
        groups: what `torch.optim` takes, each group with its `lr` and its `weight_decay`.
        betas: decay rates of the two moments.
    """

    def __init__(self, groups: list[dict[str, Any]], *, betas: tuple[float, float]) -> None:
        super().__init__(groups, betas=betas, eps=EPS, decoupled_weight_decay=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One update of every weight that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        # Where a weight was before its first step: RAdam takes a state with anything in it for one it has filled.
        weights: list[Tensor] = [
            weight for group in self.param_groups for weight in group["params"] if weight.grad is not None
        ]
        begins = {weight: weight.detach().clone() for weight in weights if "slow" not in self.state[weight]}

        super().step()

        for weight in weights:
            state = self.state[weight]
            if weight in begins:
                state["slow"] = begins[weight]
            if int(state["step"]) % LOOK_AHEAD == 0:
                weight.copy_(state["slow"].lerp_(weight, SHARE))
        return loss
