"""Writes a part of a film in a form that browsers play: packets copied, or decoded and encoded anew.

Times are seconds from the film's first frame, as in the library. A part tells which of them its own second 0 is.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import av
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from emcl_train.data.clock import has_no_stamps
from emcl_train.data.container import open_video, read_timeline, rewound
from emcl_train.data.decoding import Reader, decode_packet, demuxed, looking
from emcl_train.data.timeline import Timeline, VideoError
from emcl_train.search.server.playing import Kind, Plan, Span, Way
from emcl_train.search.server.tracks import Astray, Film, Limits, Pictures, Sound, writing

FARTHEST = 30.0
"""Seconds before a part in which its keyframe may lie, for it to be copied."""
BEHIND = 3.0
"""Seconds that sound may lie behind the pictures in a file that is copied."""
LATE = 0.1
"""Seconds after the place that was asked for, at which a film may be entered."""
PROBED = 16
"""Packets of an AVI that are decoded to see what its decoder leaves out: more than a group of dependent frames has."""
STILL = 1.0
"""Seconds for which the last frame may be shown, in a film that does not say how long it is."""


class Written(NamedTuple):
    """What was written."""

    begin: float
    """Which second of the film is second 0 of the part."""
    end: float
    more: bool
    """Whether the film goes on."""
    muted: bool
    """Whether there is sound in the film that could not be decoded here."""
    kind: Kind
    """Of the file. One that was to be copied is of another kind where it had to be encoded."""
    way: Way
    """How it was made."""


class PastTheEnd(Exception):
    """The film ends before the part begins."""


def write_part(path: Path, plan: Plan, span: Span, target: Path, limits: Limits) -> Written:
    """Write a part of a film.

    Args:
        path: the film.
        plan: how it is played; not as it is.
        span: the part.
        target: the file to write, which may be there. Its name says nothing of its kind.
        limits: what it may take.

    Raises:
        VideoError: the film cannot be decoded there.
        PassingError: it cannot be read now.
        PastTheEnd: there is no such part.
        TooMuch: a limit was reached.
        Unwritable: the disk is full, or fails.
    """
    if plan.seconds is not None and span.begin >= plan.seconds:
        raise PastTheEnd
    # Whole films are read for some parts, before anything is written.
    with looking(limits.check):
        return _written(path, plan, span, target, limits)


def _written(path: Path, plan: Plan, span: Span, target: Path, limits: Limits) -> Written:
    if plan.copies:
        # Not where a keyframe is far away, or stamps are missing.
        with suppress(Astray):
            return _copied(path, plan, span, target, limits)
        plan = plan.encoded()
    if plan.entered:
        # Not where an index leads elsewhere.
        with suppress(Astray):
            return _encoded(path, plan, span, target, limits, enter=True)
    try:
        return _encoded(path, plan, span, target, limits, enter=False)
    except Astray as error:
        raise VideoError(path, "it cannot be converted for a browser") from error


def _copied(path: Path, plan: Plan, span: Span, target: Path, limits: Limits) -> Written:
    """Copy packets, from the last keyframe before the part on."""
    with open_video(path) as (container, stream):
        streams: list[Stream] = [stream]
        if plan.sound == "copied":
            streams.append(container.streams.audio[plan.sound_number])
        _seek(container, stream, plan.first + span.begin)

        # The part begins with its keyframe. Sound that lies before it in the file may belong behind it.
        packets = (packet for packet in demuxed(container, streams) if packet.size)
        earlier: list[Packet] = []
        for key in packets:
            if key.stream_index == stream.index:
                break
            earlier.append(key)
        else:
            raise Astray
        if key.pts is None or not key.is_keyframe:
            raise Astray
        begin = float(key.pts * key.time_base) - plan.first
        if not span.begin - FARTHEST <= begin <= span.begin + LATE:
            raise Astray

        with _film(target, plan, limits) as film:
            copies = {one.index: film.container.add_stream_from_template(one, opaque=True) for one in streams}
            sound = Sound(film, path, plan, plan.first + begin, span.end - begin) if plan.sound == "encoded" else None
            past: set[int] = set()
            for packet in chain(earlier, [key], packets):
                # In the order of decoding, so that what a frame depends on is there too.
                decoded, displayed = packet.dts, packet.pts
                if decoded is None or displayed is None:
                    raise Astray
                at = float(decoded * packet.time_base) - plan.first
                if at >= span.end:
                    past.add(packet.stream_index)
                    if len(past) == len(streams) or at >= span.end + BEHIND:
                        break
                    continue
                if sound is not None:
                    sound.up_to(at - begin)
                if float(displayed * packet.time_base) - plan.first < begin - 1e-3:  # it needs what is not there
                    continue
                shift = round((plan.first + begin) / packet.time_base)
                packet.pts = displayed - shift
                packet.dts = decoded - shift
                packet.stream = copies[packet.stream_index]
                film.add([packet])
            if sound is not None:
                sound.close()
        more = stream.index in past
    return Written(begin, span.end, more, sound is not None and sound.muted, plan.kind, plan.way)


def _encoded(path: Path, plan: Plan, span: Span, target: Path, limits: Limits, *, enter: bool) -> Written:
    """Decode what is shown in the part, and encode it."""
    with open_video(path) as (container, stream):
        timeline = None if enter else read_timeline(container, stream, path)
        first = plan.first if timeline is None else timeline.times[0]
        frames = (
            _entered(container, stream, first, span.begin)
            if timeline is None
            else _passed_over(container, stream, path, timeline, span.begin)
        )
        shown = _on_display(frames, span.begin, known=plan.seconds is not None)

        begins = next(shown, None)
        if begins is None:
            raise PastTheEnd
        with _film(target, plan, limits) as film:
            pictures = Pictures(film, begins[1], stream)
            # Where clocks begin anew within a file, nothing says which sound belongs to which picture.
            heard = plan.sound != "none" and (timeline is None or timeline.parts == 1)
            sound = Sound(film, path, plan, first + span.begin, span.end - span.begin) if heard else None
            more = False
            for at, frame in chain([begins], shown):
                if at >= span.end:
                    more = True
                    break
                if sound is not None:
                    sound.up_to(at - span.begin)
                pictures.add(at - span.begin, frame)

            # A picture that stays has the length that it is shown for.
            until = span.end if more else min(span.end, plan.seconds or 0.0)
            pictures.close(until - span.begin)
            if sound is not None:
                sound.close()
    muted = plan.sound != "none" if sound is None else sound.muted
    return Written(span.begin, span.end, more, muted, plan.kind, plan.way)


Shown = tuple[float, VideoFrame]
"""When a frame is shown, and the frame."""


def _entered(container: InputContainer, stream: VideoStream, first: float, begin: float) -> Iterator[Shown]:
    """The frames from a keyframe at or before `begin` on."""
    # AVI stores no times. Its chunks count, and frames leave the decoder in the order of display, one for each.
    counted: deque[int] | None = deque() if has_no_stamps(container) else None
    entered = False
    try:
        left_out = 0
        if counted is not None:
            _seek(container, stream, first + begin)
            left_out = _left_out(container, stream)
        _seek(container, stream, first + begin)
        for packet in demuxed(container, [stream]):
            if counted is not None and packet.size and packet.dts is not None:
                packet.pts = packet.dts
                counted.append(packet.dts)
            for frame in decode_packet(packet):
                while left_out and counted:
                    counted.popleft()
                    left_out -= 1
                stamp = frame.pts if counted is None else counted.popleft() if counted else None
                if stamp is None or stream.time_base is None:
                    raise Astray
                at = float(stamp * stream.time_base) - first
                if not entered and at > begin + LATE:
                    raise Astray
                entered = True
                yield at, frame
    except av.error.FFmpegError as error:
        raise Astray from error


def _left_out(container: InputContainer, stream: VideoStream) -> int:
    """How many frames the decoder leaves out behind this place, since they depend on some before it."""
    packets = 0
    frames = 0
    for packet in demuxed(container, [stream]):
        if packet.size:
            packets += 1
            frames += len(decode_packet(packet))
        if packets == PROBED:
            break
    frames += len(stream.codec_context.decode(None))
    stream.codec_context.flush_buffers()
    return max(0, packets - frames)


def _passed_over(
    container: InputContainer, stream: VideoStream, path: Path, timeline: Timeline, begin: float
) -> Iterator[Shown]:
    """The same where a film cannot be entered: all is read from its start, and decoded as late as can be."""
    shown = timeline.times[max(0, bisect_right(timeline.times, timeline.times[0] + begin + 1e-6) - 1)]
    with rewound(container, stream, timeline, path) as film:
        reader = Reader(*film, timeline)
        if not has_no_stamps(container):
            reader.enter(timeline.entry(shown))
        while taken := reader.take():
            yield taken[0] - timeline.times[0], taken[1]


def _on_display(frames: Iterator[Shown], begin: float, *, known: bool) -> Iterator[Shown]:
    """Of frames from before `begin` on, the one that is on display there, and those that follow.

    Args:
        frames: in the order of display.
        begin: when.
        known: the film says how long it is, and `begin` lies within it.
    """
    held: Shown | None = None
    for at, frame in frames:
        if at <= begin + 1e-6:
            held = at, frame
            continue
        if held is not None:
            yield begin, held[1]
            held = None
        yield at, frame
    if held is not None and (known or begin - held[0] < STILL):
        yield begin, held[1]


def _seek(container: InputContainer, stream: VideoStream, second: float) -> None:
    if stream.time_base is None:
        raise Astray
    try:
        container.seek(int(second / stream.time_base), stream=stream, backward=True)
    except av.error.FFmpegError as error:
        raise Astray from error


@contextmanager
def _film(target: Path, plan: Plan, limits: Limits) -> Iterator[Film]:
    """The file to write, with its index at its beginning when the block has ended."""
    options = {"movflags": "+faststart"} if plan.kind == "mp4" else {}
    with writing():
        container: OutputContainer = av.open(f"file:{target}", "w", format=plan.kind, options=options)
    try:
        yield Film(container, target, limits)
    except BaseException:
        # PyAV writes its end all the same; that may fail as what came before did.
        with suppress(av.error.FFmpegError, ValueError):
            container.close()
        raise
    with writing():
        container.close()
    limits.check(target)
