"""Time stamps that go on to the end of a film, where a file's own begin anew or jump."""

from fractions import Fraction

from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

BACK = 0.1
"""Seconds by which a packet is stamped earlier than the one before it, if the stamps begin anew. Ten times as many in
formats that are not made to be joined: some of them give the order of display in place of that of decoding."""
JUMP = 10.0
"""Seconds that are left out between two packets, if it is the clock that jumps and no picture that stays."""
JOINED = ("mpegts", "mpeg")
"""Formats that are cut and joined as they are, whose clocks may jump. In others a gap is a picture that stays."""


def has_no_stamps(container: InputContainer) -> bool:
    # AVI stores no presentation times, and its chunks are shown one after the other. FFmpeg counts them in storage
    # order, which B-frames contradict; but frames leave the decoder in the order of display, one for each count.
    return container.format.name == "avi"


class Ticks:
    """Seconds of the time stamps of one stream.

    The float nearest to the exact fraction, as `float(stamp * time_base)` gives it at several times the cost.
    """

    def __init__(self, time_base: Fraction) -> None:
        self._numerator, self._denominator = time_base.numerator, time_base.denominator

    def seconds(self, stamp: int) -> float:
        """When a stamp is."""
        return stamp * self._numerator / self._denominator


class Clock:
    """Puts the stamps of a stream's packets right, in the order in which they are read.

    A recording that goes on after a pause, parts that were joined byte by byte, and the titles of a DVD each have a
    clock of their own. Players show one part after the other, so each part is moved to where the one before it ends.
    """

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        kind = container.format.name
        self._counts = has_no_stamps(container)
        self._jumps = kind in JOINED
        # MP4's own index makes its stamps, and decoding times of packets that an edit list hides may go back.
        self._goes_back = not kind.startswith("mov")
        ticks = 1 / stream.time_base if stream.time_base else 1
        self._usual = round(ticks / stream.average_rate) if stream.average_rate else 0
        self._back = round((BACK if self._jumps else 10 * BACK) * ticks)
        self._jump = round(JUMP * ticks)
        self._last: int | None = None
        self._next = 0
        self._moved = 0
        self._lead = 0
        self.parts = 1
        """Parts with a clock of their own so far."""

    def put_right(self, packet: Packet) -> None:
        """Move the stamps of the next packet."""
        if self._counts:
            packet.pts = packet.dts
        if packet.dts is None:
            self._move(packet)
            return

        stamp = packet.dts + self._moved
        if self._last is not None and self._begins_anew(stamp):
            self._moved += self._next - stamp
            stamp = self._next
            self.parts += 1
        if self._jumps:
            self._keep_together(packet)
        self._move(packet)
        self._last = stamp
        self._next = stamp + (packet.duration or self._usual)

    def _keep_together(self, packet: Packet) -> None:
        """Where no time of presentation is stored, FFmpeg takes it from the next packet, be that of another part."""
        if packet.pts is None or packet.dts is None:
            return
        if abs(packet.pts - packet.dts) > self._jump:
            packet.pts = packet.dts + self._lead
        self._lead = packet.pts - packet.dts

    def _begins_anew(self, stamp: int) -> bool:
        back = self._goes_back and stamp < (self._last or 0) - self._back
        return back or (self._jumps and stamp > self._next + self._jump)

    def _move(self, packet: Packet) -> None:
        if not self._moved:
            return
        if packet.pts is not None:
            packet.pts += self._moved
        if packet.dts is not None:
            packet.dts += self._moved
