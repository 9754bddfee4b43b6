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
import shutil
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

from emcl_train.config import DataConfig
from emcl_train.data.clips import Clip
from emcl_train.data.video import PICTURES, VIDEO_SAMPLER_VERSION, sampler_version
from emcl_train.errors import UserError
from emcl_train.flags import flag
from emcl_train.runs.files import json_if_whole, partial_of, raise_if_disk_full, write_json_atomic
from emcl_train.terminal import say

ABANDONED_AFTER = 3600.0
"""Seconds without a write after which an unfinished cache belongs to a run that was killed."""


BESIDE_DATA = ".emcl"
"""Where earlier versions put it, in `data.root`."""


def cache_folder(config: DataConfig) -> Path | None:
    """Where to remember things about a data set; not created yet. None where the user has no folder for such things."""
    if config.cache_dir is not None:
        return config.root / config.cache_dir.expanduser()

    # By the specification of XDG_CACHE_HOME, one that is not absolute is as if absent.
    user_cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(user_cache):
        user_cache = os.path.join(os.path.expanduser("~"), ".cache")
    if not os.path.isabs(user_cache):
        return None
    return Path(user_cache) / "emcl" / hashlib.sha256(str(config.root.resolve()).encode()).hexdigest()[:16]


def remembered_in(config: DataConfig) -> list[Path]:
    """Where to look for what is remembered: the place to write to first."""
    folder = cache_folder(config)
    return [config.root / BESIDE_DATA] if folder is None else [folder, config.root / BESIDE_DATA]


def place_of(name: str, config: DataConfig) -> Path:
    """Where a file of memory is written.

    Raises:
        FileNotFoundError: there is no such place.
    """
    folder = cache_folder(config)
    if folder is None:
        raise FileNotFoundError(errno.ENOENT, "the user has no home folder")
    return folder / name


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


def fingerprint(path: Path) -> list[int] | None:
    """Size and modification time of a file, None where it cannot be asked."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def entry_key(clip: Clip, root: Path) -> str:
    """What a clip is remembered by: its file, relative to the data set where it lies there, and the span of it."""
    path = clip.path.relative_to(root) if clip.path.is_relative_to(root) else clip.path
    span = "" if clip.start is None and clip.end is None else f"#{clip.start}-{clip.end}"
    return f"{path.as_posix()}{span}"


def _read_json(path: Path) -> dict[str, Any]:
    content = json_if_whole(path)
    return content if isinstance(content, dict) else {}  # everything in it can be found out again


class CheckedClips:
    """Which video files gave their frames, and why the others did not."""

    def __init__(self, config: DataConfig) -> None:
        self.root = config.root
        self._config = config
        looked_at = f"{_sampling(config)}-{config.frame_choice}-{config.display}"
        self._name = f"checked-v{VIDEO_SAMPLER_VERSION}-{looked_at}.json"
        self._entries: dict[str, dict[str, Any]] = {}
        for folder in reversed(remembered_in(config)):
            self._entries |= _read_json(folder / self._name)

    def knows(self, clip: Clip) -> bool:
        now = fingerprint(clip.path)
        return now is not None and self._entries.get(entry_key(clip, self.root), {}).get("file") == now

    def reason(self, clip: Clip) -> str | None:
        """Why a known clip cannot be decoded; None where it can."""
        return self._entries[entry_key(clip, self.root)]["reason"]

    def add(self, clip: Clip, reason: str | None) -> None:
        self._entries[entry_key(clip, self.root)] = {"file": fingerprint(clip.path), "reason": reason}

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
        entries = index.get("clips", {})
        for clip in clips:
            if entries.get(entry_key(clip, config.root), {}).get("file", []) != fingerprint(clip.path):
                return None
        try:
            frames = np.load(path.with_name(index["frames"]), mmap_mode="r", allow_pickle=False)
        except (KeyError, OSError, ValueError):
            return None
        shape = (config.num_frames, 3, config.image_size, config.image_size)
        return cls(frames, entries, config.root) if frames.shape[1:] == shape and frames.dtype == np.uint8 else None

    def read(self, clip: Clip) -> tuple[UInt8[Tensor, "F 3 S S"], Bool[Tensor, "F"]]:
        """What `decode_frames` returned for a clip."""
        entry = self._entries[entry_key(clip, self._root)]
        frames = torch.from_numpy(np.array(self._frames[entry["row"]]))
        return frames, torch.arange(len(frames)) < entry["valid"]


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
        for path in self._folder.glob(".frames-*.partial"):
            if time.time() - path.stat().st_mtime > ABANDONED_AFTER:
                path.unlink(missing_ok=True)

    def write(self, clip: Clip, frames: UInt8[Tensor, "F 3 S S"], mask: Bool[Tensor, "F"]) -> None:
        """Take up one clip. Several threads may write different clips."""
        key = entry_key(clip, self._root)
        self._frames[self._rows[key]] = frames.numpy()
        self._valid[key] = int(mask.sum())

    def finish(self) -> None:
        """Put the cache in the place of an earlier one, whole or not at all, if that can be done."""
        with only_remembered("decoded frames"):
            self._finish()

    def _finish(self) -> None:
        self._frames.flush()
        before = _read_json(self._index).get("frames")
        os.replace(self._partial, self._folder / self._name)
        entries = {
            name: {"row": self._rows[name], "valid": valid, "file": self._files[name]}
            for name, valid in self._valid.items()
        }
        write_json_atomic(self._index, {"frames": self._name, "clips": entries})
        if before and before != self._name:
            (self._folder / before).unlink(missing_ok=True)

    def abandon(self) -> None:
        self._partial.unlink(missing_ok=True)
