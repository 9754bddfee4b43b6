"""Where a film's shots begin, as PySceneDetect's content detector sees it; the film is opened and decoded here."""

from pathlib import Path

from scenedetect.common import FrameTimecode
from scenedetect.detectors import ContentDetector

from emcl_train.config import MAX_PIXELS
from emcl_train.data.container import VideoError, open_video, rewound, whole_timeline
from emcl_train.data.converting import converted
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
    size: tuple[int, int] | None = None

    with open_video(path, max_pixels=max_pixels) as (container, stream):
        timeline = whole_timeline(container, stream, path)
        rate = 1.0 / timeline.interval if timeline.interval > 0 else 25.0
        with rewound(container, stream, timeline, path, max_pixels) as film:
            reader = Reader(*film, timeline)
            while (shown := reader.take()) is not None:
                time, frame = shown
                at = FrameTimecode(len(begins), rate)
                begins.append(time)
                # The detector compares pictures of one size, and a film may change its own on the way.
                size = size or _smaller(frame.width, frame.height)
                picture = converted(frame, *size, format="bgr24").to_ndarray()
                cuts.extend(cut.frame_num for cut in detector.process_frame(at, picture))
        if not begins:
            raise VideoError(path, "none of its frames can be decoded")
        cuts.extend(cut.frame_num for cut in detector.post_process(FrameTimecode(len(begins) - 1, rate)))
        return [begins[number] - timeline.times[0] for number in sorted(set(cuts)) if 0 < number < len(begins)]


def _smaller(width: int, height: int) -> tuple[int, int]:
    scale = min(1.0, WIDTH / width)
    return max(2, round(width * scale)), max(2, round(height * scale))
