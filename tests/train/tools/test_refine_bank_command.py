"""`emcl-train refine --queries`: rows with one more number, their table by inner product, and what is said of them."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from emcl_kernels import Refiner
from emcl_kernels.refine import EM, Whitening
from emcl_train import cli
from emcl_train.evaluation.metrics import ranks, retrieval_metrics
from emcl_train.tools import expectation as expectations
from emcl_train.tools import paired
from emcl_train.tools.expectation import MEASURED, Expectation, expectation
from emcl_train.tools.paired import rows_among

GENERATOR = np.random.default_rng(0)
VIDEO = (GENERATOR.normal(size=(63, 24)) + 0.5).astype(np.float32)
TEXT = (VIDEO[:41] + 1.2 * GENERATOR.normal(size=(41, 24))).astype(np.float32)
BANK = (GENERATOR.normal(size=(30, 24)) + 0.5).astype(np.float32)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, rows in (("text", TEXT), ("video", VIDEO), ("bank", BANK)):
        np.save(f"{name}.npy", rows)
        save_file({"rows": torch.from_numpy(rows)}, f"{name}.safetensors")
        np.savez(f"{name}.npz", rows)
        fixed = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), 24)
        pq.write_table(pa.table({"rows": fixed, "id": np.arange(len(rows))}), f"{name}.parquet")
    np.save("pairs.npy", np.arange(41))
    return tmp_path


def run(*arguments: str) -> int:
    return cli.main(["refine", "text.npy", "video.npy", "--out", "out", *arguments])


READ = {
    "npy": np.load,
    "npz": lambda path: np.load(path)["arr_0"],
    "safetensors": lambda path: load_file(path)["rows"].numpy(),
    "parquet": lambda path: np.array(pq.read_table(path)["rows"].to_pylist(), dtype=np.float32),
}


@pytest.mark.parametrize("form", READ)
def test_rows_are_those_of_the_refiner_in_every_format(folder, form, capsys):
    arguments = ["refine", f"text.{form}", f"video.{form}", "--out", "out", "--queries", f"bank.{form}"]
    assert cli.main(arguments) == 0
    refiner = Refiner().fit(TEXT, VIDEO, text_bank=BANK)
    for side, expected in (("text", refiner.transform_text(TEXT)), ("video", refiner.transform_video(VIDEO))):
        found = READ[form](folder / "out" / f"{side}.{form}")
        assert found.dtype == np.float32
        assert found.shape == (len(expected), 25)
        assert np.abs(found - expected).max() < 1e-6
    assert torch.equal(Refiner.load("out/map.safetensors").bank("text"), refiner.bank("text"))
    assert (
        f"bank: bank.{form}, 30 texts that search videos, the other direction is as without it; rows have 25 numbers: "
        "compare them by inner product, never by cosine"
    ) in capsys.readouterr().out


def test_a_bank_of_videos_corrects_texts_and_its_settings_are_flags(folder, capsys):
    flags = ["--query-side", "video", "--num-neighbors", "3", "--bank-weight", "0.7"]
    assert run("--queries", "bank.npy", *flags) == 0
    refiner = Refiner(num_neighbors=3, bank_weight=0.7).fit(TEXT, VIDEO, video_bank=BANK)
    assert np.array_equal(np.load("out/text.npy"), refiner.transform_text(TEXT))
    assert np.array_equal(np.load("out/video.npy"), refiner.transform_video(VIDEO))
    assert set(np.load("out/video.npy")[:, -1]) == {1.0}
    assert "30 videos that search texts" in capsys.readouterr().out


@pytest.mark.parametrize("side", ["text", "video"])
def test_the_table_is_of_inner_products(folder, side):
    # A weight so large that cosines of the longer rows would rank otherwise.
    assert run("--queries", "bank.npy", "--query-side", side, "--pairs", "pairs.npy", "--bank-weight", "3") == 0
    text, video = np.load("out/text.npy"), np.load("out/video.npy")
    scores = torch.from_numpy(text @ video.T)
    results = json.loads((folder / "out" / "results.json").read_text())
    assert results["after"]["text_to_video"] == retrieval_metrics(ranks(scores, torch.arange(41)))
    assert results["after"]["video_to_text"] == retrieval_metrics(ranks(scores[:, :41].T, torch.arange(41)))
    assert results["bank"] == {"side": side, "rows": 30, "known": 0, "looked_at": 41 if side == "text" else 63}

    # The direction that the bank does not serve is as without it.
    other = {"text": "video_to_text", "video": "text_to_video"}[side]
    assert run("--pairs", "pairs.npy") == 0
    without = json.loads((folder / "out" / "results.json").read_text())
    assert results["after"][other] == without["after"][other]
    assert results["after"] != without["after"]
    assert "bank" not in without


@pytest.mark.parametrize(
    "make", [lambda x: x, lambda x: 2 * x, lambda x: x.astype(np.float16)], ids=["", "scaled", "half"]
)
def test_test_queries_in_the_bank_are_told(folder, capsys, make):
    np.save("bank.npy", make(np.concatenate([BANK, TEXT[:7]])))
    assert run("--queries", "bank.npy", "--pairs", "pairs.npy", "--json", "result.json") == 0
    warning = "7 of 41 texts are in the bank themselves, as no new query will be, so the table promises too much"
    assert f"warning: {warning}" in capsys.readouterr().out
    assert any(line.startswith(warning) for line in json.loads((folder / "result.json").read_text())["warnings"])


def test_rows_among_counts_equal_rows(monkeypatch):
    monkeypatch.setattr(paired, "CHUNK", 5)
    assert rows_among(TEXT, torch.from_numpy(TEXT[[3, 3, 5]])) == (2, 41)
    assert rows_among(TEXT.astype(np.float64), TEXT[:14]) == (14, 41)
    assert rows_among(torch.from_numpy(TEXT), BANK) == (0, 41)
    monkeypatch.setattr(paired, "LOOKED_AT", 11)
    assert rows_among(TEXT, TEXT) == (11, 11)


def test_a_result_says_how_rows_are_compared(folder):
    assert run("--queries", "bank.npy", "--json", "result.json") == 0
    result = json.loads((folder / "result.json").read_text())
    assert (result["similarity"], result["bank"]) == ("dot", {"side": "text", "rows": 30})
    assert run("--json", "result.json") == 0
    result = json.loads((folder / "result.json").read_text())
    assert (result["similarity"], result["bank"]) == ("cosine", None)


def test_a_table_whose_column_is_wider_has_no_note_of_its_old_width(folder):
    table = pq.read_table("text.parquet").replace_schema_metadata({"huggingface": "{...24...}", "mine": "stays"})
    pq.write_table(table, "noted.parquet")
    arguments = ["refine", "noted.parquet", "video.npy", "--out", "out"]
    assert cli.main([*arguments, "--queries", "bank.npy"]) == 0
    assert pq.read_schema("out/text.parquet").metadata == {b"mine": b"stays"}
    assert cli.main(arguments) == 0
    assert pq.read_schema("out/text.parquet").metadata == table.schema.metadata


BAD = {
    "too few": (["--queries", "few.npy"], "--queries few.npy has 4 rows, fewer than --num-neighbors 10"),
    "another width": (["--queries", "narrow.npy"], "narrow.npy has shape [30, 3] but text.npy is 24 wide"),
    "not finite": (["--queries", "nan.npy"], "--queries nan.npy: text_bank"),
    "no floats": (["--queries", "whole.npy"], "whole.npy holds int64 numbers; expected floats, write it as float32"),
    "no file": (["--queries", "absent.npy"], "there is no file absent.npy"),
    "a setting without a bank": (["--num-neighbors", "3"], "--num-neighbors is of a bank, and there is none"),
    "a side without a bank": (["--query-side", "video"], "--query-side is of a bank, and there is none"),
    "no neighbours": (["--queries", "bank.npy", "--num-neighbors", "0"], "num_neighbors is 0; expected at least 1"),
}


@pytest.mark.parametrize("plan", [[], ["--dry-run"]], ids=["", "plan"])
@pytest.mark.parametrize("name", BAD)
def test_bad_banks_are_named_and_nothing_is_written(folder, capsys, name, plan):
    if plan and name == "not finite":
        pytest.skip("a plan reads no rows")
    np.save("whole.npy", np.ones((30, 24), dtype=np.int64))
    np.save("few.npy", BANK[:4])
    np.save("narrow.npy", BANK[:, :3])
    np.save("nan.npy", np.where(np.arange(24) == 3, np.nan, BANK).astype(np.float32))
    arguments, message = BAD[name]
    assert run(*arguments, *plan) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert message in said, said
    assert not (folder / "out" / "text.npy").exists()


def test_a_bank_is_not_written_over(folder, capsys):
    assert run() == 0
    assert cli.main(["refine", "text.npy", "video.npy", "--out", "out", "--queries", "out/text.npy"]) == 1
    assert "out/text.npy would be written over the queries of the bank" in capsys.readouterr().err


def test_a_plan_names_the_bank_and_writes_nothing(folder, capsys):
    assert run("--queries", "bank.npy", "--dry-run") == 0
    assert "bank of texts: bank.npy, 30 × 24" in capsys.readouterr().out
    assert not (folder / "out").exists()


# ---- what is said of hubs and gains ----------------------------------------------------------------------------------


def test_hubs_before_and_after_are_printed_and_kept(folder, capsys):
    assert run("--pairs", "pairs.npy", "--json", "result.json") == 0
    found = Refiner().fit(TEXT, VIDEO).diagnose(TEXT, VIDEO)
    before, after = (of["text→video"] for of in (found.hubness_before, found.hubness_after))
    assert f"hubs (skewness of N10): text→video {before:.2f} before, {after:.2f} after; video→text " in (
        capsys.readouterr().out
    )
    result = json.loads((folder / "result.json").read_text())
    assert result["hubness"] == result["table"]["hubness"]
    assert result["hubness"]["before"]["text→video"] == pytest.approx(before)


def test_few_rows_are_a_warning_also_where_no_pairs_are_known(folder, capsys):
    for name, rows in (("text", TEXT), ("video", VIDEO)):
        np.save(f"{name}.npy", rows[:5])
    assert run("--json", "result.json") == 0
    assert "warning: the map was fitted to 5 rows" in capsys.readouterr().out
    result = json.loads((folder / "result.json").read_text())
    assert result["table"] is None
    assert len(result["warnings"]) >= 1


@pytest.mark.parametrize(
    ("flags", "of"),
    [
        ([], "both directions"),
        (["--queries", "bank.npy"], "text→video"),
        (["--queries", "bank.npy", "--query-side", "video"], "video→text"),
    ],
)
def test_what_to_expect_is_said_with_its_figures(folder, capsys, monkeypatch, flags, of):
    monkeypatch.setattr(expectations, "MEASURED", {("whitening", of): Expectation(of, 1.75, -0.2, 4.0, 4)})
    monkeypatch.setattr(expectations, "SMALLEST_BANK", 30)
    for name, rows in (("text", TEXT), ("video", VIDEO)):
        np.save(f"{name}.npy", np.concatenate([rows, rows + 0.1]))
    assert run(*flags) == 0
    assert (
        f"what to expect: on 4 sets that were not used to choose the defaults R@1 of {of} rose by 1.8 points in the "
        "mean, by -0.2 to +4.0 a set (docs/refine.md)"
    ) in capsys.readouterr().out
    assert run(*flags, "--strength", "0.5") == 0
    assert "what to expect" not in capsys.readouterr().out  # of other settings nothing was measured

    np.save("text.npy", TEXT)  # of few rows, of which a warning speaks
    assert run(*flags) == 0
    assert "what to expect" not in capsys.readouterr().out


def test_what_to_expect_is_of_default_settings():
    rows = {"text": TEXT, "video": VIDEO}
    bank = np.concatenate([BANK, BANK])
    assert expectation(Refiner().fit(**rows)) is MEASURED["whitening", "both directions"]
    assert expectation(Refiner(EM(num_bases=5, seed=3)).fit(**rows)) is None
    assert expectation(Refiner(Whitening(strength=0.1)).fit(**rows)) is None
    assert expectation(Refiner(normalize=False).fit(**rows)) is None
    assert expectation(Refiner().fit(**rows, text_bank=bank)) is MEASURED["whitening", "text→video"]
    assert expectation(Refiner("none").fit(**rows, video_bank=bank)) is MEASURED["none", "video→text"]
    assert expectation(Refiner().fit(**rows, text_bank=bank, video_bank=bank)) is None
    assert expectation(Refiner().fit(**rows, text_bank=BANK)) is None  # smaller than any that was measured
    assert expectation(Refiner(bank_weight=0.3).fit(**rows, text_bank=bank)) is None
    assert expectation(Refiner(bank_weight=0.3).fit(**rows)) is MEASURED["whitening", "both directions"]
    assert expectation(Refiner("none").fit(**rows)) is None


def test_a_map_that_is_fitted_to_nothing_needs_no_rows():
    few = {"text": TEXT[:5], "video": VIDEO[:5]}
    assert not any("was fitted to 5 rows" in line for line in Refiner("none").fit(**few).diagnose(**few).warnings)
    assert any("was fitted to 5 rows" in line for line in Refiner().fit(**few).diagnose(**few).warnings)
