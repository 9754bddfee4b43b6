"""The pooled similarity's Triton kernels, forward and backward, in Triton's interpreter on the CPU.

As in test_triton_interpreter.py, one process of its own runs every case and prints their errors. Against float64
autograd of the release's formula, which makes the [A, B, D] tensor.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accuracy import pooled_errors, pooled_outputs, pooled_sample
from torch import Tensor

from emcl_kernels import pooled_similarity, reference, use_backend
from emcl_kernels.testing import TOLERANCE

pytest.importorskip("triton")

# (texts, videos, frames, width, bases, tiles): "gpu" runs the tiles of the GPU, "coarse" fewer and larger ones.
CASES = [
    (1, 1, 1, 16, 1, "gpu"),
    (5, 3, 1, 63, 7, "coarse"),
    (3, 7, 5, 32, 32, "gpu"),
    (41, 3, 12, 63, 7, "gpu"),
    (130, 3, 7, 41, 7, "coarse"),
    (9, 2, 64, 63, 41, "gpu"),
    (4, 2, 33, 1000, 7, "coarse"),
    (7, 3, 17, 130, 128, "coarse"),
]
GRADIENTS = ["identity", "linear", "full"]
LOW_PRECISION = [torch.bfloat16, torch.float16]


def name(case: Any) -> str:
    return str(case).replace(" ", "")


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    environment = os.environ | {
        "PYTHONPATH": str(Path(reference.__file__).parents[1]),
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("case", CASES, ids=name)
def test_float32_agrees_with_float64(results: dict[str, Any], case: Any, gradient: str) -> None:
    for output, (error, plain) in results[f"{name(case)} {gradient}"].items():
        # Through all iterations of EM rounding grows: where plain torch loses more than the table allows, it counts.
        tolerance = max(TOLERANCE[torch.float32], 4 * plain if gradient == "full" else 0)
        assert error <= tolerance, f"{output}: {error:.1e}, plain torch {plain:.1e}"


@pytest.mark.parametrize("case", CASES, ids=name)
def test_without_em(results: dict[str, Any], case: Any) -> None:
    for output, (error, _) in results[f"{name(case)} without EM"].items():
        assert error <= TOLERANCE[torch.float32], f"{output}: {error:.1e}"


@pytest.mark.parametrize("dtype", LOW_PRECISION, ids=str)
@pytest.mark.parametrize("gradient", [*GRADIENTS, "without EM"])
def test_low_precision_is_no_worse_than_twice_plain_torch(
    results: dict[str, Any], dtype: torch.dtype, gradient: str
) -> None:
    for output, (error, plain) in results[f"{dtype} {gradient}"].items():
        assert error <= 2 * plain, f"{output}: {error:.1e}, plain torch {plain:.1e}"


def test_same_inputs_give_the_same_bits(results: dict[str, Any]) -> None:
    assert results["same bits"] is True


def test_a_clip_without_valid_frames_has_similarity_zero(results: dict[str, Any]) -> None:
    assert results["no valid frames"] == {"similarity": 0.0, "other": True, "finite": True}


def test_kept_products_change_nothing(results: dict[str, Any]) -> None:
    assert results["kept"]["shape"] == [3, 5, 41]
    assert results["kept"]["same bits"]


def test_two_frames_by_hand(results: dict[str, Any]) -> None:
    # t = [1, 0], frames [1, 0] and [0, 1], temperature 1/ln 3: weights 3/4 and 1/4, v = [3/4, 1/4].
    gram, colsum, kept, cosine, length = results["by hand"]
    torch.testing.assert_close(torch.tensor(kept), torch.tensor([[[1.0], [0.0]]]))
    torch.testing.assert_close(torch.tensor(gram), torch.tensor([[25 / 16, 3 / 16], [3 / 16, 1 / 16]]))
    torch.testing.assert_close(torch.tensor(colsum), torch.tensor([1.75, 0.25]))
    torch.testing.assert_close(torch.tensor(length), torch.tensor([[10**0.5 / 4]]))
    torch.testing.assert_close(torch.tensor(cosine), torch.tensor([[3 / 10**0.5]]))


def test_reasons_are_given_for_what_cannot_run(results: dict[str, Any]) -> None:
    reasons = results["reasons"]
    assert "float64" in reasons["dtype"]
    assert "65 frames" in reasons["frames"]
    assert "129 bases" in reasons["bases"]
    assert reasons["fits"] is None


def special_cases() -> dict[str, Any]:
    from emcl_kernels.backends import triton as triton_backend

    inputs = pooled_sample(41, 3, 5, 63, 7)
    text, frames, mask, init = inputs
    runs = [pooled_outputs(pooled_similarity, inputs, torch.float32, gradient="full", num_iters=2) for _ in range(2)]

    invalid = mask.clone()
    invalid[1] = False
    without = pooled_outputs(pooled_similarity, (text, frames, invalid, init), torch.float32, num_iters=2)
    alone = without["similarity"][:, [0, 2]]

    low_text, low_frames = text.float(), frames.float()
    pool, fitted = (low_text, low_frames, mask), (torch.softmax(torch.randn(63, 7), 0), torch.rand(7), 3.0, 2.0)
    gram, colsum, kept = triton_backend.pooled_moments(*pool, 2.0, True)

    def with_products(known: Tensor) -> tuple[Tensor, ...]:
        cosine, length = triton_backend.pooled_cosine(*pool, known, *fitted)
        of_cosine = triton_backend.pooled_cosine_backward(cosine, cosine, length, *pool, known, *fitted, True)
        return cosine, length, *of_cosine, *triton_backend.pooled_moments_backward(gram, colsum, *pool, known, 2.0)

    with_kept, anew = with_products(kept), with_products(gram.new_empty(0))

    one, two, all_valid = torch.tensor([[1.0, 0.0]]), torch.eye(2).unsqueeze(0), torch.ones(1, 2)
    temperature = 1 / float(torch.tensor(3.0).log())
    moments = triton_backend.pooled_moments(one, two, all_valid, temperature, True)
    nothing = torch.empty(2, 0)
    by_hand = triton_backend.pooled_cosine(one, two, all_valid, torch.empty(0), nothing, nothing[0], 0.0, temperature)
    many = (low_text, low_frames[:1].repeat(1, 13, 1))
    return {
        "same bits": all(torch.equal(runs[0][output], runs[1][output]) for output in runs[0]),
        "no valid frames": {
            "similarity": float(without["similarity"].detach()[:, 1].abs().max()),
            "other": bool((alone.abs() > 1e-3).any()),
            "finite": all(bool(tensor.isfinite().all()) for tensor in without.values()),
        },
        "kept": {
            "shape": list(kept.shape),
            "same bits": all(torch.equal(a, b) for a, b in zip(with_kept, anew, strict=True)),
        },
        "by hand": [tensor.tolist() for tensor in (*moments, *by_hand)],
        "reasons": {
            "dtype": triton_backend.supports("pooled_similarity", text, frames),
            "frames": triton_backend.supports("pooled_similarity", *many),
            "bases": triton_backend.supports("pooled_similarity", low_text, torch.zeros(63, 129)),
            "fits": triton_backend.supports("pooled_similarity", low_text, torch.zeros(1, 64, 1024)),
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
        inputs = pooled_sample(*case[:-1])
        triton_common.COARSE_TILES = case[-1] == "coarse"
        show(f"{name(case)} without EM", pooled_errors("triton", inputs, torch.float32, None))
        triton_common.COARSE_TILES = True
        for gradient in GRADIENTS:
            show(f"{name(case)} {gradient}", pooled_errors("triton", inputs, torch.float32, gradient))
    torch.manual_seed(0)
    text, frames, mask, init = pooled_sample(41, 4, 12, 63, 7)
    for dtype in LOW_PRECISION:
        inputs = (text.to(dtype).double(), frames.to(dtype).double(), mask, init.to(dtype).double())
        for gradient in (*GRADIENTS, None):
            show(f"{dtype} {gradient or 'without EM'}", pooled_errors("triton", inputs, dtype, gradient))
    with use_backend("triton"):
        for case, result in special_cases().items():
            show(case, result)


if __name__ == "__main__":
    main()
