"""Bad annotations and shapes sets: one error each, with the file, what is wrong, and the way out."""

import json
import shutil

import pytest

from emcl_train.config import DataConfig, ShapesConfig
from emcl_train.data.annotations import load_annotations
from emcl_train.data.shapes import render_shapes
from emcl_train.errors import UserError

TRAIN, TEST, DATA = "MSRVTT_train.9k.csv", "MSRVTT_JSFUSION_test.csv", "MSRVTT_data.json"


@pytest.fixture
def folder(tmp_path):
    """A good set, in which each case breaks one thing."""
    (tmp_path / "videos").mkdir()
    (tmp_path / TRAIN).write_text("video_id\na\nb\n")
    (tmp_path / TEST).write_text("key,vid_key,video_id,sentence\nret0,msr0,c,it rains\n")
    content = {
        "videos": [{"video_id": i, "split": "train"} for i in "abc"],
        "sentences": [{"video_id": i, "caption": f"this is {i}"} for i in "abc"],
    }
    (tmp_path / DATA).write_text(json.dumps(content))
    return tmp_path


def load(folder, **settings):
    return load_annotations(DataConfig(root=folder, **settings))


def written(name, content, **settings):
    """A set in which one file holds something else."""

    def case(folder):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        load(folder, **settings)

    return case


def edited(key, index, name, value, **settings):
    """A set in which one value of the JSON file is another one."""

    def case(folder):
        content = json.loads((folder / DATA).read_text())
        content[key][index][name] = value
        (folder / DATA).write_text(json.dumps(content))
        load(folder, **settings)

    return case


def removed(name):
    def case(folder):
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
        load(folder)

    return case


def shapes(**settings):
    return lambda folder: render_shapes(folder / "shapes", ShapesConfig(**settings))


def shapes_over_a_file(folder):
    render_shapes(folder / TRAIN, ShapesConfig())


def shapes_with_a_broken_manifest(folder):
    for name in ("videos", TRAIN, TEST, DATA):
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
    (folder / "shapes.json").write_text("{")
    render_shapes(folder, ShapesConfig())


BAD_INPUTS = {
    "no-folder": (lambda folder: load(folder / "none"), r"there is no folder .*none; pass --data.root"),
    "no-videos-folder": (removed("videos"), r"there is no folder .*videos; put the clips there as <video_id>.mp4"),
    "no-training-list": (removed(TRAIN), rf"there is no file .*{TRAIN}; .* holds {TEST}, {DATA}, videos. Put"),
    "no-test-list": (removed(TEST), rf"there is no file .*{TEST}"),
    "no-captions-file": (removed(DATA), rf"there is no file .*{DATA}"),
    "a-folder-for-a-file": (
        lambda f: ((f / TEST).unlink(), (f / TEST).mkdir(), load(f)),
        rf"there is no file .*{TEST}",
    ),
    "no-column": (written(TEST, "key,sentence\nx,y\n"), r"has no column 'video_id'; its first line gives 'key', 'sent"),
    "no-header": (written(TRAIN, "a\nb\n"), r"has no column 'video_id'; its first line gives 'a'. Make video_id"),
    "empty-file": (written(TRAIN, ""), rf"{TRAIN} has no column 'video_id'; its first line gives nothing"),
    "no-rows": (written(TRAIN, "video_id\n"), r"has no rows below its first line; write one line for each clip"),
    "empty-sentence": (written(TEST, "video_id,sentence\nc,it rains\nd,  \n"), r"test.csv, line 3: sentence is empty"),
    "short-row": (written(TEST, "video_id,sentence\nc\n"), r"test.csv, line 2: sentence is empty; fill it"),
    "latin-1": (written(TEST, b"video_id,sentence\nc,caf\xe9\n"), r"is not UTF-8: byte 0xe9 at offset 23; convert it"),
    "utf-16": (written(TRAIN, "video_id\na\n".encode("utf-16")), r"is not UTF-8: byte 0xff at offset 0"),
    "nul": (written(TRAIN, b"video_id\n\0\n"), r"9k.csv"),
    "huge-field": (written(TRAIN, "video_id\n" + "a" * 200_000), r"line .*: field larger than field limit"),
    "cut-json": (written(DATA, '{"videos": [\n{"video_id": '), r"is not JSON: .* at line 2, column \d+; it may be cut"),
    "latin-1-json": (written(DATA, b'{"a": "\xe9"}'), r"data.json is not UTF-8: byte 0xe9 at offset 7"),
    "deep-json": (
        written(DATA, "[" * 200_000),
        r"data.json cannot be MSR-VTT annotations: it is nested more than 100 levels deep",
    ),
    "json-list": (written(DATA, "[]"), r'has no list "videos": it is a list; pass the folder of MSR-VTT'),
    "json-of-other-keys": (written(DATA, '{"images": []}'), r"has no list \"videos\": its keys are images; pass"),
    "json-without-clips": (written(DATA, '{"videos": [], "sentences": []}'), r'the list "videos" is empty'),
    "json-of-numbers": (
        written(DATA, '{"videos": [7], "sentences": []}'),
        r'"videos"\[0\] has no text under "video_id": 7',
    ),
    "blank-caption": (
        edited("sentences", 1, "caption", " "),
        r'"sentences"\[1\] has no text under "caption": .*; fill',
    ),
    "number-as-caption": (edited("sentences", 0, "caption", 3), r'"sentences"\[0\] has no text under "caption"'),
    "no-caption-in-training": (
        edited("sentences", 0, "video_id", "z"),
        r"9k.csv: 1 clip without a caption in .*: a; add",
    ),
    "no-caption-in-test": (
        edited("sentences", 2, "video_id", "z", test_captions="all"),
        r"test.csv: 1 clip without a caption in MSRVTT_data.json: c; add",
    ),
    "one-training-clip": (written(TRAIN, "video_id\na\n"), r"names 1 clip, too few to hold one out to validate"),
    "shapes-over-other-data": (lambda f: render_shapes(f, ShapesConfig()), r"is not empty and holds no shapes set"),
    "shapes-over-a-file": (shapes_over_a_file, r"is a file, expected a folder"),
    "shapes-manifest": (
        shapes_with_a_broken_manifest,
        r"shapes.json cannot be read as JSON: .*; delete .* and render it again",
    ),
    "shapes-no-clips": (
        shapes(val_clips=0),
        r"data.shapes.val_clips is 0, expected 1 or more; pass --data.shapes.val-cl",
    ),
    "shapes-odd-size": (shapes(size=63), r"data.shapes.size is 63, expected an even number"),
    "shapes-one-frame": (
        shapes(seconds=0.1),
        r"data.shapes.seconds is 0.1, expected at least 0.25, two frames at fps 8",
    ),
    "shapes-no-time": (shapes(seconds=float("nan")), r"data.shapes.seconds is nan"),
    "shapes-seed": (shapes(seed=-1), r"data.shapes.seed is -1, expected 0 or more"),
    "shapes-too-many": (shapes(train_clips=10**6), r"train_clips is 1000000, expected at most 50000 clips in all"),
    "shapes-wordings": (
        shapes(train_clips=20, captions_per_clip=13),
        r"captions_per_clip is 13, but .* no more than \d+",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS.keys())
def test_a_bad_input_is_one_error_with_a_way_out(call, message, folder):
    with pytest.raises(UserError, match=message):
        call(folder)


def test_the_set_that_every_case_breaks_is_good(folder):
    assert len(load(folder).test.clips) == 1
