"""`emcl.mode` brings settings along, in a recipe, in a file, in a run, and where a run is evaluated again."""

from dataclasses import replace
from pathlib import Path

import pytest

from emcl_train import cli
from emcl_train.commands.settings_file import as_yaml
from emcl_train.config import EMCLConfig, RunConfig, TrainConfig, check_config, inference_emcl
from emcl_train.errors import UserError
from emcl_train.recipes import RECIPES, in_mode, load_recipe
from emcl_train.runs.contents import save_config
from emcl_train.runs.evaluations import what_differs


@pytest.fixture
def trained(monkeypatch):
    """The configurations that would be trained with."""
    found: list[RunConfig] = []
    monkeypatch.setattr("emcl_train.commands.training.run_training", found.append)
    monkeypatch.setattr("emcl_train.commands.training.require_packages", lambda: None)
    monkeypatch.setattr("emcl_train.data.annotations.require_made", lambda config: None)
    return found


def test_a_mode_brings_its_settings_along():
    released = in_mode(load_recipe("mmt-lsmdc"), "train")
    assert (released.train.loss, released.train.top_k, released.train.max_steps) == ("top-k-margin", 32, 100_000)
    assert (released.emcl.num_bases, released.emcl.num_iters, released.emcl.residual_weight) == (16, 9, 3.0)
    assert (released.experts.gated_video, released.eval.em_block) == (True, 32)
    assert in_mode(load_recipe("mmt-msrvtt"), "train").train.top_k == 1
    assert in_mode(load_recipe("mmt-msrvtt"), "off") == load_recipe("mmt-msrvtt")
    assert in_mode(load_recipe("msrvtt-9k"), "inference").emcl.num_bases == 7


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_the_way_to_another_mode_and_back_changes_nothing(recipe):
    config = load_recipe(recipe)
    for mode in ("train", "inference", "off"):
        assert in_mode(in_mode(config, mode), config.emcl.mode) == config


def test_clip2video_trains_with_the_settings_for_training():
    assert in_mode(load_recipe("clip2video-msrvtt"), "train").emcl == EMCLConfig()
    assert in_mode(in_mode(load_recipe("clip2video-msrvtt"), "off"), "train").emcl == EMCLConfig()


def test_what_somebody_chose_stays_in_another_mode():
    config = in_mode(load_recipe("mmt-lsmdc"), "train")
    chosen = replace(
        config, train=replace(config.train, max_steps=200, top_k=4), emcl=replace(config.emcl, num_iters=2)
    )
    plain = in_mode(chosen, "off")
    assert (plain.train.loss, plain.train.top_k, plain.train.max_steps) == ("max-margin", 4, 200)
    assert plain.emcl == replace(load_recipe("mmt-lsmdc").emcl, num_iters=2)


@pytest.mark.parametrize("mode", ["off", "inference"])
@pytest.mark.parametrize("given", ["run", "all.yaml"])
def test_a_run_or_a_file_with_emcl_is_plain_mmt_without(mode, given, tmp_path, monkeypatch, trained):
    monkeypatch.chdir(tmp_path)
    released = in_mode(load_recipe("mmt-lsmdc"), "train")
    save_config(Path("run"), released)
    Path("all.yaml").write_text(as_yaml(released))
    assert cli.main(["train", "--config", given, "--emcl.mode", mode, "--out", "new"]) == 0
    assert trained == [replace(in_mode(load_recipe("mmt-lsmdc"), mode), out=Path("new"))]


def test_maps_of_em_are_made_of_as_many_rows_as_the_batch_that_is_asked_for():
    config = load_recipe("mmt-msrvtt")
    assert config.rows_of_em is None  # no EM
    assert in_mode(config, "train").rows_of_em is None  # blocks
    asked = in_mode(replace(config, train=replace(config.train, batch_size=8)), "inference")
    assert asked.rows_of_em == 16
    assert replace(asked, eval=replace(asked.eval, em_rows=5)).rows_of_em == 5
    assert replace(asked, eval=replace(asked.eval, em_rows=0)).rows_of_em is None  # as many as there are
    with pytest.raises(UserError, match=r"eval.em_rows is -1, expected 0 or more"):
        check_config(replace(asked, eval=replace(asked.eval, em_rows=-1)))


def test_an_evaluation_in_another_mode_measures_as_a_training_in_it_does(tmp_path, monkeypatch):
    asked = []

    def evaluated(run, settings, *, emcl, **rest):
        asked.append((settings, emcl))
        raise UserError("far enough")

    monkeypatch.setattr("emcl_train.evaluation.run.evaluate_run", evaluated)
    plain = replace(load_recipe("mmt-msrvtt"), train=TrainConfig(batch_size=8))
    for own, mode in [(plain, "inference"), (in_mode(plain, "train"), "inference"), (plain, "train")]:
        save_config(tmp_path / "run", own)
        assert cli.main(["eval", str(tmp_path / "run"), "--emcl.mode", mode]) == 1
        settings, emcl = asked.pop()
        alike = in_mode(own, mode)
        assert (settings, emcl) == (alike.eval, alike.emcl)
        there = replace(own, eval=settings, emcl=emcl)
        assert there.rows_of_em == alike.rows_of_em == (16 if mode == "inference" else None)
        assert what_differs(own, there, "test") == f"emcl.mode-{mode}"
        rows = replace(there, eval=replace(settings, em_block=None, em_rows=9))
        assert what_differs(own, rows, "test").endswith(f"em-rows-9_emcl.mode-{mode}")
    save_config(tmp_path / "run", in_mode(plain, "train"))
    arguments = ["--emcl.mode", "inference", "--em-block", "16"]
    assert cli.main(["eval", str(tmp_path / "run"), *arguments]) == 1
    assert asked == [(replace(plain.eval, em_block=16), in_mode(plain, "inference").emcl)]


def test_emcl_of_clip_at_inference_is_the_papers_for_a_run_as_well():
    run = RunConfig(emcl=EMCLConfig(num_bases=5))
    assert in_mode(run, "inference").emcl == inference_emcl()


def test_recipes_of_experts_choose_the_epoch_as_it_was_published():
    chosen = {name: (train.keep, train.select_by) for name in RECIPES if (train := load_recipe(name).train)}
    by_mean = [name for name, choice in chosen.items() if choice == ("best", "geometric-mean")]
    assert by_mean == ["ce-msrvtt-full", "ce-activitynet", "ce-lsmdc"]
    last = [name for name, (keep, _) in chosen.items() if keep == "last"]
    assert last == ["ce-msrvtt", *(name for name in RECIPES if name.startswith(("mmt-", "jsfusion-")))]


@pytest.mark.parametrize("recipe", ["mmt-own", "mmt-msrvtt", "jsfusion-lsmdc"])
@pytest.mark.parametrize("mode", ["off", "train"])
def test_max_steps_end_the_training_however_few_steps_an_epoch_has(recipe, mode):
    train = in_mode(load_recipe(recipe), mode).train
    assert train.max_steps <= train.epochs
    assert train.save_every >= 1000  # states of gigabytes
    assert train.validate_every >= 1000


def test_a_choice_on_the_test_split_needs_one_that_is_kept():
    config = load_recipe("ce-msrvtt")
    check_config(config)
    config.train.select_on_test = True
    with pytest.raises(UserError, match=r"^train.keep is last, expected best, .*--select-on-test .* --train.keep"):
        check_config(config)
    config.train.keep = "best"
    check_config(config)
