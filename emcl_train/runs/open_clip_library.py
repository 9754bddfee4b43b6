"""The library OpenCLIP, and timm beside it: they are imported here alone, when a model of theirs is asked for."""

import os
from functools import cache
from typing import Any

import torch

from emcl_train.errors import UserError
from emcl_train.extras import missing_of, require_packages

ON_TOKENIZERS = "TOKENIZERS_PARALLELISM"


def library() -> Any:
    """The package `open_clip`.

    Raises:
        UserError: it is not installed; the message has the line that installs it.
    """
    require_packages("openclip")
    before = os.environ.get(ON_TOKENIZERS)
    try:
        import open_clip
        import open_clip.convert
    finally:
        # It forbids the library tokenizers to use several threads.
        if before is None:
            os.environ.pop(ON_TOKENIZERS, None)
        else:
            os.environ[ON_TOKENIZERS] = before
    return open_clip


@cache
def numbers_of_trunk(name: str) -> int:
    """How many weights a vision tower of timm has; 0 where timm is not there, and nothing can be built.

    Nothing is filled: it is built without memory for its weights.

    Raises:
        ValueError: timm has no such model, or does not build it.
    """
    if missing_of("openclip"):
        return 0
    library()
    import timm

    require_trunk(name)
    try:
        with torch.device("meta"):
            trunk = timm.create_model(name, pretrained=False, num_classes=0)
    except Exception as error:  # whatever timm raises
        raise ValueError(f"timm does not build {name}: {' '.join(str(error).split())[:300]}") from error
    return sum(parameter.numel() for parameter in trunk.parameters())


def require_trunk(name: str) -> None:
    """Raise a ValueError where timm's own list has no such model."""
    import timm

    if not timm.is_model(name):
        raise ValueError(f"vision_cfg.timm_model_name is {name}, which timm {timm.__version__} has not on its list")


def built(model: Any, said_by: str) -> Any:
    """OpenCLIP's model of a description, with random weights; nothing is fetched.

    Args:
        model: `model_cfg`, as `OpenCLIPFields.known` has it.
        said_by: names it in errors.

    Raises:
        UserError: OpenCLIP is not installed, or builds no such model.
    """
    open_clip = library()
    made = open_clip.CustomTextCLIP if model["custom_text"] else open_clip.CLIP
    vision = model["vision_cfg"] | {"timm_model_pretrained": False}
    arguments = {name: model[name] for name in ("embed_dim", "quick_gelu", "init_logit_bias")}
    try:
        if "timm_model_name" in vision:
            require_trunk(vision["timm_model_name"])
        return made(vision_cfg=plain(vision), text_cfg=plain(model["text_cfg"]), **arguments)
    except MemoryError:
        raise
    except Exception as error:  # whatever OpenCLIP and timm raise for settings that do not go together
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{said_by} describes a model that OpenCLIP does not build: {reason}") from error


def plain(tower: dict[str, Any]) -> dict[str, Any]:
    """Settings of a tower without arguments of functions that are empty: OpenCLIP has null for these."""
    return {name: value or None if name in ("act_kwargs", "norm_kwargs") else value for name, value in tower.items()}
