"""An op is written down once: what follows from a declaration, what it costs, and an op of somebody else's."""

import os
import subprocess
import sys
from collections.abc import Callable
from inspect import signature
from pathlib import Path

import pytest
import torch

import emcl_kernels
from emcl_kernels import EMCL, dispatch, em_project, use_backend
from emcl_kernels.backends import PythonBackend
from emcl_kernels.ops.define import OPS
from emcl_kernels.testing import clustered_rows, distinct_init

PACKAGE = str(Path(emcl_kernels.__file__).parent)


def python_calls(function: Callable[[], object]) -> list[str]:
    """Names of the Python functions of the package that a call runs, in order, after a first call."""
    function()
    calls: list[str] = []

    def note(frame: object, event: str, arg: object) -> None:
        code = frame.f_code  # type: ignore[attr-defined]
        if event == "call" and code.co_filename.startswith(PACKAGE):
            calls.append(code.co_name)

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls


CALLS = """
import torch
from emcl_kernels import EMCL, em_project
from tests.kernels.test_declaration import python_calls

torch.manual_seed(0)
x, init = torch.randn(64, 64), torch.randn(8)
layer = EMCL(8)
text, frames, mask = torch.randn(16, 64), torch.randn(16, 4, 64), torch.ones(16, 4).bool()
print(len(python_calls(lambda: em_project(x, init))))
print(len(python_calls(lambda: layer.pooled_similarity(text, frames, mask))))
print(len(python_calls(lambda: layer.pooled_similarity(text.requires_grad_(), frames, mask))))
"""


def test_a_call_runs_few_python_functions() -> None:
    """In a process without the type checks of the tests, which are calls too."""
    environment = {**os.environ, "EMCL_BACKEND": "reference"}
    run = subprocess.run([sys.executable, "-c", CALLS], env=environment, capture_output=True, text=True, check=True)
    project, pooled, training = map(int, run.stdout.split())
    # One of each op is its way through autograd, which is shorter than torch's own. Nine of the similarity look at
    # arguments that are None, frames that are masked, lengths that overflow and, in the reference, rows that cancel.
    assert project <= 15
    assert pooled <= 37
    assert training <= 39


@pytest.mark.parametrize("name", OPS)
def test_implementations_take_the_arguments_of_the_op(name: str) -> None:
    op = OPS[name]
    for backend in dispatch.BACKENDS.values():
        if isinstance(backend, PythonBackend) and name in backend.functions:
            given = list(signature(backend.functions[name]).parameters)
            assert given == list(op.arguments), f"{name} of {backend.name}"


@pytest.mark.parametrize("name", OPS)
def test_the_libraries_have_the_op_under_its_name(name: str) -> None:
    for namespace in (torch.ops.emcl_native, torch.ops.emcl_emulated):
        schema = getattr(namespace, name).default._schema
        # A library sees by the sizes of its outputs which are needed.
        arguments = list(OPS[name].arguments)[: len(OPS[name].arguments) - OPS[name].switches]
        assert [argument.name for argument in schema.arguments][: len(arguments)] == arguments
        assert sum(argument.is_write for argument in schema.arguments) == len(OPS[name].outputs)


def test_a_choice_is_made_again_when_another_backend_is_asked_for() -> None:
    x, init = clustered_rows(40, 16, dtype=torch.float32), distinct_init(4, dtype=torch.float32)
    em_project(x, init)  # a choice that nobody asked for is remembered
    with use_backend("reference"):
        by_reference = em_project(x, init)[0]
        with use_backend("native"):
            by_native = em_project(x, init)[0]
        assert torch.equal(em_project(x, init)[0], by_reference)
    assert not torch.equal(by_native, by_reference)


def test_relative_weight_is_a_setting_of_the_ops() -> None:
    x, init = clustered_rows(40, 16), distinct_init(4)
    layer = EMCL(4, scale="relative").double()
    layer.bases.copy_(init)
    assert torch.equal(layer.eval()(x), em_project(x, init, relative=True)[0])
    added = em_project(x, init, relative=True, residual_weight=0.5)[0] - x
    assert torch.linalg.vector_norm(added) == pytest.approx(0.5 * float(torch.linalg.vector_norm(x)))
