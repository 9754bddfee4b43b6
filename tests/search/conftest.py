"""Fixtures of the tests of search."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "train"))  # for its videos and runs
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "train/models"))  # for its towers

from small_library import make, small_clip, write_films


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Warnings of the packages of this extra are not ours to mend; our own are errors."""
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("default"), append=False)
        item.add_marker(pytest.mark.filterwarnings("error:::emcl_train"), append=False)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    """A cache folder of the tests, in place of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def fill_uninitialized_memory() -> None:
    """Not here: what other libraries do with memory is theirs."""


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A folder with films and a model, nothing of it indexed."""
    write_films(tmp_path / "films")
    small_clip(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a library, with a bank, that no test changes."""
    folder = tmp_path_factory.mktemp("indexed")
    write_films(folder / "films")
    small_clip(folder)
    make(folder, refine=True)
    return folder
