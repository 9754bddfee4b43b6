"""Small pictures and short films of clips, for a page: some seconds from the middle of each, without sound."""

import base64
import contextlib
import functools
import io
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from emcl_train.config import MAX_PIXELS, DataConfig
from emcl_train.data.clips import Clip
from emcl_train.data.clock import has_no_stamps
from emcl_train.data.container import VideoError, open_video, rewound, whole_timeline
from emcl_train.data.converting import converted
from emcl_train.data.decoding import Astray, frames_shown_at
from emcl_train.data.frame_folders import frame_picture, is_frame_folder, timeline_of, watched_folder
from emcl_train.data.h264 import repeatable
from emcl_train.data.loader import in_parallel
from emcl_train.data.passing import PassingError
from emcl_train.data.picture import Display, Picture, picture_of
from emcl_train.data.timeline import Timeline

SECONDS = 3.0
"""Of a film, from the middle of its clip."""
RATE = 8
"""Frames a second of a film."""
HEIGHT = 144
"""Of a film, in pixels; its clip's, if that is smaller. One that is more than twice as wide is less high."""
PICTURE_HEIGHT = 80
"""Of a picture, in pixels."""
QUALITY = 55
"""Of a picture, as WebP counts it."""
ENCODING = {"crf": "31", "preset": "veryfast", "g": "48", "threads": "1"}
MOST_FILMS = 240
"""On a page: each takes a fifth of a second of a core."""
MOST_PICTURES = 2000
KEPT = 4096
"""Of clips whose pictures a command remembers: pages of several runs show the same ones."""
AT_ONCE = 64
"""Clips that are looked at before it is asked whether there is room for more."""


@dataclass
class Media:
    """What a page has of clips, by their number in the run."""

    pictures: dict[int, str] = field(default_factory=dict)
    """WebP, in base64."""
    films: dict[int, str] = field(default_factory=dict)
    """MP4 with H.264, in base64."""
    reasons: dict[int, str] = field(default_factory=dict)
    """Why a clip has neither, if it cannot be decoded."""

    @property
    def size(self) -> int:
        """Letters of it all."""
        return sum(map(len, self.pictures.values())) + sum(map(len, self.films.values()))


@dataclass(frozen=True)
class _Made:
    picture: str = ""
    film: str = ""
    reason: str = ""


def make_media(clips: Sequence[tuple[int, Clip]], config: DataConfig, budget: int, workers: int) -> Media:
    """Pictures of clips, as many as there is room for, and then films of the first of them.

    Args:
        clips: with their numbers, those that matter most first.
        config: how they are decoded.
        budget: letters at most.
        workers: clips at a time.
    """
    # Films of the first clips, whose pictures are made on the way; half of the room is for pictures.
    media = Media()
    films = clips[:MOST_FILMS]
    pictures: Sequence[tuple[int, Clip]] = clips[MOST_FILMS:MOST_PICTURES]
    for begin in range(0, len(films), AT_ONCE):
        if media.size > budget // 2:
            pictures = [*films[begin:], *pictures]
            break
        _add(media, films[begin : begin + AT_ONCE], config, budget, workers, film=True)

    for begin in range(0, len(pictures), AT_ONCE):
        if media.size > budget - AT_ONCE * 1000:
            break
        _add(media, pictures[begin : begin + AT_ONCE], config, budget, workers, film=False)
    return media


def _add(
    media: Media, clips: Sequence[tuple[int, Clip]], config: DataConfig, budget: int, workers: int, *, film: bool
) -> None:
    """Make pictures of some clips, and films if so asked, and add in their order what there is room for."""
    numbers = {id(clip): number for number, clip in clips}

    def work(clip: Clip) -> _Made:
        try:
            return _make(clip, config, film=film)
        except (VideoError, PassingError) as error:
            return _Made(reason=str(error))

    made = {numbers[id(clip)]: one for clip, one in in_parallel(work, [clip for _, clip in clips], workers, "Films")}
    for number, _ in clips:
        one = made[number]
        if one.reason:
            media.reasons[number] = one.reason
        if one.picture and media.size + len(one.picture) <= budget:
            media.pictures[number] = one.picture
        if one.film and media.size + len(one.film) <= budget:
            media.films[number] = one.film


def _make(clip: Clip, config: DataConfig, *, film: bool) -> _Made:
    """The picture in the middle of a clip, and a film around it."""
    pixels = min(config.max_pixels, MAX_PIXELS)
    try:
        changed = clip.path.stat().st_mtime_ns
    except OSError:
        changed = 0  # opening it says what is wrong
    return _made(clip, changed, config.display, pixels, film)


@functools.lru_cache(maxsize=KEPT)
def _made(clip: Clip, changed: int, display: Display, pixels: int, film: bool) -> _Made:
    """`_make`, once for all pages of a command. `changed`: when the file was."""
    pictures = _pictures(clip, display, pixels, film=film)
    middle = base64.b64encode(_webp(pictures[len(pictures) // 2])).decode()
    return _Made(middle, base64.b64encode(_mp4(pictures)).decode() if film else "")


def _pictures(clip: Clip, display: Display, pixels: int, *, film: bool) -> list[UInt8[np.ndarray, "H W 3"]]:
    """Frames from the middle of a clip at the height of a film, or the one in the middle."""
    if is_frame_folder(clip.path):
        with watched_folder(clip.path) as files:
            timeline = timeline_of(files)
            times = [_middle(clip, timeline)] if not film else _targets(clip, timeline, film=True)
            numbers = [max(0, bisect_right(timeline.times, time + 1e-6) - 1) for time in times]
            return [_scaled(frame_picture(files[number], clip.path, pixels)) for number in numbers]

    first = display == "rotated"
    with open_video(clip.path, first=first, max_pixels=pixels) as (container, stream):
        timeline = whole_timeline(container, stream, clip.path)
        targets = _targets(clip, timeline, film=film)

        def decoded(*, enter: bool) -> list[UInt8[np.ndarray, "H W 3"]]:
            with rewound(container, stream, timeline, clip.path, pixels) as again:
                return [
                    _scaled(picture_of(frame, stream.sample_aspect_ratio, display))
                    for frame in frames_shown_at(*again, clip.path, timeline, targets, enter=enter)
                ]

        # Only what is shown is decoded, unless the keyframes are wrong or there are no times to go by.
        if not has_no_stamps(container):
            with contextlib.suppress(Astray, VideoError, av.error.FFmpegError):
                return decoded(enter=True)
        return decoded(enter=False)


def _bounds(clip: Clip, timeline: Timeline) -> tuple[float, float]:
    """When a clip begins and ends."""
    first = timeline.times[0]
    start = min(first + (clip.start or 0.0), timeline.times[-1])
    end = timeline.end if clip.end is None else max(start, min(timeline.end, first + clip.end))
    return start, end


def _middle(clip: Clip, timeline: Timeline) -> float:
    start, end = _bounds(clip, timeline)
    return (start + end) / 2


def _targets(clip: Clip, timeline: Timeline, *, film: bool) -> list[float]:
    """When the frames are shown."""
    start, end = _bounds(clip, timeline)
    if not film:
        # The keyframe before the middle: what follows it would have to be decoded from there on.
        times = timeline.times
        shown = times[max(0, bisect_right(times, (start + end) / 2 + 1e-6) - 1)]
        key = timeline.packets[timeline.entry(shown)].time
        return [key if start <= key <= shown else shown]
    begin = start + max(0.0, (end - start - SECONDS) / 2)
    count = max(1, round(RATE * min(SECONDS, end - start)))
    return [begin + i / RATE for i in range(count)]


def _scaled(picture: Picture) -> UInt8[np.ndarray, "H W 3"]:
    """A picture no higher than a film, in even numbers as H.264 needs them."""
    scale = min(1.0, HEIGHT / picture.height, 2 * HEIGHT / picture.width)
    width, height = (max(2, 2 * round(side * scale / 2)) for side in (picture.width, picture.height))
    image = Image.fromarray(np.ascontiguousarray(picture.pixels))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0))


def _webp(picture: UInt8[np.ndarray, "H W 3"]) -> bytes:
    height, width = picture.shape[:2]
    scale = min(1.0, PICTURE_HEIGHT / height)
    image = Image.fromarray(picture).resize((max(1, round(width * scale)), max(1, round(height * scale))))
    data = io.BytesIO()
    image.save(data, "WEBP", quality=QUALITY, method=4)
    return data.getvalue()


def _mp4(pictures: Sequence[UInt8[np.ndarray, "H W 3"]]) -> bytes:
    data = io.BytesIO()
    options = {"fflags": "+bitexact"}  # no version and no date in the file
    with av.open(data, "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", rate=RATE, options=repeatable(ENCODING))
        stream.codec_context.thread_count = 1
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        stream.codec_context.time_base = Fraction(1, RATE)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for i, pixels in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = converted(frame, stream.width, stream.height, format="yuv420p", interpolation="BICUBIC")
            frame.pts = i
            frame.time_base = Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return data.getvalue()
