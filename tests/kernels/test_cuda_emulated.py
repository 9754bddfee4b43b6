"""The CUDA kernels, forward and backward, in the emulator: values, gradients, bits, and what ops promise torch.

Sizes are small, because every thread is run by the CPU, and odd, because that is where kernels go wrong.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accuracy import pooled_errors, pooled_sample, rows_errors
from by_backend import Functions
from test_ops import CASES, arguments, op_of
from torch import Tensor

from emcl_kernels import em_fit, em_moments, em_project, pooled_similarity, pooled_similarity_blocks, reference
from emcl_kernels import use_backend as use
from emcl_kernels.backends import cuda as cuda_backend
from emcl_kernels.backends import gpu
from emcl_kernels.ops import pooled
from emcl_kernels.testing import TOLERANCE, assert_close, clustered_rows, distinct_init, relative_error

cuda = Functions("cuda")

pytestmark = pytest.mark.skipif(bool(cuda_backend._load_emulated()), reason=cuda_backend._load_emulated())

HALF = [torch.bfloat16, torch.float16]
# (leading, rows, width, bases, iterations)
ROWS = [
    ((), 1, 1, 1, 1),
    ((), 7, 16, 7, 2),
    ((2,), 41, 63, 32, 1),
    ((2, 2), 33, 24, 41, 2),
    ((), 130, 130, 7, 2),
    ((), 300, 40, 128, 1),
    ((), 50, 300, 128, 1),
]
# (texts, videos, frames, width, bases)
POOLED = [
    (1, 1, 1, 16, 1),
    (5, 3, 1, 63, 7),
    (9, 2, 12, 32, 33),
    (41, 3, 7, 41, 7),
    (300, 2, 5, 20, 4),
    (3, 2, 64, 130, 128),
]
GRADIENTS = ["identity", "linear", "full"]


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("EMCL_CUDA_EMULATED", "1")
    with use("cuda"):
        yield


def name(case: Any) -> str:
    return str(case).replace(" ", "")


@pytest.mark.parametrize("case", ROWS, ids=name)
def test_float32_agrees_with_float64(case: Any) -> None:
    for output, (error, plain) in rows_errors(cuda, *case, dtype=torch.float32).items():
        # Where plain torch loses more than the table allows, as in a difference of large terms, it is the measure.
        assert error <= max(TOLERANCE[torch.float32], 4 * plain), f"{output}: {error:.1e}, plain torch {plain:.1e}"


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("case", ROWS[2:5], ids=name)
def test_half_precision_is_no_worse_than_twice_plain_torch(case: Any, dtype: torch.dtype) -> None:
    for output, (error, plain) in rows_errors(cuda, *case, dtype=dtype).items():
        # Sums and the fit are in float32 whatever the rows are.
        assert error <= max(TOLERANCE[torch.float32], 2 * plain), f"{output}: {error:.1e}, plain torch {plain:.1e}"


@pytest.mark.parametrize("gradient", [*GRADIENTS, None])
@pytest.mark.parametrize("case", POOLED, ids=name)
def test_the_pooled_similarity_agrees_with_float64(case: Any, gradient: str | None) -> None:
    for output, (error, plain) in pooled_errors("cuda", pooled_sample(*case), torch.float32, gradient).items():
        # Through all iterations of EM rounding grows: where plain torch loses more than the table allows, it counts.
        allowed = max(TOLERANCE[torch.float32], 4 * plain if gradient == "full" else 0)
        assert error <= allowed, f"{output}: {error:.1e}, plain torch {plain:.1e}"


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("gradient", [*GRADIENTS, None])
def test_the_pooled_similarity_in_half_precision(gradient: str | None, dtype: torch.dtype) -> None:
    text, frames, mask, init = pooled_sample(17, 3, 12, 63, 7)
    inputs = (text.to(dtype).double(), frames.to(dtype).double(), mask, init.to(dtype).double())
    for output, (error, plain) in pooled_errors("cuda", inputs, dtype, gradient).items():
        assert error <= 2 * plain, f"{output}: {error:.1e}, plain torch {plain:.1e}"


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize(("rows", "width", "bases"), [(3, 20, 5), (41, 63, 7), (70, 16, 33)])
def test_a_projection_is_the_released_loop(rows: int, width: int, bases: int, per_row: bool) -> None:
    x = clustered_rows(2, rows, width).float()
    init = (torch.randn(2, rows, bases) if per_row else distinct_init(2, bases)).float()
    y, mean_bases = em_project(x, init, num_iters=4, temperature=0.1)
    truth, truth_mean = reference.em_project_loop(x.double(), init.double(), num_iters=4, temperature=0.1)
    assert_close("reconstruction", y.double() - x.double(), truth - x.double(), TOLERANCE[torch.float32])
    assert_close("mean_bases", mean_bases, truth_mean)


@pytest.mark.parametrize(("rows", "by_the_loop"), [(15, True), (16, False)])
def test_a_handful_of_rows_goes_by_the_loop(rows: int, by_the_loop: bool) -> None:
    arguments = clustered_rows(rows, 20).float(), distinct_init(5).float(), 3, 1.0, 3.0, 1e-6
    mean_bases, of_the_loop = cuda.project(*arguments, False)[1], gpu.project_few_rows(*arguments)[1]
    assert torch.equal(mean_bases, of_the_loop) == by_the_loop
    assert_close("mean_bases", mean_bases, of_the_loop)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_gradients_of_a_projection(gradient: Any) -> None:
    x, init = clustered_rows(40, 24).float(), distinct_init(5).float()
    d_y = torch.randn(40, 24)

    def gradients(project: Any, dtype: torch.dtype) -> Tensor:
        leaf = x.to(dtype).requires_grad_()
        y, _ = project(leaf, init.to(dtype), num_iters=3, gradient=gradient)
        return torch.autograd.grad(y, leaf, d_y.to(dtype))[0] - d_y.to(dtype)

    truth = gradients(reference.em_project_loop, torch.float64)
    if gradient == "identity":
        assert not gradients(em_project, torch.float32).any()
    else:
        plain = relative_error(gradients(reference.em_project_loop, torch.float32), truth)
        assert_close("d_x - d_y", gradients(em_project, torch.float32), truth, max(TOLERANCE[torch.float32], 4 * plain))


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("em_block", [4, 7, 100])
def test_blocks_equal_a_loop_over_them(em_block: int, relative: bool) -> None:
    text, frames, mask, init = (tensor.float() for tensor in pooled_sample(10, 9, 3, 20, 6))
    options = {"em_block": em_block, "temperature": 0.5, "relative": relative}
    ours = pooled_similarity_blocks(text, frames, mask, init, **options)
    with use("reference"):
        truth = pooled_similarity_blocks(text.double(), frames.double(), mask.double(), init.double(), **options)
    assert_close("similarity", ours, truth)


def every_output(width: int = 33) -> list[Tensor]:
    """Outputs and gradients of all ops that differ by their kernels."""
    x = clustered_rows(2, 70, width).float().requires_grad_()
    gram, colsum = em_moments(x)
    responsibilities, scale = em_fit(gram, colsum.unsqueeze(-1) * distinct_init(2, 1, 9).float(), num_iters=2)
    y = torch.ops.emcl.em_reconstruct(x, responsibilities, scale, 3.0)
    rows = [gram, colsum, responsibilities, scale, y, *torch.autograd.grad(y.cos().sum(), x)]
    wide, many = torch.randn(40, 300), torch.rand(300, 128)
    rows += [cuda.reconstruct(wide, many, many[0], 3.0), *cuda.reconstruct_backward(wide, wide, many, many[0], 3.0)]
    text, frames, mask, init = (tensor.float() for tensor in pooled_sample(300, 3, 5, width, 7))
    leaves = text.requires_grad_(), frames.requires_grad_()
    similarity, mean_bases = pooled_similarity(*leaves, mask, init, num_iters=2, gradient="full")
    blocks = pooled_similarity_blocks(text.detach(), frames.detach(), mask, init, em_block=8)
    return [*rows, similarity, mean_bases, *torch.autograd.grad(similarity.cos().sum(), leaves), blocks]


@pytest.mark.parametrize("architecture", ["80", "90"])
def test_bits_do_not_depend_on_the_order_in_which_threads_run(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing barrier shows: in another order a thread reads what was not yet written, which is NaN."""
    monkeypatch.setenv("EMCL_EMULATED_ARCHITECTURE", architecture)
    results = []
    for order in ("forward", "backward", "shuffled"):
        monkeypatch.setenv("EMCL_EMULATED_ORDER", order)
        torch.manual_seed(0)
        results.append(every_output())
    for outputs in zip(*results, strict=True):
        assert all(bool(output.isfinite().all()) for output in outputs)
        assert torch.equal(outputs[0], outputs[1])
        assert torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("case", ROWS[2:4], ids=name)
def test_architecture_80_is_exact_too(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMCL_EMULATED_ARCHITECTURE", "80")
    test_float32_agrees_with_float64(case)
    test_the_pooled_similarity_agrees_with_float64((5, 3, 4, 63, 7), "full")


def test_memory_that_starts_anywhere_and_views_are_taken() -> None:
    x = clustered_rows(40, 33).float()
    shifted = torch.empty(x.numel() + 1)[1:].view(40, 33).copy_(x)  # 4 bytes from an address that 16 divides
    expected = em_moments(x)
    for view in (shifted, torch.cat([x, x], 1)[:, :33], x.T.contiguous().T):
        assert all(torch.equal(a, b) for a, b in zip(em_moments(view), expected, strict=True))
    init = distinct_init(7).float()
    assert torch.equal(em_project(shifted, init)[0], em_project(x, init)[0])


def test_no_problems_and_one_after_the_other_of_another_shape() -> None:
    assert em_moments(torch.ones(0, 5, 4))[0].shape == (0, 4, 4)
    assert em_project(torch.ones(0, 20, 4), torch.ones(3))[0].shape == (0, 20, 4)
    for width in (5, 40, 5):
        x = clustered_rows(20, width).float()
        assert_close("gram", em_moments(x)[0], x.double().T @ x.double())


def test_two_bases_by_hand() -> None:
    # x = [[1, 0]]: gram = [[1, 0], [0, 0]]. Logits [[ln 3, 0], [0, 0]] give p = [[3/4, 1/4], [1/2, 1/2]],
    # r = [[3/5, 1/3], [2/5, 2/3]], gram·r = [[3/5, 1/3], [0, 0]], and the bases' lengths are 3/5 and 1/3.
    gram, logits = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[3.0, 1.0], [1.0, 1.0]]).log()
    responsibilities, scale = em_fit(gram, logits, num_iters=1, eps=0.0)
    torch.testing.assert_close(responsibilities, torch.tensor([[3 / 5, 1 / 3], [2 / 5, 2 / 3]]))
    torch.testing.assert_close(scale, torch.tensor([5 / 3, 3.0]))


def test_two_frames_by_hand() -> None:
    # t = [1, 0], frames [1, 0] and [0, 1], temperature 1/ln 3: weights 3/4 and 1/4, v = [3/4, 1/4].
    one, two, valid = torch.tensor([[1.0, 0.0]]), torch.eye(2).unsqueeze(0), torch.ones(1, 2)
    temperature = 1 / float(torch.tensor(3.0).log())
    gram, colsum, kept = cuda.pooled_moments(one, two, valid, temperature, True)
    torch.testing.assert_close(kept, torch.tensor([[[1.0], [0.0]]]))
    torch.testing.assert_close(gram, torch.tensor([[25 / 16, 3 / 16], [3 / 16, 1 / 16]]))
    torch.testing.assert_close(colsum, torch.tensor([1.75, 0.25]))
    nothing = torch.empty(2, 0)
    cosine, length = cuda.pooled_cosine(one, two, valid, nothing[0], nothing, nothing[0], 0.0, temperature, False)
    torch.testing.assert_close(length, torch.tensor([[10**0.5 / 4]]))
    torch.testing.assert_close(cosine, torch.tensor([[3 / 10**0.5]]))


def test_a_clip_without_valid_frames_has_similarity_zero() -> None:
    text, frames, mask, init = (tensor.float() for tensor in pooled_sample(9, 3, 4, 20, 5))
    mask[1] = 0
    leaves = text.requires_grad_(), frames.requires_grad_()
    similarity, _ = pooled_similarity(*leaves, mask, init)
    assert torch.equal(similarity[:, 1], torch.zeros(9))
    assert all(bool(d.isfinite().all()) for d in torch.autograd.grad(similarity.sum(), leaves))


@pytest.mark.parametrize("sizes", [(20, 3, 5, 33, 7), (7, 21, 9, 20, 3)])
@pytest.mark.parametrize("gradient", ["identity", "full"])
def test_kept_products_change_nothing(sizes: tuple[int, ...], gradient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, frames, mask, init = (tensor.float() for tensor in pooled_sample(*sizes))
    leaves = text.requires_grad_(), frames.requires_grad_()

    def run() -> tuple[Tensor, ...]:
        similarity, _ = pooled_similarity(*leaves, mask, init, gradient=gradient, num_iters=2)
        return similarity, *torch.autograd.grad(similarity.square().sum(), leaves)

    with_products = run()
    monkeypatch.setattr(pooled, "KEPT_PRODUCTS", 0)
    for name, a, b in zip(("similarity", "d_text", "d_frames"), with_products, run(), strict=True):
        assert relative_error(a, b) < 1e-6, name


def test_nan_is_not_hidden_and_rows_of_zeros_are_no_nan() -> None:
    broken = clustered_rows(40, 20).float()
    broken[3, 5] = float("nan")
    with pytest.raises(ValueError, match="em_project: the fitted bases are not finite"):
        em_project(broken, distinct_init(4).float())
    zero = torch.zeros(20, 16).requires_grad_()
    y, _ = em_project(zero, distinct_init(4).float(), gradient="full")
    assert not torch.autograd.grad(y.sum(), zero)[0].isnan().any()


def test_what_goes_wrong_in_the_library_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMCL_FORM", "loop")
    with pytest.raises(ValueError, match="form is loop; the CUDA kernels have the Gram form only"):
        em_project(clustered_rows(20, 8).float(), distinct_init(3).float())
    monkeypatch.setenv("EMCL_EMULATED_ORDER", "sideways")
    with pytest.raises(ValueError, match="EMCL_EMULATED_ORDER is sideways, expected forward"):
        em_moments(torch.ones(3, 4))


# opcheck itself looks at .grad of the intermediate tensors of a composed op
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("case", [case for case in CASES if not case.endswith("per_row")])
def test_opcheck(case: str) -> None:
    torch.library.opcheck(op_of(case), arguments()[case])


def test_compiled_equals_eager() -> None:
    script = Path(__file__).with_name("compiled.py")
    environment = os.environ | {"EMCL_BACKEND": "cuda"}
    run = subprocess.run([sys.executable, str(script), "pooled"], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-5000:]
    assert "equal" in run.stdout
