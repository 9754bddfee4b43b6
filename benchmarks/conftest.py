"""Two threads as in the tests, an allocator at rest, and the table of ratios at the end."""

from collections import defaultdict
from typing import Any

import pytest
import torch

import emcl_kernels

THREADS = 2


@pytest.fixture(autouse=True, scope="session")
def process() -> None:
    """Threads; and an allocator that keeps freed memory, as in any process that has freed one big tensor.

    Without that, glibc hands pages back or not depending on which case ran before, and a median moves by a third.
    """
    torch.set_num_threads(THREADS)
    torch.ones(int(7.9e6))  # below the 32 MB up to which glibc learns


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    """What benchmarks/record.py writes besides what pytest-benchmark knows."""
    machine_info["emcl"] = {
        "emcl": emcl_kernels.__version__,
        "torch": torch.__version__,
        "threads": THREADS,
        "isa": torch.backends.cpu.get_cpu_capability(),
        "command": "make bench",
    }


def pytest_terminal_summary(terminalreporter: Any, config: Any) -> None:
    """Medians of one run side by side: every way, and how many times slower than ours it is."""
    session = getattr(config, "_benchmarksession", None)
    if session is None or not session.benchmarks:
        return
    groups: dict[str, dict[str, Any]] = defaultdict(dict)
    for bench in session.benchmarks:
        groups[bench.group][bench.params["way"]] = bench
    write = terminalreporter.write_line
    terminalreporter.section(
        f"medians in milliseconds (interquartile range), {THREADS} threads, torch {torch.__version__}"
    )
    for group, ways in groups.items():
        ours = ways.get("ours")
        parts = []
        for way, bench in ways.items():
            part = f"{way} {bench.stats.median * 1e3:.2f} (±{bench.stats.iqr * 1e3:.2f})"
            if ours is not None and way != "ours":
                part += f" = {bench.stats.median / ours.stats.median:.2f}×"
            if "peak_mib" in bench.extra_info:
                part += f", peak {bench.extra_info['peak_mib']:.0f} MiB"
            if "gflop" in bench.extra_info:
                rate = bench.extra_info["gflop"] / bench.stats.median
                part += f", {bench.extra_info['gflop']:.2f} GFLOP at {rate:.0f}/s, {bench.extra_info['mbyte']:.0f} MB"
            parts.append(part)
        write(f"{group:<52} " + " | ".join(parts))
