"""Files of a run folder: whole or not there, and back as they were."""

import errno
import json
import os
import random
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from emcl_train.config import (
    BEFORE,
    DEFAULTS_BEFORE,
    EMCLConfig,
    RandomClipConfig,
    RunConfig,
    ShapesConfig,
    TrainConfig,
    flattened,
)
from emcl_train.errors import UserError
from emcl_train.recipes import load_recipe
from emcl_train.runs import contents
from emcl_train.runs import files as run_files
from emcl_train.runs import state as checkpoint
from emcl_train.runs.checksums import CHECKSUMS
from emcl_train.runs.state import TrainingState


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def state(**changes):
    values = {
        **{"epoch": 1, "batch": 2, "step": 3, "best_score": 4.5, "best_epoch": 1, "metrics_lines": 6},
        "model": {"w": torch.ones(3)},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.98)}]},
        "scaler": {},
        "random": checkpoint.random_states(),
    }
    return TrainingState(**(values | changes))


def test_a_state_that_was_loaded_is_written_with_the_same_bytes(tmp_path):
    """Pickles write what is shared once, and a loaded state shares other parts than one that was built."""
    betas = (0.9, 0.98)
    optimizer = {
        "state": {n: {"step": torch.tensor(float(n)), "exp_avg": torch.ones(2)} for n in range(3)},
        "param_groups": [{"lr": 0.1, "betas": betas}, {"lr": 0.2, "betas": betas}],
    }
    contents_of = []
    saved = state(optimizer=optimizer, steps={"step": "exp_avg"})
    for _ in range(2):
        checkpoint.save_state(tmp_path, saved)
        contents_of.append((tmp_path / contents.STATE).read_bytes())
        saved = checkpoint.load_state(tmp_path)

    assert contents_of[1] == contents_of[0]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    run_files.write_json_atomic(path, {"old": "é"})

    def fail(file):
        file.write(b"half")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        run_files.write_atomic(path, fail)
    assert json.loads(path.read_text(encoding="utf-8")) == {"old": "é"}
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path, monkeypatch, call):
    run_files.write_text_atomic(tmp_path / "a", "old")
    monkeypatch.setattr(os, call, no_space)
    with pytest.raises(UserError, match=r"the disk is full: .*a could not be written.*--resume"):
        run_files.write_text_atomic(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_inside_torch_save_is_named(tmp_path, monkeypatch):
    real_save = torch.save

    def save_to_full_disk(values, file):
        with open("/dev/full", "wb", buffering=0) as full:
            real_save(values, full)

    monkeypatch.setattr(torch, "save", save_to_full_disk)
    with pytest.raises(UserError, match="the disk is full"):
        checkpoint.save_state(tmp_path, state(model={"w": torch.ones(100_000)}))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_line_that_does_not_fit_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match="the disk is full"):
        run_files.append_line(tmp_path / "metrics.jsonl", {"step": 1})


def test_tensors_come_back_even_if_they_share_memory(tmp_path):
    weight = torch.randn(4, 3)
    checkpoint.save_tensors_atomic(tmp_path / "t.safetensors", {"a": weight, "b": weight, "c": weight.mT})
    loaded = load_file(tmp_path / "t.safetensors")
    assert torch.equal(loaded["a"], weight)
    assert torch.equal(loaded["b"], weight)
    assert torch.equal(loaded["c"], weight.mT)


def test_lines_are_appended_counted_and_cut_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in range(5):
        run_files.append_line(path, {"step": step})
    assert run_files.count_lines(path) == 5
    run_files.keep_lines(path, 3)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2]
    with pytest.raises(UserError, match="has 3 lines but the saved state was written after 4"):
        run_files.keep_lines(path, 4)


def test_configuration_comes_back_with_its_types(tmp_path):
    config = RunConfig(out=tmp_path, emcl=EMCLConfig(num_bases=7), train=TrainConfig(betas=(0.8, 0.9), max_steps=3))
    config.data.shapes = ShapesConfig(size=32)
    contents.save_config(tmp_path, config)
    assert contents.load_config(tmp_path) == config


@pytest.fixture
def older_run(tmp_path, monkeypatch):
    """A run of the recipe "shapes" whose config.json was written before there was `train.warmup`, when it was 0.3."""
    config = replace(load_recipe("shapes"), out=tmp_path)
    contents.save_config(tmp_path, config)
    saved = json.loads((tmp_path / "config.json").read_text())
    del saved["train"]["warmup"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    monkeypatch.setitem(BEFORE, "train.warmup", 0.3)
    return config


def test_what_an_older_configuration_lacks_is_what_was_done_then(tmp_path, older_run):
    assert contents.load_config(tmp_path).train.warmup == 0.3


def test_an_older_run_goes_on_as_it_was_started(older_run):
    asked = replace(older_run, resume=True)
    contents.check_run_folder(asked)
    assert contents.as_started(asked).train.warmup == 0.3
    assert contents.as_started(older_run).train.warmup == older_run.train.warmup  # a run that begins


def test_an_older_run_does_not_take_up_a_younger_setting_by_name(older_run):
    asked = replace(older_run, resume=True, train=replace(older_run.train, warmup=0.2))
    with pytest.raises(UserError, match=r"train\.warmup was 0\.3, now 0\.2"):
        contents.check_run_folder(asked)


@pytest.mark.parametrize("recipe", ["activitynet", "didemo"])
def test_an_older_run_of_a_recipe_goes_on_with_what_the_recipe_gave_then(tmp_path, recipe):
    """These two augmented; whose config.json names all settings of today was started with what it says."""
    config = replace(load_recipe(recipe), out=tmp_path)
    asked = replace(config, resume=True)
    started = replace(config, data=replace(config.data, augment="randaugment", didemo_span="first-30s"))
    contents.save_config(tmp_path, started)
    with pytest.raises(UserError, match=r"data\.augment was randaugment, now none"):
        contents.check_run_folder(asked)

    saved = json.loads((tmp_path / "config.json").read_text())
    for name in BEFORE:
        section, field = name.split(".")
        saved[section].pop(field)
    (tmp_path / "config.json").write_text(json.dumps(saved))
    contents.check_run_folder(asked)
    assert contents.as_started(asked).data.augment == "randaugment"
    assert contents.load_config(tmp_path).data.didemo_span == "first-30s"


def test_a_run_with_an_earlier_default_goes_on_with_it(tmp_path):
    """Patches of 8 pixels were the default, and are in config.json of every run that had them."""
    config = replace(load_recipe("msrvtt-9k"), out=tmp_path)
    asked = replace(config, resume=True)
    contents.save_config(tmp_path, config)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model"]["random_clip"]["patch_size"] is None
    saved["model"]["random_clip"]["patch_size"] = 8
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert contents.load_config(tmp_path).model.random_clip.patch_of(224) == 8
    contents.check_run_folder(asked)
    assert contents.as_started(asked).model.random_clip.patch_of(224) == 8

    other = replace(asked, model=replace(asked.model, random_clip=RandomClipConfig(patch_size=16)))
    with pytest.raises(UserError, match=r"model\.random_clip\.patch_size was 8, now 16"):
        contents.check_run_folder(other)


def test_every_value_from_before_is_of_a_setting():
    assert BEFORE.keys() | DEFAULTS_BEFORE.keys() <= flattened(asdict(RunConfig())).keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as the configuration"),
        ('{"size": 1}', "no field 'size'"),
        ('{"data": 3}', "cannot be read"),
        ("[]", "cannot be read"),
    ],
)
def test_a_configuration_that_is_none(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        contents.load_config(tmp_path)


def test_state_comes_back_whole(tmp_path):
    saved = state()
    checkpoint.save_state(tmp_path, saved)
    loaded = checkpoint.load_state(tmp_path)
    assert (loaded.epoch, loaded.batch, loaded.step, loaded.best_score) == (1, 2, 3, 4.5)
    assert torch.equal(loaded.model["w"], torch.ones(3))
    assert loaded.optimizer == saved.optimizer


def test_random_numbers_go_on_where_they_were(tmp_path):
    saved = state()
    draw = lambda: (random.random(), np.random.rand(), torch.rand(2).tolist())  # noqa: E731
    expected = draw()
    checkpoint.save_state(tmp_path, saved)  # types that are checked in every call draw numbers, too
    checkpoint.restore_random_states(checkpoint.load_state(tmp_path).random)
    assert draw() == expected


def test_a_damaged_state_is_named_and_an_absent_one_is_none(tmp_path):
    assert checkpoint.load_state(tmp_path) is None
    checkpoint.save_state(tmp_path, state())
    path = tmp_path / contents.STATE
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"latest\.pt is damaged or was replaced"):
        checkpoint.load_state(tmp_path)

    # Of an earlier version, which noted no checksums.
    path.with_name(CHECKSUMS).unlink()
    with pytest.raises(UserError, match="cannot be read as the state of a run: it is cut short"):
        checkpoint.load_state(tmp_path)
    path.write_text("lost")
    with pytest.raises(UserError, match=r"as the state of a run: it is no file of torch\.save"):
        checkpoint.load_state(tmp_path)


def test_leftovers_of_a_killed_write_are_removed(tmp_path):
    (tmp_path / "state").mkdir()
    for name in (".results.json.partial", "state/.latest.pt.partial", "results.json"):
        (tmp_path / name).touch()
    others = ("evaluations/em-block-3/.results.json.partial", ".thesis.partial", "state/.sync.partial/a")
    for path in (tmp_path / name for name in others):  # of processes that may be at it, and of the user's
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    contents.remove_partial_files(tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == sorted(
        (*others, "results.json")
    )
