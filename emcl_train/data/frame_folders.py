"""Folders of frames in place of video files: `<videos>/<video id>/00000001.jpg`, …, five a second, as for CLIP2Video.

Such folders come of `ffmpeg -r 5`; the frames of one are its JPEG files in the order of their names. Pixels are taken
as they are stored: Exif data that would turn them is not read.
"""

import io
import os
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from emcl_train.config import MAX_PIXELS
from emcl_train.data.annotation_files import FRAME_SUFFIXES
from emcl_train.data.passing import NOT_THERE, PassingError, passing, require_memory, trouble_with
from emcl_train.data.picture import Picture
from emcl_train.data.timeline import MissingFile, Timeline, VideoError
from emcl_train.flags import flag
from emcl_train.reading.plain_files import read_regular

RATE = 5
"""Frames a second."""
LARGEST = 1 << 28
"""Bytes of a frame's file."""


def is_frame_folder(path: Path) -> bool:
    """Whether frames are looked for in it: every folder that annotations name as a clip."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def frame_files(folder: Path) -> list[Path]:
    """The frames of a clip in order.

    Raises:
        MissingFile: there is no such folder.
        VideoError: there are none in it.
        PassingError: it cannot be listed now.
    """
    names = sorted(name for name, _ in _listed(folder))
    if not names:
        raise VideoError(folder, "it is a folder without frames, expected 00000001.jpg and so on, or a video file")
    return [folder / name for name in names]


def timeline_of(files: list[Path]) -> Timeline:
    """When the frames are shown, as of a film of five a second."""
    return Timeline(
        packets=[],
        times=[number / RATE for number in range(len(files))],
        end=len(files) / RATE,
        interval=1 / RATE,
        complete=True,
        torn=None,
    )


def frame_picture(path: Path, folder: Path, max_pixels: int = MAX_PIXELS) -> Picture:
    """The pixels of one frame.

    Args:
        path: the file.
        folder: the clip, which errors are about.
        max_pixels: a frame that has more is refused before it is decoded.

    Raises:
        VideoError: it is no JPEG, is damaged, or too large; its name is given.
        PassingError: it cannot be read now.
    """
    with _opened(path, folder, max_pixels) as image:
        pixels = np.asarray(image.convert("RGB"))
    return Picture(pixels, *pixels.shape[:2])


def frame_size(path: Path, folder: Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height from the headers of one frame, which is not decoded; errors as of `frame_picture`."""
    with _opened(path, folder, max_pixels) as image:
        return image.size


@contextmanager
def watched_folder(folder: Path) -> Iterator[list[Path]]:
    """The frames of a clip, which must be the same afterwards.

    Raises:
        PassingError: the folder changed while it was read.
    """
    before = folder_fingerprint(folder)
    files = frame_files(folder)
    yield files
    if folder_fingerprint(folder) != before:
        raise PassingError(folder, "it changed while it was read, as a folder does that is still being written")


def folder_fingerprint(folder: Path) -> list[int] | None:
    """What a folder of frames is remembered by: bytes, time of the newest change, how many, and a checksum.

    The checksum is of the names, sizes and times of all frames. None where the folder cannot be asked.
    """
    try:
        found = sorted((name, status.st_size, status.st_mtime_ns) for name, status in _listed(folder))
        newest = max((time for *_, time in found), default=os.stat(folder).st_mtime_ns)
    except (VideoError, PassingError, OSError):
        return None
    checksum = zlib.crc32(os.fsencode("\n".join(f"{name}\t{size}\t{time}" for name, size, time in found)))
    return [sum(size for _, size, _ in found), newest, len(found), checksum]


def _listed(folder: Path) -> list[tuple[str, os.stat_result]]:
    """The names of the frames in a folder, each with what the system says of its file."""
    try:
        with os.scandir(folder) as entries:
            return [
                (entry.name, entry.stat())
                for entry in entries
                if entry.name[0] != "." and os.path.splitext(entry.name)[1].lower() in FRAME_SUFFIXES
            ]
    except OSError as error:
        if error.errno in NOT_THERE and not folder.exists():
            raise MissingFile(folder, "there is no such folder") from error
        raise trouble_with(error, folder) from error


@contextmanager
def _opened(path: Path, folder: Path, max_pixels: int) -> Iterator[Image.Image]:
    """A frame as Pillow reads it, from bytes that were read before: what goes wrong is then the file's fault."""
    try:
        data = read_regular(path, LARGEST)
    except OSError as error:
        raise trouble_with(error, path) from error
    except ValueError as error:
        raise VideoError(folder, f"its frame {path.name} cannot be read: {error}") from error
    if not data:
        raise VideoError(folder, f"its frame {path.name} is empty")

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is our own
            image = Image.open(io.BytesIO(data), formats=("JPEG",))
        with image:
            width, height = image.size
            if width * height > max_pixels:
                raise too_large(folder, path.name, width, height, max_pixels)
            yield image
    except (VideoError, PassingError):
        raise
    except Exception as error:  # Pillow raises whatever the damaged bytes lead to
        trouble = passing(error, path) if isinstance(error, MemoryError) else None
        if trouble is not None:
            raise trouble from error
        require_memory(path, 0)
        raise VideoError(folder, f"its frame {path.name} is damaged or no JPEG: {error}") from error


def too_large(folder: Path, name: str, width: int, height: int, max_pixels: int) -> VideoError:
    return VideoError(
        folder,
        f"its frame {name} has {width} × {height} pixels, and {flag('data.max_pixels')} allows {max_pixels}",
        pixels=min(width * height, max_pixels),
    )
