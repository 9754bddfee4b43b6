"""One call of an op, written down so that a seed or a small file makes it again.

`draw` takes everything from a seed: the op, sizes, number types, strides, settings, and now and then one or two wrong
arguments. `arguments` makes the tensors of a call.
"""

import dataclasses
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# Letters are sizes; * stands for leading dimensions, which count problems.
SHAPES = {
    **dict.fromkeys(("x", "y", "d_x", "d_y"), "*ND"),
    **dict.fromkeys(("gram", "d_gram"), "*DD"),
    **dict.fromkeys(("colsum", "d_colsum"), "*D"),
    **dict.fromkeys(("logits", "d_logits", "responsibilities", "d_responsibilities"), "*DK"),
    **dict.fromkeys(("init", "mean_bases", "scale", "d_scale", "bases"), "*K"),
    **dict.fromkeys(("text", "d_text"), "AD"),
    **dict.fromkeys(("frames", "d_frames"), "BFD"),
    **dict.fromkeys(("cosine", "length", "d_cosine"), "AB"),
    "frame_mask": "BF",
    "kept": "BFA",
    "pull_text": "AK",
    "pull_frames": "BFK",
}
# In the number type of the rows; all else is in the one that is summed in.
ROWS = ("x", "y", "d_x", "d_y", "text", "d_text", "frames", "d_frames")
# Empty if nothing was kept, or if the output is not needed.
MAY_BE_EMPTY = ("kept", "d_text", "d_frames", "pull_text", "pull_frames")
SUMMED_IN = {"float64": "float64", "float32": "float32", "bfloat16": "float32", "float16": "float32"}
GRADIENTS = ("identity", "linear", "full")
# In front of an op's name, that of the library's.
LIBRARIES = ("emcl_native", "emcl_emulated")

# These allocate for all iterations at once; for others, a number that is too large means a life of work.
KEEPS_ITERATIONS = ("emcl::_em_fit_backward", "emcl_native::_em_fit_backward")

LAYOUTS = ("contiguous", "transposed", "sliced", "expanded", "offset")
VALUES = ("tame", "zeros", "equal", "huge", "tiny", "nan", "inf")
MODES = ("plain", "backward", "inference", "autocast", "vmap")
INTEGERS = (0, -1, 2**31, 2**62, 2**63 - 8, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, -1.0, 1e-320, 1e-300, 1e300, math.inf, -math.inf, math.nan)
# Sizes around those in which kernels take their operands.
CORNERS = (15, 16, 17, 23, 24, 25, 31, 32, 33, 47, 48, 49, 63, 64, 65, 96, 127, 128, 129, 255, 256, 257, 300)


@dataclass(frozen=True)
class Call:
    """A call.

    Args:
        op: with its namespace: "emcl::em_fit".
        seed: of the numbers in its tensors.
        sizes: by the letters of `SHAPES`.
        leading: the sizes for *.
        dtype: of rows.
        values: one of `VALUES`.
        layouts: how tensors lie in memory, by argument; contiguous, if it is not said.
        settings: arguments that are no tensors.
        start: the shape of `init`.
        empty: tensors that are not needed.
        mode: one of `MODES`.
        wrong: what is made wrong: an argument, a name of `WRONG` or "value", and the value.
        threads: of torch.
    """

    op: str
    seed: int
    sizes: dict[str, int]
    leading: list[int] = field(default_factory=list)
    dtype: str = "float32"
    values: str = "tame"
    layouts: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    start: str = "*K"
    empty: list[str] = field(default_factory=list)
    mode: str = "plain"
    wrong: list[list[Any]] = field(default_factory=list)
    threads: int = 1

    def to_json(self) -> str:
        """One line; what is as by default is left out."""
        plain = {name: getattr(self, name) for name in ("op", "seed", "sizes")}
        for each in dataclasses.fields(self)[len(plain) :]:
            value = getattr(self, each.name)
            if value != Call("", 0, {}).__getattribute__(each.name):
                plain[each.name] = value
        return json.dumps(plain)

    @staticmethod
    def from_json(text: str) -> "Call":
        return Call(**json.loads(text))

    @property
    def is_right(self) -> bool:
        return not self.wrong

    @property
    def pooled(self) -> bool:
        return "pooled" in self.op

    @property
    def of_library(self) -> bool:
        return self.op.startswith(LIBRARIES)


def function(op: str) -> Callable[..., Any]:
    namespace, _, name = op.partition("::")
    return getattr(getattr(torch.ops, namespace), name).default  # type: ignore[no-any-return]


def schema(op: str) -> list[tuple[str, str, bool]]:
    """Name, type, and whether it is written to, of each argument of an op."""
    return [
        (argument.name, str(argument.type), argument.alias_info is not None and argument.alias_info.is_write)
        for argument in function(op)._schema.arguments  # type: ignore[attr-defined]
    ]


def ops(namespaces: tuple[str, ...]) -> list[str]:
    """All ops that torch knows in some namespaces."""
    names = {each.name for each in torch._C._jit_get_all_schemas()}
    return sorted(name for name in names if name.startswith(tuple(f"{space}::" for space in namespaces)))


# ---- drawing ---------------------------------------------------------------------------------------------------------


def size(draw: random.Random, usual: int, rare: int) -> int:
    """Mostly small and odd, sometimes where a tile ends."""
    kind = draw.random()
    if kind < 0.15:
        return draw.choice([corner for corner in CORNERS if corner <= rare])
    return draw.randint(1, 3 if kind < 0.3 else usual)


def draw(seed: str, names: list[str], *, small: bool = False) -> Call:
    """A call.

    Args:
        seed: the same one gives the same call.
        names: ops to choose among.
        small: sizes for the emulator, where a large call takes minutes.
    """
    source = random.Random(seed)
    op = source.choice(names)
    pooled = "pooled" in op
    rare = 33 if small else 300
    sizes = {
        "N": size(source, 40, rare),
        "D": size(source, 40, rare),
        "K": size(source, 12, min(rare, 65)),
        "A": size(source, 12, min(rare, 129)),
        "B": size(source, 8, min(rare, 33)),
        "F": size(source, 6, min(rare, 33)),
    }
    if sizes["A"] * sizes["B"] * sizes["F"] * sizes["D"] > 1 << 22:
        sizes["D"] = source.randint(1, 40)
    if op.endswith("_pooled_cosine") and source.random() < 0.15:
        sizes["K"] = 0
    leading = [] if pooled else source.choice([[], [], [], [1], [2], [3], [2, 2], [5], [0]])

    arguments = schema(op)
    tensors = [name for name, kind, _ in arguments if kind == "Tensor"]
    dtype = source.choice(["float32", "float32", "float64", "bfloat16", "float16"])
    if "x" not in tensors and "text" not in tensors:
        dtype = SUMMED_IN[dtype]
    call = Call(
        op=op,
        seed=source.randrange(2**31),
        sizes={letter: sizes[letter] for letter in letters(tensors)},
        leading=leading if any(SHAPES.get(name, "").startswith("*") for name in tensors) else [],
        dtype=dtype,
        values="tame" if source.random() < 0.8 else source.choice(VALUES[1:]),
        layouts=draw_layouts(source, op, arguments),
        settings={name: draw_setting(source, name, kind, sizes) for name, kind, _ in arguments if kind != "Tensor"},
        start="K" if pooled else source.choice(["*K", "*K", "*NK"] if op.startswith(LIBRARIES) else ["K", "*K", "*NK"]),
        empty=[name for name in tensors if name in MAY_BE_EMPTY and may_be_empty(op, name) and source.random() < 0.3],
        mode=source.choice(MODES if op.startswith("emcl::") else ["plain", "plain", "inference"]),
        threads=source.choice([1, 1, 2, 3]),
    )
    if op.startswith("emcl::") and "keep" in call.settings and "kept" in tensors:
        call = dataclasses.replace(call, empty=[] if call.settings["keep"] else ["kept"])
    if source.random() < 0.4:
        return make_wrong(source, call, arguments)
    return call


def letters(tensors: list[str]) -> list[str]:
    used = "".join(SHAPES.get(name, "") for name in tensors) + ("N" if "init" in tensors and "x" in tensors else "")
    return [letter for letter in "NDKABF" if letter in used]


def may_be_empty(op: str, name: str) -> bool:
    """Ops of the package make their outputs themselves, and take no empty gradients."""
    return name == "kept" or op.startswith(LIBRARIES)


def draw_layouts(source: random.Random, op: str, arguments: list[tuple[str, str, bool]]) -> dict[str, str]:
    """The library takes contiguous tensors only, which may begin anywhere."""
    choices = ("offset",) if op.startswith(LIBRARIES) else LAYOUTS[1:]
    tensors = [name for name, kind, _ in arguments if kind == "Tensor"]
    return {name: source.choice(choices) for name in tensors if source.random() < 0.25}


def draw_setting(source: random.Random, name: str, kind: str, sizes: dict[str, int]) -> Any:
    """A value that is taken."""
    if kind == "bool":
        return source.random() < 0.5
    if kind == "str":
        return source.choice(GRADIENTS)
    if name == "num_iters":
        return source.randint(1, 5)
    if name == "em_block":
        return source.choice([source.randint(1, sizes["A"] + 1), sizes["A"] + sizes["B"], 2**63 - 1])
    if name in ("temperature", "pooling_temperature"):
        return round(10 ** source.uniform(-1.3, 0.7), 3)
    if name == "eps":
        return source.choice([1e-6, 1e-6, 1e-3])
    if name in ("weight", "residual_weight"):
        return round(source.uniform(-3, 3), 3)
    raise LookupError(f"{name} is a setting that calls.py does not know; give it values there")


def make_wrong(source: random.Random, call: Call, arguments: list[tuple[str, str, bool]]) -> Call:
    """With one or two arguments that are wrong, or at the edge of what is taken."""
    wrong = []
    for name, kind, _ in source.sample(arguments, min(len(arguments), source.choice([1, 1, 1, 2]))):
        if kind == "Tensor":
            wrong.append([name, source.choice(list(WRONG)), source.randrange(2**16)])
        elif kind == "bool":
            wrong.append([name, "value", source.choice([None, "yes", 2])])
        elif kind == "str":
            wrong.append([name, "value", source.choice(["", "nonsense", "FULL", None])])
        elif name == "num_iters" and call.op not in KEEPS_ITERATIONS:
            wrong.append([name, "value", source.choice([0, -1, -(2**63)])])
        else:
            wrong.append([name, "value", source.choice(INTEGERS if kind == "int" else FLOATS)])
    return dataclasses.replace(call, wrong=wrong)


# ---- tensors ---------------------------------------------------------------------------------------------------------


@dataclass
class Given:
    """The arguments of a call, and the memory that they lie in, with what is around them."""

    values: dict[str, Any]
    storages: dict[str, Tensor]
    """By argument: all of its memory, as a tensor without gaps."""


def arguments(call: Call) -> Given:
    """The arguments of a call in the order of the schema."""
    generator = torch.Generator().manual_seed(call.seed)
    given = Given({}, {})
    for name, kind, written in schema(call.op):
        if kind != "Tensor":
            given.values[name] = call.settings[name]
            continue
        values = numbers(call, name, generator)
        if name in call.empty:
            values = values.new_empty(0)
        elif written:
            values = torch.full_like(values, math.nan)
        given.values[name], given.storages[name] = lay_out(values, call.layouts.get(name, "contiguous"))

    # One value that is not finite is as good as many.
    main = next((name for name in ("x", "text", "gram") if name in given.values), None)
    if call.values in ("nan", "inf") and main is not None and given.values[main].numel() > 0:
        storage = given.values[main]
        index = tuple(int(torch.randint(size, (), generator=generator)) for size in storage.shape)
        storage[index] = math.nan if call.values == "nan" else math.inf

    for name, kind, value in call.wrong:
        if kind == "value":
            given.values[name] = value
        elif isinstance(given.values[name], Tensor):
            given.values[name] = WRONG[kind](given.values[name], random.Random(value))
            given.storages.pop(name, None)
    return given


def shape_of(call: Call, name: str) -> list[int]:
    if name not in SHAPES:
        raise LookupError(f"{name} is a tensor that calls.py does not know; give it a shape there")
    letters = call.start if name == "init" else SHAPES[name]
    leading = [] if call.pooled or not letters.startswith("*") else call.leading
    return [*leading, *(call.sizes[letter] for letter in letters.strip("*"))]


def dtype_of(call: Call, name: str) -> torch.dtype:
    return getattr(torch, call.dtype if name in ROWS else SUMMED_IN[call.dtype])  # type: ignore[no-any-return]


def numbers(call: Call, name: str, generator: torch.Generator) -> Tensor:
    """As they occur, or at an edge. They are made in float32, and mean little together: memory is what is tried."""
    shape = shape_of(call, name)
    normal = torch.randn(shape, generator=generator)
    if name == "frame_mask":
        mask = torch.rand(shape, generator=generator) < 0.8
        return mask if not call.of_library and call.seed % 2 else mask.to(dtype_of(call, name))
    if call.values == "zeros":
        normal = torch.zeros(shape)
    elif call.values == "equal":
        normal = torch.ones(shape)
    elif name in ("scale", "length"):
        normal = 0.5 + torch.rand(shape, generator=generator)
    elif name == "cosine":
        normal = 2 * torch.rand(shape, generator=generator) - 1
    elif name == "responsibilities":
        normal = normal.softmax(-2)
    elif name == "gram" and normal.numel():
        normal = normal.mT @ normal / normal.shape[-1]
    factor = {"huge": torch.finfo(dtype_of(call, name)).max / 8, "tiny": 1e-30}.get(call.values, 1.0)
    return (normal.double() * factor).to(dtype_of(call, name))


def lay_out(values: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    """The same numbers, laid out in memory in some way; and that memory."""
    if layout == "transposed" and values.dim() > 1:
        memory = values.mT.contiguous()
        return memory.mT, memory
    if layout == "sliced" and values.dim() > 0:
        memory = torch.zeros([2 * size for size in values.shape], dtype=values.dtype)
        part = memory[tuple(slice(1, None, 2) for _ in values.shape)]
        part.copy_(values)
        return part, memory
    if layout == "expanded" and values.dim() > 0 and values.shape[0] > 0:
        memory = values[:1].clone()
        return memory.expand(values.shape), memory
    if layout == "offset":
        memory = torch.full([values.numel() + 5], 7, dtype=values.dtype)
        part = memory[1 : 1 + values.numel()].view(values.shape)
        part.copy_(values)
        return part, memory
    values = values.clone(memory_format=torch.contiguous_format)
    return values, values


def _sized(tensor: Tensor, source: random.Random, change: Callable[[int], int]) -> Tensor:
    """Another size of one dimension; a number alone becomes a row."""
    shape = list(tensor.shape) or [1]
    dim = source.randrange(len(shape))
    shape[dim] = max(0, change(shape[dim]))
    return torch.ones(shape, dtype=tensor.dtype)


def _permuted(tensor: Tensor, source: random.Random) -> Tensor:
    dims = list(range(tensor.dim()))
    source.shuffle(dims)
    return tensor.permute(dims)


def _huge(tensor: Tensor, source: random.Random) -> Tensor:
    """More than any memory, in the memory of one number."""
    dims = max(1, min(tensor.dim(), 3))
    return torch.ones(1, dtype=tensor.dtype).expand([2 ** min(source.choice([20, 31, 40]), 58 // dims)] * dims)


# What can be wrong with a tensor: takes the right one, and what it draws from.
WRONG: dict[str, Callable[[Tensor, random.Random], Any]] = {
    "one less": lambda t, s: _sized(t, s, lambda size: size - 1),
    "one more": lambda t, s: _sized(t, s, lambda size: size + 1),
    "twice as many": lambda t, s: _sized(t, s, lambda size: 2 * size),
    "another size": lambda t, s: _sized(t, s, lambda size: s.choice([1, 2, 7, 400])),
    "none of it": lambda t, s: _sized(t, s, lambda size: 0),
    "a dimension more": lambda t, s: t.unsqueeze(s.randint(0, t.dim())),
    "a dimension less": lambda t, s: t[0] if t.dim() and t.shape[0] else t.reshape(-1),
    "a number": lambda t, s: torch.ones((), dtype=t.dtype),
    "empty": lambda t, s: t.new_empty(0),
    "flat": lambda t, s: t.reshape(-1),
    "permuted": _permuted,
    "float64": lambda t, s: t.double(),
    "float32": lambda t, s: t.float(),
    "bfloat16": lambda t, s: t.bfloat16(),
    "float16": lambda t, s: t.half(),
    "float8": lambda t, s: t.float().to(torch.float8_e4m3fn),
    "int64": lambda t, s: torch.ones(t.shape, dtype=torch.int64),
    "uint8": lambda t, s: torch.ones(t.shape, dtype=torch.uint8),
    "bool": lambda t, s: torch.ones(t.shape, dtype=torch.bool),
    "complex": lambda t, s: t.float() + 1j,
    "meta": lambda t, s: t.to("meta"),
    "sparse": lambda t, s: t.float().to_sparse(),
    "with holes": lambda t, s: torch.empty_strided(t.shape, [3 * max(1, stride) for stride in t.stride()]).to(t.dtype),
    "overlapping": lambda t, s: torch.ones(1, dtype=t.dtype).expand(t.shape),
    "huge": _huge,
    "huge, none of it": lambda t, s: t.new_empty([0, *[2 ** s.choice([16, 31])] * (max(1, min(t.dim(), 3)) - 1)]),
    "with a gradient": lambda t, s: t.detach().requires_grad_() if t.is_floating_point() else t,
    "None": lambda t, s: None,
    "a list": lambda t, s: [1.0, 2.0],
    "text": lambda t, s: "x",
}
