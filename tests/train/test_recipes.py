"""Every recipe on a small data set in the schema of its own files: examined, trained and evaluated from the CLI."""

import json
from pathlib import Path

import pytest
from tiny_layouts import SMALL, WRITERS

from emcl_train import cli
from emcl_train.recipes import OF_CLIP, SMOKE_TEST, is_smoke_test, load_recipe

pytestmark = pytest.mark.usefixtures("one_thread")

# Clips and captions of the test split, and words of the paragraph or caption that comes first.
EXPECTED = {
    "msrvtt-9k": (4, 4, "a person shows video10 in way 0"),
    "msrvtt-7k": (4, 4, "a person shows video10 in way 0"),
    "msrvtt-full": (4, 80, "a person shows video10 in way 0"),
    "activitynet": (4, 4, "a person shows te0 in way 0. a person shows te0 in way 1. a person shows te0 in way 2."),
    "lsmdc": (4, 4, "a person shows te0 in way 0"),
    "msvd": (4, 20, "a person shows te0 in way 0"),
    "didemo": (4, 4, "a person shows te0 in way 0 a person shows te0 in way 1 a person shows te0 in way 2"),
    "vatex": (4, 40, "a person shows te0 in way 0"),
    "jsonl": (4, 8, "a person shows te0 in way 0"),
    "csv": (4, 8, "a person shows te0 in way 0"),
    "clip2video-msrvtt": (4, 4, "a person shows video10 in way 0"),
    "clip2video-msrvtt-full": (4, 80, "a person shows video10 in way 0"),
    "clip2video-msvd": (4, 20, "a person shows te0 in way 0"),
    "clip2video-vatex": (4, 40, "a person shows te0 in way 0"),
}


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its plots take longer than everything else; other tests write it."""
    import emcl_train.report
    import emcl_train.training.trainer

    monkeypatch.setattr(emcl_train.training.trainer, "write_report", lambda run: run / "report.html")
    monkeypatch.setattr(emcl_train.report, "write_report", lambda run: run / "report.html")


def test_every_recipe_has_a_data_set_here() -> None:
    # The latter is no retrieval: test_answering.py.
    assert set(WRITERS) | {"shapes", "msrvtt-qa"} == set(OF_CLIP)
    assert set(EXPECTED) == set(WRITERS)


@pytest.mark.parametrize("recipe", WRITERS)
def test_a_recipe_runs_from_the_files_to_the_table(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root, run = tmp_path / "set", tmp_path / "run"
    WRITERS[recipe](root)
    assert cli.main(["data", "doctor", recipe, str(root)]) == 0
    assert "are whole" in capsys.readouterr().out
    assert cli.main(["train", recipe, "--data.root", str(root), "--out", str(run), *SMALL]) == 0
    trained = json.loads((run / "results.json").read_text())
    assert cli.main(["eval", str(run)]) == 0
    clips, captions, first = EXPECTED[recipe]
    out = capsys.readouterr().out
    assert out.startswith(SMOKE_TEST)
    assert SMOKE_TEST in trained["notes"]
    assert " ".join(out.split()).count(SMOKE_TEST) == 3  # at the start, and below the tables of both commands
    assert f"{captions} captions against {clips} clips" in " ".join(out.split())
    results = json.loads((run / "results.json").read_text())
    assert results == trained
    assert (results["gallery"], results["queries"]) == (clips, captions)
    assert json.loads((run / "queries.json").read_text())["captions"][0] == first
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert [line["kind"] for line in lines] == ["train", "train", "validation"]
    assert results["sampling"]["num_frames"] == load_recipe(recipe).data.num_frames


def test_random_weights_are_a_smoke_test_where_the_recipe_has_trained_ones() -> None:
    assert not is_smoke_test(load_recipe("shapes"))
    config = load_recipe("msrvtt-9k")
    assert not is_smoke_test(config)
    config.model.clip = "random"
    assert is_smoke_test(config)
    config.model.init_from = Path("trained.bin")
    assert not is_smoke_test(config)


def test_clip2videos_recipes_have_what_was_released_and_clip4clips_training() -> None:
    for name in ("msrvtt", "msrvtt-full", "msvd", "vatex"):
        config = load_recipe(f"clip2video-{name}")
        data, model, emcl, train = config.data, config.model, config.emcl, config.train
        assert (data.num_frames, data.max_words, data.frame_sampling, data.augment) == (12, 32, "2.5fps", "none")
        assert (model.temporal, model.temporal_layers, model.temporal_eps) == ("difference", 4, 1e-5)
        assert (model.head, model.clip) == ("aligned", "openai/clip-vit-base-patch32")
        assert (emcl.mode, emcl.num_bases, emcl.num_iters, emcl.temperature) == ("inference", 7, 10, 0.1)
        assert (emcl.residual_weight, emcl.init, config.eval.em_block) == (4.0, "sign", 64)
        assert (train.optimizer, train.lr, train.clip_lr_factor, train.weight_decay) == ("bertadam", 1e-4, None, 0.2)
        assert (train.epochs, train.batch_size, train.warmup, train.frozen) == (5, 128, 0.1, "clip4clip")
        assert data.test_captions == ("one" if name == "msrvtt" else "all")
    assert load_recipe("clip2video-msrvtt-full").data.msrvtt_split == "full"


def test_the_recipes_are_emcl_nets() -> None:
    others = ("shapes", "clip2video-", "msrvtt-qa")
    settings = {name: load_recipe(name) for name in OF_CLIP if not name.startswith(others)}
    long = {"activitynet", "didemo"}
    for name, config in settings.items():
        data = config.data
        assert (data.num_frames, data.max_words) == ((64, 64) if name in long else (12, 32))
        # The releases augment the frames of short clips alone.
        assert data.augment == ("none" if name in long else "randaugment")
        assert (data.frame_sampling, data.train_captions, data.didemo_span) == ("1fps", "all", "released")
        assert (config.train.epochs, config.train.batch_size) == (20 if name == "msvd" else 5, 128)
        assert (config.eval.em_block, config.out.name) == (32, name)
        assert data.test_captions == ("one" if name in ("msrvtt-9k", "msrvtt-7k") else "all")


def damaged_set(root: Path) -> list[str]:
    """30 training clips of which 5 are damaged, 3 missing and 2 empty."""
    from tiny_videos import write_data_set

    write_data_set(root, train=30)
    bad = [f"video{n}" for n in range(2, 22, 2)]
    for n, video_id in enumerate(bad):
        path = root / "videos" / f"{video_id}.mp4"
        if n < 5:
            path.write_bytes(path.read_bytes()[:-1] if n == 0 else bytes(range(256)) * 4)
            if n == 0:
                data = bytearray(path.read_bytes())
                start = data.find(b"mdat") + 4
                data[start : start + 40] = bytes(40)
                path.write_bytes(data)
        elif n < 8:
            path.unlink()
        else:
            path.write_bytes(b"")
    return bad


def test_ten_bad_clips_are_all_named_or_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root, run = tmp_path / "set", tmp_path / "run"
    bad = damaged_set(root)
    train = ["train", "msrvtt-9k", "--data.root", str(root), "--out", str(run), *SMALL]
    assert cli.main(train) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "10 of 34 clips" in error
    assert all(f"{video_id} (" in error for video_id in bad)
    assert cli.main([*train, "--data.on-bad-video", "skip"]) == 0
    assert "10 clips were left out" in " ".join(capsys.readouterr().out.split())
    left_out = json.loads((run / "results.json").read_text())["left_out"]
    assert list(left_out) == bad
    assert list(left_out.values())[5:] == ["there is no such file"] * 3 + ["the file is empty"] * 2


@pytest.mark.parametrize("recipe", ["jsonl", "lsmdc"])
def test_the_copy_of_a_folder_is_a_data_set_too(recipe: str, tmp_path: Path) -> None:
    root, small, run = tmp_path / "set", tmp_path / "small", tmp_path / "run"
    WRITERS[recipe](root)
    assert cli.main(["data", "compress", str(root), str(small), "--short-side", "16"]) == 0
    assert cli.main(["data", "doctor", recipe, str(small)]) == 0
    assert cli.main(["train", recipe, "--data.root", str(small), "--out", str(run), *SMALL]) == 0
    results = json.loads((run / "results.json").read_text())
    assert (results["gallery"], results["queries"]) == EXPECTED[recipe][:2]
    assert results["compression"]["short_side"] == 16
