"""pooled_similarity and what it is made of, over every backend, against the release's formula [A, B, D] in float64."""

import math
from typing import Any

import pytest
import torch
from compare import GRADIENTS, Function, Problem, compare
from emulator import MANNERS, emulate
from refusals import Refusal, refusals
from torch import Tensor

from emcl_kernels import pooled_cosine_similarity, pooled_similarity, pooled_similarity_blocks, reference, use_backend
from emcl_kernels.testing import assert_close, bound, clustered_rows, distinct_init

# (texts, videos, frames, width, bases)
ODD = [
    (1, 1, 1, 16, 1),
    (5, 3, 1, 63, 7),
    (9, 2, 12, 32, 33),
    (41, 3, 7, 41, 7),
    (130, 2, 5, 20, 4),
    (3, 2, 64, 130, 128),
]
# Edges of tiles, more groups of frames than forward holds at a time, more than backward does.
BIG = [(49, 17, 12, 130, 33), (5, 400, 7, 20, 3), (7, 3, 17, 1000, 32)]
LARGE = [(64, 64, 12, 512, 32), (32, 32, 64, 512, 32), (40, 24, 12, 1024, 64), (256, 256, 12, 512, 32)]
SHAPES = [
    *ODD,
    *(pytest.param(shape, marks=pytest.mark.compiled) for shape in BIG),
    *(pytest.param(shape, marks=pytest.mark.large) for shape in LARGE),
]
POOLING = 2.0
# None of them as it is by default. Three iterations: EM amplifies rounding, and these are no tests of EM.
SETTINGS = {"num_iters": 3, "temperature": 0.8, "residual_weight": 2.0, "eps": 1e-3, "pooling_temperature": POOLING}


def problem(shape: tuple[int, ...], dtype: torch.dtype, differentiate: tuple[str, ...] = ("text", "frames")) -> Problem:
    """A mask of booleans, or, for an even number of frames, of any numbers. No video is without a valid frame."""
    texts, videos, frames, width, bases = shape
    mask = torch.rand(videos, frames) < 0.7
    mask[:, 0] = True
    tensors = {
        "text": 3 * clustered_rows(texts, width),
        "frames": 3 * clustered_rows(videos, frames, width),
        "mask": mask if frames % 2 else mask * (0.5 + torch.rand(videos, frames, dtype=torch.float64)),
        "init": distinct_init(bases),
    }
    length = max(texts, videos * frames, width)
    return Problem(tensors, dtype, ("text", "frames", "init"), differentiate, length=length, steps=3)


# ---- the similarity --------------------------------------------------------------------------------------------------


def similarity(function: Any, gradient: str) -> Function:
    def run(text: Tensor, frames: Tensor, mask: Tensor, init: Tensor) -> dict[str, Tensor]:
        result, mean_bases = function(text, frames, mask, init, gradient=gradient, **SETTINGS)
        return {"similarity": result, "mean_bases": mean_bases}

    return run


def check(backend: str, device: str, shape: tuple[int, ...], dtype: torch.dtype, gradient: str) -> None:
    differentiate = ("text", "frames", "init") if gradient == "full" else ("text", "frames")
    ours = similarity(pooled_similarity, gradient)
    formula = similarity(reference.pooled_similarity_materialized, gradient)
    compare(backend, device, problem(shape, dtype, differentiate), ours, formula)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(
    backend: str, sums: torch.dtype, device: str, shape: tuple[int, ...], gradient: str
) -> None:
    check(backend, device, shape, sums, gradient)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("shape", [ODD[2], pytest.param((40, 24, 12, 512, 32), marks=pytest.mark.compiled)], ids=str)
def test_half_precision(backend: str, half: torch.dtype, device: str, shape: tuple[int, ...], gradient: str) -> None:
    check(backend, device, shape, half, gradient)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_without_em(backend: str, dtype: torch.dtype, device: str, shape: tuple[int, ...]) -> None:
    def run(function: Any) -> Function:
        def call(text: Tensor, frames: Tensor, mask: Tensor, init: Tensor) -> dict[str, Tensor]:
            return {"similarity": function(text, frames, mask, pooling_temperature=POOLING)}

        return call

    formula = run(reference.pooled_cosine_similarity)
    compare(backend, device, problem(shape, dtype), run(pooled_cosine_similarity), formula)


# ---- its first step: moments of the pooled rows ----------------------------------------------------------------------


def pooled_rows(text: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
    """[A, B, D], which the kernels never make."""
    weights = reference.frame_weights(text, frames, mask, pooling_temperature=POOLING)
    return torch.einsum("abf,bfd->abd", weights, frames)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_moments_of_the_pooled_rows(
    backend: str, dtype: torch.dtype, device: str, shape: tuple[int, ...], keep: bool
) -> None:
    """keep: the inner products are kept for backward; otherwise it makes them again."""

    def ours(text: Tensor, frames: Tensor, mask: Tensor) -> dict[str, Tensor]:
        gram, colsum, kept = torch.ops.emcl._pooled_moments(text, frames, mask, POOLING, keep)
        return {"gram": gram, "colsum": colsum} | ({"kept": kept} if keep else {})

    def formula(text: Tensor, frames: Tensor, mask: Tensor) -> dict[str, Tensor]:
        rows = torch.cat([pooled_rows(text, frames, mask).flatten(0, 1), text])
        gram, colsum = reference.em_moments(rows)
        kept = torch.einsum("bfd,ad->bfa", frames, text).detach()
        return {"gram": gram, "colsum": colsum} | ({"kept": kept} if keep else {})

    given = problem(shape, dtype)
    del given.tensors["init"]
    compare(backend, device, given, ours, formula)


# ---- its last step: the cosine of what the fitted map makes of them --------------------------------------------------


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cosine_of_the_mapped_rows(
    backend: str, dtype: torch.dtype, device: str, shape: tuple[int, ...], linear: bool, keep: bool
) -> None:
    """linear: the gradient goes through the map, and to it. Otherwise what it adds to the rows is a constant."""

    def ours(text: Tensor, frames: Tensor, mask: Tensor, responsibilities: Tensor, scale: Tensor) -> dict[str, Tensor]:
        _, _, kept = torch.ops.emcl._pooled_moments(text.detach(), frames.detach(), mask, POOLING, keep)
        cosine, length = torch.ops.emcl._pooled_cosine(
            text, frames, mask, kept, responsibilities, scale, 3.0, POOLING, linear
        )
        return {"cosine": cosine, "length": length}

    def formula(
        text: Tensor, frames: Tensor, mask: Tensor, responsibilities: Tensor, scale: Tensor
    ) -> dict[str, Tensor]:
        def mapped(x: Tensor) -> Tensor:
            if linear:
                return reference.em_reconstruct(x, responsibilities, scale, weight=3.0)
            constant = x.detach()
            return x + (reference.em_reconstruct(constant, responsibilities, scale, weight=3.0) - constant)

        rows = pooled_rows(text, frames, mask)
        pooled = mapped(rows.flatten(0, 1)).view_as(rows)
        cosine = torch.einsum("ad,abd->ab", reference.unit(mapped(text)), reference.unit(pooled))
        return {"cosine": cosine, "length": torch.linalg.vector_norm(pooled, dim=-1).detach()}

    given = problem(shape, dtype, ("text", "frames", *(("responsibilities", "scale") if linear else ())))
    # Of the size of the rows, so that the corrections of rank K are as large as what they correct.
    width, bases = shape[-2:]
    responsibilities = torch.rand(width, bases, dtype=torch.float64) / (width * bases) ** 0.5
    del given.tensors["init"]
    given.tensors["responsibilities"] = responsibilities.float().double()
    given.tensors["scale"] = torch.rand(bases).double()
    compare(backend, device, given, ours, formula)


# ---- blocks ----------------------------------------------------------------------------------------------------------


def similarity_of_a_block(text: Tensor, frames: Tensor, mask: Tensor, init: Tensor, relative: bool) -> Tensor:
    """As released, with the weight of `relative` worked out from the rows."""
    pooled = pooled_rows(text, frames, mask)
    rows = torch.cat([pooled.flatten(0, 1), text])
    once, _ = reference.em_project_loop(rows, init, num_iters=3, temperature=0.8, residual_weight=1.0, eps=1e-3)
    reconstruction = once - rows
    length = torch.linalg.vector_norm(rows) / torch.linalg.vector_norm(reconstruction) if relative else 1.0
    rows = rows + 2.0 * length * reconstruction
    pooled, text = rows[: -len(text)].view_as(pooled), rows[-len(text) :]
    return torch.einsum("ad,abd->ab", reference.unit(text), reference.unit(pooled))


def check_blocks(
    backend: str,
    device: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    em_block: int,
    *,
    relative: bool = False,
    signs: bool = False,
    may_be_useless: bool = False,
) -> None:
    def formula(text: Tensor, frames: Tensor, mask: Tensor, init: Tensor) -> dict[str, Tensor]:
        clips = list(zip(frames.split(em_block), mask.split(em_block), strict=True))
        blocks = [
            torch.cat([similarity_of_a_block(part, *clip, init, relative) for clip in clips], dim=1)
            for part in text.split(em_block)
        ]
        return {"similarity": torch.cat(blocks)}

    def ours(text: Tensor, frames: Tensor, mask: Tensor, init: Tensor) -> dict[str, Tensor]:
        blocks = pooled_similarity_blocks(text, frames, mask, init, em_block=em_block, relative=relative, **SETTINGS)
        return {"similarity": blocks}

    given = problem(shape, dtype, ())
    if signs:
        given.tensors["init"] = given.tensors["init"].sign()
    compare(backend, device, given, ours, formula, may_be_useless=may_be_useless)


@pytest.mark.parametrize("relative", [False, True])
# By the rows for small blocks, by the Gram matrix for large ones. The last block of texts may be smaller.
@pytest.mark.parametrize(
    ("texts", "videos", "em_block"), [(5, 3, 1), (11, 9, 4), (23, 17, 7), (70, 9, 40), (300, 5, 256), (10, 9, 10)]
)
@pytest.mark.parametrize("start", ["sign", "distinct"])
def test_blocks_equal_a_loop_over_them(
    backend: str,
    sums: torch.dtype,
    device: str,
    texts: int,
    videos: int,
    em_block: int,
    start: str,
    relative: bool,
) -> None:
    shape = (texts, videos, 3, 20, 6)
    check_blocks(backend, device, shape, sums, em_block, relative=relative, signs=start == "sign")


@pytest.mark.parametrize(
    ("shape", "em_block"),
    [
        ((70, 9, 12, 32, 7), 40),
        ((70, 9, 12, 32, 7), 64),
        ((300, 5, 3, 20, 6), 260),
        pytest.param((300, 9, 12, 32, 7), 256, marks=pytest.mark.compiled),
        pytest.param((1000, 300, 12, 64, 8), 256, marks=pytest.mark.large),
    ],
    ids=str,
)
def test_last_blocks_that_leave_splits_empty(
    backend: str, sums: torch.dtype, device: str, shape: tuple[int, ...], em_block: int
) -> None:
    """A launch cuts a whole block of texts into parts; of the last one, which is smaller, some hold no text at all."""
    check_blocks(backend, device, shape, sums, em_block)


def test_blocks_have_no_gradient(backend: str, device: str) -> None:
    text, frames, mask, init = on_device(problem((5, 3, 2, 16, 4), torch.float32), device)
    similarity = pooled_similarity_blocks(text.requires_grad_(), frames, mask, init, em_block=2)
    with pytest.raises(NotImplementedError, match="call pooled_similarity on each block"):
        similarity.sum().backward()


@pytest.mark.large
def test_blocks_of_a_whole_evaluation(backend: str, device: str) -> None:
    """A thousand texts and videos in blocks of 40: blocks that hold the same clips have the same bits."""
    text, frames, mask, init = on_device(problem((200, 200, 12, 512, 32), torch.float32), device)
    few = pooled_similarity_blocks(text, frames, mask, init, em_block=40)
    many = (text.repeat(5, 1), frames.repeat(5, 1, 1), mask.repeat(5, 1), init)
    assert torch.equal(pooled_similarity_blocks(*many, em_block=40), few.repeat(5, 5))


# ---- what is special -------------------------------------------------------------------------------------------------


def on_device(given: Problem, device: str) -> list[Tensor]:
    """text, frames, mask, init."""
    return [
        tensor.to(device, given.given(name)) if tensor.is_floating_point() else tensor.to(device)
        for name, tensor in given.tensors.items()
    ]


@pytest.mark.short
@pytest.mark.large
@pytest.mark.parametrize("gradient", ["identity", "full"])
def test_before_a_benchmark(backend: str, dtype: torch.dtype, device: str, gradient: str) -> None:
    check(backend, device, (64, 64, 12, 512, 32), dtype, gradient)


def test_two_frames_by_hand(backend: str, sums: torch.dtype, device: str) -> None:
    # t = [1, 0], frames [1, 0] and [0, 1], temperature 1/ln 3: weights 3/4 and 1/4, v = [3/4, 1/4].
    text = torch.tensor([[1.0, 0.0]], device=device, dtype=sums)
    frames = torch.eye(2, device=device, dtype=sums).unsqueeze(0)
    valid = torch.ones(1, 2, device=device)
    temperature = 1 / math.log(3)
    gram, colsum, kept = torch.ops.emcl._pooled_moments(text, frames, valid, temperature, True)
    nothing = torch.empty(2, 0, device=device, dtype=sums)
    cosine, length = torch.ops.emcl._pooled_cosine(
        text, frames, valid, nothing[0], nothing, nothing[0], 0.0, temperature, False
    )
    for actual, expected in (
        (kept, [[[1.0], [0.0]]]),
        (gram, [[25 / 16, 3 / 16], [3 / 16, 1 / 16]]),
        (colsum, [1.75, 0.25]),
        (length, [[10**0.5 / 4]]),
        (cosine, [[3 / 10**0.5]]),
    ):
        torch.testing.assert_close(actual.cpu(), torch.tensor(expected, dtype=sums))


def test_a_clip_without_valid_frames_and_a_text_of_zeros_have_similarity_zero(
    backend: str, sums: torch.dtype, device: str
) -> None:
    text, frames, mask, init = on_device(problem((9, 5, 7, 63, 7), sums), device)
    mask[1] = False
    text[2] = 0
    text, frames = text.requires_grad_(), frames.requires_grad_()
    for gradient in GRADIENTS:
        similarity, _ = pooled_similarity(text, frames, mask, init, gradient=gradient, num_iters=3)  # type: ignore[arg-type]
        assert not similarity[:, 1].any()
        assert not similarity[2].any()
        assert bool((similarity[:2, 0].abs() > 1e-3).all())
        gradients = torch.autograd.grad(similarity.sum(), (text, frames))
        assert all(bool(tensor.isfinite().all()) for tensor in gradients)


def test_large_inner_products_do_not_overflow(backend: str, sums: torch.dtype, device: str) -> None:
    """Softmax over frames whose logits reach thousands, the largest of them anywhere."""

    def run(function: Any) -> Function:
        def call(text: Tensor, frames: Tensor, mask: Tensor, init: Tensor) -> dict[str, Tensor]:
            return {"similarity": function(text, frames, mask, pooling_temperature=0.05)}

        return call

    given = problem((20, 9, 6, 24, 3), sums, ())
    given.tensors["text"] *= 8
    given.tensors["frames"] *= 8
    compare(backend, device, given, run(pooled_cosine_similarity), run(reference.pooled_cosine_similarity))


@pytest.mark.parametrize("linear", [False, True])
def test_kept_products_change_nothing(backend: str, sums: torch.dtype, device: str, linear: bool) -> None:
    text, frames, mask, _ = on_device(problem((50, 20, 5, 33, 7), sums), device)
    fitted = torch.rand(33, 7, device=device, dtype=sums) / 10, torch.rand(7, device=device, dtype=sums)
    _, _, kept = torch.ops.emcl._pooled_moments(text, frames, mask, POOLING, True)
    leaves = text.requires_grad_(), frames.requires_grad_()

    def run(keep: bool) -> tuple[Tensor, ...]:
        gram, _, _ = torch.ops.emcl._pooled_moments(*leaves, mask, POOLING, keep)
        cosine, length = torch.ops.emcl._pooled_cosine(
            *leaves, mask, kept if keep else kept.new_empty(0), *fitted, 3.0, POOLING, linear
        )
        return cosine, length, *torch.autograd.grad(cosine.cos().sum() + gram.cos().sum(), leaves)

    for a, b in zip(run(keep=True), run(keep=False), strict=True):
        assert_close("with and without", a, b, bound(sums, 50, backend=backend))
        if backend in ("native", "triton"):
            assert torch.equal(a, b)


@pytest.mark.parametrize(("forward", "backward"), [("native", "reference"), ("reference", "native")])
def test_another_backend_may_run_backward(forward: Any, backward: Any) -> None:
    """What the moments keep has one order, whoever made it."""
    text, frames, mask, init = on_device(problem((50, 20, 5, 33, 7), torch.float64), "cpu")
    leaves = text.requires_grad_(), frames.requires_grad_()
    gradients = []
    for first, second in ((forward, forward), (forward, backward)):
        with use_backend(first):
            similarity, _ = pooled_similarity(*leaves, mask, init, gradient="full")
        with use_backend(second):
            gradients.append(torch.autograd.grad(similarity.square().sum(), leaves))
    for a, b in zip(*gradients, strict=True):
        assert_close("gradient", a, b, 1e-9)


@pytest.mark.parametrize("architecture", ["80", "90"])
@pytest.mark.parametrize("manner", MANNERS)
def test_both_architectures_of_the_emulator(architecture: str, manner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    emulate(monkeypatch, ARCHITECTURE=architecture, **MANNERS[manner])
    check("cuda", "cpu", (5, 3, 4, 63, 7), torch.float32, "full")


@pytest.mark.parametrize("shape", ODD[:-1], ids=str)
def test_sums_as_hopper_makes_them(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the tolerance of exact ones."""
    emulate(monkeypatch, SUMS="hopper")
    check("cuda", "cpu", shape, torch.float32, "full")


@pytest.mark.parametrize("name", ["reference", "native"])
def test_no_tensor_of_the_materialized_size_is_made(name: Any) -> None:
    texts, videos, width = 40, 36, 96
    text, frames, mask, init = on_device(problem((texts, videos, 3, width, 8), torch.float64), "cpu")
    text, frames = text.requires_grad_(), frames.requires_grad_()
    with (
        use_backend(name),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile,
    ):
        pooled_similarity(text, frames, mask, init)[0].sum().backward()
    sizes = [
        torch.Size(shape).numel()
        for event in profile.events() or []
        for shape in event.input_shapes
        if shape and all(isinstance(size, int) for size in shape)
    ]
    assert sizes
    assert max(sizes) < texts * videos * width


x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
video, valid, start = torch.ones(2, 3, 4), torch.ones(2, 3).bool(), torch.ones(3)
numbers = valid.double()
op = torch.ops.emcl.pooled_similarity
BAD: list[Refusal] = [
    ("frames of another width", lambda: op(x, video[..., :3], valid, start), ValueError,
     r"frames has shape \[2, 3, 3\] but text has shape \[8, 4\]; expected \[B, F, 4\]"),
    ("mask of another shape", lambda: op(x, video, valid[:, :2], start), ValueError,
     r"frame_mask has shape \[2, 2\]; expected \[2, 3\]"),
    ("text and frames in two dtypes", lambda: pooled_similarity(x, video.double(), valid, start), TypeError,
     "frames is torch.float64 but text is torch.float32"),
    ("NaN", lambda: pooled_similarity(x / torch.zeros(8, 4), video, valid, start), ValueError, "em_fit: .* not finite"),
    ("mask with gradient", lambda: pooled_similarity(x, video, numbers.clone().requires_grad_(), start), Exception,
     r"frame_mask is torch.float64 and requires grad; expected bool or real numbers"),
    ("complex mask", lambda: pooled_similarity(x, video, numbers.to(torch.complex128), start), Exception,
     "frame_mask is torch.complex128; expected bool or real"),
]  # fmt: skip


test_bad_input_is_refused_with_the_way_out = refusals(BAD)
