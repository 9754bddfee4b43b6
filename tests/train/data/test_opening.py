"""A name in annotations is a path to a regular file, whatever it looks like, and a film within its limits."""

import gc
import http.server
import os
import signal
import socket
import struct
import threading
import zlib
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from tiny_videos import write_data_set, write_video

from emcl_train.config import DataConfig, RunConfig
from emcl_train.data.clips import Clip
from emcl_train.data.container import VideoError, check_packets, probe
from emcl_train.data.excess import excess_of
from emcl_train.data.loader import prepare
from emcl_train.data.outside import outside
from emcl_train.data.video import FrameRequest, decode_frames
from emcl_train.errors import UserError
from emcl_train.tools.compress import Settings, compress_video


def as_png(path: Path, side: int) -> Path:
    """A black picture of which a few kilobytes are enough."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes(side + 1) * side, 1)
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


@pytest.fixture
def asked():
    """A server on this machine, and what was asked of it."""
    paths = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            paths.append(self.path)
            self.send_error(404)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server.server_address[1], paths
    server.shutdown()
    thread.join()
    server.server_close()


NAMES = [
    "http://127.0.0.1:{port}/a.mp4",
    "http:/127.0.0.1:{port}/a.mp4",
    "HTTP:127.0.0.1:{port}",
    "tcp://127.0.0.1:{port}",
    "subfile,,start,0,end,0,,:real.mp4",
    "concat:real.mp4|real.mp4",
    "crypto:real.mp4",
    "file:real.mp4",
    "data:video/mp4;base64,AAAA",
    "pipe:0",
    "fd:0",
    "cache:real.mp4",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_looks_like_an_address_is_a_path(name, tmp_path, monkeypatch, asked):
    port, paths = asked
    monkeypatch.chdir(tmp_path)
    write_video(Path("real.mp4"), range(4))
    with pytest.raises(VideoError, match="there is no such file"):
        decode_frames(FrameRequest(Path(name.format(port=port)), 2, 16))
    assert paths == []


@pytest.mark.parametrize("name", ["http:a.mp4", "concat:a|b.mp4", "file:a.mp4", "a,b:c.mp4", "12:30.mp4", "a%03d.mp4"])
def test_a_file_that_is_there_is_read_whatever_it_is_called(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "plain.mp4", range(4)).rename(tmp_path / name)
    assert decode_frames(FrameRequest(Path(name), 2, 16))[1].all()
    compress_video(Path(name), Path("out:put") / name, Settings(3.0, 32))
    assert probe(Path("out:put") / name).codec == "h264"


def fifo(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(path))


KINDS = {
    "a named pipe": fifo,
    "a socket": listening,
    "a folder": Path.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link that leads to itself": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_named_and_not_waited_for(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    KINDS[kind](Path("a.mp4"))
    for read in (probe, check_packets, lambda path: decode_frames(FrameRequest(path, 2, 16))):
        with pytest.raises(VideoError, match=f"it is {kind}"):
            read(Path("a.mp4"))


PLAYLISTS = {
    "concat": "ffconcat version 1.0\nfile real.mp4\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nreal.mp4\n#EXT-X-ENDLIST\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
    '<AdaptationSet><Representation id="0"><BaseURL>real.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>',
}


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("suffix", [".mp4", ".m3u8"])
def test_a_file_that_names_others_is_no_film(kind, suffix, tmp_path):
    write_video(tmp_path / "real.mp4", range(4))
    path = tmp_path / f"list{suffix}"
    path.write_text(PLAYLISTS[kind])
    with pytest.raises(VideoError):
        decode_frames(FrameRequest(path, 2, 16))


def test_a_frame_beyond_the_limit_is_refused_before_it_is_decoded(tmp_path):
    """Of a picture, whose decoder alone knows its size, and of a film, whose headers say it."""
    picture = as_png(tmp_path / "a.mp4", 3000)
    film = write_video(tmp_path / "b.mp4", range(3), size=(640, 480))
    for path, words in ((picture, "3000 × 3000"), (film, "640 × 480")):
        expected = f"its frames have {words} pixels, and --data.max-pixels allows 100000"
        with pytest.raises(VideoError) as caught:
            check_packets(path, 100_000)
        assert caught.value.reason == expected
        with pytest.raises(VideoError) as caught:
            decode_frames(FrameRequest(path, 2, 16, max_pixels=100_000))
        assert caught.value.reason == expected
        assert decode_frames(FrameRequest(path, 2, 16))[1].any()
    with pytest.raises(VideoError, match="its frames have 640 × 480 pixels"):
        probe(film, 100_000)


def test_a_film_whose_frames_grow_beyond_the_limit_is_refused(tmp_path):
    small = write_video(tmp_path / "a.h264", range(5), size=(64, 48))
    large = write_video(tmp_path / "b.h264", range(5), size=(640, 480))
    path = tmp_path / "c.h264"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    with pytest.raises(VideoError):
        decode_frames(FrameRequest(path, 10, 16, max_pixels=100_000))


def test_a_clip_beyond_the_limit_is_left_out_where_that_is_asked_for(tmp_path):
    root = write_data_set(tmp_path / "set")
    as_png(root / "videos" / "video1.mp4", 2000)
    data = DataConfig(root=root, num_frames=2, image_size=16, workers=0, max_pixels=1_000_000)
    with pytest.raises(UserError, match=r"video1 \(its frames have 2000 × 2000 pixels, and --data.max-pixels allows"):
        prepare(RunConfig(data=data))
    left = prepare(RunConfig(data=replace(data, on_bad_video="skip"))).left_out
    assert left.keys() == {"video1"}
    assert not prepare(RunConfig(data=replace(data, max_pixels=5_000_000))).left_out


def counted(path: Path, name: bytes, behind: int, number: int) -> Path:
    """A file that says it has so many of something."""
    data = bytearray(path.read_bytes())
    place = data.index(name) + behind
    data[place : place + 4] = struct.pack(">I", number)
    if name == b"stsz":
        data[place - 4 : place] = struct.pack(">I", 1)  # all of one size, so that no table follows
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("number", [50_000, 3_000_000, 2**32 - 1])
@pytest.mark.parametrize(
    ("name", "behind", "fragments"),
    [(b"stsz", 12, False), (b"stts", 8, False), (b"stco", 8, False), (b"trun", 8, True)],
)
def test_more_packets_than_the_file_has_bytes_are_not_believed(name, behind, fragments, number, tmp_path):
    options = {"movflags": "frag_keyframe+empty_moov"} if fragments else {}
    path = write_video(tmp_path / "a.mp4", range(5), container_options=options)
    assert decode_frames(FrameRequest(path, 2, 16))[1].all()
    counted(path, name, behind, number)
    with pytest.raises(VideoError, match=rf"its part {name.decode()} announces {number} entries, and the file has"):
        decode_frames(FrameRequest(path, 2, 16))


def test_time_stamps_of_years_are_refused(tmp_path):
    path = write_video(tmp_path / "a.mkv", range(4), times=[0, 1, 2, 10 * 86400 * 60])
    with pytest.raises(VideoError, match="its time stamps go on for 60 days"):
        decode_frames(FrameRequest(path, 2, 16))


def test_a_film_of_few_frames_and_many_copies_is_not_compressed(tmp_path):
    path = write_video(tmp_path / "a.mkv", range(4), times=[0, 1, 2, 10 * 86400 * 7])
    with pytest.raises(VideoError, match="it shows 4 frames in 604800 s, of which a copy has 1814401"):
        compress_video(path, tmp_path / "b.mp4", Settings(3.0, 32))


@pytest.fixture
def elsewhere(tmp_path):
    """Lines that name files inside and outside of their folder."""
    root = tmp_path / "set"
    other = tmp_path / "other"
    (root / "films").mkdir(parents=True)
    other.mkdir()
    for path in (root / "a.mp4", root / "films" / "b.mp4", other / "c.mp4"):
        write_video(path, range(3))
    (root / "linked.mp4").symlink_to(other / "c.mp4")
    (root / "inside.mp4").symlink_to(root / "a.mp4")
    return root, other


@pytest.mark.parametrize(
    "name", ["{other}/c.mp4", "../other/c.mp4", "films/../../other/c.mp4", "linked.mp4", "../no.mp4"]
)
def test_files_outside_are_counted_by_where_their_names_lead(name, elsewhere):
    root, other = elsewhere
    config = DataConfig(layout="jsonl", root=root)
    path = root / name.format(other=other)
    assert outside([Clip("x", path), Clip("y", path, 1.0)], config) == [path]
    assert not outside([Clip("x", path)], replace(config, videos=root.parent))


@pytest.mark.parametrize(
    "name", ["a.mp4", "films/b.mp4", "films/../a.mp4", "inside.mp4", "{root}/a.mp4", "../set/a.mp4"]
)
def test_files_inside_are_not(name, elsewhere):
    root, _ = elsewhere
    assert not outside([Clip("x", root / name.format(root=root))], DataConfig(layout="jsonl", root=root))


def box(name: bytes, *parts: bytes) -> bytes:
    data = b"".join(parts)
    return struct.pack(">I4s", 8 + len(data), name) + data


def of_one_track(path: Path, handler: bytes, step: int, size: int, samples: int) -> Path:
    """An MP4 whose only track announces samples of one size, for which there is no table."""
    tables = box(
        b"stbl",
        box(b"stts", struct.pack(">IIII", 0, 1, samples, step)),
        box(b"stsz", struct.pack(">III", 0, size, samples)),
    )
    data_handler = box(b"hdlr", struct.pack(">I4s4s", 0, b"dhlr", b"alis"))
    media = box(b"mdia", box(b"hdlr", struct.pack(">I4s4s", 0, b"mhlr", handler)), box(b"minf", data_handler, tables))
    edits = box(b"edts", box(b"elst", struct.pack(">II", 0, 2), bytes(24)))
    path.write_bytes(box(b"ftyp", b"qt  ", bytes(4)) + box(b"moov", box(b"trak", edits, media)) + bytes(1000))
    return path


def test_plain_sound_may_have_more_samples_than_bytes(tmp_path):
    """As old QuickTime writes it, compressed to less than a byte a sample."""
    assert excess_of(of_one_track(tmp_path / "a.mov", b"soun", step=1, size=1, samples=6_000_000)) is None


@pytest.mark.parametrize(("handler", "step"), [(b"vide", 1), (b"soun", 2), (b"text", 1), (b"dhlr", 1)])
def test_every_other_track_may_not(handler, step, tmp_path):
    path = of_one_track(tmp_path / "a.mov", handler, step, size=1, samples=6_000_000)
    assert "stsz announces 6000000 entries" in str(excess_of(path))


def test_a_fork_frees_nothing_that_has_threads_of_its_parent():
    frame = av.VideoFrame.from_ndarray(np.zeros((480, 640, 3), np.uint8), format="rgb24")
    frame.reformat(320, 240, "yuv420p")
    circle: list[object] = [frame]
    circle.append(circle)
    del frame, circle

    child = os.fork()
    if child == 0:
        signal.alarm(20)  # what waits for a thread that is not there waits for ever
        gc.collect()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
