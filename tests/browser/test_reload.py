"""The page of a run that goes on reads itself again, and leaves the reader where they were."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest


@pytest.fixture
def going_on(tmp_path: Path) -> Path:
    """A run that is at step 34 of 60, of which this process is said to train the rest."""
    from fake_run import make_run

    from emcl_train.runs.contents import save_config
    from emcl_train.runs.files import write_json_atomic
    from emcl_train.runs.lock import RECORD, Writer

    run = tmp_path / "run"
    config = make_run(run)
    config.train.epochs = 6
    save_config(run, config)
    for name in ("results.json", "queries.json", "embeddings.safetensors", "finished.json", "checksums.json"):
        (run / name).unlink()
    write_json_atomic(run / "environment.json", {"ends_with": "finished.json", "steps_per_epoch": 10})
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "all.jsonl").write_text("".join(lines))
    (run / "metrics.jsonl").write_text("".join(lines[:37]))
    (run / RECORD).write_text(json.dumps(asdict(replace(Writer.here(), process=os.getppid(), started=""))))
    return run


def go_on(run: Path, lines: int) -> None:
    """Write what the training has come to, and its page."""
    from emcl_train.report import write_report

    found = (run / "all.jsonl").read_text().splitlines(keepends=True)[:lines]
    (run / "metrics.jsonl").write_text("".join(found))
    write_report(run, reload=1)


def test_it_shows_what_was_written_and_stays_where_the_reader_was(opened, going_on):
    go_on(going_on, 37)
    page = opened(going_on / "report.html", height=300)
    assert "step 34 of 60" in page.text()
    page.page.evaluate("scrollTo(0, 350)")

    go_on(going_on, 48)
    assert "step 34 of 60" in page.text()
    page.read_again(1000)
    assert "step 44 of 60" in page.text()
    page.until("scrollY === 350")
    assert "This page reads itself again every 1 s." in page.page.inner_text("#reload")


def test_nobody_is_interrupted(opened, going_on):
    go_on(going_on, 37)
    page = opened(going_on / "report.html")
    page.page.evaluate("getSelection().selectAllChildren(document.querySelector('h1')); window.same = true")
    go_on(going_on, 48)
    page.pass_by(5000)
    assert page.page.evaluate("window.same")
    assert "step 34 of 60" in page.text()

    page.page.evaluate("getSelection().removeAllRanges()")
    page.read_again(1000)
    assert "step 44 of 60" in page.text()


def test_a_page_that_nobody_writes_any_more_says_so_and_rests(opened, going_on):
    go_on(going_on, 37)
    path = going_on / "report.html"
    html = path.read_text()
    (written,) = {part.partition('"')[0] for part in html.split('data-written="')[1:]}
    path.write_text(html.replace(f'data-written="{written}"', f'data-written="{int(written) - 1000}"'))
    page = opened(path)
    page.page.evaluate("window.same = true")
    assert "no longer reads itself again" in page.text()
    page.pass_by(5000)
    page.page.wait_for_timeout(500)
    assert page.page.evaluate("window.same")


def test_the_page_of_a_finished_run_does_not_read_itself(opened, page_of_a_run):
    page = opened(page_of_a_run).page
    assert page.locator("#reload").count() == 0
    assert "location.reload" not in page.content()


def test_search_filter_and_direction_stay(opened, page_of_a_run, tmp_path):
    from emcl_train.report.html import page as page_of
    from emcl_train.runs.folder import load_run

    path = tmp_path / "report.html"
    path.write_text(page_of(load_run(page_of_a_run.parent), share=True, reload=1).html)
    page = opened(path)
    page.page.click('[data-direction="video"]')
    page.page.fill("#search", "number-17")
    sort = page.page.eval_on_selector("#sort", "(field) => field.options[1].value")
    page.page.select_option("#sort", sort)
    page.page.evaluate("window.before = true; document.activeElement.blur()")

    page.read_again(1000)
    assert not page.page.evaluate("window.before")
    assert page.page.input_value("#search") == "number-17"
    assert page.page.input_value("#sort") == sort
    assert page.page.get_attribute('[data-direction="video"]', "aria-pressed") == "true"
