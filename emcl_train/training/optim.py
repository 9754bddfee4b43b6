"""Which parameters learn how fast: decoupled decay, CLIP apart from the rest, warm-up and cosine.

Each value of `train.optimizer` is a whole way. "bertadam" is the one of the peers' code: BERT's Adam, with decay on
everything that has no "bias" in its name, and their schedule. "adamw" is torch's AdamW, with decay on matrices alone,
and a schedule whose first step learns and whose cosine begins after the warm-up. "adam" and "ranger" are those of the
systems that came before: decay of everything, and a rate that falls in stairs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from emcl_train.config import RunConfig, TrainConfig
from emcl_train.models import TrainedModel
from emcl_train.models.towers import is_scalar
from emcl_train.training.bertadam import BertAdam
from emcl_train.training.ranger import Ranger

EPS = 1e-6
"""Of the peers' Adam; with torch's 1e-8, weights whose gradients are all but zero move at the full rate."""
PRETRAINED_CLIP_LR_FACTOR = 1e-3
"""CLIP's share of `train.lr` if its weights are trained ones, as in the recipe."""


def build_optimizer(model: nn.Module, config: RunConfig) -> Optimizer:
    """The optimizer of `train.optimizer` over up to four groups: CLIP or not, decayed or not.

    Each group keeps its peak rate in `peak_lr`.
    """
    train = config.train
    groups = parameter_groups(model, train, clip_lr=train.lr * clip_lr_factor(config))

    return WAYS[train.optimizer].build(groups, train)


def clip_lr_factor(config: RunConfig) -> float:
    """CLIP's rate as a share of `train.lr`.

    It is what `train.clip_lr_factor` says, or else 1e-3 for trained weights (the recipe) and 1 for random ones and for
    adapters; 0 in a run on features, whose towers are frozen. Systems without CLIP have no such weights.
    """
    if config.model.system != "clip":
        return 1.0
    if config.from_features is not None:
        return 0.0
    if config.train.clip_lr_factor is not None:
        return config.train.clip_lr_factor
    random = config.model.clip == "random" and config.model.init_from is None
    return 1.0 if random or config.train.lora else PRETRAINED_CLIP_LR_FACTOR


def freeze_towers(model: nn.Module) -> None:
    """Every parameter under `towers.` but those of the logits stays as it is, and is spared its gradient."""
    for name, parameter in model.named_parameters():
        if name.startswith("towers.") and not is_scalar(name):
            parameter.requires_grad_(False)


def freeze_inputs(model: TrainedModel, frozen: str) -> None:
    """Those of the towers' first weights that `train.frozen` names stay as they are, and are spared their gradients."""
    first = model.first_weights(frozen)
    for name, parameter in model.named_parameters():
        if name.startswith(first):
            parameter.requires_grad_(False)


def parameter_groups(model: nn.Module, config: TrainConfig, *, clip_lr: float) -> list[dict]:
    """Parameters under `towers.` at `clip_lr`, the others at `config.lr`, decayed as `config.optimizer` has it.

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
        decayed = WAYS[config.optimizer].decays(name, parameter)
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


def rate_share(config: TrainConfig, step: int, *, total_steps: int, steps_per_epoch: int) -> float:
    """Share of the peak rate at a step, counted from 0, as `config.optimizer` has it."""
    return WAYS[config.optimizer].share(config, step, total_steps=total_steps, steps_per_epoch=steps_per_epoch)


def released_schedule(step: int, *, total_steps: int, warmup: float) -> float:
    """Share of the peak rate in the peers' code: a linear rise from 0, then a cosine that began at step 0.

    So the peak is never reached: at the end of a warm-up of a tenth the share falls from 1 to 0.976.

    Args:
        step: counted from 0, at which the share is 0 if there is a warm-up.
        total_steps: of the whole run.
        warmup: share of the steps that rise.

    Examples:
        >>> [round(released_schedule(step, total_steps=8, warmup=0.25), 3) for step in range(8)]
        [0.0, 0.5, 0.854, 0.691, 0.5, 0.309, 0.146, 0.038]
    """
    progress = step / total_steps
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


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


def staircase(config: TrainConfig, step: int, *, total_steps: int, steps_per_epoch: int) -> float:
    """Share of the peak rate: ×`lr_decay` every `lr_decay_steps` or every epoch, after a linear rise if there is one.

    Args:
        config: has these three, and the share of the steps that rise.
        step: counted from 0.
        total_steps: of the whole run.
        steps_per_epoch: for `lr_decay_steps` None.

    Examples:
        >>> settings = TrainConfig(lr_decay=0.5, warmup=0.0)
        >>> [staircase(settings, step, total_steps=6, steps_per_epoch=2) for step in range(6)]
        [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    """
    stairs = step // (config.lr_decay_steps or steps_per_epoch)
    warmup_steps = round(config.warmup * total_steps)
    risen = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    return risen * config.lr_decay**stairs


def gradient_limit(config: TrainConfig) -> float:
    """The norm that gradients are scaled down to; infinite if they stay as they are."""
    return math.inf if config.max_grad_norm is None else config.max_grad_norm


def set_learning_rate(optimizer: Optimizer, share: float) -> None:
    """Every group at this share of its own peak."""
    for group in optimizer.param_groups:
        group["lr"] = share * group["peak_lr"]


@dataclass(frozen=True)
class Way:
    """One value of `train.optimizer`: an optimizer with its own rules of decay and of the rate."""

    build: Callable[[list[dict], TrainConfig], Optimizer]
    """Takes the groups."""
    decays: Callable[[str, Tensor], bool]
    """Whether a weight of this name is decayed."""
    share: Callable[..., float]
    """Share of the peak rate at a step; takes what `rate_share` takes."""


WAYS = {
    "bertadam": Way(
        lambda groups, train: BertAdam(groups, betas=train.betas, eps=EPS, max_grad_norm=gradient_limit(train)),
        decays=lambda name, weight: "bias" not in name,
        share=lambda config, step, *, total_steps, steps_per_epoch: released_schedule(
            step, total_steps=total_steps, warmup=config.warmup
        ),
    ),
    "adamw": Way(
        lambda groups, train: AdamW(groups, betas=train.betas, eps=EPS),
        # Vectors and scalars are biases, norms, the class embedding and the logit scale.
        decays=lambda name, weight: weight.dim() >= 2,
        share=lambda config, step, *, total_steps, steps_per_epoch: schedule(
            step, total_steps=total_steps, warmup=config.warmup
        ),
    ),
    # The decay of torch's Adam is added to the gradient. MMT and JSFusion have none.
    "adam": Way(
        lambda groups, train: Adam(groups, betas=train.betas),
        decays=lambda name, weight: True,
        share=staircase,
    ),
    "ranger": Way(
        lambda groups, train: Ranger(groups, betas=train.betas),
        decays=lambda name, weight: True,
        share=staircase,
    ),
}
