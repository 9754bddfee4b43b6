"""`--print-config` and `--config`: what is printed is read back, and what is wrong with a file is named."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from emcl_train import cli
from emcl_train.commands.settings_file import as_yaml, read_settings, with_file
from emcl_train.config import EMCLConfig, RunConfig, TrainConfig, flattened, inference_emcl
from emcl_train.recipes import RECIPES, load_recipe
from emcl_train.runs.contents import save_config


@pytest.fixture
def trained(monkeypatch):
    """Configurations that `train` was called with."""
    import emcl_train.training.trainer

    calls = []
    monkeypatch.setattr(emcl_train.training.trainer, "train", lambda config, **_: calls.append(config))
    return calls


def printed(arguments, capsys) -> str:
    assert cli.main([*arguments, "--print-config"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_what_is_printed_is_read_back(recipe, capsys, tmp_path, monkeypatch, trained):
    monkeypatch.chdir(tmp_path)
    text = printed(["train", recipe, "--train.lr", "3e-7", "--emcl.mode", "off"], capsys)
    assert list(tmp_path.iterdir()) == []
    Path("all.yaml").write_text(text)
    assert cli.main(["train", "--config", "all.yaml"]) == 0
    default = load_recipe(recipe)
    asked = replace(default, train=replace(default.train, lr=3e-7), emcl=replace(default.emcl, mode="off"))
    assert trained == [asked]


def test_what_is_read_back_is_printed_again(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = printed(["train", "mmt-msrvtt", "--train.lr", "3e-7"], capsys)
    Path("all.yaml").write_text(text)
    assert printed(["train", "--config", "all.yaml"], capsys) == text
    assert printed(["train", "mmt-msrvtt", "--config=all.yaml"], capsys) == text


def test_strange_values_survive_the_way_through_a_file(tmp_path):
    names = [
        "off",
        "1e-3",
        "null",
        "~",
        "a: b",
        "é",
        "12",
        "true",
        "- x",
        "#x",
        "''",
        "tab\there",
        "None",
        "0x1F",
        "1_0",
    ]
    for name in names:
        config = RunConfig(out=Path(name), train=TrainConfig(lr=1e-12, betas=(0.5, 1e-9)))
        (tmp_path / "x.yaml").write_text(as_yaml(config), encoding="utf-8")
        assert with_file(tmp_path / "x.yaml", RunConfig()) == config, name


def test_other_readers_of_yaml_see_the_same_texts():
    """By the rules of YAML 1.1 `off` without quotes is false."""
    tree = yaml.safe_load(as_yaml(RunConfig(emcl=EMCLConfig(mode="off"))))
    assert tree["emcl"]["mode"] == "off"
    assert tree["train"]["precision"] == "no"


def test_a_file_may_be_short_and_flags_go_before_it(tmp_path, monkeypatch, trained):
    monkeypatch.chdir(tmp_path)
    text = "recipe: msvd\ntrain: {lr: 1e-3, max-steps: None, betas: [0, 1e-1]}\nemcl.mode: off\nout: a\n"
    Path("short.yml").write_text(text)
    assert cli.main(["train", "--config", "short.yml", "--out", "b", "--train.epochs", "3"]) == 0
    config, msvd = trained[0], load_recipe("msvd")
    assert (config.train.lr, config.train.betas, config.emcl.mode) == (1e-3, (0.0, 0.1), "off")
    assert (config.out, config.train.epochs, config.recipe) == (Path("b"), 3, "msvd")
    assert config.data == msvd.data


def test_emcl_at_inference_has_its_own_defaults_in_a_file_too(tmp_path):
    (tmp_path / "x.yaml").write_text("emcl: {mode: inference, num_iters: 3}")
    assert with_file(tmp_path / "x.yaml", RunConfig()).emcl == replace(inference_emcl(), num_iters=3)


def test_emcl_at_inference_leaves_what_a_file_says_of_emcl(tmp_path, monkeypatch, trained):
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text("recipe: msvd\nemcl: {num_bases: 9, momentum: 0.5}")
    assert cli.main(["train", "--emcl.mode", "inference", "--config", "x.yaml"]) == 0
    assert cli.main(["train", "--emcl.mode", "inference", "--config", "x.yaml", "--emcl.num-bases", "11"]) == 0
    assert trained[0].emcl == replace(inference_emcl(), num_bases=9, momentum=0.5)
    assert trained[1].emcl == replace(inference_emcl(), num_bases=11, momentum=0.5)


def test_a_file_may_stand_behind_other_flags(tmp_path, monkeypatch, trained, capsys):
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text("recipe: msvd")
    assert cli.main(["train", "--out", "x", "--config", "x.yaml"]) == 0
    assert cli.main(["train", "--no-resume", "--out", "x", "--config=x.yaml"]) == 0
    assert [config.recipe for config in trained] == ["msvd", "msvd"]
    assert cli.main(["train", "--out", "x"]) == 1
    assert "needs a recipe before its options, or --config FILE" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["run", "run/config.json"])
def test_a_run_is_a_file_of_settings(given, tmp_path, monkeypatch, trained):
    monkeypatch.chdir(tmp_path)
    own = replace(load_recipe("shapes"), train=TrainConfig(lr=0.25))
    save_config(Path("run"), own)
    monkeypatch.setattr("emcl_train.data.annotations.require_made", lambda config: None)
    assert cli.main(["train", "--config", given, "--out", "new"]) == 0
    assert trained == [replace(own, out=Path("new"))]


def test_a_json_file_is_read_too(tmp_path):
    (tmp_path / "x.json").write_text('{"train":\t{"lr": 2}}')
    assert read_settings(tmp_path / "x.json") == {"train.lr": 2.0}


BOMB = "a: &a [x]\nb: [*a, *a]\n"
WRONG = {
    "train: {lrr: 1}": "a setting 'train.lrr', which there is not (did you mean train.lr?)",
    "lr: 1": "a setting 'lr', which there is not (did you mean train.lr?)",
    "trian: {lr: 1}": "a setting 'trian', which there is not",
    "train: 3": "train is a int, expected settings by their names",
    "train: {lr: fast}": "train.lr is 'fast', expected a number",
    "train: {epochs: 1.5}": "train.epochs is 1.5, expected a whole number",
    "train: {betas: [0.1]}": "train.betas: expected 2 numbers, got 1",
    "emcl: {mode: on}": "emcl.mode is 'on', expected one of 'train', 'inference', 'off'",
    "train: {lr: 1}\ntrain.lr: 2": "has train.lr twice",
    "seeds: 1\nseeds: 2": "'seeds' stands there twice",
    "recipe: none": "there is no recipe 'none'; known recipes",
    "- 1": "must hold settings by their names, got a list",
    "": "must hold settings by their names, got nothing",
    "a: [": "cannot be read as settings",
    BOMB: "it has an anchor",
    "out: !!python/object/apply:os.system [x]": "cannot be read as settings",
    "[" * 50_000: "it is nested too deeply",
    "#" * 300_000: "it has 300000 bytes",
}


@pytest.mark.parametrize("text", WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_with_a_file_is_one_line(text, tmp_path, monkeypatch, capsys, trained):
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(text)
    assert cli.main(["train", "shapes", "--config", "x.yaml"]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), trained) == ("", 1, [])
    assert err.startswith("error: ")
    assert WRONG[text] in err


def test_a_file_that_is_not_there_and_one_of_another_recipe_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "shapes", "--config", "none.yaml"]) == 1
    assert "none.yaml cannot be read as settings: [Errno 2]" in capsys.readouterr().err
    Path("x.yaml").write_text("recipe: msvd")
    assert cli.main(["train", "shapes", "--config", "x.yaml"]) == 1
    assert "x.yaml has settings of the recipe msvd, and shapes is asked for" in capsys.readouterr().err
    Path("x.yaml").write_text("seeds: 2")
    assert cli.main(["train", "--config", "x.yaml"]) == 1
    assert "x.yaml names no recipe" in capsys.readouterr().err


def test_a_value_out_of_range_is_not_printed(capsys):
    assert cli.main(["train", "shapes", "--train.epochs", "0", "--print-config"]) == 1
    assert capsys.readouterr().out == ""


def test_every_setting_can_stand_in_a_file(tmp_path):
    (tmp_path / "x.yaml").write_text(as_yaml(RunConfig()))
    assert read_settings(tmp_path / "x.yaml") == flattened(asdict(RunConfig()))
