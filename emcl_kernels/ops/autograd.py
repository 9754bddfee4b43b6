"""How autograd goes through an op, and torch.func with it: grad, vjp, jacrev, and vmap of these.

torch.library.register_autograd does the same for autograd alone. Its class is one of those that torch.func takes over
whole, before the op is dispatched, and only if they are written in another way. An op of torch's own is dispatched once
for each transform around it, and makes a node of the graph each time; so do these.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from emcl_kernels import checks

Backward = Callable[..., Any]
"""Takes the context and the gradients of the outputs, and returns one gradient for each argument."""
Save = Callable[..., None]
"""Takes the context, the arguments and the outputs, and saves what backward needs."""


def register(library: torch.library.Library, op: Any, backward: Backward, save: Save | None = None) -> None:
    """Give an op its gradient.

    Args:
        library: in which the op is defined.
        op: the op, as `torch.ops` has it.
        backward: takes the context and the gradients of the outputs, and returns one gradient for each argument, or
            one alone. `ctx.needs_input_grad` has the arguments in their order.
        save: takes the context, all arguments and the outputs, and saves what backward needs.
    """
    names = [argument.name for argument in op._schema.arguments]
    defaults = tuple(argument.default_value for argument in op._schema.arguments)
    node = _node(op, backward, save)
    redispatch = op.redispatch
    below = torch._C._after_autograd_keyset

    def kernel(keys: Any, *args: Any) -> Any:
        if len(args) < len(defaults):  # torch's dispatcher drops trailing arguments that equal their default
            args += defaults[len(args) :]
        if forward_ad._current_level >= 0:
            checks.no_tangents(**dict(zip(names, args, strict=True)))

        if not torch.is_grad_enabled() or not torch._C._any_requires_grad(*args):
            with torch._C._AutoDispatchBelowAutograd():
                return redispatch(keys & below, *args)
        if not torch._C._are_functorch_transforms_active():
            return node.apply(*args, keys)
        with enable_single_level_autograd_function():
            return node.apply(*args, keys)

    library.impl(op._opname, kernel, "Autograd", with_keyset=True)


def _node(op: Any, backward: Backward, save: Save | None) -> Any:
    """The class of the op's nodes in autograd's graph."""

    def forward(ctx: Any, *args_and_keys: Any) -> Any:
        *args, keys = args_and_keys
        keys = keys & torch._C._after_autograd_keyset

        # The op without autograd: its kernel, or what the next transform of torch.func makes of it.
        with torch._C._AutoDispatchBelowAutograd():
            if not torch._C._are_functorch_transforms_active():
                output = op.redispatch(keys, *args)
            else:
                # Torch turns gradients off in here, but they are the business of transforms further out as well.
                with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                    output = op.redispatch(keys, *args)
        if save is not None:
            save(ctx, tuple(args), output)
        return output

    def differentiate(ctx: Any, *d_outputs: Tensor) -> tuple[Tensor | None, ...]:
        d_inputs = backward(ctx, *d_outputs)
        return (*d_inputs, None) if isinstance(d_inputs, tuple) else (d_inputs, None)

    # Torch shows the name in a graph, followed by "Backward".
    members = {"forward": staticmethod(forward), "backward": staticmethod(differentiate)}
    return type(f"Emcl_{op._opname}", (_SingleLevelFunction,), members)
