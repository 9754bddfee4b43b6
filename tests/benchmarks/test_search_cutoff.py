"""The experiment of the cut-off: its ways are the tool's, its figures by hand, and its record is a table."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from torch.nn.functional import normalize

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import search_cutoff as experiment  # noqa: E402
import search_cutoff_ways as ways  # noqa: E402

from emcl_kernels import Refiner  # noqa: E402
from emcl_kernels.testing import clustered_rows  # noqa: E402
from emcl_train.search.cutoff import cutoff_of, held_out_scores, unrelated_scores  # noqa: E402


@pytest.fixture
def of() -> experiment.Set:
    video = clustered_rows(60, 36) + 0.1
    text = normalize(video + 0.2 * clustered_rows(60, 36), dim=-1)
    return experiment.Set(text.double().numpy(), normalize(video, dim=-1).double().numpy())


@pytest.mark.parametrize("texts", [24, 13])
def test_ways_are_those_of_the_refiner(of, texts):
    bank, gallery, new = np.arange(texts), np.arange(24, 24 + texts), np.arange(50, 60)
    text, video, queries = (rows.astype(np.float32) for rows in (of.text[bank], of.video[gallery], of.text[new]))
    found = experiment.kinds(of, bank, gallery)

    refiner = Refiner().fit(text, video)
    plain = found[experiment.MAP].queries(of.text[new]) @ found[experiment.MAP].items.T
    assert plain == pytest.approx(refiner.scores(queries, video).numpy(), abs=2e-6)

    refiner.set_bank(text)
    kind = found[experiment.BANK]
    assert kind.queries(of.text[new]) @ kind.items.T == pytest.approx(refiner.scores(queries, video).numpy(), abs=2e-6)
    settings = {"num_neighbors": refiner.num_neighbors, "bank_weight": refiner.bank_weight}
    one_pass = unrelated_scores(refiner.transform_text(text), [refiner.transform_video(video)], **settings)
    assert kind.of_bank_in_map == pytest.approx(one_pass, abs=2e-6)
    held_out = held_out_scores(text, lambda: [video], lambda rows: Refiner().fit(rows, video))
    assert kind.of_bank == pytest.approx(held_out, abs=2e-6)

    alone = Refiner("none").fit(text, video, text_bank=text)
    kind = found[experiment.BANK_ALONE]
    assert kind.queries(of.text[new]) @ kind.items.T == pytest.approx(alone.scores(queries, video).numpy(), abs=2e-6)


def test_a_split_shares_no_pair_and_has_a_third_of_queries_without_an_answer():
    for split in experiment.splits(100, 5):
        together = np.concatenate([split.bank, split.gallery, split.unanswerable])
        assert sorted(together) == list(range(100))
        assert [len(part) for part in (split.bank, split.gallery, split.unanswerable)] == [40, 40, 20]


def test_auroc_and_the_least_error_by_hand():
    answered, unanswered = np.array([0.2, 0.5, 0.9]), np.array([0.1, 0.5])
    assert experiment.auroc(answered, unanswered) == pytest.approx((1 + 1.5 + 2) / 6)
    # Cut at 0.1: nothing of the three is missed, one of two is a false alarm; at 0.5: two are missed, none is.
    assert experiment.least_balanced_error(answered, unanswered) == pytest.approx(0.25)


def test_figures_over_all_splits_are_means_of_splits(of):
    found = experiment.errors(of, 3)
    for way, figures in found["intervals"].items():
        for figure in ("AUROC", "false alarms", "misses", "balanced error", "R@1"):
            mean, low, high = figures[figure]
            assert mean == pytest.approx(np.mean(found["per split"][way][figure]))
            assert low <= mean <= high


def test_the_chosen_way_is_the_tools():
    best = np.random.default_rng(0).gumbel(size=57)
    assert ways.WAYS[ways.CHOSEN](best, 0.95) == pytest.approx(cutoff_of(best).score)


def test_every_way_finds_the_share_of_the_scores_that_it_assumes():
    draw = np.random.default_rng(0)
    normal, extreme = draw.normal(size=20_000), draw.gumbel(size=20_000)
    for name, of_kind in (("median + 1.645 · 1.4826 · MAD", normal), ("the same below the median", normal),
                          ("Gumbel, line through the lower 60 %", extreme), ("Gumbel, mean and deviation", extreme),
                          ("quantile", normal)):  # fmt: skip
        assert (of_kind <= ways.WAYS[name](of_kind, 0.95)).mean() == pytest.approx(0.95, abs=0.01)
    both = np.concatenate([normal[:16_000], draw.normal(8, 0.5, 4_000)])
    assert (normal <= ways.WAYS["two normal distributions"](both, 0.95)).mean() == pytest.approx(0.95, abs=0.01)


def test_a_record_and_its_table_are_written_once(of, tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "mine.npy", np.stack([of.video, of.text]).astype(np.float32))
    asked = ["--splits", "2", "--out", str(tmp_path), "--name", "r"]
    monkeypatch.setattr(sys, "argv", ["search_cutoff.py", str(tmp_path), *asked])
    experiment.main()
    record = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert record["running"] is False
    assert record["sets"]["mine"]["pairs"] == 60
    table = (tmp_path / "r.md").read_text(encoding="utf-8")
    assert "| mine | cosine |" in table
    assert "has not ended" not in table
    with pytest.raises(SystemExit):
        experiment.main()
    assert "records are never edited" in capsys.readouterr().err
