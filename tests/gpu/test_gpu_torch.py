"""What torch asks of an op on a GPU: graphs, streams, compilation, no waiting, and the same bits every time."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from compare import DEVICE, GRADIENTS
from torch import Tensor, nn

from emcl_kernels import EMCL, em_fit, em_project, pooled_similarity, pooled_similarity_blocks, use_backend
from emcl_kernels.testing import assert_close, clustered_rows, distinct_init

# outputs and gradients of a call on fresh inputs that a seed determines
Call = Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]


def rows(seed: int, count: int = 1056, width: int = 512, bases: int = 32) -> tuple[Tensor, ...]:
    """x, init, d_y."""
    torch.manual_seed(seed)
    x = clustered_rows(count, width).float()
    return x.to(DEVICE), distinct_init(bases).float().to(DEVICE), torch.randn(count, width).to(DEVICE)


def clips(seed: int, pairs: int = 41, frames: int = 12, width: int = 130, bases: int = 7) -> tuple[Tensor, ...]:
    """text, frames, init, d_similarity."""
    torch.manual_seed(seed)
    tensors = (clustered_rows(pairs, width), clustered_rows(pairs, frames, width), distinct_init(bases))
    return *(tensor.float().to(DEVICE) for tensor in tensors), torch.randn(pairs, pairs).to(DEVICE)


def project(gradient: str) -> Call:
    def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, init, d_y = inputs
        x, init = x.detach().requires_grad_(), init.detach().requires_grad_(gradient == "full")
        y, mean_bases = em_project(x, init, gradient=gradient)  # type: ignore[arg-type]
        return y.detach(), mean_bases.detach(), *torch.autograd.grad(y, (x, init) if gradient == "full" else x, d_y)

    return run


def pooled(gradient: str) -> Call:
    def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        text, frames, init, d_similarity = inputs
        text, frames = text.detach().requires_grad_(), frames.detach().requires_grad_()
        mask = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
        similarity, _ = pooled_similarity(text, frames, mask, init, gradient=gradient)  # type: ignore[arg-type]
        return similarity.detach(), *torch.autograd.grad(similarity, (text, frames), d_similarity)

    return run


def blocks(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    text, frames, init, _ = inputs
    mask = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
    return (pooled_similarity_blocks(text, frames, mask, init, em_block=16),)


def fit(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    x, init, _ = inputs
    return em_fit(x.mT @ x, x.sum(0).unsqueeze(-1) * init)


CALLS: dict[str, tuple[Call, Callable[..., tuple[Tensor, ...]]]] = {
    **{f"em_project {gradient}": (project(gradient), rows) for gradient in GRADIENTS},
    **{f"pooled_similarity {gradient}": (pooled(gradient), clips) for gradient in GRADIENTS},
    "pooled_similarity_blocks": (blocks, clips),
    "em_fit": (fit, rows),
}


def assert_equal(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert bool(a.isfinite().all()), f"result {i} is not finite"
        assert torch.equal(a, b), f"result {i} differs by up to {float((a - b).abs().max()):.1e}"


@pytest.mark.short
@pytest.mark.parametrize("case", CALLS)
def test_the_same_input_gives_the_same_bits(backend: str, case: str) -> None:
    call, inputs = CALLS[case]
    first = call(inputs(0))
    for _ in range(5):
        assert_equal(call(inputs(0)), first)


@pytest.mark.parametrize("case", CALLS)
def test_one_shape_after_another(backend: str, case: str) -> None:
    """Nothing that a call keeps may depend on the shape or the device memory of the one before."""
    call, inputs = CALLS[case]
    sizes = [40, 23, 129]
    before = [call(inputs(size, size)) for size in sizes]
    for size, expected in reversed(list(zip(sizes, before, strict=True))):
        assert_equal(call(inputs(size, size)), expected)


@pytest.mark.cuda_only
@pytest.mark.short
@pytest.mark.parametrize("case", CALLS)
def test_a_captured_graph_follows_its_inputs(backend: str, case: str) -> None:
    call, inputs = CALLS[case]
    static = inputs(0)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            call(static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call(static)
    for seed in (1, 2):
        fresh = inputs(seed)
        for tensor, value in zip(static, fresh, strict=True):
            tensor.copy_(value)
        graph.replay()
        for i, (actual, expected) in enumerate(zip(captured, call(fresh), strict=True)):
            assert_close(f"{case}, result {i}", actual, expected, 1e-5)


@pytest.mark.cuda_only
@pytest.mark.parametrize("case", CALLS)
def test_two_streams_at_once(backend: str, case: str) -> None:
    call, inputs = CALLS[case]
    given = [inputs(0), inputs(1)]
    expected = [call(each) for each in given]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    results: list[list[tuple[Tensor, ...]]] = [[], []]
    for _ in range(10):
        for stream, each, found in zip(streams, given, results, strict=True):
            with torch.cuda.stream(stream):
                found.append(call(each))
    torch.cuda.synchronize()
    for found, value in zip(results, expected, strict=True):
        for result in found:
            assert_equal(result, value)


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda_only
@pytest.mark.parametrize("scale", ["release", "relative"])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_training_step_does_not_wait_for_the_device(backend: str, gradient: str, scale: str) -> None:
    layer = EMCL(num_bases=7, init="normal", gradient=gradient, scale=scale).to(DEVICE)  # type: ignore[arg-type]
    x, text, frames = rows(0, 300, 130)[0], *clips(0)[:2]
    mask = torch.ones(frames.shape[:2], dtype=torch.bool, device=DEVICE)

    def step() -> None:
        leaves = [tensor.detach().requires_grad_() for tensor in (x, text, frames)]
        y = layer(leaves[0])
        similarity = layer.pooled_similarity(leaves[1], leaves[2], mask)
        torch.autograd.grad(y.square().sum() + similarity.square().sum(), leaves)

    step()  # kernels are compiled and loaded
    before = layer.bases.clone()
    with waiting_is_an_error():
        step()
    assert not torch.equal(layer.bases, before)


@pytest.mark.cuda_only
def test_the_evaluation_does_not_wait_for_the_device(backend: str) -> None:
    given = clips(0)
    blocks(given)
    with waiting_is_an_error():
        blocks(given)


@pytest.mark.cuda_only
@pytest.mark.parametrize("case", CALLS)
def test_another_device_than_the_first(backend: str, case: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    call, inputs = CALLS[case]
    given = inputs(0)
    with torch.cuda.device(0):  # which is not where the tensors are
        result = call(tuple(tensor.to("cuda:1") for tensor in given))
    assert all(tensor.device.index == 1 for tensor in result)
    for i, (actual, expected) in enumerate(zip(result, call(given), strict=True)):
        assert_close(f"{case}, result {i}", actual.to(DEVICE), expected, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_computes_as_without(backend: str, dtype: torch.dtype) -> None:
    x, init, d_y = rows(0)
    results = []
    for enabled in (False, True):
        leaf = x.detach().requires_grad_()
        with torch.autocast(DEVICE, dtype=dtype, enabled=enabled):
            y, mean_bases = em_project(leaf, init, gradient="full")
        results.append((y.detach(), mean_bases.detach(), *torch.autograd.grad(y, leaf, d_y)))
    for i, (actual, expected) in enumerate(zip(*reversed(results), strict=True)):
        assert actual.dtype == expected.dtype
        assert_close(f"result {i}", actual, expected, 1e-6)


class Step(nn.Module):
    """Two small towers, EMCL, and the contrastive loss."""

    def __init__(self, gradient: str, pooled: bool) -> None:
        super().__init__()
        self.text, self.video = nn.Linear(24, 16), nn.Linear(24, 16)
        self.emcl = EMCL(num_bases=5, init="normal", gradient=gradient)  # type: ignore[arg-type]
        self.pooled = pooled

    def forward(self, text: Tensor, video: Tensor, mask: Tensor) -> Tensor:
        t, v = self.text(text), self.video(video)
        if self.pooled:
            logits = 10 * self.emcl.pooled_similarity(t, v, mask)
        else:
            t, v = self.emcl(t, v.mean(1))
            logits = t @ v.mT
        target = torch.arange(len(t), device=logits.device)
        return nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.mT, target)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_compiled_training_step_equals_eager(backend: str, gradient: str, pooled: bool) -> None:
    torch._dynamo.reset()
    eager = Step(gradient, pooled).to(DEVICE)
    other = copy.deepcopy(eager)
    compiled = torch.compile(other, fullgraph=True)
    text, video = (clustered_rows(*shape, 24).float().to(DEVICE) for shape in ((12,), (12, 3)))
    mask = torch.ones(12, 3, dtype=torch.bool, device=DEVICE)
    for _ in range(2):
        losses: list[Any] = [step(text, video, mask) for step in (eager, compiled)]
        for loss in losses:
            loss.backward()
        assert_close("loss", losses[1], losses[0], 1e-5)
    for (name, p), q in zip(eager.named_parameters(), other.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert_close(name, q.grad, p.grad, 1e-4)
    assert_close("bases", other.emcl.bases, eager.emcl.bases, 1e-5)


def test_a_compiled_layer_in_evaluation_equals_eager(backend: str) -> None:
    torch._dynamo.reset()
    layer = EMCL(num_bases=32, init="normal").to(DEVICE).eval()
    compiled = torch.compile(layer, fullgraph=True)
    with torch.no_grad():
        for count in (1056, 2000):
            x = rows(0, count)[0]
            assert_close("y", compiled(x), layer(x), 1e-6)


@pytest.mark.cuda_only
def test_a_captured_training_step(backend: str) -> None:
    """Forward, backward and the update of the bases in one graph, as a training loop would capture it."""
    captured_layer = EMCL(num_bases=32, init="normal", gradient="linear").to(DEVICE)
    x, _, d_y = rows(0)

    def step(layer: EMCL) -> tuple[Tensor, Tensor]:
        leaf = x.detach().requires_grad_()
        y = layer(leaf)
        assert isinstance(y, Tensor)
        return y.detach(), torch.autograd.grad(y, leaf, d_y)[0]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(captured_layer)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(captured_layer)
    layer = copy.deepcopy(captured_layer)
    for seed in (1, 2, 3):
        x.copy_(rows(seed)[0])
        graph.replay()
        for name, a, b in zip(("y", "d_x"), captured, step(layer), strict=True):
            assert_close(name, a, b, 1e-5)
        assert_close("bases", captured_layer.bases, layer.bases, 1e-5)


def test_what_is_chosen_by_itself_agrees_with_the_reference() -> None:
    for name in ("em_project linear", "pooled_similarity linear"):
        call, inputs = CALLS[name]
        with use_backend("reference"):
            expected = call(inputs(0))
        for i, (a, b) in enumerate(zip(call(inputs(0)), expected, strict=True)):
            assert_close(f"{name}, result {i}", a, b, 1e-5)


def test_use_backend_names_the_reason_of_a_refusal(backend: str) -> None:
    gram, logits = torch.eye(16, device=DEVICE, dtype=torch.float64), torch.rand(16, 2, device=DEVICE).double()
    if backend == "reference":
        pytest.skip("reference takes everything")
    with use_backend(backend), pytest.raises(RuntimeError, match=rf'backend "{backend}" is not available'):  # type: ignore[arg-type]
        em_fit(gram, logits)
