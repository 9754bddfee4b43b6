"""Frames of a video file, chosen by time, as uint8 tensors; and why a file cannot give them."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import Bool, UInt8
from torch import Tensor

from emcl_train.config import DataConfig
from emcl_train.data.clips import Clip
from emcl_train.data.container import (
    Timeline,
    VideoError,
    VideoInfo,
    declared_duration,
    decode,
    has_no_stamps,
    open_video,
    probe,
    whole_timeline,
)
from emcl_train.data.picture import Resize, square

__all__ = [
    "VIDEO_SAMPLER_VERSION",
    "FrameRequest",
    "VideoError",
    "VideoInfo",
    "decode_clip",
    "decode_frames",
    "probe",
    "sampler_version",
]

VIDEO_SAMPLER_VERSION = 2
"""Goes up with every change of which pixels `decode_frames` returns; remembered results and caches depend on it."""

SEEK_FROM = 60.0
"""Clips of this many seconds and more are entered by seeking, for 12 frames; below, decoding on is as fast."""

Sampling = Literal["1fps", "uniform"]


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
    more than `num_frames`, that many whose numbers are spread evenly from the first to the last."""
    start: float | None = None
    """Seconds from the file's first frame at which the clip begins; None: with the file."""
    end: float | None = None
    """Seconds from the file's first frame at which the clip ends; None: with the file."""
    whole: bool = False
    """The last frame must be there too, though it is not returned, so that damage behind the last second is found. It
    is not looked for in clips that are entered by seeking."""
    resize: Resize = "clip"
    """How pictures are scaled and cropped; see `picture.square`."""

    @classmethod
    def of_clip(cls, clip: Clip, config: DataConfig, *, whole: bool = False) -> "FrameRequest":
        """What a configuration asks of a clip."""
        return cls(
            path=clip.path,
            num_frames=config.num_frames,
            image_size=config.image_size,
            sampling=config.frame_sampling,
            start=clip.start,
            end=clip.end,
            whole=whole,
            resize=config.resize,
        )


def sampler_version(config: DataConfig) -> int:
    """The version of the sampler whose frames a configuration gets: 1 where it asks for what that version did."""
    return 1 if config.resize == "rounded" else VIDEO_SAMPLER_VERSION


@dataclass(frozen=True)
class _Span:
    """The part of a stream that is sampled, in its presentation times."""

    start: float
    end: float
    last_frame: float
    """When the last frame of the whole stream begins."""


def decode_clip(
    clip: Clip, config: DataConfig, *, whole: bool = False
) -> tuple[UInt8[Tensor, "F 3 S S"], Bool[Tensor, "F"]]:
    """The frames of a clip that a configuration asks for; see `decode_frames`."""
    return decode_frames(FrameRequest.of_clip(clip, config, whole=whole))


def decode_frames(
    request: FrameRequest | Path, *wanted: Any, **settings: Any
) -> tuple[UInt8[Tensor, "F 3 S S"], Bool[Tensor, "F"]]:
    """Frames of a video file, or of the span of it that a request names.

    Time is that of the presentation time stamps, so a variable frame rate is sampled as it is watched. Frames are
    resized by their short side and cropped at the centre.

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
    """
    if not isinstance(request, FrameRequest):
        request = FrameRequest(request, *wanted, **settings)
    with open_video(request.path) as (container, stream):
        chosen = _choose_by_seeking(container, stream, request)
        if chosen is None:
            container.seek(0)
            chosen = _choose_by_decoding(container, stream, request)

        # Resized while the file is open: the frames lie in the decoder's memory.
        pixels = [square(upright(frame), request.image_size, request.resize) for frame in chosen]

    frames = torch.zeros(request.num_frames, 3, request.image_size, request.image_size, dtype=torch.uint8)
    frames[: len(pixels)] = torch.stack(pixels)
    return frames, torch.arange(request.num_frames) < len(pixels)


def frames_shown_at(
    container: InputContainer, stream: VideoStream, path: Path, timeline: Timeline, targets: Sequence[float]
) -> Iterator[VideoFrame]:
    """The frame on display at each of these times, which must ascend, decoded from the start.

    Raises:
        VideoError: one of them is missing or damaged.
    """
    times = timeline.times
    tolerance = 3 * timeline.interval + 1e-3
    found = 0

    container.seek(0)
    decoded = decode(container, stream)
    if has_no_stamps(container):
        decoded = ((time, frame) for time, (_, frame) in zip(times, decoded, strict=False))
    for target, (time, frame) in zip(targets, _frames_at(decoded, targets), strict=False):
        shown = times[max(0, bisect_right(times, target + 1e-6) - 1)]
        if time < shown - tolerance:
            raise VideoError(path, f"the frame at {shown - times[0]:.2f} s is missing; the file is damaged there")
        if frame.is_corrupt:
            raise VideoError(path, f"the frame at {time - times[0]:.2f} s is damaged")
        found += 1
        yield frame
    if found < len(targets):
        raise VideoError(path, f"none of its {len(times)} frames can be decoded")


def upright(frame: VideoFrame) -> UInt8[np.ndarray, "H W 3"]:
    """The picture as it is meant to be seen: phones store it on its side."""
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))


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


def _targets(span: _Span, request: FrameRequest) -> list[float]:
    """When the wanted frames are on display."""
    seconds = span.end - span.start
    wanted = request.num_frames
    if request.sampling == "uniform":
        return [span.start + seconds * (i + 0.5) / wanted for i in range(wanted)]

    # Whole seconds before the end at which a frame begins or goes on; the last frame is not shown once more.
    within = math.ceil(seconds - 1e-6), math.floor(span.last_frame - span.start + 1e-6) + 1
    number = max(1, min(within))
    chosen = range(number) if number <= wanted else np.linspace(0, number - 1, num=wanted, dtype=int).tolist()
    return [span.start + second for second in chosen]


def _choose_by_decoding(container: InputContainer, stream: VideoStream, request: FrameRequest) -> list[VideoFrame]:
    """Decode from the start up to the last target."""
    timeline = whole_timeline(container, stream, request.path)
    times = timeline.times
    span = _span(request, times[0], times[-1], timeline.end)
    targets = _targets(span, request)

    # The whole clip is its last frame too, which is looked at and not taken.
    to_see = [*targets, max(targets[-1], min(span.end, span.last_frame))] if request.whole else targets
    chosen = list(frames_shown_at(container, stream, request.path, timeline, to_see))[: len(targets)]

    # If a clip has fewer frames than are wanted, each is taken once.
    shown = bisect_left(times, span.end - 1e-6) - max(0, bisect_right(times, span.start + 1e-6) - 1)
    if request.sampling == "1fps" or shown >= request.num_frames:
        return chosen
    return [frame for i, frame in enumerate(chosen) if i == 0 or frame is not chosen[i - 1]]


def _choose_by_seeking(
    container: InputContainer, stream: VideoStream, request: FrameRequest
) -> list[VideoFrame] | None:
    """Decode from the keyframe before each target. None for short clips, and where the index of the file fails."""
    duration = declared_duration(container, stream)
    if duration is None or has_no_stamps(container) or stream.time_base is None:
        return None
    first = float((stream.start_time or 0) * stream.time_base)
    if not stream.duration:
        duration -= first  # a container without durations of its streams (Matroska) counts its own from zero

    # The last frame begins one interval before the end, as far as the header tells.
    interval = float(1 / stream.average_rate) if stream.average_rate else 0.0
    span = _span(request, first, first + duration - interval, first + duration)
    if span.end - first < SEEK_FROM * max(1.0, request.num_frames / 12):
        return None

    chosen = []
    for target in _targets(span, request):
        try:
            container.seek(int(target / stream.time_base), stream=stream)
            time, frame = next(_frames_at(decode(container, stream), [target]))
        except (StopIteration, av.error.FFmpegError):
            return None

        # A frame is right if it is on display at the target. One that is over by more than a second before it is not.
        over = time + float((frame.duration or 0) * stream.time_base)
        late = time > target + 1e-6
        early = time < target - 1.0 and over < target
        if late or early or frame.is_corrupt:
            return None  # decoding from the start tells whether the index or the file is wrong
        chosen.append(frame)
    return chosen


def _frames_at(
    decoded: Iterator[tuple[float, VideoFrame]], targets: Sequence[float]
) -> Iterator[tuple[float, VideoFrame]]:
    """For each target the last frame at or before it, or the first of all. Stops decoding after the last target."""
    shown = None
    i = 0
    for time, frame in decoded:
        while i < len(targets) and shown is not None and time > targets[i] + 1e-6:
            yield shown
            i += 1
        if i == len(targets):
            return
        shown = time, frame
    while i < len(targets) and shown is not None:
        yield shown
        i += 1
