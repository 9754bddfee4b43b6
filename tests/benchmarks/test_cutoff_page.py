"""The figures about the cut-off on the page of one's own videos are those of the committed record."""

import json
import sys
from pathlib import Path
from statistics import fmean

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

    # Sentences, whose figures are those of the record as well.
    text = " ".join(text.split())
    assert f"[All of it](../benchmarks/results/{RECORDS[-1].stem}.md)" in text
    known = {}
    for name, found in record["sets"].items():
        values = found["errors"]["per split"]["refined, with the bank"]
        figures = ("false alarms, in all", "false alarms, in the map", "false alarms")
        known[name.partition("-")[0]] = [f"{fmean(values[figure]):.1f}" for figure in figures]
    assert (
        "{} % of new unrelated queries are above the cut-off if neither is done, {} % if".format(*known["MSR"]) in text
    )
    assert "it is {}, {} and {} %".format(*known["COCO"]) in text
    losses = {}
    for line in shown.of_ways(record["sets"], record):
        if line.startswith("| "):
            way, *_, loss = [cell.strip(" *") for cell in line.strip("|").split("|")]
            losses.setdefault(way, []).append(loss)
    assert f"the plain quantile are {losses['quantile'][0]} points from 5 %" in text
    for way, words in (("Gumbel, mean and deviation", "same mean and deviation"),
                       ("median + 1.645 · 1.4826 · MAD", "median and MAD"),
                       ("two normal distributions", "mixture of two normal distributions")):  # fmt: skip
        assert f"{words} {losses[way][0]}" in text
