"""What is known of clips from earlier runs: which of them decode, and their sampled frames.

Everything lies in the user's cache folder, or in `data.cache_dir`; what earlier versions left in `<data.root>/.emcl` is
found there. It can all be found out again, so that no run ends because it cannot be written. An entry holds for one
size and modification time of its video file, one span of it, one way of sampling and one version of the sampler;
otherwise it is as if absent.
"""

import errno
import functools
import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from rich.markup import escape
from torch import Tensor

from emcl_train.config import MAX_PIXELS, DataConfig
from emcl_train.data.clips import Clip
from emcl_train.data.opening import fingerprint
from emcl_train.data.passing import PassingError
from emcl_train.data.video import PICTURES, VIDEO_SAMPLER_VERSION, sampler_version
from emcl_train.errors import UserError
from emcl_train.flags import flag
from emcl_train.runs.checksums import TRIES, checksum_of, identity_of
from emcl_train.runs.files import clear_partial, json_if_whole, partial_of, raise_if_disk_full, write_json_atomic
from emcl_train.runs.machine import is_first_process
from emcl_train.terminal import escaped, say

ABANDONED_AFTER = 3600.0
"""Seconds without a write after which an unfinished cache belongs to a run that was killed."""


BESIDE_DATA = ".emcl"
"""Where earlier versions put it, in `data.root`."""


def cache_folder(config: DataConfig) -> Path | None:
    """Where to remember things about a data set; not created yet. None where the user has no folder for such things."""
    if config.cache_dir is not None:
        return config.root / config.cache_dir.expanduser()

    home = user_cache()
    return None if home is None else home / hashlib.sha256(os.fsencode(config.root.resolve())).hexdigest()[:16]


def user_cache() -> Path | None:
    """The folder with one for each data set; None where the user has no folder for such things."""
    # By the specification of XDG_CACHE_HOME, one that is not absolute is as if absent.
    folder = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(folder):
        folder = os.path.join(os.path.expanduser("~"), ".cache")
    return Path(folder) / "emcl" if os.path.isabs(folder) else None


def remembered_in(config: DataConfig) -> list[Path]:
    """Where to look for what is remembered: the place to write to first."""
    folder = cache_folder(config)
    return [config.root / BESIDE_DATA] if folder is None else [folder, config.root / BESIDE_DATA]


def place_of(name: str, config: DataConfig) -> Path:
    """Where a file of memory is written.

    Raises:
        OSError: there is no such place, or it is a link that came with the data set.
    """
    folder = cache_folder(config)
    if folder is None:
        raise FileNotFoundError(errno.ENOENT, "the user has no home folder")

    # A folder of the data set is whoever's made the data set: a link in it would lead to any place.
    inside = config.cache_dir is not None and folder.is_relative_to(config.root)
    if inside and any(part.is_symlink() for part in (folder, *folder.parents) if config.root in part.parents):
        raise OSError(errno.ELOOP, "a link leads out of the data set; name the folder that it leads to", str(folder))
    return folder / name


def say_what_is_not_followed(of_run: DataConfig, config: DataConfig) -> None:
    """Say what of a run's configuration, which may be a stranger's, is done only if the user says it too.

    Args:
        of_run: what the run's configuration says.
        config: what is done.
    """
    if of_run.cache_dir is not None and config.cache_dir != of_run.cache_dir:
        say(
            f"the configuration of the run keeps what is known of clips in {escape(str(of_run.cache_dir))}, which "
            f"is not used unasked; {escape(flag('data.cache_dir'))} with that folder uses it"
        )
    if of_run.max_pixels > config.max_pixels:
        say(
            f"the configuration of the run allows frames of {of_run.max_pixels} pixels, of which no more than "
            f"{config.max_pixels} are read unasked; {escape(flag('data.max_pixels'))} {of_run.max_pixels} allows them"
        )


@contextmanager
def only_remembered(what: str, *, also: tuple[type[Exception], ...] = (UserError,)) -> Iterator[None]:
    """Go on if what the block remembers cannot be written, which is said once.

    Args:
        what: what the next run will have to find out again.
        also: other errors than those of the system that mean this; a full disk is a UserError.
    """
    meant: tuple[type[Exception], ...] = (OSError, *also)
    try:
        yield
    except meant as error:
        place = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        reason = error.strerror or error if isinstance(error, OSError) else error
        _warn(
            f"{what} cannot be remembered ({place}{reason}); set XDG_CACHE_HOME to a folder that can be written, or "
            f"pass one with {flag('data.cache_dir')}"
        )


@functools.cache
def _warn(text: str) -> None:
    say(f"[yellow]warning:[/yellow] {escape(text)}")


@functools.cache
def _say_once(text: str) -> None:
    if is_first_process():
        say(escaped(text))


def entry_key(clip: Clip, root: Path) -> str:
    """What a clip is remembered by: its file, relative to the data set where it lies there, and the span of it."""
    path = clip.path.relative_to(root) if clip.path.is_relative_to(root) else clip.path
    span = "" if clip.start is None and clip.end is None else f"#{clip.start}-{clip.end}"
    return f"{path.as_posix()}{span}"


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file that may be a stranger's: whatever else it is, it is as if absent."""
    content = json_if_whole(path) if _is_plain(path) else None
    return content if isinstance(content, dict) else {}  # everything in it can be found out again


def _is_plain(path: Path) -> bool:
    """Whether a path is a file, and neither a link nor a pipe, at which reading would wait for ever."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def _entries_of(content: Any, **kinds: Any) -> dict[str, dict[str, Any]]:
    """The entries of clips that are as we write them: a file's fingerprint, and values of these kinds."""
    if not isinstance(content, dict):
        return {}
    kinds["file"] = list
    return {
        name: entry
        for name, entry in content.items()
        if isinstance(entry, dict) and all(type(entry.get(key)) in _kinds(kind) for key, kind in kinds.items())
    }


def _kinds(kind: Any) -> tuple[type, ...]:
    return kind if isinstance(kind, tuple) else (kind,)


class CheckedClips:
    """Which video files gave their frames, and why the others did not.

    What is remembered is FFmpeg's own verdict on a file, by what the file was before it was read. Trouble of the
    machine is no verdict, and a file that is not there has none.
    """

    def __init__(self, config: DataConfig) -> None:
        self.root = config.root
        self._config = config
        looked_at = f"{_sampling(config)}-{config.frame_choice}-{config.display}"
        limit = "" if config.max_pixels == MAX_PIXELS else f"-{config.max_pixels}"
        self._name = f"checked-v{VIDEO_SAMPLER_VERSION}-{looked_at}{limit}.json"
        self._entries: dict[str, dict[str, Any]] = {}
        for folder in reversed(remembered_in(config)):
            entries = _entries_of(_read_json(folder / self._name), reason=(str, type(None)))

            # Earlier versions wrote down trouble of the machine among the reasons.
            trusted = {key: entry for key, entry in entries.items() if entry["reason"] is None or entry.get("verdict")}
            self._entries |= trusted

    def knows(self, clip: Clip) -> bool:
        now = fingerprint(clip.path)
        return now is not None and self._entries.get(entry_key(clip, self.root), {}).get("file") == now

    def reason(self, clip: Clip) -> str | None:
        """Why a known clip cannot be decoded; None where it can."""
        return self._entries[entry_key(clip, self.root)]["reason"]

    def add(self, clip: Clip, reason: str | None, file: list[int] | None) -> None:
        """Remember a clip.

        Args:
            clip: the clip.
            reason: why it cannot be decoded, in FFmpeg's judgement; None if it can.
            file: the fingerprint of its file before it was read; None if there was none.
        """
        if file is not None:
            self._entries[entry_key(clip, self.root)] = {"file": file, "reason": reason, "verdict": True}

    def save(self) -> None:
        """Write what is known, if that can be done."""
        with only_remembered("which clips are whole"):
            write_json_atomic(place_of(self._name, self._config), self._entries)


def _index_name(config: DataConfig) -> str:
    version = sampler_version(config)
    pictures = "" if version == 1 else "".join(f"-{getattr(config, name)}" for name in PICTURES)
    return f"frames-v{version}-{_sampling(config)}{pictures}x{config.image_size}.json"


def _sampling(config: DataConfig) -> str:
    return f"{config.frame_sampling}-{config.num_frames}"


class FrameCache:
    """Sampled frames of clips in one memory-mapped file, uint8 [clips, F, 3, S, S]."""

    def __init__(self, frames: np.ndarray, entries: dict[str, dict[str, Any]], root: Path) -> None:
        self._frames, self._entries, self._root = frames, entries, root

    @classmethod
    def open(cls, config: DataConfig, clips: Iterable[Clip]) -> "FrameCache | None":
        """The finished cache, if it holds all of these clips as their files are now."""
        for folder in remembered_in(config):
            if (cache := cls._open(folder / _index_name(config), config, clips)) is not None:
                return cache
        return None

    @classmethod
    def _open(cls, path: Path, config: DataConfig, clips: Iterable[Clip]) -> "FrameCache | None":
        index = _read_json(path)
        if not index and _is_plain(path):
            _say_once(f"{path} is damaged: it does not say which frames are there; they are decoded again")
        entries = _entries_of(index.get("clips"), row=int, valid=int)
        for clip in clips:
            if entries.get(entry_key(clip, config.root), {}).get("file") != fingerprint(clip.path):
                return None
        frames = _read_frames(path, index)
        shape = (config.num_frames, 3, config.image_size, config.image_size)
        if frames is None or frames.shape[1:] != shape or frames.dtype != np.uint8:
            return None
        if not all(0 <= entry["row"] < len(frames) for entry in entries.values()):
            return None
        return cls(frames, entries, config.root)

    def read(self, clip: Clip) -> tuple[UInt8[Tensor, "F 3 S S"], Bool[Tensor, "F"]]:
        """What `decode_frames` returned for a clip."""
        entry = self._entries[entry_key(clip, self._root)]
        frames = torch.from_numpy(np.array(self._frames[entry["row"]]))
        return frames, torch.arange(len(frames)) < entry["valid"]


OF_FRAMES = re.compile(r"frames-[0-9a-f]{16}\.npy")
"""Names of files of frames, as `FrameCacheWriter` makes them. An index may be a stranger's: no other file is opened or
removed for it."""


def is_index(name: str) -> bool:
    """Whether a file of this name says what a file of frames holds."""
    return re.fullmatch(r"frames-v.+\.json", name) is not None


def frames_of_index(index: Path) -> Path | None:
    """The file of frames that an index is of; None if there is none that we could have written."""
    return _ours(index.parent, _read_json(index).get("frames"))


def frames_unchanged(index: Path, frames: Path) -> bool | None:
    """Whether all bytes of a file of frames are what its index says; None in indices of earlier versions.

    Raises:
        OSError: it cannot be read.
    """
    for _ in range(TRIES):
        noted, before = _read_json(index).get("checksum"), identity_of(frames)
        if noted is None:
            return None
        if _checksum_of(frames, before) == noted:
            return True

        # Another process may have made both again.
        if noted == _read_json(index).get("checksum") and before == identity_of(frames):
            break
    return False


@functools.cache
def _checksum_of(path: Path, identity: tuple[int, ...]) -> str:
    """Of a file as it is now: a loader opens it for each epoch."""
    return checksum_of(path)


def _read_frames(index: Path, content: dict[str, Any]) -> np.ndarray | None:
    """The frames of a file in the cache's folder; None if there is none that we wrote, or they are damaged."""
    path = _ours(index.parent, content.get("frames"))
    if path is None:
        return None
    try:
        unchanged = frames_unchanged(index, path)
        frames: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(frames, np.ndarray) or frames.ndim != 5:
            raise ValueError("it has other dimensions")
    except OSError:
        return None
    except (ValueError, EOFError):
        _say_damaged(path, index.name)
        return None

    if unchanged is None:
        _say_once(
            f"{path} has no checksum, as frames that earlier versions kept: whether they have changed cannot be seen; "
            f"without that file they are decoded again"
        )
    elif not unchanged:
        _say_damaged(path, index.name)
        return None
    return frames


def _say_damaged(path: Path, index: str) -> None:
    _say_once(f"{path} is damaged: it is not what {index} beside it says; the frames are decoded again")


def _ours(folder: Path, name: Any) -> Path | None:
    """The file of frames of this name; None if there is none that we could have written."""
    known = isinstance(name, str) and OF_FRAMES.fullmatch(name) is not None
    return folder / name if known and _is_plain(folder / name) else None


class FrameCacheWriter:
    """A frame cache in the making; nobody sees it before `finish`."""

    @classmethod
    def begin(cls, config: DataConfig, clips: Sequence[Clip]) -> "FrameCacheWriter | None":
        """One for these clips; None where it cannot be written, which is said.

        Raises:
            UserError: the disk has not enough room.
        """
        writer = None
        with only_remembered("decoded frames", also=()):
            writer = cls(config, clips)
        return writer

    def __init__(self, config: DataConfig, clips: Sequence[Clip]) -> None:
        self._index = place_of(_index_name(config), config)
        self._folder, self._root = self._index.parent, config.root
        self._files = {entry_key(clip, config.root): fingerprint(clip.path) for clip in clips}
        self._rows = {name: row for row, name in enumerate(self._files)}
        self._valid: dict[str, int] = {}
        shape = (len(self._rows), config.num_frames, 3, config.image_size, config.image_size)
        key = json.dumps([self._index.name, shape, sorted(self._files.items())])
        self._name = f"frames-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
        self._partial = partial_of(self._folder / self._name)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._remove_abandoned()
        self._frames = self._allocate(shape)

    def _allocate(self, shape: tuple[int, ...]) -> np.memmap:
        size, free = int(np.prod(shape)), shutil.disk_usage(self._folder).free
        if size > free:
            raise UserError(
                f"the frame cache of {shape[0]} clips takes {size / 1e9:.1f} GB, and {self._folder} has "
                f"{free / 1e9:.1f} GB left; free some space, lower {flag('data.num_frames')} or "
                f"{flag('data.image_size')}, or pass {flag('data.no_cache_frames')}"
            )
        frames = np.lib.format.open_memmap(self._partial, mode="w+", dtype=np.uint8, shape=shape)
        try:
            if hasattr(os, "posix_fallocate"):
                # A write into a hole of a mapped file on a full disk kills the process; a failed allocation raises.
                with self._partial.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, self._partial.stat().st_size)
        except OSError as error:
            self.abandon()
            raise_if_disk_full(error, self._partial)
            raise
        return frames

    def _remove_abandoned(self) -> None:
        clear_partial(self._folder)

        # Of earlier versions, whose names do not say which process has them.
        for path in self._folder.glob(".frames-*.partial"):
            ours = OF_FRAMES.match(path.name.removeprefix(".")) is not None and _is_plain(path)
            if ours and time.time() - path.stat().st_mtime > ABANDONED_AFTER:
                path.unlink(missing_ok=True)

    def write(self, clip: Clip, frames: UInt8[Tensor, "F 3 S S"], mask: Bool[Tensor, "F"]) -> None:
        """Take up one clip. Several threads may write different clips.

        Raises:
            PassingError: its file is not the one that was there when the cache was begun.
        """
        key = entry_key(clip, self._root)
        if fingerprint(clip.path) != self._files[key]:
            raise PassingError(clip.path, "it changed while the clips were checked")
        self._frames[self._rows[key]] = frames.numpy()
        self._valid[key] = int(mask.sum())

    def finish(self) -> None:
        """Put the cache in the place of an earlier one, whole or not at all, if that can be done."""
        with only_remembered("decoded frames"):
            self._finish()

    def _finish(self) -> None:
        self._frames.flush()
        before = _read_json(self._index).get("frames")
        checksum = checksum_of(self._partial)
        os.replace(self._partial, self._folder / self._name)
        entries = {
            name: {"row": self._rows[name], "valid": valid, "file": self._files[name]}
            for name, valid in self._valid.items()
        }
        write_json_atomic(self._index, {"frames": self._name, "checksum": checksum, "clips": entries})
        if before != self._name and (other := _ours(self._folder, before)) is not None:
            other.unlink(missing_ok=True)

    def abandon(self) -> None:
        self._partial.unlink(missing_ok=True)
