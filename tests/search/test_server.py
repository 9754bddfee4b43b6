"""The server of a library: what it answers, and what it does not, whoever asks."""

import io
import socket
import threading
import time
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import quote

import av
import pytest
from served_library import HOSTILE_NAME, StandIn, levels_of, serving, write_film, write_folder

from emcl_train.commands import serving as command
from emcl_train.search.server import app, connecting, converting
from emcl_train.search.server.app import PAGE, PAGES
from emcl_train.search.server.guarding import HEADERS
from emcl_train.search.server.parts import Parts
from emcl_train.search.server.questions import LONGEST_QUERY, PARAMETERS

SECRET = "nobody is to read this"
API = [path for path in PARAMETERS if path.startswith("/api")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.txt").write_text(SECRET)
    root = write_folder(outside / "films")
    (root / "link.mp4").symlink_to(outside / "other.mp4")
    (outside / "other.mp4").write_bytes((root / "beach" / "red circle.mp4").read_bytes())
    return root


@pytest.fixture(scope="module")
def library(folder) -> StandIn:
    return StandIn(folder)


@pytest.fixture(scope="module")
def client(library, tmp_path_factory):
    with serving(library, tmp_path_factory.mktemp("parts")) as one:
        yield one


# ---- What it answers ----


def test_search_gives_moments_with_names_inside_the_folder_that_was_indexed(client, library):
    found = client.get("/api/search?q=red%20circle&k=3&refine=0").json
    assert found["query"] == "red circle"
    assert found["refined"] is False
    best = found["results"][0]
    assert best["file"] == "beach/red circle.mp4"
    assert best["media"] == f"/media/{best['id']}"
    assert (best["end"] - best["start"], best["also_at"]) == (4.0, [])
    assert len(found["results"]) == 3
    assert [one["score"] for one in found["results"]] == sorted(
        (one["score"] for one in found["results"]), reverse=True
    )


def test_refining_is_what_the_library_has_unless_the_question_says(client):
    assert client.get("/api/search?q=red").json["refined"] is True
    plain, refined = (client.get(f"/api/search?q=red&refine={one}").json["results"] for one in (0, 1))
    assert [one["id"] for one in plain] != [one["id"] for one in refined]


def test_what_is_below_the_cut_off_says_so_and_nothing_that_fits_is_said_in_words(client):
    found = client.get("/api/search?q=red%20circle").json
    assert found["cutoff"] == 0.3
    assert found["fits"] is True
    assert found["said"] == ""
    assert [one["below"] for one in found["results"]] == [one["score"] < 0.3 for one in found["results"]]
    assert {one["below"] for one in found["results"]} == {True, False}

    nothing = client.get("/api/search?q=submarine").json
    assert nothing["fits"] is False
    assert nothing["said"].startswith("Nothing here fits: the best score, 0.200, is below 0.300")
    cut = client.get("/api/search?q=submarine&min=auto").json
    assert cut["results"] == []
    assert "no moment reaches 0.300" in cut["said"]
    assert client.get("/api/search?q=red%20circle&min=0.35").json["results"][-1]["score"] >= 0.35


def test_like_neighbours_and_thumbnail_are_of_one_moment(client, library):
    middle = library.of("red circle.mp4", 1)
    like = client.get(f"/api/like?id={middle}").json
    assert like["of"]["id"] == like["results"][0]["id"] == middle
    assert like["cutoff"] is None
    around = client.get(f"/api/neighbours?id={middle}&around=1").json["results"]
    assert [one["start"] for one in around] == [0.0, 4.0, 8.0]
    assert all(one["score"] is None for one in around)
    picture = client.get(f"/thumbnail/{middle}")
    assert picture.headers["content-type"] == "image/webp"
    assert picture.body[:4] == b"RIFF"


def test_the_library_is_described_without_the_folders_of_this_machine(client, folder):
    told = client.get("/api/library")
    assert told.json["name"] == "holidays"
    assert told.json["cutting"] == "pieces of 4 s"
    assert told.json["cutoff"] == {"plain": 0.3, "refined": 0.3}
    assert told.json["damaged"] == {"count": 1, "files": [{"file": "broken.avi", "reason": "it is truncated"}]}
    assert b"/home/somebody" not in told.body
    assert str(folder.parent).encode() not in told.body


def test_the_document_has_every_address_and_its_pages_come_from_here(client):
    document = client.get("/api/openapi.json").json
    assert document["openapi"] == "3.1.0"
    assert set(document["paths"]) == set(PARAMETERS)
    for path, parameters in PARAMETERS.items():
        said = document["paths"][path]["get"]["parameters"]
        assert [one["name"] for one in said] == [one.name for one in parameters]
    for address, (name, kind) in PAGES.items():
        page = client.get(address)
        assert page.status == 200
        assert page.headers["content-type"].startswith(kind)
        assert page.body == (PAGE / name).read_bytes()
        assert b"https://" not in page.body
    assert {name for name, _ in PAGES.values()} == {path.name for path in PAGE.iterdir()}


def test_the_document_describes_what_is_answered(client, library):
    """Every key of every answer is in its schema, and the other way around."""
    document = client.get("/api/openapi.json").json
    schemas = document["components"]["schemas"]
    moment = library.of("old camera.avi")
    for path, query in (
        ("/api/library", ""),
        ("/api/search", "?q=red"),
        ("/api/like", f"?id={moment}"),
        ("/api/neighbours", f"?id={moment}"),
        ("/api/playing", f"?id={moment}"),
    ):
        schema = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        named = schemas[schema["$ref"].split("/")[-1]]
        value = client.get(path + query).json
        assert set(value) == set(named["properties"]), path
        for one in value.get("results", [])[:1]:
            assert set(one) == set(schemas["Moment"]["properties"])


def test_the_document_has_every_status_that_an_address_answers_with(client, library):
    document = client.get("/api/openapi.json").json
    moment = library.of("red circle.mp4")
    for path in PARAMETERS:
        address = path.replace("{id}", moment)
        asked = [
            client.get(f"{address}?nothing=1"),
            client.get(address, {"Origin": "http://example.org"}),
            client.get(address, method="POST"),
            client.get(address, host="example.org"),
            client.get(address, {"If-None-Match": "*"}),
            client.get(address, {"Range": "bytes=5-1"}),
        ]
        said = set(document["paths"][path]["get"]["responses"])
        assert {str(one.status) for one in asked} <= said, path
        assert said >= {"200", "400", "403", "404", "405", "421", "500", "503"}


def test_a_picture_is_asked_for_again_and_sent_only_if_it_is_another_one(client, library, monkeypatch):
    address = f"/thumbnail/{library.of('red circle.mp4')}"
    first = client.get(address)
    assert first.headers["cache-control"] == "private, no-cache"
    tag = first.headers["etag"]
    same = client.get(address, {"If-None-Match": tag})
    assert (same.status, same.body, same.headers["etag"]) == (304, b"", tag)
    monkeypatch.setattr(library, "thumbnail", lambda _: b"indexed anew")
    other = client.get(address, {"If-None-Match": tag})
    assert (other.status, other.body) == (200, b"indexed anew")
    assert other.headers["etag"] != tag


# ---- Films ----


def test_what_a_browser_plays_is_sent_as_it_is(client, library, folder):
    moment = library.of("red circle.mp4", 1)
    told = client.get(f"/api/playing?id={moment}").json
    assert (told["way"], told["type"], told["begin"], told["end"], told["more"]) == (
        "as it is",
        "video/mp4",
        0,
        None,
        False,
    )
    film = client.get(told["media"])
    assert film.body == (folder / "beach" / "red circle.mp4").read_bytes()
    assert film.headers["content-type"] == "video/mp4"


@pytest.mark.parametrize(("name", "way"), [("old camera.avi", "transcoded"), ("matroska.mkv", "remuxed")])
def test_what_it_does_not_play_is_made_for_it_and_shows_the_right_second(client, library, name, way):
    from served_library import level_at

    moment = library.of(name, 1)
    told = client.get(f"/api/playing?id={moment}").json
    assert (told["way"], told["type"]) == (way, "video/mp4")
    assert told["begin"] <= 4.0
    assert told["end"] >= 8.0
    film = client.get(told["media"])
    assert film.headers["content-type"] == "video/mp4"
    shown = levels_of(film.body)
    assert len(shown) >= 60
    assert [level for _, level in shown] == [level_at(told["begin"] + second + 1e-3) for second, _ in shown]


def test_what_cannot_be_copied_after_all_is_sent_as_what_it_was_made_to(client, library, folder, monkeypatch):
    """VP8 in Matroska, which is copied into WebM, with its only keyframe farther away than a part may begin early."""
    options = {"g": "1000", "keyint_min": "1000", "cpu-used": "8", "deadline": "realtime", "crf": "10"}
    (folder / "vp8").mkdir()
    write_film(folder / "vp8" / "one keyframe.mkv", codec="libvpx", options=options)
    moments = library.add(folder / "vp8" / "one keyframe.mkv", 12.0)
    monkeypatch.setattr(converting, "FARTHEST", 1.0)
    for moment, kind, way, codec in (
        (moments[0], "video/webm", "remuxed", "vp8"),
        (moments[2], "video/mp4", "transcoded", "h264"),
    ):
        for _ in range(2):  # made, and taken from the cache
            told = client.get(f"/api/playing?id={moment}").json
            assert (told["type"], told["way"]) == (kind, way)
            assert ("cannot be copied" in told["why"]) == (way == "transcoded")
        film = client.get(told["media"])
        assert film.headers["content-type"] == kind
        with av.open(io.BytesIO(film.body)) as container:
            assert ("matroska" in container.format.name) == (kind == "video/webm")
            assert container.streams.video[0].codec_context.codec.canonical_name == codec


def test_a_film_goes_on_in_the_part_that_follows_until_its_end(client, library):
    first = client.get(f"/api/playing?id={library.of('old camera.avi', 0)}").json
    assert (first["end"], first["more"]) == (10.0, True)
    second = client.get(f"/api/playing?id={library.of('old camera.avi', 0)}&part=1").json
    assert (second["begin"], second["more"]) == (10.0, False)
    shown = levels_of(client.get(second["media"]).body)
    assert shown[0] == (0.0, 20)
    assert shown[-1][0] == pytest.approx(1.9, abs=0.05)
    assert client.get(f"/api/playing?id={library.of('old camera.avi', 0)}&part=2").status == 404
    assert client.get(f"/media/{library.of('red circle.mp4')}?part=1").status == 404


# ---- Ranges ----


@pytest.mark.parametrize(
    ("header", "begin", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-", 0, None),
        ("bytes=5-9", 5, 10),
        ("BYTES=5-9", 5, 10),
        ("bytes= 5-9 ", 5, 10),
        ("bytes=100-99999999999999999999999", 100, None),
        ("bytes=-7", -7, None),
        ("bytes=-999999999", 0, None),
    ],
)
def test_a_range_is_sent_alone(client, library, folder, header, begin, end):
    whole = (folder / "beach" / "red circle.mp4").read_bytes()
    answer = client.get(f"/media/{library.of('red circle.mp4')}", {"Range": header})
    assert answer.status == 206
    assert answer.body == whole[begin:end]
    first = begin if begin >= 0 else len(whole) + begin
    assert answer.headers["content-range"] == f"bytes {first}-{first + len(answer.body) - 1}/{len(whole)}"
    assert answer.headers["content-length"] == str(len(answer.body))


@pytest.mark.parametrize(
    "header",
    [
        "bytes=0-1,3-4",
        "bytes=9-5",
        "bytes=-0",
        "bytes=-",
        "bytes=",
        "bytes",
        "bytes=a-b",
        "bytes=--5",
        "bytes=5--1",
        "bytes=0x10-",
        "bytes=1000000000-",
        "bytes=" + "9" * 5000 + "-",
        "bytes=" + "0-1," * 5000 + "0-1",
        "bytes=٣-٤".encode().decode("latin-1"),
    ],
)
def test_a_range_that_is_none_is_refused_with_the_size(client, library, folder, header):
    size = (folder / "beach" / "red circle.mp4").stat().st_size
    answer = client.get(f"/media/{library.of('red circle.mp4')}", {"Range": header})
    assert answer.status == 416
    assert answer.headers["content-range"] == f"bytes */{size}"
    assert answer.json["error"].startswith("the Range header ")


def test_a_range_of_another_unit_is_ignored_and_head_has_no_body(client, library, folder):
    size = (folder / "beach" / "red circle.mp4").stat().st_size
    address = f"/media/{library.of('red circle.mp4')}"
    assert client.get(address, {"Range": "seconds=1-2"}).status == 200
    head = client.get(address, {"Range": "bytes=0-1"}, method="HEAD")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(size))
    assert head.headers["accept-ranges"] == "bytes"


def test_the_tag_decides_whether_a_range_or_anything_is_sent(client, library, folder):
    address = f"/media/{library.of('red circle.mp4')}"
    tag = client.get(address, method="HEAD").headers["etag"]
    assert client.get(address, {"If-None-Match": tag}).status == 304
    assert client.get(address, {"If-None-Match": f'"x", W/{tag}'}).body == b""
    assert client.get(address, {"If-None-Match": '"x"'}).status == 200
    assert client.get(address, {"Range": "bytes=0-1", "If-Range": tag}).status == 206
    assert client.get(address, {"Range": "bytes=0-1", "If-Range": '"another"'}).status == 200
    assert client.get(address, {"Range": "bytes=0-1", "If-Range": f"W/{tag}"}).status == 200


# ---- Who may not ask, and what is not read ----


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "127.0.0.1.evil.example:{port}",
        "127.0.0.1:{other}",
        "127.0.0.1",
        "localhost",
        "localhost:{port}.evil.example",
        "user@127.0.0.1:{port}",
        "0.0.0.0:{port}",
        "127.1:{port}",
        "2130706433:{port}",
        "",
    ],
)
def test_another_host_gets_no_answer(client, library, host):
    named = host.format(port=client.port, other=client.port + 1)
    for target in ("/", "/api/library", "/api/search?q=red", f"/media/{library.of('red circle.mp4')}"):
        answer = client.get(target, host=named)
        assert answer.status == 421
        assert list(answer.json) == ["error"]


def test_this_machines_own_names_are_answered(client):
    for name in ("127.0.0.1", "localhost", "LOCALHOST", "[::1]"):
        assert client.get("/api/library", host=f"{name}:{client.port}").status == 200


def test_a_request_without_a_host_or_with_two_gets_no_answer(client):
    port = client.port
    assert raw(port, b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 421")
    for request in (
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nHost: evil.example\r\n\r\n" % port,
        b"GET / HTTP/1.1\r\n\r\n",
    ):
        assert raw(port, request).startswith(b"HTTP/1.1 4")
    # A whole address in the first line does not stand for the Host header.
    request = b"GET http://evil.example/api/library HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: close\r\n\r\n" % port
    assert b"holidays" not in raw(port, request)


def raw(port: int, request: bytes) -> bytes:
    """What comes back for bytes that are sent as they stand."""
    found = b""
    # Who is sent too much hangs up, which may be before the answer was read.
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection, suppress(ConnectionError):
        connection.sendall(request)
        with suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        while piece := connection.recv(65536):
            found += piece
    return found


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}, 200),
        ({"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200),
        ({}, 200),
    ],
)
def test_pages_of_other_sites_get_no_answer_and_links_of_theirs_do(client, headers, status):
    answer = client.get("/api/search?q=red", headers)
    assert answer.status == status
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "PROPFIND"])
def test_it_only_reads(client, method):
    target = f"127.0.0.1:{client.port}" if method == "CONNECT" else "/api/library"
    answer = client.get(target, {"Content-Length": "0"}, method=method)
    assert answer.status == 405
    assert answer.headers["allow"] == "GET, HEAD"


def test_every_answer_has_the_headers_that_bind_a_browser(client, library):
    moment = library.of("red circle.mp4")
    for target in ("/", "/api", "/api/library", "/nothing", "/api/search", f"/media/{moment}", f"/thumbnail/{moment}"):
        for host in (None, "evil.example"):
            headers = client.get(target, host=host).headers
            assert {name: headers.get(name) for name in HEADERS} == HEADERS, target
    policy = HEADERS["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in policy


TRAVERSALS = [
    "../../secret.txt",
    "..%2f..%2fsecret.txt",
    "%2e%2e/%2e%2e/secret.txt",
    "..\\..\\secret.txt",
    "%5c..%5c..%5csecret.txt",
    "....//....//secret.txt",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "//etc/passwd",
    "file:///etc/passwd",
    "%00/etc/passwd",
    "..%c0%af..%c0%afsecret.txt",
    "..%ef%bc%8fsecret.txt",
    "~/.ssh/id_rsa",
]


@pytest.mark.parametrize("path", TRAVERSALS)
def test_no_path_of_a_request_reaches_the_disk(client, library, path):
    moment = library.of("red circle.mp4")
    targets = [f"{base}{path}" for base in ("/media/", "/thumbnail/", "/page/", "/", f"/media/{moment}/", "/api/")]
    targets += [f"{address}?{name.name}={path}" for address in API for name in PARAMETERS[address]]
    targets += [f"/media/{moment}?part={path}", f"/media/{moment}?file={path}", f"/media/{moment}%00.txt"]
    for target in targets:
        answer = client.get(target)
        if target.startswith("/api/search?q="):  # words, which may be anything
            assert answer.status == 200
        else:
            assert answer.status in (400, 404), target
            assert list(answer.json) == ["error"]
        assert SECRET.encode() not in answer.body
        assert b"root:" not in answer.body


def test_a_link_out_of_the_folder_is_not_followed(client, library, folder):
    (moment, *_) = library.add(folder / "link.mp4", 12.0)
    for target in (f"/media/{moment}", f"/api/playing?id={moment}"):
        answer = client.get(target)
        assert answer.status == 404
        assert str(folder.parent) not in answer.json["error"]


def test_a_folder_that_becomes_a_link_is_not_followed(client, library, folder, tmp_path):
    """Even where the library still says that the file is inside."""
    (folder / "moved").mkdir()
    inside = folder / "moved" / "film.mp4"
    inside.write_bytes((folder / "beach" / "red circle.mp4").read_bytes())
    (moment, *_) = library.add(inside, 12.0)
    assert client.get(f"/media/{moment}", method="HEAD").status == 200
    inside.rename(tmp_path / "film.mp4")
    (folder / "moved").rmdir()
    (folder / "moved").symlink_to(tmp_path)
    library.file_of, before = lambda _: inside, library.file_of
    try:
        assert client.get(f"/media/{moment}").status == 404
    finally:
        library.file_of = before


def replaced(path: Path, other: Path) -> None:
    """Another film lies there, whole from one moment to the next."""
    beside = path.with_suffix(".new")
    beside.write_bytes(other.read_bytes())
    beside.replace(path)


def linked(path: Path, other: Path) -> None:
    """The folder of the film is a link to one outside by now, where a film of the same name lies."""
    outside = path.parent.parent.parent / f"outside of {path.parent.name}"
    path.parent.rename(outside)
    path.parent.symlink_to(outside)


@pytest.mark.parametrize("becomes", [replaced, linked])
@pytest.mark.parametrize("when", ["while it waits", "while it is converted"])
def test_a_film_that_is_another_one_when_its_turn_comes_is_not_converted(
    library, folder, tmp_path, monkeypatch, becomes, when
):
    inside = folder / f"{becomes.__name__} {when}" / "film.avi"
    inside.parent.mkdir()
    inside.write_bytes((folder / "beach" / "old camera.avi").read_bytes())
    (moment, *_) = library.add(inside, 12.0)
    waited, wrote, written = Parts._make_room, app.write_part, []

    def change() -> None:
        if not written:
            becomes(inside, folder / "matroska.mkv")

    def waits(self: Parts, *args: object, **kwargs: object) -> None:
        if when == "while it waits":
            change()
            written.append("nothing")
        waited(self, *args, **kwargs)

    def writes(path: Path, *args: object) -> object:
        done = wrote(path, *args)
        change()
        written.append(path)
        return done

    monkeypatch.setattr(Parts, "_make_room", waits)
    monkeypatch.setattr(app, "write_part", writes)
    with serving(library, tmp_path / "parts") as one:
        assert one.get(f"/media/{moment}").status == 404
    assert written == (["nothing"] if when == "while it waits" else [inside])
    assert not list((tmp_path / "parts").iterdir())


def test_a_film_that_is_another_one_when_it_is_opened_is_not_sent(client, library, folder, monkeypatch):
    inside = folder / "sent as it is.mp4"
    inside.write_bytes((folder / "beach" / "red circle.mp4").read_bytes())
    (moment, *_) = library.add(inside, 12.0)
    opens = app._opened

    def opens_later(*args: object) -> object:
        replaced(inside, folder / "matroska.mkv")
        return opens(*args)

    monkeypatch.setattr(app, "_opened", opens_later)
    assert client.get(f"/media/{moment}").status == 404
    monkeypatch.setattr(app, "_opened", opens)


@pytest.mark.parametrize("what", ["fifo", "folder", "nothing", "text", "playlist"])
def test_only_films_are_sent(client, library, folder, what):
    import os

    path = folder / f"{what}.mp4"
    if what == "fifo":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "text":
        path.write_text(SECRET)
    elif what == "playlist":
        path.write_text(f"#EXTM3U\n#EXTINF:1,\n{folder.parent / 'secret.txt'}\n")
    (moment, *_) = library.add(path, 4.0)
    begin = time.monotonic()
    for target in (f"/media/{moment}", f"/api/playing?id={moment}"):
        answer = client.get(target)
        assert answer.status in (404, 503)
        assert str(folder) not in answer.json["error"]
        assert SECRET.encode() not in answer.body
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("/api/search", "q is missing: words that say what is to be seen"),
        ("/api/search?q=", "q is empty"),
        ("/api/search?q=%20%09", "q is empty"),
        ("/api/search?q=red&q=blue", "'q' is there twice"),
        ("/api/search?q=red&k=0", "k is '0', expected a whole number from 1 to 100"),
        ("/api/search?q=red&k=1e3", "k is '1e3'"),
        ("/api/search?q=red&k=-5", "k is '-5'"),
        ("/api/search?q=red&k=%D9%A3", "k is '٣'"),
        ("/api/search?q=red&k=" + "9" * 6000, "k is '9999999999"),
        ("/api/search?q=red&min=nan", "min is 'nan', expected a number or auto"),
        ("/api/search?q=red&min=inf", "min is 'inf'"),
        ("/api/search?q=red&refine=maybe", "refine is 'maybe', expected 1 or 0"),
        ("/api/search?q=red&colour=blue", "there is no parameter 'colour' here; there is: q, k, refine, min"),
        ("/api/like?id=1", "id is '1', expected the id of a moment, as search gives it"),
        ("/api/like?id=" + "0" * 32 + "-" + "1" * 10, "id is '0000000"),
        ("/api/neighbours?id=" + "A" * 32 + "-1", "id is 'AAAA"),
        ("/api/neighbours?around=2", "id is missing"),
        ("/api/library?x=1", "there is no parameter 'x' here; there is: none"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_was_expected(client, target, says):
    answer = client.get(target)
    assert answer.status == 400
    assert answer.json["error"].startswith(says)
    assert len(answer.json["error"]) < 250


def test_an_unknown_moment_is_not_there(client):
    unknown = "0" * 32 + "-7"
    for target in (f"/api/like?id={unknown}", f"/api/neighbours?id={unknown}", f"/api/playing?id={unknown}"):
        assert client.get(target).status == 404
    for target in (f"/media/{unknown}", f"/thumbnail/{unknown}", "/favicon.ico", "/page/", "/api/", "/page/app.py"):
        assert client.get(target).status == 404


@pytest.mark.parametrize("letter", ["a", "é", "漢", "🎬"])
def test_ten_thousand_letters_get_a_sentence(client, library, letter):
    before = library.searches
    answer = client.get("/api/search?q=" + quote(letter * 10_000))
    assert answer.status == 400
    assert answer.json["error"] == f"q is 10000 letters long, expected at most {LONGEST_QUERY}; shorten it"
    assert library.searches == before
    assert client.get("/api/search?q=" + quote(letter * LONGEST_QUERY)).status == 200


def test_a_request_without_end_is_cut_off(client):
    head = b"\r\nHost: 127.0.0.1:%d\r\n" % client.port
    for endless in (b"GET /?q=" + b"a" * (1 << 20), b"GET / HTTP/1.1" + head + b"X: " + b"a" * (1 << 20)):
        assert b" 200 " not in raw(client.port, endless)
    for strange in (
        b"\x00\x01\x02",
        b"GET\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
    ):
        assert b" 200 " not in raw(client.port, strange)
    assert client.get("/api/library").status == 200


@pytest.mark.parametrize("sends", [b"", b"G"])
def test_a_connection_without_a_request_is_closed(client, monkeypatch, sends):
    """Also where one byte comes now and then: so many of them would shut everybody out."""
    monkeypatch.setattr(connecting, "PATIENCE", 1.0)
    with socket.create_connection(("127.0.0.1", client.port), timeout=0.2) as connection:
        begin = time.monotonic()
        while time.monotonic() < begin + 20:
            try:
                connection.sendall(sends)
                if not connection.recv(100):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        assert 0.5 < time.monotonic() - begin < 20


def test_an_answer_that_takes_long_is_waited_for_and_the_connection_serves_again(client, library, monkeypatch):
    monkeypatch.setattr(connecting, "PATIENCE", 0.5)
    monkeypatch.setattr(library, "pause", 1.5)
    connection = HTTPConnection("127.0.0.1", client.port, timeout=60)
    try:
        for _ in range(2):
            connection.request("GET", "/api/search?q=red")
            answer = connection.getresponse()
            assert (answer.status, bool(answer.read())) == (200, True)
    finally:
        connection.close()


def test_names_of_files_are_sent_as_text(client, library):
    found = client.get("/api/search?q=img").json["results"][0]
    assert found["file"] == HOSTILE_NAME
    answer = client.get("/api/search?q=" + quote("<script>alert(1)</script>"))
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["query"] == "<script>alert(1)</script>"


def test_a_name_that_is_no_utf_8_is_shown_as_well_as_can_be(client, library, folder):
    import os

    strange = Path(os.fsdecode(os.fsencode(folder) + b"/gr\xfc\xdfe.mp4"))
    (moment, *_) = library.add(strange, 4.0)
    try:
        assert client.get(f"/api/neighbours?id={moment}").json["of"]["file"] == "gr��e.mp4"
    finally:
        del library.moments[moment]


def test_what_the_library_fails_at_is_told_without_its_paths(client, library, capfd):
    from emcl_train.errors import UserError

    def fails(*_: object, **__: object) -> None:
        raise UserError(f"{library.root} is gone")

    library.search = fails
    try:
        answer = client.get("/api/search?q=red")
    finally:
        del library.search
    assert answer.status == 500
    assert answer.json["error"] == "the library could not answer; the terminal of the server says why"

    library.like_moment = lambda *_, **__: 1 / 0
    try:
        answer = client.get(f"/api/like?id={library.of('red circle.mp4')}")
    finally:
        del library.like_moment
    assert answer.status == 500
    assert answer.json["error"] == "the server failed; its terminal says why"
    assert answer.headers["content-security-policy"] == HEADERS["content-security-policy"]


# ---- Many at once ----


def test_many_clients_at_once_get_answers_one_search_at_a_time(client, library):
    library.pause = 0.01
    answers: list[int] = []
    threads_before = threading.active_count()
    most = 0

    def ask(number: int) -> None:
        moment = library.of("red circle.mp4", number % 3)
        for target in ("/api/search?q=red", f"/media/{moment}", f"/thumbnail/{moment}", "/api/library"):
            answers.append(client.get(target, {"Range": "bytes=0-99"} if "media" in target else None).status)

    askers = [threading.Thread(target=ask, args=(number,)) for number in range(50)]
    library.most_at_once = 0
    for asker in askers:
        asker.start()
    while any(asker.is_alive() for asker in askers):
        most = max(most, threading.active_count() - sum(asker.is_alive() for asker in askers))
        time.sleep(0.01)
    library.pause = 0.0
    assert sorted(set(answers)) in ([200, 206], [200, 206, 503])
    assert answers.count(503) == 0
    assert len(answers) == 200
    assert library.most_at_once == 1
    # Of searching, of looking, of reading, of making parts, and of looking for them.
    assert most - threads_before <= 1 + 8 + 8 + 2 + 2


def test_whoever_has_gone_away_is_not_searched_for(client, library):
    library.pause = 0.4
    before = library.searches
    try:
        for _ in range(10):
            connection = socket.create_connection(("127.0.0.1", client.port))
            connection.sendall(b"GET /api/search?q=red HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % client.port)
            time.sleep(0.02)
            connection.close()
        assert client.get("/api/search?q=red").status == 200
    finally:
        library.pause = 0.0
    assert library.searches - before < 5


def test_a_full_line_says_when_to_come_again(library, tmp_path):
    library.pause = 0.05
    statuses: list[tuple[int, str | None]] = []
    with serving(library, tmp_path / "parts") as busy:

        def ask() -> None:
            answer = busy.get("/api/search?q=red")
            statuses.append((answer.status, answer.headers.get("retry-after")))

        askers = [threading.Thread(target=ask) for _ in range(120)]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
    library.pause = 0.0
    assert set(statuses) == {(200, None), (503, "2")}
    assert len(statuses) == 120


def test_the_server_is_bound_to_one_address_and_says_what_is_in_the_way(client):
    from emcl_train.commands.serving import listening, serve
    from emcl_train.errors import UserError

    with pytest.raises(UserError, match=f"port {client.port}: .*; pass another --port, such as {client.port + 1}"):
        listening("127.0.0.1", client.port)
    with pytest.raises(UserError, match="pass --host with an address of this machine"):
        listening("no.such.host.invalid", 0)
    with pytest.raises(UserError, match="every address of this machine"):
        serve("library", host="0.0.0.0")
    with pytest.raises(UserError, match="--port is 70000"):
        serve("library", port=70000)


def test_whatever_ends_the_server_ends_what_it_converts(library, tmp_path, monkeypatch):
    """Also a hang-up, of which the server itself hears nothing."""
    apps = []

    class HungUp:
        def run(self, sockets: object) -> None:
            raise SystemExit(129)

    def server_of(one: object, *_: object) -> HungUp:
        apps.append(one)
        return HungUp()

    monkeypatch.setattr(library, "encoder", None, raising=False)
    monkeypatch.setattr(command, "say_if_ended", lambda _: None)
    monkeypatch.setattr(command, "server_of", server_of)
    with pytest.raises(SystemExit):
        command._run(library, "127.0.0.1", 0, tmp_path, 64 << 20, None)
    assert apps[0].parts._stopped.is_set()
