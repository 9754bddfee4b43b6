"""Adapters of low rank (LoRA) on the attention of towers, made by peft, and their sum with the weights that they adapt.

A layer that maps x to W x + b then gives W x + b + s B (A x): W and b stay as they are, A and B learn. B begins at
zero, so the towers begin as they were. The weights that a run keeps have W + s B A in place of W, under the library's
own name: whoever loads them needs no peft, and knows nothing of adapters.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from emcl_train.config import TrainConfig
from emcl_train.errors import UserError
from emcl_train.extras import require_packages
from emcl_train.flags import flag
from emcl_train.kinds import TOWERS
from emcl_train.models.towers.interface import SCALARS, Towers
from emcl_train.runs.clip_config import family_in

ADAPTER = "default"
"""What peft calls the only one."""
FIRST, SECOND = f".lora_A.{ADAPTER}.weight", f".lora_B.{ADAPTER}.weight"
ADAPTED = ".base_layer."
"""Stands in the names of weights that are adapted."""


@dataclass(frozen=True)
class Adapted:
    """How many numbers learn."""

    layers: int
    """That have an adapter."""
    trained: int
    """Numbers of all adapters."""
    towers: int
    """Of the towers, without adapters."""


def adapt(towers: Towers, config: TrainConfig) -> Adapted:
    """Put adapters on the attention of towers, and freeze all else of them but the logits' scale and bias.

    Args:
        towers: with the weights that they start from.
        config: has their rank, `lora`, and what else is said of them.

    Raises:
        UserError: peft is not installed, the towers have no attention that is adapted, or it is too narrow.
    """
    require_packages("lora")
    from peft import LoraConfig, inject_adapter_in_model

    inner: nn.Module = towers.inner
    numbers = sum(value.numel() for value in inner.parameters())
    learnt = {name: parameter for name in SCALARS if (parameter := getattr(inner, name, None)) is not None}
    learns = {name: parameter.requires_grad for name, parameter in learnt.items()}

    asked = LoraConfig(
        r=config.lora,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=towers.attention,
    )
    not_built = UserError(
        f"train.lora is {config.lora}, and adapters are not built for {type(inner).__name__}; pass "
        f"{flag('train.lora')} 0, and {flag('train.gradient_checkpointing')} for less memory"
    )
    try:
        inject_adapter_in_model(asked, inner, adapter_name=ADAPTER)
    except ValueError as error:  # which it raises where no layer has such a name
        raise not_built from error
    for name, parameter in learnt.items():  # peft has frozen them too
        parameter.requires_grad_(learns[name])

    adapters = {name: value for name, value in inner.named_parameters() if name.endswith((FIRST, SECOND))}
    if not all(any(name.startswith(f"{part}.") for name in adapters) for part in towers.parts):
        raise not_built  # of one tower alone: in another version of the library its layers have other names
    return Adapted(len(adapters) // 2, sum(value.numel() for value in adapters.values()), numbers)


def require_rank(rank: int, towers: Mapping[str, Any]) -> None:
    """Raise a UserError where towers have no adapters, or these would have as many numbers as the layers they adapt.

    Args:
        rank: `train.lora`.
        towers: the description of the towers. A layer of attention maps a tower's width to the same width.
    """
    family = TOWERS[family_in(towers)]
    if not family.adapters:
        raise UserError(
            f"train.lora is {rank}, and adapters are not built for models of {family.label}, whose attention keeps the "
            f"maps to queries, keys and values in one; pass {flag('train.lora')} 0, and "
            f"{flag('train.gradient_checkpointing')} for less memory"
        )
    width = min(int(towers[part]["hidden_size"]) for part in ("text_config", "vision_config"))
    most = (width - 1) // 2
    if rank > most:
        raise UserError(
            f"train.lora is {rank}, expected at most {most}: in a tower of width {width} adapters of a higher rank "
            f"have as many weights as what they adapt; pass {flag('train.lora')} {most} or less, or 0 to train all"
        )


def merged(weights: Mapping[str, Tensor], config: TrainConfig) -> dict[str, Tensor]:
    """The weights of a model with adapters as those of one without, which gives the same features.

    Args:
        weights: a state_dict; one without adapters stays as it is.
        config: with which adapters were made.
    """
    if not config.lora:
        return dict(weights)
    scale = config.lora_alpha / config.lora
    whole: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.endswith((FIRST, SECOND)):
            continue
        plain = name.replace(ADAPTED, ".")
        layer = name.removesuffix(f"{ADAPTED}weight")
        if layer != name:
            value = value + scale * (weights[layer + SECOND] @ weights[layer + FIRST])
        whole[plain] = value
    return whole
