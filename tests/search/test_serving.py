"""The command serve from its start to its end, on a library that index has made."""

import io
import re
import signal
import socket
import threading
import time
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from served_command import served
from served_library import Client
from small_library import make, rows_of, small_clip, write_films
from tiny_videos import write_video

from emcl_train import Library
from emcl_train.data.picture import picture_of

TURNED = {"turned.mp4": "as it is", "turned.mkv": "remuxed", "turned mpeg4.mp4": "transcoded"}
"""Films on their side, and how they are played."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of a few films, of which some lie on their side."""
    folder = tmp_path_factory.mktemp("served")
    write_films(folder / "films", {"a.mp4": 24, "c.avi": 12})
    upright = write_halves(folder / "upright.mp4")
    write_video(folder / "films" / "long.avi", range(40), codec="mpeg4", size=(1280, 720), noise=True)
    for name in ("turned.mp4", "turned.mkv"):
        turn(upright, folder / "films" / name, 90)
    turn(write_halves(folder / "mpeg4.mp4", codec="mpeg4"), folder / "films" / "turned mpeg4.mp4", 90)
    small_clip(folder)
    make(folder, refine=True)
    return folder


def write_halves(path: Path, codec: str = "libx264") -> Path:
    """A film of 64 x 48 whose left half is red, and whose right half is blue."""

    def paint(image: np.ndarray, _: int) -> None:
        image[:, :32], image[:, 32:] = (220, 30, 30), (30, 30, 220)

    options = {"g": "10"} if codec == "mpeg4" else {"crf": "10", "preset": "ultrafast", "g": "10"}
    return write_video(path, [0] * 40, paint=paint, codec=codec, options=options)


def turn(source: Path, path: Path, degrees: int) -> Path:
    """The same packets in a file that says that they are to be turned, against the clock."""
    with av.open(str(source)) as film, av.open(str(path), "w") as target:
        pictures = film.streams.video[0]
        copied = target.add_stream_from_template(pictures)
        copied.set_display_rotation(degrees)
        for packet in film.demux(pictures):
            if packet.dts is not None:
                packet.stream = copied
                target.mux(packet)
    return path


@pytest.fixture(scope="module")
def page(place: Path, tmp_path_factory: pytest.TempPathFactory):
    with served(place / "library", "--cache", tmp_path_factory.mktemp("parts")) as one:
        yield one


def test_what_its_page_asks_for_is_answered(page, place):
    client = page.client
    assert (page.said["name"], page.said["moments"]) == ("library", str(len(Library(place / "library"))))
    start = client.get("/")
    assets = re.findall(r'(?:src|href)="(/page/[^"]+)"', start.body.decode())
    assert len(assets) >= 3
    for address in assets:
        assert client.get(address).status == 200

    about = client.get("/api/library").json
    assert (about["moments"], about["refines"], about["roots"]) == (int(page.said["moments"]), True, ["films"])
    for refine in (0, 1):
        found = client.get(f"/api/search?q=a%20thing&k=24&refine={refine}").json["results"]
        expected = Library(place / "library").search("a thing", 24, refine=bool(refine))
        assert [one["id"] for one in found] == [one.id for one in expected]
        assert [one["score"] for one in found] == pytest.approx([one.score for one in expected], abs=1e-5)

    for one in found:
        picture = client.get(one["thumbnail"])
        assert (picture.status, picture.body[:4]) == (200, b"RIFF")
        told = client.get(f"/api/playing?id={one['id']}").json
        film = client.get(told["media"], {"Range": "bytes=0-"})
        assert film.status == 206
        assert film.headers["content-type"] == told["type"]
        with av.open(io.BytesIO(film.body)) as container:
            seconds = [told["begin"] + float(frame.time) for frame in container.decode(video=0)]
        assert seconds[0] <= one["start"] + 0.01
        assert seconds[-1] >= one["end"] - 0.11


def corners(picture: np.ndarray) -> list[str]:
    """The colours of the four quarters, row by row."""
    height, width = picture.shape[:2]
    quarters = [picture[y : y + height // 2, x : x + width // 2] for y in (0, height // 2) for x in (0, width // 2)]
    return ["red" if one[..., 0].mean() > one[..., 2].mean() else "blue" for one in quarters]


@pytest.mark.parametrize(("name", "way"), list(TURNED.items()))
def test_a_film_on_its_side_is_upright_in_its_picture_and_in_the_player(page, place, name, way):
    """A player turns what says so; what is encoded anew has been turned, and says nothing."""
    library = Library(place / "library")
    moment = library.like(place / "films" / name, 1.0, 1, refine=False)[0].id
    told = page.client.get(f"/api/playing?id={moment}").json
    assert told["way"] == way
    with av.open(io.BytesIO(page.client.get(told["media"]).body)) as container:
        shown = picture_of(next(container.decode(video=0)), container.streams.video[0].sample_aspect_ratio)
    picture = np.asarray(Image.open(io.BytesIO(page.client.get(f"/thumbnail/{moment}").body)).convert("RGB"))
    assert (shown.height, shown.width) == picture.shape[:2] == (64, 48)
    assert corners(shown.pixels) == corners(picture) == ["blue", "blue", "red", "red"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_while_a_film_is_made_and_another_is_sent(place, tmp_path, number, code, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = rows_of(place / "library")
    library = Library(place / "library")
    slow = library.like(place / "films" / "long.avi", 1.0, 1, refine=False)[0].id
    with served(place / "library") as one:
        assert one.client.get(f"/api/playing?id={library.like(place / 'films' / 'c.avi', k=1)[0].id}").status == 200
        asker = threading.Thread(target=ask_and_wait, args=(one.client, f"/api/playing?id={slow}"))
        asker.start()
        parts = tmp_path / "cache" / "emcl" / "serve"
        end = time.monotonic() + 60
        while not list(parts.rglob(".*.partial")):
            assert time.monotonic() < end
            time.sleep(0.01)
        with socket.create_connection(("127.0.0.1", one.client.port)) as idle:
            idle.sendall(b"GET / HTTP/1.1\r\nHost: ")
            returned, errors = one.end(number)
        asker.join()
    assert returned == code
    assert "the server has ended; the library is as it was" in errors
    assert "Traceback" not in errors
    assert list(parts.rglob(".*")) == []
    assert len(list(parts.rglob("*.mp4"))) in (1, 2)
    assert rows_of(place / "library") == before


def ask_and_wait(client: Client, target: str) -> None:
    with suppress(OSError, HTTPException):
        client.get(target)
