"""What has a meaning on a GPU alone: graphs, streams, no waiting, other devices, two processes, CUDA's checkers."""

import copy
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from calls import CALLS, assert_equal, blocks, clips, rows
from compare import GRADIENTS
from torch import Tensor

from emcl_kernels import EMCL
from emcl_kernels.testing import assert_close

HERE = Path(__file__).parent
FOUND = 86  # exit code by which the memory checker says that it found something
PATIENCE = 150  # seconds; below the silence after which run_on_gpu.py takes a test for hung
REAL = {"count": 1056, "width": 512, "bases": 32}


# ---- graphs and streams ----------------------------------------------------------------------------------------------


def on_a_side_stream(call: Any, times: int) -> None:
    """What a capture needs to have happened before it: kernels are compiled and loaded."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(times):
            call()
    torch.cuda.current_stream().wait_stream(side)


@pytest.mark.cuda_only
@pytest.mark.short
@pytest.mark.parametrize("case", CALLS)
def test_a_captured_graph_follows_its_inputs(backend: str, device: str, case: str) -> None:
    call, inputs = CALLS[case]
    static = inputs(0, device)
    on_a_side_stream(lambda: call(static), 2)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call(static)
    for seed in (1, 2):
        fresh = inputs(seed, device)
        for tensor, value in zip(static, fresh, strict=True):
            tensor.copy_(value)
        graph.replay()
        for i, (actual, expected) in enumerate(zip(captured, call(fresh), strict=True)):
            assert_close(f"{case}, result {i}", actual, expected, 1e-5)


@pytest.mark.cuda_only
def test_a_captured_training_step(backend: str, device: str) -> None:
    """Forward, backward and the update of the bases in one graph, as a training loop would capture it."""
    captured_layer = EMCL(num_bases=32, init="normal", gradient="linear").to(device)
    x, _, d_y = rows(0, device, **REAL)

    def step(layer: EMCL) -> tuple[Tensor, Tensor]:
        leaf = x.detach().requires_grad_()
        y = layer(leaf)
        assert isinstance(y, Tensor)
        return y.detach(), torch.autograd.grad(y, leaf, d_y)[0]

    on_a_side_stream(lambda: step(captured_layer), 1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(captured_layer)
    layer = copy.deepcopy(captured_layer)
    for seed in (1, 2, 3):
        x.copy_(rows(seed, device, **REAL)[0])
        graph.replay()
        for name, a, b in zip(("y", "d_x"), captured, step(layer), strict=True):
            assert_close(name, a, b, 1e-5)
        assert_close("bases", captured_layer.bases, layer.bases, 1e-5)


@pytest.mark.cuda_only
@pytest.mark.parametrize("case", CALLS)
def test_two_streams_at_once(backend: str, device: str, case: str) -> None:
    call, inputs = CALLS[case]
    given = [inputs(0, device), inputs(1, device)]
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


# ---- no waiting ------------------------------------------------------------------------------------------------------


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
def test_a_training_step_does_not_wait_for_the_device(backend: str, device: str, gradient: Any, scale: Any) -> None:
    layer = EMCL(num_bases=7, init="normal", gradient=gradient, scale=scale).to(device)
    x = rows(0, device, 300, 130)[0]
    text, frames = clips(0, device)[:2]
    mask = torch.ones(frames.shape[:2], dtype=torch.bool, device=device)

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
def test_the_evaluation_does_not_wait_for_the_device(backend: str, device: str) -> None:
    given = clips(0, device)
    blocks(given)
    with waiting_is_an_error():
        blocks(given)


# ---- devices and processes -------------------------------------------------------------------------------------------


@pytest.mark.cuda_only
@pytest.mark.parametrize("case", CALLS)
def test_another_device_than_the_first(backend: str, device: str, case: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    call, inputs = CALLS[case]
    given = inputs(0, device)
    with torch.cuda.device(0):  # which is not where the tensors are
        result = call(tuple(tensor.to("cuda:1") for tensor in given))
    assert all(tensor.device.index == 1 for tensor in result)
    for i, (actual, expected) in enumerate(zip(result, call(given), strict=True)):
        assert_close(f"{case}, result {i}", actual.to(device), expected, 1e-5)


@pytest.mark.slow
def test_two_processes_on_one_device_equal_one(backend: str, device: str) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run_script([*launcher, str(HERE / "ddp_step.py"), backend, device], "equal\n")


@pytest.mark.slow
def test_the_script_of_the_memory_checker_runs(backend: str, device: str) -> None:
    run_script([sys.executable, str(HERE / "small_case.py"), backend, device], "done\n")


def run_script(command: list[str], printed: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    assert done.stdout == printed


@pytest.mark.cuda_only
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_the_checker_of_cuda_finds_nothing(backend: str, device: str, tool: str) -> None:
    checker = memory_checker()
    if checker is None:
        pytest.skip("compute-sanitizer is not installed")
    options = ["--tool", tool, "--error-exitcode", str(FOUND)]
    if tool == "memcheck":
        options += ["--report-api-errors", "no"]
    # Without torch's cache every tensor is an allocation of its own, and an access beyond its end is seen.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [checker, *options, sys.executable, str(HERE / "small_case.py"), backend, device]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=environment)
    except subprocess.TimeoutExpired:
        pytest.skip(f"compute-sanitizer did not end within {PATIENCE} s")
    output = done.stdout + done.stderr
    if "Device not supported" in output:
        pytest.skip("compute-sanitizer does not support this device or machine")
    assert done.returncode == 0, output[-6000:]


def memory_checker() -> str | None:
    """compute-sanitizer on PATH, or where nvcc is."""
    folders = [os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin"), os.environ.get("PATH", "")]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))
