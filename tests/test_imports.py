"""The arrows of the design: who may import whom. Read from the source, so that no import has to be run."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A unit is a module or a sub-package. It may import units of the rows above its own, and nothing of its own row. The
# modules of emcl_kernels.ops are units themselves: em.py stands between those that it needs and those that need it.
LAYERS = {
    "emcl_kernels": [
        {"reference", "checks", "environment"},
        {"forms"},
        {"backends"},
        {"tables"},
        {"dispatch"},
        {"ops.__init__", "ops.autograd"},
        {"ops.define"},
        {"ops.moments", "ops.fit", "ops.reconstruct", "ops.snapshot", "ops.finite"},
        {"em"},
        {"ops.project", "ops.pooled"},
        {"stream"},
        {"layer", "refine"},
        {"__init__", "testing"},
        {"info", "tune", "integrations"},
    ],
    "emcl_train": [
        {
            "errors",
            "flags",
            "terminal",
            "evaluation.metrics",
            "evaluation.answers",
            "evaluation.rerank",
            "evaluation.bootstrap",
        },
        {"kinds", "extras"},
        {"config", "endings"},
        {"recipes", "reading", "device", "experts"},
        {"runs"},
        {"processes"},
        {"weights"},
        {"data", "models"},
        {"evaluation.__init__", "evaluation.table"},
        {"evaluation.encode", "evaluation.provenance", "report"},
        {"evaluation.similarities", "evaluation.on_features"},
        {"evaluation.run", "evaluation.answering"},
        {"training"},
        {"tools"},
        {"encoder"},
        {"search"},
        {"corpora"},
        {"__init__", "commands"},
        {"cli"},
        {"__main__"},
    ],
}
DECLARATIONS = {"Op", "Composite", "Plain"}
REFERENCE_IMPORTS = {"torch", "jaxtyping", "math", "collections", "typing"}
MODULES = sorted(path for package in LAYERS for path in (ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    """emcl_kernels/backends/cpu.py -> emcl_kernels.backends.cpu; a package keeps its __init__."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports(module: str, source: str) -> Iterator[tuple[str, str | None]]:
    """Every (module, name or None) that a source imports, wherever it stands, relative ones resolved."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            target = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((target, alias.name) for alias in node.names)


def exported(package: str) -> set[str]:
    """`__all__` of a package, from its source."""
    for node in ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            return set(ast.literal_eval(node.value))
    raise AssertionError(f"{package} has no __all__")


def unit_of(module: str) -> str:
    """emcl_kernels.ops.fit -> ops.fit; emcl_kernels.backends.cpu -> backends."""
    package, *parts = module.split(".")
    dotted = ".".join(parts[:2])
    return dotted if any(dotted in units for units in LAYERS[package]) else parts[0]


def layer(package: str, unit: str) -> int:
    for index, units in enumerate(LAYERS[package]):
        if unit in units:
            return index
    raise AssertionError(f"{package}.{unit} has no place in LAYERS; give it one")


def imported_unit(package: str, target: str, name: str | None) -> str:
    """The unit behind `import package.unit`, `from package.unit import x` and `from package import unit_or_name`."""
    known = {unit for units in LAYERS[package] for unit in units}
    longest = [*target.split(".")[1:], *([name] if name else [])]
    for length in range(min(2, len(longest)), 0, -1):
        unit = ".".join(longest[:length])
        if unit in known:
            return unit
    if f"{longest[0]}.__init__" in known if longest else False:
        return f"{longest[0]}.__init__"
    return longest[0] if len(target.split(".")) > 1 else "__init__"


@cache
def declared_in() -> dict[str, str]:
    """For each op of torch.ops.emcl, the unit whose source declares it; a backward op goes with its forward op."""
    found = {}
    for path in (ROOT / "emcl_kernels").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in DECLARATIONS:
                schema = ast.unparse(node.args[0]).lstrip("f").strip("'\"")
                name = schema.partition("(")[0]
                if name.isidentifier():
                    found[name] = found[f"_{name.lstrip('_')}_backward"] = unit_of(name_of(path))
    return found


def called_ops(source: str) -> Iterator[str]:
    """Every NAME of `torch.ops.emcl.NAME` in a source."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "torch.ops.emcl":
            yield node.attr


def violations(module: str, source: str) -> list[str]:
    """What a module imports, or calls through torch.ops.emcl, and may not, in words."""
    package, unit = module.split(".")[0], unit_of(module)
    found = []
    for op in called_ops(source):
        other = declared_in().get(op)
        if other is None:
            found.append(f"calls torch.ops.emcl.{op}, which no unit declares")
        elif package == "emcl_kernels" and other != unit and layer(package, other) >= layer(package, unit):
            found.append(f"calls torch.ops.emcl.{op} of {other}, which is not below {unit}")

    for target, name in imports(module, source):
        top = target.split(".")[0]
        if top in ("tests", "benchmarks"):
            found.append(f"imports {target}: tests and benchmarks are above everything")
        elif top == "emcl_train" and package == "emcl_kernels":
            found.append(f"imports {target}: the kernels do not know the training")
        elif top == "emcl_kernels" and package == "emcl_train":
            public = target == "emcl_kernels.integrations" or name in exported(top) | {"__version__"}
            if target not in (top, "emcl_kernels.integrations") or not public:
                found.append(f"imports {target} {name or ''}: only `from emcl_kernels import` a name of its __all__")
        elif module == "emcl_kernels.reference" and top not in REFERENCE_IMPORTS:
            found.append(f"imports {target}: the reference is torch only")
        elif top == package:
            other = imported_unit(package, target, name)
            if other != unit and layer(package, other) >= layer(package, unit):
                found.append(f"imports {other}, which is not below {unit}")
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_follow_the_arrows(path: Path) -> None:
    assert violations(name_of(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_has_a_place(path: Path) -> None:
    module = name_of(path)
    layer(module.split(".")[0], unit_of(module))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("emcl_kernels.reference", "from emcl_kernels import checks"),
        ("emcl_kernels.reference", "import numpy"),
        ("emcl_kernels.backends.cpu", "from emcl_kernels.dispatch import choose"),
        ("emcl_kernels.backends.cpu", "from ..ops.fit import em_fit"),
        ("emcl_kernels.ops.define", "from emcl_kernels.ops.fit import op"),
        ("emcl_kernels.ops.fit", "from emcl_kernels.ops import moments"),
        ("emcl_kernels.ops.reconstruct", "from emcl_kernels import em"),
        ("emcl_kernels.em", "import emcl_kernels.ops.project"),
        ("emcl_kernels.em", "y = torch.ops.emcl.em_project(x, init)"),
        ("emcl_kernels.backends.gpu", "y = torch.ops.emcl.em_reconstruct(x, r, s)"),
        ("emcl_kernels.ops.fit", "d = torch.ops.emcl._em_moments_backward(d, d, x)"),
        ("emcl_kernels.layer", "y = torch.ops.emcl.em_projct(x, init)"),
        ("emcl_kernels.dispatch", "def late():\n    from emcl_kernels import ops"),
        ("emcl_kernels.layer", "import emcl_train.training.losses"),
        ("emcl_kernels.ops.fit", "from benchmarks import cases"),
        ("emcl_train.data.loader", "from emcl_train.models.clip import CLIPTowers"),
        ("emcl_train.models.retrieval", "from emcl_train.data.text import load_tokenizer"),
        ("emcl_train.models.retrieval", "from emcl_kernels.ops import em_project"),
        ("emcl_train.models.retrieval", "from emcl_kernels import dispatch"),
        ("emcl_train.models.retrieval", "import emcl_kernels.ops"),
        ("emcl_train.evaluation.run", "from emcl_train.training.trainer import train"),
        ("emcl_train.evaluation.metrics", "from emcl_train.errors import UserError"),
        ("emcl_train.evaluation.rerank", "from emcl_train.flags import flag"),
        ("emcl_train.evaluation.table", "from emcl_train.evaluation.encode import Embeddings"),
        ("emcl_train.report.terminal", "from emcl_train.training.trainer import train"),
        ("emcl_train.report.terminal", "from emcl_train.evaluation.run import evaluate_run"),
        ("emcl_train.report.html", "from emcl_train.evaluation import encode"),
        ("emcl_train.config", "from emcl_train import recipes"),
    ],
)
def test_an_import_against_the_arrows_is_found(module: str, source: str) -> None:
    assert violations(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("emcl_train.models.retrieval", "from emcl_kernels import EMCL"),
        ("emcl_train.training.trainer", "from emcl_train.data.loader import training_loader"),
        ("emcl_train.report.compare", "from emcl_train.evaluation.bootstrap import paired_bootstrap"),
        ("emcl_train.data.loader", "from emcl_train.data.video import decode_frames"),
        ("emcl_kernels.backends.triton.fit", "from .common import tile"),
        ("emcl_kernels.ops.define", "from emcl_kernels.dispatch import choose"),
        ("emcl_kernels.ops.project", "from emcl_kernels import dispatch, em, reference"),
        ("emcl_kernels.layer", "y = torch.ops.emcl.em_project(x, init)"),
    ],
)
def test_an_import_along_the_arrows_passes(module: str, source: str) -> None:
    assert violations(module, source) == []
