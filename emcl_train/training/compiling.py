"""Towers through torch.compile in training: what is compiled, whether this machine can, and where it is left out.

Each of a tower's parts is compiled in place, so that weights keep their names. Batches of a second size make its graph
one of any size, and of further sizes none is made. Validations run without it, as `eval` does.
"""

from contextlib import AbstractContextManager

import torch
from torch import nn

from emcl_train.errors import UserError
from emcl_train.flags import flag
from emcl_train.models.towers import Towers

BACKEND = "inductor"
"""Torch's own."""


def compile_parts(towers: Towers) -> None:
    """Let the parts of towers be compiled at their first batches; their weights keep their names.

    Raises:
        UserError: the towers have no such parts.
    """
    for name in towers.parts:
        part = getattr(towers.inner, name, None)
        if part is None:
            raise UserError(
                f"train.compile_towers is True, and {type(towers.inner).__name__} has no {name}; leave out "
                f"{flag('train.compile_towers')}"
            )
        part.compile(backend=BACKEND)


def without_compiling() -> AbstractContextManager[None]:
    """Run everything inside the block as it is written."""
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


def require_compiler(device: torch.device) -> None:
    """Compile something small on a device.

    Raises:
        UserError: it does not work.
    """
    try:
        torch.compile(nn.ReLU(), backend=BACKEND)(torch.ones(3, device=device))
    except Exception as error:  # of whatever kind: compilers, drivers and what they lack
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = " ".join(lines[:2] if lines[0].endswith(":") else lines[:1])
        needed = "a C++ compiler (g++, or another in $CXX)" if device.type == "cpu" else "Triton and a C compiler"
        raise UserError(
            f"train.compile_towers is True, and torch.compile does not work here ({reason}); install {needed}, or "
            f"leave out {flag('train.compile_towers')}; a run that goes on does so with --train.no-compile-towers"
        ) from error
