"""Frames of a video file, chosen by time, as uint8 tensors; and why a file cannot give them."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import torch
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream
from jaxtyping import Bool, UInt8
from torch import Tensor

from emcl_train.config import MAX_PIXELS, DataConfig, Resize
from emcl_train.data.clips import Clip
from emcl_train.data.clock import has_no_stamps
from emcl_train.data.container import VideoError, VideoInfo, open_video, probe, rewound, whole_timeline
from emcl_train.data.decoding import Astray, frames_shown_at
from emcl_train.data.frame_folders import RATE, frame_picture, is_frame_folder, timeline_of, watched_folder
from emcl_train.data.picture import Display, Picture, picture_of, square
from emcl_train.data.timeline import Timeline

__all__ = [
    "VIDEO_SAMPLER_VERSION",
    "FrameRequest",
    "VideoError",
    "VideoInfo",
    "decode_clip",
    "decode_frames",
    "pictures_of_spans",
    "probe",
    "sampler_version",
]

VIDEO_SAMPLER_VERSION = 2
"""Goes up with every change of which pixels `decode_frames` returns; remembered results and caches depend on it."""

OF_VERSION_1 = {"frame_choice": "shown", "resize": "rounded", "display": "rotated"}
"""Settings of which frame is taken and how it becomes a picture, with the values that there were in version 1."""

PICTURES = tuple(OF_VERSION_1)

SEEK_FROM = 60.0
"""Of clips of this many seconds and more only the groups of pictures that hold a wanted frame are decoded, for 12
frames, even where the whole clip is asked for."""

KEPT = 32 << 20
"""Bytes of a file whose packets are kept from one reading to be decoded; larger ones are read twice."""

Sampling = Literal["1fps", "uniform", "2.5fps"]
Choice = Literal["shown", "nearest"]


@dataclass(frozen=True)
class FrameRequest:
    """Which frames of a video file are wanted."""

    path: Path
    num_frames: int
    """At most."""
    image_size: int
    """Height and width of a frame in pixels."""
    sampling: Sampling = "uniform"
    """"uniform": frames on display at the centres of `num_frames` equal parts. "1fps": those at 0, 1, 2, … seconds; of
    more than `num_frames`, that many whose numbers are spread evenly from the first to the last. "2.5fps": half of the
    frames of five a second, spread evenly from the first to the last; of more than `num_frames` as before."""
    start: float | None = None
    """Seconds from the file's first frame at which the clip begins; None: with the file."""
    end: float | None = None
    """Seconds from the file's first frame at which the clip ends; None: with the file."""
    whole: bool = False
    """The last frame must be there too, though it is not returned, so that damage behind the last second is found."""
    choice: Choice = "shown"
    """At each time the frame that is on display, or the one that begins nearest to it, the earlier of two."""
    resize: Resize = "clip"
    """How pictures are scaled and cropped; see `picture.square`."""
    display: Display = "watched"
    """"watched": what a player shows, of the film in the file; "rotated": as before, see `picture.picture_of`, of the
    first stream of pictures."""
    max_pixels: int = MAX_PIXELS
    """A file whose frames have more is refused before one is decoded."""
    draw: tuple[int, ...] | None = None
    """Seed by which "2.5fps" moves inner frames, for training; None: they stay where they are."""

    @classmethod
    def of_clip(
        cls, clip: Clip, config: DataConfig, *, whole: bool = False, draw: tuple[int, ...] | None = None
    ) -> "FrameRequest":
        """What a configuration asks of a clip."""
        return cls(
            path=clip.path,
            num_frames=config.num_frames,
            image_size=config.image_size,
            sampling=config.frame_sampling,
            start=clip.start,
            end=clip.end,
            whole=whole,
            choice=config.frame_choice,
            resize=config.resize,
            display=config.display,
            max_pixels=config.max_pixels,
            draw=draw,
        )


def sampler_version(config: DataConfig) -> int:
    """The version of the sampler whose frames a configuration gets: 1 where it asks for what that version did."""
    as_before = all(getattr(config, name) == value for name, value in OF_VERSION_1.items())
    return 1 if as_before else VIDEO_SAMPLER_VERSION


@dataclass(frozen=True)
class _Span:
    """The part of a stream that is sampled, in its presentation times."""

    start: float
    end: float
    last_frame: float
    """When the last frame of the whole stream begins."""


def decode_clip(
    clip: Clip, config: DataConfig, *, whole: bool = False, draw: tuple[int, ...] | None = None
) -> tuple[UInt8[Tensor, "F 3 S S"], Bool[Tensor, "F"]]:
    """The frames of a clip that a configuration asks for; see `decode_frames`."""
    return decode_frames(FrameRequest.of_clip(clip, config, whole=whole, draw=draw))


def decode_frames(
    request: FrameRequest | Path, *wanted: Any, **settings: Any
) -> tuple[UInt8[Tensor, "F 3 S S"], Bool[Tensor, "F"]]:
    """Frames of a video file or a folder of frames, or of the span of it that a request names.

    Time is that of the presentation time stamps, so a variable frame rate is sampled as it is watched. Frames become
    squares as `picture.square` makes them.

    Args:
        request: the file, the span of it, and how many frames of which size. Or the file alone, with the other fields
            of a `FrameRequest` behind it.
        *wanted: those fields by place: `num_frames`, `image_size`, …
        **settings: and by name.

    Returns:
        Frames, and a mask that is False on padding, which follows the frames of a clip that has fewer than
        `num_frames`.

    Raises:
        VideoError: any of the frames cannot be had, or the clip ends before `start`.
        PassingError: the file cannot be read now, for which it is not to blame.
    """
    if not isinstance(request, FrameRequest):
        request = FrameRequest(request, *wanted, **settings)
    choose = _choose_from_folder if is_frame_folder(request.path) else _choose_from_file
    pixels = choose(request)

    frames = torch.zeros(request.num_frames, 3, request.image_size, request.image_size, dtype=torch.uint8)
    frames[: len(pixels)] = torch.stack(pixels)
    return frames, torch.arange(request.num_frames) < len(pixels)


def _choose_from_file(request: FrameRequest) -> list[UInt8[Tensor, "3 S S"]]:
    """The wanted pictures of a video file."""
    rotated = request.display == "rotated"
    with open_video(request.path, first=rotated, max_pixels=request.max_pixels) as (container, stream):
        kept: list[Packet] | None = [] if container.size <= KEPT else None
        timeline = whole_timeline(container, stream, request.path, kept)
        pixels = _choose_by_seeking(container, stream, request, timeline, kept)
        if pixels is None:
            pixels = _choose_by_decoding(container, stream, request, timeline)
    return pixels


def _choose_from_folder(request: FrameRequest) -> list[UInt8[Tensor, "3 S S"]]:
    """The wanted pictures of a folder of frames."""
    folder = request.path
    with watched_folder(folder) as files:
        timeline = timeline_of(files)
        times = timeline.times
        span = _span(request, times[0], times[-1], timeline.end)
        numbers = [max(0, bisect_right(times, target + 1e-6) - 1) for target in _targets(span, request, timeline)]

        # If a clip has fewer frames than are wanted, each is taken once.
        shown = bisect_left(times, span.end - 1e-6) - max(0, bisect_right(times, span.start + 1e-6) - 1)
        if request.sampling == "uniform" and shown < request.num_frames:
            numbers = list(dict.fromkeys(numbers))

        pixels: dict[int, Tensor] = {}
        for number in dict.fromkeys(numbers):
            picture = frame_picture(files[number], folder, request.max_pixels)
            pixels[number] = square(picture, request.image_size, request.resize)

        # The whole clip is every frame that training may draw, or else the last one too.
        if request.whole:
            last = max(numbers[-1], bisect_left(times, span.end - 1e-6) - 1)
            others = range(numbers[0], last) if request.sampling == "2.5fps" else ()
            for number in (*others, last):
                if number not in pixels:
                    frame_picture(files[number], folder, request.max_pixels)
    return [pixels[number] for number in numbers]


def every_second_frame(frames: int, wanted: int, draw: tuple[int, ...] | None = None) -> list[int]:
    """Numbers of the frames that CLIP2Video samples of a clip that has so many, five a second.

    Half of them are spread evenly from the first to the last; of more than are wanted, that many of these. In training,
    inner frames move by up to half a step, if that is more than two frames. That they move either way is inferred.

    Args:
        frames: at least 1.
        wanted: at most.
        draw: a seed for training.

    Examples:
        >>> every_second_frame(10, 12)
        [0, 2, 4, 6, 9]
    """
    half = max(1, frames // 2)  # the release takes none of a single frame
    numbers = np.linspace(0, frames - 1, num=half, dtype=int)
    if half > wanted:
        numbers = numbers[np.linspace(0, half - 1, num=wanted, dtype=int)]

    if draw is not None and len(numbers) > 2:
        reach = int(numbers[1] - numbers[0]) // 2
        if reach > 2:
            numbers[1:-1] += np.random.default_rng(draw).integers(-reach, reach + 1, size=len(numbers) - 2)
            numbers = np.sort(numbers)  # steps differ by a frame, so that two may have passed each other
    return [int(number) for number in numbers]


def _span(request: FrameRequest, first: float, last_frame: float, over: float) -> _Span:
    """The span in the stream's own times.

    Args:
        request: whose span it is, in seconds from the first frame.
        first: when the stream's first frame begins.
        last_frame: when its last frame begins.
        over: when its last frame is over.
    """
    start = request.start or 0.0
    end = math.inf if request.end is None else request.end
    if start > 0 and first + start >= over - 1e-6:
        raise VideoError(request.path, f"it ends at {over - first:.2f} s, before the span from {start:g} s on")
    return _Span(first + start, min(over, first + end), last_frame)


def _targets(span: _Span, request: FrameRequest, timeline: Timeline) -> list[float]:
    """When the wanted frames are on display."""
    seconds = span.end - span.start
    wanted = request.num_frames
    if request.sampling == "2.5fps":
        # At the times of a film of five frames a second, whose frames begin before the end.
        last = math.floor((span.last_frame - span.start) * RATE + 1e-6) + 1
        frames = max(1, min(math.ceil(seconds * RATE - 1e-6), max(1, last)))
        targets = [span.start + number / RATE for number in every_second_frame(frames, wanted, request.draw)]
    elif request.sampling == "uniform":
        targets = [span.start + seconds * (i + 0.5) / wanted for i in range(wanted)]
    else:
        # Whole seconds before the end at which a frame begins or goes on; the last frame is not shown once more. The
        # one that is nearest to a second may begin half a frame before it.
        early = timeline.interval / 2 if request.choice == "nearest" else 0.0
        within = math.ceil(seconds - 1e-6), math.floor(span.last_frame + early - span.start + 1e-6) + 1
        number = max(1, min(within))
        chosen = range(number) if number <= wanted else np.linspace(0, number - 1, num=wanted, dtype=int).tolist()
        targets = [span.start + second for second in chosen]

    if request.choice == "shown":
        return targets
    return [_nearest(target, span, timeline.times) for target in targets]


def _nearest(target: float, span: _Span, times: list[float]) -> float:
    """When the frame of a span begins that begins nearest to a time; of two, the earlier."""
    shown = max(0, bisect_right(times, target + 1e-6) - 1)
    last = max(shown, bisect_left(times, span.end - 1e-6) - 1)
    if shown < last and times[shown + 1] - target < target - times[shown] - 1e-6:
        return times[shown + 1]
    return times[shown]


def _choose_by_decoding(
    container: InputContainer, stream: VideoStream, request: FrameRequest, timeline: Timeline
) -> list[UInt8[Tensor, "3 S S"]]:
    """Decode from the start up to the last target."""
    return _choose(container, stream, request, timeline, enter=False)


def _choose_by_seeking(
    container: InputContainer,
    stream: VideoStream,
    request: FrameRequest,
    timeline: Timeline,
    packets: Sequence[Packet] | None = None,
) -> list[UInt8[Tensor, "3 S S"]] | None:
    """Decode little more than the wanted frames depend on.

    None where all is to be decoded: the whole of a short clip is asked for, frames are not known by their times, or
    keyframes are wrong.
    """
    first = timeline.times[0]
    last_second = _span(request, first, timeline.times[-1], timeline.end).end - first
    short = last_second < SEEK_FROM * max(1.0, request.num_frames / 12)
    if has_no_stamps(container) or (short and (request.whole or not timeline.alone)):
        return None
    try:
        return _choose(container, stream, request, timeline, enter=True, skip=not request.whole, packets=packets)
    except (Astray, av.error.FFmpegError):
        return None  # decoding from the start tells whether the keyframes or the pictures are wrong


def _choose(
    container: InputContainer,
    stream: VideoStream,
    request: FrameRequest,
    timeline: Timeline,
    *,
    enter: bool,
    skip: bool = False,
    packets: Sequence[Packet] | None = None,
) -> list[UInt8[Tensor, "3 S S"]]:
    """The wanted pictures; see `frames_shown_at`."""
    wanted = _Wanted.of(request, timeline)

    # The whole clip is its last frame too, which is looked at and not taken.
    to_see = [*wanted.targets, max(wanted.targets[-1], wanted.last)] if request.whole else wanted.targets

    # Each is made into a picture as it comes: frames lie in the decoder's memory, and are large.
    pictures: list[Tensor] = []
    before = None
    at_start = rewound(container, stream, timeline, request.path, request.max_pixels)
    with at_start if packets is None else nullcontext((container, stream)) as film:
        frames = frames_shown_at(*film, request.path, timeline, to_see, enter=enter, skip=skip, packets=packets)
        for i, frame in enumerate(frames):
            if i == len(wanted.targets):
                break
            if frame is not before:
                picture = picture_of(frame, stream.sample_aspect_ratio, request.display)
                pictures.append(square(picture, request.image_size, request.resize))
            elif not wanted.once:
                pictures.append(pictures[-1])
            before = frame
    return pictures


@dataclass(frozen=True)
class _Wanted:
    """Which frames of a film one span of it asks for."""

    targets: list[float]
    """When they are on display."""
    once: bool
    """Whether a frame that is on display at several of these times is taken once: the span has too few."""
    last: float
    """When the last frame of the span is on display."""

    @classmethod
    def of(cls, request: FrameRequest, timeline: Timeline) -> "_Wanted":
        times = timeline.times
        span = _span(request, times[0], times[-1], timeline.end)
        targets = _targets(span, request, timeline)
        shown = bisect_left(times, span.end - 1e-6) - max(0, bisect_right(times, span.start + 1e-6) - 1)
        once = request.sampling == "uniform" and shown < request.num_frames
        return cls(targets, once, min(span.end, span.last_frame))


Span = tuple[float, float]
"""Seconds from a file's first frame at which a part of it begins and ends."""


def pictures_of_spans(
    request: FrameRequest, cut: Callable[[float], Sequence[Span]]
) -> Iterator[tuple[Span, list[Picture]]]:
    """The frames of several spans of one video file, as they are watched; the file is read and decoded once.

    Args:
        request: what is wanted of each span; its own span is not looked at.
        cut: takes the seconds of the film, and gives spans that follow each other and do not overlap.

    Yields:
        Each span, with the pictures of which `decode_frames` makes its squares, without padding.

    Raises:
        VideoError: a frame cannot be had. Spans before it have been given.
        PassingError: the file cannot be read now, for which it is not to blame.
    """
    rotated = request.display == "rotated"
    with open_video(request.path, first=rotated, max_pixels=request.max_pixels) as (container, stream):
        timeline = whole_timeline(container, stream, request.path)
        spans = cut(timeline.seconds)
        wanted = [_Wanted.of(replace(request, start=start, end=end), timeline) for start, end in spans]
        film = container, stream, request, wanted, timeline

        # Groups of pictures in which nothing is wanted are passed over, unless keyframes or times are wrong.
        done = 0
        if not has_no_stamps(container):
            try:
                for pictures in _pictures_of(*film, enter=True):
                    yield spans[done], pictures
                    done += 1
                return
            except (Astray, av.error.FFmpegError):
                pass  # decoding from the start tells whether the keyframes or the pictures are wrong

        for number, pictures in enumerate(_pictures_of(*film, enter=False)):
            if number >= done:
                yield spans[number], pictures


def _pictures_of(
    container: InputContainer,
    stream: VideoStream,
    request: FrameRequest,
    wanted: Sequence[_Wanted],
    timeline: Timeline,
    *,
    enter: bool,
) -> Iterator[list[Picture]]:
    """The pictures of each span, in one pass."""
    targets = [target for one in wanted for target in one.targets]
    with rewound(container, stream, timeline, request.path, request.max_pixels) as film:
        frames = frames_shown_at(*film, request.path, timeline, targets, enter=enter, skip=enter)
        for one in wanted:
            pictures: list[Picture] = []
            before = None
            for _ in one.targets:
                frame = next(frames)
                if frame is not before:
                    pictures.append(picture_of(frame, stream.sample_aspect_ratio, request.display))
                elif not one.once:
                    pictures.append(pictures[-1])
                before = frame
            yield pictures
