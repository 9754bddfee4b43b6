"""Fixtures of the tests of corpora."""

import shutil
from pathlib import Path

import pytest
from corpus_scene import put_scene


@pytest.fixture(scope="session")
def scene_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films and a model, which no test changes."""
    return put_scene(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def scene(scene_once: Path, tmp_path: Path) -> Path:
    """The same, for one test to change."""
    shutil.copytree(scene_once, tmp_path, dirs_exist_ok=True)
    return tmp_path
