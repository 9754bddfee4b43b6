"""Where a film's shots begin, as PySceneDetect's content detector sees it; the film is opened and decoded here."""

from pathlib import Path

import av
from scenedetect.common import FrameTimecode
from scenedetect.detectors import ContentDetector

from emcl_train.config import MAX_PIXELS
from emcl_train.data.container import VideoError, open_video, rewound, whole_timeline
from emcl_train.data.decoding import Reader

WIDTH = 256
"""Pixels to which pictures are made smaller, as PySceneDetect does it: cuts show as well, and noise less."""
SHORTEST = 15
"""Frames of a shot at least, PySceneDetect's own."""


def cuts_of(path: Path, max_pixels: int = MAX_PIXELS) -> list[float]:
    """Seconds from the first frame at which a new shot begins.

    Args:
        path: of a video file.
        max_pixels: of a frame.

    Raises:
        VideoError: the film cannot be decoded.
        PassingError: the file cannot be read now.
    """
    detector = ContentDetector(min_scene_len=SHORTEST)
    begins: list[float] = []
    cuts: list[int] = []

    with open_video(path, max_pixels=max_pixels) as (container, stream):
        timeline = whole_timeline(container, stream, path)
        rate = 1.0 / timeline.interval if timeline.interval > 0 else 25.0
        with rewound(container, stream, timeline, path, max_pixels) as film:
            reader = Reader(*film, timeline)
            while (shown := reader.take()) is not None:
                time, frame = shown
                at = FrameTimecode(len(begins), rate)
                begins.append(time)
                cuts.extend(cut.frame_num for cut in detector.process_frame(at, _small(frame)))
        if not begins:
            raise VideoError(path, "none of its frames can be decoded")
        cuts.extend(cut.frame_num for cut in detector.post_process(FrameTimecode(len(begins) - 1, rate)))
        return [begins[number] - timeline.times[0] for number in sorted(set(cuts)) if 0 < number < len(begins)]


def _small(frame: av.VideoFrame):  # type: ignore[no-untyped-def]
    """The picture in blue, green and red, as OpenCV has them."""
    scale = min(1.0, WIDTH / frame.width)
    width, height = max(2, round(frame.width * scale)), max(2, round(frame.height * scale))
    return frame.reformat(width, height, format="bgr24", interpolation="BILINEAR").to_ndarray()
