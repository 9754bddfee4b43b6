"""A file that lacks parts says so, even where those that are left decode; and one that is only odd is read."""

import inspect
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import pytest
from tiny_videos import add_silence, level, write_video

from emcl_train.data.container import VideoError, check_packets
from emcl_train.data.decoding import demuxed
from emcl_train.data.video import FrameRequest, decode_frames

# Without the check of types, which takes no stand-in for a container.
unchecked_demuxed = inspect.unwrap(demuxed)

FRAGMENTS = "frag_keyframe+empty_moov"


def looks() -> tuple[Callable[[Path], object], ...]:
    return check_packets, lambda path: decode_frames(FrameRequest(path, 4, 16))


def packets_of(path: Path) -> list[tuple[int, int]]:
    with av.open(str(path)) as container:
        return sorted((packet.pos, packet.size) for packet in container.demux(video=0) if packet.size)


def with_silence(path: Path, sound: str, container_options: dict[str, str] | None = None, *, rate: int = 10) -> Path:
    """Thirty pictures, and silence beside them."""
    picture = write_video(path.with_suffix(".nut"), range(30), rate=rate, options={"g": "10", "bf": "0"})
    return add_silence(picture, path, sound, 30 / rate, container_options)


@pytest.mark.parametrize(("first", "last"), [(11, 13), (12, 18), (24, 30)])
@pytest.mark.parametrize(("suffix", "codec"), [
    ("mkv", "libx264"), ("mkv", "mpeg4"), ("webm", "libvpx"), ("avi", "mpeg4"), ("avi", "mjpeg"), ("wmv", "wmv2")
])  # fmt: skip
def test_zeros_in_place_of_packets_are_damage(tmp_path: Path, suffix: str, codec: str, first: int, last: int) -> None:
    options = {"crf": "10"} if codec == "libvpx" else {"g": "10", "bf": "0"}
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write_video(tmp_path / f"a.{suffix}", range(30), noise=True, codec=codec, options=options, pix_fmt=pixels)
    check_packets(path)

    # Half of the first packet too, so that its end cannot be known by its bytes.
    packets = packets_of(path)
    data = bytearray(path.read_bytes())
    start = packets[first][0] + packets[first][1] // 2
    end = len(data) if last == 30 else packets[last][0] + packets[last][1] // 2
    data[start:end] = bytes(end - start)
    path.write_bytes(data)
    for look in looks():
        with pytest.raises(VideoError, match=r"truncated|damaged|missing"):
            look(path)


@pytest.mark.parametrize("suffix", ["mkv", "webm"])
@pytest.mark.parametrize("seconds", [2, 30])
def test_a_picture_that_stays_is_no_hole(tmp_path: Path, suffix: str, seconds: int) -> None:
    """Screen recordings store a frame where something changes."""
    codec = "libx264" if suffix == "mkv" else "libvpx"
    times = [i + 10 * seconds * (i >= 8) + 10 * seconds * (i >= 12) for i in range(16)]
    path = write_video(tmp_path / f"a.{suffix}", range(16), times=times, codec=codec, options={"crf": "10"})
    assert check_packets(path).times == pytest.approx([time / 10 for time in times], abs=2e-3)


@pytest.mark.parametrize("sound", [False, True])
@pytest.mark.parametrize("flags", [FRAGMENTS, FRAGMENTS + "+default_base_moof", "faststart"])
def test_an_mp4_that_is_cut_anywhere_within_a_box_is_truncated(tmp_path: Path, flags: str, sound: bool) -> None:
    options = {"movflags": flags}
    path = tmp_path / "a.mp4"
    if sound:
        with_silence(path, "aac", options)
    else:
        write_video(path, range(30), options={"g": "10"}, container_options=options)
    check_packets(path)

    data = path.read_bytes()
    boxes = []
    place = 0
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        boxes.append((data[place + 4 : place + 8], place, length))
        place += length
    of_pictures = [(place, length) for name, place, length in boxes if name in (b"moof", b"mdat")]
    for place, length in of_pictures:
        for end in (place + 4, place + length // 2, place + length - 1):
            path.write_bytes(data[:end])
            with pytest.raises(VideoError):
                check_packets(path)

    # What is lost behind the pictures is no loss of pictures.
    last, length = of_pictures[-1]
    path.write_bytes(data[: last + length])
    check_packets(path)


@pytest.mark.parametrize("share", [0.3, 0.55, 0.8, 0.95])
@pytest.mark.parametrize("noise", [False, True])
def test_a_wmv_that_is_cut_off_is_truncated(tmp_path: Path, share: float, noise: bool) -> None:
    path = write_video(tmp_path / "a.wmv", range(40), noise=noise, codec="wmv2", options={"g": "10"})
    check_packets(path)
    data = path.read_bytes()
    start = packets_of(path)[0][0]
    path.write_bytes(data[: start + int((len(data) - start) * share)] if noise else data[: int(len(data) * share)])
    for look in looks():
        with pytest.raises(VideoError):
            look(path)


def test_a_wmv_that_was_broadcast_is_as_long_as_it_is(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.wmv", range(40), noise=True, codec="wmv2", options={"g": "10"})
    data = bytearray(path.read_bytes())
    place = data.index(bytes.fromhex("A1DCAB8C47A9CF118EE400C00C205365"))
    data[place + 56 : place + 64] = struct.pack("<Q", 1 << 40)  # packets, which such a header does not know
    path.write_bytes(data)
    with pytest.raises(VideoError, match="truncated"):
        check_packets(path)
    data[place + 88] |= 1
    path.write_bytes(data)
    check_packets(path)


@pytest.mark.parametrize("title", [b"\xe9\xff\xe8\xfe", b"\x80\x81\x82\x83"])
@pytest.mark.parametrize(("suffix", "codec"), [("avi", "mpeg4"), ("mkv", "libx264"), ("mp4", "libx264")])
def test_a_title_in_any_encoding_is_no_error(tmp_path: Path, suffix: str, codec: str, title: bytes) -> None:
    path = write_video(tmp_path / f"a.{suffix}", range(20), codec=codec, options={"bf": "0"})
    data = path.read_bytes()
    assert b"Lavf" in data
    path.write_bytes(data.replace(b"Lavf", title))
    assert len(check_packets(path).times) == 20
    frames, _ = decode_frames(FrameRequest(path, 2, 16))
    assert [level(frame) for frame in frames] == [5, 15]


@pytest.mark.parametrize("error", [IndexError("list index out of range"), ValueError("something else")])
def test_an_end_that_trips_over_a_stream_that_came_late_is_an_end(error: Exception) -> None:
    """As in recordings of broadcasts; whether PyAV does depends on what lies behind its list of streams in memory."""

    class Recording:
        def demux(self, *streams: str) -> Iterator[str]:
            yield from streams
            raise error

    packets = unchecked_demuxed(Recording(), ["first", "second"])
    assert [next(packets), next(packets)] == ["first", "second"]
    if isinstance(error, IndexError):
        assert list(packets) == []
    else:
        with pytest.raises(ValueError, match="something else"):
            next(packets)
