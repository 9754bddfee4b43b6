"""Published figures, written down a second time from their sources, and their marks in a run's own table."""

import re

import pytest
from fake_run import make_run
from test_report import printed, results_of

from emcl_train.report import published, render_table, write_report
from emcl_train.report.published import PROTOCOLS, Published, System, is_of, protocol_of

WITH_50 = ("R@1", "R@5", "R@10", "R@50", "MdR", "MnR")
PLAIN = ("R@1", "R@5", "R@10", "MdR", "MnR")
PARAGRAPHS = ("R@1", "R@5", "R@50", "MdR", "MnR")

# Split, row, columns, text→video, video→text; ~ before a direction that is from memory, ^ before one by best rank.
TWICE = """
MSR-VTT 1k-A | JSFusion | PLAIN | 10.2 31.2 43.2 13 |
MSR-VTT 1k-A | CE, GPT-1 text | WITH_50 | 20.9 48.8 62.4 89.1 6.0 28.2 | 20.6 50.3 64.0 89.9 5.3 25.1
MSR-VTT 1k-A | MMT, BERT-Base | PLAIN | 24.6 54.0 67.1 4.0 26.7 | ~24.4 56.0 67.8 4.0 23.6
MSR-VTT 1k-A | MMT, released checkpoint | PLAIN | 24.1 56.4 69.6 4.0 25.8 | 25.9 58.1 69.3 4.0 22.9
MSR-VTT 1k-A | MMT, HowTo100M | PLAIN | ~26.6 57.1 69.6 4.0 24.0 | ~27.0 57.5 69.7 3.7 21.3
MSR-VTT 1k-A | MMT, HowTo100M, released checkpoint | PLAIN | 25.8 57.2 69.3 4.0 22.4 | 26.1 57.8 68.5 4.0 20.1
MSR-VTT 1k-A | CLIP4Clip seqTransf | PLAIN | 44.5 71.4 81.6 2 15.3 | 42.7 70.9 80.6 2 11.6
MSR-VTT 1k-A | CLIP2Video | PLAIN | 45.6 72.6 81.7 2 14.6 | 43.5 72.3 82.1 2 10.2
MSR-VTT 1k-A | CLIP2Video + EMCL at inference | PLAIN | 46.6 72.7 | 44.0 72.3
MSR-VTT 1k-A | DRL, WTI + CDCR | PLAIN | 47.6 73.4 83.3 2 12.8 | 45.1 72.9 83.5 2 9.2
MSR-VTT 1k-A | EMCL-Net | PLAIN | 46.8 73.1 83.1 2 12.8 | 46.5 73.5 83.5 2 8.8
MSR-VTT 1k-A | EMCL-Net, 2 GPUs | PLAIN | 47.0 |
MSR-VTT 1k-A | EMCL-Net, 8 GPUs | PLAIN | 48.2 |
MSR-VTT 1k-A | EMCL-Net + inverted softmax | PLAIN | 51.6 78.1 85.3 1 |
MSR-VTT 1k-B | CE | WITH_50 | 18.2 46.0 60.7 86.6 7.0 35.3 | 18.0 46.0 60.3 86.4 6.5 30.6
MSR-VTT full | CE | WITH_50 | 10.0 29.0 41.2 71.4 16.0 86.8 | ^15.6 40.9 55.2 84.0 8.3 38.1
MSR-VTT full | CLIP2Video | PLAIN | 29.8 55.5 66.2 4 45.5 | 54.6 82.1 90.8 1 5.3
ActivityNet val_1, paragraphs | CE | WITH_50 | 18.2 47.7 63.9 91.4 6.0 23.1 | 17.7 46.6 62.8 90.9 6.0 24.4
ActivityNet val_1, paragraphs | MMT | PARAGRAPHS | 22.7 54.2 93.2 5.0 20.8 | ~22.9 54.8 93.1 4.3 21.2
ActivityNet val_1, paragraphs | CLIP4Clip | PARAGRAPHS | 40.5 72.4 98.1 2 |
ActivityNet val_1, paragraphs | EMCL-Net | PARAGRAPHS | 41.2 72.7 98.1 2 |
ActivityNet val_1, paragraphs | EMCL-Net + inverted softmax | PARAGRAPHS | 50.6 78.7 98.1 1 |
LSMDC | JSFusion | PLAIN | 9.1 21.2 34.1 36 |
LSMDC | JSFusion, released checkpoint | PLAIN | 9.3 24.7 34.8 29 |
LSMDC | CE | WITH_50 | 11.2 26.9 34.8 62.1 25.3 96.8 | 11.7 25.8 34.4 61.4 28.0 97.6
LSMDC | MMT | PLAIN | 13.2 29.2 38.8 21.0 76.3 | ~12.1 29.3 37.9 22.5 77.1
LSMDC | CLIP4Clip | PLAIN | 22.6 41.0 49.1 11 |
LSMDC | EMCL-Net | PLAIN | 23.9 42.4 50.9 10 |
LSMDC | EMCL-Net + inverted softmax | PLAIN | 25.9 46.4 53.7 8 |
MSVD | CE | WITH_50 | 19.8 49.0 63.8 89.0 6.0 23.1 | ^23.9 50.2 59.6 82.3 5.6 41.2
MSVD | CLIP2Video | PLAIN | 47.0 76.8 85.9 2 9.6 | 58.7 85.6 91.6 1 4.3
MSVD | EMCL-Net | PLAIN | 42.1 71.3 81.1 2 17.6 | 54.3 81.3 88.1 1 5.6
DiDeMo, paragraphs | CE | WITH_50 | 16.1 41.1 54.4 82.7 8.3 43.7 | 15.6 40.9 55.2 82.2 8.2 42.4
DiDeMo, paragraphs | EMCL-Net | PLAIN | 46.8 74.3 83.1 2 12.3 | 45.0 73.2 82.7 2 9.0
VATEX | CLIP2Video, HGR's split | PLAIN | 61.2 90.9 95.6 1 3.4 | 77.9 98.1 99.1 1 1.6
VATEX | CLIP2Video, random 1 500 | PLAIN | 57.3 90.0 95.5 1 3.6 | 76.0 97.7 99.9 1 1.5
"""
DEVIATIONS = {
    ("MSR-VTT 1k-A", "CE, GPT-1 text"): (1.2, 0.6),
    ("MSR-VTT 1k-B", "CE"): (0.7, 0.8),
    ("MSR-VTT full", "CE"): (0.1, 0.3),
    ("ActivityNet val_1, paragraphs", "CE"): (0.3, 0.6),
    ("LSMDC", "CE"): (0.4, 0.5),
}
FULL = {"layout": "msrvtt", "msrvtt_split": "full", "test_captions": "all"}


def as_written(row: Published, columns: tuple[str, ...], way: str) -> str:
    """A direction of a row as `TWICE` has it."""
    mark = "~" if way in row.from_memory else "^" if way == "video_to_text" and row.video_to_text_by_rank else ""
    metrics = getattr(row, way) or (row.video_to_text_by_rank if way == "video_to_text" else {})
    assert set(metrics) <= set(columns)
    figures = [metrics[name] for name in columns if name in metrics]
    assert list(metrics) == list(columns[: len(figures)])
    return mark + " ".join(map(str, figures)) if figures else ""


def test_every_published_figure_is_what_was_written_down_a_second_time():
    known = [[part.strip() for part in line.split("|")] for line in TWICE.strip().splitlines()]
    rows = [(protocol.split, row) for protocol in PROTOCOLS for row in protocol.rows]
    assert sorted((one[0], one[1]) for one in known) == sorted((split, row.name) for split, row in rows)
    expected = {(split, name): rest for split, name, *rest in known}
    for split, row in rows:
        columns, to_video, to_text = expected[split, row.name]
        for way, text in (("text_to_video", to_video), ("video_to_text", to_text)):
            figures = " ".join(str(float(value)) for value in text.lstrip("~^").split())
            mark = text[:1] if text[:1] in "~^" else ""
            assert as_written(row, globals()[columns], way) == mark + figures, (split, row.name, way)


def test_deviations_are_those_that_the_release_gives():
    found = {(protocol.split, row.name): row.deviation for protocol in PROTOCOLS for row in protocol.rows}
    assert {key: value for key, value in found.items() if value is not None} == DEVIATIONS


def test_every_row_says_where_it_was_read():
    for protocol in PROTOCOLS:
        assert len({row.name for row in protocol.rows}) == len(protocol.rows)
        for row in protocol.rows:
            assert row.source in vars(published).values()
            assert set(row.from_memory) <= {"text_to_video", "video_to_text"}


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.split)
def test_a_protocol_is_found_by_what_was_evaluated(protocol):
    assert protocol_of({"protocol": protocol.asked, "split": "test"}) is protocol
    assert protocol_of({"protocol": protocol.asked, "split": "val"}) is None


def test_a_figure_from_memory_is_marked_in_a_runs_own_table_and_page(tmp_path):
    make_run(tmp_path)
    one_k_a = {"layout": "msrvtt", "msrvtt_split": "9k", "test_captions": "one"}
    text = printed(render_table(results_of(tmp_path) | {"protocol": one_k_a}), width=200)
    line = next(line for line in text.splitlines() if "published: MMT, BERT-Base" in line)
    assert re.findall(r"\d[\d.]+m?", line)[:6] == ["24.6", "54.0", "67.1", "4.0", "26.7", "24.4m"]
    assert "m: from memory of the system's paper" in text
    assert "CE, GPT-1 text: R@1 ± 1.2 text→video and ± 0.6 video→text over three seeds." in text

    (tmp_path / "results.json").write_text(
        (tmp_path / "results.json")
        .read_text()
        .replace('"recipe"', f'"protocol": {one_k_a}, "recipe"', 1)
        .replace("'", '"')
    )
    page = write_report(tmp_path).read_text()
    assert '<td data-label="V→T R@1" class="first">24.4m</td>' in page
    assert '<td data-label="T→V R@1" class="first">24.6</td>' in page


def test_video_to_text_by_best_rank_has_its_own_line(tmp_path):
    make_run(tmp_path, clips=10, captions_per_clip=4)
    text = printed(render_table(results_of(tmp_path) | {"protocol": FULL}), width=200)
    lines = text.splitlines()
    number = next(number for number, line in enumerate(lines) if "published: CE" in line)
    assert re.findall(r"[\d.]+|–", lines[number].split("CE", 1)[1])[5:] == ["–"] * 5
    assert lines[number + 1].strip().startswith("↳ by best rank")
    assert re.findall(r"[\d.]+", lines[number + 1]) == ["15.6", "40.9", "55.2", "8.3", "38.1"]
    assert "queries, the published rows one for each clip" not in text


@pytest.mark.parametrize(
    ("row", "run", "same"),
    [
        (System("MMT"), System("MMT"), True),
        (System("MMT"), System("MMT", "train"), False),
        (System("CLIP4Clip"), System("CLIP4Clip meanP"), True),
        (System("CLIP4Clip"), System("CLIP4Clip meanP", "inference"), False),
        (System("CLIP4Clip"), System("CLIP4Clip seqTransf, trained with EMCL"), False),
        (System("CLIP4Clip seqTransf"), System("CLIP4Clip meanP"), False),
        (System("EMCL-Net", "train"), System("EMCL-Net", "inference"), False),
        (System("EMCL-Net", "train"), System("EMCL-Net", "train", "inverted softmax"), False),
    ],
)
def test_a_run_is_of_a_row_only_if_all_of_the_system_agrees(row, run, same):
    assert is_of(row, run) is same


def test_a_system_is_called_what_it_is():
    assert System("EMCL-Net", "train").label == "EMCL-Net"
    assert System("EMCL-Net").label == "EMCL-Net, trained without EMCL"
    assert System("MMT", "train").label == "MMT + EMCL"
    assert System("CLIP2Video", "inference").label == "CLIP2Video + EMCL at inference"
