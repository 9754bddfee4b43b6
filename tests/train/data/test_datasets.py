"""Each data set's own files: what they say is what the splits hold, and what is wrong with them is said."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_layouts import TEST, TRAIN, VAL, WRITERS, say, write_json

from emcl_train.config import LAYOUTS, DataConfig
from emcl_train.data import datasets
from emcl_train.data.annotation_files import identifier
from emcl_train.data.annotations import Annotations, Clip, Split, load_annotations
from emcl_train.data.datasets import activitynet, didemo, lsmdc, msvd
from emcl_train.data.layouts import video_folder
from emcl_train.data.video import VideoError, probe
from emcl_train.errors import UserError
from emcl_train.recipes import load_recipe


@pytest.fixture(autouse=True)
def no_frames(monkeypatch):
    """Names of video files are enough here."""
    monkeypatch.setattr("tiny_layouts.write_video", lambda path, *_, **__: path.write_bytes(b"clip"))


def config_of(root: Path, recipe: str, **settings) -> DataConfig:
    config = load_recipe(recipe).data
    config.root = root
    for name, value in settings.items():
        setattr(config, name, value)
    return config


def test_a_module_beside_the_others_is_a_layout(tmp_path, monkeypatch):
    """Nothing else names it: neither the configuration nor the loader."""
    files = Path(datasets.__file__).parent.glob("[a-z]*.py")
    assert sorted(path.stem for path in files) == sorted(LAYOUTS)

    (tmp_path / "mine.py").write_text("from emcl_train.data.datasets.jsonl import NAMES_PATHS, read\n")
    monkeypatch.setattr(datasets, "__path__", [*datasets.__path__, str(tmp_path)])
    monkeypatch.setattr("emcl_train.data.layouts.LAYOUTS", (*LAYOUTS, "mine"))
    monkeypatch.delitem(sys.modules, "emcl_train.data.datasets.mine", raising=False)
    WRITERS["jsonl"](tmp_path / "set")
    own = load_annotations(DataConfig(layout="jsonl", root=tmp_path / "set"))
    config = DataConfig(layout="jsonl", root=tmp_path / "set")
    config.layout = "mine"
    assert load_annotations(config) == own
    assert video_folder(config) == tmp_path / "set"


def test_a_layout_that_nobody_reads_is_refused_with_those_that_are(tmp_path):
    config = DataConfig(root=tmp_path)
    config.layout = "os"
    with pytest.raises(
        UserError, match=r"there is no layout 'os'; known layouts: activitynet, csv, didemo, jsonl, lsmdc"
    ):
        load_annotations(config)


def test_clips_have_their_older_address_too():
    from emcl_train.data import splits

    assert (splits.Annotations, splits.Clip, splits.Split) == (Annotations, Clip, Split)


@pytest.fixture
def load(tmp_path):
    """Write a data set once and load it with a recipe's settings."""

    def loaded(recipe: str, edit=lambda root: None, **settings) -> Annotations:
        if not (tmp_path / recipe).exists():
            WRITERS[recipe](tmp_path / recipe)
        edit(tmp_path / recipe)
        return load_annotations(config_of(tmp_path / recipe, recipe, **settings))

    return loaded


def ids_of(split: Split) -> list[str]:
    return [clip.video_id for clip in split.clips]


def captions_by_clip(split: Split) -> dict[str, list[str]]:
    found = {clip.video_id: [] for clip in split.clips}
    for text, index in zip(split.captions, split.caption_clip, strict=True):
        found[split.clips[index].video_id].append(text)
    return found


@pytest.mark.parametrize("recipe", WRITERS)
def test_every_clip_of_a_data_set_is_found(load, recipe):
    annotations = load(recipe)
    splits = annotations.train, annotations.val, annotations.test
    clips = [clip for split in splits for clip in split.clips]
    assert clips
    assert all(clip.path.exists() for clip in clips)  # a folder of frames is a clip too
    assert len({clip.video_id for clip in clips}) == len(clips)
    assert all(captions_by_clip(split)[i] for split in splits for i in ids_of(split))


def test_the_full_split_is_the_one_of_the_json(load):
    annotations = load("msrvtt-full")
    assert [len(s.clips) for s in (annotations.train, annotations.val, annotations.test)] == [8, 2, 4]
    assert [len(s.captions) for s in (annotations.train, annotations.val, annotations.test)] == [160, 40, 80]
    assert "train: 8 clips; MSR-VTT full has 6513." in annotations.counts
    assert load("msrvtt-full", test_captions="one").test.captions == tuple(say(f"video{n}") for n in range(10, 14))


def test_1k_a_needs_no_splits_in_the_json_and_the_full_split_does(load):
    def without(root):
        content = json.loads((root / "MSRVTT_data.json").read_text())
        for entry in content["videos"]:
            del entry["split"]
        write_json(root / "MSRVTT_data.json", content)

    annotations = load("msrvtt-9k", without)
    assert [len(split.clips) for split in (annotations.train, annotations.val, annotations.test)] == [7, 1, 4]
    with pytest.raises(UserError, match=r"\"split\" of a clip is '', expected \"train\", \"validate\" or \"test\""):
        load("msrvtt-full", without)


def test_the_7k_list_is_read_and_named(load):
    annotations = load("msrvtt-7k")
    assert ids_of(annotations.train) == [f"video{n}" for n in range(8)]
    assert "train: 8 clips; MSR-VTT 1k-A with 7k training clips has 7010." in annotations.notes

    def remove(root):
        (root / "MSRVTT_train.7k.csv").unlink()

    with pytest.raises(UserError, match=r"there is no file .*MSRVTT_train\.7k\.csv"):
        load("msrvtt-7k", remove)


def test_counts_are_compared_with_the_protocol(load, monkeypatch):
    monkeypatch.setattr(didemo, "PROTOCOL", didemo.Protocol("DiDeMo", train=(7, 8, 9), val=(3,), test=(4,)))
    annotations = load("didemo")
    assert annotations.counts == (
        "train: 8 clips, as in DiDeMo, of 7, 8 or 9 in the literature.",
        "val: 2 clips; DiDeMo has 3.",
        "test: 4 clips, as in DiDeMo.",
    )
    # What a reader of results must see: where counts differ, and which of several a count is.
    assert annotations.notes == annotations.counts[:2]


def test_activitynet_has_paragraphs_and_holds_training_videos_out(load):
    annotations = load("activitynet")
    assert ids_of(annotations.test) == [f"v_{i}" for i in TEST]
    assert captions_by_clip(annotations.test)["v_te1"] == [f"{say('te1')}. {say('te1', 1)}. {say('te1', 2)}."]
    assert {*ids_of(annotations.train), *ids_of(annotations.val)} == {f"v_{i}" for i in (*TRAIN, *VAL)}
    assert len(annotations.val.clips) == 1
    assert {clip.path.name[:2] == "v_" for clip in annotations.train.clips} == {True, False}


def test_activitynet_lists_may_name_ids_without_their_prefix_and_may_be_missing(load):
    def shorten(root):
        write_json(root / "val_ids.json", ["te2", "v_te0"])

    assert ids_of(load("activitynet", shorten).test) == ["v_te2", "v_te0"]

    def remove(root):
        (root / "val_ids.json").unlink()

    annotations = load("activitynet", remove)
    assert len(annotations.test.clips) == 4
    assert "There is no val_ids.json: all videos of val_1.json are taken." in annotations.notes


def test_didemo_has_paragraphs_and_the_seconds_that_the_releases_take(load):
    annotations = load("didemo")
    clip = annotations.test.clips[0]
    assert (clip.video_id, clip.start, clip.end) == ("12@N00_te0_ab", None, 32.0)
    assert annotations.test.captions[0] == " ".join(say("te0", k) for k in range(3))

    def with_suffixes(root):
        for name in ("test_list.txt", "test_data.json"):
            path = root / name
            path.write_text(path.read_text().replace("_ab", "_ab.mov"))

    assert load("didemo", with_suffixes) == annotations


def test_lsmdc_has_every_sentence_and_leaves_out_what_is_known_to_be_broken(load):
    annotations = load("lsmdc")
    first = annotations.train.clips[0].video_id
    assert captions_by_clip(annotations.train)[first] == [say("tr0"), say("tr0", 1)]
    assert "train: 10 sentences; LSMDC has 101079." in annotations.counts
    assert any("1 clip known to be broken as distributed" in note for note in annotations.notes)
    assert all("Pianist" not in clip.video_id for clip in annotations.train.clips)
    assert {clip.path.parent.name for clip in annotations.test.clips} == {
        "videos",
        "te1_Some_Film",
        "te3_Some_Film",
    }


@pytest.mark.parametrize(("recipe", "number"), [("msvd", 5), ("vatex", 10)])
def test_every_caption_is_a_query_and_is_trained_on(load, recipe, number):
    annotations = load(recipe)
    for split, ids in ((annotations.train, TRAIN), (annotations.val, VAL), (annotations.test, TEST)):
        assert captions_by_clip(split) == {i: [say(i, k) for k in range(number)] for i in ids}
    assert len(load(recipe, test_captions="one").test.captions) == 4


def test_jsonl_spans_are_clips_of_their_own_and_lines_about_one_clip_are_joined(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"clip")
    lines = [
        {"video": "a.mp4", "captions": ["whole"]},
        {"video": "a.mp4", "captions": ["first"], "end": 3},
        {"video": "a.mp4", "captions": ["second", " "], "start": 3, "end": 7.5},
        {"video": "a.mp4", "captions": ["again"], "start": 3.0, "end": 7.5},
        {"video": str(tmp_path / "a.mp4"), "captions": ["named"], "start": 3, "id": "mine"},
    ]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    annotations = load_annotations(config_of(tmp_path, "jsonl"))
    path = tmp_path / "a.mp4"
    assert annotations.test.clips == (
        Clip("a.mp4", path),
        Clip("a.mp4#0-3", path, None, 3.0),
        Clip("a.mp4#3-7.5", path, 3.0, 7.5),
        Clip("mine", path, 3.0, None),
    )
    assert captions_by_clip(annotations.test)["a.mp4#3-7.5"] == ["second", "again"]
    assert any("empty and left out: 1" in note for note in annotations.notes)


def test_jsonl_captions_may_hold_what_python_takes_for_the_end_of_a_line(tmp_path):
    for split in ("train", "test"):
        lines = [{"video": f"{split}{i}.mp4", "captions": [f"one\u2028two\x85 {i}"]} for i in range(20)]
        text = "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
        (tmp_path / f"{split}.jsonl").write_bytes(text.encode())
    assert load_annotations(config_of(tmp_path, "jsonl")).test.captions[3] == "one\u2028two\x85 3"


@pytest.mark.parametrize("letter", ["c", "é"])
def test_a_name_that_no_file_can_have_is_a_clip_that_is_not_there(load, tmp_path, letter):
    load("jsonl")
    path = tmp_path / "jsonl" / "train.jsonl"
    path.write_text(path.read_text() + json.dumps({"video": f"{letter * 300}.mp4", "captions": ["rain"]}) + "\n")
    clip = load_annotations(config_of(tmp_path / "jsonl", "jsonl")).train.clips[-1]
    with pytest.raises(VideoError, match="there is no such file"):
        probe(clip.path)

    path.write_text(json.dumps({"video": "a\0.mp4", "captions": ["rain"]}))
    with pytest.raises(UserError, match='has no text under "video"'):
        load_annotations(config_of(tmp_path / "jsonl", "jsonl"))


def test_jsonl_finds_compressed_copies_by_their_new_suffix(load):
    def compressed(root):
        for path in (root / "films").glob("tr*.mkv"):
            path.rename(path.with_suffix(".mp4"))

    annotations = load("jsonl", compressed)
    assert "8 videos found under another suffix or in another folder than named." in annotations.notes


def test_jsonl_paths_begin_at_the_folder_of_videos_where_one_is_given(load, tmp_path):
    before = load("jsonl")
    (tmp_path / "jsonl" / "copies").mkdir()
    (tmp_path / "jsonl" / "films").rename(tmp_path / "jsonl" / "copies" / "films")
    assert not load("jsonl").test.clips[0].path.exists()
    moved = load("jsonl", videos=Path("copies"))
    assert [clip.video_id for clip in moved.train.clips] == [clip.video_id for clip in before.train.clips]
    assert all(clip.path.is_file() and "copies" in clip.path.parts for clip in (*moved.train.clips, *moved.test.clips))
    with pytest.raises(UserError, match=r"there is no folder .*none; pass --data\.videos with the one that the paths"):
        load("jsonl", videos=Path("none"))


# Pickles.

CAPTIONS = {"a_1_2": [["a", "man", "runs"], ["someone", "is", "running"]], "b_3_4": [["ein", "Käse"]]}
READ = {"a_1_2": ["a man runs", "someone is running"], "b_3_4": ["ein Käse"]}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_of_every_protocol_are_read(tmp_path, protocol):
    (tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps(CAPTIONS, protocol))
    assert msvd.read_captions(tmp_path / "raw-captions.pkl") == READ


@pytest.mark.parametrize("cheese", [b"K\xc3\xa4se", b"K\xe4se"])
def test_byte_strings_of_python_2_are_read_in_utf_8_and_latin_1(tmp_path, cheese):
    # {'b_3_4': [['ein', 'Käse']]} as Python 2 wrote it, with SHORT_BINSTRING.
    word = bytes([len(cheese)]) + cheese
    (tmp_path / "old.pkl").write_bytes(b"\x80\x02}U\x05b_3_4]](U\x03einU" + word + b"eas.")
    assert msvd.read_captions(tmp_path / "old.pkl") == {"b_3_4": ["ein Käse"]}


class Calls:
    """What runs a command when it is unpickled."""

    def __init__(self, function, *arguments) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_code_is_refused_by_name_and_has_run_nothing(tmp_path, protocol):
    mark = tmp_path / "mark"
    data = pickle.dumps({"a": [["x"]], "b": Calls(os.system, f"touch {mark}")}, protocol)
    (tmp_path / "bad.pkl").write_bytes(data)
    with pytest.raises(UserError, match=r"bad\.pkl: it asks for the global posix\.system; .*no code is run"):
        msvd.read_captions(tmp_path / "bad.pkl")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"cbuiltins\neval\n(S'1'\ntR.", r"it asks for the global builtins\.eval"),
        (b"(ios\nsystem\n.", r"it asks for the global os\.system"),
        (b"(S'echo'\nios\nsystem\n.", r"it asks for the global os\.system"),
        (b"Pthe-id\n.", r"it asks for the object 'the-id' from outside the file"),
        (b"\x80\x02U\x03abc)R.", r"it asks for REDUCE at byte 8"),
        (b"\x80\x02}}b.", r"it asks for BUILD at byte 4"),
        (b"\x82\x01.", r"it cannot be read as a pickle"),
        (b"", r"it cannot be read as a pickle"),
        (pickle.dumps(CAPTIONS)[:-9], r"it cannot be read as a pickle"),
        (pickle.dumps([1]), r"expected a dict \{id: \[\[word, …\], …\]\}, got \[1\]"),
        (pickle.dumps({"a": "text"}), r"expected id: \[\[word, …\], …\], got 'a'"),
        (pickle.dumps({"a": [[1, 2]]}), r"a: expected a list of words, got \[1, 2\]"),
        (pickle.dumps({1.5: [["x"]]}), r"expected id: .*, got 1\.5"),
    ],
)
def test_what_else_a_pickle_may_not_be(tmp_path, data, message):
    (tmp_path / "bad.pkl").write_bytes(data)
    with pytest.raises(UserError, match=message):
        msvd.read_captions(tmp_path / "bad.pkl")


# Bad files: one error each, with the file, what is wrong, and the way out.


def replaced(name: str, content: str):
    return lambda root: (root / name).write_text(content)


BAD_INPUTS = {
    "activitynet-list": ("activitynet", replaced("val_1.json", "[1]"), r'val_1\.json: expected \{"v_…"'),
    "activitynet-entry": ("activitynet", replaced("val_1.json", '{"v_a": {}}'), r"v_a: expected .*got null; correct"),
    "activitynet-ids": ("activitynet", replaced("val_ids.json", "{}"), r"val_ids\.json: expected a list of ids"),
    "activitynet-unknown": (
        "activitynet",
        replaced("val_ids.json", '["v_zz"]'),
        r"val_ids\.json: 1 clip without a caption in val_1\.json: v_zz; add their captions there, or take the",
    ),
    "lsmdc-columns": ("lsmdc", replaced("LSMDC16_annos_val.csv", "a\tb\n"), r"val\.csv, line 1: 2 columns, expected 6"),
    "lsmdc-empty": ("lsmdc", replaced("LSMDC16_annos_val.csv", "\n"), r"val\.csv has no line"),
    "lsmdc-no-sentence": ("lsmdc", replaced("LSMDC16_annos_val.csv", "a\t\t\t\t\t \n"), r"1 clip without a caption"),
    "msvd-list": ("msvd", replaced("test_list.txt", "\n"), r"test_list\.txt names no clip; write one id a line"),
    "msvd-unknown": ("msvd", replaced("test_list.txt", "zz\n"), r"test_list\.txt: 1 clip without a caption in raw-cap"),
    "didemo-object": ("didemo", replaced("val_data.json", "{}"), r'val_data\.json: expected \[\{"video"'),
    "didemo-entry": ("didemo", replaced("val_data.json", '[{"video": 3}]'), r"val_data\.json: entry 0 is .*; expected"),
    "vatex-entry": ("vatex", replaced("vatex_data.json", '{"a": {"chCap": []}}'), r'a: expected \{"enCap".* got null'),
    "vatex-list": ("vatex", replaced("vatex_data.json", "[]"), r"vatex_data\.json: expected \{id: "),
    "jsonl-cut": ("jsonl", replaced("test.jsonl", '{"video": '), r"test\.jsonl, line 1: it is not JSON"),
    "jsonl-list": ("jsonl", replaced("test.jsonl", "\n[1]"), r"test\.jsonl, line 2: it is a list; expected \{"),
    "jsonl-empty": ("jsonl", replaced("test.jsonl", " \n"), r"test\.jsonl has no line; expected in each \{"),
    "jsonl-video": ("jsonl", replaced("test.jsonl", '{"captions": ["x"]}'), r'line 1 has no "video"; its keys are'),
    "jsonl-captions": (
        "jsonl",
        replaced("test.jsonl", '{"video": "a", "captions": "x"}'),
        r'expected .*, got "x"; corr',
    ),
    "jsonl-no-caption": ("jsonl", replaced("test.jsonl", '{"video": "a", "captions": [" "]}'), r"1 clip without a cap"),
    "jsonl-start": (
        "jsonl",
        replaced("test.jsonl", '{"video": "a", "captions": ["x"], "start": "3"}'),
        r'"start" is "3", expected seconds',
    ),
    "jsonl-nan": (
        "jsonl",
        replaced("test.jsonl", '{"video": "a", "captions": ["x"], "start": NaN}'),
        r'"start" is NaN, expected seconds',
    ),
    "jsonl-order": (
        "jsonl",
        replaced("test.jsonl", '{"video": "a", "captions": ["x"], "start": 3, "end": 3}'),
        r"end is 3 and start 3; exp",
    ),
    "jsonl-id": (
        "jsonl",
        replaced("test.jsonl", '{"video": "a", "captions": ["x"], "id": 3.5}'),
        r'"id" is 3\.5, expected a text or a whole number',
    ),
    "jsonl-number-as-id": (
        "jsonl",
        replaced(
            "test.jsonl", '{"video": "a", "captions": ["x"], "id": 7}\n{"video": "b", "captions": ["x"], "id": "7"}'
        ),
        r"line 2: the id 7 stands for another clip already, .*a; give each clip its own id",
    ),
    "jsonl-caption": (
        "jsonl",
        replaced("test.jsonl", '{"video": "a", "caption": "x"}'),
        r'test\.jsonl, line 1 has no "captions"; write "captions" in place of "caption"; expected \{',
    ),
    "jsonl-no-captions": (
        "jsonl",
        replaced("test.jsonl", '{"video": "a", "start": 3}'),
        r"""has no "captions"; its keys are 'video', 'start'; expected""",
    ),
    "jsonl-two-clips": (
        "jsonl",
        replaced(
            "test.jsonl", '{"video": "a", "captions": ["x"], "id": "i"}\n{"video": "b", "captions": ["x"], "id": "i"}'
        ),
        r"line 2: the id i stands for another clip already, .*a; give each clip its own id",
    ),
    "full-split": (
        "msrvtt-full",
        lambda root: (root / "MSRVTT_data.json").write_text(
            (root / "MSRVTT_data.json").read_text().replace('"validate"', '"valid"')
        ),
        r'"split" of a clip is \'valid\', expected "train", "validate" or "test"',
    ),
    "full-without-test": (
        "msrvtt-full",
        lambda root: (root / "MSRVTT_data.json").write_text(
            (root / "MSRVTT_data.json").read_text().replace('"test"', '"train"')
        ),
        r'marks no clip as "split": "test", which the full split needs',
    ),
}

# Ids.


def test_numbers_are_ids_and_7_is_the_id_that_it_is_as_a_text(tmp_path):
    assert [identifier(value) for value in (7, "7", 7.0, " 7 ", True, 7.5, None, "", 1e300)] == [
        *("7", "7", "7", "7"),
        *(None, None, None, None, None),
    ]
    (tmp_path / "lines.jsonl").write_text('{"clip_id": 7, "text": ["x"]}\n{"clip_id": "7", "text": ["y"]}\n')
    with pytest.raises(UserError, match=r"line 2 describes 7 a second time"):
        activitynet.read_captions(tmp_path / "lines.jsonl")
    entries = [{"video": 7, "description": "One."}, {"video": "7", "description": "Two."}]
    write_json(tmp_path / "didemo.json", entries)
    assert didemo.read_captions(tmp_path / "didemo.json") == {"7": ["One. Two."]}

    (tmp_path / "a.pkl").write_bytes(pickle.dumps({7: [["x"]]}))
    assert msvd.read_captions(tmp_path / "a.pkl") == {"7": ["x"]}
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({"7": [["x"]], 7: [["y"]]}))
    with pytest.raises(UserError, match=r"the id 7 stands there twice, once as 7; join the entries"):
        msvd.read_captions(tmp_path / "b.pkl")


def test_clips_of_the_literature_may_be_numbered(load):
    def numbered(name, content):
        return lambda root: (write_json(root / name, content), (root / "videos" / "7.mp4").write_bytes(b"clip"))

    entry = {"duration": 9.5, "timestamps": [[0, 1]], "sentences": ["rain"]}
    edits = numbered("val_1.json", {"7": entry}), numbered("val_ids.json", [7])
    assert [clip.path.name for clip in load("activitynet", lambda root: [edit(root) for edit in edits]).test.clips] == [
        "7.mp4"
    ]


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_a_bad_file_is_one_error_with_the_way_out(case, load):
    recipe, edit, message = BAD_INPUTS[case]
    with pytest.raises(UserError, match=message):
        load(recipe, edit)


@pytest.mark.parametrize("recipe", WRITERS)
def test_a_folder_that_is_not_there_is_one_error(recipe, tmp_path):
    with pytest.raises(UserError, match=r"there is no folder .*none; pass --data\.root with the folder that holds"):
        load_annotations(config_of(tmp_path / "none", recipe))


def test_clips_lie_where_the_configuration_says(load, tmp_path):
    before = load("vatex")
    (tmp_path / "vatex" / "videos").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"there is no folder .*videos; .* or pass --data\.videos"):
        load("vatex")
    moved = load("vatex", videos=tmp_path / "elsewhere")
    assert [clip.path.name for clip in moved.test.clips] == [clip.path.name for clip in before.test.clips]


def test_a_clip_with_files_in_two_folders_is_refused_and_one_with_two_suffixes_is_not(load, tmp_path):
    load("vatex")
    videos = tmp_path / "vatex" / "videos"
    (videos / "te1.avi").write_bytes(b"clip")
    assert load("vatex").test.clips[1].path == videos / "te1.mp4"
    (videos / "3fps").mkdir()
    (videos / "3fps" / "te1.mp4").write_bytes(b"clip")
    with pytest.raises(
        UserError, match=r"two files of clip te1 in different folders, .*te1\.mp4; remove or move one, or"
    ):
        load("vatex")


def test_links_to_folders_are_followed_and_circles_end(load, tmp_path):
    load("lsmdc")
    videos = tmp_path / "lsmdc" / "videos"
    (videos / "te1_Some_Film").rename(tmp_path / "disk2")
    (videos / "te1_Some_Film").symlink_to(tmp_path / "disk2")
    for name in ("again", "once_more"):  # followed for ever, two circles would be endlessly many folders
        (videos / name).symlink_to(videos)
    assert all(clip.path.is_file() for clip in load("lsmdc").test.clips)


def test_reading_lsmdc_keeps_a_tab_in_a_sentence(tmp_path):
    (tmp_path / "a.csv").write_text("c\t1\t2\t1\t2\tSOMEONE says\tno.\r\n")
    assert lsmdc.read_sentences(tmp_path / "a.csv") == ({"c": ["SOMEONE says\tno."]}, 1)


def test_paragraphs_are_read_from_json_lines_too(tmp_path):
    lines = [{"clip_id": "v_a", "text": ["One. ", " Two."]}, {"clip_id": "v_b.mp4", "text": ["x"]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert activitynet.read_captions(tmp_path / "a.jsonl") == {"v_a": ["One. Two."], "v_b.mp4": ["x"]}
    assert didemo.read_captions(tmp_path / "a.jsonl") == {"v_a": ["One. Two."], "v_b": ["x"]}


def test_reading_a_pickle_imports_nothing_that_it_names(tmp_path):
    (tmp_path / "bad.pkl").write_bytes(b"cantigravity\nfly\n.")
    code = (
        "import sys\nfrom pathlib import Path\nfrom emcl_train.data.datasets.msvd import load_plain\n"
        f"try: load_plain(Path({str(tmp_path / 'bad.pkl')!r}))\n"
        "except Exception as error: print(type(error).__name__, 'antigravity' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "UserError False\n"


def test_spans_of_one_video_in_two_splits_are_said_and_held_out_together(tmp_path):
    spans = [{"video": f"v{i // 2}.mp4", "captions": [f"c{i}"], "start": i % 2, "end": i % 2 + 1} for i in range(24)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, spans)))
    (tmp_path / "test.jsonl").write_text(json.dumps({"video": "v3.mp4", "captions": ["whole"]}))
    annotations = load_annotations(config_of(tmp_path, "jsonl"))
    assert any("in the training list too: 1 of 1." in note for note in annotations.notes)
    trained = {clip.path for clip in annotations.train.clips}
    assert annotations.val.clips
    assert not trained & {clip.path for clip in annotations.val.clips}
