"""What is in a video file and when it is shown, from its headers and packets; and decoding it in order."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream


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


@dataclass(frozen=True)
class Timeline:
    """When the packets of a stream are shown, in seconds."""

    times: list[float]
    """Sorted presentation times."""
    end: float
    """When the last of them is over."""
    interval: float
    """Usual seconds from one frame to the next."""
    complete: bool
    """False where the file ends before its headers say."""
    torn: float | None
    """When the first packet is shown whose parts do not add up to it: it was overwritten. None: there is none."""


def decoder_version() -> str:
    """The library that decodes, which pixels depend on."""
    return f"PyAV {av.__version__}, libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}"


def probe(path: Path) -> VideoInfo:
    """Read the headers of a video file; nothing is decoded.

    Raises:
        VideoError: the file cannot be opened or read.
    """
    with open_video(path) as (container, stream):
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


def check_packets(path: Path) -> None:
    """Look for packets that are missing or overwritten, decoding the first frame, and more only up to a suspect.

    Damage inside the pictures of a whole packet is seen by decoding alone.

    Raises:
        VideoError: what is damaged, and where.
    """
    with open_video(path) as (container, stream):
        timeline = whole_timeline(container, stream, path)
        container.seek(0)
        frames = decode(container, stream)
        if next(frames, None) is None:
            raise VideoError(path, "its first frame cannot be decoded")
        if timeline.torn is None:
            return
        # What looks torn here may be nothing to the decoder, which has the last word.
        second = timeline.torn - timeline.times[0]
        try:
            shown = any(abs(time - timeline.torn) < 1e-3 and not frame.is_corrupt for time, frame in frames)
        except av.error.FFmpegError as error:
            raise VideoError(path, f"the packet at {second:.2f} s is damaged: {error.strerror}") from error
        if not shown and second > 0:
            raise VideoError(path, f"the packet at {second:.2f} s is damaged")


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its video stream. Whatever FFmpeg cannot do inside the block becomes a VideoError."""
    try:
        if path.is_file() and not path.stat().st_size:
            raise VideoError(path, "the file is empty")
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


def declared_duration(container: InputContainer, stream: VideoStream) -> float | None:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None


def whole_timeline(container: InputContainer, stream: VideoStream, path: Path) -> Timeline:
    """The timeline of a file that is not truncated; VideoError where it is."""
    timeline = read_timeline(container, stream, path)
    if not timeline.complete:
        declared = declared_duration(container, stream)
        raise VideoError(
            path,
            f"it is truncated: its frames end at {timeline.end - timeline.times[0]:.2f} s"
            + (f" of {declared:.2f} s" if declared else f", {len(timeline.times)} of {stream.frames}"),
        )
    return timeline


def read_timeline(container: InputContainer, stream: VideoStream, path: Path) -> Timeline:
    """Read all packets without decoding any, which also finds out whether the file is whole."""
    times: list[float] = []
    end, packets, end_of_any, torn = 0.0, 0, 0.0, None
    length_size = _length_size(stream)
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
            if length_size and torn is None and not _adds_up(bytes(packet), length_size):
                torn = time
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
    return Timeline(times, end, interval, complete, torn)


def has_no_stamps(container: InputContainer) -> bool:
    # AVI stores no presentation times. FFmpeg counts packets in storage order instead, which B-frames contradict; but
    # frames leave the decoder in the order of display, and their times are those of the packets, sorted.
    return container.format.name == "avi"


def decode(container: InputContainer, stream: VideoStream) -> Iterator[tuple[float, VideoFrame]]:
    """Frames with their presentation times in seconds."""
    for frame in container.decode(stream):
        stamp = frame.dts if frame.pts is None else frame.pts
        if stamp is not None and frame.time_base is not None:
            yield float(stamp * frame.time_base), frame


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
