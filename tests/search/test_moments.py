"""Films into moments, and the small picture of each."""

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_videos import write_video

from emcl_train.data.picture import Picture
from emcl_train.errors import UserError
from emcl_train.search import moments
from emcl_train.search.moments import Cutting, choose, pieces, shots
from emcl_train.search.thumbnails import HEIGHT, thumbnail_of


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.04, [(0.0, 0.04)]),
        (4.0, [(0.0, 4.0)]),
        (5.9, [(0.0, 5.9)]),
        (6.0, [(0.0, 4.0), (4.0, 6.0)]),
        (8.0, [(0.0, 4.0), (4.0, 8.0)]),
        (9.5, [(0.0, 4.0), (4.0, 9.5)]),
    ],
)
def test_pieces_cover_a_film_and_none_is_shorter_than_half(seconds: float, expected: list[tuple[float, float]]) -> None:
    assert pieces(seconds, 4.0) == expected


@pytest.mark.parametrize("seconds", [0.5, 7.0, 59.9, 3600.0])
@pytest.mark.parametrize("cuts", [[], [0.2], [3.0, 3.5, 50.0], [0.0, 1e9]])
def test_shots_cover_a_film_without_gaps_and_none_is_too_long(seconds: float, cuts: list[float]) -> None:
    found = shots(cuts, seconds, longest=12.0)
    assert found[0][0] == 0.0
    assert found[-1][1] == seconds
    assert all(before[1] == after[0] for before, after in itertools.pairwise(found))
    assert all(0 < end - start <= 12.0 + 1e-9 for start, end in found)
    edges = {start for start, _ in found}
    assert all(cut in edges for cut in cuts if 0 < cut < seconds)


def test_a_cut_is_found_where_the_picture_changes(tmp_path: Path) -> None:
    pytest.importorskip("scenedetect")

    def paint(image: np.ndarray, number: int) -> None:
        image[:] = (200, 30, 30) if number < 25 else (30, 30, 200)
        image[number % 40, :] = 255

    path = write_video(tmp_path / "two.mp4", [0] * 60, rate=10, paint=paint)
    cutting = choose("shots")
    assert "PySceneDetect" in cutting.said()
    assert [start for start, _ in cutting.spans(path)(6.0)] == [0.0, pytest.approx(2.5)]


def test_without_pyscenedetect_films_are_cut_into_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "find_spec", lambda name: None)
    assert choose("auto").way == "pieces"
    with pytest.raises(UserError, match=r"scenedetect-headless, which finds shots, is not installed; .* --cut pieces"):
        choose("shots")


@pytest.mark.parametrize("piece", [0.0, -1.0, float("nan"), float("inf")])
def test_pieces_of_no_length_are_refused(piece: float) -> None:
    with pytest.raises(UserError, match=r"piece is .* expected 0\.1 s or more"):
        choose("pieces", piece)


def test_a_cutting_comes_back_from_json() -> None:
    cutting = Cutting("pieces", 2.5)
    assert Cutting(**cutting.as_json()) == cutting
    assert cutting.said() == "pieces of 2.5 s"


def picture(level: int, *, lively: bool = False) -> Picture:
    pixels = np.full((90, 160, 3), level, dtype=np.uint8)
    if lively:
        pixels[:45] = 255 - level
    return Picture(pixels, 90, 160)


def brightness(data: bytes) -> float:
    return float(np.asarray(Image.open(io.BytesIO(data))).mean())


def test_a_thumbnail_is_not_the_black_frame() -> None:
    data = thumbnail_of([picture(0), picture(0), picture(40, lively=True)])
    assert Image.open(io.BytesIO(data)).format == "WEBP"
    assert brightness(data) > 60


def test_of_lively_pictures_the_middle_one_is_taken() -> None:
    data = thumbnail_of([picture(10, lively=True), picture(100, lively=True), picture(250, lively=True)])
    top = np.asarray(Image.open(io.BytesIO(data)))[:20].mean()
    assert top == pytest.approx(155, abs=6)


def test_a_black_moment_has_a_thumbnail_too() -> None:
    assert brightness(thumbnail_of([picture(0)])) < 5


@pytest.mark.parametrize(("height", "width"), [(2000, 100), (100, 4000), (1, 1), (1080, 1920)])
def test_a_thumbnail_is_small_and_keeps_its_shape(height: int, width: int) -> None:
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    found = Image.open(io.BytesIO(thumbnail_of([Picture(pixels, height, width)])))
    assert found.height <= HEIGHT
    assert found.width <= 2 * HEIGHT
