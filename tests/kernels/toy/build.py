"""Compiles an op in one C++ file into a library of its own, as somebody with an installed package would."""

import shutil
import subprocess
from pathlib import Path

import emcl_kernels

# The public headers lie in the package, in a checkout and in an installation alike.
HEADERS = Path(emcl_kernels.__file__).parent / "include"
DOUBLE_ROWS = Path(__file__).with_name("double_rows.cpp")


def compiler() -> str | None:
    """The C++ compiler, or None if this machine has none."""
    return next((path for path in map(shutil.which, ("c++", "g++", "clang++")) if path), None)


def build(source: Path, folder: Path) -> Path:
    """Compile `source` into a shared library in `folder`; `torch.ops.load_library` registers its ops.

    Args:
        source: one C++ file that includes `emcl/op.h`.
        folder: where the library is written.

    Returns:
        The library.

    Raises:
        RuntimeError: the file does not compile; the message is the compiler's.
    """
    from torch.utils.cpp_extension import include_paths, library_paths

    library = folder / f"lib{source.stem}.so"
    flags = ["-std=c++20", "-O2", "-fPIC", "-shared", *(f"-I{path}" for path in (HEADERS, *include_paths()))]
    # Torch's C functions only; nothing of this package is linked.
    torch_libraries = [f"-L{library_paths()[0]}", "-ltorch", "-ltorch_cpu", "-lc10"]
    command = [str(compiler()), *flags, str(source), "-o", str(library), *torch_libraries]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return library
