"""Frames in another format or size: one converter for all frames of a thread gives what one for each would."""

import gc
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from emcl_train.data import converting
from emcl_train.data.converting import converted
from emcl_train.data.picture import picture_of

FORMATS = ["yuv420p", "yuvj420p", "yuv444p", "yuv422p10le", "rgb24", "gray", "nv12"]


def frames_of_all_kinds() -> list[VideoFrame]:
    """Every format, odd sizes too, in an order in which no two neighbours are alike."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(60):
        width, height = [(64, 48), (31, 17), (2, 2), (320, 240), (33, 64)][number % 5]
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        frame = VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=FORMATS[number % len(FORMATS)])
        frame.colorspace = [Colorspace.ITU709, Colorspace.ITU601, Colorspace.DEFAULT][number % 3]
        frame.color_range = [ColorRange.MPEG, ColorRange.JPEG][number % 2]
        found.append(frame)
    return found


def alone(frame: VideoFrame, **settings: object) -> np.ndarray:
    """By a converter that has seen nothing else."""
    return VideoReformatter().reformat(frame, **settings).to_ndarray()


@pytest.mark.parametrize(
    "settings",
    [
        {"format": "rgb24"},
        {"width": 40, "height": 30, "format": "bgr24"},
        {"width": 40, "height": 30, "format": "yuv420p", "interpolation": "BICUBIC"},
    ],
)
def test_frames_of_all_kinds_one_after_the_other(settings):
    for frame in frames_of_all_kinds():
        before = frame.format.name, frame.width, frame.colorspace, frame.color_range
        assert np.array_equal(converted(frame, **settings).to_ndarray(), alone(frame, **settings))
        assert (frame.format.name, frame.width, frame.colorspace, frame.color_range) == before


def test_one_that_cannot_be_made_leaves_the_converter_as_it_was():
    frame = frames_of_all_kinds()[0]
    with pytest.raises((ValueError, av.error.FFmpegError)):
        converted(frame, format="no_such_format")
    with pytest.raises((ValueError, av.error.FFmpegError, MemoryError)):
        converted(frame, 2**30, 2**30, format="rgb24")
    assert np.array_equal(converted(frame, format="rgb24").to_ndarray(), alone(frame, format="rgb24"))


def in_a_new_thread(call):
    """A result of a thread that has converted nothing yet, and waits for what it began."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def test_threads_do_not_share_one_and_frames_of_a_thread_do(monkeypatch):
    made = []

    class Counted:
        """In place of PyAV's, which converts without Python's lock and has room for one frame at a time."""

        def __init__(self) -> None:
            made.append(threading.get_ident())
            self.converter = VideoReformatter()

        def reformat(self, *frame: object, **settings: object) -> VideoFrame:
            assert threading.get_ident() in made[-1:]
            return self.converter.reformat(*frame, **settings)

    monkeypatch.setattr(converting, "VideoReformatter", Counted)
    frames = frames_of_all_kinds()[:4]
    for count in (1, 2, 3):
        pixels = in_a_new_thread(lambda: [converted(frame, format="rgb24").to_ndarray() for frame in frames])
        assert len(made) == count
        assert all(
            np.array_equal(found, alone(frame, format="rgb24")) for found, frame in zip(pixels, frames, strict=True)
        )


def number_of_threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
def test_no_thread_is_started():
    frame = frames_of_all_kinds()[3]

    def begun(convert) -> int:
        gc.collect()
        before = number_of_threads()
        kept = convert()
        return number_of_threads() - before if kept is not None else -1

    assert in_a_new_thread(lambda: begun(lambda: converted(frame, format="rgb24"))) == 0
    assert in_a_new_thread(lambda: begun(lambda: picture_of(frame))) == 0

    # Which a converter does that may.
    may = VideoReformatter()
    assert in_a_new_thread(lambda: begun(lambda: may.reformat(frame, format="rgb24", threads=3))) > 0
