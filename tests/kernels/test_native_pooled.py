"""The C++ kernels of the pooled similarity: every dtype and edge of a tile, equal starts, blocks, memory, threads."""

import pytest
import torch
from by_backend import Functions
from torch import Tensor

from emcl_kernels import em_fit, em_project, pooled_similarity, pooled_similarity_blocks, reference, use_backend
from emcl_kernels.backends import cpu
from emcl_kernels.backends import reference_pooled as plain_pooled
from emcl_kernels.ops import pooled
from emcl_kernels.testing import TOLERANCE, assert_close, clustered_rows, distinct_init

native = Functions("native")

pytestmark = pytest.mark.skipif(not cpu.backend.status()["loaded"], reason=cpu.backend.status()["reason"])

# texts, videos, frames, width, bases: one of each, edges of tiles, more groups than forward holds at a time, more than
# backward does, wide and deep
SHAPES = [
    (1, 1, 1, 1, 1),
    (48, 16, 3, 48, 16),
    (49, 17, 12, 130, 33),
    (5, 400, 7, 20, 3),
    (600, 300, 7, 20, 3),
    (7, 3, 64, 1024, 128),
]


def sample(texts: int, videos: int, frames: int, width: int, bases: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """With a clip whose frames are all masked, and a text of zeros where its gradient, 1 / 1e-12, is a number."""
    mask = (torch.rand(videos, frames) < 0.8).to(torch.float64)
    text, video = 2 * clustered_rows(texts, width), 2 * clustered_rows(videos, frames, width)
    mask[1:2] = 0
    if dtype != torch.float16:
        text[2:3] = 0
    return text.to(dtype), video.to(dtype), mask, distinct_init(bases).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_kernel_equals_the_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    text, frames, mask, _ = sample(*shape, dtype)
    wide_text, wide_frames = text.double(), frames.double()
    # one rounding of a gradient to its dtype, and float32 sums before it
    rows = {torch.bfloat16: 4e-3, torch.float16: 6e-4, torch.float64: 1e-9}.get(dtype, TOLERANCE[torch.float32])
    sums = TOLERANCE[torch.float64 if dtype == torch.float64 else torch.float32]

    gram, colsum, kept = native.pooled_moments(text, frames, mask, 2.0, True)
    truth = plain_pooled.moments(wide_text, wide_frames, mask, 2.0, True)
    assert_close("gram", gram, truth[0], sums)
    assert_close("kept", kept, truth[2], sums)
    assert_close("colsum", colsum, truth[1], sums)

    # of the size of the rows, so that the corrections of rank K are as large as what they correct
    r = torch.rand(shape[3], shape[4], dtype=torch.float64) / (shape[3] * shape[4]) ** 0.5
    s = torch.rand(shape[4], dtype=torch.float64)
    r_, s_ = r.to(gram.dtype), s.to(gram.dtype)
    expected = plain_pooled.cosine(wide_text, wide_frames, mask, truth[2], r_.double(), s_.double(), 3.0, 2.0, False)
    for known in (kept, kept.new_empty(0)):
        for name, a, b in zip(
            ("cosine", "length"),
            native.pooled_cosine(text, frames, mask, known, r_, s_, 3.0, 2.0, False),
            expected,
            strict=True,
        ):
            assert_close(name, a, b, sums)

    d_cosine = torch.randn(expected[0].shape, dtype=torch.float64)
    given = (d_cosine, *expected)
    for linear in (False, True):
        d_cosine_, cosine_, length_ = (t.to(gram.dtype) for t in given)
        rest = (r_, s_, cosine_, length_, 3.0, 2.0, linear)
        ours = native.pooled_cosine_backward(d_cosine_, text, frames, mask, kept, *rest)
        anew = native.pooled_cosine_backward(d_cosine_, text, frames, mask, kept.new_empty(0), *rest)
        assert all(torch.equal(a, b) for a, b in zip(ours, anew, strict=True))
        right = plain_pooled.cosine_backward(
            *(given[0], wide_text, wide_frames, mask, truth[2], r_.double(), s_.double()),
            *(*given[1:], 3.0, 2.0, linear),
        )
        for name, a, b, allowed in zip(
            ("d_text", "d_frames", "pull_text", "pull_frames"), ours, right, (rows, rows, sums, sums), strict=True
        ):
            if float(b.abs().max()) > 1e-9 * float(d_cosine.abs().max()):
                assert_close(f"{name} linear={linear}", a, b, max(allowed, 10 * sums))

    d_gram, d_colsum = torch.randn_like(truth[0]), torch.randn_like(truth[1])
    d_gram_, d_colsum_ = d_gram.to(gram.dtype), d_colsum.to(gram.dtype)
    given = d_gram_.double(), d_colsum_.double()
    ours = native.pooled_moments_backward(d_gram_, d_colsum_, text, frames, mask, kept, 2.0, True)
    anew = native.pooled_moments_backward(d_gram_, d_colsum_, text, frames, mask, kept.new_empty(0), 2.0, True)
    assert all(torch.equal(a, b) for a, b in zip(ours, anew, strict=True))
    right = plain_pooled.moments_backward(*given, wide_text, wide_frames, mask, truth[2], 2.0, True)
    for name, a, b in zip(("d_text", "d_frames"), ours, right, strict=True):
        assert_close(f"{name} of the moments", a, b, rows)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_large_inner_products_do_not_overflow(dtype: torch.dtype) -> None:
    """Softmax over frames whose logits reach thousands, the largest of them anywhere."""
    text, frames, mask, init = (t.to(dtype) for t in sample(20, 9, 6, 24, 3, torch.float64))
    text, frames = 30 * text, 30 * frames * torch.rand(9, 6, 1)
    for function in (native.pooled_moments, plain_pooled.moments):
        assert all(t.isfinite().all() for t in function(text, frames, mask, 0.05, True))
    with use_backend("native"):
        ours = pooled_similarity(text, frames, mask.bool(), init, pooling_temperature=0.05)
    with use_backend("reference"):
        right = pooled_similarity(
            *(t.double() for t in (text, frames)), mask.bool(), init.double(), pooling_temperature=0.05
        )
    assert_close("similarity", ours[0], right[0], TOLERANCE[dtype])


@pytest.mark.parametrize("bases", [[1.0], [1.0, -1.0, 1.0, 1.0, -1.0], [0.3, 0.3, -2.0, 0.5]])
def test_bases_that_start_alike_stay_alike(bases: list[float]) -> None:
    """EM runs on one of each, and gives what it gives for all of them."""
    init = torch.tensor(bases, dtype=torch.float64)
    for rows in (20, 300):  # by the loop, and by the Gram form
        x = clustered_rows(rows, 40)
        y, mean_bases = reference.em_project_loop(x, init, temperature=0.3)
        with use_backend("native"):
            ours = em_project(x, init, temperature=0.3)
        assert_close("reconstruction", ours[0] - x, y - x)
        assert_close("mean_bases", ours[1], mean_bases, 1e-9)
    gram, colsum = reference.em_moments(x)
    logits = colsum[:, None] * init
    truth = reference.em_fit(gram, logits, num_iters=9, temperature=0.3)
    with use_backend("native"):
        r, s = em_fit(gram, logits, temperature=0.3)
    assert_close("responsibilities", r, truth[0])
    assert_close("scale", s, truth[1])
    for k, value in enumerate(bases):
        assert torch.equal(r[:, k], r[:, bases.index(value)])


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("start", ["sign", "distinct"])
@pytest.mark.parametrize("em_block", [1, 5, 13, 100])  # by the rows for small blocks, by the Gram matrix for large ones
def test_blocks_equal_a_loop_over_them(em_block: int, start: str, relative: bool) -> None:
    text, frames, mask, init = sample(23, 31, 3, 20, 6, torch.float64)
    init = init.sign() if start == "sign" else init
    settings = (2.0, 9, 0.5, 3.0, 1e-6)
    with use_backend("native"):
        ours = pooled_similarity_blocks(
            text,
            frames,
            mask,
            init,
            em_block=em_block,
            pooling_temperature=2.0,
            temperature=0.5,
            relative=relative,
        )
    with use_backend("reference"):
        looped = pooled._one_block_after_the_other(text, frames, mask, init, em_block, *settings, relative)
    assert_close("similarity", ours, looped, 1e-9)


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    text, frames, mask, init = sample(100, 90, 12, 130, 9, torch.float32)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        leaves = [text.clone().requires_grad_(), frames.clone().requires_grad_(), init.clone().requires_grad_()]
        with use_backend("native"):
            similarity, mean_bases = pooled_similarity(*leaves[:2], mask, leaves[2], gradient="full")
            blocks = pooled_similarity_blocks(text, frames, mask, init, em_block=32)
        gradients = torch.autograd.grad(similarity.square().sum(), leaves)
        results.append((similarity, mean_bases, blocks, *gradients))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("gradient", ["identity", "full"])
def test_kept_products_change_nothing(gradient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, frames, mask, init = sample(50, 20, 5, 33, 7, torch.float32)
    leaves = [text.requires_grad_(), frames.requires_grad_()]

    def run() -> tuple[Tensor, ...]:
        similarity, _ = pooled_similarity(*leaves, mask, init, gradient=gradient)
        return similarity, *torch.autograd.grad(similarity.square().sum(), leaves)

    with_products = run()
    monkeypatch.setattr(pooled, "KEPT_PRODUCTS", 0)
    for a, b in zip(with_products, run(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("forward", "backward"), [("native", "reference"), ("reference", "native")])
def test_another_backend_may_run_backward(forward: str, backward: str) -> None:
    """What the moments keep has one order, whoever made it."""
    text, frames, mask, init = sample(50, 20, 5, 33, 7, torch.float64)
    leaves = [text.requires_grad_(), frames.requires_grad_()]
    gradients = []
    for first, second in ((forward, forward), (forward, backward)):
        with use_backend(first):
            similarity, _ = pooled_similarity(*leaves, mask, init, gradient="full")
        with use_backend(second):
            gradients.append(torch.autograd.grad(similarity.square().sum(), leaves))
    for a, b in zip(*gradients, strict=True):
        assert_close("gradient", a, b, 1e-9)
