"""A mapped file has its space before it is written to: a full disk is an error, and no signal that ends the process."""

import errno
import os
import resource
import subprocess
import sys

import numpy as np
import pytest

from emcl_train.errors import UserError
from emcl_train.runs.mapped import new_mapped


def failing(code):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("shape", [(3, 5), (300, 700), (0, 5), (1,)])
@pytest.mark.parametrize("without", [None, errno.EOPNOTSUPP, errno.EINVAL, "no such call"])
def test_every_block_is_there_before_the_first_value(tmp_path, monkeypatch, shape, without):
    """By the call that reserves, and where a system or a file system has none, by writing."""
    if without == "no such call":
        monkeypatch.delattr(os, "posix_fallocate")
    elif without is not None:
        monkeypatch.setattr(os, "posix_fallocate", failing(without))
    array = new_mapped(tmp_path / "a.npy", shape, np.float32, what="a", way_out="")
    status = (tmp_path / "a.npy").stat()
    assert 512 * status.st_blocks >= status.st_size

    array[:] = 3
    array.flush()
    assert (np.load(tmp_path / "a.npy") == np.full(shape, 3, np.float32)).all()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_that_is_too_small_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, code):
    monkeypatch.setattr(os, "posix_fallocate", failing(code))
    with pytest.raises(UserError, match=r"the disk is full: out/text.npy takes 0.004 GB, and .* GB left; choose"):
        new_mapped(tmp_path / "a.npy", (1000, 1000), np.float32, what="out/text.npy", way_out="choose another")
    assert not any(tmp_path.iterdir())


def test_more_than_is_free_is_not_begun(tmp_path):
    with pytest.raises(UserError, match=r"takes 4e\+09 GB"):
        new_mapped(tmp_path / "a.npy", (10**9, 10**9), np.float32, what="a", way_out="")
    assert not any(tmp_path.iterdir())


def test_other_trouble_is_named_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        new_mapped(tmp_path / "a.npy", (10,), np.float32, what="a", way_out="")
    assert not any(tmp_path.iterdir())


def test_a_limit_on_the_size_of_files_ends_no_process(tmp_path):
    """As a quota would; the real call says so."""
    program = (
        "import sys; from pathlib import Path; import numpy as np; from emcl_train.runs.mapped import new_mapped\n"
        "new_mapped(Path(sys.argv[1]), (1000, 1000), np.float32, what='it', way_out='go elsewhere')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.npy")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "UserError: the disk is full: it takes 0.004 GB" in ended.stderr
    assert not any(tmp_path.iterdir())
