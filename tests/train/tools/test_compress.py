"""Small copies: the right frames at the right size, never an original touched, and the same bytes after a kill."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest
from rich.console import Console
from tiny_videos import level, write_video

from emcl_train import cli
from emcl_train.config import DataConfig
from emcl_train.data import h264
from emcl_train.data.passing import PassingError
from emcl_train.data.provenance import COMPRESSED, changes, provenance
from emcl_train.data.video import FrameRequest, decode_frames, probe
from emcl_train.errors import UserError
from emcl_train.tools import compress as compress_module
from emcl_train.tools.compress import Settings, compress, compress_video
from emcl_train.tools.ledger import Ledger


def run(folder: Path, out: Path, **settings) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=500)
    code = compress(folder, out, workers=1, console=console, **settings)
    return code, console.file.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path):
    """Three whole videos in two folders, a damaged one, and annotations."""
    root = tmp_path / "videos"
    (root / "films").mkdir(parents=True)
    write_video(root / "a.mp4", range(20))
    write_video(root / "films" / "b.avi", range(10), size=(48, 64))
    write_video(root / "films" / "c.mkv", range(12), size=(96, 64))
    (root / "broken.mp4").write_bytes(b"nothing")
    (root / "list.txt").write_text("a\n")
    return root


def test_copies_have_the_frames_of_their_times_and_the_size_asked_for(folder, tmp_path):
    code, text = run(folder, tmp_path / "small", short_side=32)
    assert code == 1
    assert "broken.mp4 cannot be decoded: Invalid data" in text
    assert "3 of 4 videos are in" in text
    sizes = {name: probe(tmp_path / "small" / name) for name in ("a.mp4", "films/b.mp4", "films/c.mp4")}
    assert [(i.width, i.height) for i in sizes.values()] == [(42, 32), (32, 42), (48, 32)]
    assert all((i.codec, i.fps) == ("h264", 3.0) for i in sizes.values())
    # Frames at 0, 1/3, 2/3, … s of a video with ten a second.
    frames, mask = decode_frames(FrameRequest(tmp_path / "small" / "a.mp4", 6, 16))
    assert mask.all()
    assert [level(frame) for frame in frames] == [0, 3, 6, 10, 13, 16]
    assert json.loads((tmp_path / "small" / COMPRESSED).read_text())["broken"].keys() == {"broken.mp4"}
    assert (tmp_path / "small" / "list.txt").read_text() == "a\n"


def test_a_frame_a_second_is_the_same_of_the_copy_and_of_the_original(folder, tmp_path):
    write_video(folder / "long.mp4", range(40))
    run(folder, tmp_path / "small", short_side=32)

    def of(path: Path) -> list[int]:
        frames, mask = decode_frames(FrameRequest(path, 12, 16, "1fps"))
        return [level(frame) for frame in frames[mask]]

    assert of(tmp_path / "small" / "long.mp4") == of(folder / "long.mp4") == [0, 10, 20, 30]


def test_a_run_on_copies_records_how_they_were_made(folder, tmp_path):
    run(folder, tmp_path / "small", short_side=32)
    made = provenance(DataConfig(root=tmp_path, videos=Path("small")))["compression"]
    assert (made["fps"], made["short_side"]) == (3.0, 32)
    assert provenance(DataConfig(root=tmp_path, videos=folder))["compression"] is None
    now = provenance(DataConfig(root=tmp_path, videos=Path("small")))
    assert changes({"sampler": now["sampler"], "compression": None}, now) == [
        "compression was None, now fps 3.0, short_side 32, encoding crf 20, preset medium, g 12, threads 1"
    ]


def test_sound_is_dropped(tmp_path):
    (tmp_path / "videos").mkdir()
    with av.open(str(tmp_path / "videos" / "a.mkv"), "w") as container:
        picture, sound = container.add_stream("libx264", rate=10), container.add_stream("pcm_s16le", rate=8000)
        picture.width = picture.height = 32
        for n in range(10):
            container.mux(picture.encode(av.VideoFrame(32, 32, "yuv420p")))
            frame = av.AudioFrame(format="s16", layout="mono", samples=800)
            frame.planes[0].update(bytes(1600))
            frame.rate, frame.pts = 8000, 800 * n
            container.mux(sound.encode(frame))
        container.mux(picture.encode(None))
    assert run(tmp_path / "videos", tmp_path / "small", short_side=32)[0] == 0
    with av.open(str(tmp_path / "small" / "a.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]


def test_a_second_run_does_what_is_left_and_what_has_changed(folder, tmp_path):
    run(folder, tmp_path / "small", short_side=32)
    first = contents(tmp_path / "small")
    (tmp_path / "small" / "a.mp4").unlink()
    (tmp_path / "small" / "films" / ".c.mp4.partial").write_bytes(b"half")
    _, text = run(folder, tmp_path / "small", short_side=32)
    assert "4 videos" in text
    assert "2 of them done before" in text
    assert contents(tmp_path / "small") == first
    write_video(folder / "a.mp4", [7] * 9)
    run(folder, tmp_path / "small", short_side=32)
    frames, _ = decode_frames(FrameRequest(tmp_path / "small" / "a.mp4", 1, 16))
    assert level(frames[0]) == 7


def test_partial_files_of_others_stay(folder, tmp_path):
    (tmp_path / "small" / ".mine.partial").mkdir(parents=True)
    (tmp_path / "small" / ".b.txt.partial").write_bytes(b"mine")
    run(folder, tmp_path / "small", short_side=32)
    assert (tmp_path / "small" / ".mine.partial").is_dir()
    assert (tmp_path / "small" / ".b.txt.partial").read_bytes() == b"mine"


@pytest.mark.parametrize("kind", ["a pipe", "a folder"])
def test_a_journal_that_is_no_file_is_named(kind, folder, tmp_path):
    run(folder, tmp_path / "small", short_side=32)
    journal = tmp_path / "small" / ".compressed.jsonl"
    os.mkfifo(journal) if kind == "a pipe" else journal.mkdir()
    with pytest.raises(UserError, match=r"\.compressed\.jsonl, the list of copies .* cannot be read: .*; remove it"):
        run(folder, tmp_path / "small", short_side=32)


def test_a_killed_run_started_again_ends_with_the_same_files(tmp_path):
    (tmp_path / "videos").mkdir()
    for n in range(6):
        write_video(tmp_path / "videos" / f"{n}.mp4", range(20), noise=True, size=(320, 240))
    before = contents(tmp_path / "videos")
    assert run(tmp_path / "videos", tmp_path / "whole")[0] == 0
    places = [str(tmp_path / "videos"), str(tmp_path / "out")]
    command = [sys.executable, "-m", "emcl_train", "data", "compress", *places, "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    give_up = time.monotonic() + 60
    while not list(tmp_path.glob("out/*.mp4")) and time.monotonic() < give_up:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = contents(tmp_path / "out")
    assert 0 < len([name for name in done if name.endswith(".mp4") and name[0] != "."]) < 6
    assert cli.main(["data", "compress", *places]) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert contents(tmp_path / "videos") == before


@pytest.mark.slow
def test_the_same_pictures_give_the_same_bytes_every_time(tmp_path):
    """Of a width that is no multiple of 16, at which x264's code for AVX-512 differed in one of 25 copies."""
    source = write_video(tmp_path / "a.mp4", range(20), noise=True, size=(320, 240))
    copies = set()
    for _ in range(40):
        compress_video(source, tmp_path / "copy.mp4", Settings(3.0, 224))
        copies.add((tmp_path / "copy.mp4").read_bytes())
    assert len(copies) == 1


def test_a_processor_without_avx512_is_left_to_x264(monkeypatch):
    options = {"crf": "20", "x264-params": "mbtree=0"}
    monkeypatch.setattr(h264, "_has_avx512", lambda: False)
    assert h264.repeatable(options) == options
    monkeypatch.setattr(h264, "_has_avx512", lambda: True)
    params = h264.repeatable(options)["x264-params"]
    assert params.startswith("mbtree=0:asm=")
    assert "AVX512" not in params


def test_of_two_files_of_one_name_the_one_a_loader_takes_is_copied(folder, tmp_path):
    write_video(folder / "a.avi", [9] * 5)
    _, text = run(folder, tmp_path / "small", short_side=32)
    assert f"left out, since a file beside it has the same name: {folder / 'a.avi'}" in text
    assert level(decode_frames(FrameRequest(tmp_path / "small" / "a.mp4", 1, 16))[0][0]) != 9


def linked_back(folder: Path, out: Path) -> None:
    out.mkdir()
    (out / "films").symlink_to(folder / "films")
    compress(folder, out)


def other_settings(folder: Path, out: Path) -> None:
    run(folder, out, short_side=32)
    run(folder, out, short_side=32, fps=2.0)


def foreign_videos(folder: Path, out: Path) -> None:
    out.mkdir()
    write_video(out / "a.mp4", range(3))
    compress(folder, out)


BAD_INPUTS = {
    "onto-itself": (lambda f, _: compress(f, f), r"is .*videos, inside it, or around it; pass a folder beside it"),
    "into-itself": (lambda f, _: compress(f, f / "small"), r"inside it, or around it; pass a folder beside it"),
    "around-it": (lambda f, _: compress(f, f.parent), r"inside it, or around it; pass a folder beside it"),
    "linked-back": (linked_back, r"films leads out of .*out; remove that link"),
    "no-folder": (
        lambda f, o: compress(f / "none", o),
        r"there is no folder .*none; pass the one that holds",
    ),
    "no-videos": (lambda f, o: (o.mkdir(), compress(o, f / ".." / "x")), r"holds no video: no .mp4"),
    "a-file": (lambda f, _: compress(f, f.parent / "file"), r"file is a file, expected a folder"),
    "other-settings": (other_settings, r"copies of other settings: fps was 3.0, now 2.0; go on with the same ones"),
    "foreign-videos": (foreign_videos, r"out holds videos and no compressed.json: .*pass an empty folder"),
    "no-fps": (lambda f, o: compress(f, o, fps=0.0), r"fps is 0, expected more than 0"),
    "odd-side": (lambda f, o: compress(f, o, short_side=33), r"short_side is 33, expected an even number"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_what_could_lose_or_mix_files_is_refused(case, folder, tmp_path):
    (tmp_path / "file").write_text("")
    before = contents(folder)
    call, message = BAD_INPUTS[case]
    with pytest.raises(UserError, match=message):
        call(folder, tmp_path / "out")
    assert contents(folder) == before


def test_a_video_that_is_replaced_while_it_is_compressed_gets_no_copy_of_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "videos").mkdir()
    path = write_video(tmp_path / "videos" / "a.mp4", [2] * 20)
    new = write_video(tmp_path / "new.mp4", [9] * 20)
    encode = compress_module._encode

    def replacing(*arguments):
        encode(*arguments)
        os.replace(new, path)

    with monkeypatch.context() as patch:
        patch.setattr(compress_module, "_encode", replacing)
        code, text = run(tmp_path / "videos", tmp_path / "small", short_side=32)
    assert code == 1
    assert "a.mp4 cannot be read now: it changed while" in text
    assert not list((tmp_path / "small").rglob("*.mp4"))
    assert run(tmp_path / "videos", tmp_path / "small", short_side=32)[0] == 0
    assert level(decode_frames(FrameRequest(tmp_path / "small" / "a.mp4", 1, 16))[0][0]) == 9


@pytest.mark.parametrize("change", ["later", "same-time", "within-a-second"])
def test_a_video_that_was_replaced_is_copied_again_by_its_time_or_its_size(change, tmp_path):
    (tmp_path / "videos").mkdir()
    path = write_video(tmp_path / "videos" / "a.mp4", [2] * 20)
    copy = tmp_path / "small" / "a.mp4"
    os.utime(path, ns=(10**18, 10**18))
    run(tmp_path / "videos", tmp_path / "small", short_side=32)
    write_video(path, [9] * 30)
    now = 10**18 + {"later": 5 * 10**9, "same-time": 0, "within-a-second": 10**9}[change]
    os.utime(path, ns=(now, now))
    _, text = run(tmp_path / "videos", tmp_path / "small", short_side=32)
    assert "0 of them done before" in text
    assert level(decode_frames(FrameRequest(copy, 1, 16))[0][0]) == 9
    assert "1 of them done before" in run(tmp_path / "videos", tmp_path / "small", short_side=32)[1]


BROKEN = {
    "damaged": lambda path, patch: path.write_bytes(b"nothing"),
    "gone": lambda path, patch: patch.setattr(
        compress_module, "open_video", lambda *a, **k: open_then(FileNotFoundError(errno.ENOENT, "gone"))
    ),
    "no-memory": lambda path, patch: patch.setattr(compress_module, "picture_of", raising(MemoryError())),
    "disk-error": lambda path, patch: patch.setattr(
        av, "open", raising(av.error.classes[errno.EIO](errno.EIO, "Input/output error"))
    ),
}


def raising(error):
    def call(*arguments, **settings):
        raise error

    return call


def open_then(error):
    raise PassingError(Path("a.mp4"), "it was there, and then there is no such file") from error


@pytest.mark.parametrize("kind", BROKEN)
def test_a_good_copy_stays_whatever_happens_to_its_video(kind, tmp_path, monkeypatch):
    (tmp_path / "videos").mkdir()
    path = write_video(tmp_path / "videos" / "a.mp4", [2] * 20)
    run(tmp_path / "videos", tmp_path / "small", short_side=32)
    copy = tmp_path / "small" / "a.mp4"
    before = copy.read_bytes()
    write_video(path, [9] * 30)
    with monkeypatch.context() as patch:
        BROKEN[kind](path, patch)
        if kind == "no-memory":
            with pytest.raises(UserError, match=r"videos/a\.mp4 cannot be read now: there is no memory"):
                run(tmp_path / "videos", tmp_path / "small", short_side=32)
        else:
            code, text = run(tmp_path / "videos", tmp_path / "small", short_side=32)
            assert code == 1
            assert "stays" in text
    assert copy.read_bytes() == before
    assert [entry.name for entry in (tmp_path / "small").glob(".*.partial")] == []


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ENOMEM, errno.ENOSPC])
def test_a_copy_that_cannot_be_written_is_the_file_that_is_named(number, tmp_path, monkeypatch):
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "a.mp4", [2] * 20)
    real = av.open

    def refuse(path, mode=None, **settings):
        if mode == "w":
            raise av.error.classes[number](number, os.strerror(number), str(path))
        return real(path, mode, **settings)

    monkeypatch.setattr(av, "open", refuse)
    with pytest.raises(UserError, match=r"small/a\.mp4 (cannot be written|could not be written)") as caught:
        run(tmp_path / "videos", tmp_path / "small", short_side=32)
    assert "videos/a.mp4" not in str(caught.value)


def test_a_killed_run_leaves_entries_that_belong_to_their_copies(tmp_path):
    (tmp_path / "videos").mkdir()
    path = write_video(tmp_path / "videos" / "a.mp4", [2] * 20)
    run(tmp_path / "videos", tmp_path / "small", short_side=32)
    whole = contents(tmp_path / "small")

    # Killed when the entry of a newer copy was written, and the older copy still there.
    ledger = Ledger.open(tmp_path / "small")
    newer = write_video(tmp_path / "newer.mp4", [9] * 40)
    ledger.add(tmp_path / "small" / "a.mp4", newer, [path.stat().st_size + 1, 0])
    assert (tmp_path / "small" / ".compressed.jsonl").is_file()
    assert "1 of them done before" in run(tmp_path / "videos", tmp_path / "small", short_side=32)[1]
    assert contents(tmp_path / "small") == whole

    # Somebody's journal is as if absent.
    (tmp_path / "small" / ".compressed.jsonl").write_text('{"a": 1}\n[1, 2]\n["a.mp4", ["x", 1]]\n["a.mp4", [1')
    assert "1 of them done before" in run(tmp_path / "videos", tmp_path / "small", short_side=32)[1]
    assert contents(tmp_path / "small") == whole
