"""Fixtures of the tests with peft, which `make test-lora` runs in an environment of its own."""

import sys
from pathlib import Path

import pytest
import torch

TRAIN = Path(__file__).resolve().parent.parent / "train"
sys.path[:0] = [str(TRAIN), str(TRAIN / "models")]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Warnings of peft are not ours to mend; our own are errors."""
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("default"), append=False)
        item.add_marker(pytest.mark.filterwarnings("error:::emcl_train"), append=False)


@pytest.fixture(autouse=True)
def one_thread():
    """The same sums in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
