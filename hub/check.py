"""Check what assemble.py wrote with the hub's own tools: make hub, or python hub/check.py [FOLDER]

It needs `kernels` and `kernel-abi-check`, beside torch. build.toml and each metadata.json are read by the parser of
`kernels`, digests and names of variants are compared with what it makes of the folders, the variant for the CPU is
loaded by get_local_kernel and computes, and symbols of the libraries are held against the hub's rules.
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MANYLINUX = "manylinux_2_28"
OLDEST_PYTHON = "3.9"
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is looked for elsewhere

import torch  # noqa: E402
from kernel_abi_check import ObjectFile  # noqa: E402
from kernels import get_local_kernel  # noqa: E402
from kernels._rust import Build, Digest, DigestAlgorithm, Metadata  # noqa: E402
from kernels.variants import parse_variant  # noqa: E402


def formats(folder: Path) -> None:
    """build.toml, and name and metadata of each variant. Raises: whatever the hub's tools object to."""
    print(f"build.toml: {Build.open(ROOT).general}")
    for variant in sorted((folder / "build").iterdir()):
        parse_variant(variant.name)
        metadata = Metadata.read_from_file(variant / "metadata.json")
        assert metadata.digest is not None
        metadata.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, variant))
        print(f"{variant.name}: {metadata.id}, {metadata.backend}, {len(metadata.digest.files)} files as their digests")


def loads(folder: Path) -> None:
    """The variant for the CPU, as a user of `kernels` gets it."""
    kernel = get_local_kernel(folder, backend="cpu")
    x = torch.randn(100, 16)
    init = torch.randn(4)
    with kernel.use_backend("native"):
        y, _ = kernel.em_project(x, init)
    with kernel.use_backend("reference"):
        expected, _ = kernel.em_project(x, init)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    assert "emcl_kernels" not in sys.modules
    print(f"{kernel.__name__}: get_local_kernel loads it, and em_project on native equals the reference")


def symbols(folder: Path) -> int:
    """How many symbols of the libraries are newer than the hub allows."""
    count = 0
    for library in sorted(folder.rglob("*.so")):
        found = ObjectFile(str(library))
        python = found.check_python_abi(OLDEST_PYTHON)
        newer = found.check_manylinux(MANYLINUX)
        versions = sorted({f"{symbol.dep} {symbol.version}" for symbol in newer})
        print(
            f"{library.name}: {len(python)} symbols of Python, {len(newer)} newer than {MANYLINUX}"
            + (f" ({', '.join(versions)}); build it on an older system before it is published" if newer else "")
        )
        count += len(python) + len(newer)
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "build" / "hub", help="(default: %(default)s)")
    parser.add_argument("--strict", action="store_true", help="end with 1 if a symbol is newer than the hub allows")
    options = parser.parse_args()
    formats(options.folder)
    loads(options.folder)
    return 1 if symbols(options.folder) and options.strict else 0


if __name__ == "__main__":
    sys.exit(main())
