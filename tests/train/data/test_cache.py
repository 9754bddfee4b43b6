"""What is merely remembered lies in the user's cache, and never stops a run."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_videos import write_data_set

from emcl_train import cli
from emcl_train.config import BEFORE, MAX_PIXELS, DataConfig, RunConfig, differing_settings
from emcl_train.data import cache, loader
from emcl_train.data.cache import cache_folder, say_what_is_not_followed
from emcl_train.data.loader import prepare
from emcl_train.errors import UserError
from emcl_train.runs.files import clear_once, partial_of
from emcl_train.tools.doctor import run_doctor


@pytest.fixture
def config(tmp_path):
    root = write_data_set(tmp_path / "set")
    return RunConfig(data=DataConfig(root=root, num_frames=2, image_size=16, workers=0))


@pytest.fixture
def decoded(monkeypatch):
    """The files that are decoded."""
    names = []
    real = loader.decode_clip
    monkeypatch.setattr(loader, "decode_clip", lambda clip, *a, **k: (names.append(clip.path), real(clip, *a, **k))[1])
    cache._warn.cache_clear()
    return names


def unwritable(tmp_path, monkeypatch, kind):
    """A machine without a place for what is remembered."""
    (tmp_path / "file").write_text("")
    folders = {"proc": "/proc/1", "below-a-file": str(tmp_path / "file"), "device": "/dev/null"}
    if kind == "no-home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr("os.path.expanduser", lambda path: path)
    elif kind.startswith("home-"):
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", folders[kind.removeprefix("home-")])
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", folders[kind])


PLACES = ["proc", "below-a-file", "device", "home-proc", "home-below-a-file", "home-device", "no-home"]


@pytest.mark.parametrize("cache_frames", [False, True])
@pytest.mark.parametrize("kind", PLACES)
def test_a_cache_that_cannot_be_written_is_said_and_stops_nothing(
    kind, cache_frames, config, tmp_path, monkeypatch, decoded, capsys
):
    unwritable(tmp_path, monkeypatch, kind)
    config.data.cache_frames = cache_frames
    annotations = prepare(config)
    assert len(decoded) == 14
    said = " ".join(capsys.readouterr().err.split())
    assert "warning: which clips are whole cannot be remembered (" in said
    assert ("decoded frames cannot be remembered" in said) == cache_frames
    assert "set XDG_CACHE_HOME to a folder that can be written, or pass one with --data.cache-dir" in said

    # Frames come from the files then.
    batch = next(iter(loader.clip_loader(annotations.test, config.data, 2)))
    assert batch["frames"].shape == (2, 2, 3, 16, 16)


@pytest.mark.parametrize("kind", PLACES)
def test_the_doctor_reports_without_a_place_for_its_file(kind, config, tmp_path, monkeypatch, capsys):
    cache._warn.cache_clear()
    unwritable(tmp_path, monkeypatch, kind)
    assert run_doctor("msrvtt", config.data.root) == 0
    out, err = capsys.readouterr()
    assert "All 14 clips" in out
    assert "everything found cannot be remembered" in " ".join(err.split())
    assert run_doctor("msrvtt", config.data.root, json_path=tmp_path / "found.json") == 0
    assert json.loads((tmp_path / "found.json").read_text())["damaged"] == {}


def test_more_bad_clips_than_an_error_names_are_counted_without_a_place_for_their_list(config, tmp_path, monkeypatch):
    unwritable(tmp_path, monkeypatch, "proc")
    for n in range(12):
        (config.data.root / "videos" / f"video{n}.mp4").write_bytes(b"")
    with pytest.raises(UserError, match=r"12 of 14 clips .*; and 2 more\. Replace the files"):
        prepare(config)


def test_a_full_disk_stops_no_check(config, monkeypatch, decoded, capsys):
    def full(path, value):
        raise UserError(f"the disk is full: {path}")

    monkeypatch.setattr(cache, "write_json_atomic", full)
    prepare(config)
    assert "which clips are whole cannot be remembered (the disk is full" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("place", [".emcl", "elsewhere", None])
def test_the_place_is_a_setting(place, config, tmp_path, decoded, own_cache):
    config.data.cache_dir = tmp_path / place if place == "elsewhere" else Path(place) if place else None
    folder = {".emcl": config.data.root / ".emcl", "elsewhere": tmp_path / "elsewhere"}.get(place, own_cache)
    assert cache_folder(config.data).is_relative_to(folder)
    prepare(config)
    prepare(config)
    assert len(decoded) == 14
    assert list(cache_folder(config.data).glob("checked-*.json"))
    assert (config.data.root / ".emcl").exists() == (place == ".emcl")


@pytest.mark.parametrize("named", ["", "relative/folder"])
def test_a_cache_home_that_is_no_absolute_path_is_as_if_absent(named, config, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", named)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder(config.data).parent == tmp_path / "home" / ".cache" / "emcl"


@pytest.mark.parametrize("cache_frames", [False, True])
def test_what_lies_beside_the_data_from_before_is_found(cache_frames, config, decoded):
    config.data.cache_frames = cache_frames
    prepare(replace(config, data=replace(config.data, cache_dir=Path(".emcl"))))
    decoded.clear()
    annotations = prepare(config)
    next(iter(loader.clip_loader(annotations.test, config.data, 2)))
    assert len(decoded) == (0 if cache_frames else 2)
    assert not cache_folder(config.data).exists()


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("cache_frames", [True, False])
def test_kept_frames_are_looked_at_only_where_they_are_used(
    cache_frames, damaged, config, decoded, monkeypatch, capsys
):
    """A run without them neither reads them for their checksum nor says that they are damaged."""
    config.data.cache_frames = True
    prepare(config)
    (frames,) = cache_folder(config.data).glob("frames-*.npy")
    if damaged:
        content = bytearray(frames.read_bytes())
        content[-1] ^= 1
        frames.write_bytes(content)

    compared = []
    real = cache.checksum_of
    monkeypatch.setattr(cache, "checksum_of", lambda path: (compared.append(path), real(path))[1])
    cache._checksum_of.cache_clear()
    capsys.readouterr()
    config.data.cache_frames = cache_frames
    annotations = prepare(config)
    next(iter(loader.clip_loader(annotations.test, config.data, 2)))
    assert (frames in compared) == cache_frames
    assert (frames.name in capsys.readouterr().err) == (cache_frames and damaged)


def test_a_run_goes_on_with_other_workers_and_another_cache():
    """The way out of too little shared memory is open to a run that has begun."""
    saved = RunConfig()
    asked = RunConfig(data=DataConfig(workers=0, cache_dir=Path("x"), cache_frames=True))
    assert differing_settings(saved, asked) == []
    assert "data.cache_dir" not in BEFORE


def index_of(config):
    (path,) = cache_folder(config.data).glob("frames-v*.json")
    return path


@pytest.mark.parametrize(
    "named", ["../mine.npy", "mine.npy", "{absolute}", "frames-0123456789abcdef.npy/../mine.npy", 5, None]
)
def test_an_index_removes_and_opens_no_file_but_our_own(named, config, tmp_path):
    """What lies beside the data came with the data."""
    beside = config.data.root / ".emcl"
    config.data.cache_frames = True
    config.data.cache_dir = Path(".emcl")
    prepare(config)
    mine = [beside / "mine.npy", config.data.root / "mine.npy", tmp_path / "mine.npy"]
    for path in mine:
        path.write_bytes(b"mine")
    index = index_of(config)
    content = json.loads(index.read_text())
    content["frames"] = named.format(absolute=tmp_path / "mine.npy") if isinstance(named, str) else named
    content["clips"] = {}
    index.write_text(json.dumps(content))
    prepare(config)
    assert [path.read_bytes() for path in mine] == [b"mine"] * 3
    assert len(list(beside.glob("frames-*.npy"))) == 1


def test_frames_that_are_a_link_or_a_pipe_are_not_opened(config, tmp_path):
    config.data.cache_frames = True
    prepare(config)
    frames = index_of(config).with_name(json.loads(index_of(config).read_text())["frames"])
    kept = frames.rename(tmp_path / "kept.npy")
    frames.symlink_to(kept)
    clips = prepare(config).train.clips
    assert not frames.is_symlink()  # made anew
    frames.unlink()
    os.mkfifo(frames)
    assert cache.FrameCache.open(config.data, clips) is None


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        '{"videos/video0.mp4": 5}',
        '{"videos/video0.mp4": {"file": 1, "reason": 2}}',
        '{"clips": []}',
        '{"clips": {"videos/video0.mp4": {"file": [1, 2], "row": "x", "valid": -1}}, "frames": {}}',
        '{"clips": null, "frames": ["a"]}',
    ],
)
def test_memory_of_another_form_is_as_if_absent(content, config):
    config.data.cache_frames = True
    prepare(config)
    for path in cache_folder(config.data).glob("*.json"):
        path.write_text(content)
    assert not prepare(config).left_out


@pytest.mark.parametrize("row", [-1, 10**6, True])
def test_a_row_that_is_not_there_is_not_read(row, config):
    config.data.cache_frames = True
    clips = prepare(config).train.clips
    content = json.loads(index_of(config).read_text())
    for entry in content["clips"].values():
        entry["row"] = row
    index_of(config).write_text(json.dumps(content))
    assert cache.FrameCache.open(config.data, clips) is None


@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_memory_beside_the_data_that_is_no_file_is_as_if_absent(kind, config, tmp_path, decoded):
    prepare(replace(config, data=replace(config.data, cache_dir=Path(".emcl"))))
    (path,) = (config.data.root / ".emcl").glob("checked-*.json")
    kept = path.rename(tmp_path / "kept.json")
    os.mkfifo(path) if kind == "pipe" else path.symlink_to(kept)
    decoded.clear()
    prepare(config)
    assert len(decoded) == 14


def test_a_linked_folder_that_came_with_the_data_is_not_written_to(config, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (config.data.root / ".emcl").symlink_to(tmp_path / "mine")
    config.data.cache_dir = Path(".emcl")
    config.data.cache_frames = True
    cache._warn.cache_clear()
    prepare(config)
    assert list((tmp_path / "mine").iterdir()) == []
    assert "a link leads out of the data set" in " ".join(capsys.readouterr().err.split())


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "cut":
        data = data[: len(data) // 2]
    elif how == "empty":
        data = bytearray()
    else:
        data[how] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("how", [0, 8, 70, 5000, -1, "cut", "empty"])
def test_damaged_frames_are_said_in_a_line_and_made_again(config, decoded, capsys, how):
    config.data.cache_frames = True
    annotations = prepare(config)
    (frames,) = cache_folder(config.data).glob("frames-*.npy")
    before = frames.read_bytes()
    damage(frames, how)
    decoded.clear()
    capsys.readouterr()

    # Loaders do not take them, whatever comes of making them again.
    assert loader.ClipDataset(annotations.test, config.data).cache is None
    prepare(config)
    assert len(decoded) == 14
    (said,) = capsys.readouterr().err.splitlines()
    assert f"{frames} is damaged: it is not what {index_of(config).name} beside it says; the frames are decoded" in said
    assert frames.read_bytes() == before
    prepare(config)
    assert len(decoded) == 14
    assert loader.ClipDataset(annotations.test, config.data).cache is not None


@pytest.mark.parametrize("how", [0, "cut", "empty"])
def test_a_damaged_index_is_said_in_a_line_and_made_again(config, decoded, capsys, how):
    config.data.cache_frames = True
    prepare(config)
    before = index_of(config).read_bytes()
    damage(index_of(config), how)
    decoded.clear()
    capsys.readouterr()
    prepare(config)
    (said,) = capsys.readouterr().err.splitlines()
    assert f"{index_of(config)} is damaged" in said
    assert len(decoded) == 14
    assert index_of(config).read_bytes() == before


def test_frames_of_an_earlier_version_are_used_and_said_once(config, decoded, capsys):
    config.data.cache_frames = True
    prepare(config)
    index = json.loads(index_of(config).read_text())
    del index["checksum"]
    index_of(config).write_text(json.dumps(index))
    decoded.clear()
    capsys.readouterr()
    for _ in range(2):
        prepare(config)
    (said,) = capsys.readouterr().err.splitlines()
    assert "has no checksum, as frames that earlier versions kept" in said
    assert decoded == []


def test_verify_looks_at_a_cache(config, capsys):
    config.data.cache_frames = True
    prepare(config)
    folder = cache_folder(config.data)
    (frames,) = folder.glob("frames-*.npy")
    assert cli.main(["verify", str(folder)]) == 0
    assert "without" not in capsys.readouterr().out
    damage(frames, 5000)
    assert cli.main(["verify", str(folder)]) == 1
    assert f"damaged: {frames}: it is not what {index_of(config).name} beside it says" in capsys.readouterr().out


def test_what_a_killed_run_left_of_its_frames_goes_with_the_next_run(config):
    """Also in a folder that this process has written into before, where other writers do not look again."""
    folder = cache_folder(config.data)
    folder.mkdir(parents=True)
    clear_once(folder)
    child = os.fork()
    if not child:
        partial_of(folder / "frames-0123456789abcdef.npy").write_bytes(b"half")
        os._exit(0)
    os.waitpid(child, 0)
    assert len(list(folder.glob(".*.partial"))) == 1
    config.data.cache_frames = True
    prepare(config)
    assert list(folder.glob(".*.partial")) == []


def test_only_partial_files_of_our_own_are_removed(config):
    folder = cache_folder(config.data)
    folder.mkdir(parents=True)
    ours = folder / ".frames-0123456789abcdef.npy.77.partial"
    mine = folder / ".frames-of-my-film.partial"
    for path in (ours, mine):
        path.write_bytes(b"")
        os.utime(path, (0, 0))
    config.data.cache_frames = True
    prepare(config)
    assert (ours.exists(), mine.exists()) == (False, True)


def test_more_pixels_than_are_read_unasked_are_said(capsys, tmp_path):
    of_run = DataConfig(root=tmp_path, max_pixels=2 * MAX_PIXELS)
    say_what_is_not_followed(of_run, replace(of_run, max_pixels=MAX_PIXELS))
    assert f"--data.max-pixels {2 * MAX_PIXELS} allows them" in capsys.readouterr().err.replace("\n", " ")
    say_what_is_not_followed(of_run, of_run)
    assert capsys.readouterr().err == ""
