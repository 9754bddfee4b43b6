"""Values of the Triton kernels, forward and backward, in Triton's interpreter on the CPU.

The interpreter must be on before triton is imported, so one process of its own runs every case and prints their errors;
the tests read them. Against float64 autograd of the reference, on clustered rows and distinct starts.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accuracy import EPS, WEIGHT, rounded, rows_errors

from emcl_kernels import reference
from emcl_kernels.testing import TOLERANCE, clustered_rows, distinct_init, relative_error

pytest.importorskip("triton")

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
        "from emcl_kernels.backends import triton as triton_backend\n"
        "print(triton_backend.supports('em_moments', torch.ones(2, 2)))\n"
        "triton_backend.moments(torch.ones(2, 2))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=search_path(), capture_output=True, text=True, timeout=120
    )
    assert "triton cannot be imported" in done.stdout
    assert 'RuntimeError: backend "triton" is not available' in done.stderr


# What follows runs in the process with the interpreter.


def project_errors(per_row: bool) -> list[float]:
    from emcl_kernels.backends import triton as triton_backend

    x = rounded(clustered_rows(2, 41, 63), torch.float32)
    init = rounded(torch.randn(2, 41, 7) if per_row else distinct_init(2, 7), torch.float32)
    expected, expected_mean = reference.em_project_loop(x, init, num_iters=4, temperature=0.1)
    y, mean, _, _ = triton_backend.project(x.float(), init.float(), 4, 0.1, WEIGHT, EPS)
    return [relative_error(y.double() - x, expected - x), relative_error(mean, expected_mean)]


def special_cases() -> dict[str, Any]:
    from emcl_kernels.backends import triton as triton_backend

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
    from emcl_kernels.backends import triton as triton_backend
    from emcl_kernels.backends import triton_common

    torch.set_num_threads(1)
    # New memory is filled with NaN, so that an output that no kernel wrote cannot pass.
    torch.use_deterministic_algorithms(True)

    def show(case: str, result: Any) -> None:
        print(json.dumps([case, result]), flush=True)

    for case in CASES:
        torch.manual_seed(0)
        triton_common.COARSE_TILES = case[-1] == "coarse"
        show(name(case), rows_errors(triton_backend, *case[:-1], dtype=torch.float32))
    triton_common.COARSE_TILES = True
    for dtype in LOW_PRECISION:
        show(str(dtype), rows_errors(triton_backend, (), 130, 63, 7, 1, dtype=dtype))
    show("one value per basis", project_errors(per_row=False))
    show("one start per row", project_errors(per_row=True))
    for case, result in special_cases().items():
        show(case, result)


if __name__ == "__main__":
    main()
