"""What is imported when, and what is said where a package is missing."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OF_OTHERS = ("sentence_transformers", "mteb", "datasets", "faiss", "lancedb", "pyarrow", "transformers")
WITHOUT = """
import sys
for name in {missing!r}:
    sys.modules[name] = None
import numpy as np
try:
    {code}
except ImportError as error:
    print(error)
"""


def said(code: str, missing: tuple[str, ...] = ()) -> str:
    program = WITHOUT.format(missing=missing, code=code)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_package_itself_imports_none_of_them() -> None:
    code = (
        f"import emcl_kernels, emcl_kernels.integrations.indexes; print([m for m in {OF_OTHERS} if m in sys.modules])"
    )
    assert said(code) == "[]"


@pytest.mark.parametrize(
    ("code", "missing", "line"),
    [
        (
            "import emcl_kernels.integrations.sentence_transformers",
            ("sentence_transformers",),
            "emcl_kernels.integrations.sentence_transformers needs the package sentence-transformers, 6.0 or later; "
            "pip install 'emcl[sentence-transformers]'",
        ),
        (
            "import emcl_kernels.integrations.mteb",
            ("mteb",),
            "emcl_kernels.integrations.mteb needs the package mteb, 2.26 or later; pip install 'emcl[mteb]'",
        ),
        (
            "from emcl_kernels.integrations.indexes import faiss_index; faiss_index(np.ones((2, 2)))",
            ("faiss",),
            "emcl_kernels.integrations.indexes.faiss_index needs the package faiss-cpu; pip install 'emcl[search]'",
        ),
        (
            "from emcl_kernels.integrations.indexes import lancedb_table; lancedb_table('a', 'b', np.ones((2, 2)))",
            ("lancedb",),
            "emcl_kernels.integrations.indexes.lancedb_table needs the package lancedb; pip install 'emcl[search]'",
        ),
        (
            "from emcl_kernels.integrations.indexes import write_parquet; write_parquet('a', np.ones((2, 2)))",
            ("pyarrow",),
            "emcl_kernels.integrations.indexes.write_parquet needs the package pyarrow; pip install 'emcl[search]'",
        ),
    ],
    ids=["sentence-transformers", "mteb", "faiss", "lancedb", "pyarrow"],
)
def test_one_line_names_what_is_missing(code: str, missing: tuple[str, ...], line: str) -> None:
    assert said(code, missing) == line
