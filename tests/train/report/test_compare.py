"""Two runs query by query, from fake run folders."""

import json
import re
from io import StringIO

import numpy as np
import pytest
import torch
from fake_run import make_run
from rich.console import Console
from safetensors.torch import load_file

from emcl_train.errors import UserError
from emcl_train.evaluation.bootstrap import Interval, signed
from emcl_train.report import report_runs
from emcl_train.report.compare import chance_notes, compare
from emcl_train.report.groups import load_group
from emcl_train.runs.files import write_json_atomic
from emcl_train.runs.state import save_tensors_atomic


def edit(path, change):
    """Change the tensors of a run folder in place."""
    file = path / "embeddings.safetensors"
    save_tensors_atomic(file, change(load_file(file)))


def shuffled_captions(tensors):
    order = torch.randperm(len(tensors["caption_clip"]), generator=torch.Generator().manual_seed(3))
    return tensors | {"caption_clip": tensors["caption_clip"][order]}


def test_a_run_and_itself_show_no_difference(tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path / name, captions_per_clip=2)
    result = compare(load_group(tmp_path / "a"), load_group(tmp_path / "b"))
    assert result.verdict.startswith("no difference shown")
    assert all((d.interval.low, d.interval.mean, d.interval.high) == (0.0, 0.0, 0.0) for d in result.differences)
    assert result.notes == ()


def test_a_comparison_of_a_run_with_itself_says_so(tmp_path):
    for name in ("a", "seeds/seed-0", "seeds/seed-1"):
        make_run(tmp_path / name)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    one, same = load_group(tmp_path / "a"), load_group(tmp_path / "link")
    assert compare(one, same).notes == (f"{tmp_path / 'link'} is compared with itself, which shows nothing.",)
    seeds, own = load_group(tmp_path / "seeds"), load_group(tmp_path / "seeds" / "seed-1")
    assert compare(seeds, own).notes[0].startswith(f"{tmp_path / 'seeds' / 'seed-1'}: on both sides")


def test_zero_has_no_sign(tmp_path):
    assert [signed(value) for value in (-0.04, 0.0, -0.0, 0.04, -0.06, 2.0)] == ["0.0"] * 4 + ["-0.1", "+2.0"]
    assert str(Interval(-0.01, -0.04, 0.02)) == "0.0 [0.0, 0.0]"
    make_run(tmp_path / "a")
    console = Console(file=StringIO(), width=200)
    report_runs([tmp_path / "a", tmp_path / "a"], console)
    assert not re.search(r"[+-]0\.0(?!\d)", console.file.getvalue())
    assert not re.search(
        r"[+−-]0\.0(?!\d)", re.sub(r"<svg[\s\S]*?</svg>", "", (tmp_path / "a/report.html").read_text())
    )


@pytest.mark.parametrize("captions_per_clip", [1, 3])
def test_shuffled_captions_are_a_difference_with_an_interval(tmp_path, captions_per_clip):
    for name in ("a", "b"):
        make_run(tmp_path / name, captions_per_clip=captions_per_clip)
    edit(tmp_path / "b", shuffled_captions)
    result = compare(load_group(tmp_path / "a"), load_group(tmp_path / "b"))
    first = result.differences[0]
    assert (first.direction, first.metric, first.shown) == ("T→V", "R@1", True)
    assert first.interval.low < first.interval.mean < first.interval.high < 0
    assert first.second - first.first == pytest.approx(first.interval.mean)
    assert f"T→V R@1 {first.interval}" in result.verdict
    assert "some belong to other clips" in result.notes[0]


def test_a_small_change_of_a_few_queries_is_not_shown(tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path / name)

    def spoil_one(tensors):
        similarity = tensors["similarity_on"].clone()
        hit = int((similarity.argmax(1) == tensors["caption_clip"]).nonzero()[0])
        similarity[hit, tensors["caption_clip"][hit]] = -1.0
        return tensors | {"similarity_on": similarity}

    edit(tmp_path / "b", spoil_one)
    first = compare(load_group(tmp_path / "a"), load_group(tmp_path / "b")).differences[0]
    assert first.interval.mean == pytest.approx(-100 / 40)
    assert not first.shown


def test_queries_are_paired_by_clip_and_caption_whatever_their_order(tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path / name)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(5))
    edit(
        tmp_path / "b",
        lambda tensors: (
            tensors
            | {name: tensors[name][order] for name in ("text", "caption_clip", "similarity_on", "similarity_off")}
        ),
    )
    queries = json.loads((tmp_path / "b" / "queries.json").read_text())
    queries["captions"] = [queries["captions"][i] for i in order.tolist()]
    write_json_atomic(tmp_path / "b" / "queries.json", queries)
    result = compare(load_group(tmp_path / "a"), load_group(tmp_path / "b"))
    assert all(d.interval.mean == 0 for d in result.differences)
    assert result.notes == ()


def test_runs_that_share_only_some_queries_say_so_and_others_are_refused(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", clips=30)
    result = compare(load_group(tmp_path / "a"), load_group(tmp_path / "b"))
    assert "Only 30 captions with their clip are in both" in result.notes[0]
    queries = json.loads((tmp_path / "b" / "queries.json").read_text())
    write_json_atomic(
        tmp_path / "b" / "queries.json",
        {"video_ids": [f"x{i}" for i in range(30)], "captions": queries["captions"]},
    )
    with pytest.raises(UserError, match="share no caption"):
        compare(load_group(tmp_path / "a"), load_group(tmp_path / "b"))


def test_captions_of_a_clip_are_drawn_together(tmp_path):
    """Copies of every caption bring no new evidence: the interval stays that of the clips."""
    widths = []
    for copies in (1, 4):
        for name in ("a", "b"):
            make_run(tmp_path / f"{name}{copies}", captions_per_clip=1)
        for name in ("a", "b"):
            path = tmp_path / f"{name}{copies}"
            edit(
                path,
                lambda tensors, copies=copies: {
                    key: value.repeat_interleave(copies, 0)
                    if key in ("text", "caption_clip", "similarity_on", "similarity_off")
                    else value
                    for key, value in tensors.items()
                },
            )
            queries = json.loads((path / "queries.json").read_text())
            queries["captions"] = [caption for caption in queries["captions"] for _ in range(copies)]
            write_json_atomic(path / "queries.json", queries)
        edit(tmp_path / f"b{copies}", lambda t: t | {"similarity_on": t["similarity_on"].flip(1)})
        first = compare(load_group(tmp_path / f"a{copies}"), load_group(tmp_path / f"b{copies}")).differences[0]
        widths.append(first.interval.high - first.interval.low)
    assert widths[0] > 0
    np.testing.assert_allclose(widths[1], widths[0], rtol=1e-9)


def test_report_of_two_runs_prints_the_verdict_and_writes_it(tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path / name)
    edit(tmp_path / "b", shuffled_captions)
    console = Console(width=160, file=StringIO())
    report_runs([tmp_path / "a", tmp_path / "b"], console, json_path=tmp_path / "found.json")
    text = console.file.getvalue()
    assert "Verdict: a difference is shown in T→V R@1" in text
    assert "second is worse" in text
    clips = load_group(tmp_path / "a").runs[0].results["gallery"]
    chance = f"R@1 {100 / clips:.1f}, R@5 {500 / clips:.1f}, R@10 {1000 / clips:.1f}, MnR {(clips + 1) / 2:.1f}"
    assert f"By chance: T→V {chance}; V→T {chance}." in text
    assert "By chance: T→V R@1 " in (tmp_path / "comparison.html").read_text(encoding="utf-8")
    written = json.loads((tmp_path / "found.json").read_text())
    assert [one["run"].rpartition("/")[2] for one in written["runs"]] == ["a", "b"]
    (found,) = written["comparisons"]
    assert found["verdict"] in text.replace("\n", "") or found["verdict"][:60] in text
    assert found["differences"][0]["interval"]["high"] < 0


def test_galleries_of_two_sizes_have_two_chances(tmp_path):
    groups = []
    for name, clips in (("a", 20), ("b", 40)):
        make_run(tmp_path / name)
        group = load_group(tmp_path / name)
        group.runs[0].results["gallery"] = clips
        groups.append(group)
    first, second = chance_notes(*groups)
    assert first.startswith("By chance, first: T→V R@1 5.0, R@5 25.0")
    assert second.startswith("By chance, second: T→V R@1 2.5, R@5 12.5")


def test_a_folder_of_seeds_counts_as_one_run(tmp_path):
    for seed in (10, 2):
        make_run(tmp_path / "seeds" / f"seed-{seed}")
    make_run(tmp_path / "one")
    edit(tmp_path / "seeds" / "seed-10", lambda t: t | {"similarity_on": t["similarity_on"].flip(1)})
    assert [run.path.name for run in load_group(tmp_path / "seeds").runs] == ["seed-2", "seed-10"]
    console = Console(width=160, file=StringIO())
    report_runs([tmp_path / "one", tmp_path / "seeds"], console)
    text = console.file.getvalue()
    assert "2 seeds, mean ± deviation" in text
    assert "averaged over 2 seeds" in text
    result = compare(load_group(tmp_path / "one"), load_group(tmp_path / "seeds"))
    flipped = compare(load_group(tmp_path / "one"), load_group(tmp_path / "seeds" / "seed-10"))
    assert result.differences[0].interval.mean == pytest.approx(flipped.differences[0].interval.mean / 2)


def test_a_verdict_allows_for_eight_metrics(tmp_path):
    """Five spoilt queries leave zero out at 95 %, as one of eight metrics does by chance in a third of cases."""
    for name in ("a", "b"):
        make_run(tmp_path / name, clips=200)

    def spoil(tensors):
        similarity, target = tensors["similarity_on"].clone(), tensors["caption_clip"]
        for hit in (similarity.argmax(1) == target).nonzero().flatten()[:5].tolist():
            second = similarity[hit].topk(2).indices[1]
            similarity[hit, [target[hit], second]] = similarity[hit, [second, target[hit]]]
        return tensors | {"similarity_on": similarity}

    edit(tmp_path / "b", spoil)
    first = compare(load_group(tmp_path / "a"), load_group(tmp_path / "b")).differences[0]
    assert first.interval.high < 0 <= first.strict.high
    assert not first.shown
    assert first.verdict == "not beside seven others"


def test_a_handful_of_clips_is_not_judged(tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path / name, clips=7)
    edit(tmp_path / "b", shuffled_captions)
    result = compare(load_group(tmp_path / "a"), load_group(tmp_path / "b"))
    assert result.verdict == "no difference shown: the runs share 7 clips, too few to tell one from chance."
    assert not any(d.shown for d in result.differences)


def test_runs_that_differ_in_more_than_their_seed_are_no_group(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / f"seed-{seed}")
    results = json.loads((tmp_path / "seed-1" / "results.json").read_text())
    write_json_atomic(tmp_path / "seed-1" / "results.json", results | {"split": "val"})
    with pytest.raises(UserError, match=r"Not measured alike: split \(seed-0: test, seed-1: val\)"):
        load_group(tmp_path)
    write_json_atomic(tmp_path / "seed-1" / "results.json", results)
    config = json.loads((tmp_path / "seed-1" / "config.json").read_text())
    config["train"]["lr"] = 0.5
    write_json_atomic(tmp_path / "seed-1" / "config.json", config)
    with pytest.raises(UserError, match=r"train\.lr was 0\.0001, now 0\.5"):
        load_group(tmp_path)
