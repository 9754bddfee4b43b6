"""How an op of torch.ops.emcl is written down: once.

`Op` takes a schema, what the op accepts, the shapes of its outputs, and to what it is differentiated. From that follow
the op itself, its fake tensors, its autograd, autocast and vmap rules, its backward op, and the schemas of the compiled
libraries. `Composite` is an op that is made of others. docs/adding.md adds an op step by step.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emcl_kernels import checks
from emcl_kernels.backends import Implementation, library
from emcl_kernels.dispatch import asked, choices, choose
from emcl_kernels.ops import autograd

Spec = tuple[Sequence[Any], torch.dtype]
"""Shape and dtype of an output."""
Batch = Callable[..., tuple[Any, Any]]
"""A rule of vmap: takes the op, torch's info, the mapped dimensions, and the arguments."""

OPS: dict[str, "Op"] = {}
"""All ops that backends implement, by name."""

_library = torch.library.Library("emcl", "DEF")
_MAIN = ("x", "text", "gram")
"""The first of these that an op has decides about the backend, by its device and dtype; if none, its first argument."""


# ---- what vmap does --------------------------------------------------------------------------------------------------


def to_leading_dimension(op: Callable[..., Any], info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    """For an op that takes leading batch dimensions: vmap's own goes there."""
    moved = []
    for arg, dim in zip(args, in_dims, strict=True):
        if dim is not None:
            arg = arg.movedim(dim, 0)
        elif isinstance(arg, Tensor):
            arg = arg.expand(info.batch_size, *arg.shape)
        moved.append(arg)

    out = op(*moved)
    return out, (0,) * len(out) if isinstance(out, tuple) else 0


def one_by_one(op: Callable[..., Any], info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    """For an op that is one problem over all its rows: a call for each."""
    calls = []
    for i in range(info.batch_size):
        pairs = zip(args, in_dims, strict=True)
        calls.append(op(*(arg.select(dim, i) if dim is not None else arg for arg, dim in pairs)))

    if isinstance(calls[0], tuple):
        return tuple(torch.stack(parts) for parts in zip(*calls, strict=True)), (0,) * len(calls[0])
    return torch.stack(calls), 0


# ---- what the gradient is --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gradient:
    """The gradient by a backward op, `_NAME_backward`, which backends implement like any other op.

    It takes the gradients of the outputs, the tensors of the op, the outputs in `saved`, and the op's settings; it
    returns a gradient for each input in `to`, shaped like it.

    Args:
        to: inputs that have a gradient.
        saved: outputs that backward needs.
        constant: outputs through which no gradient goes.
        more: further outputs of the backward op, with a function of its arguments that gives their shapes.
        finished: inputs whose gradient `finish` makes from those further outputs.
        finish: makes the gradients of `to` and `finished` from the context, the saved tensors, and the backward op's
            outputs.
        switched: whether the last arguments of the backward op say what is needed: `needs_NAME` for each input in `to`,
            and `needs_more` for `more`. What is not needed has a last dimension of 0, and should cost nothing.
        short: a shorter way where it serves. It takes the context, the saved tensors and the gradients of the outputs,
            and returns the gradients of `to`, or None to have the backward op called.
    """

    to: tuple[str, ...]
    saved: tuple[str, ...] = ()
    constant: tuple[str, ...] = ()
    more: tuple[tuple[str, ...], Callable[..., tuple[Spec, ...]] | None] = ((), None)
    finished: tuple[str, ...] = ()
    finish: Callable[..., tuple[Tensor | None, ...]] | None = None
    switched: bool = False
    short: Callable[..., tuple[Tensor | None, ...] | None] | None = None

    @property
    def switches(self) -> tuple[str, ...]:
        """Last arguments of the backward op, each of which turns a part of it on or off."""
        parts = [f"needs_{name}" for name in self.to] + (["needs_more"] if self.more[0] else [])
        return tuple(parts) if self.switched else ()


@dataclass(frozen=True)
class Rule:
    """The gradient by functions of the op's own.

    Args:
        backward: takes the context and the gradients of the outputs, and returns one gradient for each argument.
        save: takes the context, the arguments and the outputs, and saves what backward needs.
    """

    backward: autograd.Backward
    save: autograd.Save | None = None


def _once_only(ctx: Any, *_: Any) -> Any:
    raise NotImplementedError(
        "emcl ops have no second derivative; emcl_kernels.reference.em_project_loop and pooled_similarity_materialized "
        "are the release's formulas in plain torch, which differentiates them as often as is asked for"
    )


# ---- declarations ----------------------------------------------------------------------------------------------------


class _Registered:
    """A name in torch.ops.emcl with its schema, autocast and vmap rules, and a docstring if it is public."""

    def __init__(
        self, schema: str, batch: Batch, widest: tuple[str, ...], public: Callable[..., Any] | None = None
    ) -> None:
        self.schema = schema
        self.name = schema.partition("(")[0]
        _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        self.call = getattr(torch.ops.emcl, self.name).default

        if public is not None:
            self._describe(public)

        parsed = self.call._schema
        self.arguments = {argument.name: argument for argument in parsed.arguments}
        self.position: dict[str, int] = {name: i for i, name in enumerate(self.arguments)}
        self.tensors = tuple(name for name, a in self.arguments.items() if str(a.type) == "Tensor")
        self.outputs = tuple(output.name for output in parsed.returns)
        if self.tensors != tuple(self.arguments)[: len(self.tensors)]:
            raise ValueError(f"{self.name}: the tensors of an op come before its settings, but the schema is {schema}")

        torch.library.register_vmap(f"emcl::{self.name}", self._vmap_rule(batch), lib=_library)
        for device in ("CPU", "CUDA"):
            _library.impl(self.name, self._autocast_rule(device, widest), f"Autocast{device}")

    def _describe(self, function: Callable[..., Any]) -> None:
        """Give `help(torch.ops.emcl.NAME)` the docstring of the function that calls the op."""
        caller = f"emcl_kernels.{function.__name__} calls it, and takes its settings by name alone."
        of_function = inspect.cleandoc(function.__doc__ or "")  # python -OO leaves out docstrings
        text = f"torch.ops.emcl.{self.schema}\n\n{caller}\n\n{of_function}"
        getattr(torch.ops.emcl, self.name).__doc__ = text
        self.call.__doc__ = text

    def _refuse_none(self, args: tuple[Any, ...]) -> None:
        """Name an argument that is None, which torch passes on in the place of a tensor."""
        checks.tensors(**dict(zip(self.tensors, args, strict=False)))

    def _vmap_rule(self, batch: Batch) -> Callable[..., Any]:
        def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
            return batch(self.call, info, in_dims, *args)

        return rule

    def _autocast_rule(self, device: str, widest: tuple[str, ...]) -> Callable[..., Any]:
        """EM accumulates in float32 whatever its input is, so autocast casts nothing, and stays out of the op's inside.

        Towers under autocast may give text and frames in different dtypes; the wider one serves both.
        """
        keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device}"))
        positions = [self.position[name] for name in widest]

        def rule(*args: Any) -> Any:
            if positions:
                first, second = positions
                if args[first] is None or args[second] is None:
                    self._refuse_none(args)
                dtype = torch.promote_types(args[first].dtype, args[second].dtype)
                cast = list(args)
                cast[first] = args[first].to(dtype)
                cast[second] = args[second].to(dtype)
                args = tuple(cast)
            with torch._C._ExcludeDispatchKeyGuard(keys):
                return self.call(*args)

        return rule


class Composite(_Registered):
    """An op that is made of other ops, so that every backend serves it, and autograd goes through those.

    Args:
        schema: as torch writes schemas, with defaults.
        function: takes the arguments in the schema's order, and has its defaults.
        batch: what vmap does.
        widest: two arguments of which autocast brings the narrower one to the dtype of the other.
        public: the public function that calls the op, whose docstring the op has, too.
    """

    def __init__(
        self,
        schema: str,
        function: Implementation,
        *,
        batch: Batch = to_leading_dimension,
        widest: tuple[str, ...] = (),
        public: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(schema, batch, widest, public)

        def composed(*args: Any) -> Any:
            try:
                return function(*args)
            except AttributeError:
                self._refuse_none(args)
                raise

        _library.impl(self.name, composed, "CompositeImplicitAutograd")


class Plain(_Registered):
    """An op of one tensor that gives a copy of it, made by torch on every device; its gradient is the identity."""

    def __init__(self, schema: str, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__(schema, to_leading_dimension, ())
        _library.impl(self.name, function, "CompositeExplicitAutograd")
        torch.library.register_fake(f"emcl::{self.name}", torch.empty_like, lib=_library)
        autograd.register(_library, self.call, lambda ctx, d_out: d_out)


class Op(_Registered):
    """An op that backends implement under its name.

    Args:
        schema: as torch writes schemas, with defaults and named outputs; tensors come first. Names that begin with an
            underscore are for the ops of this package alone.
        shapes: gives shape and dtype of each output, from all arguments.
        accept: raises an error for arguments that are not taken. It has all arguments in the schema's order, and
            returns them as backends have them, or None if that is as they are.
        verify: position of an output, and a function of the op's name and that output that raises an error if it is
            not finite.
        gradient: how the op is differentiated; None: it is not.
        batch: what vmap does.
        family: the public op that this one is a part of; it is named by errors and tables.
        widest: two arguments of which autocast brings the narrower one to the dtype of the other.
        fallback: for backends that have no implementation, in terms of other ops.
        switches: how many of its last arguments say what is needed; a library sees that by the outputs' sizes.
        public: the public function that calls the op, whose docstring the op has, too.
    """

    def __init__(
        self,
        schema: str,
        *,
        shapes: Callable[..., tuple[Spec, ...]],
        accept: Callable[..., tuple[Any, ...] | None],
        verify: tuple[int, Callable[[str, Tensor], None]] | None = None,
        gradient: Gradient | Rule | None = None,
        batch: Batch = to_leading_dimension,
        family: str | None = None,
        widest: tuple[str, ...] = (),
        fallback: Implementation | None = None,
        switches: int = 0,
        public: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(schema, batch, widest, public)
        self.switches = switches
        if not all(self.outputs):
            raise ValueError(f"{self.name}: outputs need names, as in `-> Tensor y`, but the schema is {schema}")
        self.family = family or self.name
        self.main = next((self.position[name] for name in _MAIN if name in self.position), 0)
        self.fallback = fallback
        self._shapes = shapes
        self._accept = accept
        self._verify = verify
        self._defaults = tuple(argument.default_value for argument in self.arguments.values())
        OPS[self.name] = self

        _library.impl(self.name, self._kernel, "CompositeExplicitAutograd")
        torch.library.register_fake(f"emcl::{self.name}", self._fake, lib=_library)
        library.define(self._library_schema())

        rule = Rule(_once_only)
        if isinstance(gradient, Gradient):
            rule = self._by_backward_op(gradient, batch)
        elif gradient is not None:
            rule = gradient
        autograd.register(_library, self.call, rule.backward, rule.save)

    def allocate(self, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """The outputs, to be written to: the fake tensors, and what the compiled libraries fill."""
        like = args[self.main]
        return tuple([like.new_empty(shape, dtype=dtype) for shape, dtype in self._shapes(*args)])

    def _kernel(self, *args: Any) -> Any:
        """Check, choose, call."""
        if len(args) < len(self._defaults):  # torch's dispatcher drops trailing arguments that equal their default
            args += self._defaults[len(args) :]
        try:
            args = self._accept(*args) or args
        except AttributeError:
            self._refuse_none(args)
            raise

        known = choices.get((self.name, args[self.main].device.type, asked.backend))
        implementation = known or choose(self, args)
        outputs = implementation(*args)
        if self._verify is not None:
            position, verify = self._verify
            verify(self.family, outputs[position] if isinstance(outputs, tuple) else outputs)
        return outputs

    def _fake(self, *args: Any) -> Any:
        args += self._defaults[len(args) :]
        self._refuse_none(args)
        args = self._accept(*args) or args
        outputs = self.allocate(args)
        return outputs if len(outputs) > 1 else outputs[0]

    def _library_schema(self) -> str:
        """The inputs, then the outputs as tensors that are written to."""
        inputs = [f"{argument.type} {name}" for name, argument in self.arguments.items()]
        inputs = inputs[: len(inputs) - self.switches]
        outputs = [f"Tensor({chr(ord('a') + i)}!) {name}" for i, name in enumerate(self.outputs)]
        return f"{self.name}({', '.join([*inputs, *outputs])}) -> ()"

    # ---- the gradient ------------------------------------------------------------------------------------------------

    def _by_backward_op(self, gradient: Gradient, batch: Batch) -> Rule:
        """Declare the backward op, and the rule that calls it."""
        differentiated = [i for i, output in enumerate(self.outputs) if output not in gradient.constant]
        saved = [i for i, output in enumerate(self.outputs) if output in gradient.saved]
        backward = self._backward_op(gradient, batch, differentiated, saved)
        return self._rule(gradient, backward, differentiated, saved)

    def _backward_op(self, gradient: Gradient, batch: Batch, differentiated: list[int], saved: list[int]) -> "Op":
        """The backward op: its schema, its checks and the shapes of its outputs follow from this op's.

        differentiated, saved: positions of the outputs that have a gradient, and of those that backward needs.
        """
        name = f"_{self.name.lstrip('_')}_backward"
        to = [self.position[tensor] for tensor in gradient.to]
        more, more_shapes = gradient.more

        settings = tuple(self.arguments)[len(self.tensors) :]
        names = [f"Tensor d_{self.outputs[i]}" for i in differentiated]
        names += [f"Tensor {tensor}" for tensor in (*self.tensors, *gradient.saved)]
        names += [f"{self.arguments[setting].type} {setting}" for setting in settings]
        # With a default, since torch.compile keeps graphs on disk, where an older one calls the op without them.
        names += [f"bool {switch}=True" for switch in gradient.switches]
        results = [f"Tensor d_{tensor}" for tensor in gradient.to] + [f"Tensor {output}" for output in more]
        returns = results[0] if len(results) == 1 else f"({', '.join(results)})"

        first = len(differentiated)
        last = first + len(self.tensors)
        end = last + len(saved) + len(settings)

        def own(args: tuple[Any, ...]) -> tuple[Any, ...]:
            """The arguments that the op itself had."""
            return args[first:last] + args[last + len(saved) : end]

        def accept(*args: Any) -> tuple[Any, ...]:
            given = own(args)
            given = self._accept(*given) or given
            expected = self._shapes(*given)

            pairs = [*zip(differentiated, args[:first], strict=True)]
            pairs += zip(saved, args[last : last + len(saved)], strict=True)
            for i, tensor in pairs:
                shape, dtype = expected[i]
                if tensor.shape == torch.Size(shape) and tensor.dtype == dtype:
                    continue
                if i in saved and i not in differentiated and tensor.numel() == 0 and tensor.dtype == dtype:
                    continue  # it was not kept
                raise ValueError(
                    f"{name} got {tensor.dtype} of shape {list(tensor.shape)} for {self.outputs[i]} or its gradient; "
                    f"expected {dtype} of shape {list(shape)}"
                )
            count = len(self.tensors)
            return args[:first] + given[:count] + args[last : last + len(saved)] + given[count:] + args[end:]

        def shapes(*args: Any) -> tuple[Spec, ...]:
            given = own(args)
            found: tuple[Spec, ...] = tuple([(given[i].shape, given[i].dtype) for i in to])
            if more_shapes is not None:
                found += more_shapes(*args[:end])
            if not gradient.switches:
                return found

            needed = [*args[end : end + len(to)], *[args[-1]] * len(more)]
            pairs = zip(found, needed, strict=True)
            return tuple([(shape if need else (*shape[:-1], 0), dtype) for (shape, dtype), need in pairs])

        return Op(
            f"{name}({', '.join(names)}) -> {returns}",
            shapes=shapes,
            accept=accept,
            batch=batch,
            family=self.family,
            switches=len(gradient.switches),
        )

    def _rule(self, gradient: Gradient, backward: "Op", differentiated: list[int], saved: list[int]) -> Rule:
        """Save what the backward op takes; call it."""
        constant = [i for i in range(len(self.outputs)) if i not in differentiated]
        count = len(self.tensors)
        to = [self.position[name] for name in (*gradient.to, *gradient.finished)]

        def needed(ctx: Any) -> list[bool]:
            """The switches: which inputs need a gradient, and whether `finish` makes one."""
            if not gradient.switched:
                return []
            switches = [ctx.needs_input_grad[i] for i in to[: len(gradient.to)]]
            if gradient.more[0]:
                switches.append(any(ctx.needs_input_grad[i] for i in to[len(gradient.to) :]))
            return switches

        def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            outputs = output if isinstance(output, tuple) else (output,)
            ctx.settings = inputs[count:]
            ctx.mark_non_differentiable(*map(outputs.__getitem__, constant))
            ctx.save_for_backward(*inputs[:count], *map(outputs.__getitem__, saved))

        def differentiate(ctx: Any, *d_outputs: Any) -> tuple[Tensor | None, ...]:
            tensors = ctx.saved_tensors  # under activation checkpointing they can be read once
            d_differentiated = [d_outputs[i] for i in differentiated]
            found = gradient.short(ctx, tensors, *d_differentiated) if gradient.short is not None else None
            if found is None:
                found = backward.call(*d_differentiated, *tensors, *ctx.settings, *needed(ctx))
                found = found if isinstance(found, tuple) else (found,)
                if gradient.finish is not None:
                    found = gradient.finish(ctx, tensors, *found)

            d_inputs: list[Tensor | None] = [None] * len(self.arguments)
            for i, d_input in zip(to, found, strict=True):
                d_inputs[i] = d_input if ctx.needs_input_grad[i] else None
            return tuple(d_inputs)

        return Rule(differentiate, save)
