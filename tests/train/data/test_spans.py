"""Several spans of one film: the frames that each would give by itself, from one pass over the file."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_videos import write_video

from emcl_train.data.container import VideoError
from emcl_train.data.picture import square
from emcl_train.data.video import FrameRequest, decode_frames, pictures_of_spans

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "real_videos" / "videos"


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """Eight seconds with a keyframe every second."""
    folder = tmp_path_factory.mktemp("film")
    return write_video(folder / "film.mp4", range(40), rate=5, noise=True, options={"g": "5"})


def each_by_itself(request: FrameRequest, spans: list[tuple[float, float]]) -> list[torch.Tensor]:
    found = []
    for start, end in spans:
        frames, mask = decode_frames(replace(request, start=start, end=end))
        found.append(frames[mask])
    return found


def together(request: FrameRequest, spans: list[tuple[float, float]]) -> list[torch.Tensor]:
    found = []
    for place, (span, pictures) in enumerate(pictures_of_spans(request, lambda seconds: spans)):
        assert span == spans[place]
        found.append(torch.stack([square(picture, request.image_size, request.resize) for picture in pictures]))
    return found


@pytest.mark.parametrize("sampling", ["uniform", "1fps", "2.5fps"])
@pytest.mark.parametrize(
    "spans",
    [
        [(0.0, 8.0)],
        [(0.0, 2.0), (2.0, 4.0), (4.0, 6.0), (6.0, 8.0)],
        [(0.0, 0.1), (0.1, 0.3), (0.3, 0.9), (5.0, 5.5)],
        [(6.5, 8.0)],
    ],
)
def test_each_span_has_the_frames_that_it_has_alone(
    film: Path, sampling: str, spans: list[tuple[float, float]]
) -> None:
    request = FrameRequest(film, 3, 16, sampling)
    for own, alone in zip(together(request, spans), each_by_itself(request, spans), strict=True):
        assert torch.equal(own, alone)


def test_who_cuts_is_told_the_seconds(film: Path) -> None:
    told = []

    def cut(seconds: float) -> list[tuple[float, float]]:
        told.append(seconds)
        return [(0.0, seconds)]

    assert len(list(pictures_of_spans(FrameRequest(film, 2, 16), cut))) == 1
    assert told == [pytest.approx(8.0)]


def test_a_file_that_is_no_film_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "no.mp4"
    path.write_bytes(b"nothing" * 100)
    with pytest.raises(VideoError):
        list(pictures_of_spans(FrameRequest(path, 2, 16), lambda seconds: [(0.0, seconds)]))


@pytest.mark.skipif(not REAL.is_dir(), reason="the real videos are not here")
@pytest.mark.parametrize("name", ["video3.mp4", "video11.avi", "video13.mkv", "video17.avi"])
def test_real_films(name: str) -> None:
    request = FrameRequest(REAL / name, 2, 32, "1fps")
    spans = [(0.0, 1.0), (1.0, 2.0), (2.5, 3.0)]
    for own, alone in zip(together(request, spans), each_by_itself(request, spans), strict=True):
        assert torch.equal(own, alone)
