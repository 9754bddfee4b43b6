"""What is watched is what is sampled: turned and mirrored, of the right shape, and of the film in the file."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from edited_files import set_matrix
from tiny_videos import level, write_video
from torch import Tensor

from emcl_train.config import DataConfig
from emcl_train.data.clips import Clip
from emcl_train.data.container import probe
from emcl_train.data.opening import opened
from emcl_train.data.video import FrameRequest, decode_clip, decode_frames
from emcl_train.tools.compress import Settings, compress_video

COLOURS = {(1, 0, 0): "R", (0, 1, 0): "G", (0, 0, 1): "B", (1, 1, 1): "W"}
U, W = 1 << 16, 1 << 30
# Where a step to the right and a step down lead, and what becomes of R G over B W.
MATRICES = {
    "plain": ((1, 0), (0, 1), "RG/BW"),
    "mirrored": ((-1, 0), (0, 1), "GR/WB"),
    "upside down": ((1, 0), (0, -1), "BW/RG"),
    "half a turn": ((-1, 0), (0, -1), "WB/GR"),
    "clockwise": ((0, 1), (-1, 0), "BR/WG"),
    "against the clock": ((0, -1), (1, 0), "GW/RB"),
    "mirrored and clockwise": ((0, 1), (1, 0), "RB/GW"),
    "mirrored and against the clock": ((0, -1), (-1, 0), "WG/BR"),
    "nothing": ((0, 0), (0, 0), "RG/BW"),
}


def corners(image: np.ndarray, _: int) -> None:
    height, width = image.shape[0] // 2, image.shape[1] // 2
    image[:height, :width] = (255, 0, 0)
    image[:height, width:] = (0, 255, 0)
    image[height:, :width] = (0, 0, 255)
    image[height:, width:] = 255


def seen(frame: Tensor) -> str:
    """The colours of the four corners."""

    def colour(pixel: Tensor) -> str:
        return COLOURS.get(tuple(int(value > 128) for value in pixel), "?")

    top, bottom = (colour(frame[:, y, 5]) + colour(frame[:, y, -6]) for y in (5, -6))
    return f"{top}/{bottom}"


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "libx264"), ("mov", "mpeg4")])
def test_pictures_are_turned_and_mirrored_as_players_do(tmp_path: Path, name: str, suffix: str, codec: str) -> None:
    right, down, expected = MATRICES[name]
    path = write_video(tmp_path / f"a.{suffix}", range(3), paint=corners, codec=codec)
    set_matrix(path, [right[0] * U, right[1] * U, 0, down[0] * U, down[1] * U, 0, 64 * U, 48 * U, W])
    frames, _ = decode_frames(FrameRequest(path, 1, 48))
    assert seen(frames[0]) == expected

    # A copy shows the same without a matrix.
    compress_video(path, tmp_path / "copy.mp4", Settings(3.0, 48))
    sideways = bool(right[1])
    assert (probe(tmp_path / "copy.mp4").width, probe(tmp_path / "copy.mp4").height) == (
        (48, 64) if sideways else (64, 48)
    )
    assert seen(decode_frames(FrameRequest(tmp_path / "copy.mp4", 1, 48))[0][0]) == expected


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize(("degrees", "expected"), [(90, "GW/RB"), (-90, "BR/WG"), (180, "WB/GR")])
def test_a_rotation_is_followed_in_every_container(tmp_path: Path, suffix: str, degrees: int, expected: str) -> None:
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.set_display_rotation(degrees)
        image = np.zeros((48, 64, 3), np.uint8)
        corners(image, 0)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    assert seen(decode_frames(FrameRequest(path, 1, 48))[0][0]) == expected


def test_before_pictures_were_turned_alone(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", range(3), paint=corners)
    set_matrix(path, [U, 0, 0, 0, -U, 0, 0, 48 * U, W])
    config = DataConfig(num_frames=1, image_size=48, display="rotated")
    assert seen(decode_clip(Clip("a", path), config)[0][0]) == "RG/BW"


def bands(image: np.ndarray, _: int) -> None:
    """Red, green in the middle, blue: of 64 columns the middle has 24."""
    image[:, :20] = (255, 0, 0)
    image[:, 20:44] = (0, 255, 0)
    image[:, 44:] = (0, 0, 255)


def share_of_green(frame: Tensor) -> float:
    return ((frame[1] > 128) & (frame[0] < 128)).float().mean().item()


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("mkv", "mpeg4"), ("ts", "libx264")]
)
@pytest.mark.parametrize("turned", [False, True])
def test_pixels_that_are_not_square_are_shown_as_they_are(tmp_path: Path, suffix: str, codec: str, turned: bool):
    if turned and suffix != "mp4":
        pytest.skip("the matrix is written into MP4")
    # 64×48 pixels, each twice as wide as high, are a picture of 128×48, whose middle 48 are the middle 24 as stored.
    path = write_video(tmp_path / f"a.{suffix}", range(12), paint=bands, codec=codec, aspect=Fraction(2), rate=25)
    if turned:
        set_matrix(path, [0, U, 0, -U, 0, 0, 48 * U, 0, W])
    frames, _ = decode_frames(FrameRequest(path, 1, 48))
    assert share_of_green(frames[0]) > 0.93
    assert share_of_green(decode_frames(FrameRequest(path, 1, 48, display="rotated"))[0][0]) < 0.6

    compress_video(path, tmp_path / "copy.mp4", Settings(3.0, 24))
    info = probe(tmp_path / "copy.mp4")
    assert (info.width, info.height) == ((24, 64) if turned else (64, 24))
    assert share_of_green(decode_frames(FrameRequest(tmp_path / "copy.mp4", 1, 48))[0][0]) > 0.9


@pytest.mark.parametrize("aspect", [Fraction(16, 15), Fraction(8, 9), Fraction(1, 2), Fraction(4, 3)])
def test_a_circle_stays_a_circle(tmp_path: Path, aspect: Fraction) -> None:
    def circle(image: np.ndarray, _: int) -> None:
        y, x = np.mgrid[:96, :128] + 0.5
        inside = ((x - 64) * float(aspect)) ** 2 + (y - 48) ** 2 < 20**2
        image[:] = np.where(inside[..., None], 255, 0)

    path = write_video(tmp_path / "a.mp4", range(2), size=(128, 96), paint=circle, aspect=aspect)
    bright = decode_frames(FrameRequest(path, 1, 64))[0][0].float().mean(dim=0) > 128
    across = bright.any(dim=0).sum().item()
    down = bright.any(dim=1).sum().item()
    assert abs(across - down) <= 1


def two_streams(path: Path, *streams: tuple[int, tuple[int, int], int, int], default: int | None = None) -> Path:
    """For each stream: its first brightness, the size of its pictures, how many there are, and how far apart."""
    with av.open(str(path), "w") as container:
        made = []
        for first, size, number, apart in streams:
            stream = container.add_stream("libx264", rate=10, options={"crf": "1", "preset": "ultrafast", "bf": "0"})
            stream.width, stream.height = size
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = Fraction(1, 10)
            made.append((stream, first, size, number, apart))
        if default is not None:
            for i, (stream, *_) in enumerate(made):
                stream.disposition = Disposition.default if i == default else Disposition(0)
        for stream, first, size, number, apart in made:
            for i in range(number):
                image = np.full((size[1], size[0], 3), 20 + 5 * (first + i), np.uint8)
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = apart * i, Fraction(1, 10)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path


FILM = (0, (96, 64), 20, 1)
PREVIEWS = {
    "a large still": (30, (192, 128), 1, 1),
    "thumbnails": (30, (96, 64), 2, 10),
    "a small copy": (25, (48, 32), 20, 1),
    "a short trailer": (30, (96, 64), 6, 1),
}


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
@pytest.mark.parametrize("preview", PREVIEWS)
def test_of_several_streams_the_film_is_sampled(tmp_path: Path, suffix: str, preview: str) -> None:
    for name, streams in (("first", (PREVIEWS[preview], FILM)), ("last", (FILM, PREVIEWS[preview]))):
        path = two_streams(tmp_path / f"{name}.{suffix}", *streams)
        frames, mask = decode_frames(FrameRequest(path, 4, 16))
        assert [level(frame) for frame in frames[mask]] == [2, 7, 12, 17]
        assert (probe(path).width, probe(path).height) == (96, 64)
        compress_video(path, tmp_path / "copy.mp4", Settings(10.0, 32))
        assert level(decode_frames(FrameRequest(tmp_path / "copy.mp4", 20, 16))[0][13]) == 13

    # Runs made before took the first stream.
    before, mask = decode_frames(FrameRequest(tmp_path / f"first.{suffix}", 1, 16, display="rotated"))
    assert level(before[0]) >= 25


@pytest.mark.parametrize("default", [0, 1])
def test_of_two_films_the_default_is_sampled(tmp_path: Path, default: int) -> None:
    path = two_streams(tmp_path / "a.mkv", (0, (64, 48), 10, 1), (20, (64, 48), 10, 1), default=default)
    assert level(decode_frames(FrameRequest(path, 1, 16))[0][0]) == 5 + 20 * default


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
def test_one_picture_however_large_is_no_film(tmp_path: Path, suffix: str) -> None:
    still = (30, (960, 640), 1, 1)
    for name, streams in (("first", (still, FILM)), ("last", (FILM, still))):
        path = two_streams(tmp_path / f"{name}.{suffix}", *streams)
        assert level(decode_frames(FrameRequest(path, 4, 16))[0][0]) == 2
    assert level(decode_frames(FrameRequest(two_streams(tmp_path / f"one.{suffix}", still), 1, 16))[0][0]) == 30


@pytest.mark.parametrize("default", [0, 1])
def test_the_default_goes_before_what_is_larger(tmp_path: Path, default: int) -> None:
    streams = [(20, (192, 128), 10, 1), (20, (192, 128), 10, 1)]
    streams[default] = (0, (48, 32), 10, 1)
    path = two_streams(tmp_path / "a.mkv", *streams, default=default)
    assert level(decode_frames(FrameRequest(path, 1, 16))[0][0]) == 5
    compress_video(path, tmp_path / "copy.mp4", Settings(10.0, 32))
    assert level(decode_frames(FrameRequest(tmp_path / "copy.mp4", 1, 16))[0][0]) == 5


def test_streams_are_counted_under_the_limit_that_was_asked_for(tmp_path, monkeypatch):
    asked = []

    def seen(path, max_pixels):
        asked.append(max_pixels)
        return opened(path, max_pixels)

    path = two_streams(tmp_path / "a.mkv", (0, (64, 48), 4, 1), (9, (64, 48), 4, 1))
    monkeypatch.setattr("emcl_train.data.streams.opened", seen)
    probe(path, 12345678)
    assert asked == [12345678]
