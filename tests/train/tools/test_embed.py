"""Features instead of videos: the same run, the same figures, and no other features by mistake."""

import io
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tiny_run import tiny_run

import emcl_train.tools.embed as embed_module
from emcl_train import cli
from emcl_train.config import BEFORE, RunConfig
from emcl_train.data import loader
from emcl_train.data.features import BINARY, TOWERS, open_features
from emcl_train.data.text import load_tokenizer
from emcl_train.errors import UserError
from emcl_train.evaluation.on_features import model_on_features
from emcl_train.evaluation.run import evaluate_run
from emcl_train.models import build_model
from emcl_train.runs import contents
from emcl_train.runs import state as checkpoint
from emcl_train.runs.checksums import CHECKSUMS, read_checksums
from emcl_train.runs.contents import FEATURES, load_config
from emcl_train.runs.records import MEASURED
from emcl_train.runs.state import read_weights
from emcl_train.tools.embed import embed
from emcl_train.training import trainer

pytestmark = pytest.mark.usefixtures("one_thread")
QUIET = Console(file=io.StringIO())
HEADS = ["text-conditioned", "wti"]


def configuration(root, out, head, **train) -> RunConfig:
    config = tiny_run(root, out, **({"clip_lr_factor": 0.0, "epochs": 1} | train))
    config.model.head = head
    return config


def run(config):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "write_report", lambda out: out)
        trainer.train(config, QUIET)
    lines = [json.loads(line) for line in (config.out / contents.METRICS).read_text().splitlines()]
    return lines, json.loads((config.out / "results.json").read_text())


@pytest.fixture(scope="module")
def root(tiny_whole_run):
    return tiny_whole_run[0]


@pytest.fixture(scope="module")
def folder(root, tmp_path_factory):
    """Features of the recipe, with tokens."""
    out = tmp_path_factory.mktemp("features") / "tiny"
    embed(configuration(root, out, "wti"), out, console=QUIET)
    return out


@pytest.fixture(scope="module")
def both(root, folder, tmp_path_factory):
    """For each head, folders of a run on videos and of one on features, and what they logged and found."""
    out, found = tmp_path_factory.mktemp("runs"), {}
    for head in HEADS:
        from_videos = run(configuration(root, out / f"{head}-videos", head))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loader, "decode_clip", None)
            patch.setattr(loader, "FrameCache", None)
            config = configuration(root, out / f"{head}-features", head)
            found[head] = from_videos, run(replace(config, from_features=folder))
    return out, found


@pytest.mark.parametrize("head", HEADS)
def test_a_run_on_features_is_the_run_on_videos(both, head):
    (lines, results), (other_lines, other_results) = both[1][head]
    assert len(lines) == len(other_lines) == 5
    for line, other in zip(lines, other_lines, strict=True):
        for name in line.keys() - {*MEASURED, "kind", "split"}:
            assert other[name] == pytest.approx(line[name], abs=1e-4), name
    for row, other in zip(results["rows"], other_results["rows"], strict=True):
        assert other["name"] == row["name"]
        for direction in ("text_to_video", "video_to_text"):
            assert other[direction] == pytest.approx(row[direction], abs=1e-4)
    assert other_results["features"]


@pytest.mark.parametrize("head", HEADS)
def test_weights_are_those_beside_the_towers(both, folder, head):
    weights, others = (read_weights(both[0] / f"{head}-{kind}") for kind in ("videos", "features"))
    towers = {name for name in weights if name.startswith("towers.")}
    assert others.keys() == weights.keys() - towers | {"towers.clip.logit_scale"}
    for name, value in others.items():
        torch.testing.assert_close(value, weights[name], atol=1e-5, rtol=1e-4)
    start = load_file(folder / TOWERS)
    for name in towers - {"towers.clip.logit_scale"}:
        assert torch.equal(weights[name], start[name.removeprefix("towers.clip.")]), name
    assert weights["towers.clip.logit_scale"] != np.float32(np.log(1 / 0.07))


def test_a_run_on_videos_is_evaluated_on_its_features(root, both, tmp_path, capsys):
    out = both[0] / "text-conditioned-videos"
    before = evaluate_run(out)[0]["rows"]
    assert cli.main(["embed", str(out), "--out", str(tmp_path / "features")]) == 0
    assert "features of 32 train, 8 val, 12 test clips" in capsys.readouterr().out
    rows = evaluate_run(out, from_features=tmp_path / "features")[0]["rows"]
    for row, other in zip(before, rows, strict=True):
        assert other["text_to_video"] == pytest.approx(row["text_to_video"])
    settings = load_config(out).eval
    with_bank = evaluate_run(out, replace(settings, query_bank=5), from_features=tmp_path / "features")[0]["rows"]
    assert with_bank[-1] == evaluate_run(out, replace(settings, query_bank=5))[0]["rows"][-1]


def test_a_run_on_features_is_exported_whole(both, tmp_path):
    out = both[0] / "text-conditioned-features"
    assert cli.main(["export", str(out), str(tmp_path / "weights.bin"), "--layout", "emcl"]) == 0
    names = torch.load(tmp_path / "weights.bin", weights_only=True)
    config = load_config(out)
    config.from_features, config.model.init_from = None, tmp_path / "weights.bin"
    whole = build_model(config, load_tokenizer(config, out)).state_dict()
    assert torch.equal(whole["towers.clip.logit_scale"], read_weights(out)["towers.clip.logit_scale"])
    config.model.init_from = out / contents.WEIGHTS
    with pytest.raises(UserError, match=r"a run on features, without towers; `emcl-train export"):
        build_model(config, load_tokenizer(config, out))
    assert {"clip.visual.conv1.weight", "clip.logit_scale", "transformerClip.resblocks.0.ln_1.bias"} <= names.keys()


@pytest.mark.parametrize("from_features", [True, False])
def test_chunks_do_without_the_towers(both, root, folder, tmp_path, from_features):
    config = configuration(root, tmp_path / "run", "wti", chunks=3, max_steps=2)
    lines, _ = run(replace(config, from_features=folder if from_features else None))
    whole = both[1]["wti"][0][0]
    assert [line["loss"] for line in lines[:2]] == pytest.approx([line["loss"] for line in whole[:2]], rel=1e-5)


@pytest.mark.parametrize("temporal", ["transformer", "lstm"])
def test_what_learns_starts_alike_on_pretrained_towers(tiny_whole_run, tmp_path, temporal):
    """The temporal transformer from the text tower's layers, the rest from the same draws."""
    root, run_dir = tiny_whole_run
    assert cli.main(["export", str(run_dir), str(tmp_path / "clip"), "--layout", "transformers"]) == 0
    config = configuration(root, tmp_path / "features", "wti")
    config.model.clip, config.model.temporal = str(tmp_path / "clip"), temporal
    embed(config, config.out, console=QUIET)
    models = []
    for build, chosen in ((build_model, config), (model_on_features, replace(config, from_features=config.out))):
        torch.manual_seed(5)
        models.append(build(chosen, load_tokenizer(chosen)).state_dict())
    names = {name for name in models[0] if not name.startswith("towers.")} | {"towers.clip.logit_scale"}
    assert models[1].keys() == names
    assert all(torch.equal(models[1][name], models[0][name]) for name in names)
    if temporal == "transformer":
        start = models[0]["towers.clip.text_model.encoder.layers.0.mlp.fc1.weight"]
        assert torch.equal(models[1]["temporal.layers.0.mlp.fc1.weight"], start)


def test_other_towers_are_refused(both, root, folder, tmp_path):
    """A run whose towers learned has other features than those of the towers that it started from."""
    config = configuration(root, tmp_path / "run", "wti", clip_lr_factor=1.0, max_steps=1)
    run(config)
    with pytest.raises(UserError, match=r"are of towers with weights .* embed with the towers of the run"):
        evaluate_run(config.out, from_features=folder)


def test_a_run_keeps_the_towers_that_it_was_started_on(root, folder, tmp_path, capsys):
    """Other features at the same path are refused by a run that goes on and by export, and the record stays."""
    copy = tmp_path / "features"
    shutil.copytree(folder, copy)
    config = replace(configuration(root, tmp_path / "run", "wti", max_steps=1), from_features=copy)
    run(config)
    recorded = (config.out / contents.ENVIRONMENT).read_text()
    towers = {name: value + 1 for name, value in load_file(copy / TOWERS).items()}
    checkpoint.save_tensors_atomic(copy / TOWERS, towers)
    record = json.loads((copy / FEATURES).read_text())
    (copy / FEATURES).write_text(json.dumps(record | {"weights": "other"}))
    with pytest.raises(UserError, match=r"are of towers with weights other, and .* the run was started on"):
        trainer.train(replace(config, resume=True), QUIET)
    assert (config.out / contents.ENVIRONMENT).read_text() == recorded
    assert cli.main(["export", str(config.out), str(tmp_path / "weights.bin"), "--layout", "emcl"]) == 1
    assert "are of towers with weights" in capsys.readouterr().err
    assert not (tmp_path / "weights.bin").exists()


def test_a_run_that_goes_on_warns_of_other_frames_and_keeps_the_record(root, folder, tmp_path, monkeypatch):
    config = configuration(root, tmp_path / "run", "mean", max_steps=1)
    run(config)
    record = contents.load_environment(config.out)
    monkeypatch.setattr("emcl_train.data.provenance.decoder_version", lambda: "another one")
    console = Console(file=io.StringIO(), width=300)
    trainer.train(replace(config, resume=True), console)
    assert "now another one" in console.file.getvalue()
    assert contents.load_environment(config.out) == record
    (config.out / contents.ENVIRONMENT).write_text("{")
    with pytest.raises(UserError, match=r"environment\.json cannot be read as JSON"):
        contents.load_environment(config.out)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda config: setattr(config.data, "max_words", 23), "data.max_words is 24 there, 23 here"),
        (lambda config: setattr(config.data, "num_frames", 2), "data.num_frames is 3 there, 2 here"),
        (lambda config: setattr(config.data, "frame_sampling", "1fps"), "data.frame_sampling is uniform there, 1fps"),
        (lambda config: setattr(config.data, "resize", "rounded"), "data.resize is clip there, rounded here"),
        (lambda config: setattr(config.data, "frame_choice", "nearest"), "data.frame_choice is shown there, nearest"),
        (lambda config: setattr(config.train, "seed", 7), "train.seed is 0 there, 7 here"),
        (lambda config: setattr(config, "recipe", "other"), "recipe is tiny there, other here"),
        (lambda config: setattr(config.model, "clip", "openai/clip"), "model.clip is random there, openai/clip here"),
    ],
)
def test_features_of_other_settings_are_refused_by_name(root, folder, tmp_path, change, named):
    config = replace(configuration(root, tmp_path, "wti"), from_features=folder)
    open_features(config)
    change(config)
    with pytest.raises(UserError, match=named):
        open_features(config)


def test_features_made_before_know_the_pictures_they_are_of(root, folder, tmp_path):
    older = tmp_path / "older"
    shutil.copytree(folder, older)
    record = json.loads((older / FEATURES).read_text())
    record["settings"] = {
        name: value for name, value in record["settings"].items() if name not in (*BEFORE, "data.frame_choice")
    }
    record["frames"] = {"sampler": 1}
    (older / FEATURES).write_text(json.dumps(record))

    config = replace(configuration(root, tmp_path, "wti"), from_features=older)
    older_data = {name.removeprefix("data."): value for name, value in BEFORE.items() if name.startswith("data.")}
    config.data = replace(config.data, **older_data)
    open_features(config)
    config.data.resize = "clip"
    with pytest.raises(UserError, match=r"data.resize is rounded there, clip here; .* version is 1 there, 2 here"):
        open_features(config)


def test_features_of_other_data_are_refused_by_name(root, tmp_path):
    videos = sorted(root.rglob("*.mp4"))[:6]
    assert len(videos) == 6

    def data(name, *, caption="two", last=6):
        (tmp_path / name).mkdir()
        for i, split in enumerate(("train", "val", "test")):
            lines = [
                {"video": str(path), "captions": ["one", caption], "id": path.stem}
                for path in videos[2 * i : min(2 * i + 2, last)]
            ]
            (tmp_path / name / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        config = configuration(tmp_path / name, tmp_path / "features", "mean")
        config.data.layout, config.data.cache_frames = "jsonl", False
        return config

    config = data("first")
    embed(config, config.out, console=QUIET)
    same, other, fewer = data("same"), data("other", caption="three"), data("fewer", last=5)
    for chosen in (config, same, other, fewer):
        chosen.from_features = tmp_path / "features"
    notes = loader.prepare(config).notes
    assert loader.prepare(same).notes == notes
    with pytest.raises(UserError, match=r"other data than .*other: in the split train.* 'two' there, 'three' here"):
        loader.prepare(other)
    with pytest.raises(UserError, match=r"in the split test.*, clips differ: 2 there, 1 here"):
        loader.prepare(fewer)
    shutil.rmtree(tmp_path / "first")
    assert "were not compared with the data set, which cannot be read" in loader.prepare(config).notes[-1]


def test_what_made_them_is_recorded(folder, tmp_path):
    record = json.loads((folder / FEATURES).read_text())
    assert record["tokens"] is True
    assert {"weights", "frames", "clip_config", "settings"} <= record.keys()
    assert record["frames"].keys() >= {"sampler", "sampling", "decoder"}
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / FEATURES).write_text(json.dumps(record | {"frames": {"sampler": 99}, "tokens": False}))
    config = configuration(tmp_path, tmp_path, "wti")
    settings = replace(config, from_features=copy)
    with pytest.raises(UserError, match=r"sampler's version is 99 there, .* wti here, and there are no tokens"):
        open_features(settings)


def test_folders_that_are_not_whole(folder, tmp_path):
    config = configuration(tmp_path, tmp_path, "wti")
    with pytest.raises(UserError, match=r"it has no features\.json"):
        open_features(replace(config, from_features=tmp_path / "absent"))
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / CHECKSUMS).unlink()  # as of an earlier version
    np.save(copy / "val_text.npy", np.zeros((3, 1, 16), np.float32))
    with pytest.raises(UserError, match=r"val_text.npy has 3 rows, expected 8"):
        open_features(replace(config, from_features=copy))
    (copy / "val_frames.npy").unlink()
    with pytest.raises(UserError, match="are damaged"):
        open_features(replace(config, from_features=copy))
    with pytest.raises(UserError, match="exists already and is not overwritten"):
        embed(config, copy, console=QUIET)


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_every_array_has_a_checksum(folder, capsys):
    assert set(BINARY) == {path.name for path in folder.iterdir() if path.suffix in (".npy", ".safetensors")}
    assert set(read_checksums(folder)) == set(BINARY)
    assert cli.main(["verify", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "damaged" not in said
    assert "without" not in said


@pytest.mark.parametrize("name", BINARY)
def test_one_changed_byte_is_one_line_that_names_the_file(folder, tmp_path, capsys, name):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    flip(copy / name)
    config = replace(configuration(tmp_path, tmp_path, "wti"), from_features=copy)
    damaged = rf"^[^(]*{name} is damaged or was replaced: .*; copy it again, or embed again; .*verify .* --accept"
    with pytest.raises(UserError, match=damaged):
        model_on_features(config, load_tokenizer(config, None)) if name == TOWERS else open_features(config)
    assert cli.main(["verify", str(copy)]) == 1
    assert f"damaged: {copy / name}" in capsys.readouterr().out

    # Replaced on purpose.
    assert cli.main(["verify", str(copy), "--accept"]) == 0
    open_features(config)


@pytest.mark.parametrize("command", ["train", "eval", "export"])
def test_commands_name_a_damaged_file_of_features(both, folder, root, tmp_path, capsys, command):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    out = tmp_path / "run"
    shutil.copytree(both[0] / "text-conditioned-features", out)
    save = load_config(out)
    contents.save_config(out, replace(save, from_features=copy))
    name = TOWERS if command == "export" else "test_frames.npy"
    flip(copy / name)
    if command == "train":
        config = replace(configuration(root, tmp_path / "new", "wti"), from_features=copy)
        with pytest.raises(UserError, match=f"{name} is damaged"):
            trainer.train(config, QUIET)
        return
    arguments = [str(out)] if command == "eval" else [str(out), str(tmp_path / "x.safetensors"), "--layout", "emcl"]
    assert cli.main([command, *arguments]) == 1
    error = capsys.readouterr().err
    assert f"{copy / name} is damaged or was replaced" in error
    assert error.count("\n") == 1


def test_an_older_folder_without_checksums_is_said_once(folder, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / CHECKSUMS).unlink()
    for _ in range(2):
        open_features(replace(configuration(tmp_path, tmp_path, "wti"), from_features=copy))
    (said,) = capsys.readouterr().err.splitlines()
    assert f"{copy} has files without checksums" in said


def test_a_damaged_array_of_an_older_folder_is_named(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / CHECKSUMS).unlink()
    (copy / "val_text.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match=r"are damaged: val_text\.npy cannot be read"):
        open_features(replace(configuration(tmp_path, tmp_path, "wti"), from_features=copy))


def test_towers_of_features_do_not_learn(folder, root, tmp_path):
    config = configuration(root, tmp_path / "run", "mean", clip_lr_factor=0.5)
    with pytest.raises(UserError, match=r"train.clip_lr_factor is 0.5, expected 0 or none, since towers of features"):
        trainer.train(replace(config, from_features=folder), QUIET)
    assert not config.out.exists()


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(root, tmp_path, monkeypatch):
    config = configuration(root, tmp_path / "features", "wti")
    monkeypatch.setattr("emcl_train.runs.mapped.shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(UserError, match=r"too small: features of 52 clips and 84 captions take .* another --out"):
        embed(config, config.out, console=QUIET)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_do_not_write_one_folder(root, tmp_path, monkeypatch):
    """The second is told so at once, and the first one's folder is whole; a folder of another name is nobody's."""
    config = configuration(root, tmp_path / "features", "mean")
    write_split, refused = embed_module.write_split, []

    def with_another_at_work(folder, *args, **kwargs):
        if not refused:
            assert not (folder / "left.npy").exists()
            refused.append(None)
            with pytest.raises(UserError, match="another process writes to"):
                embed(config, config.out, console=QUIET)
        write_split(folder, *args, **kwargs)

    (tmp_path / ".features.partial").mkdir()
    (tmp_path / ".features.partial" / "left.npy").write_text("half")
    monkeypatch.setattr(embed_module, "write_split", with_another_at_work)
    embed(config, config.out, console=QUIET)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".features.partial", "features"]
    open_features(replace(config, from_features=config.out))
    assert not (config.out / "left.npy").exists()


def test_embed_says_what_it_needs(capsys):
    assert cli.main(["embed"]) == 1
    assert cli.main(["embed", "shapes"]) == 1
    assert "embed needs --out" in capsys.readouterr().err
