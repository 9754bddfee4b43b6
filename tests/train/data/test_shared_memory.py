"""Too little shared memory for worker processes is one line with the way out."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_videos import write_data_set

from emcl_train.config import DataConfig
from emcl_train.data import loader, shared_memory
from emcl_train.data.annotations import load_annotations
from emcl_train.data.loader import clip_loader
from emcl_train.errors import UserError


@pytest.fixture
def data(tmp_path):
    return DataConfig(root=write_data_set(tmp_path / "set"), num_frames=2, image_size=16, workers=1)


def room(monkeypatch, size):
    monkeypatch.setattr(shared_memory.shutil, "disk_usage", lambda path: SimpleNamespace(total=size))


def test_a_batch_that_never_fits_is_refused_before_workers_start(data, monkeypatch):
    split = load_annotations(data).train
    room(monkeypatch, 4 * 2 * 3 * 16 * 16 - 1)
    with pytest.raises(
        UserError, match=r"a batch of 4 clips takes 0\.0 MB, and /dev/shm, .*has 0\.0 MB; pass --data\.w"
    ):
        list(clip_loader(split, data, 4))
    room(monkeypatch, 4 * 2 * 3 * 16 * 16)
    assert len(list(clip_loader(split, data, 4))) == 3
    room(monkeypatch, 0)
    data.workers = 0
    assert len(list(clip_loader(split, data, 4))) == 3


SAID = {
    "allocate": "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
    "RuntimeError: unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28)\n",
    "write": "unable to write to file </torch_20781_3443701634_0>",
    "bus": "DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that dataloader's workers are "
    "out of shared memory. Please try to raise your shared memory limit.",
    "files": "unable to open shared memory object </torch_1_2_0> in read-write mode: Too many open files (24)",
    "passed on": "received 0 items of ancdata",
}


class Ends:
    """A loader whose workers end."""

    def __init__(self, error):
        self.error = error

    def __iter__(self):
        raise self.error
        yield  # type: ignore[unreachable]


@pytest.mark.parametrize("said", SAID.values(), ids=SAID)
def test_workers_without_shared_memory_are_explained(said, data, monkeypatch):
    split = load_annotations(data).train
    monkeypatch.setattr(loader.DataLoader, "__iter__", lambda self: iter(Ends(RuntimeError(said))))
    with pytest.raises(UserError) as error:
        list(clip_loader(split, data, 4))
    assert "worker processes have no shared memory to hand batches over in (/dev/shm has" in str(error.value)
    assert "pass --data.workers 0, or give a container more, as in `docker run --shm-size 8g`" in str(error.value)
    assert "\n" not in str(error.value)


def test_shared_memory_that_cannot_be_opened_is_explained(data, monkeypatch):
    split = load_annotations(data).train
    monkeypatch.setattr(
        loader.DataLoader, "__iter__", lambda self: iter(Ends(PermissionError(13, "Permission denied")))
    )
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", Path("/nowhere"))
    with pytest.raises(UserError, match=r"\(see /nowhere\): .*Permission denied; pass --data\.workers 0"):
        list(clip_loader(split, data, 4))


@pytest.mark.parametrize("said", ["is killed by signal: Killed. ", "exited unexpectedly"])
def test_a_worker_that_the_system_ended_is_said(said, data, monkeypatch):
    split = load_annotations(data).train
    text = f"DataLoader worker (pid 12) {said}"
    monkeypatch.setattr(loader.DataLoader, "__iter__", lambda self: iter(Ends(RuntimeError(text))))
    with pytest.raises(UserError, match=r"a worker process that decodes clips (is killed by|exited).*; if the system"):
        list(clip_loader(split, data, 4))


def test_other_errors_keep_their_traceback(data, monkeypatch):
    split = load_annotations(data).train
    monkeypatch.setattr(loader.DataLoader, "__iter__", lambda self: iter(Ends(RuntimeError("a fault of ours"))))
    with pytest.raises(RuntimeError, match="a fault of ours"):
        list(clip_loader(split, data, 4))
