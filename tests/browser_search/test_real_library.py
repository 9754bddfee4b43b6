"""The page of a library that index has made, in a real browser: cards and player show the same, and it is followed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from seen_page import SeenPage
from served_library import Client, serving
from small_library import make, small_clip, write_films
from test_serving import TURNED, turn, write_halves

from emcl_train import Library

CORNERS = """
(element) => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 2;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(element, 0, 0, 2, 2);
  const { data } = context.getImageData(0, 0, 2, 2);
  return [0, 4, 8, 12].map((place) => (data[place] > data[place + 2] ? "red" : "blue"));
}
"""
"""The colours of the four quarters of a picture or a film, row by row."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    write_films(folder / "films", {"a.mp4": 24})
    for name in TURNED:
        source = write_halves(folder / "source.mp4", codec="mpeg4" if "mpeg4" in name else "libx264")
        turn(source, folder / "films" / name, 90)
    small_clip(folder)
    make(folder, refine=True)
    return folder


@pytest.fixture(scope="module")
def client(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with serving(Library(place / "library"), tmp_path_factory.mktemp("parts")) as one:
        yield one


@pytest.mark.parametrize("name", list(TURNED))
def test_a_film_on_its_side_is_upright_on_its_card_and_in_the_player(browser, client, place, name):
    moment = Library(place / "library").like(place / "films" / name, 1.0, 1, refine=False)[0].id
    page = SeenPage(browser, client.port, f"/?q=a+thing&play={moment}")
    try:
        page.settled()
        page.until("document.querySelector('video').readyState >= 2")
        assert (page.video("videoWidth"), page.video("videoHeight")) == (48, 64)
        card = page.page.locator(f"#lists .card[data-id='{moment}'] img")
        card.scroll_into_view_if_needed()
        page.until(lambda: card.evaluate("(image) => image.complete && image.naturalWidth > 0"))
        assert card.evaluate("(image) => [image.naturalWidth, image.naturalHeight]") == [48, 64]
        assert page.page.locator("video").evaluate(CORNERS) == card.evaluate(CORNERS) == ["blue", "blue", "red", "red"]
        assert page.errors == []
        assert page.elsewhere == []
    finally:
        page.close()


def test_a_film_that_has_come_since_is_found_by_the_page_that_is_open(browser, client, place):
    page = SeenPage(browser, client.port, "/?q=a+thing&ranking=plain")
    try:
        page.settled()
        assert "new.mp4" not in page.files()
        write_films(place / "films", {"new.mp4": 24}, first=20)
        make(place)
        page.until(lambda: (page.search("a"), page.search("a thing"), "new.mp4" in page.files())[-1])
        assert page.errors == []
    finally:
        page.close()
