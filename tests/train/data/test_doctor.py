"""The doctor names what is wrong with a data set, and says by its exit code whether anything is."""

import io
import json

import pytest
from rich.console import Console
from tiny_videos import write_data_set, write_video

from emcl_train.data.doctor import run_doctor


@pytest.fixture
def root(tmp_path):
    return write_data_set(tmp_path / "set")


def examine(root, **arguments):
    console = Console(file=io.StringIO(), width=200)
    code = run_doctor("msrvtt", root, console=console, **arguments)
    return code, console.file.getvalue()


def test_a_whole_data_set_is_healthy(root):
    code, text = examine(root)
    assert code == 0
    assert "All 14 clips" in text
    assert "h264 (mp4)" in text
    assert "train: 12 clips; MSR-VTT 1k-A has 9000." in text
    assert "train: 10 clips with 30 captions." in text


def test_damaged_missing_and_foreign_clips_are_named(root, tmp_path):
    (root / "videos" / "video1.mp4").write_bytes(b"nothing")
    (root / "videos" / "video12.mp4").unlink()
    write_video(root / "videos" / "stray.mkv", [1] * 4)
    (root / "videos" / "torn.mp4").write_bytes(b"")
    code, text = examine(root, json_path=tmp_path / "report.json")
    assert code == 1
    assert "video1 (train) cannot be decoded" in text
    assert "video12 (test) cannot be decoded: there is no such file" in text
    assert "torn (not annotated) cannot be decoded" in text
    assert "13 of 16 clips decode, 3 do not" in text
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["damaged"]) == {"video1", "video12", "torn"}
    stray = next(clip for clip in report["clips"] if clip["video_id"] == "stray")
    assert (stray["reason"], stray["info"]["codec"], stray["splits"]) == (None, "h264", [])


def test_repeated_captions_are_counted(root):
    path = root / "MSRVTT_data.json"
    path.write_text(path.read_text().replace("wording 1", "wording 0"))
    assert "train: 10 clips with 30 captions, 10 of them repeated." in examine(root)[1]


def test_clips_are_examined_without_annotations_too(root):
    (root / "MSRVTT_data.json").unlink()
    code, text = examine(root)
    assert code == 1
    assert "The annotations cannot be used" in text
    assert "video13" in text


def test_a_long_table_shows_damaged_clips_only(root, monkeypatch):
    monkeypatch.setattr("emcl_train.data.doctor.LONGEST_TABLE", 5)
    (root / "videos" / "video1.mp4").write_bytes(b"nothing")
    _, text = examine(root)
    assert "video2" not in text
    assert "13 × h264" in text
