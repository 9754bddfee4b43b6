"""HDF5 of strangers: data sets of the file itself, and nothing that it points to."""

import random
from pathlib import Path

import numpy as np
import pytest
from hostile import held, spoiled

from emcl_train import extras
from emcl_train.errors import UserError
from emcl_train.reading.hdf5 import Hdf5Error, open_hdf5

h5py = pytest.importorskip("h5py")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["secret"] = np.ones(3)
    (tmp_path / "raw").write_bytes(b"x" * 24)

    found = tmp_path / "features.h5"
    with h5py.File(found, "w") as file:
        file["good"] = np.arange(6.0).reshape(2, 3)
        file.create_dataset("packed", data=np.zeros((9, 9)), compression="gzip")
        file["words"] = np.array([b"a", "d\u00e9j\u00e0".encode()], dtype=h5py.string_dtype())
        file["fixed"] = np.array([b"a", b"dog"])
        file["external"] = h5py.ExternalLink("other.h5", "secret")
        file["soft"] = h5py.SoftLink("/good")
        file.create_dataset("elsewhere", (3,), "f8", external=[(str(tmp_path / "raw"), 0, 24)])
        layout = h5py.VirtualLayout((3,), "f8")
        layout[:] = h5py.VirtualSource(str(other), "secret", (3,))
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("huge", (1 << 40,), "f8", chunks=(1 << 10,))
        file["nothing"] = h5py.Empty("f8")
        file["reference"] = np.array([file["good"].ref], dtype=h5py.ref_dtype)
        file.create_group("group")
        vlen = file.create_dataset("pickled", (1,), dtype=h5py.vlen_dtype(np.uint8))
        vlen[0] = np.frombuffer(b"cos\nsystem\n", np.uint8)
    return found


def test_numbers_and_words(path):
    with open_hdf5(path) as file:
        assert file.array("good").tolist() == [[0, 1, 2], [3, 4, 5]]
        assert file.shape("packed") == (9, 9)
        assert file.words("words") == ["a", "d\u00e9j\u00e0"]
        assert file.words("fixed") == ["a", "dog"]
        assert "good" in file
        assert "group/x" not in file
        assert len(file.group("group")) == 0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("external", "link to elsewhere"),
        ("soft", "link to elsewhere"),
        ("elsewhere", "other files"),
        ("virtual", "other files"),
        ("huge", "declares 8796093022208 bytes"),
        ("nothing", "no shape"),
        ("reference", "expected numbers"),
        ("pickled", "expected numbers"),
        ("group", "no data set"),
        ("absent", "has no absent"),
        ("words", "expected numbers"),
    ],
)
def test_what_is_no_array_of_numbers(path, name, said):
    with open_hdf5(path) as file, pytest.raises(Hdf5Error, match=said):
        file.array(name)


def test_a_filter_of_a_plugin_is_refused(tmp_path):
    path = tmp_path / "plugin.h5"
    with h5py.File(path, "w") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((4,))
        plist.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)  # zstd, which is a library of its own
        space = h5py.h5s.create_simple((4,))
        h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_FLOAT, space, plist)
    with open_hdf5(path) as file, pytest.raises(Hdf5Error, match="filter 32015, expected one of gzip"):
        file.array("x")


def test_a_chunk_larger_than_a_file_can_hold_is_refused(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (1,), "f8", maxshape=(None,), chunks=(1 << 28,))
        file.create_dataset("small", (1,), "f8", maxshape=(None,), chunks=(1 << 10,))
    with open_hdf5(path) as file:
        assert file.array("small").tolist() == [0]
        with pytest.raises(Hdf5Error, match="a chunk of x declares 2147483648 bytes"):
            file.array("x")


def test_a_filter_twice_is_refused(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((4,))
        plist.set_deflate(4)
        plist.set_deflate(4)
        h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_FLOAT, h5py.h5s.create_simple((4,)), plist)
    with open_hdf5(path) as file, pytest.raises(Hdf5Error, match="one filter several times"):
        file.array("x")


def test_one_long_word_many_times(tmp_path):
    """Each of them refers to its own text, which is as long as they say in all: no more than the file can hold."""
    path = tmp_path / "words.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("words", data=np.array([b"x" * 1000] * 300_000), compression="gzip")
    with open_hdf5(path) as file, pytest.raises(Hdf5Error, match="bytes"):
        file.words("words")


@pytest.mark.parametrize("content", [b"", b"cos\nsystem\n(S'ls'\ntR.", b"\x89HDF\r\n\x1a\n" + bytes(40)])
def test_another_file(tmp_path, content):
    path = tmp_path / "x.h5"
    path.write_bytes(content)
    with pytest.raises(Hdf5Error), open_hdf5(path):
        pass


def test_without_h5py_one_line_says_how_to_install_it(path, monkeypatch):
    monkeypatch.setattr(extras, "_is_there", lambda module: module != "h5py")
    said = r'^h5py of the extra "experts" is not installed; install with `pip install '
    with pytest.raises(UserError, match=said), open_hdf5(path):
        pass


def read(path: Path) -> None:
    try:
        with open_hdf5(path) as file:
            for name in file:
                try:
                    file.array(name)
                except Hdf5Error:
                    file.words(name)
    except Hdf5Error as error:
        raise UserError(f"{path}: {error}") from error


@pytest.mark.parametrize("seed", range(2))
def test_spoiled_files(path, tmp_path, seed):
    """The library's own code meets them, in a process of its own: it must not end, and no other file is written."""
    dice = random.Random(seed)
    for _ in range(3):
        data = spoiled(path.read_bytes(), dice)

        def make(folder: Path, data: bytes = data) -> Path:
            (folder / "features.h5").write_bytes(data)
            return folder / "features.h5"

        assert held(make, read) == ""
