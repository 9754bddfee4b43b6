"""Which parameters learn how fast: decoupled decay, CLIP apart from the rest, warm-up and cosine."""

import math

from torch import nn
from torch.optim import AdamW, Optimizer

from emcl_train.config import RunConfig, TrainConfig

PRETRAINED_CLIP_LR_FACTOR = 1e-3
"""CLIP's share of `train.lr` if its weights are trained ones, as in the recipe."""


def build_optimizer(model: nn.Module, config: RunConfig) -> AdamW:
    """AdamW over four groups: CLIP or not, decayed or not. Each group keeps its peak rate in `peak_lr`."""
    clip_lr = config.train.lr * clip_lr_factor(config)
    groups = parameter_groups(model, config.train, clip_lr=clip_lr)
    # eps of the release's Adam; with 1e-8 weights whose gradients are all but zero move at the full rate.
    return AdamW(groups, betas=config.train.betas, eps=1e-6)


def clip_lr_factor(config: RunConfig) -> float:
    """CLIP's rate as a share of `train.lr`.

    It is what `train.clip_lr_factor` says, or else 1e-3 for trained weights (the recipe) and 1 for random ones; 0 in a
    run on features, whose towers are frozen.
    """
    if config.from_features is not None:
        return 0.0
    if config.train.clip_lr_factor is not None:
        return config.train.clip_lr_factor
    random = config.model.clip == "random" and config.model.init_from is None
    return 1.0 if random else PRETRAINED_CLIP_LR_FACTOR


def freeze_towers(model: nn.Module) -> None:
    """Every parameter under `towers.` but the logit scale stays as it is, and is spared its gradient."""
    for name, parameter in model.named_parameters():
        if name.startswith("towers.") and not name.endswith("logit_scale"):
            parameter.requires_grad_(False)


def parameter_groups(model: nn.Module, config: TrainConfig, *, clip_lr: float) -> list[dict]:
    """Parameters under `towers.` at `clip_lr`, the others at `config.lr`; only matrices and larger are decayed.

    Frozen parameters are in no group. If the towers are frozen, the logit scale is one of the others.

    Returns:
        What `torch.optim` takes, with the peak rate of each group in `peak_lr`.
    """
    # By (of CLIP, decayed).
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        of_clip = name.startswith("towers.") and clip_lr > 0
        # Vectors and scalars are biases, norms, the class embedding and the logit scale.
        decayed = parameter.dim() >= 2
        groups.setdefault((of_clip, decayed), []).append(parameter)

    # In this order, which the state of the optimizer keeps by number.
    made = []
    for of_clip, decayed in sorted(groups):
        peak = clip_lr if of_clip else config.lr
        made.append(
            {
                "params": groups[of_clip, decayed],
                "weight_decay": config.weight_decay if decayed else 0.0,
                "lr": peak,
                "peak_lr": peak,
            }
        )
    return made


def schedule(step: int, *, total_steps: int, warmup: float) -> float:
    """Share of the peak rate: a linear rise over the warm-up, then half a cosine to 0.

    Args:
        step: counted from 0.
        total_steps: of the whole run.
        warmup: share of the steps that rise.

    Examples:
        >>> [schedule(step, total_steps=4, warmup=0.5) for step in range(5)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    warmup_steps = round(warmup * total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps

    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rate(optimizer: Optimizer, share: float) -> None:
    """Every group at this share of its own peak."""
    for group in optimizer.param_groups:
        group["lr"] = share * group["peak_lr"]
