"""Trouble of the machine is named as its own: it condemns no file, is not remembered, and leaves no clip out."""

import builtins
import errno
import json
import os
import pickle
import resource
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import av
import pytest
from tiny_videos import write_data_set, write_video

from emcl_train.config import DataConfig, RunConfig
from emcl_train.data import opening
from emcl_train.data.annotation_files import visible_files
from emcl_train.data.cache import CheckedClips, cache_folder
from emcl_train.data.loader import clip_loader, prepare
from emcl_train.data.names import is_there
from emcl_train.data.passing import PassingError
from emcl_train.data.video import FrameRequest, VideoError, decode_frames
from emcl_train.errors import UserError
from emcl_train.tools.compress import compress
from emcl_train.tools.doctor import run_doctor


@pytest.fixture
def config(tmp_path):
    root = write_data_set(tmp_path / "set")
    return RunConfig(data=DataConfig(root=root, num_frames=2, image_size=16, workers=0, on_bad_video="skip"))


NUMBERS = [
    errno.EACCES, errno.EPERM, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, errno.ENOENT,
    errno.ETIMEDOUT, errno.EBUSY,
]  # fmt: skip


def failing(monkeypatch, number: int, place: str, name: str = "video1.mp4") -> None:
    """The system fails with this number where a video is opened: by FFmpeg, or beside it."""
    target, attribute = {"av.open": (av, "open"), "open": (builtins, "open"), "stat": (os, "stat")}[place]
    real = getattr(target, attribute)

    def unread(path, code):
        raise PassingError(path, os.strerror(number), number)

    def refuse(path, *rest, **settings):
        if not str(path).endswith(name):
            return real(path, *rest, **settings)
        if place == "av.open":
            monkeypatch.setattr(opening, "require_readable", unread)
            raise av.error.classes[number](number, os.strerror(number), str(path))
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(target, attribute, refuse)
    if place == "open":
        opened = Path.open
        monkeypatch.setattr(
            Path, "open", lambda path, *a, **k: refuse(path) if path.name == name else opened(path, *a, **k)
        )


def remembered(config: RunConfig) -> dict[str, object]:
    files = list(cache_folder(config.data).glob("checked-*.json"))
    return json.loads(files[0].read_text()) if files else {}


@pytest.mark.parametrize("place", ["av.open", "open"])
@pytest.mark.parametrize("number", NUMBERS)
def test_an_error_of_the_system_leaves_no_clip_out_and_is_not_remembered(number, place, config, monkeypatch):
    with monkeypatch.context() as patch:
        failing(patch, number, place)
        with pytest.raises(UserError, match=r"video1\.mp4 cannot be read now: .* trouble of this machine") as caught:
            prepare(config)
        assert "\n" not in str(caught.value)
    assert "videos/video1.mp4" not in remembered(config)
    assert not prepare(config).left_out


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_file_that_cannot_be_asked_for_is_not_missing(number, config, monkeypatch):
    failing(monkeypatch, number, "stat")
    with pytest.raises(PassingError, match=os.strerror(number)):
        prepare(config)
    assert is_there(config.data.root / "videos" / "video1.mp4")


def test_several_files_are_named_in_one_line(config, monkeypatch):
    failing(monkeypatch, errno.EIO, "av.open", "4")
    with pytest.raises(UserError, match=r"14 of 14 clips cannot be read now: .*; and 4 more; that is trouble of this"):
        prepare(config)


def test_a_missing_file_and_a_damaged_one_are_left_out_and_only_damage_is_remembered(config):
    (config.data.root / "videos" / "video1.mp4").unlink()
    (config.data.root / "videos" / "video2.mp4").write_bytes(b"nothing")
    assert prepare(config).left_out.keys() == {"video1", "video2"}
    known = remembered(config)
    assert "videos/video1.mp4" not in known
    assert known["videos/video2.mp4"]["verdict"]


def test_what_earlier_versions_remembered_as_damage_is_looked_at_again(config):
    prepare(config)
    (path,) = cache_folder(config.data).glob("checked-*.json")
    known = json.loads(path.read_text())
    known["videos/video1.mp4"] = {
        "file": known["videos/video1.mp4"]["file"],
        "reason": "[Errno 24] Too many open files",
    }
    path.write_text(json.dumps(known))
    assert not prepare(config).left_out


@contextmanager
def growing(path: Path, piece: bytes = b"x" * 100):
    """A file that is being written."""
    stop = threading.Event()

    def write():
        while not stop.wait(0.02):
            with path.open("ab") as file:
                file.write(piece)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("kind", ["prepare", "doctor", "compress"])
def test_a_file_that_grows_is_not_damaged(kind, config, tmp_path, capsys):
    path = config.data.root / "videos" / "video1.mp4"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with growing(path):
        if kind == "prepare":
            with pytest.raises(UserError, match=r"video1.mp4 cannot be read now: it (is still being|changed while)"):
                prepare(config)
            assert "videos/video1.mp4" not in remembered(config)
        elif kind == "doctor":
            assert run_doctor("msrvtt", config.data.root, json_path=tmp_path / "found.json") == 1
            found = json.loads((tmp_path / "found.json").read_text())
            assert (found["damaged"], found["unread"].keys()) == ({}, {"video1"})
        else:
            assert compress(config.data.root / "videos", tmp_path / "small", short_side=32, workers=1) == 1
            assert json.loads((tmp_path / "small" / "compressed.json").read_text())["broken"] == {}
    path.write_bytes(whole)
    assert not prepare(config).left_out


def test_a_file_that_changes_while_it_is_decoded_gives_no_frames(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", range(5))
    other = write_video(tmp_path / "b.mp4", range(5), size=(96, 64))
    real = opening.opened

    def replaced(*arguments):
        container = real(*arguments)
        os.replace(other, path)
        return container

    monkeypatch.setattr("emcl_train.data.container.opened", replaced)
    with pytest.raises(PassingError, match="it changed while it was read"):
        decode_frames(FrameRequest(path, 2, 16))


def test_the_verdict_belongs_to_the_file_as_it_was_before_it_was_read(config, tmp_path):
    path = config.data.root / "videos" / "video1.mp4"
    checked = CheckedClips(config.data)
    clip = next(clip for clip in prepare(config).train.clips if clip.path == path)
    before = opening.fingerprint(path)
    write_video(path, range(9))
    checked.add(clip, "it was damaged", before)
    assert not checked.knows(clip)


def test_an_error_in_a_worker_process_keeps_its_kind(config, monkeypatch):
    config.data.workers = 1
    split = prepare(config).train
    failing(monkeypatch, errno.ESTALE, "av.open")
    with pytest.raises(PassingError) as caught:
        list(clip_loader(split, config.data, batch_size=4))
    assert (caught.value.code, caught.value.path.name) == (errno.ESTALE, "video1.mp4")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_no_memory_for_a_picture_is_no_damage(error, config, monkeypatch):
    def none(*arguments):
        raise error

    monkeypatch.setattr("emcl_train.data.video.square", none)
    with pytest.raises(PassingError, match="there is no memory for it"):
        prepare(config)
    assert remembered(config) == {}


def test_too_few_handles_for_real(config):
    """All but the few that this process has left are in use."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    prepare(replace(config, data=replace(config.data, num_frames=3)))  # imports what opens files of its own
    held = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        try:
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        with pytest.raises(PassingError, match="Too many open files"):
            decode_frames(FrameRequest(config.data.root / "videos" / "video1.mp4", 2, 16))
    finally:
        for handle in held:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


WITH_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from emcl_train.data.passing import PassingError
from emcl_train.data.video import FrameRequest, VideoError, decode_frames
path = Path(sys.argv[1])
decode_frames(FrameRequest(Path(sys.argv[2]), 2, 16))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
for spare in (10, 60, 150, 300):
    resource.setrlimit(resource.RLIMIT_AS, (used + (spare << 20), -1))
    try:
        decode_frames(FrameRequest(path, 2, 16))
    except PassingError as error:
        print("passing", error.code)
    except VideoError as error:
        print("verdict", error)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="asks Linux how much is in use")
def test_too_little_memory_for_real(tmp_path):
    """Decoders report it in many ways, some of them as damage."""
    large = write_video(tmp_path / "a.mp4", range(3), size=(4096, 4096))
    small = write_video(tmp_path / "b.mp4", range(3))
    command = [sys.executable, "-c", WITH_LITTLE_MEMORY, str(large), str(small)]
    out = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "verdict" not in out.stdout, out.stdout
    assert out.stdout.count(f"passing {errno.ENOMEM}") >= 2, out.stdout + out.stderr[-500:]


def test_a_folder_that_cannot_be_listed_is_not_empty(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "lost+found").mkdir()
    write_video(tmp_path / "a" / "b.mp4", range(3))
    real = os.scandir

    def refused(name):
        def scandir(path):
            if Path(path).name == name:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return real(path)

        return scandir

    monkeypatch.setattr(os, "scandir", refused("a"))
    with pytest.raises(PassingError, match="Permission denied"):
        list(visible_files(tmp_path))
    monkeypatch.setattr(os, "scandir", refused("lost+found"))
    assert [path.name for path in visible_files(tmp_path)] == ["b.mp4"]


def test_the_doctor_names_trouble_apart_from_damage(config, tmp_path, monkeypatch, capsys):
    (config.data.root / "videos" / "video2.mp4").write_bytes(b"nothing")
    failing(monkeypatch, errno.EIO, "av.open")
    assert run_doctor("msrvtt", config.data.root, json_path=tmp_path / "found.json") == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "video1 (train) could not be examined: Input/output error" in text
    assert "12 of 14 clips are whole; 0 are missing, 1 damaged" in text
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["unread"], found["damaged"].keys()) == ({"video1": "Input/output error"}, {"video2"})


def test_waiting_for_files_that_grow_happens_once(config, monkeypatch):
    for number in range(1, 6):
        (config.data.root / "videos" / f"video{number}.mp4").write_bytes(b"nothing")
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    assert len(prepare(config).left_out) == 5
    assert waits == [opening.PAUSE]


def ffmpeg_fails(monkeypatch, number: int, times: int) -> None:
    """FFmpeg gives a number where the system has no trouble."""
    real = av.open
    left = [times]

    def refuse(path, *rest, **settings):
        if left[0]:
            left[0] -= 1
            raise av.error.classes[number](number, os.strerror(number), str(path))
        return real(path, *rest, **settings)

    monkeypatch.setattr(av, "open", refuse)


OF_READERS = [errno.EIO, errno.ENOMEM, errno.EAGAIN, errno.EPERM]


@pytest.mark.parametrize("number", OF_READERS)
def test_numbers_that_ffmpeg_gives_for_data_are_verdicts(number, config, monkeypatch):
    ffmpeg_fails(monkeypatch, number, times=-1)
    with pytest.raises(VideoError, match=r"and the system can|more memory than a film needs"):
        decode_frames(FrameRequest(config.data.root / "videos" / "video1.mp4", 2, 16))


@pytest.mark.parametrize("number", OF_READERS)
def test_what_ffmpeg_reads_a_moment_later_is_not_damaged(number, config, monkeypatch):
    ffmpeg_fails(monkeypatch, number, times=1)
    with pytest.raises(PassingError, match="trouble of this machine"):
        decode_frames(FrameRequest(config.data.root / "videos" / "video1.mp4", 2, 16))


@pytest.mark.parametrize("number", OF_READERS)
def test_numbers_of_the_system_are_none(number, config, monkeypatch):
    path = config.data.root / "videos" / "video1.mp4"
    ffmpeg_fails(monkeypatch, number, times=-1)
    opened = Path.open

    class Unread:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def fileno(self):
            return os.open(path, os.O_RDONLY)

        def read(self, count):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "open", lambda it, *a, **k: Unread() if it == path else opened(it, *a, **k))
    with pytest.raises(PassingError, match=os.strerror(errno.EIO)):
        decode_frames(FrameRequest(path, 2, 16))


def test_a_file_whose_inode_changes_is_the_same_file(config, monkeypatch):
    """As mounts by network do."""
    real = os.stat
    number = iter(range(1, 10**6))

    def stat(path, **settings):
        status = real(path, **settings)
        return os.stat_result((status[0], next(number), *status[2:]), {"st_mtime_ns": status.st_mtime_ns})

    monkeypatch.setattr(opening.os, "stat", stat)
    assert decode_frames(FrameRequest(config.data.root / "videos" / "video1.mp4", 2, 16))[0].shape[0] == 2


CUT = ["mp4", "mkv", "avi", "flv", "ts", "mpg", "mov"]


@pytest.mark.parametrize("suffix", CUT)
def test_damaged_bytes_are_never_trouble_of_the_machine(suffix, tmp_path):
    made = write_video(tmp_path / f"a.{suffix}", range(5)).read_bytes()
    path = tmp_path / f"b.{suffix}"
    spoiled = [made[: len(made) * part // 4] for part in (1, 2, 3)]
    spoiled += [made[:at] + bytes([made[at] ^ 0xFF]) + made[at + 1 :] for at in range(0, min(len(made), 1024), 61)]
    for data in spoiled:
        path.write_bytes(data)
        with suppress(VideoError):
            decode_frames(FrameRequest(path, 2, 16))


def test_damage_is_a_verdict(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"nothing")
    with pytest.raises(VideoError, match="Invalid data"):
        decode_frames(FrameRequest(path, 2, 16))
