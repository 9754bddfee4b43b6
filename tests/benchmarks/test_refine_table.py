"""The refinement experiment: its simple ways by hand, its rows, and that the committed table is of today's default."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from benchmarks.refine import methods, report, run, sign
from emcl_kernels import EMRefiner
from emcl_kernels.testing import assert_close, clustered_rows

RESULTS = Path(run.__file__).parent / "results" / "results.json"


@pytest.fixture
def sides() -> tuple[torch.Tensor, torch.Tensor]:
    video = clustered_rows(40, 36) + 0.1
    return normalize(video + 0.2 * torch.randn(40, 36), dim=-1), normalize(video, dim=-1)


def test_centring_takes_out_a_share(sides):
    for centred, side in zip(methods.centred(*sides, share=0.4), sides, strict=True):
        assert_close("mean", centred.mean(0), 0.6 * side.mean(0))


def test_taking_out_top_directions_takes_them_out(sides):
    for side in methods.without_top(*sides, 0, count=2, taken=1.0, share=1.0):
        assert torch.linalg.matrix_rank(side) <= 34
    before = methods.centred(*sides, share=1.0)
    half = methods.without_top(*sides, 0, count=1, taken=0.5, share=1.0)
    lost = [float((a - b).norm() / a.norm()) for a, b in zip(before, half, strict=True)]
    assert all(0.1 < share < 0.5 for share in lost)


def test_whitening_whitens_and_full_shrinkage_only_scales(sides):
    text, video = methods.whitened(*sides, 0, shrinkage=1e-9, share=0.0)
    assert_close("moments", text.T @ text / 40 + video.T @ video / 40, torch.eye(36).double(), 1e-4)
    text, _ = methods.whitened(*sides, 0, shrinkage=1.0, share=0.0)
    assert_close("direction", normalize(text, dim=-1), sides[0], 1e-9)


def test_a_row_has_mean_deviation_gain_and_interval(sides):
    def shuffled(text: torch.Tensor, video: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        return (text, video) if seed else (text, text)

    figures = run.row({"set": sides}, shuffled, 2)["figures"]["set, text→video"]
    before = run.row({"set": sides}, methods.unchanged, 1)["figures"]["set, text→video"]["mean"]["R@1"]
    assert figures["mean"]["R@1"] == pytest.approx((100 + before) / 2)
    assert figures["deviation"]["R@1"] == pytest.approx((100 - before) / 2)
    mean, low, high = figures["gain"]
    assert mean == pytest.approx((100 - before) / 2)
    assert low <= mean <= high


def test_hubness_of_a_case_by_hand(monkeypatch):
    monkeypatch.setattr(sign, "NEIGHBOURS", 1)
    everyone_has_its_own = torch.eye(4, dtype=torch.float64)
    assert sign.skewness(everyone_has_its_own) == 0.0
    # All four choose item 0: counts 4, 0, 0, 0 lie 3, −1, −1, −1 from their mean; (27 − 3) / 4 over (12 / 4)^1.5.
    assert sign.skewness(torch.tensor([[1.0, 0.0, 0.0, 0.0]]).double().repeat(4, 1)) == pytest.approx(6 / 3**1.5)


def test_what_directions_hold_adds_up(sides):
    found = sign.what_directions_hold(*sides)
    together = found["leading together"]
    assert sum(held["gap"] for held in found["directions"]) == pytest.approx(together["gap"])
    assert sum(held["rows"] for held in found["directions"]) == pytest.approx(together["rows"])
    assert together["rows"] > found["random"]["rows"]


def test_an_experiment_writes_its_table_and_pictures(tmp_path, monkeypatch, capsys):
    for file in run.SETS.values():
        np.save(tmp_path / file, clustered_rows(2, 40, 36).numpy())
    few = methods.methods()
    few = {group: dict(list(members.items())[:1]) for group, members in few.items()}
    monkeypatch.setattr(run, "methods", lambda: few)
    monkeypatch.setattr(run, "halves", partial(run.halves, count=2))
    monkeypatch.setattr(run, "WEIGHTS", (-0.1, 0.1))
    monkeypatch.setattr(run, "TEMPERATURES", (0.5,))
    monkeypatch.setattr("sys.argv", ["run", str(tmp_path), "--out", str(tmp_path / "out")])
    run.main()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "results.json", "sign.png", "table.md", "weight-and-temperature.png",
    ]  # fmt: skip
    assert "- EMRefiner: default, " in capsys.readouterr().out


def test_a_folder_without_the_sets_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["run", str(tmp_path)])
    with pytest.raises(SystemExit):
        run.main()
    assert "has no coco500_clip_vitb16.npy, no msrvtt100_videoclip.npy" in capsys.readouterr().err


def test_the_committed_table_is_of_the_default_and_says_what_the_readme_says():
    results = json.loads(RESULTS.read_text())
    assert results["default"] == repr(EMRefiner())
    assert (RESULTS.parent / "table.md").read_text() == report.table(results)
    groups = results["groups"]
    default = groups["EMRefiner"]["default"]
    assert default["seeds"] == 10
    for group in report.BASELINES:
        assert default["gain"] > max(row["gain"] for row in groups[group].values())
    gains = [cell["gain"][0] for cell in default["figures"].values()]
    assert all(gain >= least for gain, least in zip(gains, (2.4, 1.8, 12.0, 5.0), strict=True))
