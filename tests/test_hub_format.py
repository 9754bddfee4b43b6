"""hub/assemble.py: build.toml is up to date, and a variant is what the hub's `kernels` documents and works alone.

The hub's own tools are not installed for the tests; `make hub` runs them.
"""

import base64
import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")


def load() -> Any:
    spec = importlib.util.spec_from_file_location("assemble", ROOT / "hub" / "assemble.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


assemble = load()
INFO = {
    "machine": "x86_64",
    "targets": {"cpu": {"built": True}, "cuda": {"built": True, "isas": ["80", "90+PTX", "120"], "nvcc": "13.0"}},
}


def test_the_build_file_is_up_to_date() -> None:
    assert (ROOT / "build.toml").read_text() == assemble.build_toml(), "run python hub/assemble.py --sources"


def test_the_build_file_has_what_edition_5_asks_for() -> None:
    build = tomllib.loads((ROOT / "build.toml").read_text())
    assert build.keys() == {"general", "torch", "kernel"}
    assert build["general"].keys() >= {"name", "version", "edition", "license", "backends"}
    assert re.fullmatch(r"[a-z][-a-z0-9]*[a-z0-9]", build["general"]["name"])
    assert build["torch"]["stable-abi"] == {"cuda": "2.10"}

    # Every source of the CUDA library, and nothing of the emulator, which is for tests.
    (kernel,) = build["kernel"].values()
    listed = {ROOT / file for file in (*kernel["src"], *build["torch"]["src"])}
    assert listed >= {*(ROOT / "csrc" / "ops").glob("*.cpp"), *(ROOT / "csrc" / "cuda").rglob("*.cu")}
    assert all(file.is_file() for file in listed)
    assert not any("emulator" in file.parts for file in listed)


def test_names_of_variants() -> None:
    assert assemble.variants(INFO) == {
        "torch-stable-abi210-cpu-x86_64-linux": {"type": "cpu"},
        "torch-stable-abi210-cu130-x86_64-linux": {"type": "cuda", "archs": ["8.0", "9.0+PTX", "12.0"]},
    }


def test_imports_are_moved() -> None:
    source = (
        "from emcl_kernels import checks, em\nfrom emcl_kernels.ops.fit import op\nfrom jaxtyping import Float\n"
        "    from emcl_kernels.tables import x\nimport torch\n"
    )
    assert assemble.moved(source, 2) == (
        "from .. import checks, em\nfrom ..ops.fit import op\nfrom .._shapes import Float\n"
        "    from ..tables import x\nimport torch\n"
    )


ALONE = """
import importlib, sys
# What a kernel of the hub may not count on.
sys.modules.update(dict.fromkeys(["emcl_kernels", "jaxtyping", "safetensors", "beartype"]))
sys.path.insert(0, sys.argv[1])
kernel = importlib.import_module(sys.argv[2])
import torch
x, init = torch.randn(100, 16), torch.randn(4)
with kernel.use_backend("native"):
    y, _ = kernel.em_project(x, init)
with kernel.use_backend("reference"):
    expected, _ = kernel.em_project(x, init)
torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
print(*kernel.__all__)
"""


@pytest.mark.slow
def test_a_variant_works_alone(tmp_path: Path) -> None:
    library = ROOT / "emcl_kernels" / "_C" / "libemcl_cpu.so"
    if not library.exists():
        pytest.skip("the C++ library was not built")
    folder = tmp_path / "build" / "torch-stable-abi210-cpu-x86_64-linux"
    assemble.assemble(folder, {"type": "cpu"}, library)

    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata.keys() == {"name", "id", "version", "license", "python-depends", "backend", "digest"}
    assert metadata["id"].isidentifier()
    assert metadata["name"].replace("-", "_") in {path.name for path in folder.iterdir()}
    assert metadata["digest"]["algorithm"] == "sha256"
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert metadata["digest"]["files"].keys() == files - {"metadata.json"}
    for name, digest in metadata["digest"]["files"].items():
        assert base64.b64decode(digest) == hashlib.sha256((folder / name).read_bytes()).digest()

    command = [sys.executable, "-c", ALONE, str(folder.parent), folder.name]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "em_project" in done.stdout
    assert "EMRefiner" not in done.stdout
