"""Pooled rows that cancel, over every backend: a cosine stays in [-1, 1], and is as right as a row in float32 makes it.

The truth is the formula [A, B, D] in float64. What a row may be off by follows from how much of it cancels.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from compare import GRADIENTS, HALF, Function, Problem, compare
from torch import Tensor

from emcl_kernels import pooled_cosine_similarity, pooled_similarity, pooled_similarity_blocks, reference
from emcl_kernels.testing import PAIR, ROUNDING, SUMMED_IN, distinct_init

POOLING = 2.0
SETTINGS = {"num_iters": 3, "temperature": 0.8, "residual_weight": 2.0, "eps": 1e-3, "pooling_temperature": POOLING}
LARGEST = 1 + 1e-6
# (texts, videos, frames, width): every one has a seam of tiles of some backend, and none is a multiple of a vector.
SHAPES = [(1, 1, 2, 5), (7, 3, 2, 63), (41, 9, 3, 130), (130, 2, 12, 33), (5, 19, 7, 41), (3, 2, 64, 20)]


def directions(*shape: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def opposite(shape: tuple[int, ...], left: float) -> tuple[Tensor, Tensor, Tensor]:
    """Frames in pairs of opposites, but for the share `left`; of an odd number, the last one is masked."""
    texts, videos, frames, width = shape
    one = directions(videos, frames // 2, width)
    other = -one + left * directions(videos, frames // 2, width)
    pairs = torch.stack([one, other], 2).flatten(1, 2)
    mask = torch.ones(videos, frames)
    if frames % 2:
        pairs = torch.cat([pairs, directions(videos, 1, width)], 1)
        mask[:, -1] = 0
    # Texts so short that all frames weigh nearly the same.
    return directions(texts, width) * min(left or 1e-3, 1e-3), pairs, mask


def three_that_cancel(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Every third frame is what is missing to zero."""
    texts, videos, frames, width = shape
    x = directions(videos, frames, width)
    mask = torch.zeros(videos, frames)
    for last in range(2, frames, 3):
        x[:, last] = -x[:, last - 2] - x[:, last - 1]
        mask[:, last - 2 : last + 1] = 1
    return directions(texts, width) * 1e-2, x, mask


def all_masked_but_one(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """And that one has next to nothing of the softmax."""
    text, x, mask = opposite(shape, 0.1)
    mask[:] = 0
    mask[:, 0] = 1
    x[:, 1:] += 3 * text.mean(0) / text.mean(0).norm()
    return text / text.norm(dim=-1, keepdim=True), x, mask


def some_zero(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """One video of zeros, and one frame of zeros in each of the others."""
    text, x, mask = opposite(shape, 1e-3)
    x[0] = 0
    x[:, -1] = 0
    return text, x, mask


def scaled(by: float, text_by: float = 1.0) -> Callable[[tuple[int, ...]], tuple[Tensor, Tensor, Tensor]]:
    def make(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        text, x, mask = opposite(shape, 1e-2)
        return text * text_by, x * by, mask

    return make


def signed_mask(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Frames alike, and a mask that takes away what it adds."""
    text, x, mask = opposite(shape, 1e-2)
    x = x.abs()
    x[:, 1] = x[:, 0] * (1 + 1e-3)
    mask[:] = 0
    mask[:, 0], mask[:, 1] = 1, -1
    return text, x, mask


CASES: dict[str, Callable[[tuple[int, ...]], tuple[Tensor, Tensor, Tensor]]] = {
    "opposite": lambda shape: opposite(shape, 0.0),
    **{f"opposite but for {left:.0e}": lambda shape, left=left: opposite(shape, left) for left in (0.1, 1e-3, 1e-5)},
    "three that cancel": three_that_cancel,
    "all masked but one": all_masked_but_one,
    "zeros": some_zero,
    "huge": scaled(1e15, 1e-12),
    "huge texts": scaled(1.0, 1e16),
    "tiny": scaled(1e-9),
    "a mask of both signs": signed_mask,
}


def compared(function: Callable[..., Tensor], text: Tensor, frames: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """A similarity, and the gradients of a sum over it."""
    text, frames = text.detach().requires_grad_(), frames.detach().requires_grad_()
    result = function(text, frames, mask)
    weights = torch.linspace(-3, 3, result.numel(), dtype=torch.float64).cos().view(result.shape).to(result)
    return result.detach(), *torch.autograd.grad((result * weights).sum(), (text, frames))


def rounding_of(backend: str, dtype: torch.dtype, device: str) -> float:
    """Of the products between weights and frames."""
    own = max(ROUNDING[SUMMED_IN[dtype]], PAIR.get(backend, 0.0) if dtype != torch.float64 else 0.0)
    # Beside 16-bit rows, Triton multiplies the weights in TF32.
    return max(own, 2.0**-11) if (backend, device) == ("triton", "cuda") and dtype in HALF else own


def allowed(text: Tensor, frames: Tensor, mask: Tensor, rounding: float) -> Tensor:
    """How far a cosine [A, B] may be from the truth: what the roundings of its row are, in lengths of that row."""
    weights = reference.frame_weights(text, frames, mask, pooling_temperature=POOLING)
    row = torch.einsum("abf,bfd->abd", weights, frames).norm(dim=-1)
    without = torch.einsum("abf,bf->ab", weights.abs(), frames.norm(dim=-1))
    logits = torch.einsum("ad,bfd->abf", text, frames).abs().amax(-1) / POOLING
    steps = (text.shape[-1] + frames.shape[1]) ** 0.5
    return 8 * rounding * steps * (2 + logits) * without / row.clamp_min(1e-12)


def given(case: str, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors of a case as a backend gets them, and the same numbers in float64."""
    text, frames, mask = CASES[case](shape)
    if max(float(tensor.abs().max()) for tensor in (text, frames)) > torch.finfo(dtype).max:
        pytest.skip(f"{dtype} does not reach so far")
    tensors = [text.to(dtype), frames.to(dtype), mask]
    return [tensor.to(device) for tensor in tensors], [tensor.double() for tensor in tensors]


# ---- without EM ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "shape"),
    [(case, SHAPES[i % len(SHAPES)]) for i, case in enumerate(CASES)]
    + [("opposite but for 1e-03", shape) for shape in SHAPES],
    ids=str,
)
def test_a_cosine_of_rows_that_cancel(
    backend: str, dtype: torch.dtype, device: str, case: str, shape: tuple[int, ...]
) -> None:
    """In [-1, 1], as near to the truth as its row is, and with gradients that are numbers."""
    tensors, exact = given(case, shape, dtype, device)
    truth = reference.pooled_cosine_similarity(*exact, pooling_temperature=POOLING)
    found, *gradients = compared(partial(pooled_cosine_similarity, pooling_temperature=POOLING), *tensors)

    assert bool((found.abs() <= LARGEST).all()), found.abs().max()
    # float16 ends at 65504, and the slope of a row of nothing is 1e12.
    assert dtype == torch.float16 or all(bool(tensor.isfinite().all()) for tensor in gradients)
    margin = allowed(*exact, rounding_of(backend, dtype, device)) + 2 * ROUNDING[dtype]
    excess = (found.double().cpu() - truth).abs() / margin
    assert float(excess.max()) <= 1


def cosine_alone(function: Any) -> Function:
    def call(text: Tensor, frames: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"similarity": function(text, frames, mask, pooling_temperature=POOLING)}

    return call


def problem(case: str, shape: tuple[int, ...], dtype: torch.dtype, **more: Tensor) -> Problem:
    text, frames, mask = CASES[case](shape)
    tensors = {"text": text, "frames": frames, "mask": mask.double(), **more}
    length = max(shape[0], shape[1] * shape[2], shape[3])
    return Problem(tensors, dtype, ("text", "frames", "init"), ("text", "frames"), length=length, steps=3)


@pytest.mark.parametrize("shape", [(7, 3, 2, 63), (41, 9, 3, 130), (5, 19, 7, 41)], ids=str)
@pytest.mark.parametrize("left", ["1e-01", "1e-03"])
def test_gradients_of_rows_that_cancel(
    backend: str, sums: torch.dtype, device: str, left: str, shape: tuple[int, ...]
) -> None:
    cancelling = problem(f"opposite but for {left}", shape, sums)
    formula = cosine_alone(reference.pooled_cosine_similarity)
    compare(backend, device, cancelling, cosine_alone(pooled_cosine_similarity), formula)


# ---- through a map ---------------------------------------------------------------------------------------------------


def mapped_cosine(weight: float, linear: bool) -> tuple[Function, Function]:
    """The op that compares mapped rows, and its formula."""

    def ours(text: Tensor, frames: Tensor, mask: Tensor, responsibilities: Tensor, scale: Tensor) -> dict[str, Tensor]:
        kept = text.new_empty(0, dtype=scale.dtype)
        cosine, length = torch.ops.emcl._pooled_cosine(
            text, frames, mask, kept, responsibilities, scale, weight, POOLING, linear
        )
        return {"cosine": cosine, "length": length}

    def formula(
        text: Tensor, frames: Tensor, mask: Tensor, responsibilities: Tensor, scale: Tensor
    ) -> dict[str, Tensor]:
        def mapped(x: Tensor) -> Tensor:
            constant = x if linear else x.detach()
            return x + weight * (constant @ (responsibilities * scale)) @ responsibilities.mT

        weights = reference.frame_weights(text, frames, mask, pooling_temperature=POOLING)
        pooled = mapped(torch.einsum("abf,bfd->abd", weights, frames))
        cosine = torch.einsum("ad,abd->ab", reference.unit(mapped(text)), reference.unit(pooled))
        return {"cosine": cosine, "length": torch.linalg.vector_norm(pooled, dim=-1).detach()}

    return ours, formula


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("weight", [3.0, -1.0])
@pytest.mark.parametrize("shape", [(7, 3, 2, 63), (41, 9, 3, 130)], ids=str)
def test_mapped_rows_that_cancel(
    backend: str, sums: torch.dtype, device: str, shape: tuple[int, ...], weight: float, linear: bool
) -> None:
    """Opposite frames stay opposite through a map."""
    width, bases = shape[-1], 9
    fitted = {
        "responsibilities": torch.rand(width, bases, dtype=torch.float64) / (width * bases) ** 0.5,
        "scale": torch.rand(bases, dtype=torch.float64),
    }
    ours, formula = mapped_cosine(weight, linear)
    compare(backend, device, problem("opposite but for 1e-03", shape, sums, **fitted), ours, formula)


@pytest.mark.parametrize("linear", [False, True])
def test_a_map_that_takes_nearly_all_of_a_row(backend: str, sums: torch.dtype, device: str, linear: bool) -> None:
    """With a weight below zero text and frames may be the reconstruction, all but a little."""
    basis = directions(1, 33).abs()
    text, frames = basis + 1e-3 * directions(9, 33), basis + 1e-3 * directions(4, 5, 33)
    # ‖basis‖ is one, so that the map is x − (1 − 1e-4)·⟨x, basis⟩·basis.
    tensors = {
        "text": text,
        "frames": frames,
        "mask": torch.ones(4, 5, dtype=torch.float64),
        "responsibilities": basis.mT.contiguous(),
        "scale": torch.tensor([1 - 1e-4], dtype=torch.float64),
    }
    given = Problem(tensors, sums, ("text", "frames"), ("text", "frames"), length=33)
    compare(backend, device, given, *mapped_cosine(-1.0, linear))


# ---- with EM ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["opposite", "opposite but for 1e-05", "three that cancel", "zeros"])
def test_a_similarity_of_rows_that_cancel_is_a_cosine(backend: str, dtype: torch.dtype, device: str, case: str) -> None:
    """Also in blocks. What EM makes of such rows is not looked at here."""
    (text, frames, mask), _ = given(case, (41, 9, 6, 33), dtype, device)
    start = distinct_init(7).to(device, SUMMED_IN[dtype])
    for gradient in GRADIENTS:
        found, *gradients = compared(
            lambda *each, how=gradient: pooled_similarity(*each, start, gradient=how, **SETTINGS)[0],
            text, frames, mask,
        )  # fmt: skip
        assert bool((found.abs() <= LARGEST).all()), (gradient, found.abs().max())
        assert dtype == torch.float16 or all(bool(tensor.isfinite().all()) for tensor in gradients), gradient
    for em_block in (5, 64):
        blocks = pooled_similarity_blocks(text, frames, mask, start, em_block=em_block, **SETTINGS)
        assert bool((blocks.abs() <= LARGEST).all()), (em_block, blocks.abs().max())


def test_a_length_whose_square_overflows_is_no_number(backend: str, device: str) -> None:
    """In place of a similarity of zero."""
    text, frames = directions(5, 33).float().to(device), directions(3, 4, 33).float().to(device)
    mask = torch.ones(3, 4, device=device)
    assert bool(pooled_cosine_similarity(text * 1e30, frames * 1e-20, mask).isnan().all())
    assert bool(pooled_cosine_similarity(text * 1e-20, frames * 1e30, mask).isnan().all())
