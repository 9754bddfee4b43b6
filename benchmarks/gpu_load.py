"""Have a CUDA library that runs on this GPU: the one that was carried here, or one that is built for this chip alone.

It prints what the machine is, and what there is then (python -m emcl_kernels.info).
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


def reason(device: str) -> str:
    """Why the CUDA backend does not run on the device, or nothing. In a process of its own, which loads anew."""
    ask = "import sys, torch; from emcl_kernels.backends import cuda; "
    ask += "print(cuda.backend.unavailable(torch.device(sys.argv[1])) or '')"
    done = subprocess.run([sys.executable, "-c", ask, device], capture_output=True, text=True, cwd=ROOT)
    return done.stdout.strip() if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no output"])[-1]


def build() -> int:
    """The CUDA library for the chip that is here. The one for the CPU is left as it is: no kernel on a GPU needs it."""
    major, minor = torch.cuda.get_device_capability()
    environment = os.environ | {"EMCL_BUILD_CUDA": "1", "EMCL_CUDA_ARCHS": f"{major}{minor}"}
    if not (ROOT / "emcl_kernels" / "_C" / "libemcl_cpu.so").exists():
        environment["EMCL_BUILD_CPU"] = "0"
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help=argparse.SUPPRESS)
    device = parser.parse_args().device

    why = reason(device)
    if why and device == "cuda":
        print(f"CUDA library: {why}; building one for this chip", flush=True)
        build()
        why = reason(device)
    print(f"CUDA library: {why or 'it runs here'}", flush=True)

    subprocess.run([sys.executable, "-m", "emcl_kernels.info"], cwd=ROOT, check=False)
    return 1 if why else 0


if __name__ == "__main__":
    sys.exit(main())
