"""Pictures from packets: in the order of display, and none decoded twice."""

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from emcl_train.data.clock import Clock, Ticks, has_no_stamps
from emcl_train.data.timeline import Timeline, VideoError

Shown = tuple[float, VideoFrame]
"""When a frame is shown, in seconds, and the frame."""


SKIPPING = ("h264",)
"""Codecs whose decoder passes over exactly the frames on which no other depends. In HEVC a frame may be marked as one
of these and be needed by a higher sub-layer; the decoders of VP9 and AV1 do not look at the request."""


class Astray(Exception):
    """Decoding was begun within a film and did not lead to the frame that belongs there."""


def frames_shown_at(
    container: InputContainer,
    stream: VideoStream,
    path: Path,
    timeline: Timeline,
    targets: Sequence[float],
    *,
    enter: bool = False,
    skip: bool = False,
    packets: Sequence[Packet] | None = None,
) -> Iterator[VideoFrame]:
    """The frame on display at each of these times, which must ascend.

    Args:
        container: the open file, which stands at its start.
        stream: the film in it.
        path: the file's name, for errors.
        timeline: of the film.
        targets: seconds in the timeline.
        enter: decode only the groups of pictures in which wanted frames lie, each of them once. Otherwise all is
            decoded, from the start to the last target.
        skip: within these groups too, leave out frames that are not wanted and on which no other depends. Damage in
            them is not seen.
        packets: of the film, as `read_timeline` kept them; None: they are read from the file.

    Raises:
        VideoError: a frame is missing or damaged.
        Astray: the same, if groups were passed over: decoding from the start tells whether the file is damaged.
    """
    times = [timeline.times[max(0, bisect_right(timeline.times, target + 1e-6) - 1)] for target in targets]
    skip = skip and timeline.alone and stream.codec_context.name in SKIPPING
    only = _around(timeline, times) if skip else None
    entries = [timeline.entry(time) for time in times] if enter or skip else []
    reader = Reader(container, stream, timeline, only=only, packets=packets)
    tolerance = 3 * timeline.interval + 1e-3
    # Where frames are left out, the one before the wanted one may be none that was on display.
    early = 1e-6 if skip else tolerance
    first = timeline.times[0]
    current: Shown | None = None

    for i, (target, shown) in enumerate(zip(targets, times, strict=True)):
        if enter and reader.enter(entries[i]):
            current = None
        if skip:
            # Behind the last wanted frame of a group nothing more is put into the decoder: it gives what it has.
            last = timeline.number_of(shown) + 1
            group_ends = i + 1 == len(times) or entries[i + 1] > last
            reader.until = last if group_ends else None

        # Of frames that were passed over to, the one that is shown is known by its stamp.
        while not (enter and current is not None and current[0] >= shown - 1e-6):
            upcoming = reader.peek()
            if upcoming is None or (current is not None and upcoming[0] > target + 1e-6):
                break
            current = reader.take()

        if current is None and enter:
            raise Astray
        if current is None:
            raise VideoError(path, f"none of its {len(timeline.times)} frames can be decoded")
        time, frame = current
        if enter and (frame.is_corrupt or not -1e-6 <= shown - time <= early):
            raise Astray
        if time < shown - tolerance:
            raise VideoError(path, f"the frame at {shown - first:.2f} s is missing; the file is damaged there")
        if frame.is_corrupt:
            raise VideoError(path, f"the frame at {time - first:.2f} s is damaged")
        yield frame


def _around(timeline: Timeline, times: Sequence[float]) -> set[int]:
    """The packets, by their numbers, of the frames shown from these times on, and the one on either side of each.

    Two fields of a frame may come in a packet each.
    """
    numbers = {timeline.number_of(time) for time in times}
    return {number + step for number in numbers for step in (-1, 0, 1)}


class Reader:
    """The frames of a film in the order of display; what nobody wants can be passed over.

    Its file must stand at the start.
    """

    def __init__(
        self,
        container: InputContainer,
        stream: VideoStream,
        timeline: Timeline,
        only: Container[int] | None = None,
        packets: Sequence[Packet] | None = None,
    ) -> None:
        """From the start.

        Args:
            container: the open file.
            stream: the film in it.
            timeline: of the film.
            only: packets, by their numbers, of wanted frames; others are left out if no frame depends on them. None:
                all are decoded.
            packets: as `read_timeline` kept them; None: they are read from the file.
        """
        self.until: int | None = None
        """The last packet, by its number, that is put into the decoder before another is entered; None: all are."""
        self._drained = False
        self._only = only
        self._leaves_out = False
        stream.codec_context.skip_frame = "DEFAULT"  # whatever an earlier reader of it left out
        self._ticks = Ticks(stream.time_base) if stream.time_base else None
        self._packets = _packets(container, stream) if packets is None else iter(packets)
        self._next_packet = 0
        # Where it has been entered: whether its first packet comes next, and its stamp, until its picture has come.
        self._at_entry = self._entered = False
        self._begins: int | None = None
        self._stream = stream
        self._decoded: deque[Shown] = deque()
        # Frames without stamps leave the decoder in the order of display, and their times are those of the packets.
        self._times = iter(timeline.times) if has_no_stamps(container) else None

    def peek(self) -> Shown | None:
        """The frame that comes next; None behind the last."""
        while not self._decoded:
            if self.until is not None and self._next_packet > self.until:
                if self._drained:
                    return None
                self._drained = True
                self._decoded.extend(self._timed(self._stream.codec_context.decode(None)))
                continue
            packet = next(self._packets, None)
            if packet is None:
                return None
            if self._only is not None:
                self._leave_out(self._next_packet not in self._only)
            self._next_packet += 1
            if self._at_entry:
                self._begins = packet.pts
                self._at_entry = False
            self._decoded.extend(self._timed(decode_packet(packet)))
        return self._decoded[0]

    def take(self) -> Shown | None:
        """The frame that comes next, which is then behind."""
        return self._decoded.popleft() if self.peek() else None

    def enter(self, number: int) -> bool:
        """Go on with this packet, unless it is behind already. True if packets were passed over, undecoded."""
        if number < self._next_packet or (number == self._next_packet and not self._drained):
            return False
        for _ in range(number - self._next_packet):
            next(self._packets)
        self._next_packet = number
        self._decoded.clear()
        self._drained = False
        self._at_entry = self._entered = True
        self._begins = None
        self._stream.codec_context.flush_buffers()
        return True

    def _timed(self, frames: list[VideoFrame]) -> Iterator[Shown]:
        for frame in frames:
            if self._times is not None:
                time = next(self._times, None)
                if time is not None:
                    yield time, frame
                continue
            stamp = frame.dts if frame.pts is None else frame.pts
            if stamp is not None and self._ticks is not None:
                if self._entered:
                    self._require_entry(frame, stamp)
                yield self._ticks.seconds(stamp), frame

    def _require_entry(self, frame: VideoFrame, stamp: int) -> None:
        """Raise Astray where a group begins with a picture that depends on others, as it does where marks are wrong.

        Some decoders make a picture of it all the same, out of grey. Pictures that are shown before the first one of a
        group depend on the group before; they are not taken.
        """
        if self._begins is not None and stamp < self._begins:
            return
        if (self._begins is not None and stamp > self._begins) or not is_complete(frame):
            raise Astray
        self._entered = False

    def _leave_out(self, unwanted: bool) -> None:
        """What becomes of the next packet, if no frame depends on it."""
        if unwanted != self._leaves_out:
            self._stream.codec_context.skip_frame = "NONREF" if unwanted else "DEFAULT"
            self._leaves_out = unwanted


def is_complete(frame: VideoFrame) -> bool:
    """Whether a picture is one that depends on no other."""
    return frame.key_frame or frame.pict_type == PictureType.I


def decode_packet(packet: Packet) -> list[VideoFrame]:
    """The frames that leave the decoder when this packet enters it."""
    return packet.decode()


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """The packets of a film as `read_timeline` counts them, and then the one that empties the decoder."""
    clock = Clock(container, stream)
    end = None
    for packet in demuxed(container, [stream]):
        if packet.size:
            clock.put_right(packet)
            yield packet
        else:
            end = packet  # an empty one would end the film in the decoder
    if end is not None:
        yield end


_look: ContextVar[Callable[[], None] | None] = ContextVar("look", default=None)


@contextmanager
def looking(look: Callable[[], None]) -> Iterator[None]:
    """Call this before each packet that is read inside the block, of whatever stream; it ends the reading by raising.

    Example:
        >>> with looking(limits.check):
        ...     timeline = read_timeline(container, stream, path)
    """
    token = _look.set(look)
    try:
        yield
    finally:
        _look.reset(token)


def demuxed(container: InputContainer, streams: Sequence[Stream]) -> Iterator[Packet]:
    """The packets of these streams, and one for each that empties its decoder.

    A stream may come later than the headers, as sound does in some recordings of broadcasts. PyAV does not know it:
    it leaves out its packets, and may end with an IndexError when all has been read.
    """
    look = _look.get()
    # Behind the last packet of a stream may lie gigabytes of others, which are read too.
    packets = container.demux(*(streams if look is None else list(container.streams)))
    wanted = [stream.index for stream in streams] if look is not None else []
    while True:
        if look is not None:
            look()
        try:
            packet = next(packets)
        except (StopIteration, IndexError):
            return
        if look is None or packet.stream.index in wanted:
            yield packet
