"""report.html in a real browser: what it loads, what its list does, and how it looks narrow, dark and on paper."""

import re

import pytest
from opened import HOSTILE

AT_ONCE = 20
QUERIES = 68
CLIPS = 34


def test_the_page_opens_without_an_error_and_asks_the_network_nothing(opened, page_of_a_run):
    page = opened(page_of_a_run)
    assert page.page.title() == "run · shapes"
    assert page.found() == (AT_ONCE, QUERIES, QUERIES)
    assert page.page.locator("figure svg").count() >= 12


def test_its_policy_lets_no_other_script_run(opened, page_of_a_run):
    """Should a text become markup after all, it is still not run."""
    page = opened(page_of_a_run)
    page.page.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = 1\">');"
        "const script = document.createElement('script'); script.textContent = 'window.ran = 1';"
        "document.body.append(script)"
    )
    page.until(lambda: len(page.errors) >= 2)
    assert page.page.evaluate("window.ran") is None
    assert all("Content Security Policy" in error or "ERR_FILE_NOT_FOUND" in error for error in page.errors)
    page.errors.clear()
    page.requests.clear()


def test_hostile_captions_are_text_and_do_not_run(opened, page_of_a_run):
    page = opened(page_of_a_run)
    page.page.locator("#sort").select_option("data")
    shown = page.items()[: len(HOSTILE)]
    assert "</script><script>window.ran = 1; alert(1)</script>" in shown[0]
    assert "<img src=x onerror='window.ran = 1'>" in shown[1]
    assert r"\u202egnp.exe \x00\x1b[31m" in shown[7]
    assert page.page.evaluate("window.ran") is None
    assert page.page.locator("script:not([type])").count() == 2
    assert page.page.locator("#list img[src=x], #list svg, #list style, #list link").count() == 0

    page.page.locator("button[data-direction=video]").click()
    page.page.locator("#sort").select_option("data")
    assert page.page.evaluate("window.ran") is None


def test_every_query_has_its_rank_its_margin_and_the_five_best(opened, page_of_a_run):
    page = opened(page_of_a_run)
    while page.page.locator("#more").is_visible():
        page.page.locator("#more").click()
    items = page.items()
    assert len(items) == QUERIES
    for item in items:
        rank = float(re.search(r"rank ([\d.]+)", item)[1])
        assert re.search(r"margin [+−]\d\.\d{3}", item)
        assert len(re.findall(r"\d+ · -?\d\.\d{3}", item)) == (5 if rank <= 5 else 6)
        assert item.count("✓ right") == 1
    ranks = [float(re.search(r"rank ([\d.]+)", item)[1]) for item in items]
    assert ranks == sorted(ranks, reverse=True)


def test_video_to_text_has_every_clip_with_the_captions_that_are_nearest(opened, page_of_a_run):
    page = opened(page_of_a_run)
    page.page.locator("button[data-direction=video]").click()
    assert page.found() == (AT_ONCE, CLIPS, CLIPS)
    assert page.page.locator("button[data-direction=video]").get_attribute("aria-pressed") == "true"
    assert page.page.locator(".item").first.locator(".sentences li").count() >= 5
    assert page.page.locator(".item .sentences .right").count() == AT_ONCE


def test_search_filter_and_sort_work_together(opened, page_of_a_run):
    page = opened(page_of_a_run)
    page.search("number-33-of")
    assert page.found()[1] == 1
    page.search("RED circle")
    assert 0 < page.found()[1] < QUERIES
    assert all("red" in item and "circle" in item for item in page.items())
    page.search("no such word")
    assert page.found() == (0, 0, QUERIES)
    page.search("")

    counts = {}
    for kind in ("all", "first", "near", "worse"):
        page.page.locator("#filter").select_option(kind)
        counts[kind] = page.found()[1]
        ranks = [float(rank) for rank in re.findall(r"rank ([\d.]+)", "\n".join(page.items()))]
        ends = {"all": (1, CLIPS), "first": (1, 1), "near": (1.5, 10), "worse": (10.5, CLIPS)}[kind]
        assert all(ends[0] <= rank <= ends[1] for rank in ranks)
        assert f"({counts[kind]})" in page.page.locator(f"#filter option[value={kind}]").inner_text()
    assert counts["all"] == QUERIES == counts["first"] + counts["near"] + counts["worse"]
    assert counts["near"] > 0

    page.page.locator("#filter").select_option("all")
    page.page.locator("#sort").select_option("best")
    assert "rank 1" in page.items()[0]
    page.page.locator("#sort").select_option("close")
    margins = [
        abs(float(text.replace("−", "-"))) for text in re.findall(r"margin ([+−][\d.]+)", "\n".join(page.items()))
    ]
    assert margins == sorted(margins)
    page.page.locator("#sort").select_option("text")
    texts = page.page.locator(".item .head p").all_inner_texts()
    assert texts == page.page.evaluate("(texts) => [...texts].sort((a, b) => a.localeCompare(b))", texts)


def test_the_list_is_used_by_keyboard_alone(opened, page_of_a_run):
    page = opened(page_of_a_run)
    page.page.keyboard.press("/")
    assert page.page.evaluate("document.activeElement.id") == "search"
    page.page.keyboard.type("number-41-of")
    page.pass_by(300)
    assert page.found()[1] == 1
    page.page.keyboard.press("Escape")
    assert page.found()[1] == QUERIES
    page.page.keyboard.press("Tab")
    assert page.page.evaluate("document.activeElement.id") == "filter"
    page.page.keyboard.press("Tab")
    page.page.keyboard.press("Tab")
    assert page.page.evaluate("document.activeElement.className") == "play"
    page.page.keyboard.press("Enter")
    page.until("document.querySelector('#list video')?.readyState >= 2")
    page.page.locator("#more").focus()
    page.page.keyboard.press("Enter")
    assert page.found()[0] == 2 * AT_ONCE


def test_films_play_where_they_are(opened, page_of_a_run):
    page = opened(page_of_a_run)
    page.page.locator("#list .play").first.click()
    page.until("document.querySelector('#list video')?.currentTime > 0")
    video = page.page.locator("#list video").first
    assert video.evaluate("(video) => video.error === null && video.videoHeight > 0 && video.muted")

    # So do those of the best and the worst, and the other one stops.
    page.page.locator(".clip button").first.click()
    page.until("document.querySelector('.clip video')?.currentTime > 0")
    assert video.evaluate("(video) => video.paused")


def test_the_values_of_a_curve_are_shown_where_the_pointer_is_and_by_the_arrow_keys(opened, page_of_a_run):
    page = opened(page_of_a_run)
    figures = page.page.locator("figure:has(script)")
    recall = page.page.locator("figure:has-text('Recall on the')")
    recall.scroll_into_view_if_needed()
    box = recall.locator(".drawn").bounding_box()
    page.page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    shown = recall.locator(".values").inner_text()
    assert re.match(r"epoch [2-5]\nT→V R@1: [\d.]+\nV→T R@1", shown)
    page.page.mouse.move(0, 0)
    assert recall.locator(".values").is_hidden()

    recall.focus()
    page.page.keyboard.press("ArrowRight")
    page.page.keyboard.press("ArrowRight")
    assert recall.locator(".values").inner_text().startswith("epoch 2\n")
    page.page.keyboard.press("Escape")
    assert recall.locator(".values").is_hidden()

    # Every plot has values somewhere in its middle row.
    for figure in figures.all():
        figure.scroll_into_view_if_needed()
        box = figure.locator(".drawn").bounding_box()
        said = set()
        for share in (0.3, 0.45, 0.6):
            page.page.mouse.move(box["x"] + share * box["width"], box["y"] + 0.5 * box["height"])
            said.add(figure.locator(".values").inner_text())
        assert all(re.search(r"\d", text) for text in said)
        assert len(said) > 1


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_at_400_pixels_nothing_is_cut_and_every_column_is_there(opened, page_of_a_run, theme):
    wide, page = opened(page_of_a_run), opened(page_of_a_run, width=400, theme=theme)
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 400
    inside = """
      [...document.querySelectorAll("main *")].filter((element) => {
        const box = element.getBoundingClientRect();
        return box.width > 0 && !element.closest("svg") && (box.right > 400.5 || box.left < -0.5);
      }).map((element) => element.outerHTML.slice(0, 80))
    """
    assert page.page.evaluate(inside) == []

    # Every value of the table is visible, with its column's name.
    values = "(cells) => cells.filter((cell) => cell.textContent && cell.getBoundingClientRect().width > 0).length"
    cells = page.page.locator(".results tbody td")
    assert cells.evaluate_all(values) == wide.page.locator(".results tbody td").evaluate_all(values) > 30
    names = cells.evaluate_all("(cells) => cells.map((cell) => getComputedStyle(cell, '::before').content)")
    assert {'"T→V R@1"', '"V→T MnR"'} <= set(names)

    # The panels of the scatter plot are one above the other.
    boxes = [panel.bounding_box() for panel in page.page.locator("section:has(.legend) figure").all()]
    assert boxes[0]["x"] == boxes[1]["x"]
    assert boxes[1]["y"] >= boxes[0]["y"] + boxes[0]["height"]


def test_the_legend_of_the_scatter_plot_is_outside_of_it(opened, page_of_a_run):
    page = opened(page_of_a_run)
    legend = page.page.locator(".legend").bounding_box()
    for panel in page.page.locator("section:has(.legend) figure").all():
        assert legend["y"] + legend["height"] <= panel.bounding_box()["y"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_lines_and_legends_stand_out_from_the_ground(opened, page_of_a_run, theme):
    """WCAG: 4.5 for text, 3 for what a drawing needs to be understood."""
    page = opened(page_of_a_run, theme=theme)
    ground = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (page.luminance(ground) < 0.1) == (theme == "dark")

    texts = page.page.evaluate(
        """[...document.querySelectorAll("figure svg text")].map((text) => getComputedStyle(text).fill)"""
    )
    assert len(texts) > 50
    for colour in set(texts):
        assert page.contrast(colour, ground) >= 4.5

    # Of every stroke and filled mark that is no picture, frame of letters, or faint on purpose.
    marks = page.page.evaluate(
        """[...document.querySelectorAll("figure svg path, figure svg use")]
             .filter((mark) => !mark.closest("defs") && !mark.closest("[id*=colorbar]"))
             .map((mark) => getComputedStyle(mark))
             .filter((style) => Number(style.strokeOpacity) > 0.9 && style.stroke !== "none")
             .map((style) => style.stroke)"""
    )
    assert len(marks) > 50
    for colour in set(marks):
        assert page.contrast(colour, ground) >= 3, colour

    for selector in (".legend span", "figcaption", ".notes li", "dt", ".badge", ".margin", ".place", ".mark"):
        text = page.page.locator(selector).first
        colour, behind = text.evaluate(
            "(e) => [getComputedStyle(e).color, getComputedStyle(document.body).backgroundColor]"
        )
        assert page.contrast(colour, behind) >= (3 if selector == ".legend span" else 4.5), selector


def test_curves_are_told_apart_without_colour(opened, page_of_a_run):
    page = opened(page_of_a_run)
    recall = page.page.locator("figure:has-text('Recall on the')")
    text = " ".join(recall.locator("svg text").all_text_contents())
    for name in ("T→V R@1", "T→V R@10", "V→T R@5", "chance R@1"):
        assert name in text
    looks = recall.evaluate(
        """(figure) => [...figure.querySelectorAll("[id^='recall-line2d'] > path")].map((path) =>
             getComputedStyle(path).strokeDasharray)"""
    )
    assert len({look for look in looks if look}) >= 3


@pytest.mark.parametrize(("width", "height"), [("210mm", "297mm"), ("8.5in", "11in")])
def test_on_paper_nothing_is_cut(opened, page_of_a_run, width, height):
    page = opened(page_of_a_run, width=700, theme="dark")
    page.page.emulate_media(media="print")

    # Ink on white, whatever the screen's theme; the controls are not there, and what they listed is.
    assert page.page.locator("#controls").is_hidden()
    assert page.page.locator("#list .item").count() == AT_ONCE
    assert page.luminance(page.page.evaluate("getComputedStyle(document.body).backgroundColor")) > 0.9

    # At the width of the paper no table is wider than its place, and no row, plot or card breaks over two pages.
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 700
    for selector in ("tr", "figure", "article", ".item", ".tiles div", "dl > div"):
        breaks = page.page.locator(selector).evaluate_all(
            "(all) => all.map((one) => getComputedStyle(one).breakInside)"
        )
        assert set(breaks) == {"avoid"}, selector
    assert page.page.locator("table thead").first.evaluate("(e) => getComputedStyle(e).display") == "table-header-group"

    # As many pages as the text is long for: none is a mere remainder that was cut off.
    data = page.page.pdf(width=width, height=height, print_background=True)
    pages = len(re.findall(rb"/Type\s*/Page\b", data))
    assert 4 <= pages <= 16


def test_without_scripts_the_figures_are_there_and_the_list_says_why_it_is_not(opened, page_of_a_run):
    page = opened(page_of_a_run, scripts=False)
    text = page.page.locator("main").inner_text()
    assert "Best retrievals" in text
    assert "which this browser does not run" in text
    assert page.page.locator("#controls").is_hidden()


def test_the_head_says_what_the_run_is_and_where_it_comes_from(opened, page_of_a_run):
    head = opened(page_of_a_run).page.locator("header").inner_text()
    for part in (
        "recipe shapes", "text-conditioned pooling", "EMCL in training and evaluation", "batch", "seed 0",
        "emcl-train train msrvtt-9k --out runs/x", "2026-01-02 03:04:05 UTC", "commit 0123456789", "A Processor",
    ):  # fmt: skip
        assert part in head
