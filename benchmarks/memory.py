"""Peak memory of one call above what its inputs take, measured in a process of its own.

python benchmarks/memory.py NAME WAY prints MiB.
"""

import subprocess
import sys
from pathlib import Path


def peak_mib(name: str, way: str) -> float:
    """Runs this file for one case; the high-water mark only ever grows, so each case needs a fresh process."""
    run = subprocess.run([sys.executable, str(Path(__file__)), name, way], capture_output=True, text=True, check=True)
    return float(run.stdout)


def high_water_kib() -> int:
    """VmHWM of this process (Linux). getrusage would start from the parent's mark."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def main() -> None:
    import torch
    from cases import TRAINING, pairs
    from ways import TRAINING_WAYS, training_step

    torch.set_num_threads(2)
    case = next(case for case in TRAINING if case.name == sys.argv[1])
    inputs = pairs(case)
    warm = type(case)("warm", 2, case.frames, case.width, case.bases)
    training_step(TRAINING_WAYS[sys.argv[2]], pairs(warm))()  # code and buffers that any call needs
    before = high_water_kib()
    training_step(TRAINING_WAYS[sys.argv[2]], inputs)()
    print((high_water_kib() - before) / 1024)


if __name__ == "__main__":
    main()
