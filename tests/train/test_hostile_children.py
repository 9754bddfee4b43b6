"""The forks that try hostile files wait for nothing that their parent began."""

import gc

import av
import hostile
import numpy as np


def test_a_scaler_that_is_garbage_is_not_freed_without_its_threads(tmp_path):
    frame = av.VideoFrame.from_ndarray(np.zeros((480, 640, 3), np.uint8), format="rgb24")
    frame.reformat(320, 240, "yuv420p")
    circle: list[object] = [frame]
    circle.append(circle)
    del frame, circle

    assert hostile.held(lambda folder: folder / "x", lambda path: gc.collect(), tmp_path) == ""
