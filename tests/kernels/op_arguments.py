"""Arguments of every op of torch.ops.emcl, found by their names, so that no test repeats an op's signature."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from emcl_kernels import reference
from emcl_kernels.testing import clustered_rows, distinct_init

ops = torch.ops.emcl
SETTINGS = {
    "num_iters": 4,
    "temperature": 0.5,
    "eps": 1e-6,
    "weight": -2.0,
    "residual_weight": 3.0,
    "pooling_temperature": 2.0,
    "em_block": 2,
    "gradient": "full",
    "relative": False,
    "linear": True,
    "keep": True,
    "needs_text": True,
    "needs_frames": True,
    "needs_more": True,
}
# What else an op is called with, by a name for it.
VARIANTS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "em_project": [
        ("identity", {"gradient": "identity"}),
        ("linear", {"gradient": "linear"}),
        ("a start for each row", {"init": distinct_init(2, 9, 3)}),
    ],
    "pooled_similarity": [("identity", {"gradient": "identity"}), ("linear", {"gradient": "linear"})],
    "pooled_similarity_blocks": [("relative", {"relative": True})],
    "_pooled_cosine": [("the map is a constant", {"linear": False})],
    "_pooled_moments_backward": [("to text", {"needs_frames": False}), ("to frames", {"needs_text": False})],
    "_pooled_cosine_backward": [
        ("to text", {"needs_frames": False, "needs_more": False}),
        ("to frames", {"needs_text": False, "needs_more": False}),
        ("to the map", {"needs_text": False, "needs_frames": False}),
    ],
}


EVALUATION = ("pooled_similarity_blocks", "_pooled_blocks")
"""Ops without a gradient."""


def names() -> list[str]:
    """Of every op, as torch knows them."""
    schemas = torch._C._jit_get_all_schemas()
    return sorted({schema.name.partition("::")[2] for schema in schemas if schema.name.startswith("emcl::")})


def cases() -> list[tuple[str, str]]:
    """Every op, as it is by default and in its variants."""
    return [(name, variant) for name in names() for variant in ("", *(label for label, _ in VARIANTS.get(name, [])))]


def op(name: str) -> Callable[..., Any]:
    return getattr(ops, name).default  # type: ignore[no-any-return]


def arguments(
    name: str,
    variant: str = "",
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    grad: bool = True,
    **changes: Any,
) -> tuple[Any, ...]:
    """Of an op in the order of its schema. Rows come in two problems, texts and frames in one.

    Args:
        name: of the op.
        variant: one of its VARIANTS.
        dtype: of the tensors.
        device: of the tensors.
        grad: whether tensors that have a gradient require it. An op that has no gradient never gets such.
        **changes: other values of arguments.
    """
    grad = grad and not name.endswith("_backward") and name not in EVALUATION
    changes = dict(VARIANTS.get(name, [])).get(variant, {}) | changes
    table = values("pooled" in name) | SETTINGS | changes

    given = []
    for argument in op(name)._schema.arguments:
        value = table[argument.name]
        if isinstance(value, Tensor) and value.is_floating_point():
            constant = argument.name == "kept" or (
                not table["linear"] and argument.name in ("responsibilities", "scale")
            )
            value = value.detach().to(device, dtype).requires_grad_(grad and not constant)
        elif isinstance(value, Tensor):
            value = value.to(device)
        given.append(value)
    return tuple(given)


def values(one_problem: bool) -> dict[str, Tensor]:
    """Tensors by the name of the argument."""
    x = clustered_rows(2, 9, 6)
    init = distinct_init(2, 3)
    gram, colsum = reference.em_moments(x)
    logits = colsum.unsqueeze(-1) * init.unsqueeze(-2)
    responsibilities, scale = reference.em_fit(gram, logits, num_iters=4, temperature=1.0)
    table = {
        "x": x,
        "init": init,
        "bases": init,
        "gram": gram,
        "logits": logits,
        "responsibilities": responsibilities,
        "scale": scale,
        "d_gram": gram,
        "d_colsum": colsum,
        "d_responsibilities": responsibilities,
        "d_scale": scale,
        "d_y": x.cos(),
    }
    if one_problem:
        table = {name: tensor[0] for name, tensor in table.items()}
    return table | {
        "text": clustered_rows(4, 6),
        "frames": clustered_rows(3, 2, 6),
        "frame_mask": torch.tensor([[1, 1], [1, 0], [1, 1]]).bool(),
        "kept": torch.empty(0),
        "d_cosine": torch.ones(4, 3),
        "cosine": torch.full((4, 3), 0.5),
        "length": torch.ones(4, 3),
    }
