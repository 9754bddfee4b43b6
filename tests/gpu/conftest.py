"""Fixtures of the GPU tests, which are collected only in the processes that tests/gpu/run.py starts."""

import os

import pytest
import torch
from compare import unavailable

if "EMCL_TEST_PROGRESS" not in os.environ:
    collect_ignore_glob = ["*"]


@pytest.fixture(autouse=True, scope="session")
def two_threads() -> None:
    """In place of the two threads of the other tests: float64 references of real sizes are computed here."""
    torch.set_num_threads(int(os.environ["EMCL_TEST_THREADS"]))


@pytest.fixture(autouse=True)
def available(request: pytest.FixtureRequest) -> None:
    """Skip what needs a backend that is not here; test_backend_is_available fails for that."""
    if "backend" in request.fixturenames and "available" not in request.node.name:
        backend = request.getfixturevalue("backend")
        if reason := unavailable(backend):
            pytest.skip(f"{backend}: {reason}")
