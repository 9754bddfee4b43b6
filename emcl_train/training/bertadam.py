"""Adam as the published text-video models were trained with it: BERT's, which corrects no bias."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer


class BertAdam(Optimizer):
    """m ← β₁m + (1 − β₁)g, v ← β₂v + (1 − β₂)g², w ← w − lr · (m / (√v + eps) + decay · w).

    AdamW divides m and v by 1 − βᵗ first, since both start at zero; here they are taken as they are. With betas 0.9 and
    0.98 the first step is 0.71 times as long as AdamW's, the fourteenth 1.55 times, the hundredth 1.07 times.

    As in the code of EMCL-Net, CLIP4Clip and DRL, each weight's own gradient is scaled down to `max_grad_norm` too.
    Where the norm of all gradients together was brought to that before, this changes nothing beyond rounding.

    Args:
        groups: what `torch.optim` takes, each group with its `lr` and its `weight_decay`.
        betas: decay rates of the two moments.
        eps: is added to √v.
        max_grad_norm: each weight's gradient is scaled down to this norm.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, betas: tuple[float, float], eps: float, max_grad_norm: float
    ) -> None:
        super().__init__(groups, {"betas": betas, "eps": eps, "max_grad_norm": max_grad_norm})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One update of every weight that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        for group in self.param_groups:
            weights: list[Tensor] = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._update(weights, group)
        return loss

    def _update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        """The equations of the class for the weights of a group, all at once."""
        beta1, beta2 = group["betas"]
        first = [self._moment("exp_avg", weight) for weight in weights]
        second = [self._moment("exp_avg_sq", weight) for weight in weights]

        gradients = [weight.grad for weight in weights if weight.grad is not None]
        # Norms of sharded gradients would be an exchange each, for nothing: the trainer has clipped them together.
        if not isinstance(gradients[0], DTensor):
            gradients = scaled_down(gradients, group["max_grad_norm"])

        # The moments.
        torch._foreach_mul_(first, beta1)
        torch._foreach_add_(first, gradients, alpha=1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, value=1 - beta2)

        # m / (√v + eps) + decay · w
        divisors = list(torch._foreach_sqrt(second))
        torch._foreach_add_(divisors, group["eps"])
        updates = list(torch._foreach_div(first, divisors))
        if group["weight_decay"]:
            torch._foreach_add_(updates, weights, alpha=group["weight_decay"])

        torch._foreach_mul_(updates, group["lr"])
        torch._foreach_sub_(weights, updates)

    def _moment(self, name: str, weight: Tensor) -> Tensor:
        """A running mean of a weight's gradient, zero at first, under the name that torch's Adam has for it."""
        state = self.state[weight]
        if name not in state:
            state[name] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        moment: Tensor = state[name]
        return moment


def scaled_down(gradients: list[Tensor], max_norm: float) -> list[Tensor]:
    """Each of these gradients with a norm of at most `max_norm`, as `torch.nn.utils.clip_grad_norm_` does it."""
    factors = list(torch._foreach_add(torch._foreach_norm(gradients), 1e-6))
    torch._foreach_reciprocal_(factors)
    torch._foreach_mul_(factors, max_norm)
    torch._foreach_clamp_max_(factors, 1.0)
    return list(torch._foreach_mul(gradients, factors))
