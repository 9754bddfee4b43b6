"""Fixtures of tests that train."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from several_processes import whole_run

from emcl_train import endings
from emcl_train.training import trainer


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of the tests, in place of the user's; of the processes that they start as well."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For tensors so small that two threads would wait for each other, and for forks, which lose their parent's."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The rendered data set and the folder of a whole tiny run of one process on it."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "write_report", lambda out: out)
        whole_run(folder / "set", folder)
    return folder / "set", folder / "run"


@pytest.fixture(scope="session")
def scene_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of films and a model, which no test changes."""
    from corpus_scene import put_scene

    return put_scene(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def scene(scene_once: Path, tmp_path: Path) -> Path:
    """The same, for one test to change."""
    shutil.copytree(scene_once, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(autouse=True)
def signals_come_back():
    """The handlers of this process afterwards: a program that was told to end ignores what tells it once more."""
    before = {number: signal.getsignal(number) for number in endings.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
