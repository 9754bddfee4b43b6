"""help(torch.ops.emcl.NAME): schema, shapes, dtypes, errors and an example; and the site's list of the ops."""

import copy
import inspect
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from op_arguments import names

import emcl_kernels

ops = torch.ops.emcl
PUBLIC = [name for name in names() if hasattr(emcl_kernels, name)]
PAGE = Path(__file__).resolve().parents[2] / "docs" / "api" / "emcl_kernels.md"


@pytest.mark.parametrize("name", PUBLIC)
def test_help_of_an_op_is_that_of_its_function(name: str) -> None:
    packet = getattr(ops, name)
    shown = pydoc.plain(pydoc.render_doc(packet))
    of_function = inspect.getdoc(getattr(emcl_kernels, name))
    assert of_function is not None
    assert packet.__doc__.endswith(of_function)
    assert packet.default.__doc__ == packet.__doc__
    assert f"torch.ops.emcl.{name}(Tensor " in shown
    for part in ("Args:", "Returns:", "Raises:", "Examples:", "TypeError", "float32", "`[", ">>> "):
        assert part in shown


@pytest.mark.skipif(not PAGE.is_file(), reason="there is no checkout with pages")
def test_the_site_lists_the_ops_with_their_schemas() -> None:
    blocks = re.findall(r"^```text\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    listed = [" ".join(op.split()).removeprefix("torch.ops.") for op in "".join(blocks).split("\n\n")]
    found = {str(torch._C.parse_schema(op.replace(".", "::", 1))) for op in listed}
    assert found == {str(getattr(ops, name).default._schema) for name in PUBLIC}
    assert len(PUBLIC) == 6


def test_an_op_is_still_copied_as_itself() -> None:
    for op in (ops.em_project, ops.em_project.default):
        assert copy.deepcopy(op) is op


def test_an_interpreter_without_docstrings_has_the_schema() -> None:
    command = "import torch, emcl_kernels; print(torch.ops.emcl.em_fit.__doc__)"
    done = subprocess.run([sys.executable, "-OO", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("torch.ops.emcl.em_fit(Tensor gram, Tensor logits")
