"""The ops of the compiled library called directly: what is wrong is an error that says so, and never a crash."""

from typing import Any

import pytest
import torch

from emcl_kernels.backends import cpu

pytestmark = pytest.mark.skipif(not cpu.backend.status()["loaded"], reason=cpu.backend.status()["reason"])

N, D, K, A, B, F = 20, 8, 3, 5, 4, 2
# Arguments that are right, outputs among them.
CALLS: dict[str, dict[str, Any]] = {
    "em_moments": {"x": (2, N, D), "gram": (2, D, D), "colsum": (2, D)},
    "_em_moments_backward": {"d_gram": (2, D, D), "d_colsum": (2, D), "x": (2, N, D), "d_x": (2, N, D)},
    "em_fit": {
        "gram": (2, D, D),
        "logits": (2, D, K),
        "num_iters": 3,
        "temperature": 1.0,
        "eps": 1e-6,
        "responsibilities": (2, D, K),
        "scale": (2, K),
    },
    "em_reconstruct": {
        "x": (2, N, D),
        "responsibilities": (2, D, K),
        "scale": (2, K),
        "weight": 1.0,
        "y": (2, N, D),
    },
    "_em_project_fixed": {
        "x": (2, N, D),
        "init": (2, K),
        "num_iters": 3,
        "temperature": 1.0,
        "residual_weight": 3.0,
        "eps": 1e-6,
        "linear": False,
        "y": (2, N, D),
        "mean_bases": (2, K),
        "responsibilities": (2, D, K),
        "scale": (2, K),
    },
    "_pooled_moments": {
        "text": (A, D),
        "frames": (B, F, D),
        "frame_mask": (B, F),
        "pooling_temperature": 0.1,
        "keep": True,
        "gram": (D, D),
        "colsum": (D,),
        "kept": (B, F, A),
    },
    "_pooled_blocks": {
        "text": (A, D),
        "frames": (B, F, D),
        "frame_mask": (B, F),
        "init": (K,),
        "em_block": 3,
        "pooling_temperature": 0.1,
        "num_iters": 3,
        "temperature": 1.0,
        "residual_weight": 3.0,
        "eps": 1e-6,
        "relative": False,
        "cosine": (A, B),
    },
}


def arguments(op: str) -> dict[str, Any]:
    return {name: torch.rand(value) if isinstance(value, tuple) else value for name, value in CALLS[op].items()}


def call(op: str, given: dict[str, Any]) -> None:
    getattr(torch.ops.emcl_native, op)(*given.values())


TENSORS = [(op, name) for op, given in CALLS.items() for name, value in given.items() if isinstance(value, tuple)]


@pytest.mark.parametrize(("op", "name"), TENSORS)
def test_a_tensor_of_wrong_size_dtype_or_strides_is_an_error(op: str, name: str) -> None:
    right = arguments(op)
    call(op, right)
    tensor = right[name]
    wrong = {
        "short": tensor.flatten()[:-1],
        "a number": tensor.sum(),
        "float64": tensor.double(),
        "int64": tensor.long(),
        "strided": torch.empty_strided(tensor.shape, [2 * stride for stride in tensor.stride()]),
    }
    for value in wrong.values():
        one_dimension = value.dim() == 1 and value.is_contiguous()
        if op == "_pooled_blocks" and name == "init" and one_dimension and value.dtype == tensor.dtype:
            continue  # any number of bases is right
        with pytest.raises(RuntimeError, match=f"emcl: {op}: "):
            call(op, right | {name: value})


@pytest.mark.parametrize(("op", "name"), [("em_fit", "num_iters"), ("_pooled_blocks", "em_block")])
@pytest.mark.parametrize("value", [0, -1])
def test_a_count_below_one_is_an_error(op: str, name: str, value: int) -> None:
    with pytest.raises(RuntimeError, match=f"emcl: {op}: {name} is {value}; expected"):
        call(op, arguments(op) | {name: value})


def test_a_message_says_what_came_and_what_was_expected() -> None:
    with pytest.raises(RuntimeError, match=r"^emcl: em_moments: gram has shape \[8, 8\]; expected \[2, 8, 8\]"):
        call("em_moments", arguments("em_moments") | {"gram": torch.empty(D, D)})


def test_leading_dimensions_count_problems() -> None:
    x = torch.randn(2, 3, N, D)
    gram, colsum = torch.empty(2, 3, D, D), torch.empty(2, 3, D)
    torch.ops.emcl_native.em_moments(x, gram, colsum)
    torch.testing.assert_close(gram, x.mT @ x)
    torch.testing.assert_close(colsum, x.sum(-2))
    torch.ops.emcl_native.em_moments(x[0, 0], gram[1, 2], colsum[1, 2])
    assert torch.equal(gram[1, 2], gram[0, 0])


@pytest.mark.parametrize("em_block", [2**62, 2**63 - 1])
def test_the_largest_blocks_are_the_whole(em_block: int) -> None:
    one, other = arguments("_pooled_blocks") | {"em_block": A}, torch.empty(A, B)
    call("_pooled_blocks", one)
    call("_pooled_blocks", one | {"em_block": em_block, "cosine": other})
    assert torch.equal(one["cosine"], other)


def test_the_form_is_read_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    results = {}
    for form in ("gram", "loop", "auto", ""):
        monkeypatch.setenv("EMCL_FORM", form)
        torch.manual_seed(0)
        given = arguments("_em_project_fixed")
        call("_em_project_fixed", given)
        results[form] = given["y"]
    assert not torch.equal(results["gram"], results["loop"])
    torch.testing.assert_close(results["gram"], results["loop"])
    assert torch.equal(results["auto"], results[""])

    monkeypatch.setenv("EMCL_FORM", "sideways")
    with pytest.raises(ValueError, match='EMCL_FORM is "sideways"; expected auto, gram or loop'):
        call("_em_project_fixed", arguments("_em_project_fixed"))


@pytest.mark.parametrize("rows", [15, 16])
def test_few_rows_take_the_loop(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of width 2 and with 9 iterations, the Gram form is the cheaper one for any number of rows from 2 on."""
    results = {}
    for form in ("gram", "loop", "auto"):
        monkeypatch.setenv("EMCL_FORM", form)
        torch.manual_seed(0)
        x, init = torch.randn(rows, 2), torch.randn(3)
        y, mean_bases, responsibilities, scale = (torch.empty(shape) for shape in ((rows, 2), 3, (2, 3), 3))
        torch.ops.emcl_native._em_project_fixed(
            x, init, 9, 1.0, 3.0, 1e-6, False, y, mean_bases, responsibilities, scale
        )
        results[form] = torch.cat([part.flatten() for part in (y, mean_bases, responsibilities, scale)])
    assert not torch.equal(results["gram"], results["loop"])
    assert torch.equal(results["auto"], results["loop" if rows < 16 else "gram"])
