"""A kernel of the hub's format from this checkout, for the library `kernels`: python hub/assemble.py

It writes a build variant for each library that setup.py has built, as kernel-builder would lay it out, into
build/hub/build/<variant>: the package with relative imports, the library, and metadata.json. `get_local_kernel` of
`kernels` loads it. With --sources it brings build.toml, which kernel-builder reads, up to date instead.

Nothing is uploaded. What the hub asks for and this does not have yet stands in docs/hub.md.
"""

import argparse
import base64
import hashlib
import json
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "emcl_kernels"
NAME = "emcl-kernels"
VERSION = 0  # by the hub's convention: not for production yet
LICENSE = "MIT"
STABLE_ABI = "2.10"
CAPABILITIES = ("8.0", "9.0")
LEFT_OUT = ("refine", "integrations", "info.py", "tune.py", "testing.py")
"""These need more than torch, or are programs."""
SHAPES = '''"""Shapes in annotations mean nothing here: what jaxtyping makes of them is not installed with a kernel."""

from typing import Any


class _Shaped:
    def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
        return item[0]


Bool = Float = Int = _Shaped
'''


# ---- build.toml ------------------------------------------------------------------------------------------------------


def build_toml() -> str:
    """The file that kernel-builder reads, with every source of the CUDA library."""
    headers = [*files("csrc", ".h"), *files("csrc/ops", ".h"), *files("emcl_kernels/include/emcl", ".h")]
    cuda = [file for kind in (".cu", ".cuh", ".h") for file in files("csrc/cuda", kind, deep=True)]
    names = " ".join(capability.replace(".", "") for capability in CAPABILITIES)
    flags = ["-std=c++20", "-O3", "-DUSE_CUDA", "-DEMCL_CUDA", "-DEMCL_KEY=CUDA"]
    return f"""\
# What kernel-builder reads. Written by `python hub/assemble.py --sources`; docs/hub.md says what is checked of it.
[general]
name = "{NAME}"
version = {VERSION}
edition = 5
license = "{LICENSE}"
backends = ["cuda"]

[torch]
include = ["csrc", "emcl_kernels/include"]
cxx-flags = {json.dumps([*flags, f'-DEMCL_CUDA_ARCHITECTURES="{names}"'])}
src = {array([*files("csrc/ops", ".cpp"), "csrc/cuda/library.cpp", *headers])}

[torch.stable-abi]
cuda = "{STABLE_ABI}"

[kernel.emcl]
backend = "cuda"
depends = ["torch"]
include = ["csrc", "emcl_kernels/include"]
cuda-capabilities = {json.dumps(CAPABILITIES)}
cuda-flags = {json.dumps(flags)}
src = {array([*cuda, *headers])}
"""


def files(folder: str, ending: str, deep: bool = False) -> list[str]:
    """Files of the checkout; the emulator, which is for tests, is not among them."""
    found = (ROOT / folder).rglob(f"*{ending}") if deep else (ROOT / folder).glob(f"*{ending}")
    return sorted(file.relative_to(ROOT).as_posix() for file in found if "emulator" not in file.parts)


def array(items: list[str]) -> str:
    return "[\n" + "".join(f'    "{item}",\n' for item in sorted(items)) + "]"


# ---- build variants --------------------------------------------------------------------------------------------------


def variants(info: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name and backend of each variant that can be made. info: what setup.py wrote about its build."""
    place = f"{info['machine']}-{platform.system().lower()}"
    abi = "torch-stable-abi" + STABLE_ABI.replace(".", "")
    found: dict[str, dict[str, Any]] = {}
    if info["targets"]["cpu"]["built"]:
        found[f"{abi}-cpu-{place}"] = {"type": "cpu"}
    if (cuda := info["targets"]["cuda"])["built"]:
        capabilities = [re.sub(r"^(\d+)(\d)", r"\1.\2", name) for name in cuda["isas"]]
        found[f"{abi}-cu{cuda['nvcc'].replace('.', '')}-{place}"] = {"type": "cuda", "archs": capabilities}
    return found


def assemble(folder: Path, backend: dict[str, Any], library: Path) -> None:
    """Write one variant. Its package is a folder of its own, which older versions of `kernels` look for."""
    shutil.rmtree(folder, ignore_errors=True)
    package = folder / PACKAGE
    for source in sorted((ROOT / PACKAGE).rglob("*")):
        relative = source.relative_to(ROOT / PACKAGE)
        if relative.parts[0] in LEFT_OUT or source.suffix not in (".py", ".json") or "_C" in relative.parts:
            continue
        target = package / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".py":
            target.write_text(moved(source.read_text(encoding="utf-8"), len(relative.parts)), encoding="utf-8")
        else:
            shutil.copy2(source, target)

    (package / "_shapes.py").write_text(SHAPES, encoding="utf-8")
    (package / "_C").mkdir()
    shutil.copy2(library, package / "_C")
    shutil.copy2(library.with_name("build_info.json"), package / "_C")
    (folder / "__init__.py").write_text(f"from .{PACKAGE} import *\nfrom .{PACKAGE} import __all__\n", encoding="utf-8")
    (folder / "metadata.json").write_text(json.dumps(metadata(folder, backend), indent=2) + "\n", encoding="utf-8")


def moved(source: str, depth: int) -> str:
    """A module with imports that do not depend on where the package lies. depth: 1 at the top of the package."""
    up = "." * depth
    source = re.sub(rf"^(\s*)from {PACKAGE}\.(\S+) import", rf"\1from {up}\2 import", source, flags=re.MULTILINE)
    source = re.sub(rf"^(\s*)from {PACKAGE} import", rf"\1from {up} import", source, flags=re.MULTILINE)
    source = re.sub(r"^from jaxtyping import", f"from {up}_shapes import", source, flags=re.MULTILINE)
    return re.sub(r"^from \.refine import .*\n|^    \"(EM)?Refiner\",\n", "", source, flags=re.MULTILINE)


def metadata(folder: Path, backend: dict[str, Any]) -> dict[str, Any]:
    """The content of metadata.json."""
    return {
        "name": NAME,
        "id": f"_{PACKAGE}_{backend['type']}_{revision()}",
        "version": VERSION,
        "license": LICENSE,
        "python-depends": [],
        "backend": backend,
        "digest": {"algorithm": "sha256", "files": digests(folder)},
    }


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, in base64."""
    return {
        file.relative_to(folder).as_posix(): base64.b64encode(hashlib.sha256(file.read_bytes()).digest()).decode()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "metadata.json"
    }


def revision() -> str:
    """The commit, with _dirty if the checkout has changes; "unknown" without git."""
    try:
        git = ["git", "-C", str(ROOT)]
        head = subprocess.run([*git, "rev-parse", "--short=7", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("_dirty" if changes.stdout.strip() else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "hub", help="folder (default: %(default)s)")
    parser.add_argument("--sources", action="store_true", help="write build.toml, and no variant")
    options = parser.parse_args()
    if options.sources:
        (ROOT / "build.toml").write_text(build_toml(), encoding="utf-8")
        return 0

    built = ROOT / PACKAGE / "_C" / "build_info.json"
    if not built.exists():
        print("nothing was built; run python setup.py build_ext --inplace first", file=sys.stderr)
        return 1
    for name, backend in variants(json.loads(built.read_text(encoding="utf-8"))).items():
        folder = options.out / "build" / name
        assemble(folder, backend, built.with_name(f"libemcl_{backend['type']}.so"))
        print(f"wrote {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
