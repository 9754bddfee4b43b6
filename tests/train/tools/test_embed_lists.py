"""`embed` of a folder of videos, of texts and of a table: arrays that refine takes, and nothing that shrinks unsaid."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_layouts import SMALL, write_csv
from tiny_videos import write_video

from emcl_train import cli
from emcl_train.runs.contents import load_config
from emcl_train.tools.sides import pooled

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL = SMALL[: SMALL.index("--train.max-steps")]
FAST = ["--map", "em", "--num-bases", "4", "--num-starts", "1"]


@pytest.fixture
def videos(tmp_path, monkeypatch):
    """A folder of four videos, one of them in a folder inside, as `films` in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "films" / "more").mkdir(parents=True)
    for n, name in enumerate(("b.mp4", "a.mkv", "more/c.mp4", "d.mp4")):
        write_video(tmp_path / "films" / name, range(10 * n, 10 * n + 12), size=(32, 32))
    (tmp_path / "films" / "notes.txt").write_text("no film")
    return tmp_path


def embed(*arguments: str) -> int:
    return cli.main(["embed", *arguments, *MODEL])


def test_a_folder_of_videos_is_one_row_each(videos, capsys):
    assert embed("films", "--out", "out") == 0
    said = capsys.readouterr().out
    assert "Random weights: a smoke test" in said
    assert "out: video.npy 4 × 16 (4 videos)" in said
    assert json.loads((videos / "out" / "video_ids.json").read_text()) == ["a.mkv", "b.mp4", "d.mp4", "more/c.mp4"]
    rows = np.load("out/video.npy")
    assert rows.dtype == np.float32
    assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() < 1e-6
    assert len(np.unique(rows.round(4), axis=0)) == 4
    record = json.loads((videos / "out" / "embedding.json").read_text())
    assert (record["videos"], record["texts"], record["width"], record["left_out"]) == (4, 0, 16, {})
    assert sorted(path.name for path in (videos / "out").iterdir()) == [
        *("checksums.json", "embedding.json", "video.npy", "video_ids.json")
    ]
    assert embed("films", "--out", "again") == 0
    assert np.array_equal(np.load("again/video.npy"), rows)


def test_texts_are_one_row_each_and_empty_lines_are_said(videos, capsys):
    (videos / "texts.txt").write_bytes("\ufeffa dog\r\n\r\na cat\u2028 and a dog\n".encode())
    assert embed("texts.txt", "--out", "out") == 0
    said = capsys.readouterr().out
    assert "texts.txt: 1 empty line left out." in said
    assert "out: text.npy 2 × 16 (2 texts)" in said
    assert json.loads((videos / "out" / "texts.json").read_text()) == ["a dog", "a cat\u2028 and a dog"]
    assert np.abs(np.linalg.norm(np.load("out/text.npy"), axis=1) - 1).max() < 1e-6


def test_both_kinds_in_one_folder_are_refined_by_it(videos, capsys):
    (videos / "texts.txt").write_text("a dog\na cat\nrain\n")
    assert embed("films", "--texts", "texts.txt", "--out", "out") == 0
    assert cli.main(["refine", "out", "--out", "refined", *FAST]) == 0
    said = capsys.readouterr().out
    assert "no table: name the pairs" in said
    assert np.load("refined/video.npy").shape == (4, 16)
    assert np.load("refined/text.npy").shape == (3, 16)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_table_gives_both_and_the_pairs(videos, capsys, form):
    rows = [("d.mp4", "a dog"), ("a.avi", "a cat"), ("d.mp4", "rain"), ("more/c.mp4", "snow")]
    if form == "csv":
        write_csv(videos / "films" / "all.csv", "video,caption", *rows)
    else:
        lines = [json.dumps({"video": video, "captions": [text]}) for video, text in rows]
        (videos / "films" / "all.jsonl").write_text("\n".join(lines))
    assert embed(f"films/all.{form}", "--out", "out") == 0
    assert "1 video found under another suffix" in capsys.readouterr().out
    assert json.loads((videos / "out" / "video_ids.json").read_text()) == ["d.mp4", "a.avi", "more/c.mp4"]
    assert json.loads((videos / "out" / "texts.json").read_text()) == ["a dog", "rain", "a cat", "snow"]
    assert np.load("out/pairs.npy").tolist() == [0, 0, 1, 2]

    # Of the same film as without a table, the same row.
    assert embed("films", "--out", "alone") == 0
    assert cli.main(["verify", "out"]) == 0
    assert cli.main(["refine", "out", "--out", "refined", *FAST]) == 0
    said = capsys.readouterr().out
    assert "4 texts, 3 videos" in said
    assert said.rindex("Random weights: a smoke test") > said.index("4 texts, 3 videos")
    results = json.loads((videos / "refined" / "results.json").read_text())
    assert results["videos_with_text"] == 3


def test_a_table_without_splits_is_encoded_as_a_data_set_too(videos, capsys):
    """All of it is the test split; words are counted in it, and refine takes it."""
    write_csv(videos / "films" / "all.csv", "video,caption", ("d.mp4", "a dog"), ("a.mkv", "a cat"), ("b.mp4", "rain"))
    arguments = ["csv", "--data.root", "films", "--out", "out", "--data.num-frames", "2"]
    assert embed(*arguments) == 0
    assert "features of 0 train, 0 val, 3 test clips" in capsys.readouterr().out
    assert cli.main(["verify", "out"]) == 0
    assert cli.main(["refine", "out", "--out", "refined", *FAST]) == 0
    assert "3 texts, 3 videos" in capsys.readouterr().out


def test_damaged_videos_are_named_and_nothing_shrinks_unsaid(videos, capsys):
    (videos / "films" / "d.mp4").write_bytes(b"no film")
    write_csv(videos / "films" / "all.csv", "video,caption", ("a.mkv", "x"), ("d.mp4", "y"), ("b.mp4", "z"))
    for what, left in (("films", ["a.mkv", "b.mp4", "more/c.mp4"]), ("films/all.csv", ["a.mkv", "b.mp4"])):
        out = f"out-{len(left)}"
        assert embed(what, "--out", out) == 1
        said = " ".join(capsys.readouterr().err.split())
        assert f"1 of {len(left) + 1} videos in films cannot be decoded: d.mp4 (" in said
        assert "pass --data.on-bad-video skip to leave them out, which is said" in said
        assert not (videos / out).exists()

        assert embed(what, "--out", out, "--data.on-bad-video", "skip") == 1
        said = " ".join(capsys.readouterr().out.split())
        assert "d.mp4 cannot be decoded and is left out: " in said
        assert f"1 of {len(left) + 1} videos cannot be decoded" in said
        assert json.loads((videos / out / "video_ids.json").read_text()) == left
        assert len(np.load(f"{out}/video.npy")) == len(left)
        assert list(json.loads((videos / out / "embedding.json").read_text())["left_out"]) == ["d.mp4"]
    assert json.loads((videos / "out-2" / "texts.json").read_text()) == ["x", "z"]
    assert np.load("out-2/pairs.npy").tolist() == [0, 1]


def test_a_changed_byte_is_an_error_that_names_the_file(videos, capsys):
    (videos / "texts.txt").write_text("a dog\na cat\n")
    assert embed("films", "--texts", "texts.txt", "--out", "out") == 0
    data = bytearray((videos / "out" / "video.npy").read_bytes())
    data[-1] ^= 1
    (videos / "out" / "video.npy").write_bytes(data)
    assert cli.main(["refine", "out", "--out", "refined"]) == 1
    assert "out/video.npy is damaged or was replaced" in capsys.readouterr().err
    assert cli.main(["verify", "out"]) == 1
    assert cli.main(["verify", "out", "--accept"]) == 0
    assert cli.main(["refine", "out", "--out", "refined", *FAST]) == 0


BAD = {
    "nothing": (["none", "--out", "out"], "there is no recipe 'none', and no such folder of a run or of videos, nor"),
    "no video": (["empty", "--out", "out"], "empty is no folder of a run, and holds no video: no .mp4, "),
    "another file": (["films/b.mp4", "--out", "out"], "b.mp4 is a .mp4; expected a .txt with one text a line, or .csv"),
    "empty texts": (["empty.txt", "--out", "out"], "empty.txt has no text; write one a line"),
    "table and folder": (["films", "--texts", "all.csv", "--out", "out"], "all.csv is a table, which names its videos"),
    "no out": (["films"], "embed needs --out, the folder to write features to"),
    "out is there": (["films", "--out", "films"], "films exists"),
    "latin-1": (["latin.txt", "--out", "out"], "latin.txt is not UTF-8: byte 0xe9 at offset 3"),
    "patch": (["films", "--out", "out", "--model.random-clip.patch-size", "5"], "patch_size = 5 does not divide"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_encoded_is_one_line(videos, capsys, case):
    (videos / "empty").mkdir()
    (videos / "empty.txt").write_text("\n \n")
    (videos / "latin.txt").write_bytes("café".encode("latin-1"))
    arguments, message = BAD[case]
    assert cli.main(["embed", *arguments, *[flag for flag in MODEL if case != "patch" or flag]]) == 1
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert message in said
    assert not (videos / "out").exists()


def test_the_model_is_looked_at_before_a_video_is_decoded(videos, capsys, monkeypatch):
    monkeypatch.setattr("emcl_train.tools.embed_lists.check_clips", None)
    assert cli.main(["embed", "films", "--out", "out", "--model.clip", "none.pt"]) == 1
    assert "none.pt" in capsys.readouterr().err


def test_a_run_encodes_other_videos_and_texts_as_its_own(tiny_whole_run, tmp_path, capsys):
    """Rows of its test split are those that `refine RUN` takes."""
    root, run = tiny_whole_run[0], tiny_whole_run[1]
    queries = json.loads((run / "queries.json").read_text())
    (tmp_path / "texts.txt").write_text("\n".join(queries["captions"]))
    out = tmp_path / "out"
    arguments = ["--videos", str(root / "videos"), "--texts", str(tmp_path / "texts.txt"), "--out", str(out)]
    assert cli.main(["embed", str(run), *arguments]) == 0
    tensors = load_file(run / "embeddings.safetensors")
    rows = np.load(out / "video.npy")
    ids = json.loads((out / "video_ids.json").read_text())
    place = [ids.index(f"{video_id}.mp4") for video_id in queries["video_ids"]]
    expected = pooled(tensors["frames"], tensors["frame_mask"])
    torch.testing.assert_close(torch.from_numpy(rows[place]), expected, atol=1e-5, rtol=1e-4)
    text = torch.nn.functional.normalize(tensors["text"], dim=-1)
    torch.testing.assert_close(torch.from_numpy(np.load(out / "text.npy")), text, atol=1e-5, rtol=1e-4)
    assert json.loads((out / "embedding.json").read_text())["run"] == str(run)
    assert load_config(run).model.temporal == "transformer"


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (np.array([0, 7]), "pairs.npy does not belong to the rows beside it"),
        (np.array([-1, 0]), "pairs.npy does not belong to the rows beside it"),
        (np.array([0]), "pairs.npy does not belong to the rows beside it: expected for each of 2 texts"),
        (np.array([0.0, 1.0]), "pairs.npy holds no list of row numbers; embed again"),
    ],
)
def test_pairs_of_a_stranger_that_do_not_fit_are_refused(tmp_path, capsys, pairs, message):
    for name, rows in (("text", 2), ("video", 4)):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(rows).normal(size=(rows, 8)).astype(np.float32))
    np.save(tmp_path / "pairs.npy", pairs)
    assert cli.main(["refine", str(tmp_path), "--out", str(tmp_path / "out"), *FAST]) == 1
    assert message in capsys.readouterr().err
