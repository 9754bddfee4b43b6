"""Pickles of arrays: every protocol, nothing run, nothing larger than the file."""

import collections
import pickle
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from expert_files import hostile_pickle, python2_pickle
from hostile import held, spoiled

from emcl_train.errors import UserError
from emcl_train.reading.array_pickles import read_arrays

NAN = float("nan")
VALUES = {
    "video0": np.arange(2000, dtype=np.float32).reshape(20, 100),
    "video1": NAN,
    "video2": [np.ones((3, 200)), np.zeros((0, 5), np.float16)],
    "video3": np.asfortranarray(np.arange(600.0).reshape(20, 30)),
    "video4": np.float64("nan"),
    "video5": np.arange(3, dtype=">i4"),
    "vidéo": np.ones(3, np.float16),
    "video6": None,
    "video7": np.array([True, False]),
}


def written(folder: Path, data: bytes) -> Path:
    path = folder / "features.pickle"
    path.write_bytes(data)
    return path


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, list):
        pairs = zip(found, expected, strict=False)
        return len(found) == len(expected) and all(same(one, other) for one, other in pairs)
    if isinstance(expected, np.ndarray):
        return found.dtype == expected.dtype and np.array_equal(found, expected)
    return found is None


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol(tmp_path, protocol):
    found = read_arrays(written(tmp_path, pickle.dumps(VALUES, protocol)))
    assert found.keys() == VALUES.keys()
    assert all(same(found[name], value) for name, value in VALUES.items())


def test_python_2(tmp_path):
    of_then = {name: VALUES[name] for name in ("video0", "video1", "video2", "vidéo")}
    found = read_arrays(written(tmp_path, python2_pickle(of_then)))
    assert all(same(found[name], value) for name, value in of_then.items())


def test_dicts_of_collections_and_arrays_of_arrays(tmp_path):
    ragged = np.empty(2, dtype=object)
    ragged[:] = [np.ones(3), np.ones((2, 2))]
    content = collections.defaultdict(list, {"a": ragged})
    (found,) = read_arrays(written(tmp_path, pickle.dumps(content, 2))).values()
    assert [array.shape for array in found] == [(3,), (2, 2)]
    content = collections.OrderedDict(a=np.ones(2))
    assert list(read_arrays(written(tmp_path, pickle.dumps(content, 4)))) == ["a"]


def test_arrays_stay_in_the_file(tmp_path):
    """An array of a hundred megabytes is read without memory for it: it is a view of the mapped file."""
    import tracemalloc

    path = written(tmp_path, pickle.dumps({"a": np.zeros(13 << 20)}, 4))
    tracemalloc.start()
    found = read_arrays(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found["a"].nbytes == 13 << 23
    assert most < 8 << 20  # most of it is what checks types in tests


class Runs:
    def __reduce__(self):
        return print, ("code was run",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (hostile_pickle(Path("x")), "os.system"),
        (pickle.dumps({"a": Runs()}), "builtins.print"),
        (pickle.dumps({"a": np.dtype([("x", "f4"), ("y", "f4")])}), "type"),
        (b"", "empty"),
        (b"<html>", "an instruction 60 that pickles do not have"),
        (pickle.dumps([1.0]), r"holds \[1.0\], expected a dict"),
        (pickle.dumps({}), "expected a dict"),
        (pickle.dumps({"a": "words"}), 'a: it has "words", expected an array'),
        (pickle.dumps({"a": 1.0}), "a: it has 1.0"),
        (pickle.dumps({"a": np.float32(1)}), "a: it has 1.0"),
        (pickle.dumps({"a": [NAN]}), "its list has NaN"),
        (pickle.dumps({"a": np.array(["x"])}), "type 'U1'"),
        (pickle.dumps({"a": np.ones(2, "f4")}).replace(b"f4", b"f3"), "f3.*expected numbers"),
        (pickle.dumps({"a": np.ones(2, "f4")}).replace(b"\x02f4", b"\x03f\xc2\xb2"), "f\u00b2.*expected numbers"),
        (pickle.dumps({3: np.ones(2)}), "the id 3, expected a text"),
        (pickle.dumps({(3,): np.ones(2)}), "neither a text nor a number"),
        (pickle.dumps({"a": np.ones(900)}, 4)[:-300], "bytes"),
        (pickle.dumps({"a": np.ones(900)}, 4).replace(struct.pack("<I", 7200), struct.pack("<I", 1 << 31)), "declares"),
        (pickle.dumps({"a": np.ones(7, np.float32)}, 2).replace(b"K\x07", b"K\x08"), "has 28 bytes"),
        (b"\x80\x02}\x8a\x08" + b"\xff" * 7 + b"\x7f" + b"K\x01s.", "expected a text"),
    ],
)
def test_what_is_refused(tmp_path, content, said):
    with pytest.raises(ValueError, match=said):
        read_arrays(written(tmp_path, content))


def test_one_array_under_many_ids_is_not_many_arrays(tmp_path):
    array = np.zeros(1 << 20)
    path = written(tmp_path, pickle.dumps({str(n): array for n in range(100)}, 4))
    with pytest.raises(ValueError, match="refer to the same arrays so often"):
        read_arrays(path)


def read(path: Path) -> object:
    try:
        return read_arrays(path)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


@pytest.mark.parametrize("seed", range(6))
def test_spoiled_files_are_refused_or_read_in_bounds(seed, tmp_path):
    """In a process of its own, with little memory and time."""
    dice = random.Random(seed)
    protocol = dice.choice([0, 1, 2, 3, 4, 5])
    data = python2_pickle({"a": np.ones((4, 200)), "b": NAN}) if seed % 3 == 0 else pickle.dumps(VALUES, protocol)
    for _ in range(3):
        spoilt = spoiled(data, dice)
        assert held(lambda folder, spoilt=spoilt: written(folder, spoilt), read, tmp_path) == ""


def test_hostile_file_runs_nothing(tmp_path):
    from hostile import MARK

    make = lambda folder: written(folder, hostile_pickle(folder / MARK))  # noqa: E731
    assert held(make, read, tmp_path, refused=True) == ""
