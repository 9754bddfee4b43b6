"""Rows of a model as they are compared, whichever library calls the model."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from emcl_kernels import Refiner

TASKS = {"query": "query", "document": "gallery"}
"""By the name that other libraries have for a row's part in a search, the one that a refiner has."""
SIDES = ("text", "video")


def has_bank(refiner: Refiner) -> bool:
    """Whether rows have one more number, and are compared by inner product alone."""
    return any(refiner.bank(side) is not None for side in SIDES)


def require_sides(refiner: Refiner, query_side: str, document_side: str) -> None:
    """Refuse sides that a refiner cannot search.

    Args:
        refiner: fitted.
        query_side: side of queries.
        document_side: side of documents.

    Raises:
        ValueError: nothing was fitted, there is no such side, or there are banks and none corrects such documents.
    """
    for name, side in {"query_side": query_side, "document_side": document_side}.items():
        if side not in SIDES:
            raise ValueError(f'{name} is {side!r}; expected "text" or "video", a side of the refiner')
    if not refiner.serves(document_side):
        other = "video" if document_side == "text" else "text"
        raise ValueError(
            f'the refiner has no bank that corrects documents on its side "{document_side}"; fit it with {other}_bank, '
            f'or pass document_side="{other}"'
        )


def refined(refiner: Refiner, rows: Any, side: str, task: str) -> Float32[Tensor, "N E"]:
    """Refined rows whose inner products are the scores.

    Args:
        refiner: fitted.
        rows: `[N, D]`, a torch tensor or a numpy array of floats, also of half precision.
        side: "text" or "video".
        task: "query" or "document".

    Returns:
        On the device of the rows: `[N, D]` of length one, or `[N, D + 1]` with a bank. In float32 even of half
        precision, in which the last number would have three digits.
    """
    if isinstance(rows, np.ndarray):
        rows = torch.from_numpy(np.ascontiguousarray(rows))
    banks = has_bank(refiner)
    out = torch.empty(len(rows), rows.shape[1] + banks, dtype=torch.float32, device=rows.device)
    transform = refiner.transform_text if side == "text" else refiner.transform_video
    transform(rows, out=out, role=TASKS[task])
    return out if banks else nn.functional.normalize(out, dim=-1)
