"""How a browser can play a file: as it is, in another container, or converted. What is in it decides, never its name.

A file that browsers play is sent as it is: the player asks for the ranges that it needs, and goes to any second. Of all
others a part is made, with the moment and some seconds around it: a film of two hours would take minutes to convert and
gigabytes to keep, and a moment is looked at for some seconds. Whoever watches on is given the part that follows.

Streams that browsers play are copied, which costs next to nothing, and begin with a keyframe. The others are decoded
and encoded as H.264 and AAC, which every browser plays.
"""

import re
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from emcl_train.data.clock import Clock
from emcl_train.data.container import declared_duration, open_video
from emcl_train.data.decoding import demuxed
from emcl_train.data.opening import identity_of

Way = Literal["as it is", "remuxed", "transcoded"]
Kind = Literal["mp4", "webm"]
Fate = Literal["none", "copied", "encoded"]
"""What becomes of the sound."""

PICTURES: dict[Kind, tuple[str, ...]] = {"mp4": ("h264", "av1", "vp9"), "webm": ("vp8", "vp9", "av1")}
SOUNDS: dict[Kind, tuple[str, ...]] = {"mp4": ("aac", "mp3", "opus", "flac"), "webm": ("opus", "vorbis")}
"""FFmpeg's names of the codecs that Chromium, Firefox and Safari play in each container."""
OF_8_BITS = ("yuv420p", "yuvj420p")
FORMATS = {"h264": OF_8_BITS, "vp8": OF_8_BITS, "vp9": (*OF_8_BITS, "yuv420p10le"), "av1": (*OF_8_BITS, "yuv420p10le")}
"""And of how their pixels may be stored: browsers do not decode H.264 of 10 bits, or of more colour than 4:2:0."""
STAMPED = ("mov", "matroska")
"""Containers in which every packet says when it is shown, so that packets can be copied."""
ENTERED = (*STAMPED, "avi", "asf")
"""Those with an index that leads to any second. All others are read from their start."""
REORDERED = 32
"""Packets among which the one lies that is shown first: more than a codec moves one forward."""
ENCODED: dict[Kind, Literal["aac", "libopus"]] = {"mp4": "aac", "webm": "libopus"}
"""What sound is encoded as, where it cannot be copied."""

LEAD = 2.0
"""Seconds before a moment that its part has, for those who go back a little."""
TAIL = 6.0
"""Seconds behind it."""
LONGEST = 60.0
"""Seconds of the part with a moment: a longer moment goes on in the parts that follow."""
STEP = 30.0
"""Seconds of each part that follows."""


class Plan(NamedTuple):
    """How a file is played."""

    way: Way
    kind: Kind
    why: str
    """In words."""
    copies: bool
    """Whether pictures are copied, or encoded."""
    sound: Fate
    sound_number: int
    """Which of the streams of sound, if one is heard."""
    entered: bool
    """Whether it has an index that leads to any second."""
    first: float
    """When the first frame is shown, in the file's own seconds."""
    zero: float
    """Where a player that is sent the whole file has its second 0, from the first frame on: sound may begin earlier."""
    seconds: float | None
    """From the first frame on; None if the file does not say."""

    def encoded(self) -> "Plan":
        """The same film where its packets cannot be copied after all."""
        sound: Fate = "none" if self.sound == "none" else "encoded"
        return self._replace(way="transcoded", kind="mp4", copies=False, sound=sound)


class Span(NamedTuple):
    """A part of a film, in seconds from its first frame."""

    begin: float
    end: float


def part_of(start: float, end: float, number: int) -> Span:
    """The part of a film with a moment, or one that follows.

    Args:
        start: of the moment, in seconds from the first frame.
        end: of the moment.
        number: 0: the part with the moment; n: the nth behind it.
    """
    begin = max(0.0, start - LEAD)
    until = min(max(start, end) + TAIL, begin + LONGEST)
    if number:
        begin, until = until + (number - 1) * STEP, until + number * STEP
    return Span(begin, until)


def plan_of(path: Path) -> Plan:
    """How a file is played. What was found out of a file holds until it changes.

    Raises:
        VideoError: it is no film that can be decoded.
        PassingError: it cannot be read now.
    """
    return _plan(path, *identity_of(path))


@lru_cache(maxsize=1024)
def _plan(path: Path, size: int, modified: int) -> Plan:
    with open_video(path) as (container, stream):
        name = container.format.name.partition(",")[0]
        kind = _kind_of(container, path)
        # Players count from where the first of all streams begins.
        starts = [start for one in container.streams if (start := _start(one)) is not None]
        seconds = declared_duration(container, stream)
        first = _first_of(container, stream)
        zero = min([first, *starts]) - first
        sound = _sound_of(container)
        decided = _decided(name, kind, stream, sound)
        number = container.streams.audio.index(sound) if sound is not None else 0
    return Plan(*decided, number, name in ENTERED, first, zero, seconds)


def _decided(
    name: str, kind: Kind | None, stream: VideoStream, sound: AudioStream | None
) -> tuple[Way, Kind, str, bool, Fate]:
    """Way, container, reason, whether pictures are copied, and what becomes of the sound."""
    codec = stream.codec_context.codec.canonical_name
    heard = None if sound is None else sound.codec_context.codec.canonical_name
    shown = stream.codec_context.pix_fmt in FORMATS.get(codec, ())
    kinds: tuple[Kind, ...] = ("mp4", "webm")
    plays = [one for one in kinds if shown and codec in PICTURES[one]]
    whole = [one for one in plays if heard is None or heard in SOUNDS[one]]

    if kind in whole and kind is not None:
        return "as it is", kind, f"browsers play {codec} in this container", True, "none" if heard is None else "copied"
    if name in STAMPED and whole:
        why = f"browsers play {' and '.join(filter(None, (codec, heard)))}, but not in this container"
        return "remuxed", whole[0], why, True, "none" if heard is None else "copied"
    if name in STAMPED and plays:
        return "remuxed", plays[0], f"browsers play {codec}, but no sound in {heard}", True, "encoded"

    if plays:
        why = f"browsers do not play this container ({name}), whose packets do not say for certain when they are shown"
    else:
        why = f"browsers do not play {codec}" + (f" in {stream.codec_context.pix_fmt}" if codec in FORMATS else "")
    return "transcoded", "mp4", why, False, "none" if heard is None else "encoded"


def _kind_of(container: InputContainer, path: Path) -> Kind | None:
    """The container, if browsers play films in it."""
    name = container.format.name
    if name.startswith("mov"):
        # QuickTime's own files have the same form, and things in it that MP4 has not.
        return None if container.metadata.get("major_brand", "").strip() == "qt" else "mp4"
    if name.startswith("matroska"):
        # WebM is Matroska that calls itself so in its first bytes.
        with path.open("rb") as file:
            return "webm" if re.search(rb"\x42\x82.{1,8}?webm", file.read(256), re.DOTALL) else None
    return None


def _sound_of(container: InputContainer) -> AudioStream | None:
    """The stream of sound that a player plays: the one that is marked, or the first. None if none can be decoded."""
    known = [stream for stream in container.streams.audio if stream.codec_context is not None]
    marked = [stream for stream in known if stream.disposition & Disposition.default]
    return next(iter([*marked, *known]), None)


def _first_of(container: InputContainer, stream: VideoStream) -> float:
    """When the first frame is shown: of the first packets, the earliest one. Its headers may say something else."""
    clock = Clock(container, stream)
    times: list[float] = []
    for packet in demuxed(container, [stream]):
        if packet.size:
            clock.put_right(packet)
            stamp = packet.dts if packet.pts is None else packet.pts
            if stamp is not None and not packet.is_discard:
                times.append(float(stamp * packet.time_base))
        if len(times) == REORDERED:
            break
    return min(times, default=0.0)


def _start(stream: av.stream.Stream) -> float | None:
    if stream.type not in ("video", "audio") or stream.start_time is None or stream.time_base is None:
        return None
    return float(stream.start_time * stream.time_base)
