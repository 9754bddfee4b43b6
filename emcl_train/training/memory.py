"""What lets towers be trained that would not fit: adapters, layers that are computed again, compiled parts."""

from accelerate import Accelerator

from emcl_train.config import TrainConfig
from emcl_train.errors import UserError
from emcl_train.flags import flag
from emcl_train.models.towers import Towers
from emcl_train.models.towers.adapters import adapt
from emcl_train.training.compiling import compile_parts, require_compiler
from emcl_train.training.sharding import is_sharded


def require_what_saves_memory(config: TrainConfig, accelerator: Accelerator) -> None:
    """Look whether the towers can be trained as asked on this machine, before anything that takes time.

    Raises:
        UserError: they cannot.
    """
    asked = {"train.lora": config.lora, "train.compile_towers": config.compile_towers}
    for name, value in asked.items():
        if value and is_sharded(accelerator):
            raise UserError(
                f"{name} is {value}, and weights are sharded (FSDP), which goes with neither adapters nor compiled "
                f"towers; leave out {flag(name)}, or start the processes without FSDP"
            )
    if config.compile_towers:
        require_compiler(accelerator.device)


def save_memory(towers: Towers, config: TrainConfig) -> str:
    """Change towers that are about to be trained as the settings ask.

    Returns:
        What is to be said of it; nothing where there is nothing.

    Raises:
        UserError: these towers cannot be changed so.
    """
    said = ""
    if config.lora:
        adapted = adapt(towers, config)
        said = (
            f"adapters of rank {config.lora} on {adapted.layers} layers: {adapted.trained:,} weights are trained, and "
            f"the {adapted.towers:,} of the towers stay as they are"
        )
    if config.gradient_checkpointing:
        towers.recompute_layers()
    if config.compile_towers:
        compile_parts(towers)
    return said
