"""Fixtures of the tests with OpenCLIP, which `make test-openclip` runs in an environment of its own."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "train"))  # for its runs
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "train/models"))  # for its towers
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "search"))  # for its films


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Warnings of OpenCLIP, timm and torchvision are not ours to mend; our own are errors."""
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("default"), append=False)
        item.add_marker(pytest.mark.filterwarnings("error:::emcl_train"), append=False)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small model of each kind, as OpenCLIP writes it."""
    from small_open_clips import KINDS, write_open_clip

    root = tmp_path_factory.mktemp("openclip")
    return {kind: write_open_clip(kind, root / kind) for kind in KINDS}
