"""The table in the terminal and report.html, from fake run folders."""

import json
import re
from dataclasses import asdict
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
import torch
from fake_run import make_run
from rich.console import Console

from emcl_train.data.annotations import Clip
from emcl_train.report import plots, render_table, report_runs, retrievals, write_report
from emcl_train.report.notes import sentences, standard_error
from emcl_train.report.plots import rank_bins
from emcl_train.report.retrievals import best_and_worst
from emcl_train.runs.contents import save_config
from emcl_train.runs.folder import load_run
from emcl_train.terminal import HIDDEN


def printed(renderable: object, width: int = 120) -> str:
    console = Console(width=width, file=StringIO())
    console.print(renderable)
    return console.file.getvalue()


def results_of(path: Path) -> dict:
    return json.loads((path / "results.json").read_text())


class Elements(HTMLParser):
    """Tags, ids and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = {name: value for name, value in attrs if value}
        self.ids += [values["id"]] if "id" in values else []
        self.addresses += [values[name] for name in ("src", "href", "xlink:href") if name in values]


def test_the_table_has_every_row_with_both_directions(tmp_path):
    make_run(tmp_path)
    results = results_of(tmp_path)
    text = printed(render_table(results))
    for row in results["rows"]:
        line = next(line for line in text.splitlines() if line.strip().startswith(row["name"] + "  "))
        figures = [float(value) for value in re.findall(r"\d+\.\d", line)]
        assert figures == pytest.approx(
            [
                row[way][key]
                for way in ("text_to_video", "video_to_text")
                for key in ("R@1", "R@5", "R@10", "MdR", "MnR")
            ],
            abs=0.051,
        )


def test_the_table_says_what_a_reader_must_know_to_compare(tmp_path):
    make_run(tmp_path)
    text = printed(render_table(results_of(tmp_path) | {"em_block": 32}), width=200)
    for sentence in (
        "40 captions against 40 clips",
        "blocks of 32 texts × 32 clips",
        "Weights chosen by validation text→video R@1: epoch 5.",
        "1 clip was left out: video20 (truncated after 3 of 90 frames).",
        "2 of the test captions occur twice.",
        "sees all test queries at once",
    ):
        assert sentence in text


def test_the_table_names_both_definitions_where_clips_have_several_captions(tmp_path):
    make_run(tmp_path / "one")
    make_run(tmp_path / "three", captions_per_clip=3)
    assert "by best rank" not in printed(render_table(results_of(tmp_path / "one")))
    text = printed(render_table(results_of(tmp_path / "three")))
    assert text.count("↳ by best rank") == 3
    assert "best similarity" in text


def test_the_table_fits_a_narrow_terminal(tmp_path):
    make_run(tmp_path)
    lines = printed(render_table(results_of(tmp_path)), width=80).splitlines()
    assert max(map(len, lines)) <= 80
    assert any("EMCL-Net" in line and len(re.findall(r"\d+\.\d", line)) == 10 for line in lines)


def test_standard_error_of_a_hand_computed_case():
    results = {"queries": 100, "rows": [{"text_to_video": {"R@1": 50.0}}]}
    assert standard_error(results) == pytest.approx(5.0)


def test_several_runs_share_one_table_that_says_where_they_differ(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", clips=20, mode="off")
    console = Console(width=120, file=StringIO())
    paths = report_runs([tmp_path / "a", tmp_path / "b"], console)
    text = console.file.getvalue()
    assert paths == [tmp_path / "a" / "report.html", tmp_path / "b" / "report.html"]
    assert all(path.is_file() for path in paths)
    assert "EMCL-Net" in text
    assert "Trained without EMCL" in text
    assert "Not measured alike: clips (a: 40, b: 20)" in text
    assert "split (" not in text


@pytest.mark.parametrize(
    "settings",
    [{}, {"mode": "off", "captions_per_clip": 3}, {"clips": 1}, {"clips": 2}],
    ids=str,
)
def test_the_report_is_one_file_without_anything_from_elsewhere(tmp_path, settings):
    make_run(tmp_path, **settings)
    text = write_report(tmp_path).read_text()
    page = Elements(text)
    assert "link" not in page.tags
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert not re.search(r"url\((?!#)|@import", text)
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("figure") == (5 if settings.get("mode") == "off" else 7)
    targets = [address[1:] for address in page.addresses if address.startswith("#")] + re.findall(
        r"url\(#([^)]+)\)", text
    )
    assert set(targets) <= set(page.ids)


def test_the_report_is_the_same_file_when_written_again_and_captions_cannot_become_markup(tmp_path):
    make_run(tmp_path)
    first = write_report(tmp_path).read_text()
    assert write_report(tmp_path).read_text() == first
    assert "&lt;b&gt;caption&lt;/b&gt;" in first
    assert "<b>caption" not in first
    assert first.count("The clips are shown without frames") == 1
    assert "data:image/jpeg" not in first


def test_text_of_a_run_cannot_become_markup_wherever_it_stands(tmp_path):
    hostile = """<i onload='x("&amp;")'>"""
    config = make_run(tmp_path / hostile)
    config.data.root, config.model.clip, config.recipe = Path(hostile), hostile, hostile
    save_config(tmp_path / hostile, config)
    results = results_of(tmp_path / hostile)
    results |= {"split": hostile, "selection": hostile, "notes": [hostile], "left_out": {hostile: hostile}}
    results["rows"][0]["name"] = hostile
    (tmp_path / hostile / "results.json").write_text(json.dumps(results))
    (tmp_path / hostile / "environment.json").write_text(json.dumps({hostile: hostile}))
    text = write_report(tmp_path / hostile).read_text()
    assert "i" not in Elements(text).tags
    assert text.count("&lt;i onload=&#39;x(&#34;&amp;amp;&#34;)&#39;&gt;") > 10


def test_the_report_shows_frames_from_the_data_set(tmp_path, shared_data):
    make_run(tmp_path, clips=10, root=shared_data / "real_videos")
    text = write_report(tmp_path).read_text()
    assert text.count("data:image/jpeg") >= 8
    assert "without frames" not in text


def test_a_clip_that_cannot_be_decoded_says_so_in_its_place(tmp_path, monkeypatch):
    make_run(tmp_path, clips=10)
    names = [f"video{i}" for i in range(9)]  # video9 is not there any more
    clips = {name: Clip(name, tmp_path / f"{name}.mp4") for name in names}
    for clip in clips.values():
        clip.path.write_bytes(b"no video")
    monkeypatch.setattr(retrievals, "_clips", lambda *_: clips)
    pictures, problem = retrievals.strips(load_run(tmp_path), {3, 9})
    assert problem == ""
    assert pictures[3].jpeg is None
    assert "video3" in pictures[3].reason
    assert pictures[9].reason == "the data set has no clip video9 any more"


def test_best_and_worst_are_those_of_a_hand_computed_case(tmp_path):
    make_run(tmp_path, clips=3)
    run = load_run(tmp_path)
    run.tensors["similarity_on"] = torch.tensor([[0.9, 0.1, 0.2], [0.5, 0.6, 0.1], [0.8, 0.7, 0.3]])
    best, worst = best_and_worst(run)
    assert [(item.right, item.other, item.rank) for item in best] == [(0, 2, 1.0), (1, 0, 1.0)]
    assert [(item.right, item.other, item.rank) for item in worst] == [(2, 0, 3.0)]
    assert worst[0].right_similarity == pytest.approx(0.3)
    assert worst[0].other_similarity == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("gallery", "edges"), [(1, [1]), (2, [1, 2]), (7, [1, 2, 5, 7]), (100, [1, 2, 5, 10, 20, 50, 100])]
)
def test_rank_bins_end_at_the_gallery(gallery, edges):
    assert rank_bins(gallery) == edges


ONE_K_A = {"layout": "msrvtt", "msrvtt_split": "9k", "test_captions": "one"}


def test_published_rows_stand_beside_a_recipes_own_and_are_marked(tmp_path):
    make_run(tmp_path)
    results = results_of(tmp_path)
    assert "published" not in printed(render_table(results), width=200)
    results |= {"protocol": ONE_K_A}
    text = printed(render_table(results), width=200)
    line = next(line for line in text.splitlines() if "published: EMCL-Net  " in line)
    assert re.findall(r"[\d.]+", line) == ["46.8", "73.1", "83.1", "2.0", "12.8", "46.5", "73.5", "83.5", "2.0", "8.8"]
    assert "not computed here" in text
    assert "gallery has 40 clips, that of the published rows 1000" in text
    whole = printed(render_table(results | {"gallery": 1000, "queries": 1000}), width=200)
    assert "cannot be compared" not in whole
    assert "published" not in printed(render_table(results | {"split": "val"}), width=200)


@pytest.mark.parametrize(
    "other", [{"msrvtt_split": "7k"}, {"msrvtt_split": "full"}, {"test_captions": "all"}, {"layout": "shapes"}]
)
def test_published_rows_go_by_what_was_evaluated_and_not_by_the_name_of_the_recipe(tmp_path, other):
    make_run(tmp_path)
    results = results_of(tmp_path) | {"recipe": "msrvtt-9k", "protocol": ONE_K_A | other}
    assert "published" not in printed(render_table(results), width=200)
    assert "published" in printed(render_table(results | {"recipe": "own", "protocol": ONE_K_A}), width=200)


def test_activitynet_has_the_metrics_of_its_literature(tmp_path):
    make_run(tmp_path)
    text = printed(render_table(results_of(tmp_path) | {"protocol": {"layout": "activitynet"}}), width=200)
    assert "R@50" in text
    assert "R@10" not in text.replace("R@10)", "")
    line = next(line for line in text.splitlines() if "published: CLIP4Clip" in line)
    assert re.findall(r"(?<!p)\d[\d.]*", line.split("Clip", 2)[-1])[:4] == ["40.5", "72.4", "98.1", "2.0"]
    assert "–" in line


@pytest.mark.parametrize(
    ("block", "mode", "expected"),
    [(None, "train", "over all pairs at once"), (32, "inference", "in blocks of 32 texts"), (None, "off", None)],
)
def test_a_table_says_where_em_runs_if_it_does(tmp_path, block, mode, expected):
    make_run(tmp_path / "run")
    results = load_run(tmp_path / "run").results | {"em_block": block, "emcl": {"mode": mode}}
    said = [sentence for sentence in sentences(results) if sentence.startswith("EM runs")]
    assert [expected in sentence for sentence in said] == ([] if expected is None else [True])


def test_the_map_of_modalities_is_of_the_head_and_of_the_emcl_that_were_evaluated(tmp_path):
    config = make_run(tmp_path / "run")
    panels, caption = plots.modalities(load_run(tmp_path / "run"))
    asked = asdict(config.emcl)
    config.emcl.num_bases, config.model.head = 3, "mean"
    save_config(tmp_path / "run", config)
    results = json.loads((tmp_path / "run/results.json").read_text())
    (tmp_path / "run/results.json").write_text(json.dumps(results | {"emcl": asked}))
    other, said = plots.modalities(load_run(tmp_path / "run"))
    assert [panel.svg for panel in panels] != [panel.svg for panel in other]
    assert caption != said


def test_the_report_names_the_settings_of_the_evaluation_and_the_split_that_chose(tmp_path):
    make_run(tmp_path)
    results = results_of(tmp_path)
    emcl = {**vars(load_run(tmp_path).config.emcl), "num_bases": 8, "num_iters": 3, "residual_weight": -0.5}
    (tmp_path / "results.json").write_text(json.dumps(results | {"emcl": emcl | {"mode": "inference"}}))
    lines = (
        (tmp_path / "metrics.jsonl")
        .read_text()
        .replace('"kind": "validation"', '"kind": "validation", "split": "test"')
    )
    (tmp_path / "metrics.jsonl").write_text(lines)
    page = write_report(tmp_path).read_text()
    assert "EMCL in evaluation only" in page
    assert "3 iterations, weight -0.5" in page
    assert "Recall on the test split" in page


def test_no_hit_is_not_certainty():
    results = {"rows": [{"text_to_video": {"R@1": 0.0}}], "queries": 98}
    assert standard_error(results) == pytest.approx(100 * (0.01 * 0.99 / 98) ** 0.5)


def test_texts_of_a_run_are_isolated_and_their_control_characters_visible(tmp_path):
    hostile = "\u202eexe.\x1b[31m\u2066"
    shown = r"\u202eexe.\x1b[31m\u2066"
    config = make_run(tmp_path)
    config.recipe = config.model.clip = hostile
    save_config(tmp_path, config)
    results = results_of(tmp_path)
    results |= {"split": hostile, "selection": hostile, "notes": [hostile], "left_out": {hostile: hostile}}
    results["rows"][0]["name"] = hostile
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "environment.json").write_text(json.dumps({hostile: hostile}))
    queries = json.loads((tmp_path / "queries.json").read_text())
    queries = {name: [f"{text} {hostile}" for text in texts] for name, texts in queries.items()}
    (tmp_path / "queries.json").write_text(json.dumps(queries))

    text = write_report(tmp_path).read_text()
    assert not HIDDEN.search(text)
    inside = [part.split("</bdi>")[0] for part in text.split("<bdi>")[1:]]
    outside = re.sub(r"<bdi>.*?</bdi>", "", text, flags=re.DOTALL)
    assert sum(shown in part for part in inside) > 20
    assert shown not in re.sub(r"<title>.*?</title>|alt=\"[^\"]*\"", "", outside)


def test_the_page_names_the_absolute_paths_that_it_carries_and_leaves_them_out_if_asked(tmp_path):
    root = Path("/home/some body/data sets/msrvtt")
    config = make_run(tmp_path, root=root)
    config.model.clip = "/models/ViT-B-32.pt"
    save_config(tmp_path, config)
    results = results_of(tmp_path) | {"left_out": {"video7": "it ends early [/mnt/videos/video7.mp4]"}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    environment = {"command": f"emcl-train train msrvtt-9k --out {tmp_path}"}
    (tmp_path / "environment.json").write_text(json.dumps(environment))
    carried = [str(root), "/models/ViT-B-32.pt", "/mnt/videos/video7.mp4", str(tmp_path)]

    said = []
    text = write_report(tmp_path, say=said.append).read_text()
    listed = text[text.index("This page carries absolute paths") :]
    assert all(f"<code><bdi>{path}</bdi></code>" in listed for path in carried)
    assert "which --share leaves out" in said[0]

    said = []
    text = write_report(tmp_path, share=True, say=said.append).read_text()
    assert said == []
    assert not any(path in text for path in carried)
    assert not any(part in text for part in ("some body", "data sets", "/mnt", "/models", str(tmp_path.parent)))
    assert all(f"…{Path(path).name}" in text for path in carried)
    assert "<b>caption</b>" not in text
    assert "&lt;b&gt;caption&lt;/b&gt;" in text  # captions stay whole


@pytest.mark.parametrize("text", ["[/]", "[bold red]x[/bold red] [/]", "[link=file:///x]y", "\\["])
def test_markup_of_the_terminal_in_a_text_of_a_run_is_text(tmp_path, text):
    name = text.replace("/", "")
    for folder in ("a" + name, "b" + name):
        make_run(tmp_path / folder)
        results = results_of(tmp_path / folder)
        results |= {"split": text, "recipe": text, "selection": text, "notes": [text], "left_out": {text: text}}
        results["rows"][0]["name"] = text
        (tmp_path / folder / "results.json").write_text(json.dumps(results))
    console = Console(width=200, file=StringIO())
    report_runs([tmp_path / ("a" + name), tmp_path / ("b" + name)], console)
    console.print(render_table(results))
    assert console.file.getvalue().count(text) > 5
