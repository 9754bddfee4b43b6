"""Values of the Triton kernels, forward and backward, in Triton's interpreter on the CPU.

The interpreter must be on before triton is imported, so one process of its own runs every case and prints their errors;
the tests read them. Against float64 autograd of the reference, on clustered rows and distinct starts.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from emcl_kernels import reference
from emcl_kernels.testing import TOLERANCE, clustered_rows, distinct_init, relative_error

pytest.importorskip("triton")

EPS, WEIGHT = 1e-6, 3.0
# (leading, rows, width, bases, iterations, tiles): every pair of rows, width, bases and iterations is in the table.
# "gpu" runs the tiles of the GPU, "coarse" fewer and larger ones, which the interpreter needs to end in time.
CASES = [
    ((), 1, 16, 1, 1, "gpu"),
    ((2,), 1, 63, 7, 9, "coarse"),
    ((), 1, 512, 32, 1, "coarse"),
    ((), 7, 16, 7, 9, "gpu"),
    ((2,), 7, 63, 32, 1, "gpu"),
    ((), 7, 512, 1, 9, "coarse"),
    ((2, 3), 41, 16, 32, 9, "coarse"),
    ((), 41, 63, 1, 1, "gpu"),
    ((2,), 41, 512, 7, 1, "coarse"),
    ((2,), 130, 16, 1, 1, "coarse"),
    ((), 130, 63, 32, 9, "coarse"),
    ((), 130, 512, 7, 9, "coarse"),
    ((2,), 1000, 16, 32, 1, "gpu"),
    ((), 1000, 63, 7, 9, "coarse"),
    ((), 1000, 512, 1, 1, "coarse"),
]
LOW_PRECISION = [torch.bfloat16, torch.float16]


def name(case: Any) -> str:
    return str(case).replace(" ", "")


def search_path() -> dict[str, str]:
    """Environment in which a new process imports the same emcl_kernels as this one."""
    return os.environ | {"PYTHONPATH": str(Path(reference.__file__).parents[1])}


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    environment = search_path() | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("case", CASES, ids=name)
def test_float32_agrees_with_float64(results: dict[str, Any], case: Any) -> None:
    for output, (error, plain) in results[name(case)].items():
        # Where plain torch loses more than the table allows, as in a difference of large terms, it is the measure.
        assert error <= max(TOLERANCE[torch.float32], 4 * plain), f"{output}: {error:.1e}, plain torch {plain:.1e}"


@pytest.mark.parametrize("dtype", LOW_PRECISION, ids=str)
def test_low_precision_is_no_worse_than_twice_plain_torch(results: dict[str, Any], dtype: torch.dtype) -> None:
    for output, (error, plain) in results[str(dtype)].items():
        # The fit is in float32 whatever x is, and so are gram and colsum.
        assert error <= max(TOLERANCE[torch.float32], 2 * plain), f"{output}: {error:.1e}, plain torch {plain:.1e}"


@pytest.mark.parametrize("init", ["one value per basis", "one start per row"])
def test_project_agrees_with_the_released_loop(results: dict[str, Any], init: str) -> None:
    assert max(results[init]) <= TOLERANCE[torch.float32]


def test_same_inputs_give_the_same_bits(results: dict[str, Any]) -> None:
    assert results["same bits"] is True


def test_rows_of_zeros_have_finite_gradients(results: dict[str, Any]) -> None:
    assert results["zeros are finite"] is True


def test_nan_is_not_hidden(results: dict[str, Any]) -> None:
    assert results["nan reaches scale"] is True


def test_views_and_no_rows_are_taken(results: dict[str, Any]) -> None:
    assert results["views"] <= TOLERANCE[torch.float32]
    assert results["no rows"] is True


def test_two_bases_by_hand(results: dict[str, Any]) -> None:
    # x = [[1, 0]]: gram = [[1, 0], [0, 0]]. Logits [[ln 3, 0], [0, 0]] give p = [[3/4, 1/4], [1/2, 1/2]],
    # r = [[3/5, 1/3], [2/5, 2/3]], gram·r = [[3/5, 1/3], [0, 0]], and the bases' lengths are 3/5 and 1/3.
    responsibilities, scale = results["by hand"]
    torch.testing.assert_close(torch.tensor(responsibilities), torch.tensor([[3 / 5, 1 / 3], [2 / 5, 2 / 3]]))
    torch.testing.assert_close(torch.tensor(scale), torch.tensor([5 / 3, 3.0]))


def test_reasons_are_given_for_what_cannot_run(results: dict[str, Any]) -> None:
    reasons = results["reasons"]
    assert "float64" in reasons["dtype"]
    assert "129 bases" in reasons["bases"]
    assert "em_anything" not in reasons["op"]
    assert "em_moments" in reasons["op"]
    assert reasons["fits"] is None


def test_without_triton_the_backend_imports_and_says_why() -> None:
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from emcl_kernels.backends import triton_backend\n"
        "print(triton_backend.supports('em_moments', torch.ones(2, 2)))\n"
        "triton_backend.moments(torch.ones(2, 2))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=search_path(), capture_output=True, text=True, timeout=120
    )
    assert "triton cannot be imported" in done.stdout
    assert 'RuntimeError: backend "triton" is not available' in done.stderr


# What follows runs in the process with the interpreter.


def error_against(expected: Tensor, *terms: Tensor) -> Callable[[Tensor], float]:
    """Relative error, where a result that cancels to nearly nothing is measured by the terms that cancelled."""
    measure = max(float(torch.linalg.vector_norm(tensor.detach())) for tensor in (expected, *terms))
    return lambda actual: float(torch.linalg.vector_norm(actual.detach().double() - expected.detach())) / measure


def rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype).double()


def chain_errors(
    leading: tuple[int, ...], rows: int, width: int, num_bases: int, num_iters: int, dtype: torch.dtype
) -> dict[str, tuple[float, float]]:
    """(error of Triton, error of plain torch) of each output, each op fed with the reference's inputs."""
    from emcl_kernels.backends import triton_backend

    errors = {}

    def compare(output: str, actual: Tensor, plain: Tensor, expected: Tensor, *terms: Tensor) -> None:
        assert actual.shape == expected.shape, output
        error = error_against(expected, *terms)
        errors[output] = (error(actual), error(plain))

    def low(tensor: Tensor, to: torch.dtype = torch.float32) -> Tensor:
        return tensor.detach().to(to).requires_grad_()

    # Length 3: at length 1 the first responsibilities are nearly uniform, and much could be wrong unseen.
    x = rounded(3 * clustered_rows(*leading, rows, width), dtype).requires_grad_()
    gram, colsum = reference.em_moments(x)
    d_gram, d_colsum = (rounded(torch.randn(tensor.shape), torch.float32) for tensor in (gram, colsum))
    (d_x,) = torch.autograd.grad((gram, colsum), x, (d_gram, d_colsum))
    plain_x = low(x, dtype)
    plain_gram, plain_colsum = reference.em_moments(plain_x)
    gradients = (d_gram.to(dtype), d_colsum.to(dtype))
    (plain_d_x,) = torch.autograd.grad((plain_gram, plain_colsum), plain_x, gradients)
    actual_gram, actual_colsum = triton_backend.moments(x.detach().to(dtype))
    compare("gram", actual_gram, plain_gram, gram)
    compare("colsum", actual_colsum, plain_colsum, colsum)
    compare("moments d_x", triton_backend.moments_backward(plain_x, d_gram.float(), d_colsum.float()), plain_d_x, d_x)

    options = {"num_iters": num_iters, "temperature": 1.0, "eps": EPS}
    # One start per row: from one value per basis, nine iterations can amplify rounding until no float32 agrees.
    bases = torch.randn(*leading, rows, num_bases, dtype=torch.float64)
    start = x.mT @ (bases / torch.linalg.vector_norm(bases, dim=-2, keepdim=True))
    # Not symmetric: the gradient must be right for any matrix, though EM only sees xᵀx.
    gram = rounded(gram + 1e-3 * torch.rand(gram.shape), torch.float32).requires_grad_()
    start = rounded(start, torch.float32).requires_grad_()
    responsibilities, scale = reference.em_fit(gram, start, **options)
    d_r, d_scale = (rounded(torch.randn(tensor.shape), torch.float32) for tensor in (responsibilities, scale))
    d_gram, d_start = torch.autograd.grad((responsibilities, scale), (gram, start), (d_r, d_scale))
    plain_gram, plain_start = low(gram), low(start)
    plain_fit = reference.em_fit(plain_gram, plain_start, **options)
    plain = torch.autograd.grad(plain_fit, (plain_gram, plain_start), (d_r.float(), d_scale.float()))
    actual_fit = triton_backend.fit(plain_gram, plain_start, *options.values())
    actual = triton_backend.fit_backward(plain_gram, plain_start, d_r.float(), d_scale.float(), *options.values())
    compare("responsibilities", actual_fit[0], plain_fit[0], responsibilities)
    compare("scale", actual_fit[1], plain_fit[1], scale)
    compare("d_gram", actual[0], plain[0], d_gram)
    compare("d_logits", actual[1], plain[1], d_start, d_r * responsibilities / options["temperature"])

    r, s = (rounded(tensor, torch.float32).requires_grad_() for tensor in (responsibilities, scale))
    y = reference.em_reconstruct(x, r, s, weight=WEIGHT)
    d_y = rounded(torch.randn(y.shape), dtype)
    d_x, d_r, d_s = torch.autograd.grad(y, (x, r, s), d_y)
    plain_r, plain_s = low(r, dtype), low(s, dtype)
    plain_y = reference.em_reconstruct(plain_x, plain_r, plain_s, weight=WEIGHT)
    plain = torch.autograd.grad(plain_y, (plain_x, plain_r, plain_s), d_y.to(dtype))
    actual_y = triton_backend.reconstruct(x.detach().to(dtype), low(r), low(s), WEIGHT)
    actual = triton_backend.reconstruct_backward(d_y.to(dtype), plain_x, low(r), low(s), WEIGHT)
    compare("reconstruction", actual_y.double() - x, plain_y.double() - x, y - x)
    compare("reconstruct d_x", actual[0].double() - d_y, plain[0].double() - d_y, d_x - d_y)
    compare("d_responsibilities", actual[1], plain[1], d_r)
    compare("d_scale", actual[2], plain[2], d_s)
    return errors


def project_errors(per_row: bool) -> list[float]:
    from emcl_kernels.backends import triton_backend

    x = rounded(clustered_rows(2, 41, 63), torch.float32)
    init = rounded(torch.randn(2, 41, 7) if per_row else distinct_init(2, 7), torch.float32)
    expected, expected_mean = reference.em_project_loop(x, init, num_iters=4, temperature=0.1)
    y, mean, _, _ = triton_backend.project(x.float(), init.float(), 4, 0.1, WEIGHT, EPS)
    return [relative_error(y.double() - x, expected - x), relative_error(mean, expected_mean)]


def special_cases() -> dict[str, Any]:
    from emcl_kernels.backends import triton_backend

    x = clustered_rows(300, 63, dtype=torch.float32)
    gram, start = x.T @ x, torch.randn(63, 7)
    outputs = [
        (*triton_backend.moments(x), *triton_backend.fit_backward(gram, start, start, start[0], 2, 1.0, EPS))
        for _ in range(2)
    ]
    zero = torch.zeros(16, 16)
    gradients = triton_backend.fit_backward(zero, zero, torch.randn(16, 16), torch.randn(16), 2, 1.0, EPS)
    broken = gram.clone()
    broken[3, 5] = float("nan")
    empty = triton_backend.moments(x[:0])
    two = triton_backend.fit(
        torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[3.0, 1.0], [1.0, 1.0]]).log(), 1, 1.0, 0.0
    )
    view = x.T[:41].unsqueeze(0).expand(2, -1, -1)
    return {
        "same bits": all(torch.equal(first, second) for first, second in zip(*outputs, strict=True)),
        "zeros are finite": all(bool(gradient.isfinite().all()) for gradient in gradients),
        "nan reaches scale": bool(triton_backend.fit(broken, start, 1, 1.0, EPS)[1].isnan().all()),
        "views": relative_error(triton_backend.moments(view)[0], view.double().mT @ view.double()),
        "no rows": all(not output.any() for output in empty),
        "by hand": [output.tolist() for output in two],
        "reasons": {
            "dtype": triton_backend.supports("em_moments", x.double()),
            "bases": triton_backend.supports("em_fit", gram, torch.zeros(63, 129)),
            "op": triton_backend.supports("em_anything", x),
            "fits": triton_backend.supports("em_fit", gram, start),
        },
    }


def main() -> None:
    from emcl_kernels.backends import triton_common

    torch.set_num_threads(1)
    # New memory is filled with NaN, so that an output that no kernel wrote cannot pass.
    torch.use_deterministic_algorithms(True)

    def show(case: str, result: Any) -> None:
        print(json.dumps([case, result]), flush=True)

    for case in CASES:
        torch.manual_seed(0)
        triton_common.COARSE_TILES = case[-1] == "coarse"
        show(name(case), chain_errors(*case[:-1], dtype=torch.float32))
    triton_common.COARSE_TILES = True
    for dtype in LOW_PRECISION:
        show(str(dtype), chain_errors((), 130, 63, 7, 1, dtype=dtype))
    show("one value per basis", project_errors(per_row=False))
    show("one start per row", project_errors(per_row=True))
    for case, result in special_cases().items():
        show(case, result)


if __name__ == "__main__":
    main()
