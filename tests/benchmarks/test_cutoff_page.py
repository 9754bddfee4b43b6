"""The figures about the cut-off on the page of one's own videos are those of the committed record."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import search_cutoff_table as shown  # noqa: E402

RECORDS = sorted((ROOT / "benchmarks" / "results").glob("*-cutoff.json"))
PAGES = [page for page in (ROOT / "docs").glob("own-videos*.md") if "## When nothing fits" in page.read_text("utf-8")]


@pytest.mark.skipif(not RECORDS, reason="a source distribution has no records")
def test_the_table_of_the_page_is_that_of_the_record():
    record = json.loads(RECORDS[-1].read_text(encoding="utf-8"))
    assert not record["running"]
    (page,) = PAGES
    text = page.read_text(encoding="utf-8")
    for line in shown.of_page(record):
        assert line in text
