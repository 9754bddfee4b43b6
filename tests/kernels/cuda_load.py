"""make test-cuda-load: whether the CUDA library loads in a CUDA build of torch and registers its functions.

It needs no GPU, but installs torch and all that it brings, gigabytes, into an environment of its own below build/.
Arguments go to pip, such as an index that has CUDA builds.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / "build" / "torch-with-cuda"
PYTHON = ENVIRONMENT / "bin" / "python"
INDEX, PYPI = "https://download.pytorch.org/whl/cu130", "https://pypi.org/simple"

CHECK = """
import torch
from emcl_kernels.backends import cuda
from emcl_kernels.ops.define import OPS
status = cuda.status()
if not status["loaded"]:
    raise SystemExit(status["reason"])
names = list(OPS)
missing = [name for name in names if not torch._C._dispatch_has_kernel_for_dispatch_key(f"emcl_native::{name}", "CUDA")]
if missing:
    raise SystemExit(f"no CUDA kernel is registered for {', '.join(missing)}")
architectures = ", ".join(status["architectures"])
print(f"libemcl_cuda.so for {architectures} loads in torch {torch.__version__} and registers {len(names)} ops")
"""


def run(*command: str) -> int:
    return subprocess.run(command, cwd=ENVIRONMENT, env=os.environ | {"PYTHONPATH": str(ROOT)}).returncode


def main() -> None:
    if not (ROOT / "emcl_kernels" / "_C" / "libemcl_cuda.so").exists():
        raise SystemExit("make test-cuda-load: libemcl_cuda.so was not built; python -m emcl_kernels.info says why")
    if not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    install = (str(PYTHON), "-m", "pip", "install", "--quiet", *sys.argv[1:], "torch>=2.10", "jaxtyping", "numpy")
    if run(*install) or run(str(PYTHON), "-c", "import torch; raise SystemExit(torch.version.cuda is None)"):
        raise SystemExit(
            "make test-cuda-load: there is no torch with CUDA to load the library in; name an index that has one: "
            f'rm -r {ENVIRONMENT} && make test-cuda-load PIP_ARGS="--index-url {INDEX} --extra-index-url {PYPI}"'
        )
    if run(str(PYTHON), "-c", CHECK):
        raise SystemExit("make test-cuda-load: the library does not load as it should; the reason is above")


if __name__ == "__main__":
    main()
