"""Frames of FFmpeg in another format or size.

A converter of FFmpeg has tables to make, and threads to start if it may: for a small frame they take twenty times as
long as its pixels. So each thread keeps one converter, which starts none; clips are decoded side by side already.
"""

import threading

from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

_of_thread = threading.local()


def converted(
    frame: VideoFrame,
    width: int | None = None,
    height: int | None = None,
    *,
    format: str,
    interpolation: str = "BILINEAR",
) -> VideoFrame:
    """A frame with its pixels in another format or size.

    Args:
        frame: as it was decoded; it stays as it is.
        width: of the new frame; None: as it is.
        height: likewise.
        format: of its pixels, as FFmpeg calls it, such as "rgb24".
        interpolation: how it is scaled, as PyAV calls it.

    Returns:
        A new frame, or this one where nothing is to be done.
    """
    converter = getattr(_of_thread, "converter", None)
    if converter is None:
        converter = _of_thread.converter = VideoReformatter()
    found: VideoFrame = converter.reformat(frame, width, height, format=format, interpolation=interpolation, threads=1)
    return found
