"""Time, memory and ceilings of a GPU. `Host` stands in for it where the tests run this code without one."""

import gc
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import cuda

Run = Callable[[], Any]


class Gpu:
    """The current CUDA device."""

    kind = "cuda"

    def __init__(self) -> None:
        self.properties = cuda.get_device_properties(cuda.current_device())
        # more than the L2 cache holds; writing it leaves nothing of the inputs there
        self._flush = torch.empty(max(256 * 2**20, 4 * self.properties.L2_cache_size), dtype=torch.int8, device="cuda")
        self._start, self._end = (cuda.Event(enable_timing=True) for _ in range(2))

    def seconds(self, run: Run, calls: int = 1, flush: bool = True) -> float:
        """Time of a call by the device's clock. The device is idle before, so launches count."""
        if flush:
            self._flush.zero_()
        cuda.synchronize()
        self._start.record()
        for _ in range(calls):
            run()
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1e3 / calls

    def peak_bytes(self, run: Run) -> int:
        """Most memory that a call takes at a time beside what is there already."""
        cuda.synchronize()
        cuda.reset_peak_memory_stats()
        before = cuda.memory_allocated()
        run()
        cuda.synchronize()
        return cuda.max_memory_allocated() - before

    def captured(self, run: Run, copies: int) -> Run:
        """A CUDA graph of `copies` calls, one after the other. What it returns is written anew by each replay."""
        side = cuda.Stream()
        side.wait_stream(cuda.current_stream())
        with cuda.stream(side):
            for _ in range(3):
                run()
        cuda.current_stream().wait_stream(side)
        graph = cuda.CUDAGraph()
        with cuda.graph(graph):
            for _ in range(copies):
                outputs = run()

        def replay() -> Any:
            graph.replay()
            return outputs

        return replay

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        # fullgraph: it raises where torch.compile would go back to eager without a word
        return torch.compile(function, dynamic=False, fullgraph=True)

    def clean(self) -> None:
        """Give back what a case has left."""
        gc.collect()
        torch._dynamo.reset()
        cuda.empty_cache()

    def is_lost(self) -> bool:
        """Whether an earlier kernel has taken the context with it."""
        try:
            cuda.synchronize()
        except RuntimeError:
            return True
        return False

    def facts(self) -> dict[str, str]:
        major, minor = cuda.get_device_capability()
        return {
            "GPU": self.properties.name,
            "compute capability": f"{major}.{minor}",
            "multiprocessors": str(self.properties.multi_processor_count),
            "memory": f"{self.properties.total_memory / 2**30:.0f} GiB",
            "L2 cache": f"{self.properties.L2_cache_size / 2**20:.0f} MiB",
            "driver": smi("driver_version"),
            "largest clocks": f"{smi('clocks.max.sm')}, memory {smi('clocks.max.mem')}",
            "CUDA of torch": str(torch.version.cuda),
        }

    def clocks(self) -> str:
        return f"{smi('clocks.sm')}, memory {smi('clocks.mem')}, {smi('temperature.gpu')} °C, {smi('power.draw')}"


class Host:
    """The CPU, timed by its own clock: nothing is captured or compiled."""

    kind = "cpu"

    def seconds(self, run: Run, calls: int = 1, flush: bool = True) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - start) / calls

    def peak_bytes(self, run: Run) -> int:
        run()
        return 0

    def captured(self, run: Run, copies: int) -> Run:
        def replay() -> Any:
            for _ in range(copies):
                outputs = run()
            return outputs

        return replay

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    def clean(self) -> None:
        gc.collect()

    def is_lost(self) -> bool:
        return False

    def facts(self) -> dict[str, str]:
        return {"GPU": "none: the code of the benchmark on the CPU"}

    def clocks(self) -> str:
        return "not read"


def smi(query: str) -> str:
    """One value that nvidia-smi reads off the first device, with its unit."""
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", "-i", "0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"not read ({type(error).__name__})"


def interleaved(
    device: Gpu | Host,
    runs: dict[str, Run],
    *,
    seconds: float,
    at_most: float,
    flush: bool,
    fewest: int = 20,
    most: int = 100,
    each_round: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Samples of every run, in rounds that begin with another one each time, so that a drift of clocks hits all alike.

    Args: seconds: for all rounds together, but there are no fewer rounds than `fewest`, unless that takes longer than
        `at_most` seconds.
    """
    calls = dict.fromkeys(runs, 1)
    if not flush:  # repeated, until the resolution of an event does not matter
        for name, run in runs.items():
            once = min(device.seconds(run, flush=False) for _ in range(3))
            calls[name] = max(1, min(50, int(200e-6 / max(once, 1e-9))))
    samples: dict[str, list[float]] = {name: [] for name in runs}
    names, began = list(runs), time.monotonic()
    for turn in range(most):
        elapsed = time.monotonic() - began
        if elapsed > seconds and (turn >= fewest or (turn >= 2 and elapsed > at_most)):
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(device.seconds(runs[name], calls[name], flush))
        each_round()
    return samples


def spread(samples: list[float]) -> dict[str, float]:
    """Median and interquartile range."""
    lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return {"median_s": median, "iqr_s": upper - lower, "repeats": len(samples)}


def ceilings(device: Gpu | Host, copy_bytes: int = 2**31, size: int = 8192) -> dict[str, dict[str, float]]:
    """What the device reaches: bytes that a large copy reads and writes, FLOPs of large products of random matrices."""
    source = torch.randn(copy_bytes // 4, device=device.kind)
    target = torch.empty_like(source)
    measured = {"copy": (lambda: target.copy_(source), 2 * source.nbytes)}
    for name, dtype, precision in (("bf16", torch.bfloat16, "highest"), ("tf32", torch.float32, "high")):
        a, b = (torch.randn(size, size, device=device.kind).to(dtype) for _ in range(2))
        measured[name] = (product(a, b, precision), 2 * size**3)
    found = {}
    for name, (run, amount) in measured.items():
        for _ in range(3):
            run()
        found[name] = spread([device.seconds(run, flush=False) for _ in range(20)])
        found[name]["per_second"] = amount / found[name]["median_s"]
    return found


def product(a: torch.Tensor, b: torch.Tensor, precision: str) -> Run:
    out = torch.empty(len(a), b.shape[1], dtype=a.dtype, device=a.device)

    def run() -> None:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        torch.mm(a, b, out=out)
        torch.set_float32_matmul_precision(before)

    return run
