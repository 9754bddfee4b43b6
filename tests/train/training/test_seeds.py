"""One configuration with several seeds."""

import io
import json

import pytest
from rich.console import Console
from tiny_run import tiny_run

from emcl_train.cli import main
from emcl_train.errors import UserError
from emcl_train.runs.contents import load_config
from emcl_train.training import seeds


def train(config):
    console = Console(file=io.StringIO(), width=200)
    seeds.train_seeds(config, console)
    return console.file.getvalue()


def test_several_seeds_train_apart_are_summed_up_and_go_on(tmp_path, monkeypatch):
    config = tiny_run(tmp_path / "shapes", tmp_path / "runs", epochs=1, seed=3)
    config.seeds = 2
    text = train(config)
    assert "2 seeds, mean ± deviation" in text
    folders = sorted(path.name for path in config.out.iterdir())
    assert folders.pop() == "seeds.json"
    assert folders == ["seed-3", "seed-4"]
    assert [load_config(config.out / name).train.seed for name in folders] == [3, 4]
    recall = [json.loads((config.out / n / "results.json").read_text())["rows"][0]["text_to_video"] for n in folders]
    assert f"{(recall[0]['MnR'] + recall[1]['MnR']) / 2:.1f}±" in text

    config.seeds = 3
    with pytest.raises(UserError, match="already holds files"):
        train(config)
    assert json.loads((config.out / "seeds.json").read_text()) == {"first": 3, "seeds": 2}
    config.resume = True
    trained = []

    def finish(run, console, **_):
        trained.append(run.train.seed)
        if run.out.is_dir():
            (run.out / "finished.json").write_text('{"weights": "crc32:00000000"}')

    monkeypatch.setattr(seeds, "train", finish)
    train(config)
    assert trained == [5]
    (config.out / "seed-4" / "finished.json").unlink()  # ended before its last epoch, and evaluated since
    train(config)
    assert trained == [5, 4, 5]
    config.train.lr = 0.5
    with pytest.raises(UserError, match=r"seed-3 was trained with other settings: train\.lr was 0\.001, now 0\.5"):
        train(config)


def test_seeds_do_not_go_into_a_single_run(tmp_path):
    config = tiny_run(tmp_path / "shapes", tmp_path / "run")
    config.seeds = 2
    config.out.mkdir()
    (config.out / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds a single run"):
        train(config)


def test_seeds_is_a_flag(tmp_path, capsys):
    assert main(["train", "shapes", "--seeds", "0", "--out", str(tmp_path / "x")]) == 1
    assert "seeds is 0, expected 1 or more; pass --seeds" in capsys.readouterr().err
