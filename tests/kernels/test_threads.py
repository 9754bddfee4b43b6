"""The C++ kernels give the same bits whatever the number of threads is (docs/kernels.md, Bits)."""

from collections.abc import Iterator

import pytest
import torch
from op_arguments import VARIANTS, arguments, op
from torch import Tensor

from emcl_kernels import use_backend
from emcl_kernels.backends import cpu
from emcl_kernels.ops import define
from emcl_kernels.testing import clustered_rows, distinct_init

pytestmark = pytest.mark.skipif(bool(cpu.backend.reason), reason=cpu.backend.reason)


@pytest.fixture(autouse=True)
def own_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def rows(problems: int, count: int, width: int, bases: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    x = clustered_rows(problems, count, width)
    gram = x.mT @ x
    return {
        "x": x,
        "init": distinct_init(problems, bases),
        "gram": gram,
        "logits": gram[..., :bases].clone(),
        "responsibilities": torch.rand(problems, width, bases),
        "scale": torch.rand(problems, bases),
        "d_gram": gram,
        "d_colsum": x.sum(-2),
        "d_responsibilities": torch.rand(problems, width, bases),
        "d_scale": torch.rand(problems, bases),
        "d_y": x.cos(),
    }


def pairs(texts: int, videos: int, frames: int, width: int, bases: int) -> dict[str, object]:
    torch.manual_seed(0)
    return {
        "text": clustered_rows(texts, width),
        "frames": clustered_rows(videos, frames, width),
        "frame_mask": torch.ones(videos, frames),
        "init": distinct_init(bases),
        "kept": torch.empty(0),
        "responsibilities": torch.rand(width, bases),
        "scale": torch.rand(bases),
        "d_gram": torch.rand(width, width),
        "d_colsum": torch.rand(width),
        "d_cosine": torch.rand(texts, videos),
        "cosine": torch.rand(texts, videos),
        "length": torch.rand(texts, videos) + 1,
        "em_block": 20,
    }


SIZES = {
    "one problem": rows(1, 1100, 130, 9),
    "few rows": rows(1, 9, 700, 40),
    "three problems": rows(3, 300, 200, 9),
    "many problems": rows(9, 200, 65, 9),
}
POOLED = {
    "a square": pairs(70, 66, 5, 130, 9),
    "more texts": pairs(300, 7, 12, 64, 9),
    "videos": pairs(9, 150, 4, 64, 9),
}
CASES = [
    (name, size, variant)
    for name in sorted(define.OPS)
    for size in (POOLED if "pooled" in name else SIZES)
    for variant in ("", *(label for label, changes in VARIANTS.get(name, []) if "init" not in changes))
]


@pytest.mark.parametrize(("name", "size", "variant"), CASES, ids=str)
def test_bits_do_not_depend_on_the_number_of_threads(name: str, size: str, variant: str) -> None:
    sizes = (POOLED if "pooled" in name else SIZES)[size]
    given = arguments(name, variant, grad=False, **sizes)
    results = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        with use_backend("native"):
            found = op(name)(*given)
        results.append(found if isinstance(found, tuple) else (found,))
    for found in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found, results[0], strict=True))
