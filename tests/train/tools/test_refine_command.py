"""`emcl-train refine`: formats in and out, the table, and what it says of files that cannot be used."""

import dataclasses
import inspect
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fake_run import make_run
from safetensors.torch import load_file, save_file

from emcl_kernels import EMRefiner, Refiner
from emcl_kernels.refine import EM
from emcl_kernels.refine.maps import KINDS
from emcl_train import cli
from emcl_train.config import OF_BANK, RefineConfig
from emcl_train.runs.checksums import read_checksums
from emcl_train.tools.arrays import column_of, read_embeddings

FAST = ["--map", "em", "--num-bases", "5", "--num-starts", "1"]
GENERATOR = np.random.default_rng(0)
VIDEO = (GENERATOR.normal(size=(63, 24)) + 0.5).astype(np.float32)
TEXT = (VIDEO[:41] + 1.2 * GENERATOR.normal(size=(41, 24))).astype(np.float32)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the same embeddings in every format, as the working directory."""
    monkeypatch.chdir(tmp_path)
    for name, rows in (("text", TEXT), ("video", VIDEO)):
        np.save(f"{name}.npy", rows)
        np.savez(f"{name}.npz", rows)
        np.savez(f"{name}-two.npz", wanted=rows, other=rows[:, :3])
        save_file({"wanted": torch.from_numpy(rows), "ids": torch.arange(3)}, f"{name}.safetensors")
        lists = pa.array(list(rows), type=pa.list_(pa.float32()))
        pq.write_table(pa.table({"id": np.arange(len(rows)), "wanted": lists}), f"{name}.parquet")
        fixed = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), 24)
        pq.write_table(pa.table({"wanted": fixed, "id": np.arange(len(rows))}), f"{name}-fixed.parquet")
    np.save("both.npy", np.stack([TEXT, VIDEO[:41]]))
    return tmp_path


def run(*arguments: str) -> int:
    return cli.main(["refine", *arguments, "--out", "out", *FAST])


READ = {
    "{}.npy": lambda path: np.load(path),
    "{}.npz": lambda path: np.load(path)["arr_0"],
    "{}-two.npz:wanted": lambda path: np.load(path)["wanted"],
    "{}.safetensors:wanted": lambda path: load_file(path)["wanted"].numpy(),
    "{}.parquet": lambda path: np.array(pq.read_table(path)["wanted"].to_pylist(), dtype=np.float32),
    "{}-fixed.parquet:wanted": lambda path: np.array(pq.read_table(path)["wanted"].to_pylist(), dtype=np.float32),
}


@pytest.mark.parametrize("form", READ)
def test_refined_rows_come_in_the_format_of_the_source(folder, form):
    assert run(form.format("text"), form.format("video")) == 0
    suffix = form.split(":")[0].rsplit(".", 1)[1]
    assert sorted(path.name for path in (folder / "out").iterdir()) == sorted(
        ["checksums.json", "map.safetensors", f"text.{suffix}", f"video.{suffix}"]
    )
    refiner = EMRefiner(num_bases=5, num_starts=1).fit(TEXT, VIDEO)
    for side, expected in (("text", refiner.transform_text(TEXT)), ("video", refiner.transform_video(VIDEO))):
        refined = READ[form](folder / "out" / f"{side}.{suffix}")
        assert refined.dtype == np.float32
        assert np.abs(refined - expected).max() < 1e-6
    loaded = EMRefiner.load(folder / "out" / "map.safetensors")
    assert np.array_equal(loaded.transform_text(TEXT), refiner.transform_text(TEXT))


@pytest.mark.parametrize("source", ["text.parquet", "text-fixed.parquet"])
def test_other_columns_of_a_parquet_file_stay(folder, source):
    assert run(source, "video.npy") == 0
    before, after = pq.read_table(source), pq.read_table("out/text.parquet")
    assert after.schema.names == before.schema.names
    assert after.schema.field("wanted").type == before.schema.field("wanted").type
    assert after["id"].equals(before["id"])


def test_two_columns_of_one_parquet_file_give_their_table(folder, capsys):
    columns = {name: pa.array(list(part)) for name, part in zip(("text", "video"), np.load("both.npy"), strict=True)}
    pq.write_table(pa.table(columns), "both.parquet")
    assert run("both.parquet:text", "both.parquet:video", "--paired") == 0
    assert "T→V" in capsys.readouterr().out
    assert (folder / "out" / "results.json").is_file()


def test_sides_may_come_in_different_formats_and_dtypes(folder):
    save_file({"x": torch.from_numpy(TEXT).bfloat16()}, "half.safetensors")
    np.save("double.npy", VIDEO.astype(np.float64))
    assert run("half.safetensors", "double.npy") == 0
    assert load_file("out/text.safetensors")["x"].dtype == torch.bfloat16
    assert np.load("out/video.npy").dtype == np.float64


def test_known_pairs_give_a_table_with_intervals(folder, capsys):
    assert run("both.npy:0", "both.npy:1", "--paired") == 0
    out = capsys.readouterr().out
    assert "before" in out
    assert "T→V difference in points, 95 % of a paired bootstrap over queries: R@1 " in out
    results = json.loads((folder / "out" / "results.json").read_text())
    for direction in ("text_to_video", "video_to_text"):
        before, after = (results[when][direction]["R@1"] for when in ("before", "after"))
        gain = results["difference"][direction]["R@1"]
        assert gain["mean"] == pytest.approx(after - before)
        assert gain["low"] <= gain["mean"] <= gain["high"]


def test_a_pairs_file_says_which_video_a_text_belongs_to(folder):
    order = np.random.default_rng(1).permutation(41)
    np.save("shuffled.npy", VIDEO[:41][order])
    place = np.argsort(order)
    np.save("pairs.npy", place)
    np.savetxt("pairs.txt", place, fmt="%d")
    found = []
    for pairs in ("pairs.npy", "pairs.txt"):
        assert run("text.npy", "shuffled.npy", "--pairs", pairs) == 0
        found.append(json.loads((folder / "out" / "results.json").read_text()))
    assert run("both.npy:0", "both.npy:1", "--paired") == 0
    paired = json.loads((folder / "out" / "results.json").read_text())
    assert found[0] == found[1]
    assert found[0]["before"] == paired["before"]
    assert found[0]["before"]["text_to_video"]["R@1"] > 50


def test_videos_without_a_text_are_found_and_do_not_search(folder, capsys):
    order = np.random.default_rng(2).permutation(63)
    np.save("shuffled.npy", VIDEO[order])
    np.save("pairs.npy", np.argsort(order)[:41])
    assert run("text.npy", "shuffled.npy", "--pairs", "pairs.npy") == 0
    assert "41 texts, 63 videos; V→T of the 41 with a text" in capsys.readouterr().out
    before = json.loads((folder / "out" / "results.json").read_text())["before"]
    similarity = TEXT @ (VIDEO / np.linalg.norm(VIDEO, axis=1, keepdims=True)).T
    assert before["text_to_video"]["R@1"] == pytest.approx(100 * (similarity.argmax(1) == np.arange(41)).mean())
    similarity = (TEXT / np.linalg.norm(TEXT, axis=1, keepdims=True)) @ VIDEO[:41].T
    assert before["video_to_text"]["R@1"] == pytest.approx(100 * (similarity.argmax(0) == np.arange(41)).mean())


def test_fitting_does_not_use_the_pairs(folder):
    assert run("both.npy:0", "both.npy:1", "--paired") == 0
    known = np.load("out/text.npy")
    assert run("both.npy:0", "both.npy:1") == 0
    assert np.array_equal(np.load("out/text.npy"), known)


def test_settings_are_those_of_the_maps():
    """Each setting of a map is a flag, and its help names the map's default."""
    of_maps = {field.name: field for kind in KINDS.values() for field in dataclasses.fields(kind)}
    settings = {field.name: field.default for field in dataclasses.fields(RefineConfig)}
    assert set(of_maps) - {"eps"} == set(settings) - {"map", "normalize", *OF_BANK}
    assert set(settings.values()) == {"whitening", None, True}

    text = inspect.getsource(RefineConfig)
    for kind in KINDS.values():
        for field in dataclasses.fields(kind):
            if field.name != "eps":
                assert f"{field.default}" in text.split(f"    {field.name}:")[1].split('    """')[1], field.name
    for name in OF_BANK:
        assert f"({getattr(Refiner(), name)})" in text.split(f"    {name}:")[1].split('    """')[1], name


@pytest.mark.parametrize("name", KINDS)
def test_each_map_has_its_default(folder, name):
    arguments = ["--map", name] if name != "whitening" else []
    if name == "em":
        arguments += ["--num-bases", "5"]
    assert cli.main(["refine", "text.npy", "video.npy", "--out", "out", *arguments]) == 0
    expected = Refiner(EM(num_bases=5) if name == "em" else name).fit(TEXT, VIDEO)
    assert np.array_equal(np.load("out/text.npy"), expected.transform_text(TEXT))
    assert repr(Refiner.load(folder / "out" / "map.safetensors")) == repr(expected)


def test_a_setting_of_another_map_is_named(folder, capsys):
    assert cli.main(["refine", "text.npy", "video.npy", "--out", "out", "--num-bases", "5"]) == 1
    assert (
        "error: num_bases is no setting of the map 'whitening', but of 'em'; leave --num-bases out, or pass --map em"
        in capsys.readouterr().err
    )
    assert not (folder / "out").exists()


BAD = {
    "no file": (("absent.npy", "video.npy"), "there is no file absent.npy; pass embeddings as one of .npy"),
    "wrong type": (("notes.txt", "video.npy"), "notes.txt is a .txt; expected one of .npy, .npz, .safetensors"),
    "not what it says": (("broken.npy", "video.npy"), "broken.npy cannot be read as .npy"),
    "a broken archive": (("broken.npz", "video.npy"), "broken.npz cannot be read as .npz"),
    "broken tensors": (("broken.safetensors", "video.npy"), "broken.safetensors cannot be read as .safetensors"),
    "a broken table": (("broken.parquet", "video.npy"), "broken.parquet cannot be read as .parquet"),
    "a pickle": (("objects.npy", "video.npy"), "objects.npy cannot be read as .npy: Array can't be memory-mapped"),
    "several arrays": (("text-two.npz", "video.npy"),
                       "text-two.npz holds 2 arrays of embeddings (wanted, other); name one of them, such as "
                       "text-two.npz:wanted"),
    "no such array": (("text.safetensors:absent", "video.npy"), "text.safetensors has no array absent; it holds"),
    "two parts": (("both.npy", "video.npy"), "both.npy holds 2 arrays of embeddings (0, 1); name one of them"),
    "one dimension": (("flat.npy", "video.npy"), "flat.npy has shape [24]; expected [N, D]"),
    "integers": (("integers.npy", "video.npy"), "integers.npy holds int64 numbers; expected floats, write"),
    "NaN": (("nan.npy", "video.npy"), "text holds NaN or infinite values in 1 of its rows 0 to 40, first in row 3"),
    "widths": (("text.npy", "narrow.npy"), "narrow.npy has shape [63, 20] but text.npy is 24 wide"),
    "one row": (("one.npy", "video.npy"), "text has 1 row; a mean and its spread need at least two"),
    "constant": (("constant.npy", "video.npy"), "text has 41 rows that are all the same"),
    "ragged": (("ragged.parquet", "video.npy"), "column wanted has missing values or lists of different lengths"),
    "no vectors": (("numbers.parquet", "video.npy"), "numbers.parquet holds 0 arrays of embeddings (none)"),
    "not as many": (("text.npy", "video.npy", "--paired"), "--paired needs as many texts as videos, got 41 and 63"),
    "both": (("text.npy", "video.npy", "--paired", "--pairs", "x"), "--paired and --pairs were both given"),
    "no pairs": (("text.npy", "video.npy", "--pairs", "x"), "there is no file x; --pairs takes a .npy"),
    "bad pairs": (("text.npy", "video.npy", "--pairs", "notes.txt"), "notes.txt holds no list of row numbers"),
    "pairs of others": (("text.npy", "video.npy", "--pairs", "few.txt"), "expected 41 whole numbers, for each text"),
    "pairs outside": (("text.npy", "video.npy", "--pairs", "far.npy"), "far.npy names rows 0 to 63; expected rows"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_used_is_one_line(folder, capsys, arguments, message):
    for name in ("notes.txt", "broken.npy", "broken.npz", "broken.safetensors", "broken.parquet"):
        (folder / name).write_text("nothing of the kind")
    np.save("objects.npy", np.array([{}], dtype=object))
    np.save("flat.npy", TEXT[0])
    np.save("integers.npy", TEXT.astype(np.int64))
    np.save("nan.npy", np.where(np.arange(41)[:, None] == 3, np.nan, TEXT))
    np.save("narrow.npy", VIDEO[:, :20])
    np.save("one.npy", TEXT[:1])
    np.save("constant.npy", np.repeat(TEXT[:1], 41, 0))
    pq.write_table(pa.table({"wanted": pa.array([[1.0, 2.0], [3.0]])}), "ragged.parquet")
    pq.write_table(pa.table({"id": [1, 2]}), "numbers.parquet")
    np.savetxt("few.txt", np.arange(7), fmt="%d")
    np.save("far.npy", np.arange(41) + 23 * (np.arange(41) == 40))
    assert run(*arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(folder.glob("out/*"))


IN_THE_WAY = {
    "its own source": ("text.npy", "video.npy", "text.npy would be written over the text embeddings"),
    "the other's source": ("video.npy", "text.npy", "text.npy would be written over the video embeddings"),
    "a file of others": ("text-two.npz:wanted", "both.npy:1", "video.npy exists, and no map.safetensors of an earlier"),
}


@pytest.mark.parametrize(("text", "video", "message"), IN_THE_WAY.values(), ids=IN_THE_WAY)
def test_no_file_of_the_user_is_written_over(folder, capsys, text, video, message):
    (folder / "text.npz").unlink()
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert cli.main(["refine", text, video, "--out", ".", *FAST]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "choose another --out" in error
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("name", ["text.npy", "video.npy", "map.safetensors", "results.json"])
def test_what_no_earlier_refine_wrote_stays(folder, capsys, name):
    (folder / "out").mkdir()
    (folder / "out" / name).write_text("of someone else")
    assert run("text.npy", "video.npy") == 1
    assert f"out/{name} exists, and no map.safetensors of an earlier refine" in capsys.readouterr().err
    assert [path.read_text() for path in (folder / "out").iterdir()] == ["of someone else"]


def test_a_map_saved_by_hand_does_not_give_up_what_lies_beside_it(folder, capsys):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    EMRefiner(num_bases=5).fit(TEXT, VIDEO).save("map.safetensors")
    assert cli.main(["refine", "both.npy:0", "both.npy:1", "--out", ".", *FAST]) == 1
    assert "text.npy exists, and no map.safetensors of an earlier refine lies beside it" in capsys.readouterr().err
    assert run("both.npy:0", "both.npy:1") == 0
    (folder / "map.safetensors").write_bytes((folder / "out" / "map.safetensors").read_bytes())
    assert cli.main(["refine", "both.npy:0", "both.npy:1", "--out", ".", *FAST]) == 1
    assert "text.npy is not as refine wrote it; choose another --out" in capsys.readouterr().err
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_a_rerun_replaces_what_refine_wrote_and_nothing_else(folder, capsys):
    assert run("text.npy", "video.npy") == 0
    np.save("out/text.npy", TEXT)
    assert run("text.npy", "video.npy") == 1
    assert "out/text.npy is not as refine wrote it" in capsys.readouterr().err
    (folder / "out" / "text.npz").write_text("mine")
    assert run("text.npz", "video.npz") == 1
    assert "out/text.npz exists, and is not among the files that map.safetensors beside it" in capsys.readouterr().err
    (folder / "out" / "text.npz").unlink()
    for _ in range(2):
        assert run("text.npz", "video.npz") == 0
    assert (np.load("out/text.npy") == TEXT).all()


def test_a_rerun_after_one_that_was_cut_short_goes_through(folder, monkeypatch):
    assert run("text.npy", "video.npy") == 0
    with monkeypatch.context() as patch:
        patch.setattr(Refiner, "transform_video", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run("video.npy", "text.npy")
    assert run("video.npy", "text.npy") == 0


def test_an_edit_in_the_middle_of_a_large_file_is_not_written_over(folder, capsys):
    from emcl_train.tools.refine import fingerprint

    rows = np.zeros((3, 1 << 18), np.float32)  # of 3 MiB: the middle is in neither end
    np.save(folder / "large.npy", rows)
    before = fingerprint(folder / "large.npy")
    mapped = np.load(folder / "large.npy", mmap_mode="r+")
    mapped[1, 1 << 17] = 1
    mapped.flush()
    assert fingerprint(folder / "large.npy") != before


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_files_have_the_mode_that_the_user_gives_new_ones(folder, mask, mode):
    before = os.umask(mask)
    try:
        for form in ("{}.npy", "{}.npz", "{}.safetensors:wanted", "{}.parquet"):
            assert run(form.format("text"), form.format("video")) == 0
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in (folder / "out").iterdir()} == {
        path.name: mode for path in (folder / "out").iterdir()
    }


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.large_list(pa.float32()), pa.list_(pa.float32(), 24)])
def test_a_column_is_read_and_written_in_the_chunks_of_its_table(tmp_path, kind):
    """32-bit offsets of lists end at 2³¹ values, which a column in one piece may pass and its chunks cannot."""
    sizes = [30, 0, 1, 32]
    parts = [VIDEO[start : start + size] for start, size in zip([0, 30, 30, 31], sizes, strict=True)]
    column = pa.chunked_array([pa.array(list(part), type=kind) for part in parts])
    written = column_of(pa, kind, sizes, VIDEO)
    assert [len(chunk) for chunk in written.chunks] == sizes
    assert written.type == kind
    assert written.to_pylist() == column.to_pylist()
    pq.write_table(pa.table({"wanted": column}), tmp_path / "x.parquet", row_group_size=20)
    assert (read_embeddings(str(tmp_path / "x.parquet")).rows == VIDEO).all()


def test_pairs_and_earlier_results_as_sources_are_not_written_over(folder, capsys):
    assert run("text.npy", "video.npy") == 0
    assert run("out/video.npy", "video.npy") == 1
    assert "out/video.npy would be written over the text embeddings" in capsys.readouterr().err
    np.savetxt("out/results.json", np.arange(41), fmt="%d")
    assert run("text.npy", "both.npy:1", "--pairs", "out/results.json") == 1
    assert "out/results.json would be written over the pairs" in capsys.readouterr().err


def test_a_rerun_replaces_its_own_files_and_keeps_no_table_of_another_map(folder):
    assert run("both.npy:0", "both.npy:1", "--paired") == 0
    assert (folder / "out" / "results.json").exists()
    assert run("video.npy", "text.npy") == 0
    left = sorted(path.name for path in (folder / "out").iterdir())
    assert left == ["checksums.json", "map.safetensors", "text.npy", "video.npy"]
    assert np.load("out/text.npy").shape == VIDEO.shape


@pytest.mark.parametrize("form", ["{}.npy", "{}.npz", "{}.safetensors:wanted", "{}.parquet"])
def test_files_that_were_written_have_checksums(folder, capsys, form):
    assert run(form.format("text"), form.format("video")) == 0
    names = {path.name for path in (folder / "out").iterdir()} - {"checksums.json"}
    assert set(read_checksums(folder / "out")) == names
    assert cli.main(["verify", "out"]) == 0
    capsys.readouterr()
    for name in names:
        before = (folder / "out" / name).read_bytes()
        data = bytearray(before)
        data[-1] ^= 1
        (folder / "out" / name).write_bytes(data)
        assert cli.main(["verify", "out"]) == 1
        out = capsys.readouterr().out
        assert f"damaged: out/{name}: it is not what checksums.json" in out
        assert "1 damaged" in out
        (folder / "out" / name).write_bytes(before)


def test_a_refined_file_that_is_damaged_is_not_refined_again(folder, capsys):
    assert run("text.npy", "video.npy") == 0
    data = bytearray((folder / "out" / "text.npy").read_bytes())
    data[-2] ^= 1
    (folder / "out" / "text.npy").write_bytes(data)
    (folder / "out").rename(folder / "first")
    capsys.readouterr()
    assert run("first/text.npy", "first/video.npy") == 1
    error = capsys.readouterr().err
    assert "first/text.npy is damaged or was replaced" in error
    assert "; copy it again, or write it again; " in error
    assert error.count("\n") == 1

    # As it is, if that was on purpose.
    assert cli.main(["verify", "first", "--accept"]) == 0
    assert run("first/text.npy", "first/video.npy") == 0


def test_another_programs_checksums_do_not_stop_a_user_who_has_such_a_file(folder, capsys):
    (folder / "checksums.json").write_text('{"text.npy": "sha256:12"}')
    assert run("text.npy", "video.npy") == 0
    assert "whether text.npy has changed cannot be seen" in capsys.readouterr().err


def test_what_is_wrong_with_the_program_is_no_users_error(folder, monkeypatch):
    def broken(*_, **__):
        raise ValueError("of the program")

    monkeypatch.setattr("emcl_train.tools.refine._save_map", broken)
    with pytest.raises(ValueError, match="of the program"):
        run("text.npy", "video.npy")


def test_a_large_array_is_mapped_and_not_read(folder):
    assert isinstance(read_embeddings("both.npy:1").rows, np.memmap)


def test_a_run_is_refined_by_its_folder(folder, capsys):
    make_run(folder / "run")
    assert cli.main(["refine", "run", "--out", "out", *FAST]) == 0
    out = capsys.readouterr().out
    assert "T→V" in out
    assert "difference in points" in out

    tensors = load_file("run/embeddings.safetensors")
    frames = torch.nn.functional.normalize(tensors["frames"], dim=-1)
    mask = tensors["frame_mask"][..., None]
    video = torch.nn.functional.normalize((frames * mask).sum(1) / mask.sum(1), dim=-1)
    refiner = EMRefiner(num_bases=5, num_starts=1).fit(tensors["text"].numpy(), video.numpy())
    assert np.abs(np.load("out/video.npy") - refiner.transform_video(video.numpy())).max() < 1e-5
    assert np.abs(np.load("out/text.npy") - refiner.transform_text(tensors["text"].numpy())).max() < 1e-5
    results = json.loads((folder / "out" / "results.json").read_text())
    assert (results["texts"], results["videos"]) == (len(tensors["text"]), len(video))
    assert cli.main(["verify", "out"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["text.npy"], "refine was given text.npy alone; name the file of the videos, too, or a folder that has both"),
        (["none"], "none is no folder of a run or of features, and has not both text.npy and video.npy; pass two"),
    ],
)
def test_one_side_alone_is_refused(folder, capsys, arguments, message):
    assert cli.main(["refine", *arguments, "--out", "out"]) == 1
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (folder / "out").exists()
