"""Frames of a video file, uniform in time, as uint8 tensors; and why a file cannot give them."""

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import av
import torch
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import Bool, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

VIDEO_SAMPLER_VERSION = 1
"""Goes up with every change of which pixels `decode_frames` returns; remembered results and caches depend on it."""

SEEK_FROM = 60.0
"""Clips of this many seconds and more are entered by seeking; below, decoding straight through is as fast."""


class VideoError(Exception):
    """A video file that cannot be decoded, and why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)  # both, so that it can be pickled on its way from a worker process
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class VideoInfo:
    """What a file says of its video stream, in pixels, frames per second, and seconds. None: it does not say."""

    container: str
    codec: str
    width: int
    height: int
    fps: float | None
    duration: float | None
    frames: int | None


def probe(path: Path) -> VideoInfo:
    """Read the headers of a video file; nothing is decoded.

    Raises: VideoError.
    """
    with _open(path) as (container, stream):
        codec = stream.codec_context
        return VideoInfo(
            container=container.format.name,
            codec=codec.name,
            width=codec.width,
            height=codec.height,
            fps=float(stream.average_rate) if stream.average_rate else None,
            duration=_declared_duration(container, stream),
            frames=stream.frames or None,
        )


def decode_frames(path: Path, num_frames: int, image_size: int) -> tuple[UInt8[Tensor, "F 3 S S"], Bool[Tensor, "F"]]:
    """The frames on display at the centres of `num_frames` equal parts of the clip's duration.

    Time is that of the presentation time stamps, so a variable frame rate is sampled as it is watched. Frames are
    resized by their short side and cropped at the centre.

    Returns: frames; mask, False on padding, which follows the frames of a clip that has fewer than `num_frames`.
    Raises: VideoError where any of the frames cannot be had.
    """
    with _open(path) as (container, stream):
        duration = _declared_duration(container, stream)
        chosen = None
        if duration is not None and duration >= SEEK_FROM:
            chosen = _choose_by_seeking(container, stream, num_frames, duration)
            if chosen is None:
                container.seek(0)
        if chosen is None:
            chosen = _choose_by_decoding(container, stream, num_frames, path)
        pixels = [_resize_and_crop(frame, image_size) for frame in chosen]
    frames = torch.zeros(num_frames, 3, image_size, image_size, dtype=torch.uint8)
    frames[: len(pixels)] = torch.stack(pixels)
    return frames, torch.arange(num_frames) < len(pixels)


@contextmanager
def _open(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its video stream. Whatever FFmpeg cannot do inside the block becomes a VideoError."""
    try:
        with av.open(str(path)) as container:
            streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
            if not streams:
                raise VideoError(path, "it has no video stream")
            stream = streams[0]
            # Clips are decoded side by side already: threads inside each would only fight for the same cores.
            stream.codec_context.thread_type, stream.codec_context.thread_count = "NONE", 1
            yield container, stream
    except FileNotFoundError as error:
        raise VideoError(path, "there is no such file") from error
    except PermissionError as error:
        raise VideoError(path, "the file may not be read") from error
    except av.error.FFmpegError as error:
        raise VideoError(path, f"{error.strerror} ({type(error).__name__})") from error
    except OSError as error:
        raise VideoError(path, str(error)) from error


def _declared_duration(container: InputContainer, stream: VideoStream) -> float | None:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None


def _targets(start: float, duration: float, num_frames: int) -> list[float]:
    return [start + duration * (i + 0.5) / num_frames for i in range(num_frames)]


@dataclass(frozen=True)
class _Timeline:
    """When the packets of a stream are shown, in seconds."""

    times: list[float]
    """Sorted presentation times."""
    end: float
    """When the last of them is over."""
    complete: bool
    """False where the file ends before its headers say."""


def _read_timeline(container: InputContainer, stream: VideoStream, path: Path) -> _Timeline:
    """Read all packets without decoding any, which also finds out whether the file is whole."""
    times: list[float] = []
    end, packets, end_of_any = 0.0, 0, 0.0
    for packet in container.demux():
        if not packet.size:
            continue
        packets += packet.stream_index == stream.index
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is None or packet.is_discard:
            continue
        time = float(stamp * packet.time_base)
        over = time + float((packet.duration or 0) * packet.time_base)
        end_of_any = max(end_of_any, over)
        if packet.stream_index == stream.index:
            times.append(time)
            end = max(end, over)
    if not times:
        raise VideoError(path, "its video stream has no frames")
    times.sort()
    interval = _interval(times, stream)
    end = max(end, times[-1] + interval)
    if stream.frames:
        complete = packets >= stream.frames
    elif container.duration:
        # Without a count of frames, at least one of the streams must reach the end that the container declares, which
        # Matroska counts from zero even where the first frame comes later.
        complete = max(end, end_of_any) >= container.duration / av.time_base - max(0.5, 3 * interval)
    else:
        complete = True
    return _Timeline(times, end, complete)


def _interval(times: list[float], stream: VideoStream) -> float:
    """Usual seconds from one frame to the next."""
    gaps = sorted(later - earlier for earlier, later in pairwise(times))
    if gaps:
        return gaps[len(gaps) // 2]
    return float(1 / stream.average_rate) if stream.average_rate else 0.0


def _choose_by_decoding(
    container: InputContainer, stream: VideoStream, num_frames: int, path: Path
) -> list[VideoFrame]:
    """Decode from the start up to the last target."""
    timeline = _read_timeline(container, stream, path)
    times, end = timeline.times, timeline.end
    if not timeline.complete:
        declared = _declared_duration(container, stream)
        raise VideoError(
            path,
            f"it is truncated: its frames end at {end - times[0]:.2f} s"
            + (f" of {declared:.2f} s" if declared else f", {len(times)} of {stream.frames}"),
        )
    targets = _targets(times[0], end - times[0], num_frames)
    container.seek(0)
    tolerance = 3 * _interval(times, stream) + 1e-3
    chosen: list[VideoFrame] = []
    decoded = _decode(container, stream)
    if _has_no_stamps(container):
        decoded = ((time, frame) for time, (_, frame) in zip(times, decoded, strict=False))
    for target, (time, frame) in zip(targets, _frames_at(decoded, targets), strict=False):
        shown = times[max(0, bisect_right(times, target + 1e-6) - 1)]
        if time < shown - tolerance:
            raise VideoError(path, f"the frame at {shown - times[0]:.2f} s is missing; the file is damaged there")
        if frame.is_corrupt:
            raise VideoError(path, f"the frame at {time - times[0]:.2f} s is damaged")
        chosen.append(frame)
    if len(chosen) < num_frames:
        raise VideoError(path, f"none of its {len(times)} frames can be decoded")
    if len(times) >= num_frames:
        return chosen
    return [frame for i, frame in enumerate(chosen) if i == 0 or frame is not chosen[i - 1]]


def _choose_by_seeking(
    container: InputContainer, stream: VideoStream, num_frames: int, duration: float
) -> list[VideoFrame] | None:
    """Decode from the keyframe before each target. None where the index of the file does not lead there."""
    if _has_no_stamps(container):
        return None
    assert stream.time_base is not None
    start = float((stream.start_time or 0) * stream.time_base)
    if not stream.duration:
        duration -= start  # a container without durations of its streams (Matroska) counts its own from zero
    chosen = []
    for target in _targets(start, duration, num_frames):
        try:
            container.seek(int(target / stream.time_base), stream=stream)
            time, frame = next(_frames_at(_decode(container, stream), [target]))
        except (StopIteration, av.error.FFmpegError):
            return None
        over = time + float((frame.duration or 0) * stream.time_base)
        late = time > target + 1e-6
        early = time < target - 1.0 and over < target
        if late or early or frame.is_corrupt:
            return None  # decoding from the start tells whether the index or the file is wrong
        chosen.append(frame)
    return chosen


def _has_no_stamps(container: InputContainer) -> bool:
    # AVI stores no presentation times. FFmpeg counts packets in storage order instead, which B-frames contradict; but
    # frames leave the decoder in the order of display, and their times are those of the packets, sorted.
    return container.format.name == "avi"


def _decode(container: InputContainer, stream: VideoStream) -> Iterator[tuple[float, VideoFrame]]:
    """Frames with their presentation times in seconds."""
    for frame in container.decode(stream):
        stamp = frame.dts if frame.pts is None else frame.pts
        if stamp is not None and frame.time_base is not None:
            yield float(stamp * frame.time_base), frame


def _frames_at(decoded: Iterator[tuple[float, VideoFrame]], targets: list[float]) -> Iterator[tuple[float, VideoFrame]]:
    """For each target the last frame at or before it, or the first of all. Stops decoding after the last target."""
    shown, i = None, 0
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


def _resize_and_crop(frame: VideoFrame, image_size: int) -> UInt8[Tensor, "3 S S"]:
    """Short side to `image_size` by antialiased bicubic interpolation, upright, cropped at the centre."""
    image = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1).float()  # [3, H, W]
    image = torch.rot90(image, round(frame.rotation / 90), dims=(1, 2))
    height, width = image.shape[1:]
    scale = image_size / min(height, width)
    size = max(image_size, round(height * scale)), max(image_size, round(width * scale))
    image = interpolate(image[None], size=size, mode="bicubic", antialias=True, align_corners=False)[0]
    top, left = (size[0] - image_size) // 2, (size[1] - image_size) // 2
    image = image[:, top : top + image_size, left : left + image_size]
    return image.clamp(0, 255).round().to(torch.uint8)
