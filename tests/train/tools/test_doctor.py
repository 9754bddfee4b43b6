"""The doctor names what is wrong with a data set, and says by its exit code whether anything is."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from tiny_layouts import jsonl
from tiny_videos import write_data_set, write_video

from emcl_train.config import DataConfig
from emcl_train.data import container
from emcl_train.data.cache import cache_folder
from emcl_train.data.container import VideoError, check_packets
from emcl_train.tools import doctor
from emcl_train.tools.doctor import run_doctor


@pytest.fixture
def root(tmp_path):
    return write_data_set(tmp_path / "set")


def examine(root, name="msrvtt", **arguments):
    console = Console(file=io.StringIO(), width=200)
    code = run_doctor(name, root, console=console, **arguments)
    return code, console.file.getvalue()


def test_a_whole_data_set_is_healthy(root):
    for deep, words in ((False, "are whole"), (True, "decode")):
        code, text = examine(root, deep=deep)
        assert code == 0
        assert f"All 14 clips of {root} (msrvtt) {words}." in text
        assert ("--deep decodes" in text) is not deep
    assert "h264 (mp4)" in text
    assert "train: 10 clips; MSR-VTT 1k-A has 9000." in text


def test_splits_are_counted_in_a_table_and_in_a_file(root, tmp_path):
    write_video(root / "videos" / "video0.mp4", [0] * 30)
    path = root / "MSRVTT_data.json"
    path.write_text(path.read_text().replace("wording 1", "wording 0"))
    (root / "videos" / "video2.mp4").unlink()
    (root / "videos" / "video3.mp4").write_bytes(b"")
    _, text = examine(root)
    row = next(line.split() for line in text.splitlines() if line.split()[:1] == ["train"])
    assert row == ["train", "10", "30", "10", "1", "1", "0.4", "s", "0.4", "s", "3.0", "s"]
    found = json.loads((cache_folder(DataConfig(root=root)) / "doctor.json").read_text())
    assert found["splits"]["train"] == {
        "clips": 10,
        "captions": 30,
        "repeated": 10,
        "missing": 1,
        "damaged": 1,
        "seconds": [0.4, 0.4, 3.0],
    }
    assert (found["missing"], found["damaged"]["video3"]) == (["video2"], "the file is empty")
    assert "train: 10 clips; MSR-VTT 1k-A has 9000." in found["counts"]


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
    assert "13 of 16 clips are whole; 1 is missing, 2 damaged" in text
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["damaged"]) == {"video1", "video12", "torn"}
    stray = next(clip for clip in report["clips"] if clip["video_id"] == "stray")
    assert (stray["reason"], stray["info"]["codec"], stray["splits"]) == (None, "h264", [])


def test_clips_are_examined_without_annotations_too(root):
    (root / "MSRVTT_data.json").unlink()
    code, text = examine(root)
    assert code == 1
    assert "The annotations cannot be used" in text
    assert "video13" in text


def test_a_long_table_shows_damaged_clips_only(root, monkeypatch):
    monkeypatch.setattr("emcl_train.tools.doctor.LONGEST_TABLE", 5)
    (root / "videos" / "video1.mp4").write_bytes(b"nothing")
    _, text = examine(root)
    assert "video2" not in text
    assert "13 × h264" in text


def test_clips_elsewhere_are_examined_there(root, tmp_path):
    (root / "videos").rename(tmp_path / "clips")
    assert examine(root, videos=tmp_path / "clips")[0] == 0


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("mp4", "libx265")])
def test_an_overwritten_packet_is_found_among_the_packets(tmp_path, suffix, codec):
    quiet = {"x265-params": "log-level=none:pools=1:frame-threads=1"} if codec == "libx265" else {}
    path = write_video(tmp_path / f"a.{suffix}", range(40), noise=True, codec=codec, options=quiet)
    check_packets(path)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + len(data) // 8] = bytes(len(data) // 8)
    path.write_bytes(data)
    with pytest.raises(VideoError, match=r"the packet at .* s is damaged|it is truncated"):
        check_packets(path)


def test_a_suspect_that_decodes_is_whole(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", range(20))
    monkeypatch.setattr(container, "_adds_up", lambda packet, _: False)
    check_packets(path)
    seen = []
    monkeypatch.setattr(container, "_adds_up", lambda packet, _: seen.append(packet) or len(seen) < 7)
    check_packets(path)


def test_the_damaged_real_clip_is_named_by_packets_and_by_decoding(shared_data):
    for deep in (False, True):
        code, text = examine(shared_data / "real_videos", deep=deep)
        assert code == 1
        assert "video20 (in no list) cannot be decoded: " in text
        assert "20 of 21 clips" in text


@pytest.mark.parametrize("deep", [False, True])
def test_one_file_that_the_library_stumbles_over_is_named_and_the_others_are_examined(root, monkeypatch, deep):
    name = "decode_clip" if deep else "check_packets"
    whole = getattr(doctor, name)

    def stumbling(what, *rest, **settings):
        if "video3" in str(what):
            raise IndexError("list index out of range")
        return whole(what, *rest, **settings)

    monkeypatch.setattr(doctor, name, stumbling)
    code, text = examine(root, deep=deep)
    assert code == 1
    assert text.count("cannot be decoded: ") == 1
    assert "video3 (train) cannot be decoded: it stops the decoder's library: IndexError" in text


LONG = "a_very_long_name_of_a_video_that_somebody_has_called_so_because_of_its_content_and_date"


def test_a_pipe_gets_a_row_in_a_line_without_colours(root, monkeypatch):
    shutil.copy(root / "videos" / "video0.mp4", root / "videos" / f"{LONG}.mp4")
    (root / "videos" / "video1.mp4").write_bytes(b"")
    monkeypatch.setenv("COLUMNS", "80")
    command = [sys.executable, "-m", "emcl_train", "data", "doctor", "msrvtt", str(root)]
    text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    rows = [line.split() for line in text.splitlines()]
    assert [(row[:4], row[-1]) for row in rows if row[0] == LONG] == [([LONG, "none", "h264", "(mp4)"], "yes")]
    assert not {"…", "\x1b"} & set(text.replace("`emcl-train train … ", ""))


def test_a_terminal_of_80_columns_shows_all_words(root):
    shutil.copy(root / "videos" / "video0.mp4", root / "videos" / f"{LONG}.mp4")
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    console = Console(file=terminal, width=80, force_terminal=True, color_system=None)
    run_doctor("msrvtt", root, console=console)
    text = terminal.getvalue()
    header, *rows = text[text.index(" clip ") :].splitlines()
    assert header.split() == ["clip", "split", "codec", "size", "frames/s", "seconds", "whole"]
    assert "…" not in text
    assert all(len(row) <= 80 for row in rows[:20])
    assert LONG in "".join(row.split(" ")[1] for row in rows)


@pytest.mark.parametrize("given", ["absolute", "dotted"])
def test_files_that_are_named_by_other_paths_are_counted_once(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    jsonl(Path("mine"))
    for path in Path("mine").glob("*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            video = Path("mine", line["video"]).resolve()
            line["video"] = str(video) if given == "absolute" else str(Path("..", "mine", line["video"]))
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    clips = sum(len(path.read_text().splitlines()) for path in Path("mine").glob("*.jsonl"))
    code, text = examine(Path("mine"), "jsonl")
    assert (code, f"All {clips} clips of mine (jsonl) are whole." in text) == (0, True), text
