"""The real annotation files: their counts, their ties, and every caption of a clip as a query."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from tiny_layouts import SMALL, say, write_activitynet, write_clips, write_didemo, write_json, write_msrvtt_annotations

from emcl_train import cli
from emcl_train.config import DataConfig
from emcl_train.data.annotations import Split, load_annotations
from emcl_train.data.datasets import activitynet, didemo
from emcl_train.evaluation.metrics import text_to_video, video_to_text_best_similarity
from emcl_train.recipes import load_recipe

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(shared_data):
    return shared_data / "annotations"


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def msrvtt(folder: Path, root: Path, test: int | None = None, train: int | None = None) -> Path:
    """The real lists and the 20 real captions of the first test clips, in the MSR-VTT layout."""
    header, *rows = (folder / "MSRVTT_JSFUSION_test.csv").read_text().splitlines()
    rows = rows[:test]
    test_ids = [row.split(",")[2] for row in rows]
    texts = {line["clip_id"]: line["text"] for line in lines_of(folder / "msrvtt_test1ka_20captions.jsonl")}
    train_ids = (folder / "MSRVTT_train.9k.csv").read_text().split()[1 : None if train is None else train + 1]
    captions = {i: [say(i)] for i in train_ids} | {i: texts[i] for i in test_ids}
    splits = dict.fromkeys(train_ids, "train") | dict.fromkeys(test_ids, "test")
    write_msrvtt_annotations(root, train_ids, "\n".join([header, *rows]) + "\n", captions, splits)
    (root / "videos").mkdir()
    return root


def load(root: Path, recipe: str, **settings):
    config: DataConfig = load_recipe(recipe).data
    config.root = root
    for name, value in settings.items():
        setattr(config, name, value)
    return load_annotations(config)


def by_id(split: Split) -> dict[str, list[str]]:
    """Of clips with one caption each."""
    return {clip.video_id: [text] for clip, text in zip(split.clips, split.captions, strict=True)}


def run(recipe: str, root: Path, out: Path, *flags: str, doctor: bool = True, again: bool = True) -> dict:
    """Examine, train, and evaluate again what the end of training has evaluated. Returns: what results.json holds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("emcl_train.training.trainer.write_report", lambda run: run)
        patch.setattr("emcl_train.report.write_report", lambda run: run)
        assert not doctor or cli.main(["data", "doctor", recipe, str(root)]) == 0
        assert cli.main(["train", recipe, "--data.root", str(root), "--out", str(out), *SMALL, *flags]) == 0
        assert not again or cli.main(["eval", str(out)]) == 0
    return json.loads((out / "results.json").read_text())


def test_1k_a_has_a_thousand_queries_of_which_995_differ(folder, tmp_path):
    annotations = load(msrvtt(folder, tmp_path / "set"), "msrvtt-9k")
    test = annotations.test
    assert (len(test.clips), len(test.captions), len(set(test.captions))) == (1000, 1000, 995)
    assert annotations.counts == (
        "train: 9000 clips, as in MSR-VTT 1k-A.",
        "test: 1000 clips, as in MSR-VTT 1k-A.",
    )
    assert "Test captions that repeat another one: 5 of 1000. Their ranks cannot all be 1." in annotations.notes


def test_metrics_of_1k_a_under_exact_ties_equal_a_hand_computation(folder, tmp_path):
    test = load(msrvtt(folder, tmp_path / "set"), "msrvtt-9k").test
    owner = torch.tensor(test.caption_clip)
    # A model that knows nothing but the words: clips of the same caption tie at 1, all others at 0.
    same = torch.tensor([[float(one == other) for other in test.captions] for one in test.captions])
    # Of the captions 991 stand alone, three are there twice and one three times: (991·1 + 6·1.5 + 3·2) / 1000.
    assert sorted(Counter(Counter(test.captions).values()).items()) == [(1, 991), (2, 3), (3, 1)]
    by_hand = {"R@1": 99.1, "R@5": 100.0, "R@10": 100.0, "R@50": 100.0, "MdR": 1.0, "MnR": 1.006}
    assert text_to_video(same, owner) == pytest.approx(by_hand)
    assert video_to_text_best_similarity(same, owner) == pytest.approx(by_hand)
    # A model that knows nothing at all: every rank is the mean of 1 to 1000.
    nothing = {"R@1": 0.0, "R@5": 0.0, "R@10": 0.0, "R@50": 0.0, "MdR": 500.5, "MnR": 500.5}
    assert text_to_video(torch.zeros_like(same), owner) == pytest.approx(nothing)
    # A model that always ranks the 995 captions in one order: the clips before a caption are better, its own tie.
    first = {text: index for index, text in reversed(list(enumerate(test.captions)))}
    groups = {text: place for place, text in enumerate(sorted(first, key=first.__getitem__))}
    scores = -torch.tensor([float(groups[text]) for text in test.captions]).expand(1000, 1000)
    sizes = Counter(test.captions)
    before = {text: sum(sizes[other] for other in groups if groups[other] < groups[text]) for text in groups}
    ranks = [before[text] + (1 + sizes[text]) / 2 for text in test.captions]
    assert text_to_video(scores, owner)["MnR"] == pytest.approx(sum(ranks) / 1000)


def test_1k_a_with_twenty_captions_is_an_evaluation_of_twenty_thousand_queries(folder, tmp_path):
    annotations = load(msrvtt(folder, tmp_path / "set"), "msrvtt-9k", test_captions="all")
    assert (len(annotations.test.clips), len(annotations.test.captions)) == (1000, 20000)
    assert set(Counter(annotations.test.caption_clip).values()) == {20}


def test_1k_a_with_twenty_captions_runs_from_the_cli(folder, tmp_path, capsys):
    root = msrvtt(folder, tmp_path / "set", test=6, train=12)
    ids = [entry["video_id"] for entry in json.loads((root / "MSRVTT_data.json").read_text())["videos"]]
    write_clips(root / "videos", [f"{i}.mp4" for i in ids])
    results = run("msrvtt-9k", root, tmp_path / "run", "--data.test-captions", "all")
    assert (results["queries"], results["gallery"]) == (120, 6)
    assert "by best rank" in capsys.readouterr().out
    row = results["rows"][0]
    assert row["video_to_text_by_rank"]["MnR"] >= row["video_to_text"]["MnR"]


def test_activitynet_has_its_4917_paragraphs(folder, tmp_path):
    lines = lines_of(folder / "activitynet_val1.jsonl")
    paragraphs = activitynet.read_captions(folder / "activitynet_val1.jsonl")
    assert len(paragraphs) == 4917
    assert paragraphs["v_uqiMw7tQ1Cc"] == [
        "A weight lifting tutorial is given. "
        "The coach helps the guy in red with the proper body placement and lifting technique."
    ]
    # The same from the file as it is distributed, by ids.
    content = {
        line["clip_id"]: {
            "duration": line["num_frame"] / 2,
            "timestamps": line["timestamps"],
            "sentences": line["text"],
        }
        for line in lines
    }
    write_json(tmp_path / "val_1.json", content)
    write_json(tmp_path / "val_ids.json", list(content))
    write_json(tmp_path / "train.json", {f"v_train{n}": {"sentences": ["Someone runs."]} for n in range(20)})
    (tmp_path / "videos").mkdir()
    annotations = load(tmp_path, "activitynet")
    assert (len(annotations.test.clips), len(annotations.test.captions)) == (4917, 4917)
    assert "test: 4917 clips, as in ActivityNet Captions." in annotations.counts
    assert by_id(annotations.test) == paragraphs


def test_didemo_says_which_of_the_counts_in_the_literature_its_test_file_has(folder, tmp_path):
    lines = lines_of(folder / "didemo_test.jsonl")
    assert len(lines) == 1002
    parts = {split: {f"{split}{n}": ["Someone runs."] for n in range(12)} for split in ("train", "val")}
    write_didemo_quickly(tmp_path, parts | {"test": {line["clip_id"]: line["text"] for line in lines}})
    annotations = load(tmp_path, "didemo")
    assert (len(annotations.test.clips), len(annotations.test.captions)) == (1002, 1002)
    assert "test: 1002 clips; DiDeMo has 1003 or 1004." in annotations.notes
    assert annotations.test.captions[3].startswith("man drinks from stream. Man in green beret is standing a man")
    assert didemo.read_captions(folder / "didemo_test.jsonl") == by_id(annotations.test)


def write_didemo_quickly(root: Path, parts: dict[str, dict[str, list[str]]]) -> None:
    """Without a video for each name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tiny_layouts.write_clips", lambda folder, *_: folder.mkdir())
        write_didemo(root, parts)


def test_real_paragraphs_run_from_the_cli(folder, tmp_path):
    lines = lines_of(folder / "activitynet_val1.jsonl")[:16]
    paragraphs = {line["clip_id"]: line["text"] for line in lines}
    train, test = dict(list(paragraphs.items())[:10]), dict(list(paragraphs.items())[10:])
    write_activitynet(tmp_path / "activitynet", train, test)
    results = run("activitynet", tmp_path / "activitynet", tmp_path / "run-a")
    assert (results["queries"], results["gallery"]) == (6, 6)

    lines = lines_of(folder / "didemo_test.jsonl")[:16]
    names = {"train": lines[:8], "val": lines[8:10], "test": lines[10:]}
    parts = {split: {line["clip_id"]: line["text"] for line in own} for split, own in names.items()}
    write_didemo(tmp_path / "didemo", parts)
    results = run("didemo", tmp_path / "didemo", tmp_path / "run-d")
    assert (results["queries"], results["gallery"]) == (6, 6)


def test_all_of_1k_a_is_evaluated_on_a_thousand_clips(folder, tmp_path):
    """Every test clip is the same video here: all similarities of a caption tie, and every rank is the mean."""
    root = msrvtt(folder, tmp_path / "set", train=8)
    write_clips(root / "videos", ["one.mp4"], 0.1)
    for entry in json.loads((root / "MSRVTT_data.json").read_text())["videos"]:
        os.link(root / "videos" / "one.mp4", root / "videos" / f"{entry['video_id']}.mp4")
    (root / "videos" / "one.mp4").unlink()
    flags = ("--data.num-frames", "1", "--emcl.mode", "off")
    results = run("msrvtt-9k", root, tmp_path / "run", *flags, doctor=False, again=False)
    assert (results["queries"], results["gallery"]) == (1000, 1000)
    assert results["rows"][0]["text_to_video"] == {
        "R@1": 0.0,
        "R@5": 0.0,
        "R@10": 0.0,
        "R@50": 0.0,
        "MdR": 500.5,
        "MnR": 500.5,
    }
