"""The page of a library in a real browser: searches as one types, plays a moment at its second, by keyboard alone."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from seen_page import SeenPage
from served_library import HOSTILE_NAME, Client, StandIn, level_at, serving, write_film, write_folder

WIDE, NARROW = 1280, 360


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> StandIn:
    root = write_folder(tmp_path_factory.mktemp("films"))
    for number in range(12):
        write_film(root / f"blue square {number}.mp4", seconds=4.0)
    return StandIn(root)


@pytest.fixture(scope="module")
def client(library, tmp_path_factory) -> Iterator[Client]:
    with serving(library, tmp_path_factory.mktemp("parts")) as one:
        yield one


@pytest.fixture
def seen(browser, client) -> Iterator[Callable[..., SeenPage]]:
    """Opens the page. At its end it has logged no error, and asked no other host."""
    pages: list[SeenPage] = []

    def open_page(address: str = "/", **how: object) -> SeenPage:
        pages.append(SeenPage(browser, client.port, address, **how))
        return pages[-1]

    yield open_page
    for one in pages:
        one.close()
    for one in pages:
        assert one.errors == []
        assert one.elsewhere == []


def test_results_come_as_one_types_and_the_address_says_what_is_asked(seen, library):
    page = seen()
    page.until("document.activeElement.id === 'query'")
    assert "Describe what is to be seen" in page.page.inner_text("#lists")
    page.page.keyboard.type("red circle", delay=20)
    page.until(lambda: "q=red+circle" in page.address)
    page.until(lambda: page.files()[:1] == ["red circle.mp4"])
    page.until(lambda: page.status() == "22 moments, 3 above the cut-off of 0.300.")
    assert page.files()[:1] == ["red circle.mp4"]
    assert page.page.title() == "red circle – holidays"
    assert page.page.locator("#lists .rule").inner_text().startswith("below the cut-off of 0.300")
    assert page.page.locator("#lists li.below").count() == 19

    again = seen(page.address)
    again.settled()
    assert again.page.input_value("#query") == "red circle"
    assert again.files() == page.files()


def test_what_is_typed_before_the_library_is_known_is_searched_for(seen, library, monkeypatch):
    about = dict(library.about)
    monkeypatch.setattr(StandIn, "about", property(lambda _: time.sleep(1.0) or about), raising=False)
    library.__dict__.pop("about")
    try:
        page = seen()
        page.page.keyboard.type("blue square")
        page.until(lambda: page.files()[:1] == ["blue square 0.mp4"])
        assert page.page.input_value("#query") == "blue square"
    finally:
        monkeypatch.undo()
        library.about = about


def test_a_page_that_was_turned_away_begins_with_the_next_search(seen, library, client):
    page = seen()
    page.until(lambda: page.page.inner_text("#facts") != "")
    full = {"status": 503, "json": {"error": "Too many ask at once; come again."}}
    page.page.route("**/api/library*", lambda route: route.fulfill(**full))
    page.page.goto(f"http://127.0.0.1:{client.port}/?q=red")
    page.until(lambda: page.status() == "Too many ask at once; come again.")
    page.page.keyboard.press("/")
    page.page.keyboard.type("blue")
    page.until(lambda: "q=blue" in page.address)
    assert page.files() == []

    page.page.unroute("**/api/library*")
    page.page.keyboard.type(" square")
    page.until(lambda: page.files()[:1] == ["blue square 0.mp4"])
    assert page.page.input_value("#query") == "blue square"
    assert page.page.inner_text("#name") == "holidays"
    assert page.page.locator("#ranking").is_visible()
    assert all("503" in error for error in page.errors)
    page.errors.clear()


def test_an_answer_to_an_earlier_question_is_dropped(seen, library):
    page = seen()
    page.until("document.activeElement.id === 'query'")
    library.pause = 1.0
    try:
        page.page.keyboard.type("red")
        page.until(lambda: "q=red" in page.address)
        library.pause = 0.0
        page.page.locator("#query").fill("blue square")
        page.until(lambda: page.files()[:1] == ["blue square 0.mp4"])
        page.page.wait_for_timeout(1300)
    finally:
        library.pause = 0.0
    assert page.files()[0] == "blue square 0.mp4"


def test_nothing_that_fits_is_said_in_words_and_nothing_is_hidden(seen):
    page = seen()
    page.search("submarine")
    assert page.status().startswith("Nothing here fits: the best score, 0.2")
    assert page.page.locator("#status.nothing").is_visible()
    assert page.page.locator("#lists li.below").count() == 22
    assert page.page.locator("#status").get_attribute("aria-live") == "polite"


@pytest.mark.parametrize("name", ["red circle.mp4", "old camera.avi", "matroska.mkv"])
def test_a_moment_plays_at_its_second_and_stops_at_its_end(seen, library, name):
    page = seen()
    page.search(name.partition(".")[0])
    page.page.locator(f'#lists [data-id="{library.of(name, 1)}"]').click()
    page.until("document.querySelector('video').currentTime > 0 && document.querySelector('video').readyState >= 2")
    way = {".avi": "transcoded: browsers do not play mpeg4", ".mkv": "remuxed: browsers play h264, but not in"}
    assert page.page.inner_text("#how").startswith(way.get(Path(name).suffix, ""))
    assert f"play={library.of(name, 1)}" in page.address
    begin = page.page.evaluate(
        "fetch('/api/playing?id=' + new URLSearchParams(location.search).get('play'))"
        ".then((answer) => answer.json()).then((told) => told.begin)"
    )
    assert begin + page.video("currentTime") >= 4.0 - 0.01

    # What is seen is what the film has at this second: by its brightness.
    page.until("document.querySelector('video').paused")
    second = begin + page.video("currentTime")
    assert second == pytest.approx(8.0, abs=0.15)
    assert page.level() in (level_at(second), level_at(second - 0.1), level_at(second + 0.1))
    assert "its end" in page.page.inner_text("#said")

    # Play on goes past the end; the moment can be played again.
    page.page.locator("#on").click()
    page.until(f"{begin} + document.querySelector('video').currentTime > 8.3")
    page.page.locator("#again").click()
    page.until(f"{begin} + document.querySelector('video').currentTime < 7")
    page.until("document.querySelector('video').paused")
    assert begin + page.video("currentTime") == pytest.approx(8.0, abs=0.15)


FRAMES = """
() => {
  const [video, waiting] = [document.querySelector("video"), new Set()];
  const [request, cancel] = [requestAnimationFrame.bind(window), cancelAnimationFrame.bind(window)];
  window.requestAnimationFrame = (call) => {
    const number = request((time) => { waiting.delete(number); call(time); });
    waiting.add(number);
    return number;
  };
  window.cancelAnimationFrame = (number) => { waiting.delete(number); cancel(number); };
  Object.defineProperty(document, "hidden", { get: () => true });
  Object.defineProperty(video, "paused", { get: () => false });
  for (let n = 0; n < 20; n++) video.dispatchEvent(new Event(n % 2 ? "timeupdate" : "play"));
  return waiting.size;
}
"""
"""How many pictures are waited for by the player of a page that is not seen."""


def test_the_player_waits_for_one_picture_at_a_time(seen, library):
    page = seen(f"/?q=circle&play={library.of('red circle.mp4')}")
    page.until("document.querySelector('#said').textContent.includes('its end')")
    page.page.locator("#on").click()
    assert page.page.evaluate(FRAMES) == 1


REFUSING = """
() => {
  HTMLMediaElement.prototype.play = () => new Promise((_, reject) => {
    window.refuse = (name) => reject(new DOMException("", name));
  });
}
"""


def test_a_film_that_is_opened_is_not_covered_while_the_browser_begins(seen, library):
    page = seen("/?q=circle")
    page.settled()
    page.page.evaluate(REFUSING)
    page.page.locator("#lists .card").first.click()
    page.until("Boolean(window.refuse)")
    page.page.wait_for_timeout(500)  # longer than opening may take before something is said of it
    assert page.page.evaluate("document.querySelector('#cover').hidden")


def test_a_player_that_is_closed_before_it_plays_says_nothing(seen, library):
    page = seen("/?q=circle")
    page.settled()
    page.page.evaluate(REFUSING)
    for name in ("AbortError", "NotAllowedError"):
        page.page.locator("#lists .card").first.click()
        page.until("Boolean(window.refuse)")
        page.page.keyboard.press("Escape")
        page.page.evaluate("(name) => { window.refuse(name); window.refuse = null; }", name)
        page.page.wait_for_timeout(200)
        assert page.page.evaluate("document.querySelector('#cover').hidden")

    # Where the browser lets nothing play by itself, it is said what to do.
    page.page.locator("#lists .card").first.click()
    page.until("Boolean(window.refuse)")
    page.page.evaluate("window.refuse('NotAllowedError')")
    page.until("document.querySelector('#said').textContent.endsWith('press play')")
    page.page.locator("#again").click()
    page.page.keyboard.press("Escape")
    page.page.evaluate("window.refuse('AbortError')")
    page.page.wait_for_timeout(200)
    assert page.errors == []


def test_play_on_at_the_end_of_the_film_says_so_and_begins_nothing_anew(seen, library):
    page = seen(f"/?q=square&play={library.of('blue square 0.mp4')}")
    page.until("document.querySelector('#said').textContent.includes('its end')")
    page.page.locator("#on").click()
    page.until("document.querySelector('video').ended")
    page.page.locator("#on").click()
    assert page.page.inner_text("#said").endswith("the film ends here")
    page.page.wait_for_timeout(200)
    assert page.video("ended")

    page.page.locator("#again").click()
    page.until("!document.querySelector('video').ended")


def test_a_converted_film_goes_on_in_its_next_part(seen, library):
    page = seen(f"/?q=camera&play={library.of('old camera.avi', 0)}")
    page.until("document.querySelector('video').readyState >= 2")
    page.until("document.querySelector('video').paused")
    page.page.locator("#on").click()
    page.until(
        "document.querySelector('video').src.includes('part=1') && document.querySelector('video').currentTime > 0.2"
    )
    page.page.evaluate("document.querySelector('video').pause()")
    page.page.wait_for_timeout(200)
    second = 10 + page.video("currentTime")
    assert page.level() in (level_at(second), level_at(second - 0.1), level_at(second + 0.1))


def test_all_of_it_is_used_by_keyboard_alone(seen, library):
    page = seen()
    press = page.page.keyboard.press
    page.page.locator("#name").click()
    press("/")
    assert page.focused() == "query"
    page.page.keyboard.type("blue square")
    page.until(lambda: page.files()[:1] == ["blue square 0.mp4"])
    press("ArrowDown")
    first = page.focused()
    assert first.startswith("blue square 0.mp4, from 0:00 to 0:04, score 0.4")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.page.evaluate(outline) != "none"
    press("ArrowRight")
    assert page.focused() != first
    right = page.focused()
    press("ArrowDown")
    press("ArrowUp")
    assert page.focused() == right
    press("ArrowLeft")
    assert page.focused() == first
    press("End")
    assert page.focused() != first
    press("Home")
    assert page.focused() == first

    press("Enter")
    page.until("document.querySelector('video').currentTime > 0")
    assert page.page.locator("#player").is_visible()
    assert page.focused() == first
    press("Escape")
    assert page.page.locator("#player").is_hidden()
    assert page.focused() == first
    press("ArrowUp")
    assert page.focused() == "query"

    # More like this, and back.
    press("ArrowDown")
    press("m")
    page.until(lambda: "like=" in page.address)
    page.until(lambda: len(page.files()) == 1)
    page.until(lambda: "Moments like blue square 0.mp4 at 0:00" in page.page.inner_text("#example"))
    press("Escape")
    page.until(lambda: len(page.files()) == 22)
    assert page.focused() == "query"
    press("Escape")
    page.until(lambda: page.address == "/")
    assert page.page.input_value("#query") == ""


def test_the_order_of_tab_is_search_ranking_results_player(seen):
    page = seen("/?q=blue")
    page.settled()
    page.page.locator("#lists .card").first.click()
    page.until("document.querySelector('video').currentTime > 0")
    page.page.locator(".skip").focus()
    reached = []
    for _ in range(24):
        page.page.keyboard.press("Tab")
        reached.append(page.page.evaluate("document.activeElement.className || document.activeElement.id"))
    order = [name for name in reached if name in ("query", "card", "again", "on", "like", "close")]
    assert order[:6] == ["query", "card", "again", "on", "like", "close"]


def test_both_rankings_stand_side_by_side_and_the_choice_is_in_the_address(seen):
    page = seen("/?q=red+circle")
    page.settled()
    page.page.get_by_text("Side by side").click()
    page.until(lambda: "ranking=both" in page.address and page.page.locator("#lists section").count() == 2)
    first, second = page.page.locator("#lists section").all()
    assert (first.locator("h2").inner_text(), second.locator("h2").inner_text()) == ("Refined", "Plain")
    assert first.bounding_box()["y"] == second.bounding_box()["y"]
    assert first.bounding_box()["x"] < second.bounding_box()["x"]
    ids = "(cards) => cards.map((card) => card.dataset.id)"
    refined, plain = (one.locator(".card").evaluate_all(ids) for one in (first, second))
    assert sorted(refined) == sorted(plain)
    assert refined != plain
    assert first.locator(".other").first.inner_text() == f"place {plain.index(refined[0]) + 1} in plain"
    assert "Refined: 22 moments" in page.status()

    # Arrows lead from one list to the other, and the choice is made by keyboard as well.
    first.locator(".card").nth(0).focus()
    for _ in range(8):
        page.page.keyboard.press("ArrowRight")
    assert page.page.evaluate("document.activeElement.closest('section') === document.querySelectorAll('section')[1]")
    page.page.locator("input[value=both]").focus()
    page.page.keyboard.press("ArrowLeft")
    page.until(lambda: "ranking=plain" in page.address)
    again = seen(page.address)
    again.settled()
    assert again.page.locator("input[value=plain]").is_checked()


def test_neighbours_are_shown_and_play(seen, library):
    page = seen(f"/?q=circle&play={library.of('red circle.mp4', 1)}")
    page.until(lambda: page.page.locator("#around .card").count() == 3)
    assert page.page.locator("#around .card[aria-current]").get_attribute("data-id") == library.of("red circle.mp4", 1)
    page.page.locator("#around .card").nth(2).click()
    page.until(lambda: f"play={library.of('red circle.mp4', 2)}" in page.address)
    page.until("document.querySelector('video').currentTime >= 8")
    page.page.locator("#like").click()
    page.until(lambda: f"like={library.of('red circle.mp4', 2)}" in page.address)
    page.page.go_back()
    page.until(lambda: "like=" not in page.address and page.files()[:1] == ["red circle.mp4"])


def test_names_that_are_markup_are_text(seen, library):
    page = seen(f"/?q=img&play={library.of(HOSTILE_NAME)}")
    page.settled()
    assert page.files()[0] == HOSTILE_NAME
    assert page.page.inner_text("#playing") == HOSTILE_NAME
    page.search("<script>window.ran=1</script>")
    assert page.page.evaluate("window.ran") is None
    assert page.page.locator("img[src=x]").count() == 0


def test_no_other_script_or_style_or_host_is_let_in(seen):
    page = seen("/?q=red")
    page.settled()
    page.page.evaluate(
        "const image = document.createElement('img'); image.src = 'http://example.invalid/x.png';"
        "document.body.append(image);"
        "try { document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = 1\">'); } catch { }"
        "try { const script = document.createElement('script'); script.textContent = 'window.ran = 1';"
        "document.body.append(script); } catch { }"
    )
    page.until(lambda: len(page.errors) >= 2)
    assert page.page.evaluate("window.ran") is None
    assert [error for error in page.errors if "Content Security Policy" not in error and "Trusted" not in error] == []
    page.errors.clear()
    assert page.elsewhere == ["http://example.invalid/x.png"] or page.elsewhere == []
    page.elsewhere.clear()


INSIDE = """
(width) => [...document.querySelectorAll("body *")].filter((element) => {
  const box = element.getBoundingClientRect();
  const hidden = getComputedStyle(element).clipPath !== "none" || element.closest(".skip");
  return !hidden && box.width > 0 && (box.right > width + 0.5 || box.left < -0.5);
}).map((element) => element.outerHTML.slice(0, 90))
"""


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("ranking", ["refined", "both"])
def test_in_a_narrow_window_nothing_is_cut(seen, library, theme, ranking):
    page = seen(
        f"/?q=red+circle&ranking={ranking}&play={library.of('red circle.mp4', 1)}",
        width=NARROW,
        height=740,
        theme=theme,
    )
    page.settled()
    page.until(lambda: page.page.locator("#around .card").count() == 3)
    assert page.page.evaluate("document.documentElement.scrollWidth") <= NARROW
    assert page.page.evaluate(INSIDE, NARROW) == []


LUMINANCE = """
(selector) => {
  const found = document.querySelector(selector);
  let ground = found;
  while (ground && /, 0\\)$|transparent/.test(getComputedStyle(ground).backgroundColor)) ground = ground.parentElement;
  const luminance = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((value) => {
      const share = value / 255;
      return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = getComputedStyle(ground || document.body).backgroundColor;
  const pair = [getComputedStyle(found).color, behind].map(luminance);
  return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
}
"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everything_can_be_read_in_both_themes(seen, theme):
    page = seen("/?q=red+circle", theme=theme)
    page.settled()
    for selector in (
        "#name",
        "#facts",
        "#status",
        ".card .file",
        ".card .score",
        ".below .file",
        ".rule",
        "footer",
        "a",
    ):
        assert page.page.evaluate(LUMINANCE, selector) >= 4.5, selector
    dark = page.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 29)"
    assert dark == (theme == "dark")


def test_the_page_of_the_api_lists_every_address(seen):
    page = seen("/api")
    page.until(lambda: page.page.locator("#paths section").count() > 8)
    text = page.page.inner_text("#paths")
    for address in ("GET /api/search", "GET /api/playing", "GET /media/{id}"):
        assert address in text
    assert re.search(r"k\s+integer, 1 to 100, else 24\s+how many moments at most", text)


def test_a_server_that_has_ended_is_said(browser, library, tmp_path):
    with serving(library, tmp_path / "parts") as client:
        page = SeenPage(browser, client.port)
        page.until("document.activeElement.id === 'query'")
    page.page.keyboard.type("red")
    page.until(lambda: "The server does not answer" in page.status())
    page.close()


def test_the_browser_is_given_no_folder_of_this_machine(seen, library: StandIn):
    page = seen(f"/?q=red&play={library.of('old camera.avi')}")
    page.settled()
    page.until("document.querySelector('video').readyState >= 1")
    assert str(Path(library.root).parent) not in page.page.content()
