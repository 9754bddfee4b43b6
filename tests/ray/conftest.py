"""Fixtures of the tests with Ray, which `make test-ray` runs in an environment of its own."""

import sys
from pathlib import Path

import pytest

TRAIN = Path(__file__).resolve().parent.parent / "train"
sys.path.insert(0, str(TRAIN))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Warnings of Ray are not ours to mend; our own are errors."""
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("default"), append=False)
        item.add_marker(pytest.mark.filterwarnings("error:::emcl_train"), append=False)


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films and a model."""
    from corpus_scene import put_scene

    return put_scene(tmp_path_factory.mktemp("ray"))


@pytest.fixture(scope="session")
def cluster():
    """A Ray of this machine with two cores, for all tests."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # or a busy machine would let them wait for minutes
        patch.setenv("PYTHONPATH", str(TRAIN.parent.parent))
        ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False, object_store_memory=1 << 27)
        yield ray
        ray.shutdown()


@pytest.fixture(autouse=True)
def fill_uninitialized_memory() -> None:
    """Not here: what other libraries do with memory is theirs."""
