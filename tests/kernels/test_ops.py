"""What every op promises torch, over every backend: opcheck, gradcheck, the same bits, autocast, vmap, checkpoints."""

import inspect
import os
import warnings
from collections.abc import Callable
from typing import Any

import calls
import pytest
import torch
from calls import CALLS, Call, Tensors, assert_equal
from emulator import MANNERS, emulate
from op_arguments import arguments, cases, op
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import emcl_kernels
from emcl_kernels import em_fit, em_moments, em_project, em_reconstruct, pooled_similarity, use_backend
from emcl_kernels.testing import assert_close, clustered_rows, distinct_init

ops = torch.ops.emcl
x, init = clustered_rows(40, 16), distinct_init(5)
text, frames, mask = clustered_rows(6, 16), clustered_rows(4, 3, 16), torch.ones(4, 3).double()

# "identity" and "linear" hold EM constant by definition, so gradcheck does not apply; test_project.py has them.
EXACT = [
    ("em_moments", ""),
    ("em_fit", ""),
    ("em_reconstruct", ""),
    ("em_project", ""),
    ("em_project", "a start for each row"),
    ("_pooled_moments", ""),
    ("_pooled_cosine", ""),
    ("pooled_similarity", ""),
]


def label(case: tuple[str, str]) -> str:
    return ", ".join(part for part in case if part)


# ---- what torch checks -----------------------------------------------------------------------------------------------


# opcheck itself looks at .grad of the intermediate tensors of a composed op
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.slow
@pytest.mark.parametrize("case", cases(), ids=label)
def test_opcheck(backend: str, device: str, case: tuple[str, str]) -> None:
    torch.library.opcheck(op(case[0]), arguments(*case, device=device))


@pytest.mark.parametrize("case", EXACT, ids=label)
def test_gradcheck(backend: str, float64: torch.dtype, case: tuple[str, str]) -> None:
    assert torch.autograd.gradcheck(op(case[0]), arguments(*case, dtype=float64), atol=1e-6)


def test_second_derivatives_are_refused(backend: str, device: str) -> None:
    rows = x.float().to(device).requires_grad_()
    (d_x,) = torch.autograd.grad(em_moments(rows)[0].sum(), rows, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        d_x.sum().backward()


@pytest.mark.filterwarnings("ignore:`torch.jit.script")  # torch's own, when it enters forward mode
@pytest.mark.parametrize(
    "function",
    [
        lambda rows: em_project(rows, init)[0],
        lambda rows: ops.em_project(rows, init)[0],
        lambda rows: em_moments(rows)[0],
        lambda rows: pooled_similarity(rows, frames, mask, init)[0],
        lambda rows: emcl_kernels.pooled_cosine_similarity(rows, frames, mask),
    ],
)
def test_forward_mode_is_refused_instead_of_zero(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(NotImplementedError, match=r"carries a tangent, but emcl ops have no forward-mode derivative"):
        torch.func.jvp(function, (text,), (torch.ones_like(text),))


# ---- bits ------------------------------------------------------------------------------------------------------------


def test_new_memory_holds_nan(backend: str, device: str) -> None:
    """What the other tests rely on: an output that no kernel wrote cannot pass."""
    assert bool(torch.empty(1000, device=device).isnan().all())


@pytest.mark.short
@pytest.mark.parametrize("case", CALLS)
def test_the_same_input_gives_the_same_bits(backend: str, device: str, case: str) -> None:
    call, inputs = CALLS[case]
    first = call(inputs(0, device))
    for _ in range(5 if device == "cuda" else 1):
        assert_equal(call(inputs(0, device)), first)


@pytest.mark.parametrize("case", CALLS)
def test_one_shape_after_another(backend: str, device: str, case: str) -> None:
    """Nothing that a call keeps may depend on the shape or the memory of the one before."""
    call, inputs = CALLS[case]
    # Tiles of the interpreter are smaller: these are one of them, and two with a rest of 7 and of 4.
    sizes = [16, 23, 20] if (backend, device) == ("triton", "cpu") else [40, 23, 49]
    before = [call(inputs(size, device, size)) for size in sizes]
    for size, expected in reversed(list(zip(sizes, before, strict=True))):
        assert_equal(call(inputs(size, device, size)), expected)


@pytest.mark.parametrize("case", CALLS)
def test_bits_do_not_depend_on_the_number_of_threads(case: str) -> None:
    call, inputs = CALLS[case]
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with use_backend("native"):
            results.append(call(inputs(0, "cpu", 300)))
    torch.set_num_threads(before)
    assert_equal(*results)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["80", "90"])
@pytest.mark.parametrize("case", CALLS)
def test_bits_do_not_depend_on_the_order_in_which_emulated_threads_and_copies_run(
    case: str, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing barrier shows: in another order a thread reads what was not yet written, or is no more."""
    call, inputs = CALLS[case]
    results = []
    for manner in MANNERS.values():
        emulate(monkeypatch, ARCHITECTURE=architecture, **manner)
        with use_backend("cuda"):
            results.append(call(inputs(0, "cpu", 70)))
    for result in results[1:]:
        assert_equal(result, results[0])


def reconstruct(inputs: Tensors) -> Tensors:
    """With so many bases that the map passes through shared memory."""
    x, _, d_y = inputs
    x = x.detach().requires_grad_()
    torch.manual_seed(1)
    y = em_reconstruct(x, torch.rand(x.shape[-1], 100) / 100, torch.rand(100))
    return y.detach(), *torch.autograd.grad(y, x, d_y)


# Rows of whole 16 bytes, which are copied asynchronously, in so many steps that tiles take each other's place.
DEEP: dict[str, tuple[Call, Tensors]] = {
    "em_project": (CALLS["em_project full"][0], calls.rows(0, "cpu", 520, 136)),
    "em_fit": (CALLS["em_fit"][0], calls.rows(0, "cpu", 130, 260, 33)),
    "em_reconstruct": (reconstruct, calls.rows(0, "cpu", 40, 200)),
    "pooled_similarity": (CALLS["pooled_similarity full"][0], calls.clips(0, "cpu", 41, 5, 136)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DEEP)
def test_bits_do_not_depend_on_the_order_where_tiles_take_turns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, inputs = DEEP[name]
    results = []
    for manner in MANNERS.values():
        emulate(monkeypatch, ARCHITECTURE=80, **manner)
        with use_backend("cuda"):
            results.append(call(inputs))
    for result in results[1:]:
        assert_equal(result, results[0])


# ---- calls -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["em_fit", "em_reconstruct", "em_project", "pooled_similarity", "pooled_similarity_blocks"]
)
def test_an_op_has_the_defaults_of_its_function(name: str) -> None:
    of_function = {
        parameter.name: parameter.default
        for parameter in inspect.signature(getattr(emcl_kernels, name)).parameters.values()
        if parameter.default is not parameter.empty
    }
    of_op = {a.name: a.default_value for a in getattr(ops, name).default._schema.arguments if a.has_default_value()}
    assert of_op == of_function


def test_an_op_may_be_called_without_what_has_a_default() -> None:
    gram, colsum = ops.em_moments(x)
    logits = colsum[:, None] * init
    fitted = ops.em_fit(gram, logits)
    for ours, function in (
        (fitted, em_fit(gram, logits)),
        ((ops.em_reconstruct(x, *fitted),), (em_reconstruct(x, *fitted),)),
        (ops.em_project(x, init), em_project(x, init)),
        (ops.em_project(x, init, eps=1e-3, gradient="full"), em_project(x, init, eps=1e-3, gradient="full")),
        (ops.pooled_similarity(text, frames, mask, init), pooled_similarity(text, frames, mask, init)),
        (
            (ops.pooled_similarity_blocks(text, frames, mask, init),),
            (emcl_kernels.pooled_similarity_blocks(text, frames, mask, init),),
        ),
    ):
        assert all(torch.equal(a, b) for a, b in zip(ours, function, strict=True))


# ---- autocast --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "case",
    [
        ("em_project", ""),
        ("em_project", "identity"),
        ("pooled_similarity", "identity"),
        ("pooled_similarity_blocks", ""),
    ],
    ids=label,
)
def test_autocast_computes_as_without(backend: str, device: str, case: tuple[str, str], narrow: torch.dtype) -> None:
    given = arguments(*case, device=device)
    leaves = [argument for argument in given if isinstance(argument, Tensor) and argument.requires_grad]
    results = []
    for enabled in (False, True):
        with torch.autocast(device, dtype=narrow, enabled=enabled):
            outputs = op(case[0])(*given)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        gradients = torch.autograd.grad(outputs[0].cos().sum(), leaves, allow_unused=True) if leaves else ()
        results.append((*outputs, *(gradient for gradient in gradients if gradient is not None)))
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype
    assert_equal(*results)


def test_autocast_takes_text_and_frames_of_different_dtypes(backend: str, device: str) -> None:
    given = arguments("pooled_similarity", grad=False, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        similarity, _ = ops.pooled_similarity(given[0].bfloat16(), *given[1:])
    assert similarity.dtype == torch.float32


# ---- vmap and checkpoints --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", [("em_moments", ""), ("em_fit", ""), ("em_reconstruct", ""), ("em_project", ""), ("em_project", "identity")]
)
def test_vmap_equals_a_loop(case: tuple[str, str]) -> None:
    everything = arguments(*case, dtype=torch.float64, grad=False)
    tensors = [argument for argument in everything if isinstance(argument, Tensor)]
    settings = [argument for argument in everything if not isinstance(argument, Tensor)]

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        output = op(case[0])(*inputs, *settings)
        return output if isinstance(output, tuple) else (output,)

    # All are mapped; then each in turn is one for all.
    for fixed in (None, *range(len(tensors) if len(tensors) > 1 else 0)):
        dims = tuple(None if j == fixed else 0 for j in range(len(tensors)))
        given = [tensor[0] if dim is None else tensor for tensor, dim in zip(tensors, dims, strict=True)]
        mapped = torch.vmap(call, in_dims=dims)(*given)

        loop = [
            call(*(tensor if dim is None else tensor[i] for tensor, dim in zip(given, dims, strict=True)))
            for i in range(2)
        ]
        for output, expected in zip(mapped, zip(*loop, strict=True), strict=True):
            assert_close(f"{case[0]}, {fixed} is not mapped", output, torch.stack(expected), 1e-12)


def test_vmap_batches_without_a_warning() -> None:
    many, texts = clustered_rows(3, 40, 16), clustered_rows(3, 6, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mapped = torch.vmap(lambda rows: em_project(rows, init)[0])(many)
        pooled = torch.vmap(lambda t: pooled_similarity(t, frames, mask, init)[0])(texts)
    assert_close("rows", mapped, em_project(many, init)[0])
    assert_close("similarity", pooled, torch.stack([pooled_similarity(t, frames, mask, init)[0] for t in texts]))


@pytest.mark.parametrize("shape", [(3, 20, 8), (3, 2, 20, 8)])
@pytest.mark.parametrize("start", [(5,), (3, 5)])
def test_vmap_over_rows_and_start(shape: tuple[int, ...], start: tuple[int, ...]) -> None:
    many, starts = clustered_rows(*shape), torch.randn(*start, dtype=torch.float64)
    over_start = 0 if len(start) > 1 else None
    each = list(starts) if len(start) > 1 else [starts] * 3
    both = torch.vmap(lambda rows, s: em_project(rows, s)[0], in_dims=(0, over_start))(many, starts)
    assert_close("both", both, torch.stack([em_project(rows, s)[0] for rows, s in zip(many, each, strict=True)]))
    if over_start == 0:
        one = torch.vmap(lambda s: em_project(many[0], s)[0])(starts)
        assert_close("start", one, torch.stack([em_project(many[0], s)[0] for s in each]))


@pytest.mark.parametrize("gradient", ["identity", "linear", "full"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_ops_under_activation_checkpointing(reentrant: bool, gradient: Any) -> None:
    def fitted(rows: Tensor) -> Tensor:
        gram, colsum = em_moments(rows)
        return em_fit(gram, colsum[:, None] * init)[0]

    functions: list[tuple[Callable[..., Tensor], Tensor]] = [
        (lambda t: pooled_similarity(t, frames, mask, init, gradient=gradient)[0], text),
        (lambda t: em_project(t, init, gradient=gradient)[0], x),
        (fitted, x),
    ]
    for function, rows in functions:
        leaf = rows.clone().requires_grad_()
        (plain,) = torch.autograd.grad(function(leaf).cos().sum(), leaf)
        checkpoint(function, leaf, use_reentrant=reentrant).cos().sum().backward()
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, plain)


# ---- which backend ---------------------------------------------------------------------------------------------------


@pytest.mark.short
def test_backend_is_available(backend: str, device: str) -> None:
    """Elsewhere a backend that is not here is a skipped test; here it is a failure."""
    with use_backend(backend):  # type: ignore[arg-type]
        em_moments(x.float().to(device))


# The kernels for GPUs have tiles of 128 bases and 64 frames, and no float64.
REFUSED: list[tuple[str, Callable[[Callable[..., Tensor]], object], str]] = [
    ("float64", lambda ones: em_moments(ones(3, 4).double()), "not torch.float64"),
    ("bases", lambda ones: em_fit(ones(5, 5), ones(5, 129)), "129 bases do not fit into one tile of 128"),
    (
        "frames",
        lambda ones: pooled_similarity(ones(3, 5), ones(2, 65, 5), ones(2, 65), ones(4)),
        "65 frames do not fit into one tile of 64",
    ),
]


@pytest.mark.parametrize(("call", "reason"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_a_gpu_backend_does_not_take_is_refused_with_the_reason(
    backend: str, device: str, call: Callable[..., object], reason: str
) -> None:
    def ones(*shape: int) -> Tensor:
        return torch.ones(shape, device=device)

    if backend in ("reference", "native", "torch"):
        call(ones)
        return
    with pytest.raises(RuntimeError, match=rf'backend "{backend}" is not available for .*{reason}'):
        call(ones)


@pytest.mark.skipif("EMCL_BACKEND" in os.environ, reason="a backend is asked for by name")
def test_what_is_chosen_by_itself_agrees_with_the_reference(backend: str, device: str) -> None:
    for case in ("em_project linear", "pooled_similarity linear"):
        call, inputs = CALLS[case]
        with use_backend("reference"):
            expected = call(inputs(0, device))
        for i, (a, b) in enumerate(zip(call(inputs(0, device)), expected, strict=True)):
            assert_close(f"{case}, result {i}", a, b, 1e-5)


def test_functions_are_found_where_the_first_version_had_them() -> None:
    for name in emcl_kernels.ops.FUNCTIONS:
        assert getattr(emcl_kernels.ops, name) is getattr(emcl_kernels, name)
    with pytest.raises(AttributeError, match=r"'emcl_kernels\.ops' has no attribute 'em_projekt'"):
        emcl_kernels.ops.em_projekt  # noqa: B018
