"""One truth about length: that of the packets, to the real end, whatever headers and the clocks of parts say."""

import io
import struct
from pathlib import Path

import av
import pytest
import torch
from edited_files import box
from rich.console import Console
from tiny_videos import level, write_data_set, write_video

from emcl_train.data import decoding, video
from emcl_train.data.container import check_packets, probe
from emcl_train.data.video import FrameRequest, VideoError, decode_frames
from emcl_train.tools.compress import Settings, compress_video
from emcl_train.tools.doctor import run_doctor

HOURS = 2 * 3600 * 25
"""In frames of a film with 25 a second."""
PRECISE = {"qmin": "1", "qmax": "1"}
FORMATS = {"ts": ("libx264", {"bf": "2"}), "mts": ("libx264", {"bf": "0"}), "mpg": ("mpeg2video", PRECISE)}


def sampled(path: Path, num_frames: int, sampling: str = "uniform", **settings) -> list[int]:
    frames, mask = decode_frames(FrameRequest(path, num_frames, 16, sampling, **settings))
    return [level(frame) for frame in frames[mask]]


@pytest.fixture(params=["decoded", "entered"])
def way(request, monkeypatch) -> str:
    """Both ways to the frames of a clip."""
    if request.param == "entered":
        monkeypatch.setattr(video, "SEEK_FROM", 0.0)
        monkeypatch.setattr(video, "_choose_by_decoding", None)
    return request.param


def part(path: Path, suffix: str, levels: range, **settings) -> bytes:
    codec, options = FORMATS[suffix]
    name = path / f"part-{levels.start}.{'ts' if suffix == 'mts' else suffix}"
    write_video(name, levels, codec=codec, rate=25, options={"g": "10"} | options, **settings)
    return name.read_bytes()


def joined(path: Path, suffix: str, *parts: bytes) -> Path:
    film = path / f"film.{suffix}"
    film.write_bytes(b"".join(parts))
    return film


def real_seconds(path: Path) -> float:
    """The frames that FFmpeg decodes, at 25 a second."""
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0)) / 25


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("later", [0, HOURS, -1])
def test_parts_that_were_joined_are_sampled_one_after_the_other(tmp_path, suffix, later, way):
    """Each part has a clock of its own, which begins at 0, hours later, or earlier than the one before."""
    clocks = [range(HOURS, HOURS + 23), range(23)] if later < 0 else [range(23), range(later, later + 23)]
    parts = [part(tmp_path, suffix, range(23 * n, 23 * n + 23), times=clock) for n, clock in enumerate(clocks)]
    path = joined(tmp_path, suffix, *parts)
    timeline = check_packets(path)
    assert timeline.parts == 2
    assert timeline.seconds == pytest.approx(real_seconds(path), abs=0.1)

    found = sampled(path, 8)
    expected = [2, 8, 14, 20, 25, 31, 37, 43]
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= 2
    first, second = sampled(path, 9, "1fps")
    assert first == 0
    assert abs(second - 25) <= 2
    assert abs(sampled(path, 1, start=1.5, end=1.6)[0] - 38) <= 2
    compress_video(path, tmp_path / "copy.mp4", Settings(5.0, 16))
    assert probe(tmp_path / "copy.mp4").duration == pytest.approx(1.8, abs=0.21)


def test_many_short_parts_are_sampled_to_the_end(tmp_path, way):
    path = joined(tmp_path, "ts", *(part(tmp_path, "ts", range(10 * n, 10 * n + 10)) for n in range(4)))
    assert check_packets(path).parts == 4
    assert sampled(path, 4) == [5, 15, 25, 35]


@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "libx264"), ("webm", "libvpx"), ("flv", "flv")])
def test_parts_of_other_formats_that_were_joined_are_sampled_to_the_end(tmp_path, suffix, codec, way):
    """A recording of a browser that was paused, or files put together with cat."""
    options = {"libx264": {"bf": "2"}, "libvpx": {"crf": "4"}, "flv": PRECISE}[codec]
    films = [
        write_video(
            tmp_path / f"{n}.{suffix}", range(20 * n, 20 * n + 20), codec=codec, options={"g": "10"} | options
        ).read_bytes()
        for n in range(2)
    ]
    head = 13 if suffix == "flv" else 0  # FLV's own head is there once
    path = joined(tmp_path, suffix, films[0], films[1][head:])
    assert check_packets(path).parts == 2
    assert max(abs(a - b) for a, b in zip(sampled(path, 4), [5, 15, 25, 35], strict=True)) <= 1


def test_no_group_of_joined_parts_is_decoded_twice(tmp_path, monkeypatch):
    path = joined(tmp_path, "ts", *(part(tmp_path, "ts", range(20 * n, 20 * n + 20)) for n in range(2)))
    fed = []
    real = decoding.decode_packet
    monkeypatch.setattr(decoding, "decode_packet", lambda packet: fed.append(packet.pos) or real(packet))
    monkeypatch.setattr(video, "SEEK_FROM", 0.0)
    assert sampled(path, 2) == [10, 30]
    assert len(fed) == len(set(fed)) < 36


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "mov"])
def test_a_frame_that_stays_for_hours_is_sampled_as_it_is_watched(tmp_path, suffix, way):
    times = [*range(20), *range(HOURS, HOURS + 20)]
    path = write_video(tmp_path / f"a.{suffix}", range(40), times=times, rate=25, options={"g": "10", "bf": "0"})
    timeline = check_packets(path)
    assert timeline.parts == 1
    assert timeline.seconds == pytest.approx(2 * 3600 + 0.8, abs=0.05)
    assert timeline.longest_gap == pytest.approx((0.76, 2 * 3600 - 0.76), abs=0.05)
    assert sampled(path, 4) == [19, 19, 19, 19]
    assert sampled(path, 3, "1fps") == [0, 19, 20]
    assert sampled(path, 1, start=7200.4) == [35]


def short_mkv(path: Path) -> None:
    """Matroska: a duration in milliseconds, as a float of 8 bytes."""
    data = bytearray(path.read_bytes())
    place = data.index(b"\x44\x89\x88") + 3
    data[place : place + 8] = struct.pack(">d", 500.0)
    path.write_bytes(data)


def short_mp4(path: Path) -> None:
    """MP4: durations of the film, the track and its media, and no edit list that would make them true."""
    data = bytearray(path.read_bytes())
    for names, place in (
        ((b"moov", b"mvhd"), 24),
        ((b"moov", b"trak", b"tkhd"), 28),
        ((b"moov", b"trak", b"mdia", b"mdhd"), 24),
    ):
        where = box(data, *names) + place
        data[where : where + 4] = struct.pack(">I", 500)
    edits = box(data, b"moov", b"trak", b"edts")
    data[edits + 4 : edits + 8] = b"free"
    path.write_bytes(data)


def short_flv(path: Path) -> None:
    """FLV: a number in its metadata."""
    data = bytearray(path.read_bytes())
    place = data.index(b"duration") + len(b"duration") + 1
    data[place : place + 8] = struct.pack(">d", 0.5)
    path.write_bytes(data)


SHORT = {
    "mkv": (short_mkv, "libx264", {"g": "20", "bf": "0"}),
    "mp4": (short_mp4, "libx264", {"g": "20", "bf": "0"}),
    "flv": (short_flv, "flv", {"g": "20", "qmin": "1", "qmax": "1"}),
}


@pytest.mark.parametrize("suffix", SHORT)
def test_a_film_is_sampled_to_its_end_though_its_header_says_less(tmp_path, suffix, way):
    shorten, codec, options = SHORT[suffix]
    levels = [i // 4 for i in range(160)]
    path = write_video(tmp_path / f"a.{suffix}", levels, codec=codec, options=options)
    expected = sampled(path, 4), sampled(path, 8, "1fps"), sampled(path, 2, start=12.0)
    shorten(path)
    assert (probe(path).duration or 0) < 1
    assert check_packets(path).seconds == pytest.approx(16.0, abs=0.11)
    assert (sampled(path, 4), sampled(path, 8, "1fps"), sampled(path, 2, start=12.0)) == expected
    assert expected[0] == [5, 15, 25, 35]
    with pytest.raises(VideoError, match=r"it ends at 1[56]\.\d\d s, before the span from 20 s on"):
        sampled(path, 2, start=20.0)


def test_the_doctor_says_how_long_films_are_and_which_were_joined(tmp_path):
    root = write_data_set(tmp_path / "set")
    long = write_video(root / "videos" / "video0.mkv", range(40), options={"bf": "0"})
    (root / "videos" / "video0.mp4").unlink()
    short_mkv(long)
    (root / "videos" / "video1.mp4").write_bytes(part(tmp_path, "ts", range(20)) * 2)
    times = [*range(20), *range(HOURS, HOURS + 20)]
    write_video(root / "videos" / "video2.mp4", range(40), times=times, rate=25)
    for deep in (False, True):
        console = Console(file=io.StringIO(), width=300)
        assert run_doctor("msrvtt", root, console=console, deep=deep) == 0
        text = console.file.getvalue()
        row = next(line.split() for line in text.splitlines() if line.split()[:1] == ["train"])
        assert row[-6:] == ["0.4", "s", "0.4", "s", "7200.8", "s"]
        assert "video1: its time stamps begin anew or jump 1 time, as of parts that were joined" in text
        assert "video2: one frame is shown for 7199.2 s, from 0.8 s on; it is sampled as it is watched" in text
        seconds = next(line for line in text.splitlines() if line.split()[:1] == ["video0"])
        assert "4.00" in seconds


@pytest.mark.parametrize("way_there", ["decoded", "entered"])
def test_eight_minutes_cost_no_more_packets_than_decoding_once_through(tmp_path, monkeypatch, way_there):
    """960 pictures in groups of 250, and 64 of them wanted."""
    path = write_video(
        tmp_path / "a.mp4", [i // 24 for i in range(960)], rate=2, size=(32, 32), options={"g": "250", "bf": "2"}
    )
    fed = []
    real = decoding.decode_packet
    monkeypatch.setattr(decoding, "decode_packet", lambda packet: fed.append(packet.pos) or real(packet))
    if way_there == "decoded":
        monkeypatch.setattr(video, "SEEK_FROM", 1e9)
    frames, mask = decode_frames(FrameRequest(path, 64, 16))
    assert mask.all()
    assert [level(frame) for frame in frames] == [int(2 * 480 * (i + 0.5) / 64 + 1e-6) // 24 for i in range(64)]
    assert len(fed) == len(set(fed)) <= 961
    assert torch.equal(frames, decode_frames(FrameRequest(path, 64, 16, whole=True))[0])
