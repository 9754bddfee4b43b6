"""Weights spread over processes (FSDP2, set up through accelerate), and their whole state for files and evaluation.

Sharded weights are whole only inside the forward pass of the wrapped model. So all processes together read them from
outside, or load them; and validation runs on a copy of the model that was never sharded.
"""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from emcl_train.errors import UserError

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
"""Weights put together from all processes, on the CPU of the first one."""


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether accelerate shards the weights.

    Raises:
        UserError: it is set up for FSDP's first version, which cannot do what is done here.
    """
    if accelerator.distributed_type != DistributedType.FSDP:
        return False
    if not accelerator.is_fsdp2:
        raise UserError("accelerate is set up for version 1 of FSDP, expected 2; set fsdp_version 2 (FSDP_VERSION=2)")
    return True


def widen_scalars(model: nn.Module) -> None:
    """Give parameters without a dimension one, since only dimensions can be split; `weights_of` takes it off again."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() == 0:
                setattr(module, name, nn.Parameter(parameter.detach().view(1), requires_grad=parameter.requires_grad))


def weights_of(model: nn.Module, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The whole state_dict, in the first process; the others take part and get nothing that counts.

    Args:
        model: a sharded model.
        shapes: of its weights, from before `widen_scalars`.
    """
    state: dict[str, Any] = get_model_state_dict(model, options=WHOLE)
    return {name: value.view(shapes[name]) for name, value in state.items()}


def put_weights_into(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """What `weights_of` gave, in every process, back into a sharded model."""
    widened: dict[str, Any] = {name: value.view(1) if value.dim() == 0 else value for name, value in state.items()}
    set_model_state_dict(model, widened, options=StateDictOptions(full_state_dict=True))


def optimizer_state_of(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """The whole state of an optimizer by the parameters' names."""
    return get_optimizer_state_dict(model, optimizer, options=WHOLE)


def put_optimizer_state_into(model: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
    """What `optimizer_state_of` gave, in every process, back into the optimizer of a sharded model."""
    set_optimizer_state_dict(model, optimizer, state, options=StateDictOptions(full_state_dict=True))
