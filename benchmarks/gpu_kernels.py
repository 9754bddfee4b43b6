"""Where the time of a call goes, kernel by kernel: python benchmarks/gpu_kernels.py --cases fit,pooled-1024

For each way of a case: the time of a call on the device, in how many kernels, and the slowest of them. With --once each
way is called once after a warm-up and nothing is measured, for a profiler that counts on its own.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from gpu_case import Case
from gpu_cases import CASES
from gpu_timing import Gpu, Host
from gpu_worker import BACKENDS, build, reason_of, ways_of
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

CALLS = 10
SHOWN = 14
DEFAULT = "project-1056,project-1056-full,project-16512,project-1056x1024,project-1M-bf16,fit-512,pooled-1024"


def kernels_of(run: Callable[[], Any], device: str) -> dict[str, tuple[float, float]]:
    """Microseconds and launches of a call, by kernel. On the CPU, of torch's operations."""
    activity = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    where = DeviceType.CUDA if device == "cuda" else DeviceType.CPU
    with profile(activities=[activity]) as profiler:
        for _ in range(CALLS):
            run()
        if device == "cuda":
            torch.cuda.synchronize()

    seconds: dict[str, float] = defaultdict(float)
    launches: dict[str, int] = defaultdict(int)
    for event in profiler.events() or []:
        if event.device_type == where:
            seconds[event.name] += event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
            launches[event.name] += 1
    return {name: (seconds[name] / CALLS, launches[name] / CALLS) for name in seconds}


def table(kernels: dict[str, tuple[float, float]]) -> str:
    """The slowest kernels, a line each."""
    slowest = sorted(kernels.items(), key=lambda item: -item[1][0])[:SHOWN]
    return "\n".join(f"  {time:10.1f} µs {launches:7.1f} ×  {name[:110]}" for name, (time, launches) in slowest)


def show(case: Case, device: Gpu | Host, backends: tuple[str, ...], once: bool = False) -> None:
    """Print the kernels of every way of a case that is neither captured nor compiled."""
    inputs = case.inputs(device.kind)
    for way in ways_of(case, backends):
        if way.captured or way.compiled or (once and way.backend is None):
            continue
        title = f"== {case.shape}, {way.name}"
        try:
            run = build(way, case, inputs, device)
            for _ in range(1 if once else 3):
                run()
            if once:
                run()
                print(f"{title}: called", flush=True)
                continue
            kernels = kernels_of(run, device.kind)
        except Exception as error:  # the other ways' kernels are wanted all the same
            print(f"{title}: {reason_of(error)}", flush=True)
            continue
        total = sum(time for time, _ in kernels.values())
        count = sum(launches for _, launches in kernels.values())
        print(f"{title}: {total:.1f} µs in {count:.0f} kernels\n{table(kernels)}", flush=True)


def named(names: list[str]) -> list[Case]:
    """Cases by their whole names."""
    known = {case.name: case for case in CASES}
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"there is no case {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in names]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", default=DEFAULT, help="separated by commas (default: %(default)s)")
    parser.add_argument("--backends", help="separated by commas; by default all")
    parser.add_argument("--once", action="store_true", help="call each way once, and measure nothing")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"no kernels to time: torch {torch.__version__} sees no CUDA device")
        return 0

    device = Gpu() if options.device == "cuda" else Host()
    backends = tuple(options.backends.split(",")) if options.backends else BACKENDS[options.device]
    for case in named(options.cases.split(",")):
        show(case if options.device == "cuda" else case.tiny(), device, backends, options.once)
        device.clean()
    return 0


if __name__ == "__main__":
    sys.exit(main())
