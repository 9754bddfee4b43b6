"""What is known of clips from earlier runs: which of them decode, and their sampled frames.

Everything lies in `<data.root>/.emcl`, or in the user's cache folder where the data may not be written. An entry holds
for one size and modification time of its video file, one span of it, one way of sampling and one version of the
sampler; otherwise it is as if absent.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from emcl_train.config import DataConfig
from emcl_train.data.clips import Clip
from emcl_train.data.video import PICTURES, VIDEO_SAMPLER_VERSION, sampler_version
from emcl_train.errors import UserError
from emcl_train.flags import flag
from emcl_train.runs.files import json_if_whole, partial_of, raise_if_disk_full, write_json_atomic

ABANDONED_AFTER = 3600.0
"""Seconds without a write after which an unfinished cache belongs to a run that was killed."""


def cache_folder(root: Path) -> Path:
    """Where to remember things about the data set in `root`; not created yet."""
    # The mode as well: root may write everywhere, and read-only data are meant to stay as they are.
    if os.access(root, os.W_OK) and root.stat().st_mode & 0o222:
        return root / ".emcl"
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return user_cache / "emcl" / hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]


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
        looked_at = f"{_sampling(config)}-{config.frame_choice}-{config.display}"
        name = f"checked-v{VIDEO_SAMPLER_VERSION}-{looked_at}.json"
        self.path = cache_folder(config.root) / name
        self._entries: dict[str, dict[str, Any]] = _read_json(self.path)

    def knows(self, clip: Clip) -> bool:
        now = fingerprint(clip.path)
        return now is not None and self._entries.get(entry_key(clip, self.root), {}).get("file") == now

    def reason(self, clip: Clip) -> str | None:
        """Why a known clip cannot be decoded; None where it can."""
        return self._entries[entry_key(clip, self.root)]["reason"]

    def add(self, clip: Clip, reason: str | None) -> None:
        self._entries[entry_key(clip, self.root)] = {"file": fingerprint(clip.path), "reason": reason}

    def save(self) -> None:
        write_json_atomic(self.path, self._entries)


def _index_path(config: DataConfig) -> Path:
    version = sampler_version(config)
    pictures = "" if version == 1 else "".join(f"-{getattr(config, name)}" for name in PICTURES)
    name = f"frames-v{version}-{_sampling(config)}{pictures}x{config.image_size}.json"
    return cache_folder(config.root) / name


def _sampling(config: DataConfig) -> str:
    return f"{config.frame_sampling}-{config.num_frames}"


class FrameCache:
    """Sampled frames of clips in one memory-mapped file, uint8 [clips, F, 3, S, S]."""

    def __init__(self, frames: np.ndarray, entries: dict[str, dict[str, Any]], root: Path) -> None:
        self._frames, self._entries, self._root = frames, entries, root

    @classmethod
    def open(cls, config: DataConfig, clips: Iterable[Clip]) -> "FrameCache | None":
        """The finished cache, if it holds all of these clips as their files are now."""
        index = _read_json(_index_path(config))
        entries = index.get("clips", {})
        for clip in clips:
            if entries.get(entry_key(clip, config.root), {}).get("file", []) != fingerprint(clip.path):
                return None
        try:
            frames = np.load(_index_path(config).with_name(index["frames"]), mmap_mode="r")
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

    def __init__(self, config: DataConfig, clips: Sequence[Clip]) -> None:
        self._index = _index_path(config)
        self._folder, self._root = self._index.parent, config.root
        self._files = {entry_key(clip, config.root): fingerprint(clip.path) for clip in clips}
        self._rows = {name: row for row, name in enumerate(self._files)}
        self._valid: dict[str, int] = {}
        shape = (len(self._rows), config.num_frames, 3, config.image_size, config.image_size)
        key = json.dumps([self._index.name, shape, sorted(self._files.items())])
        self._name = f"frames-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
        self._partial = partial_of(self._folder / self._name, shared=True)
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
        """Put the cache in the place of an earlier one, whole or not at all."""
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
