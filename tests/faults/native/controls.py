"""Does a sanitizer see what it must? Faults that were made for that, in a library of their own (control.cpp).

controls.py LIBRARY FUNCTION    calls it; the process that `seen` starts
"""

import subprocess
import sys
from pathlib import Path

from parts import CannotRun

from native.build import ALL_FLAGS, FLAGS, Build, compiler, run

HERE = Path(__file__).resolve().parent
# Of each sanitizer: what ends a process, and what does not.
EXPECTED = {
    "address": {"beyond": 99, "no_fault": 0},
    "address-undefined": {"beyond": 99, "too_large": 99, "no_fault": 0},
    "thread": {"race": 99, "no_fault": 0},
}


def seen(build: Build, isa: str, preload: tuple[str, ...] = ()) -> None:
    """Make sure that a sanitizer is at work.

    Raises:
        CannotRun: it sees nothing, or what is not there.
    """
    library = build.folder / "libcontrol.so"
    flags = [*ALL_FLAGS, *FLAGS[build.sanitizer], "-std=c++17", "-fPIC", "-shared"]
    run([compiler(), *flags, str(HERE / "control.cpp"), "-o", str(library)], "control.cpp")

    for function, expected in EXPECTED[build.sanitizer].items():
        command = [*build.command(), str(Path(__file__).resolve()), str(library), function]
        done = subprocess.run(command, env=build.environment(isa, preload), capture_output=True, text=True)
        if done.returncode != expected:
            raise CannotRun(
                f"the {build.sanitizer} sanitizer is not at work: of {function} in control.cpp the process ended with "
                f"{done.returncode}, expected {expected}:\n{done.stdout}{done.stderr}"
            )


def main() -> None:
    import ctypes

    import torch

    torch.set_num_threads(2)
    library, function = sys.argv[1:]
    torch.ops.load_library(library)  # as the kernels are
    getattr(ctypes.CDLL(library), function)(8)


if __name__ == "__main__":
    main()
