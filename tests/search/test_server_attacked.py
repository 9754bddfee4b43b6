"""The server of a real library against those who mean it ill: everything in every place of every address."""

import io
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

import av
import pytest
from served_library import Answer, Client, serving
from small_library import make, small_clip, write_films

from emcl_train import Library
from emcl_train.search.server import build_app
from emcl_train.search.server.guarding import HEADERS
from emcl_train.search.server.questions import PARAMETERS

SECRET = b"nobody is to read this"
HOSTILE = ("<script>window.ran=1", "<img src=x onerror=window.ran=1>", "\u202egpj.exe", "a'; DROP TABLE moments; --")
"""Names of films, without their endings."""
OTHER_NAMES = ("id", "path", "file", "name", "root", "url", "library", "cache", "model")
"""Parameters that somebody might try."""


@dataclass(frozen=True)
class Attacked:
    """A server, its library, and the folder that it is made of."""

    client: Client
    library: Library
    folder: Path

    def moment(self, name: str) -> str:
        """The id of the first moment of a film of this name."""
        content = next(row.content for row in self.library.files if row.path.name == name)
        return f"{content}-0"


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    folder = tmp_path_factory.mktemp("attacked")
    (folder / "secret.txt").write_bytes(SECRET)
    films = {"plain.mp4": 24, "made.avi": 24, "linked.mp4": 36, "inside/moved.mp4": 30}
    films |= {f"{name}.mp4": 12 for name in HOSTILE}
    write_films(folder / "films", films)
    (folder / "films" / "<b>broken<b>.mp4").write_bytes(SECRET * 99)
    (folder / "films" / "leads out.mp4").symlink_to(folder / "secret.txt")
    small_clip(folder)
    (folder / "captions.txt").write_text("\n".join(f"<script>alert({n})</script> caption {n}" for n in range(60)))
    path, _ = make(folder, refine=True)
    library = Library(path)
    with serving(library, tmp_path_factory.mktemp("parts")) as client:
        yield Attacked(client, library, folder)


@pytest.fixture(scope="module")
def addresses(attacked: Attacked, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Every address that the application has, whoever has added it."""
    parts = tmp_path_factory.mktemp("none")
    app = build_app(attacked.library, port=1, cache_dir=parts, cache_bytes=64 << 20)
    found = [route.path for route in app.routes]
    assert set(PARAMETERS) <= set(found)
    assert len(found) >= 12
    return found


def targets(addresses: list[str], moment: str, value: str) -> Iterator[tuple[str, str]]:
    """Requests with a value in every place, and how each is answered.

    "refused"; "words": the value is searched for; or the address of a page, which is the same whatever stands behind.
    """
    for address in addresses:
        known = [one.name for one in PARAMETERS.get(address, ()) if not one.in_path]
        needed = "id=" + moment if "id" in known else "q=red" if "q" in known else ""
        filled = address.replace("{id}", moment)
        if "{" in address:
            yield address.partition("{")[0] + value, "refused"
        yield f"{filled}/{value}", "refused"
        yield f"{filled}{value}", "refused"
        for name in dict.fromkeys([*known, *OTHER_NAMES]):
            others = "" if needed.startswith(f"{name}=") else f"{needed}&"
            answered = "words" if name == "q" and name in known else "refused" if address in PARAMETERS else address
            yield f"{filled}?{others}{name}={value}", answered


def assert_nothing_is_given_away(answer: Answer, attacked: Attacked, target: str) -> None:
    assert SECRET not in answer.body, target
    assert b"root:" not in answer.body, target
    if str(attacked.folder) not in unquote(target):  # else the sentence repeats what was asked
        assert str(attacked.folder).encode() not in answer.body, target
    assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS, target


@pytest.mark.parametrize(
    "value",
    [
        "../../secret.txt",
        "..%2f..%2fsecret.txt",
        "%2e%2e%2f%2e%2e%2fsecret.txt",
        "..%5c..%5csecret.txt",
        "%2fetc%2fpasswd",
        "file:%2f%2f%2fetc%2fpasswd",
        "%00%2fetc%2fpasswd",
        "%25%32%65%25%32%65%25%32%66secret.txt",
        "SECRET",
        "1%20OR%201=1",
        "'%20OR%20'1'='1",
    ],
)
def test_no_value_in_any_place_of_any_address_reaches_the_disk(attacked, addresses, value):
    absolute = quote(str(attacked.folder / "secret.txt"), safe="") if value == "SECRET" else value
    pages = {address: attacked.client.get(address).body for address in addresses if address not in PARAMETERS}
    for target, answered in targets(addresses, attacked.moment("plain.mp4"), absolute):
        answer = attacked.client.get(target)
        if answered != "refused":
            assert answer.status == 200, target
            assert answered == "words" or answer.body == pages[answered]
            assert SECRET not in answer.body
            continue
        assert answer.status in (400, 404), target
        assert list(answer.json) == ["error"], target
        assert_nothing_is_given_away(answer, attacked, target)


def test_ten_thousand_letters_in_any_place_get_a_short_sentence(attacked, addresses):
    for letter in ("a", "漢"):
        value = quote(letter * 10_000)
        for target, answered in targets(addresses, attacked.moment("plain.mp4"), value):
            answer = attacked.client.get(target)
            if answered in addresses:
                continue
            assert answer.status in (400, 404), target[:80]
            assert len(answer.json["error"]) < 250
    long = {"Range": "bytes=" + "9" * 10_000 + "-", "If-None-Match": '"' + "a" * 10_000}
    assert attacked.client.get(f"/media/{attacked.moment('plain.mp4')}", long).status == 416


def test_no_address_is_answered_under_another_host(attacked, addresses):
    moment = attacked.moment("plain.mp4")
    for address in addresses:
        target = address.replace("{id}", moment)
        for host in ("evil.example", f"evil.example:{attacked.client.port}", f"0.0.0.0:{attacked.client.port}", ""):
            answer = attacked.client.get(target, host=host)
            assert answer.status == 421, target
            assert_nothing_is_given_away(answer, attacked, target)
        for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            assert attacked.client.get(target, headers).status == 403, target
        for method in ("POST", "DELETE", "OPTIONS"):
            assert attacked.client.get(target, {"Content-Length": "0"}, method=method).status == 405, target


@pytest.mark.parametrize("name", ["plain.mp4", "made.avi"])
def test_ranges_beyond_a_film_are_refused_with_its_size(attacked, name):
    address = f"/media/{attacked.moment(name)}"
    size = len(attacked.client.get(address).body)
    for header in (
        f"bytes={size}-",
        f"bytes={size + 1}-{size + 9}",
        "bytes=9-1",
        "bytes=-0",
        "bytes=0-1,5-9",
        "bytes=x",
    ):
        answer = attacked.client.get(address, {"Range": header})
        assert answer.status == 416, header
        assert answer.headers["content-range"] == f"bytes */{size}"
    last = attacked.client.get(address, {"Range": f"bytes={size - 1}-{size + 10**12}"})
    assert (last.status, len(last.body)) == (206, 1)


def test_a_link_out_of_the_folder_is_not_followed_whenever_it_was_put_there(attacked):
    """One that was there when the folder was indexed; a film, and a folder, that have become one since."""
    films = attacked.folder / "films"
    assert "leads out.mp4" not in [row.path.name for row in attacked.library.files]
    moment, inside = attacked.moment("linked.mp4"), attacked.moment("moved.mp4")
    for one in (moment, inside):
        assert attacked.client.get(f"/media/{one}", method="HEAD").status == 200

    # The same bytes and the same times, elsewhere.
    outside = attacked.folder / "outside"
    outside.mkdir()
    shutil.move(films / "linked.mp4", outside / "linked.mp4")
    (films / "linked.mp4").symlink_to(outside / "linked.mp4")
    shutil.move(films / "inside", outside / "inside")
    (films / "inside").symlink_to(outside / "inside")
    for one in (moment, inside):
        for target in (f"/media/{one}", f"/api/playing?id={one}"):
            answer = attacked.client.get(target)
            assert answer.status == 404
            assert_nothing_is_given_away(answer, attacked, target)


def test_names_and_captions_that_are_markup_are_sent_as_json_alone(attacked, addresses):
    found = attacked.client.get("/api/search?q=%3Cscript%3E&k=100&refine=0")
    assert {f"{name}.mp4" for name in HOSTILE} <= {one["file"] for one in found.json["results"]}
    about = attacked.client.get("/api/library").json
    assert [one["file"] for one in about["damaged"]["files"]] == ["<b>broken<b>.mp4"]

    moment = attacked.moment(f"{HOSTILE[0]}.mp4")
    for address in addresses:
        known = [one.name for one in PARAMETERS.get(address, ())]
        asked = "?q=%3Cscript%3E" if "q" in known else f"?id={moment}" if "id" in known and "{" not in address else ""
        answer = attacked.client.get(address.replace("{id}", moment) + asked)
        assert answer.status == 200, address
        assert answer.headers["x-content-type-options"] == "nosniff"
        if answer.headers["content-type"] != "application/json":  # nothing of a library is in the page itself
            assert b"window.ran" not in answer.body, address
            assert b"alert(" not in answer.body, address


def test_a_film_that_has_become_something_else_is_not_sent(attacked):
    path = attacked.folder / "films" / "made.avi"
    moment = attacked.moment("made.avi")
    status = path.stat()
    before = path.read_bytes()
    try:
        path.write_bytes(SECRET.ljust(len(before), b"."))
        assert attacked.client.get(f"/media/{moment}").status == 404
        # Even with its old time, it is no film.
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        answer = attacked.client.get(f"/media/{moment}")
        assert SECRET not in answer.body
        if answer.status == 200:  # a part that was made of it before
            with av.open(io.BytesIO(answer.body)) as container:
                assert container.streams.video
    finally:
        path.write_bytes(before)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_it_still_answers_after_what_is_no_request(attacked):
    for request in (b"\x16\x03\x01\x02\x00", b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 50_000, b"GET " + b"/" * 400_000):
        with suppress(OSError), socket.create_connection(("127.0.0.1", attacked.client.port), timeout=20) as connection:
            connection.sendall(request)
            assert b" 200 " not in connection.recv(65536)
    assert attacked.client.get("/api/library").status == 200
