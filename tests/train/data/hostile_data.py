"""Annotations, features and arrays as a stranger could send them, each made by a function.

`CASES` has those that were thought of, by the reader that they are for; `random_case` any number more, by a seed.
"""

import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hostile import HOSTILE_VALUES, MARK, Make, Read, places_in, spoiled, with_value
from numpy.lib import format as npy

from emcl_train.config import DataConfig, RunConfig
from emcl_train.data.annotations import read_annotations
from emcl_train.data.features import ARRAYS, SPLITS, open_features, read_features
from emcl_train.errors import UserError
from emcl_train.runs.contents import FEATURES
from emcl_train.tools.arrays import read_embeddings

IDS = ["a", "b", "c", "d"]
LINES = "a\nb\nc\nd\n"


def written(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)
    return path


# --- Annotations --------------------------------------------------------------------------------------------------

CSV = "key,vid_key,video_id,sentence\n" + "".join(f"k,{i},{i},a thing\n" for i in IDS)
LSMDC = "".join(f"{i}\t00.01\t00.02\t00.01\t00.02\tsomeone runs\n" for i in IDS)
MSRVTT = {
    "videos": [{"video_id": i, "split": s} for i, s in zip(IDS, ("train", "train", "validate", "test"), strict=True)],
    "sentences": [{"video_id": i, "caption": "a thing"} for i in IDS],
}
ENTRIES = {f"v_{i}": {"duration": 2.0, "timestamps": [[0, 1]], "sentences": ["a thing"]} for i in IDS}
DIDEMO = [{"video": f"{i}.avi", "description": "a thing", "times": [[0, 0]]} for i in IDS]
JSONL = "".join(
    json.dumps({"video": f"{i}.mp4", "captions": ["a thing"], "start": 0.0, "end": 1.5}) + "\n" for i in IDS
)
TABLE = "video,caption,start,end,split\n" + "".join(
    f"{i}.mp4,a thing,0.0,1.5,{split}\n" for i, split in zip(IDS, ("train", "train", "val", "test"), strict=True)
)
WORDS = {i: [["a", "thing"]] for i in IDS}
LISTS: dict[str, Any] = {f"{split}_list.txt": LINES for split in ("train", "val", "test")}

GOOD: dict[str, dict[str, Any]] = {
    "msrvtt": {"MSRVTT_data.json": MSRVTT, "MSRVTT_train.9k.csv": "video_id\na\nb\n", "MSRVTT_JSFUSION_test.csv": CSV},
    "activitynet": {"train.json": ENTRIES, "val_1.json": ENTRIES},
    "didemo": {f"{split}_data.json": DIDEMO for split in ("train", "val", "test")},
    "vatex": LISTS | {"vatex_data.json": {i: {"enCap": ["a thing"]} for i in IDS}},
    "lsmdc": {
        "LSMDC16_annos_training.csv": LSMDC,
        "LSMDC16_annos_val.csv": LSMDC,
        "LSMDC16_challenge_1000_publictect.csv": LSMDC,
    },
    "msvd": LISTS | {"raw-captions.pkl": pickle.dumps(WORDS, 2)},
    "jsonl": {"train.jsonl": JSONL, "test.jsonl": JSONL},
    "csv": {"clips.csv": TABLE},
}
"""Files of each layout as they should be."""


def data_set(layout: str, **other: bytes | str | Callable[[Path], object]) -> Make:
    """A data set of which one file is another one."""

    def make(folder: Path) -> Path:
        root = folder / "set"
        (root / "videos").mkdir(parents=True)
        for name, content in GOOD[layout].items():
            data = content if isinstance(content, (bytes, str)) else json.dumps(content)
            written(root / name, data)
        for name, content in other.items():
            path = root / name
            path.unlink(missing_ok=True)
            if callable(content):
                content(path)
            else:
                written(path, content)
        return root

    return make


def with_another_name(layout: str, name: str) -> Make:
    """A data set in which one clip has another name, in every file that says it."""

    def make(folder: Path) -> Path:
        root = data_set(layout)(folder)
        for path in root.iterdir():
            if path.suffix in (".json", ".jsonl"):
                path.write_text(path.read_text().replace(json.dumps(IDS[0])[1:-1], json.dumps(name)[1:-1]))
        return root

    return make


def reader_of(layout: str) -> Read:
    return lambda root: read_annotations(DataConfig(root=root, layout=layout))  # type: ignore[arg-type]


def first_of(layout: str) -> str:
    """The file of a layout that holds the captions."""
    return {"vatex": "vatex_data.json", "msvd": "raw-captions.pkl"}.get(layout, next(iter(GOOD[layout])))


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 34)


def endless() -> Any:
    value: Any = "x"
    for _ in range(40):
        value = [value, value]
    return value


def again_and_again() -> dict[str, Any]:
    one = ["x"]
    return {str(i): [one] * 500 for i in range(500)}


class RunsCode:
    def __init__(self, folder: Path) -> None:
        self.command = f"touch {folder / MARK}"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (self.command,)


def refused_names(path: Path) -> None:
    written(path, pickle.dumps({"a": [["x"]], "b": RunsCode(path.parent.parent)}, 2))


ANY_TEXT: dict[str, Any] = {
    "empty": b"",
    "zeros": bytes(5000),
    "nested lists": b"[" * 10**6,
    "nested a little": b"[" * 400 + b"]" * 400,
    "nested objects": b'{"a":' * 10**5,
    "a number of many digits": b"9" * 10**6,
    "a list of a number of many digits": b"[" + b"9" * 10**6 + b"]",
    "one long line": b"x" * (1 << 25),
    "a quote that stays open": b'a,"' + b"x" * 10**6,
    "half a pair": '"\ud800"',
    "a named pipe": os.mkfifo,
    "a large file": sparse,
    "a folder": lambda path: path.mkdir(),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
}
PICKLES: dict[str, Any] = {
    "lists without end": pickle.dumps({"a": [["x"]], "b": [endless()]}, 2),
    "captions without end": pickle.dumps({i: [endless()] for i in IDS}, 2),
    "words without end": pickle.dumps({i: [["x"] * 1000] * 1000 for i in IDS}, 2),
    "the same captions again and again": pickle.dumps(
        (lambda one: {str(i): [one] * 500 for i in range(500)})(["x"]), 2
    ),
    "a key of tuples": b"\x80\x02}(" + b")" + b"\x85" * 100000 + b"K\x01u.",
    "keys without end": b"\x80\x02}(X\x01\x00\x00\x00aq\x00" + b"h\x00h\x00\x86q\x00" * 40 + b"K\x01u.",
    "an early value of a great number": b"\x80\x02}r\xf0\xff\xff\xff.",
    "an array that is not there": b"\x80\x05\x96" + struct.pack("<Q", 2**36) + b".",
    "bytes that are not there": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",
    "a frame that is not there": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",
    "a long whole number": b"\x80\x02\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b".",
    "a list that holds itself": b"\x80\x02]q\x00h\x00a.",
    "a dict that holds itself": b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
    "an object from outside": b"\x80\x02" + b"(X\x01\x00\x00\x00xtQ.",
    "code": refused_names,
}
SPECIAL: dict[str, dict[str, Any]] = {
    "jsonl": {
        "a start of many digits": json.dumps({"video": "a.mp4", "captions": ["a"], "start": 10**400}),
        "a span that is no number": '{"video":"a.mp4","captions":["a"],"start":NaN,"end":Infinity}',
        "a name with a zero": '{"video":"a\\u0000.mp4","captions":["a"]}',
        "an id that is a list": '{"video":"a.mp4","captions":["a"],"id":[["x"]]}',
        "captions that are nested": '{"video":"a.mp4","captions":' + "[" * 90 + "]" * 90 + "}",
        "one key twice": '{"video":"a.mp4","video":"b.mp4","captions":["a"]}',
    },
    "csv": {
        "an end of many digits": "video,caption,end\na.mp4,a," + "9" * 4000,
        "a name with a quote": 'video,caption\n"a"".mp4",a\n',
        "a caption of many lines": 'video,caption\na.mp4,"' + "x\n" * 10**5 + '"\n',
        "many columns": "video,caption" + ",x" * 10**5 + "\na.mp4,a\n",
        "a column twice": "video,video,caption\na,b,c\n",
    },
    "msvd": PICKLES,
}


def annotation_cases(layout: str) -> dict[str, Make]:
    name = first_of(layout)
    return {kind: data_set(layout, **{name: content}) for kind, content in (ANY_TEXT | SPECIAL.get(layout, {})).items()}


# --- Features -----------------------------------------------------------------------------------------------------

RECORD: dict[str, Any] = {
    "version": 1, "settings": {}, "weights": "0" * 16, "clip_config": {}, "tokens": False, "root": "x", "run": None,
    "frames": {"sampler": 1}, "notes": [], "left_out": {},
}  # fmt: skip
CLIPS = {"name": "train", "video_ids": IDS, "paths": IDS, "captions": ["x", "y"], "caption_clip": [0, 3]}
ROWS = {"frames": np.zeros((4, 2, 3), "f4"), "frame_mask": np.ones((4, 2), "?"), "text": np.zeros((2, 1, 3), "f4"),
        "token_mask": np.ones((2, 5), "i8")}  # fmt: skip


def header(shape: Any, dtype: str = "<f4", body: bytes = bytes(16)) -> bytes:
    """A `.npy` that says this of itself."""
    described = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(described)) + described + body


def features(record: Any = RECORD, clips: Any = CLIPS, arrays: dict[str, bytes] | None = None) -> Make:
    def make(folder: Path) -> Path:
        place = folder / "features"
        place.mkdir()
        written(place / FEATURES, record if isinstance(record, bytes) else json.dumps(record))
        for split in SPLITS:
            written(place / f"{split}.json", clips if isinstance(clips, bytes) else json.dumps(clips))
            for name in ARRAYS:
                np.save(place / f"{split}_{name}.npy", ROWS[name])
                if arrays and name in arrays:
                    written(place / f"{split}_{name}.npy", arrays[name])
        return place

    return make


NPY: dict[str, bytes] = {
    "a great shape": header((10**6, 10**6)),
    "a shape that overflows": header((2**62, 2**62, 2**62)),
    "a negative shape": header((-4, 2)),
    "a shape of nothing": header((0, 2**40)),
    "a shape that is no tuple": header("[2, 2]"),
    "a shape of truths": header("(True, True)"),
    "objects": header((4,), "|O"),
    "records": header((4,), "[('a', '<f4')]"),
    "texts": header((4,), "<U1000000"),
    "an expression": header("__import__('os').system('true')"),
    "nested": header("(" * 5000 + ")" * 5000),
    "a long header": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b" " * 100,
    "another version": b"\x93NUMPY\x09\x00" + bytes(100),
    "a pickle": pickle.dumps([1, 2]),
    "an archive": b"PK\x03\x04" + bytes(100),
    "empty": b"",
    "a beginning": b"\x93NUM",
}
FEATURE_CASES: dict[str, Make] = {
    **{f"{name} is {str(value)[:20]!r} {n}": features(RECORD | {name: value})
       for name in RECORD if name not in ("root", "run") for n, value in enumerate(HOSTILE_VALUES[::2])},
    **{f"{name} of the clips is {str(value)[:20]!r} {n}": features(clips=CLIPS | {name: value})
       for name in CLIPS for n, value in enumerate(HOSTILE_VALUES[1::2])},
    "numbers of clips that are not there": features(clips=CLIPS | {"caption_clip": [0, 9]}),
    "numbers below nothing": features(clips=CLIPS | {"caption_clip": [0, -1]}),
    "nested": features(b'{"version":' * 10**5),
    "nested clips": features(clips=b"[" * 10**5),
    **{f"an array: {kind}": features(arrays={"frames": data, "token_mask": data}) for kind, data in NPY.items()},
    "arrays of other dimensions": features(arrays={"text": header((2,))}),
}  # fmt: skip


def read_stored(path: Path) -> None:
    """As `train --from-features` does; features of other settings are opened all the same."""
    read_features(path)
    config = RunConfig(from_features=path)
    try:
        open_features(config)
    except UserError as error:
        if "are not those of this run" not in str(error):
            raise

    from emcl_train.data.features import open_split

    for split in SPLITS:
        open_split(path, split, tokens=True)


# --- Arrays for refine --------------------------------------------------------------------------------------------


def file_of(name: str, data: bytes) -> Make:
    return lambda folder: written(folder / name, data)


def npz(members: dict[str, bytes], *, packed: bool = True) -> Make:
    def make(folder: Path) -> Path:
        kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
        with zipfile.ZipFile(folder / "e.npz", "w", kind) as file:
            for name, data in members.items():
                file.writestr(name, data)
        return folder / "e.npz"

    return make


def zeros_of(size: int) -> bytes:
    data = io.BytesIO()
    npy.write_array_header_1_0(data, {"descr": "<f4", "fortran_order": False, "shape": (size // 4, 1)})
    return data.getvalue() + bytes(size)


def many_rows(folder: Path) -> Path:
    """A table that stands for 10⁸ numbers, in a few hundred bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pa.array([[1.0] * 1000] * 1000, type=pa.list_(pa.float32()))
    table = pa.table({"e": pa.chunked_array([rows] * 40)})
    pq.write_table(table, folder / "e.parquet", compression="zstd")
    return folder / "e.parquet"


ARRAY_CASES: dict[str, Make] = {
    **{f"npy: {kind}": file_of("e.npy", data) for kind, data in NPY.items()},
    **{f"npz: {kind}": npz({"e.npy": data}) for kind, data in NPY.items()},
    "npz: many zeros": npz({"e.npy": zeros_of(2 * 10**8)}),
    "npz: no arrays": npz({}),
    "npz: a text": npz({"e.txt": b"x"}),
    "npz: one name twice": npz({"e.npy": zeros_of(16), "e": zeros_of(16)}),
    "npz: cut": lambda folder: written(folder / "e.npz", b"PK\x03\x04" + bytes(50)),
    "parquet: no table": lambda folder: written(folder / "e.parquet", b"PAR1" + bytes(40) + b"PAR1"),
    "parquet: one number again and again": many_rows,
    "safetensors: no header": lambda folder: written(folder / "e.safetensors", b"\xff" * 16),
    "safetensors: of complex numbers": lambda folder: written(
        folder / "e.safetensors",
        struct.pack("<Q", 60) + b'{"e":{"dtype":"C64","shape":[1,1],"data_offsets":[0,8]}}    ' + bytes(8),
    ),
}


def read_array(path: Path) -> None:
    rows = read_embeddings(str(path)).rows
    assert rows.ndim == 2


CASES: dict[str, tuple[Read, dict[str, Make]]] = {
    **{layout: (reader_of(layout), annotation_cases(layout)) for layout in GOOD},
    "features": (read_stored, FEATURE_CASES),
    "arrays": (read_array, ARRAY_CASES),
}
"""Each reader with the files that it is tried on."""


# --- Any number more ----------------------------------------------------------------------------------------------


@cache
def _good_bytes(layout: str) -> bytes:
    content = GOOD[layout][first_of(layout)]
    if isinstance(content, bytes):
        return content
    return (content if isinstance(content, str) else json.dumps(content)).encode()


def random_case(seed: int) -> tuple[str, Make, Read]:
    """A hostile file of any kind, by a number: what it is, what makes it, and what reads it."""
    drawn = random.Random(seed)
    kind = drawn.choice((*GOOD, "features", "arrays"))
    if kind == "features":
        record, clips = RECORD, CLIPS
        if drawn.random() < 0.5:
            record = with_value(RECORD, drawn.choice(places_in(RECORD)), drawn.choice(HOSTILE_VALUES))
        else:
            clips = with_value(CLIPS, drawn.choice(places_in(CLIPS)), drawn.choice(HOSTILE_VALUES))
        return kind, features(record, clips), read_stored
    if kind == "arrays":
        data = spoiled(zeros_of(64), drawn)
        return kind, lambda folder: written(folder / "e.npy", data), read_array

    name = first_of(kind)
    content = GOOD[kind][name]
    if isinstance(content, (dict, list)) and drawn.random() < 0.5:
        changed = with_value(content, drawn.choice(places_in(content)), drawn.choice(HOSTILE_VALUES))
        return kind, data_set(kind, **{name: json.dumps(changed)}), reader_of(kind)
    return kind, data_set(kind, **{name: spoiled(_good_bytes(kind), drawn)}), reader_of(kind)
