"""What the annotation files say is what the splits hold."""

import json
from pathlib import Path

import pytest

from emcl_train.config import DataConfig
from emcl_train.data.annotation_files import video_files
from emcl_train.data.annotations import Clip, Split, load_annotations
from emcl_train.data.datasets.msrvtt import read_msrvtt


def write_layout(root, *, train, test, captions, splits=None, videos=()):
    """The MSR-VTT files. test: (id, sentence) pairs. captions: id -> list."""
    (root / "videos").mkdir(parents=True)
    (root / "MSRVTT_train.9k.csv").write_text("\n".join(["video_id", *train]) + "\n", encoding="utf-8")
    rows = [f"ret{i},msr{i},{video_id},{sentence}" for i, (video_id, sentence) in enumerate(test)]
    header = "key,vid_key,video_id,sentence"
    (root / "MSRVTT_JSFUSION_test.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    splits = splits or {}
    content = {
        "videos": [{"video_id": i, "split": splits.get(i, "train")} for i in captions],
        "sentences": [{"video_id": i, "caption": text} for i, texts in captions.items() for text in texts],
    }
    (root / "MSRVTT_data.json").write_text(json.dumps(content), encoding="utf-8")
    for name in videos:
        (root / "videos" / name).touch()


def two_each(ids):
    return {i: [f"{i} is seen", f"{i} is heard"] for i in ids}


IDS = [f"video{i}" for i in range(40)]


@pytest.fixture
def config(tmp_path):
    """30 training clips, 4 validation clips, 6 test clips."""
    write_layout(
        tmp_path / "set",
        train=IDS[:30],
        test=[(i, f"sentence of {i}") for i in IDS[34:]],
        captions=two_each(IDS),
        splits=dict.fromkeys(IDS[:4] + IDS[30:34], "validate"),
        videos=[f"{i}.mp4" for i in IDS[1:]] + ["video0.webm"],
    )
    return DataConfig(root=tmp_path / "set")


def ids_of(split):
    return [clip.video_id for clip in split.clips]


def pairs_of(split):
    return [(ids_of(split)[i], text) for text, i in zip(split.captions, split.caption_clip, strict=True)]


def test_training_has_every_caption_and_test_its_sentence(config):
    annotations = load_annotations(config)
    assert ids_of(annotations.train) == IDS[:30]
    assert pairs_of(annotations.train)[:2] == [("video0", "video0 is seen"), ("video0", "video0 is heard")]
    assert len(annotations.train.captions) == 60
    assert pairs_of(annotations.test) == [(i, f"sentence of {i}") for i in IDS[34:]]
    assert annotations.left_out == {}


def test_all_captions_of_the_test_clips_are_queries_on_request(config):
    config.test_captions = "all"
    annotations = load_annotations(config)
    assert pairs_of(annotations.test) == [(i, f"{i} is {way}") for i in IDS[34:] for way in ("seen", "heard")]
    assert len(annotations.val.captions) == 2 * len(annotations.val.clips)


def test_validation_clips_are_the_ones_of_the_json_that_no_list_names(config):
    annotations = load_annotations(config)
    assert pairs_of(annotations.val) == [(i, f"{i} is seen") for i in IDS[30:34]]
    assert annotations.notes == (
        "train: 30 clips; MSR-VTT 1k-A has 9000.",
        "test: 6 clips; MSR-VTT 1k-A has 1000.",
    )


def test_without_validation_clips_a_tenth_of_the_training_list_is_held_out(tmp_path):
    def load(root, ids):
        write_layout(root, train=ids, test=[("t", "x")], captions=two_each([*ids, "t"]))
        return load_annotations(DataConfig(root=root))

    first, reordered = load(tmp_path / "a", IDS), load(tmp_path / "b", IDS[::-1])
    assert len(first.val.clips) == 4
    assert sorted(ids_of(first.train) + ids_of(first.val)) == sorted(IDS)
    assert set(ids_of(first.val)) == set(ids_of(reordered.val))
    assert any("to select the epoch: 4 clips" in note for note in first.notes)


def test_no_more_clips_are_held_out_than_asked_for(tmp_path):
    write_layout(tmp_path / "set", train=IDS, test=[("t", "x")], captions=two_each([*IDS, "t"]))
    config = DataConfig(root=tmp_path / "set", validation_clips=1)
    assert len(load_annotations(config).val.clips) == 1


def test_repetitions_and_overlaps_are_noted_and_used_once(tmp_path):
    test = [("t", "same words"), ("u", "same words"), ("t", "other words"), ("video1", "w")]
    write_layout(tmp_path / "set", train=[*IDS, "video3"], test=test, captions=two_each([*IDS, "t", "u"]))
    annotations = load_annotations(DataConfig(root=tmp_path / "set"))
    notes = "\n".join(annotations.notes)
    assert "MSRVTT_train.9k.csv repeats 1 id;" in notes
    assert "MSRVTT_JSFUSION_test.csv repeats 1 id;" in notes
    assert "in the training list too: 1 of 3" in notes
    assert "repeat another one: 1 of 4" in notes
    assert ids_of(annotations.test) == ["t", "u", "video1"]
    assert pairs_of(annotations.test)[:2] == [("t", "same words"), ("t", "other words")]


def test_a_missing_file_keeps_its_place(config):
    (config.root / "videos" / "video35.mp4").unlink()
    clips = {clip.video_id: clip.path for clip in load_annotations(config).test.clips}
    assert clips["video35"] == config.root / "videos" / "video35.mp4"
    assert not clips["video35"].exists()


def test_other_containers_are_found_and_mp4_comes_first(config):
    (config.root / "videos" / "video1.avi").touch()
    (config.root / "videos" / "video2.MKV").touch()
    (config.root / "videos" / "video2.mp4").unlink()
    (config.root / "videos" / ".video3.mp4").touch()
    (config.root / "videos" / "notes.txt").touch()
    files = video_files(config.root / "videos")
    assert {files[i][0].name for i in IDS[:3]} == {"video0.webm", "video1.mp4", "video2.MKV"}
    assert set(files) == set(IDS)


def test_files_with_a_byte_order_mark_and_crlf_are_read(config):
    path = config.root / "MSRVTT_train.9k.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_msrvtt(config.root).train_ids == IDS[:30]


def test_split_leaves_clips_out_with_their_captions():
    clips = tuple(Clip(i, Path(i)) for i in "abc")
    split = Split("test", clips, ("a1", "b1", "c1", "a2", "c2"), (0, 1, 2, 0, 2))
    left = split.without({"a", "unknown"})
    assert pairs_of(left) == [("b", "b1"), ("c", "c1"), ("c", "c2")]
    assert split.without(set()) == split


def test_real_annotations_have_the_published_sizes(shared_data, tmp_path):
    """The real lists of MSR-VTT 1k-A, with captions made up for the training clips."""
    source = shared_data / "annotations"
    for name in ("MSRVTT_train.9k.csv", "MSRVTT_JSFUSION_test.csv"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    ids = (source / "MSRVTT_train.9k.csv").read_text().split()[1:]
    content = {
        "videos": [{"video_id": i, "split": "validate" if k % 18 == 0 else "train"} for k, i in enumerate(ids)],
        "sentences": [{"video_id": i, "caption": f"clip {i}"} for i in ids],
    }
    (tmp_path / "MSRVTT_data.json").write_text(json.dumps(content))
    (tmp_path / "videos").mkdir()
    annotations = load_annotations(DataConfig(root=tmp_path))
    assert [len(s.clips) for s in (annotations.train, annotations.val, annotations.test)] == [8500, 500, 1000]
    assert "Test captions that repeat another one: 5 of 1000. Their ranks cannot all be 1." in annotations.notes


def test_the_demo_of_real_clips_loads(shared_data):
    annotations = load_annotations(DataConfig(root=shared_data / "real_videos"))
    assert all(clip.path.is_file() for clip in annotations.test.clips)
    assert any("do not measure generalisation" in note for note in annotations.notes)
