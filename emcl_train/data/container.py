"""What is in a video file and when it is shown, from its headers and packets."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from emcl_train.config import MAX_PIXELS
from emcl_train.data import riff
from emcl_train.data.clock import JOINED, Clock, Ticks
from emcl_train.data.decoding import Reader, demuxed
from emcl_train.data.frame_folders import (
    RATE,
    frame_picture,
    frame_size,
    is_frame_folder,
    timeline_of,
    watched_folder,
)
from emcl_train.data.opening import opened, prepared, refused_size, too_large, watched
from emcl_train.data.passing import passing
from emcl_train.data.streams import film_of
from emcl_train.data.structure import fault_of, segment_is_cut
from emcl_train.data.timeline import Place, Timeline, VideoError

__all__ = [
    "VideoError",
    "VideoInfo",
    "check_packets",
    "decoder_version",
    "open_video",
    "probe",
    "read_timeline",
    "rewound",
    "whole_timeline",
]


LONGEST = 31 * 86400.0
"""Seconds of a film: time stamps that go on for longer are no times."""


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


def decoder_version() -> str:
    """The library that decodes, which pixels depend on."""
    return f"PyAV {av.__version__}, libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}"


def probe(path: Path, max_pixels: int = MAX_PIXELS) -> VideoInfo:
    """Read the headers of a video file, or of the first of a folder of frames; nothing is decoded.

    Raises:
        VideoError: the file is no film, or its frames are too large.
        PassingError: it cannot be read now.
    """
    if is_frame_folder(path):
        with watched_folder(path) as files:
            width, height = frame_size(files[0], path, max_pixels)
        return VideoInfo("folder", "jpeg", width, height, float(RATE), len(files) / RATE, len(files))

    with open_video(path, max_pixels=max_pixels) as (container, stream):
        codec = stream.codec_context
        return VideoInfo(
            container=container.format.name,
            codec=codec.name,
            width=codec.width,
            height=codec.height,
            fps=float(stream.average_rate) if stream.average_rate else None,
            duration=declared_duration(container, stream),
            frames=stream.frames or None,
        )


def check_packets(path: Path, max_pixels: int = MAX_PIXELS) -> Timeline:
    """Look for packets that are missing or overwritten, decoding the first frame, and more only up to a suspect.

    Of a folder of frames, the headers of each are read, and the first one is decoded. Damage inside the pictures of a
    whole packet, or of a frame, is seen by decoding alone.

    Returns:
        When the packets are shown.

    Raises:
        VideoError: what is damaged, and where.
    """
    if is_frame_folder(path):
        with watched_folder(path) as files:
            frame_picture(files[0], path, max_pixels)
            for file in files[1:]:
                frame_size(file, path, max_pixels)
        return timeline_of(files)

    with open_video(path, max_pixels=max_pixels) as (container, stream):
        timeline = whole_timeline(container, stream, path)
        with rewound(container, stream, timeline, path, max_pixels) as film:
            reader = Reader(*film, timeline)
            if reader.peek() is None:
                raise VideoError(path, "its first frame cannot be decoded")
            if timeline.torn is None:
                return timeline

            # What looks torn here may be nothing to the decoder, which has the last word.
            second = timeline.torn - timeline.times[0]
            shown = False
            try:
                while not shown and (taken := reader.take()):
                    shown = abs(taken[0] - timeline.torn) < 1e-3 and not taken[1].is_corrupt
            except av.error.FFmpegError as error:
                if passing(error, path):
                    raise
                raise VideoError(path, f"the packet at {second:.2f} s is damaged: {error.strerror}") from error
            if not shown and second > 0:
                raise VideoError(path, f"the packet at {second:.2f} s is damaged")
            return timeline


@contextmanager
def open_video(
    path: Path, *, first: bool = False, max_pixels: int = MAX_PIXELS
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and the film in it. Whatever FFmpeg cannot do inside the block becomes a VideoError.

    Args:
        path: the file.
        first: take the first stream of pictures that is no cover, whatever it is.
        max_pixels: of a frame.

    Raises:
        VideoError: what is in the file is no film that can be decoded.
        PassingError: the machine or the disk did not give what is in the file.
    """
    with watched(path), opened(path, max_pixels) as container:
        stream = prepared(film_of(container, path, first=first, max_pixels=max_pixels), path, max_pixels)
        number = container.streams.video.index(stream)
        with _refusal_named(path, stream, number, max_pixels):
            yield container, stream


@contextmanager
def _refusal_named(path: Path, stream: VideoStream, number: int, max_pixels: int) -> Iterator[None]:
    """Say by which size of frame the decoder was stopped, if that stopped it."""
    try:
        yield
    except (VideoError, av.error.FFmpegError) as error:
        # A decoder that refused a size has none.
        if stream.codec_context.width * stream.codec_context.height or passing(error, path):
            raise
        size = refused_size(path, max_pixels, number)
        if size is None:
            raise
        raise too_large(path, *size, max_pixels) from error


@contextmanager
def rewound(
    container: InputContainer, stream: VideoStream, timeline: Timeline, path: Path, max_pixels: int = MAX_PIXELS
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The same film, to be read from its first packet on."""
    if timeline.parts == 1 and all(packet.shown for packet in timeline.packets) and _sought(container):
        yield container, stream
        return

    # Where a time is there more than once, seeking may lead to the later one.
    with opened(path, max_pixels) as again:
        number = container.streams.video.index(stream)
        film = prepared(again.streams.video[number], path, max_pixels)
        with _refusal_named(path, film, number, max_pixels):
            yield again, film


def _sought(container: InputContainer) -> bool:
    """Go back to the start. False where the file cannot be sought in, as FLV without a list of keyframes."""
    try:
        container.seek(0)
    except av.error.FFmpegError:
        return False
    return True


def declared_duration(container: InputContainer, stream: VideoStream) -> float | None:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None


def whole_timeline(
    container: InputContainer, stream: VideoStream, path: Path, kept: list[Packet] | None = None
) -> Timeline:
    """The timeline of a file that is not truncated and has no hole; VideoError where it is or has.

    Args:
        container: the open file.
        stream: the film in it.
        path: its name.
        kept: gets the packets of the film; see `read_timeline`.
    """
    timeline = read_timeline(container, stream, path, kept)
    if not timeline.complete:
        declared = declared_duration(container, stream) or 0.0
        expected = max(len(stream.index_entries), stream.frames)
        missing = (
            f" of {declared:.2f} s"
            if declared > timeline.seconds + timeline.interval / 2
            else f", {len(timeline.packets)} of {expected} packets"
        )
        raise VideoError(path, f"it is truncated: its frames end at {timeline.seconds:.2f} s{missing}")
    fault = fault_of(path, container.format.name)
    if fault is not None:
        raise VideoError(path, fault)
    if timeline.seconds > LONGEST:
        raise VideoError(path, f"its time stamps go on for {timeline.seconds / 86400:.0f} days")
    return timeline


def read_timeline(
    container: InputContainer, stream: VideoStream, path: Path, kept: list[Packet] | None = None
) -> Timeline:
    """Read all packets without decoding any, which also finds out whether the file is whole.

    Args:
        container: the open file.
        stream: the film in it.
        path: its name.
        kept: gets the packets of the film, to be decoded without another reading, and the one that empties the decoder.
    """
    clock = Clock(container, stream)
    length_size = _length_size(stream)
    ticks: dict[int, Ticks] = {}
    places: list[Place] = []
    presented = True
    end = 0.0
    end_of_others = 0.0
    torn = None
    last = None
    emptying = None
    empty = 0

    for packet in demuxed(container, list(container.streams)):
        if not packet.size:
            if packet.stream_index == stream.index:
                empty += packet.dts is not None
                emptying = packet
            continue
        index = packet.stream_index
        if index not in ticks:
            ticks[index] = Ticks(packet.time_base)
        if index != stream.index:
            end_of_others = max(end_of_others, _times(packet, ticks[index])[1])  # unless it is not a number
            continue
        last = packet
        clock.put_right(packet)
        if kept is not None:
            kept.append(packet)
        time, over = _times(packet, ticks[index])
        shown = not packet.is_discard and not math.isnan(time)
        places.append(Place(time, shown, packet.is_keyframe))
        if not shown:
            continue
        presented = presented and packet.pts is not None
        end = max(end, over)
        if length_size and torn is None and not _adds_up(bytes(packet), length_size):
            torn = time

    if kept is not None and emptying is not None:
        kept.append(emptying)
    times = sorted(place.time for place in places if place.shown)
    if last is None or not times:
        raise VideoError(path, "its video stream has no frames")
    interval = _interval(times, stream)
    end = max(end, times[-1] + interval)

    # The number of frames in a header is no truth: it counts what an edit list hides, and chunks that are empty.
    kind = container.format.name
    if kind.startswith("mov"):
        # The index has every packet that should be there, of those that an edit list uses.
        complete = len(places) + empty >= len(stream.index_entries) and not last.is_corrupt
    elif kind == "avi" and stream.frames:
        # Stamps count the empty chunks too, but for those at the end.
        reached = stream.time_base is not None and round(end / stream.time_base) >= stream.frames
        complete = (reached or riff.is_whole(path)) and not last.is_corrupt
    elif container.duration and kind not in JOINED:
        # At least one of the streams must reach the end that the container declares, which Matroska counts from zero
        # even where the first frame comes later. It may be declared roughly, if the file is as long as it says.
        lacking = container.duration / av.time_base - max(end, end_of_others)
        complete = lacking <= max(0.5, 3 * interval) and (lacking <= interval / 2 or not segment_is_cut(path))
    else:
        complete = True  # nothing declares a length: what FFmpeg gives is guessed from the stamps
    alone = presented and len(set(times)) == len(times)
    return Timeline(places, times, end, interval, complete, torn, clock.parts, alone)


def _times(packet: Packet, ticks: Ticks) -> tuple[float, float]:
    """When a packet is shown and when it is over, in seconds; not a number where nothing says so."""
    stamp = packet.dts if packet.pts is None else packet.pts
    if stamp is None:
        return math.nan, math.nan
    return ticks.seconds(stamp), ticks.seconds(stamp + (packet.duration or 0))


def _interval(times: list[float], stream: VideoStream) -> float:
    gaps = sorted(later - earlier for earlier, later in pairwise(times))
    if gaps:
        return gaps[len(gaps) // 2]
    return float(1 / stream.average_rate) if stream.average_rate else 0.0


def _length_size(stream: VideoStream) -> int:
    """Bytes of the length before each part of a packet of H.264 and HEVC in MP4 and Matroska; 0 where there is none."""
    extradata, place = stream.codec_context.extradata or b"", {"h264": 4, "hevc": 21}.get(stream.codec_context.name)
    if place is None or len(extradata) <= place or extradata[0] != 1:
        return 0
    return (extradata[place] & 3) + 1


def _adds_up(packet: bytes, length_size: int) -> bool:
    place = 0
    while place + length_size <= len(packet):
        start = place + length_size
        length = int.from_bytes(packet[place:start], "big")
        if not length or start + length > len(packet) or packet[start] & 0x80:  # that bit is forbidden in a header
            return False
        place = start + length
    return True
