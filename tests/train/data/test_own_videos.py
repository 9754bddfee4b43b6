"""One's own videos: the layouts jsonl and csv, and where the files are found that they name."""

import json
from pathlib import Path

import pytest

from emcl_train.config import DataConfig
from emcl_train.data.annotations import Annotations, Clip, load_annotations
from emcl_train.errors import UserError


def set_of(root: Path, *videos: str, files: list[str], copies: str | None = None, layout: str = "jsonl") -> Annotations:
    """A data set whose test rows name these videos, with these files."""
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"clip")
    for split in ("train", "val", "test"):
        names = videos if split == "test" else (f"{split}.mp4",)
        if layout == "jsonl":
            lines = [json.dumps({"video": name, "captions": [f"of {name}"]}) for name in names]
        else:
            lines = ["video,caption", *(f"{name},of {name}" for name in names)]
        (root / f"{split}.{layout}").write_text("\n".join(lines))
    return load_annotations(DataConfig(layout=layout, root=root, videos=Path(copies) if copies else None))


def found(annotations: Annotations, root: Path) -> list[str]:
    return [clip.path.relative_to(root).as_posix() for clip in annotations.test.clips]


MOVED = "1 video found under another suffix or in another folder than named."


@pytest.mark.parametrize("layout", ["jsonl", "csv"])
@pytest.mark.parametrize(
    ("video", "files", "copies", "there"),
    [
        ("a.avi", ["a.avi"], None, "a.avi"),
        ("a.avi", ["a.mp4"], None, "a.mp4"),
        ("a.avi", ["a.avi", "small/a.mp4"], "small", "small/a.mp4"),
        ("films/a.avi", ["films/a.avi", "small/a.mp4"], "small", "small/a.mp4"),
        ("films/x/a.avi", ["small/x/a.mp4", "small/a.mp4", "small/y/a.mp4"], "small", "small/x/a.mp4"),
        ("a.avi", ["videos/a.mp4"], None, "videos/a.mp4"),
        ("a", ["videos/part1/a.webm"], None, "videos/part1/a.webm"),
        ("/elsewhere/films/a.avi", ["small/films/a.mp4"], "small", "small/films/a.mp4"),
        ("a.AVI", ["small/a.MP4"], "small", "small/a.MP4"),
    ],
)
def test_a_path_leads_to_the_copy_of_its_video(tmp_path, video, files, copies, there, layout):
    annotations = set_of(tmp_path, video, files=files, copies=copies, layout=layout)
    assert found(annotations, tmp_path) == [there]
    assert (MOVED in annotations.notes) == (there != video)
    assert annotations.test.clips[0].video_id == video


def test_a_path_is_not_that_of_another_video_of_the_same_name(tmp_path):
    annotations = set_of(tmp_path, "x/a.avi", "y/a.avi", files=["small/x/a.mp4"], copies="small")
    assert found(annotations, tmp_path) == ["small/x/a.mp4", "small/y/a.avi"]


def test_several_files_that_a_path_may_mean_are_refused_by_name(tmp_path):
    with pytest.raises(
        UserError, match=r"two files of a\.avi \(.*test\.jsonl, line 1\) in different folders, .*x/a\.mp"
    ):
        set_of(tmp_path, "a.avi", files=["small/x/a.mp4", "small/y/a.mp4"], copies="small")


@pytest.mark.parametrize(
    ("videos", "files"),
    [
        (("a.avi", "a.mp4"), ["small/a.mp4"]),
        (("a.mp4", "a.avi"), ["small/a.mp4"]),
        (("x/a.avi", "y/a.avi"), ["small/a.mp4"]),
    ],
)
def test_one_file_that_two_paths_may_mean_is_refused_by_name(tmp_path, videos, files):
    with pytest.raises(UserError, match=r"line 2: .*small/a\.mp4 may be .*a\.(avi|mp4), and it may be .*; give each"):
        set_of(tmp_path, *videos, files=files, copies="small")


def test_the_same_path_written_in_two_ways_is_one_video(tmp_path):
    annotations = set_of(tmp_path, "a.avi", "./a.avi", str(tmp_path / "a.avi"), files=["a.mp4"])
    assert found(annotations, tmp_path) == ["a.mp4"] * 3


def test_keys_that_are_not_read_are_said(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"video": "a.mp4", "captions": ["x"], "fps": 3, "begin": 2}')
    for split in ("val", "test"):
        (tmp_path / f"{split}.jsonl").write_text('{"video": "b.mp4", "captions": ["x"], "id": 7}')
    annotations = load_annotations(DataConfig(layout="jsonl", root=tmp_path))
    assert 'Keys of train.jsonl that are not read: "fps", "begin".' in annotations.notes
    assert annotations.test.clips[0].video_id == "7"


# CSV.


def of_table(root: Path, **files: str | bytes) -> Annotations:
    for name, text in files.items():
        (root / f"{name}.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_annotations(DataConfig(layout="csv", root=root, test_captions="all"))


def test_rows_of_a_table_are_captions_of_spans(tmp_path):
    table = (
        "caption,video , split,fps,start,end\r\n"
        '"a dog, it ""barks""",a.mp4,test,3,,\r\n'
        "a cat,a.mp4,test,3,1,2.5\r\n"
        "again,a.mp4,test,3,1.0,2.50\r\n"
        "rain,b.mp4,train,3,,7\r\n"
        "snow,c.mp4,val,3,,\r\n"
    )
    annotations = of_table(tmp_path, anything=b"\xef\xbb\xbf" + table.encode())
    path = tmp_path / "a.mp4"
    assert annotations.test.clips == (Clip("a.mp4", path), Clip("a.mp4#1-2.5", path, 1.0, 2.5))
    assert annotations.test.captions == ('a dog, it "barks"', "a cat", "again")
    assert annotations.test.caption_clip == (0, 1, 1)
    assert annotations.train.clips == (Clip("b.mp4#0-7", tmp_path / "b.mp4", None, 7.0),)
    assert annotations.val.captions == ("snow",)
    assert annotations.notes == ("Columns of anything.csv that are not read: 'fps'.",)


def test_a_table_of_each_split(tmp_path):
    tables = {split: f"video,caption\n{split}.mp4,of {split}\n" for split in ("train", "val", "test")}
    annotations = of_table(tmp_path, **tables, notes="of,something else\n")
    for split in ("train", "val", "test"):
        assert getattr(annotations, split).captions == (f"of {split}",)


def test_a_table_without_splits_is_all_test(tmp_path):
    annotations = of_table(tmp_path, mine="video,caption\na.mp4,x\nb.mp4,y\n")
    assert [len(getattr(annotations, split).clips) for split in ("train", "val", "test")] == [0, 0, 2]
    assert annotations.notes == ("mine.csv has no column split: all of its clips are test clips.",)


BAD_TABLES = {
    "no header": ({"a": "a.mp4,x\n"}, r"a\.csv has no column 'video', 'caption'; its first line gives 'a\.mp4', 'x'"),
    "semicolons": ({"a": "video;caption\na;x\n"}, r"Its columns are separated by ';': save it with commas"),
    "caption": ({"a": "video,caption\na.mp4,x\nb.mp4,\n"}, r"a\.csv, line 3: caption is empty"),
    "cells": ({"a": "video,caption\na.mp4,one, two\n"}, r"line 2: 3 cells, expected 2.*put a caption that has commas"),
    "quote": ({"a": 'video,caption\na.mp4,"x\nb.mp4,y\n'}, r"line 2: a quote .* opens, and no other one"),
    "start": ({"a": "video,caption,start\na.mp4,x,0:03\n"}, r'line 2: "start" is "0:03", expected seconds of 0 or mo'),
    "comma": ({"a": 'video,caption,end\na.mp4,x,"3,5"\n'}, r'"end" is "3,5", expected seconds of 0 or more, such as'),
    "nan": ({"a": "video,caption,end\na.mp4,x,nan\n"}, r'line 2: "end" is "nan", expected seconds'),
    "large": ({"a": f"video,caption,end\na.mp4,x,{10**400}\n"}, r'line 2: "end" is Infinity, expected seconds'),
    "order": ({"a": "video,caption,start,end\na.mp4,x,3,2\n"}, r"line 2: end is 2 and start 3; expected an end after"),
    "split": ({"a": "video,caption,split\na.mp4,x,dev\n"}, r'line 2: split is "dev", expected train, val or test'),
    "no test": ({"a": "video,caption,split\na.mp4,x,train\n"}, r"a\.csv has no row whose split is test"),
    "other split": (
        {"train": "video,caption,split\na,x,val\n", "test": "video,caption\na,x\n"},
        r'train\.csv, line 2: split is "val", in a file of the split train',
    ),
    "latin-1": ({"a": "video,caption\na.mp4,café\n".encode("latin-1")}, r"a\.csv is not UTF-8: byte 0xe9"),
    "utf-16": ({"a": "video,caption\na.mp4,x\n".encode("utf-16")}, r"a\.csv is not UTF-8: .* UTF-16; convert it"),
    "none": ({}, r"has not both train\.csv and test\.csv, nor one single table: it has no \.csv file; write"),
    "several": ({"train": "x", "dev": "x"}, r"nor one single table: it has dev\.csv, train\.csv; write train\.csv an"),
    "nul": ({"a": "video,caption\na\udcff.mp4,x\n".encode("utf-8", "surrogateescape")}, r"is not UTF-8"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_bad_table_is_one_error_with_its_line(tmp_path, case):
    files, message = BAD_TABLES[case]
    with pytest.raises(UserError, match=message):
        of_table(tmp_path, **files)
