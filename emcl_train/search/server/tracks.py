"""The file that a browser is given, and its two tracks: pictures as H.264, and sound as AAC or Opus."""

import errno
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from emcl_train.data.converting import converted
from emcl_train.data.decoding import demuxed
from emcl_train.data.opening import opened
from emcl_train.data.picture import picture_of
from emcl_train.search.server.playing import ENCODED, Plan

HEIGHT, WIDTH = 720, 1280
"""Of a film that is encoded, in pixels at most: more of them take longer, and the player on the page is not larger."""
ENCODING = {"crf": "23", "preset": "veryfast", "g": "50", "maxrate": "6M", "bufsize": "12M"}
OF_SOUND: dict[str, dict[str, str]] = {"mp4": {"aac_coder": "fast"}, "webm": {}}
THREADS = min(4, os.cpu_count() or 1)
FASTEST = 120
"""Frames a second that an encoder is told of; it writes all that there are."""
TICKS = 90_000
"""Of a second, in the stamps of pictures."""
SAMPLES = 48_000
"""Of sound, a second."""
GAP = 0.05
"""Seconds by which a frame of sound may miss the end of the one before it, and still follows it."""
BEFORE = 0.5
"""Seconds before a part, from which on its sound is decoded."""
SLOWEST = 120.0
"""Seconds that making a part may take."""
REFUSED = (errno.EINVAL, errno.ERANGE, errno.EDOM)
"""Numbers of the system's with which FFmpeg's writers refuse packets; with all others, the disk refuses bytes."""
OWN_NUMBERS = 1 << 16
"""FFmpeg's own numbers are larger."""


class Astray(Exception):
    """Packets cannot be copied, or the film not be entered in its middle; there is another way."""


class Unwritable(Exception):
    """The disk does not take what is written."""


class TooMuch(Exception):
    """A part takes too long, or too much room."""


@dataclass
class Limits:
    """What making a part may take."""

    most: int
    """Bytes of the file."""
    stopped: threading.Event
    """Set when the server ends."""
    given_up: threading.Event
    """Set when nobody waits for the part any more."""
    until: float
    """By the monotonic clock."""

    @classmethod
    def from_now(cls, most: int, stopped: threading.Event, given_up: threading.Event | None = None) -> "Limits":
        return cls(most, stopped, given_up or threading.Event(), time.monotonic() + SLOWEST)

    def check(self, target: Path | None = None) -> None:
        """Raise TooMuch where a limit is reached.

        Args:
            target: the file, as far as it is written; None: nothing is written at the moment.
        """
        if self.stopped.is_set():
            raise TooMuch("the server ends")
        if self.given_up.is_set():
            raise TooMuch("nobody waits for it any more")
        if time.monotonic() > self.until:
            raise TooMuch(f"it takes longer than {SLOWEST:.0f} s to convert")
        if target is None:
            return
        size = 0
        with suppress(FileNotFoundError):  # before its first byte
            size = target.stat().st_size
        if size > self.most:
            raise TooMuch(f"a few seconds of it take more than {self.most >> 20} MiB")


class Film:
    """The file that is written."""

    def __init__(self, container: OutputContainer, target: Path, limits: Limits) -> None:
        self.container = container
        self._target = target
        self._limits = limits

    def add(self, packets: Sequence[Packet]) -> None:
        """Write packets of one of its streams.

        Raises:
            Astray: the container does not take them.
            Unwritable: the disk does not.
            TooMuch: a limit is reached.
        """
        self._limits.check(self._target)
        with writing():
            self.container.mux(packets)


@contextmanager
def writing() -> Iterator[None]:
    """Tell what the disk does not take from what the container does not."""
    try:
        yield
    except av.error.FFmpegError as error:
        code = error.errno or 0
        if 0 < code < OWN_NUMBERS and code not in REFUSED:
            raise Unwritable(os.strerror(code)) from error
        raise Astray from error


class Pictures:
    """Frames, encoded as H.264: turned and of the shape as they are to be watched."""

    def __init__(self, film: Film, first: VideoFrame, source: VideoStream) -> None:
        """A track.

        Args:
            film: whose it is.
            first: of its frames; the others get its size.
            source: the stream of the frames.
        """
        self._film = film
        self._aspect = source.sample_aspect_ratio
        rate = min(Fraction(FASTEST), max(Fraction(1), source.average_rate or Fraction(25)))
        self._stream = film.container.add_stream("libx264", rate=rate, options=ENCODING)
        self._stream.width, self._stream.height = self._size(first)
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, TICKS)
        self._stream.codec_context.thread_count = THREADS
        self._next = 0
        self._last: VideoFrame | None = None

    def add(self, at: float, frame: VideoFrame) -> None:
        """Add a frame that is shown from a second of the part on."""
        drawn = self._drawn(frame)
        drawn.pts = self._next = max(self._next, round(at * TICKS))
        drawn.time_base = Fraction(1, TICKS)
        self._next += 1
        self._last = frame
        self._film.add(self._stream.encode(drawn))

    def close(self, until: float) -> None:
        """End the track.

        Args:
            until: the second up to which the last frame is shown.
        """
        if self._last is not None and until * TICKS - self._next > TICKS / 2:
            self.add(until - 0.04, self._last)
        self._film.add(self._stream.encode(None))

    def _size(self, frame: VideoFrame) -> tuple[int, int]:
        """Width and height that fit, in even numbers as H.264 needs them."""
        if _is_turned(frame):
            watched = picture_of(frame, self._aspect)
            width, height = watched.width, watched.height
        else:
            width, height = max(1, round(frame.width * (self._aspect or 1))), frame.height
        scale = min(1.0, HEIGHT / height, WIDTH / width)
        return max(2, 2 * round(width * scale / 2)), max(2, 2 * round(height * scale / 2))

    def _drawn(self, frame: VideoFrame) -> VideoFrame:
        if _is_turned(frame):
            pixels = picture_of(frame, self._aspect).pixels
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        drawn = converted(frame, self._stream.width, self._stream.height, format="yuv420p")
        # As decoded, a frame says which kind it was, and the encoder would make it one again.
        drawn.pict_type = 0
        return drawn


def _is_turned(frame: VideoFrame) -> bool:
    """Whether a frame is stored on its side, or mirrored."""
    try:
        return frame.side_data.get("DISPLAYMATRIX") is not None
    except ValueError:  # beside it lies something that PyAV has no name for
        return round(frame.rotation / 90) != 0


class Sound:
    """The sound of a film, encoded. A track that is silent all along is left out."""

    def __init__(self, film: Film, path: Path, plan: Plan, begin: float, seconds: float) -> None:
        """A track.

        Args:
            film: whose it is.
            path: the file with the sound.
            plan: which of its streams is heard, and what the film's kind is.
            begin: of the part, in the file's own seconds.
            seconds: of the part.
        """
        self._film = film
        self._broken = 0
        self._frames = self._decoded(path, plan, begin, seconds)
        self._upcoming = next(self._frames, None)
        self.muted = self._upcoming is None and self._broken > 0
        """Whether nothing of it can be decoded."""
        self._written = 0
        self._resampler: AudioResampler | None = None
        self._of: tuple[object, ...] = ()
        if self._upcoming is None:
            return
        self._layout = "mono" if self._upcoming[1].layout.nb_channels == 1 else "stereo"
        self._stream: AudioStream = film.container.add_stream(
            ENCODED[plan.kind], rate=SAMPLES, layout=self._layout, options=OF_SOUND[plan.kind]
        )

    def up_to(self, at: float) -> None:
        """Write what is heard up to a second of the part."""
        while self._upcoming is not None and self._upcoming[0] <= at:
            self._add(*self._upcoming)
            self._upcoming = next(self._frames, None)

    def close(self) -> None:
        """Write the rest, and end the track."""
        begun = self._upcoming is not None or self._resampler is not None
        self.up_to(float("inf"))
        if begun:
            self._film.add(self._stream.encode(None))

    def _add(self, at: float, frame: AudioFrame) -> None:
        # One encoder takes one kind of frames, and a broadcast changes from stereo to more channels and back.
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if self._resampler is None or kind != self._of:
            self._resampler = AudioResampler(format="fltp", layout=self._layout, rate=SAMPLES)
            self._of = kind
        frame.pts, frame.time_base = round(at * frame.sample_rate), Fraction(1, frame.sample_rate)
        try:
            pieces = self._resampler.resample(frame)
        except (av.error.FFmpegError, ValueError):
            self._broken += 1
            return
        for piece in pieces:
            stamp = self._written
            if piece.pts is not None and piece.time_base is not None:
                heard = round(piece.pts * piece.time_base * SAMPLES)
                stamp = heard if heard >= stamp + GAP * SAMPLES else stamp
            piece.pts, piece.time_base = stamp, Fraction(1, SAMPLES)
            self._written = stamp + piece.samples
            self._film.add(self._stream.encode(piece))

    def _decoded(self, path: Path, plan: Plan, begin: float, seconds: float) -> Iterator[tuple[float, AudioFrame]]:
        """Frames of sound, with the second of the part from which on they are heard.

        Packets that cannot be decoded are passed over, as players do: the first ones behind an entry often cannot.
        """
        with opened(path) as container:
            stream = container.streams.audio[plan.sound_number]
            stream.codec_context.thread_count = 1
            if plan.entered and stream.time_base is not None:
                try:
                    container.seek(max(0, int((begin - BEFORE) / stream.time_base)), stream=stream, backward=True)
                except av.error.FFmpegError:
                    container.seek(0)

            upcoming = 0.0
            for packet in demuxed(container, [stream]):
                if packet.pts is not None and packet.size:
                    at = float(packet.pts * packet.time_base) - begin
                    if at < -BEFORE:
                        continue
                    if at >= seconds:
                        return
                try:
                    frames = stream.decode(packet)
                except av.error.FFmpegError:
                    self._broken += 1
                    continue
                for frame in frames:
                    if not frame.sample_rate or not frame.samples:
                        continue
                    if frame.pts is not None and frame.time_base is not None:
                        upcoming = float(frame.pts * frame.time_base) - begin
                    at, upcoming = upcoming, upcoming + frame.samples / frame.sample_rate
                    if 0 <= at < seconds:
                        yield at, frame
