"""The paper's tables: runs stand beside rows of their own system and protocol, and nothing missing is filled in."""

import json
import re
from dataclasses import asdict, replace
from io import StringIO
from types import SimpleNamespace

import pytest
from fake_run import make_run
from rich.console import Console
from test_report import Elements

from emcl_train import cli
from emcl_train.recipes import in_mode, load_recipe
from emcl_train.report import report_paper
from emcl_train.report.groups import load_group
from emcl_train.report.paper_systems import lines_of_run, remarks_on_run, system_of, why_apart
from emcl_train.report.paper_table import as_json, paper_tables
from emcl_train.runs.contents import save_config
from emcl_train.runs.folder import load_run

ONE_K_A = {"layout": "msrvtt", "msrvtt_split": "9k", "test_captions": "one"}
FULL = {"layout": "msrvtt", "msrvtt_split": "full", "test_captions": "all"}


def own_run(
    path,
    *,
    mode="train",
    trained=None,
    seed=0,
    protocol=ONE_K_A,
    gallery=1000,
    queries=None,
    split="test",
    captions=1,
    **model,
):
    """A run that says that it was evaluated by a protocol; its figures are those of 40 random pairs."""
    config = make_run(path, mode=mode, captions_per_clip=captions)
    results = json.loads((path / "results.json").read_text())
    results |= {"protocol": protocol, "gallery": gallery, "queries": queries or gallery, "split": split}
    results |= {"emcl": asdict(config.emcl)}
    (path / "results.json").write_text(json.dumps(results))
    config.recipe = "msrvtt-9k"
    config.model.clip = "openai/clip-vit-base-patch32"
    config.emcl.mode = trained or mode
    config.train.seed = seed
    for name, value in model.items():
        setattr(config.model, name, value)
    save_config(path, config)
    return path


def tables_of(*paths):
    return paper_tables([load_group(path, so_far=True) for path in paths])


def beside(paper, title, label):
    """Our rows beside a system's."""
    table = next(table for table in paper.tables if table.title == title)
    entry = next((entry for entry in table.entries if entry.system.label == label), None)
    return [] if entry is None else [row for row in entry.rows if row.kind == "own"]


def printed(*paths, width=80, **how):
    console = Console(width=width, file=StringIO())
    report_paper(list(paths), console, **how)
    return console.file.getvalue()


MAIN = "Retrieval on MSR-VTT 1k-A"
INSIDE = "EMCL inside other systems, MSR-VTT 1k-A"


def test_without_runs_all_is_published_or_not_available():
    paper = paper_tables([])
    assert [table.title for table in paper.tables[:6]] == [
        MAIN,
        "Retrieval on ActivityNet val_1, paragraphs",
        "Retrieval on LSMDC",
        INSIDE,
        "Video question answering, MSRVTT-QA",
        "Captioning, MSR-VTT",
    ]
    rows = [row for table in paper.tables for entry in table.entries for row in entry.rows]
    assert {row.kind for row in rows} == {"published", "absent"}
    assert all(row.source for row in rows)
    absent = [row for row in rows if row.kind == "absent"]
    assert [row.name for row in absent] == ["MMT + EMCL", "CLIP4Clip seqTransf + EMCL", "DRL + EMCL"]
    assert all(not row.figures and "table 3" in row.source for row in absent)


def test_a_run_stands_beside_the_row_of_its_system_and_nowhere_else(tmp_path):
    paper = tables_of(own_run(tmp_path / "net"))
    found = {
        (table.title, entry.system.label)
        for table in paper.tables
        for entry in table.entries
        for row in entry.rows
        if row.kind == "own"
    }
    assert found == {(MAIN, "EMCL-Net"), (MAIN, "EMCL-Net + inverted softmax")}
    assert paper.apart == []

    results = json.loads((tmp_path / "net/results.json").read_text())
    [main] = beside(paper, MAIN, "EMCL-Net")
    [inverted] = beside(paper, MAIN, "EMCL-Net + inverted softmax")
    assert main.figures["text_to_video"] == results["rows"][0]["text_to_video"]
    assert inverted.figures["video_to_text"] == results["rows"][2]["video_to_text"]


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        ({"head": "mean", "mode": "off"}, "CLIP4Clip seqTransf"),
        ({"head": "mean", "mode": "train"}, "CLIP4Clip seqTransf + EMCL"),
        ({"head": "mean", "mode": "inference"}, "CLIP4Clip seqTransf + EMCL at inference"),
        ({"head": "mean", "temporal": "lstm", "mode": "off"}, "CLIP4Clip seqLSTM"),
        ({"head": "wti", "mode": "off"}, "DRL"),
        ({"head": "wti", "mode": "off", "temporal": "mean"}, "DRL, temporal meanP"),
        ({"mode": "off"}, "EMCL-Net, trained without EMCL"),
        ({"mode": "inference"}, "EMCL-Net, EMCL at inference only"),
        ({"mode": "off", "trained": "train"}, "EMCL-Net, trained with EMCL"),
        ({"mode": "train", "trained": "off", "head": "mean"}, "CLIP4Clip seqTransf, trained without EMCL + EMCL"),
        ({"mode": "train", "temporal": "mean"}, "EMCL-Net, temporal meanP + EMCL"),
    ],
)
def test_a_run_is_called_what_it_is(tmp_path, settings, label):
    run = load_run(own_run(tmp_path / "run", **settings))
    assert system_of(run).label == label


def test_drl_without_its_decorrelation_is_not_called_so(tmp_path):
    run = load_run(own_run(tmp_path / "run", head="wti", mode="off"))
    run.config.train.decorrelation_weight = 0.0
    assert system_of(run).label == "WTI"


@pytest.mark.parametrize(
    ("kind", "label"),
    [
        ("ce", "CE"),
        ("mmt", "MMT"),
        ("jsfusion", "JSFusion"),
        ("moee", "system “moee”"),
        ("clip", "EMCL-Net, trained without EMCL"),
    ],
)
def test_a_system_of_another_kind_is_named_and_an_unknown_one_is_not_mislabelled(tmp_path, kind, label):
    run = load_run(own_run(tmp_path / "run", mode="off"))
    run.config.model.system = kind
    assert system_of(run).label == label


@pytest.mark.parametrize(
    ("experts", "label"),
    [
        ({"sizes": "msrvtt", "widths": "published", "names": None}, "CE"),
        ({"sizes": "own", "widths": "published", "names": None}, "CE on own features"),
        ({"sizes": "msrvtt", "widths": "files", "names": None}, "CE on own features"),
        ({"sizes": "msrvtt", "widths": "published", "names": ("audio", "face")}, "CE on audio, face"),
        ({"sizes": "msrvtt", "width": 32}, "CE, of another size"),
        ({"sizes": "msrvtt", "text": "random", "gated_video": True}, "CE, BERT random, videos gated"),
        ({"sizes": "msrvtt", "missing": "left-out"}, "CE, missing experts left out"),
    ],
)
def test_other_experts_than_the_papers_are_another_system(tmp_path, experts, label):
    run = load_run(own_run(tmp_path / "run", mode="off"))
    run.config.model.system, run.config.experts = "ce", SimpleNamespace(**experts)
    assert system_of(run).label == label


def test_a_system_that_nobody_published_has_its_own_line_and_no_published_figure(tmp_path):
    paper = tables_of(own_run(tmp_path / "lstm", head="mean", temporal="lstm", mode="off"))
    table = paper.tables[0]
    absent, own = table.entries[-1].rows
    assert (table.title, table.entries[-1].system.label) == (MAIN, "CLIP4Clip seqLSTM")
    assert (absent.kind, absent.figures, own.kind) == ("absent", {}, "own")
    assert beside(paper, MAIN, "CLIP4Clip seqTransf") == []


def test_emcl_inside_another_system_stands_in_the_table_of_that(tmp_path):
    paper = tables_of(
        own_run(tmp_path / "trained", head="mean"), own_run(tmp_path / "measured", head="wti", mode="inference")
    )
    assert [row.name for row in beside(paper, INSIDE, "CLIP4Clip seqTransf + EMCL")] == ["trained"]
    assert [row.name for row in beside(paper, INSIDE, "DRL + EMCL at inference")] == ["measured"]

    # Weights that were trained without EMCL are the system itself where it is off.
    assert [row.name for row in beside(paper, INSIDE, "DRL")] == ["measured"]
    assert [row.name for row in beside(paper, MAIN, "DRL")] == ["measured"]
    assert beside(paper, INSIDE, "CLIP4Clip seqTransf") == []


def test_weights_that_emcl_trained_are_not_the_system_without_it(tmp_path):
    run = load_run(own_run(tmp_path / "run", head="mean"))
    assert [one.system.label for one in lines_of_run(run)] == [
        "CLIP4Clip seqTransf + EMCL",
        "CLIP4Clip seqTransf + EMCL + inverted softmax",
    ]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"gallery": 40}, "its gallery has 40 clips, that of the published rows of MSR-VTT 1k-A 1000"),
        ({"queries": 900}, "it has 900 queries for 1000 clips"),
        ({"split": "val"}, "no published rows of its protocol (layout msrvtt, msrvtt_split 9k, test_captions one; val"),
        ({"protocol": ONE_K_A | {"msrvtt_split": "7k"}}, "msrvtt_split 7k"),
        ({"protocol": None}, "no published rows of its protocol (not recorded; test split)"),
        ({"clip": "openai/clip-vit-base-patch16"}, "its towers are ViT-B/16"),
        ({"clip": "random"}, "its towers are CLIP with random weights"),
    ],
)
def test_a_run_of_something_else_stands_apart_with_the_reason(tmp_path, settings, reason):
    path = own_run(tmp_path / "run", **settings)
    assert reason in (why_apart(load_run(path)) or "")
    paper = tables_of(path)
    assert [one.name for one in paper.apart] == ["run"]
    assert all(not entry.has_own for table in paper.tables for entry in table.entries)
    assert reason in printed(path, width=300)


def test_towers_that_nothing_names_are_said_so(tmp_path):
    text = printed(own_run(tmp_path / "run", clip="/models/mine"), width=300)
    assert "nothing says which towers /models/mine has; the published rows have ViT-B/32" in text


def test_a_run_without_figures_stands_apart(tmp_path):
    make_run(tmp_path / "run")
    for name in ("results.json", "finished.json", "embeddings.safetensors", "queries.json"):
        (tmp_path / "run" / name).unlink()
    assert [(one.name, one.reason) for one in tables_of(tmp_path / "run").apart] == [("run", "it has no figures yet")]


def test_seeds_are_one_line_with_deviations(tmp_path):
    for seed in range(3):
        path = own_run(tmp_path / f"five/seed-{seed}", seed=seed)
        results = json.loads((path / "results.json").read_text())
        results["rows"][0]["text_to_video"]["R@1"] = 46.0 + seed
        (path / "results.json").write_text(json.dumps(results))
    [row] = beside(tables_of(tmp_path / "five"), MAIN, "EMCL-Net")
    assert (row.name, row.seeds) == ("five", (0, 1, 2))
    assert row.figures["text_to_video"]["R@1"] == 47.0
    assert row.deviations["text_to_video"]["R@1"] == 1.0
    assert len(row.runs) == len(row.origins) == 3

    text = printed(tmp_path / "five")
    line = next(line for line in text.splitlines() if "ours: five" in line)
    assert re.findall(r"\d+\.\d", line)[0] == "47.0"
    assert next(line for line in text.splitlines() if "± of 3 seeds" in line).split()[4] == "1.0"
    assert "47.0 ± 1.0" in page_of(tmp_path, tmp_path / "five")


def test_what_a_reader_must_know_of_a_run_stands_below(tmp_path):
    path = own_run(tmp_path / "run", init_from=tmp_path / "weights.pt")
    results = json.loads((path / "results.json").read_text())
    origin = {"weights": "0123456789abcdef", "emcl": "0.3", "commit": "fedcba98", "epoch": 5, "step": 350}
    (path / "results.json").write_text(json.dumps(results | {"origin": origin}))
    text = printed(path, width=400)
    assert (
        "run: not as the recipe msrvtt-9k: data.num_frames 4, data.frame_sampling uniform, data.image_size 32" in text
    )
    assert "run: Measured on weights 01234567 (epoch 5, step 350) by emcl 0.3, commit fedcba98." in text
    assert "run: Weights chosen by validation text→video R@1: epoch 5." in text
    assert f"run: started from the weights of {tmp_path / 'weights.pt'}." in text
    assert "not as the recipe" not in printed(width=400)
    [row] = beside(tables_of(path), MAIN, "EMCL-Net")
    assert row.origins == (origin,)


def test_80_columns_are_enough_and_every_published_figure_is_whole(tmp_path):
    text = printed(own_run(tmp_path / "a-run-with-a-rather-long-name-that-folds"))
    assert max(map(len, text.splitlines())) <= 80
    assert "\nRetrieval on LSMDC\n" in text
    assert "…" not in text
    for table in tables_of().tables:
        for row in (row for entry in table.entries for row in entry.rows):
            cells = [row.cell(way, name) for way in row.figures for name in table.columns]
            assert all(cell in text.split() for cell in cells if cell != "–")


def test_marks_and_sources_are_said_where_the_figures_are(tmp_path):
    text = printed(width=300)
    line = next(line for line in text.splitlines() if line.lstrip().startswith("HowTo100M ["))
    assert re.findall(r"\d+\.\dm", line) == re.findall(r"\d+\.\dm?", line)
    number = re.search(r"\[(\d+)\]", line)[1]
    assert f"[{number}] paper of MMT\n" in text
    line = next(line for line in text.splitlines() if line.lstrip().startswith("CLIP2Video + EMCL at inference ["))
    assert re.findall(r"\d+\.\d|–", line) == ["46.6", "72.7", "–", "–", "–", "44.0", "72.3", "–", "–", "–"]
    line = next(line for line in text.splitlines() if line.lstrip().startswith("MMT + EMCL: not available"))
    assert re.findall(r"\d+\.\d|–", line) == ["–"] * 10
    assert "Not available, published: MMT + EMCL, CLIP4Clip seqTransf + EMCL, DRL + EMCL: it stands in table 3" in text
    assert "Captioning: the published row only. No code was released" in text


def test_json_has_null_for_what_could_not_be_had(tmp_path):
    found = as_json(tables_of(own_run(tmp_path / "net")))
    tables = {table["title"]: table for table in found["tables"]}
    systems = {system["system"]: system for system in tables[INSIDE]["systems"]}
    [row] = systems["MMT + EMCL"]["rows"]
    assert row["status"] == "not available"
    assert set(row["figures"]["text_to_video"].values()) == {None}
    assert systems["MMT + EMCL"]["own"] == "not available"
    [row] = systems["CLIP2Video + EMCL at inference"]["rows"]
    assert row["figures"]["text_to_video"] == {"R@1": 46.6, "R@5": 72.7, "R@10": None, "MdR": None, "MnR": None}
    assert row["source"] == "README of the EMCL release"

    systems = {system["system"]: system for system in tables[MAIN]["systems"]}
    published, *_, own = systems["EMCL-Net"]["rows"]
    assert (published["status"], own["status"], systems["EMCL-Net"]["own"]) == ("published", "own", "available")
    assert own["runs"] == [str(tmp_path / "net")]
    assert own["seeds"] == [0]
    assert systems["MMT"]["rows"][0]["from_memory"] == ["video_to_text"]
    assert tables["Captioning, MSR-VTT"]["systems"][0]["rows"][0]["figures"]["captions"] == {
        "BLEU-4": 45.3, "METEOR": 30.2, "ROUGE-L": 63.2, "CIDEr": 54.6
    }  # fmt: skip
    answers = tables["Video question answering, MSRVTT-QA"]["systems"][0]["rows"][0]["figures"]["accuracy"]
    assert answers == {"kept": 45.8, "all": None}


def page_of(folder, *paths, share=False):
    out = folder / "paper.html"
    printed(*paths, out=out, share=share)
    return out.read_text()


def test_the_page_is_one_file_with_the_same_rows_and_no_text_becomes_markup(tmp_path):
    hostile = own_run(tmp_path / "<i>net<", init_from=tmp_path / "weights.pt")
    text = page_of(tmp_path, hostile)
    page = Elements(text)
    assert not {"script", "link", "i", "img"} & set(page.tags)
    assert page.addresses == []
    assert "ours: &lt;i&gt;net&lt;" in text
    assert text.count("<table") == 11
    assert "24.4m" in text
    assert "MMT + EMCL: not available" in text
    assert str(tmp_path) in text
    assert str(tmp_path) not in page_of(tmp_path, hostile, share=True)


def test_the_page_takes_the_place_of_its_own_kind_alone(tmp_path, capsys):
    out = tmp_path / "paper.html"
    assert cli.main(["report", "--paper-table", "--out", str(out)]) == 0
    assert cli.main(["report", "--paper-table", "--out", str(out)]) == 0
    out.write_text("somebody's letter")
    assert cli.main(["report", "--paper-table", "--out", str(out)]) == 1
    assert "is no paper table that this program wrote" in capsys.readouterr().err
    assert out.read_text() == "somebody's letter"
    assert cli.main(["report", "--paper-table", "--out", str(tmp_path)]) == 1
    assert f"pass --out {tmp_path / 'paper-table.html'}" in capsys.readouterr().err


def test_the_command_needs_no_run_and_writes_no_page_by_itself(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", "--paper-table"]) == 0
    assert "Retrieval on LSMDC" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []

    assert cli.main(["report", str(own_run(tmp_path / "net")), "--paper-table", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tables"][0]["title"] == MAIN
    assert cli.main(["report", "absent", "--paper-table"]) == 1
    assert cli.main(["report", str(tmp_path / "net"), "--paper-table", "--watch"]) == 1
    assert "leave out one of them" in capsys.readouterr().err


def test_the_settings_of_a_mode_are_those_of_the_recipe_in_it(tmp_path):
    run = load_run(own_run(tmp_path / "run", mode="inference"))
    run = replace(run, config=in_mode(load_recipe("msrvtt-9k"), "inference"))
    assert remarks_on_run(run) == []
    run.config.emcl.num_bases += 1
    assert remarks_on_run(run) == ["not as the recipe msrvtt-9k: emcl.num_bases 8"]


def test_several_captions_have_both_ways_of_video_to_text(tmp_path):
    path = own_run(tmp_path / "full", protocol=FULL, gallery=2990, queries=59800, captions=3, mode="off", head="wti")
    paper = tables_of(path)
    table = next(table for table in paper.tables if table.title == "Retrieval on MSR-VTT full")
    own = next(row for entry in table.entries for row in entry.rows if row.kind == "own")
    assert set(own.figures) == {"text_to_video", "video_to_text", "video_to_text_by_rank"}
    text = printed(path)
    assert text.count("↳ by best rank") == 3  # CE's of MSR-VTT full and MSVD, and ours
