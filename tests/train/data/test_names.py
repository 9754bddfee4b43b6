"""Names in another Unicode form are found, and a clip in two splits is an error or said."""

import json
import os
import unicodedata

import pytest
from tiny_layouts import TEST, TRAIN, WRITERS, write_json

from emcl_train.config import DataConfig
from emcl_train.data.annotations import load_annotations
from emcl_train.data.names import can_be_a_file
from emcl_train.errors import UserError
from emcl_train.recipes import load_recipe


@pytest.fixture(autouse=True)
def no_frames(monkeypatch):
    """Names of video files are enough here."""
    monkeypatch.setattr("tiny_layouts.write_video", lambda path, *_, **__: path.write_bytes(b"clip"))


@pytest.mark.parametrize("name", ["a\0b", "\0", "a.mp4\0", "\ud800"], ids=ascii)
def test_a_name_that_no_file_can_have_is_told_apart(name, tmp_path):
    assert not can_be_a_file(name)
    with pytest.raises((ValueError, UnicodeEncodeError)):
        (tmp_path / name).touch()


@pytest.mark.parametrize("name", ["a.mp4", "caf\u00e9", "\udcff.mp4"], ids=ascii)
def test_a_name_that_a_file_can_have_is_one(name, tmp_path):
    (tmp_path / name).touch()
    assert can_be_a_file(name)


@pytest.mark.parametrize("listed", ["NFC", "NFD"])
@pytest.mark.parametrize("name", ["caf\u00e9", "\uac01", "\u1ea6n", "\u0130stanbul"])
def test_files_and_captions_in_another_form_are_those_of_the_ids(name, listed, tmp_path):
    stored = {"NFC": "NFD", "NFD": "NFC"}[listed]
    WRITERS["vatex"](tmp_path / "set")
    root = tmp_path / "set"
    (root / "videos" / "te0.mp4").rename(root / "videos" / f"{unicodedata.normalize(stored, name)}.mp4")
    lines = (root / "test_list.txt").read_text().replace("te0", unicodedata.normalize(listed, name))
    (root / "test_list.txt").write_text(lines, encoding="utf-8")
    captions = json.loads((root / "vatex_data.json").read_text())
    captions[unicodedata.normalize(stored, name)] = captions.pop("te0")
    write_json(root / "vatex_data.json", captions)

    config = load_recipe("vatex").data
    config.root = root
    clip = load_annotations(config).test.clips[0]
    assert clip.video_id == unicodedata.normalize(listed, name)
    assert clip.path.is_file()


@pytest.mark.parametrize("listed", ["NFC", "NFD"])
@pytest.mark.parametrize("path", ["caf\u00e9.mp4", "f\u00eate/caf\u00e9.mp4"])
def test_paths_of_lines_in_another_form_are_found(path, listed, tmp_path):
    stored = tmp_path / unicodedata.normalize({"NFC": "NFD", "NFD": "NFC"}[listed], path)
    stored.parent.mkdir(exist_ok=True)
    stored.write_bytes(b"clip")
    line = {"video": unicodedata.normalize(listed, path), "captions": ["a bar"]}
    for split in ("train", "test"):
        spans = [line | {"start": n, "end": n + 1} for n in range(3)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, spans)))
    annotations = load_annotations(DataConfig(layout="jsonl", root=tmp_path))
    assert {clip.path for clip in annotations.test.clips} == {stored}


def test_many_files_in_another_form_cost_a_look_each_and_one_at_their_folder(tmp_path, monkeypatch):
    """Not one at all the others for each of them."""
    listed = []
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: listed.append(folder) or real(folder))
    looks = []
    normalize = unicodedata.normalize
    names = [normalize("NFC", f"f\u00eate {n}.mp4") for n in range(60)]
    for name in names:
        (tmp_path / normalize("NFD", name)).write_bytes(b"clip")
    lines = [{"video": name, "captions": ["rain"]} for name in names]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))

    monkeypatch.setattr(unicodedata, "normalize", lambda form, name: looks.append(name) or normalize(form, name))
    annotations = load_annotations(DataConfig(layout="jsonl", root=tmp_path))
    assert all(clip.path.is_file() for clip in annotations.test.clips)
    assert listed == [tmp_path]
    assert len(looks) < 20 * len(names)


def test_a_clip_that_is_listed_in_both_forms_is_one(tmp_path):
    WRITERS["vatex"](tmp_path / "set")
    root = tmp_path / "set"
    name = unicodedata.normalize("NFC", "caf\u00e9")
    other = unicodedata.normalize("NFD", name)
    (root / "videos" / "te0.mp4").rename(root / "videos" / f"{name}.mp4")
    lines = (root / "test_list.txt").read_text().replace("te0", f"{name}\n{other}")
    (root / "test_list.txt").write_text(lines, encoding="utf-8")
    captions = json.loads((root / "vatex_data.json").read_text())
    captions[name] = captions.pop("te0")
    write_json(root / "vatex_data.json", captions)

    config = load_recipe("vatex").data
    config.root = root
    annotations = load_annotations(config)
    assert [clip.video_id for clip in annotations.test.clips].count(name) == 1
    assert other not in [clip.video_id for clip in annotations.test.clips]
    assert any("test_list.txt repeats 1 id" in note for note in annotations.notes)


@pytest.mark.parametrize("recipe", ["msrvtt-full", "msrvtt-9k"])
@pytest.mark.parametrize("other", ["test", "validate", ""])
def test_a_clip_that_the_json_puts_into_two_splits_is_an_error(recipe, other, tmp_path):
    WRITERS[recipe](tmp_path / "set")
    config = load_recipe(recipe).data
    config.root = tmp_path / "set"
    path = config.root / "MSRVTT_data.json"
    content = json.loads(path.read_text())
    content["videos"].append({"video_id": "video0", "split": "train"})
    write_json(path, content)
    load_annotations(config)
    content["videos"][-1]["split"] = other
    write_json(path, content)
    with pytest.raises(UserError, match=rf'"videos"\[14\] puts the clip video0 into the split {other!r}, and .*delete'):
        load_annotations(config)


def test_clips_in_two_lists_are_said(tmp_path):
    WRITERS["vatex"](tmp_path / "set")
    config = load_recipe("vatex").data
    config.root = tmp_path / "set"
    (config.root / "val_list.txt").write_text(f"va0\n{TRAIN[0]}\n{TEST[0]}\n")
    notes = "\n".join(load_annotations(config).notes)
    assert "Files of the validation list that are in the training list too: 1 of 3." in notes
    assert "Clips of the test list that are in the validation list too: 1 of 4." in notes
