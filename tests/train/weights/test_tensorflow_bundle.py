"""TensorFlow's checkpoints, read without it: what was written comes back, and every lie is one clear error."""

import os
import random
import re

import numpy as np
import pytest
from bundle_writer import SNAPPY, block, checksum, header, number, table, write_bundle
from hostile import held

from emcl_train.errors import UserError
from emcl_train.reading.crc32c import FEW, PIECE, ROW_BYTES, crc32c, unmasked
from emcl_train.reading.protobuf import fields_of, varint
from emcl_train.weights.tensorflow_bundle import TensorFlowBundle


def arrays():
    random = np.random.default_rng(0)
    return {
        "cap/fc1/weights": random.normal(size=(3, 4)).astype(np.float32),
        "cap/fc1/biases": random.normal(size=(4,)),
        "cap/fc2/weights": random.normal(size=(2, 3, 1, 5)).astype(np.float16),
        "empty": np.zeros((0, 3), np.float32),
        "global_step": np.array(400_000, np.int64),
        "numbers": np.array([-1, 7], np.int32),
        "größe": np.ones((1,), np.float32),
    }


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("block_bytes", [1, 40, 4096])
def test_what_was_written_comes_back(tmp_path, shards, block_bytes):
    given = arrays()
    prefix = write_bundle(tmp_path / "model.ckpt-400000", given, shards=shards, block_bytes=block_bytes)

    bundle = TensorFlowBundle(prefix)

    assert list(bundle.variables) == sorted(given, key=str.encode)
    for name, array in given.items():
        found = bundle.read(name)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("ending", ["", ".index", ".meta", ".data-00000-of-00001"])
def test_any_file_of_a_checkpoint_stands_for_it(tmp_path, ending):
    write_bundle(tmp_path / "model.ckpt-1", arrays())
    assert TensorFlowBundle(tmp_path / f"model.ckpt-1{ending}").path == tmp_path / "model.ckpt-1"


def test_a_checksum_is_that_of_the_standard():
    """RFC 3720, B.4, and the digits that such a checksum is known by."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"") == 0


@pytest.mark.parametrize("length", [1, 3, 255, FEW, FEW + 1, FEW + ROW_BYTES + 3, 70_001])
def test_a_checksum_of_any_length_goes_on_from_any_place(length):
    data = np.random.default_rng(length).bytes(length)
    whole = crc32c(data)
    assert whole == unmasked(checksum(data))
    for place in (0, 1, length // 3, length - 1, length):
        assert crc32c(data[place:], crc32c(data[:place])) == whole


def test_a_checksum_of_several_pieces():
    data = np.random.default_rng(0).bytes(1 << 12) * (PIECE // (1 << 12) + 1) + b"odd"
    assert crc32c(data) == crc32c(data[PIECE - 5 :], crc32c(data[: PIECE - 5]))


def test_numbers_of_any_length():
    for value in (0, 1, 127, 128, 1 << 35, (1 << 64) - 1):
        encoded = number(1, value)[1:] or b"\0"
        assert varint(encoded, 0) == (value, len(encoded))
    assert list(fields_of(number(5, -3))) == [(5, -3)]
    with pytest.raises(ValueError, match="more than 64 bits"):
        varint(b"\xff" * 11, 0)
    with pytest.raises(ValueError, match="more than 64 bits"):
        varint(b"\xff" * 9 + b"\x02", 0)
    with pytest.raises(ValueError, match="ends within a number"):
        varint(b"\x80", 0)


HUGE = 1 << 62
LIES = {
    "a size beyond the file": ({"size": HUGE}, "come to"),
    "an offset beyond the file": ({"offset": HUGE}, "cap/fc1/weights ends at byte"),
    "an offset of less than nothing": ({"offset": -1}, "at byte -1"),
    "a size of less than nothing": ({"size": -48}, "declares the shape"),
    "a shape of less than nothing": ({"shape": (-3, -4)}, "declares the shape"),
    "a shape beyond its bytes": ({"shape": (HUGE, HUGE)}, r"has 48 bytes, and its shape .* needs"),
    "a shape of many axes": ({"shape": (1,) * 1000}, "declares the shape"),
    "another checksum": ({"crc": 5}, "cap/fc1/weights do not have the checksum"),
    "bytes of another variable": ({"offset": 4}, "do not have the checksum"),
    "a file that is not there": ({"shard": 7}, "data-00007-of-00001 is missing"),
    "a text": ({"dtype": 7}, "TensorFlow's type 7"),
    "slices": ({"slices": True}, "stored in slices"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_about_a_variable_is_one_clear_error(tmp_path, lie):
    fields, message = LIES[lie]
    prefix = write_bundle(tmp_path / "model.ckpt-1", arrays(), lies={"cap/fc1/weights": fields})
    with pytest.raises(UserError, match=message) as error:
        TensorFlowBundle(prefix).read("cap/fc1/weights")
    assert str(prefix) in str(error.value)


def test_variables_that_share_their_bytes_are_refused(tmp_path):
    """A small file could stand for any number of arrays."""
    many = {f"w{index}": np.ones(100, np.float32) for index in range(9)}
    prefix = write_bundle(tmp_path / "model.ckpt-1", many, lies={name: {"offset": 0} for name in many})
    data = tmp_path / "model.ckpt-1.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:400])
    with pytest.raises(UserError, match="come to 3600 bytes, and it has 400"):
        TensorFlowBundle(prefix)


@pytest.mark.parametrize(
    ("about", "message"),
    [(header(1, endianness=1), "other byte order"), (header(1, needs=2), "reader of version 2"),
     (header(0), "0 files of data"), (header(-1), "-1 files"), (b"\x0f", "kind 7"), (b"\x0a\x7fab", "promises 127"),
     (b"\x0a\x01a", "is no number")],
)  # fmt: skip
def test_a_checkpoint_of_another_kind_is_refused(tmp_path, about, message):
    prefix = write_bundle(tmp_path / "model.ckpt-1", arrays(), about=about)
    with pytest.raises(UserError, match=message):
        TensorFlowBundle(prefix)


def test_a_compressed_index_names_the_way_out(tmp_path):
    prefix = write_bundle(tmp_path / "model.ckpt-1", arrays(), compression=SNAPPY)
    with pytest.raises(UserError, match=r"compressed with snappy.*restore the checkpoint with TensorFlow and save it"):
        TensorFlowBundle(prefix)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=re.escape("model.ckpt-1.index is missing; pass the beginning")):
        TensorFlowBundle(tmp_path / "model.ckpt-1")

    (tmp_path / "model.ckpt-1").write_bytes(b"one file")
    with pytest.raises(UserError, match=r"before 1\.0"):
        TensorFlowBundle(tmp_path / "model.ckpt-1")
    for name in ("x.safetensors", "x.PTH", "x.zip"):
        (tmp_path / name).write_bytes(b"one file")
        with pytest.raises(UserError, match=rf"is no checkpoint of TensorFlow; expected {name}.index beside"):
            TensorFlowBundle(tmp_path / name)

    prefix = write_bundle(tmp_path / "model.ckpt-2", arrays(), shards=2)
    (tmp_path / "model.ckpt-2.data-00001-of-00002").unlink()
    with pytest.raises(UserError, match="data-00001-of-00002 is missing"):
        TensorFlowBundle(prefix)


def index_of(entries, **settings):
    """Writes an index of these entries, beside no data."""

    def make(folder):
        (folder / "model.ckpt-1.index").write_bytes(table(entries, **settings))
        return folder / "model.ckpt-1"

    return make


def same_block_again(folder):
    """An index that names one block a thousand times."""
    whole = table([(b"", header(1))])
    found = bytearray(whole[: -48 - 1])
    first = number(1, 0)[1:] or b"\0"
    handle = first + bytes([len(block([(b"", header(1))]))])
    content = block([(f"{index:05}".encode(), handle) for index in range(1000)])
    place = len(found)
    found += content + b"\0" + checksum(content + b"\0").to_bytes(4, "little")
    about = handle + number(1, place)[1:] + number(1, len(content))[1:]
    (folder / "model.ckpt-1.index").write_bytes(found + about.ljust(40, b"\0") + whole[-8:])
    return folder / "model.ckpt-1"


def empty_block_again(folder):
    """An index that names a block without entries ten thousand times."""
    whole = table([(b"", header(1))])
    length = len(block([(b"", header(1))]))
    empty = number(1, length + 5)[1:] + number(1, len(block([])))[1:]
    content = block([(b"", b"\0" + bytes([length])), *((f"{index:05}".encode(), empty) for index in range(10_000))])
    found = bytearray(whole[: -48 - 1])
    place = len(found)
    found += content + b"\0" + checksum(content + b"\0").to_bytes(4, "little")
    about = empty + number(1, place)[1:] + number(1, len(content))[1:]
    (folder / "model.ckpt-1.index").write_bytes(found + about.ljust(40, b"\0") + whole[-8:])
    return folder / "model.ckpt-1"


def a_pipe(folder):
    os.mkfifo(folder / "model.ckpt-1.index")
    return folder / "model.ckpt-1"


def a_pipe_of_data(folder):
    prefix = write_bundle(folder / "model.ckpt-1", arrays())
    data = folder / "model.ckpt-1.data-00000-of-00001"
    data.unlink()
    os.mkfifo(data)
    return prefix


def a_large_index(folder):
    with (folder / "model.ckpt-1.index").open("wb") as file:
        file.truncate(1 << 40)
    return folder / "model.ckpt-1"


HOSTILE = {
    "keys that do not ascend": (index_of([(b"", header(1)), (b"b", b""), (b"a", b"")]), "do not ascend"),
    "a name twice": (index_of([(b"", header(1)), (b"a", b""), (b"a", b"")]), "do not ascend"),
    "no header": (index_of([(b"a", b"")]), "does not begin with the entry"),
    "nothing at all": (index_of([]), "does not begin with the entry"),
    "keys without end": (
        index_of(
            [(b"", header(1)), *((b"a" * 5000 + f"{n:06}".encode(), b"") for n in range(4000))],
            block_bytes=1 << 30,
            restart_every=1 << 30,
        ),
        "come to more than 16777216 letters",
    ),
    "one block a thousand times": (same_block_again, "do not ascend"),
    "a block of nothing ten thousand times": (empty_block_again, "a block without entries"),
    "a pipe": (a_pipe, "is missing"),
    "a pipe of data": (a_pipe_of_data, "is missing"),
    "a large index": (a_large_index, "at most 4194304 are read"),
}


def read_all(prefix):
    bundle = TensorFlowBundle(prefix)
    for name in bundle.variables:
        bundle.read(name)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_line(name, tmp_path):
    make, message = HOSTILE[name]
    (tmp_path / "seen").mkdir()
    with pytest.raises(UserError, match=message):
        read_all(make(tmp_path / "seen"))
    assert held(make, read_all, refused=True) == ""


def refused(prefix):
    """The error, or "" if all could be read."""
    try:
        read_all(prefix)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("seed", range(2))
def test_a_file_that_is_cut_or_changed_anywhere_is_refused(tmp_path, seed):
    """Every place of a small checkpoint, cut off there or with one bit another."""
    choose = random.Random(seed)
    prefix = write_bundle(tmp_path / "model.ckpt-1", {"a": np.ones(3, np.float32), "ab": np.ones(2)}, block_bytes=30)
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        for place in range(len(whole)):
            changed = bytearray(whole)
            changed[place] ^= 1 << choose.randrange(8)
            for damaged in (whole[:place], bytes(changed)):
                path.write_bytes(damaged)
                said = refused(prefix)
                assert said.count("\n") == 0
                # Nobody reads the zeros in the footer.
                of_no_matter = path.suffix == ".index" and place >= len(whole) - 48 and damaged != whole[:place]
                assert said or of_no_matter, (path.suffix, place)
        path.write_bytes(whole)


def test_arrays_are_of_their_own_memory(tmp_path):
    prefix = write_bundle(tmp_path / "model.ckpt-1", arrays())
    TensorFlowBundle(prefix).read("numbers")[0] = 5
    np.testing.assert_array_equal(TensorFlowBundle(prefix).read("numbers"), [-1, 7])
