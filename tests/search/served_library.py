"""A library of a few small films, which the server takes for a real one; and a server of it on a free port."""

import hashlib
import io
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image
from tiny_videos import FIRST, STEP, write_video

SECONDS = 4.0
RATE = 10
HOSTILE_NAME = "<img src=x onerror=window.ran=1>.mp4"


@dataclass(frozen=True)
class StandInMoment:
    id: str
    path: Path
    start: float
    end: float
    score: float
    content: str
    number: int
    also_at: tuple[Path, ...] = ()


@dataclass(frozen=True)
class StandInCutoff:
    score: float


class StandIn:
    """Has the shape of `Library`. A query scores by how many of its words the name of a file has, and by the moment."""

    name = "holidays"
    refines = True

    def __init__(self, root: Path, *, cutoff: float | None = 0.3) -> None:
        self.root = root.resolve()
        self.about: dict[str, Any] = {
            "model": {"path": "/home/somebody/models/clip", "fingerprint": "0123abcd", "label": "a small CLIP"},
            "cutting": {"way": "pieces", "seconds": SECONDS},
            "roots": [str(self.root)],
        }
        self.damaged = [(self.root / "broken.avi", "it is truncated")]
        self.searches = 0
        self.pause = 0.0
        """Seconds that a search takes."""
        self.most_at_once = 0
        self._at_once = 0
        self._cutoff = cutoff
        self.moments: dict[str, StandInMoment] = {}
        for path in sorted(self.root.rglob("*")):
            if path.is_file() and path.suffix in (".mp4", ".avi", ".mkv", ".mov", ".webm", ".ts"):
                self.add(path, seconds_of(path))

    def add(self, path: Path, seconds: float) -> list[str]:
        content = hashlib.sha256(os.fsencode(path.name) + b"\0" + str(seconds).encode()).hexdigest()[:32]
        made = []
        for number in range(max(1, math.ceil(seconds / SECONDS - 1e-6))):
            start = number * SECONDS
            one = StandInMoment(f"{content}-{number}", path, start, min(seconds, start + SECONDS), 0.0, content, number)
            self.moments[one.id] = one
            made.append(one.id)
        return made

    def of(self, name: str, number: int = 0) -> str:
        """The id of a moment of a file, by the file's name."""
        return next(one.id for one in self.moments.values() if one.path.name == name and one.number == number)

    def __len__(self) -> int:
        return len(self.moments)

    def steadily(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    def search(
        self, query: str, k: int = 10, *, refine: bool | None = None, minimum: float | str | None = None
    ) -> Sequence[StandInMoment]:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        self.searches += 1
        time.sleep(self.pause)
        self._at_once -= 1
        words = query.lower().split()
        found = []
        for one in self.moments.values():
            fits = sum(word in one.path.name.lower() for word in words) / len(words)
            score = 0.2 + 0.2 * fits - 0.01 * one.number * (1 if refine else -1)
            found.append(replace(one, score=round(score, 6)))
        found.sort(key=lambda one: (-one.score, one.path.name, one.number))
        return [one for one in found if minimum is None or one.score >= float(minimum)][:k]

    def like_moment(self, moment_id: str, k: int = 10, *, refine: bool | None = None) -> Sequence[StandInMoment]:
        of = self.moments[moment_id]
        same = [replace(one, score=1 - 0.1 * abs(one.number - of.number)) for one in self._of(of)]
        return sorted(same, key=lambda one: -one.score)[:k]

    def neighbours(self, moment_id: str, around: int = 2) -> Sequence[StandInMoment]:
        of = self.moments[moment_id]
        return [replace(one, score=math.nan) for one in self._of(of) if abs(one.number - of.number) <= around]

    def _of(self, of: StandInMoment) -> list[StandInMoment]:
        return [one for one in self.moments.values() if one.content == of.content]

    def moment(self, moment_id: str) -> StandInMoment | None:
        found = self.moments.get(moment_id)
        return None if found is None else replace(found, score=math.nan)

    def thumbnail(self, moment_id: str) -> bytes | None:
        one = self.moments.get(moment_id)
        if one is None:
            return None
        data = io.BytesIO()
        shade = int(one.id[:2], 16)
        picture = np.full((100, 160, 3), (shade, 120, 255 - shade), dtype=np.uint8)
        picture[40:60, 10 + 20 * (one.number % 7) : 40 + 20 * (one.number % 7)] = 240
        Image.fromarray(picture).save(data, "WEBP")
        return data.getvalue()

    def file_of(self, moment_id: str) -> Path | None:
        one = self.moments.get(moment_id)
        if one is None:
            return None
        try:
            real = one.path.resolve(strict=True)
        except OSError:
            return None
        return real if real.is_relative_to(self.root) else None

    def cutoff(self, *, refine: bool | None = None) -> StandInCutoff | None:
        return None if self._cutoff is None else StandInCutoff(self._cutoff)


def seconds_of(path: Path) -> float:
    with av.open(str(path)) as container:
        assert container.duration
        return container.duration / av.time_base


def level_at(second: float) -> int:
    """The brightness, as a level of tiny_videos, that `write_film` gives a second of the film."""
    return int(second * 2) % 40


def write_film(path: Path, seconds: float = 12.0, codec: str = "libx264", **how: Any) -> Path:
    """A film whose brightness says the half second that is shown."""
    levels = [level_at(n / RATE) for n in range(round(seconds * RATE))]
    options = {"g": "10", "keyint_min": "10", **how.pop("options", {})}
    return write_video(path, levels, rate=RATE, codec=codec, options=options, **how)


def with_sound(source: Path, path: Path, codec: str, *, hertz: float = 440.0) -> Path:
    """The pictures of a film, undecoded, with a tone beside them."""
    with av.open(str(source)) as film, av.open(str(path), "w") as target:
        pictures = film.streams.video[0]
        copied = target.add_stream_from_template(pictures)
        sound = target.add_stream(codec, rate=48000, layout="mono")
        packets = []
        for packet in film.demux(pictures):
            if packet.dts is not None:
                packet.stream = copied
                packets.append(packet)
        size = sound.codec_context.frame_size or 1024
        total = round(seconds_of(source) * 48000)
        wave = (0.3 * np.sin(2 * np.pi * hertz * np.arange(total) / 48000)).astype(np.float32)
        for begin in range(0, total - size + 1, size):
            frame = av.AudioFrame.from_ndarray(wave[None, begin : begin + size], format="fltp", layout="mono")
            frame.rate, frame.pts, frame.time_base = 48000, begin, Fraction(1, 48000)
            packets += sound.encode(frame)
        packets += sound.encode(None)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            target.mux(packet)
    return path


def levels_of(data: bytes | Path) -> list[tuple[float, int]]:
    """Of a film's frames, the second in the film and the level."""
    found = []
    with av.open(str(data) if isinstance(data, Path) else io.BytesIO(data)) as container:
        for frame in container.decode(video=0):
            value = frame.to_ndarray(format="rgb24").mean()
            found.append((float(frame.time), round((float(value) - FIRST) / STEP)))
    return found


def write_folder(root: Path) -> Path:
    """The films of the tests: what browsers play, and what has to be made for them."""
    (root / "beach").mkdir(parents=True)
    write_film(root / "beach" / "red circle.mp4")
    write_film(root / "beach" / "old camera.avi", codec="mpeg4")
    write_film(root / "matroska.mkv")
    write_film(root / HOSTILE_NAME, seconds=4.0)
    return root


@contextmanager
def serving(library: Any, cache: Path, *, cache_bytes: int = 64 << 20) -> Iterator["Client"]:
    """A server of a library in a thread, on a port of its own."""
    from emcl_train.commands.serving import listening, server_of
    from emcl_train.search.server import build_app

    socket = listening("127.0.0.1", 0)
    port = socket.getsockname()[1]
    server = server_of(build_app(library, host="127.0.0.1", port=port, cache_dir=cache, cache_bytes=cache_bytes))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
    thread.start()
    try:
        yield Client(port)
    finally:
        server.should_exit = True
        thread.join(30)
        socket.close()
        assert not thread.is_alive()


@dataclass(frozen=True)
class Client:
    """Asks the server, as it is told."""

    port: int

    def get(
        self, target: str, headers: dict[str, str] | None = None, method: str = "GET", host: str | None = None
    ) -> "Answer":
        """What comes back from a target that is sent as it stands."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            connection.putheader("Host", f"127.0.0.1:{self.port}" if host is None else host)
            for name, value in (headers or {}).items():
                connection.putheader(name, value)
            connection.endheaders()
            answer: HTTPResponse = connection.getresponse()
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        import json

        return json.loads(self.body)
