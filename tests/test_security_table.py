"""What could run something that a file holds, by the source: each use stands in the table of docs/security.md."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("emcl_kernels", "emcl_train")
TABLE = ROOT / "docs" / "security.md"

MODULES = {
    "cloudpickle", "code", "ctypes", "dill", "importlib", "joblib", "marshal", "multiprocessing", "pickle", "pkgutil",
    "runpy", "shelve", "subprocess", "yaml",
}  # fmt: skip
"""Modules that run code, or read what may hold some."""
CALLS = {
    "from_pretrained", "from_str", "from_file", "from_buffer", "load_library", "import_module", "get_kernel", "CDLL",
    "torch.load", "torch.hub.load", "torch.jit.load", "np.load", "numpy.load", "np.memmap", "loadtxt", "ZipFile",
    "eval", "exec", "compile", "__import__", "input", "os.system", "os.popen", "os.execv",
}  # fmt: skip
"""Functions of which a file could make use."""
NEVER = {"eval", "exec", "compile", "__import__", "input", "os.system", "os.popen", "torch.jit.load", "torch.hub.load"}
"""Functions that nothing here calls at all."""
REQUIRED = {
    "from_pretrained": ("trust_remote_code", False),
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
}
"""Arguments that a call has to have."""


def calls_in(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Each call of a watched function, by its name in CALLS."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        last = name.rpartition(".")[2]
        if name in CALLS:
            yield name, node
        elif "." in name and last in CALLS and last not in NEVER:
            yield last, node


def uses(source: str) -> set[str]:
    """Watched modules that a source imports, and watched functions that it calls."""
    tree = ast.parse(source)
    found = {name for name, _ in calls_in(tree)}
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        found |= {f"import {name.split('.')[0]}" for name in names if name.split(".")[0] in MODULES}
    return found


def found_in_source() -> set[tuple[str, str]]:
    return {
        (str(path.relative_to(ROOT)), use)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for use in uses(path.read_text(encoding="utf-8"))
    }


def listed() -> set[tuple[str, str]]:
    """The table's rows: a file, the uses in it, and why they are harmless."""
    rows = re.findall(r"^\| `([\w/]+\.py)` \| ([^|]+) \|", TABLE.read_text(encoding="utf-8"), re.MULTILINE)
    return {(file, use) for file, cell in rows for use in re.findall(r"`([^`]+)`", cell)}


def test_each_use_stands_in_the_table_and_each_row_has_its_use() -> None:
    assert sorted(found_in_source() - listed()) == []
    assert sorted(listed() - found_in_source()) == []


def test_calls_say_that_nothing_is_run() -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for name, call in calls_in(ast.parse(path.read_text(encoding="utf-8"))):
                place = f"{path.relative_to(ROOT)}, line {call.lineno}: {name}"
                assert name not in NEVER, place
                if name in REQUIRED:
                    argument, value = REQUIRED[name]
                    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                    assert given.get(argument) == str(value), f"{place} without {argument}={value}"


@pytest.mark.parametrize(
    ("source", "use"),
    [
        ("import pickle", "import pickle"),
        ("from importlib.util import find_spec", "import importlib"),
        ("def late():\n    import yaml", "import yaml"),
        ("x = AutoModel.from_pretrained(name)", "from_pretrained"),
        ("x = torch.load(path)", "torch.load"),
        ("x = eval(text)", "eval"),
        ("x = input('go on? ')", "input"),
        ("x = Tokenizer.from_file(path)", "from_file"),
        ("x = np.load(path)", "np.load"),
    ],
)
def test_a_use_is_found(source: str, use: str) -> None:
    assert use in uses(source)


@pytest.mark.parametrize("source", ["model.eval()", "re.compile('x')", "torch.compile(f)", "from . import pickle"])
def test_what_only_has_such_a_name_is_not(source: str) -> None:
    assert uses(source) == set()
