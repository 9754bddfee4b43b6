"""A video file is opened here and nowhere else: a regular file, by its path, in a format that films come in.

Names come from annotations, which a stranger may have written. FFmpeg takes a name for an address: it would fetch
`http://…`, open what `subfile,,…` or a playlist names, and wait at a named pipe for ever.
"""

import errno
import gc
import os
import re
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from emcl_train.config import MAX_PIXELS
from emcl_train.data.excess import excess_of
from emcl_train.data.frame_folders import folder_fingerprint
from emcl_train.data.passing import (
    NOT_THERE,
    OF_BOTH,
    PassingError,
    passing,
    require_memory,
    require_readable,
    trouble_with,
)
from emcl_train.data.timeline import MissingFile, VideoError
from emcl_train.flags import flag

FORMATS = (
    "mov", "matroska", "webm", "avi", "asf", "flv", "live_flv", "mpeg", "mpegts", "mpegvideo", "m4v", "h264", "hevc",
    "vvc", "obu", "ivf", "ogg", "rm", "dv", "mjpeg", "yuv4mpegpipe", "gif", "apng", "webp_pipe", "png_pipe",
    "jpeg_pipe", "bmp_pipe", "tiff_pipe",
)  # fmt: skip
"""FFmpeg's names of the formats that are read. None of them opens a second file, as playlists do."""

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

LARGEST_OPTION = 2**31 - 1
"""What FFmpeg takes for `max_pixels` at most."""
TOO_LARGE = re.compile(r"Picture size (\d+)x(\d+) exceeds specified max pixel count")

# A decoder that is garbage in a circle waits for its threads when it is freed. A forked process, such as a worker that
# loads clips, has none of these threads, and would wait for ever: so it frees nothing of its parent's.
os.register_at_fork(after_in_child=gc.freeze)

RECENT = 60.0
"""Seconds since a file was changed, up to which it may still be growing."""
PAUSE = 0.3
"""Seconds in which a file that is being written grows."""


class Identity(NamedTuple):
    """What a file is known by while it is read: another one in its place, or more in it, is another file.

    Its inode is left out: mounts by network, such as sshfs, give the same file another one after a while.
    """

    size: int
    modified: int
    """In nanoseconds."""


def identity_of(path: Path) -> Identity:
    """What a file is known by now.

    Raises:
        MissingFile: there is none.
        VideoError: it is no regular file.
        PassingError: the system cannot say.
    """
    try:
        status = os.stat(path)
    except ValueError as error:  # a name that no file can have
        raise MissingFile(path, "there is no such file") from error
    except OSError as error:
        if error.errno in NOT_THERE:
            raise MissingFile(path, "there is no such file") from error
        if error.errno == errno.ELOOP:
            raise VideoError(path, "it is a link that leads to itself") from error
        raise trouble_with(error, path) from error

    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise VideoError(path, f"it is {kind}, expected a file")
    return Identity(status.st_size, status.st_mtime_ns)


@contextmanager
def watched(path: Path) -> Iterator[None]:
    """Read a video file, and blame what goes wrong on it only if it is to blame.

    Raises:
        VideoError: FFmpeg cannot make frames of what is in the file, which is the same file afterwards.
        MissingFile: there is none.
        PassingError: the system did not give what is in it, there was no memory, or it changed while it was read.
    """
    before = identity_of(path)
    if not before.size:
        raise VideoError(path, "the file is empty")

    try:
        yield
    except VideoError as error:
        _require_same(path, before)
        require_memory(path, error.pixels)
        raise
    except Exception as error:
        trouble = passing(error, path)
        cause = error.__cause__ if isinstance(error, PassingError) else error
        if not isinstance(cause, av.error.FFmpegError) or (trouble is not None and cause.errno not in OF_BOTH):
            if trouble is None or trouble is error:
                raise
            raise trouble from error

        _require_same(path, before)
        if trouble is not None:
            _require_verdict(path, cause, trouble)
            _require_same(path, before)
        require_memory(path, 0)
        raise VideoError(path, _words_of(cause)) from error
    _require_same(path, before)


def _words_of(error: av.error.FFmpegError) -> str:
    if error.errno == errno.ENOMEM:
        return "it asks for more memory than a film needs"
    if error.errno in OF_BOTH:
        return f"FFmpeg cannot read it ({error.strerror}), and the system can"
    return f"{error.strerror} ({type(error).__name__})"


def _require_verdict(path: Path, error: av.error.FFmpegError, trouble: PassingError) -> None:
    """Raise the trouble unless it is FFmpeg's own: the system reads the file to its end, and FFmpeg fails once more."""
    require_readable(path, error.errno)
    try:
        with opened(path) as container:
            for _ in container.decode(video=0):
                pass
    except (av.error.FFmpegError, IndexError) as again:
        if passing(again, path) is None or getattr(again, "errno", None) == error.errno:
            return
    except VideoError:
        return
    raise trouble from error


def _require_same(path: Path, before: Identity) -> None:
    try:
        after = identity_of(path)
    except VideoError as error:
        raise PassingError(path, f"it was there, and then {error.reason}") from error
    if after != before:
        raise PassingError(path, "it changed while it was read, as a file does that is still being written")


def fingerprint(path: Path) -> list[int] | None:
    """Size and modification time of a file, None where it cannot be asked: what a file is remembered by.

    Of a folder of frames it is what `folder_fingerprint` says.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    if stat.S_ISDIR(status.st_mode):
        return folder_fingerprint(path)
    return [status.st_size, status.st_mtime_ns]


def not_settled(found: Mapping[Path, list[int] | None]) -> set[Path]:
    """Files that are being written: they have changed, or are there, a moment later.

    Args:
        found: the fingerprints of files, as they were; None for one that was not there.
    """
    now = time.time()
    recent = [before for before in found.values() if before is not None and abs(now - before[1] / 1e9) < RECENT]
    if recent:
        time.sleep(PAUSE)
    return {path for path, before in found.items() if fingerprint(path) != before}


def opened(path: Path, max_pixels: int = MAX_PIXELS) -> InputContainer:
    """A video file, for FFmpeg to read.

    Args:
        path: the file; whatever its name looks like, it is a path.
        max_pixels: of a frame. FFmpeg decodes the first ones while it looks for what is in the file.

    Raises:
        VideoError: the file says that there is more in it than a file of its size can have.
    """
    excess = excess_of(path)
    if excess is not None:
        raise VideoError(path, excess)
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": ",".join(FORMATS),
        "max_pixels": _pixels_option(max_pixels),
    }
    # A title may be in any encoding, and is not used.
    container: InputContainer = av.open(f"file:{path}", options=options, metadata_errors="replace")
    return container


def prepared(stream: VideoStream, path: Path, max_pixels: int = MAX_PIXELS) -> VideoStream:
    """The stream, to be decoded within a limit, which holds for what its headers say already.

    Raises:
        VideoError: its frames are larger.
    """
    codec = stream.codec_context
    if codec.width * codec.height > max_pixels:
        raise too_large(path, codec.width, codec.height, max_pixels)

    # The decoder learns the size of a frame from its data, and allocates nothing for one that is too large.
    codec.options = {**codec.options, "max_pixels": _pixels_option(max_pixels)}

    # Clips are decoded side by side already: threads inside each would only fight for the same cores.
    codec.thread_type = "NONE"
    codec.thread_count = 1
    return stream


def too_large(path: Path, width: int, height: int, max_pixels: int) -> VideoError:
    return VideoError(
        path,
        f"its frames have {width} × {height} pixels, and {flag('data.max_pixels')} allows {max_pixels}",
        pixels=min(width * height, max_pixels),
    )


def _pixels_option(max_pixels: int) -> str:
    return str(min(max_pixels, LARGEST_OPTION))


_one_at_a_time = threading.Lock()


def refused_size(path: Path, max_pixels: int, number: int) -> tuple[int, int] | None:
    """The width and height for which the decoder refused a frame; None if that was not why it stopped.

    FFmpeg says so in words alone, so the film is decoded once more, up to where it stopped.

    Args:
        path: the file.
        max_pixels: the limit.
        number: the film's place among the streams of pictures.
    """
    with _one_at_a_time:
        before = av.logging.get_level(), av.logging.get_skip_repeated()
        av.logging.set_level(av.logging.ERROR)
        av.logging.set_skip_repeated(False)  # two pictures of one size are refused in the same words
        try:
            # Those of all threads, which would print what is not captured.
            with av.logging.Capture(local=False) as messages, opened(path, max_pixels) as container:
                stream = prepared(container.streams.video[number], path, max_pixels)
                try:
                    for _ in container.decode(stream):
                        pass
                except (av.error.FFmpegError, IndexError):
                    pass
        finally:
            av.logging.set_level(before[0])
            av.logging.set_skip_repeated(before[1])
    sizes = [match for _, _, message in messages if (match := TOO_LARGE.search(message))]
    return (int(sizes[-1][1]), int(sizes[-1][2])) if sizes else None
