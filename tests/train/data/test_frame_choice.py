"""Which frame stands for a second: the one on display then, or the nearest one, as those who count frames take it."""

from fractions import Fraction
from pathlib import Path

import pytest
from tiny_layouts import WRITERS
from tiny_videos import level, write_video

from emcl_train.config import DataConfig
from emcl_train.data import video
from emcl_train.data.annotations import read_annotations
from emcl_train.data.clips import Clip
from emcl_train.data.provenance import changes, provenance
from emcl_train.data.video import FrameRequest, decode_clip, decode_frames, sampler_version
from emcl_train.recipes import load_recipe

FILM = Fraction(24000, 1001)
TELEVISION = Fraction(30000, 1001)


@pytest.fixture(params=[60.0, 0.0], ids=["decoded", "entered"], autouse=True)
def way(request, monkeypatch) -> None:
    monkeypatch.setattr(video, "SEEK_FROM", request.param)


def numbers(path: Path, choice: str, num_frames: int = 64, sampling: str = "1fps", **span: float) -> list[int]:
    """Of each frame that is taken, its number among those of a second, for which it is as bright."""
    frames, mask = decode_frames(FrameRequest(path, num_frames, 16, sampling, choice=choice, **span))
    return [level(frame) for frame in frames[mask]]


def film(path: Path, rate: Fraction | int, seconds: int) -> Path:
    """Frame n of a second, as those count who take the rate for a whole number, has brightness n."""
    whole = round(rate)
    return write_video(path, [i % whole for i in range(whole * seconds + 2)], rate=rate, options={"g": "48"})


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
@pytest.mark.parametrize("rate", [FILM, TELEVISION])
def test_at_rates_a_little_below_whole_ones_they_differ_by_one_frame(tmp_path, rate, suffix) -> None:
    path = film(tmp_path / f"a.{suffix}", rate, 4)
    # Frame 24·n begins a moment after second n, at 1.001·n seconds.
    assert numbers(path, "shown") == [0, *[round(rate) - 1] * 4]
    assert numbers(path, "nearest") == [0] * 5


def test_behind_half_a_frame_of_delay_those_who_count_are_on_their_own(tmp_path) -> None:
    path = film(tmp_path / "a.mp4", FILM, 23)
    assert numbers(path, "nearest") == [*[0] * 21, 23, 23, 23]


@pytest.mark.parametrize("rate", [10, 24, 25, 30])
def test_at_whole_rates_they_are_the_same(tmp_path, rate) -> None:
    path = film(tmp_path / "a.mp4", rate, 3)
    assert numbers(path, "shown") == numbers(path, "nearest") == [0] * 4


def test_at_a_rate_a_little_above_a_whole_one_the_last_second_counts_if_a_frame_is_near(tmp_path) -> None:
    # At 30.1 a second frame 30·n begins at 0.9967·n seconds; the film has frames up to number 90.
    rate = Fraction(301, 10)
    path = write_video(tmp_path / "a.mkv", [i % 30 for i in range(91)], rate=rate)
    assert numbers(path, "shown") == [0, 0, 0]
    assert numbers(path, "nearest") == [0, 0, 0, 0]


def test_the_nearest_frame_of_a_span_lies_in_it_and_of_two_the_earlier_is_taken(tmp_path) -> None:
    path = write_video(tmp_path / "a.mp4", range(40))
    assert numbers(path, "nearest", start=0.96) == [10, 20, 30]
    assert numbers(path, "nearest", 1, "uniform", start=1.0, end=1.1) == [10]
    assert numbers(path, "nearest", 2, "uniform", start=1.0, end=1.36) == [11, 13]
    assert numbers(path, "nearest", 7, "uniform", start=1.0, end=1.3) == [10, 11, 12]


def test_a_configuration_chooses_and_the_record_says_so(tmp_path) -> None:
    path = film(tmp_path / "a.mp4", FILM, 2)
    config = DataConfig(root=tmp_path, num_frames=3, image_size=16, frame_sampling="1fps")
    nearest = DataConfig(root=tmp_path, num_frames=3, image_size=16, frame_sampling="1fps", frame_choice="nearest")
    assert [level(frame) for frame in decode_clip(Clip("a", path), config)[0]] == [0, 23, 23]
    assert [level(frame) for frame in decode_clip(Clip("a", path), nearest)[0]] == [0, 0, 0]

    assert provenance(nearest)["pictures"]["frame_choice"] == "nearest"
    (said,) = changes(provenance(config), provenance(nearest))
    assert "frame_choice shown" in said.partition(", now ")[0]
    assert "frame_choice nearest" in said.partition(", now ")[2]
    before = DataConfig(resize="rounded", display="rotated", frame_choice="nearest")
    assert sampler_version(before) == video.VIDEO_SAMPLER_VERSION


@pytest.mark.parametrize(("span", "frames"), [("released", 32), ("first-30s", 30)])
def test_of_didemo_the_span_is_taken_that_is_named(tmp_path, span, frames) -> None:
    root = tmp_path / "set"
    WRITERS["didemo"](root)
    config = load_recipe("didemo").data
    assert config.didemo_span == "released"
    config.root, config.didemo_span, config.image_size = root, span, 16
    clip = read_annotations(config).test.clips[0]
    write_video(clip.path, range(40), rate=1)
    pictures, mask = decode_clip(clip, config)
    assert [level(picture) for picture in pictures[mask]] == list(range(frames))
