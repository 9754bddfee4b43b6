"""`resume RUN` needs nothing else, and what is given beside it has to agree with the run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_run import tiny_run

from emcl_train import cli
from emcl_train.config import RunConfig, TrainConfig
from emcl_train.recipes import load_recipe
from emcl_train.runs.contents import SEEDS, STATE, save_config
from emcl_train.runs.files import write_json_atomic
from emcl_train.training import trainer
from emcl_train.training.seeds import train_seeds


@pytest.fixture
def trained(monkeypatch):
    """Configurations that `train` and `train_seeds` were called with; data sets count as rendered."""
    calls = []
    monkeypatch.setattr(trainer, "train", lambda config, **_: calls.append(config))
    monkeypatch.setattr("emcl_train.training.seeds.train_seeds", lambda config, **_: calls.append(config))
    monkeypatch.setattr("emcl_train.data.annotations.require_made", lambda config: None)
    return calls


@pytest.fixture
def run(tmp_path, monkeypatch) -> RunConfig:
    """The settings of a run in the folder `run`, which lay elsewhere when it was started."""
    monkeypatch.chdir(tmp_path)
    config = replace(load_recipe("shapes"), out=Path("was/elsewhere"), train=TrainConfig(lr=0.25, epochs=7))
    save_config(Path("run"), config)
    return replace(config, out=Path("run"), resume=True)


@pytest.mark.parametrize("command", [["resume", "run"], ["train", "shapes", "--out", "run", "--resume"]])
def test_a_run_goes_on_as_it_was_started(command, run, trained):
    assert cli.main(command) == 0
    assert cli.main([*command, "--train.lr", "0.25", "--data.root", str(run.data.root.resolve())]) == 0
    assert trained == [run, run]


@pytest.mark.parametrize("command", [["resume", "run"], ["train", "shapes", "--out", "run", "--resume"]])
def test_settings_that_differ_are_named_with_those_that_may(command, run, trained, capsys):
    assert cli.main([*command, "--train.lr", "0.5", "--train.epochs", "7", "--emcl.mode", "off"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(
        "error: the run in run was started with other settings: emcl.mode was train, now off; "
        "train.lr was 0.25, now 0.5; leave these out"
    )
    assert (
        "may have another train.tracker, train.gradient_checkpointing, train.compile_towers, data.outside_root, "
        in said
    )
    assert cli.main([*command, "--data.workers", "0", "--train.tracker", "none"]) == 0
    assert (trained[0].data.workers, trained[0].train.tracker) == (0, "none")


def test_a_file_beside_resume_has_to_agree_too(run, trained, capsys):
    Path("x.yaml").write_text("recipe: shapes\nout: run\nresume: false\ntrain: {lr: 0.25}")
    assert cli.main(["train", "--config", "x.yaml", "--resume"]) == 0
    assert trained == [run]
    Path("x.yaml").write_text("recipe: shapes\nout: run\ntrain: {lr: 0.5}")
    assert cli.main(["train", "--config", "x.yaml", "--resume"]) == 1
    assert "train.lr was 0.25, now 0.5" in capsys.readouterr().err


def test_another_recipe_is_named(run, trained, capsys):
    assert cli.main(["train", "msvd", "--out", "run", "--resume"]) == 1
    assert "recipe was shapes, now msvd" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "said"), [
    (["--out", "x"], "leave out --out"), (["--no-resume"], "leave out --no-resume"),
    (["--config", "x"], "has its settings in config.json"),
])  # fmt: skip
def test_what_would_contradict_resume_is_refused(flags, said, run, trained, capsys):
    assert cli.main(["resume", "run", *flags]) == 1
    assert said in capsys.readouterr().err
    assert trained == []


@pytest.mark.parametrize("there", ["none", "empty"])
def test_where_there_is_no_run_resume_says_so(there, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    assert cli.main(["resume", there]) == 1
    assert capsys.readouterr().err.startswith(f"error: {there} is not a run folder: ")


def test_a_folder_of_seeds_goes_on_with_all_that_were_asked_for(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_recipe("shapes")
    for seed in (3, 4):
        save_config(Path(f"five/seed-{seed}"), replace(config, train=replace(config.train, seed=seed)))
    asked = replace(config, out=Path("five"), resume=True, seeds=2, train=replace(config.train, seed=3))
    assert cli.main(["resume", "five"]) == 0  # of an earlier version
    write_json_atomic(Path("five") / SEEDS, {"first": 3, "seeds": 5})
    assert cli.main(["resume", "five"]) == 0
    assert cli.main(["train", "shapes", "--out", "five", "--resume"]) == 0
    assert trained == [asked, replace(asked, seeds=5), replace(asked, seeds=5)]


def test_how_many_seeds_were_asked_for_is_kept(monkeypatch, tmp_path):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("emcl_train.training.seeds.train", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_seeds(replace(tiny_run(tmp_path / "data", tmp_path / "runs", seed=2), seeds=4))
    assert json.loads((tmp_path / "runs" / SEEDS).read_text()) == {"first": 2, "seeds": 4}


WAYS = {
    "resume": ["resume", "run"],
    "--resume": ["train", "shapes", "--out", "run", "--resume"],
    "--config RUN": ["train", "--out", "new", "--config", "run"],
    "--config RUN --resume": ["train", "--config", "run/config.json", "--resume"],
}
"""Commands that take a run's configuration, which may be a stranger's."""


@pytest.mark.parametrize("way", WAYS)
def test_a_strangers_run_writes_no_cache_where_it_says(way, run, trained, capsys):
    config = replace(run, data=replace(run.data, cache_dir=Path("their/cache"), cache_frames=True))
    save_config(Path("run"), config)
    assert cli.main(WAYS[way]) == 0
    assert (trained[0].data.cache_dir, trained[0].data.cache_frames) == (None, False)
    assert "keeps what is known of clips in their/cache, which is not used unasked" in capsys.readouterr().err
    save_config(Path("run"), replace(run, data=replace(run.data, max_pixels=10**9)))
    assert cli.main(WAYS[way]) == 1
    assert "--data.max-pixels 1000000000 allows them" in capsys.readouterr().err
    assert cli.main([*WAYS[way], "--data.max-pixels", "1000000000"]) == 0


@pytest.mark.parametrize("way", WAYS)
def test_a_set_is_not_rendered_unasked(way, run, monkeypatch, capsys):
    monkeypatch.setattr(trainer, "train", lambda config, **_: pytest.fail("trained"))
    assert cli.main(WAYS[way]) == 1
    assert "nothing is rendered there unasked" in " ".join(capsys.readouterr().err.split())


def test_a_run_as_a_file_of_settings_is_written_nowhere_that_it_names(run, trained, capsys):
    Path("run/x.txt").write_text("of the run")
    assert cli.main(["train", "--config", "run"]) == 1
    assert "error: run already holds files; go on with that run by --resume" in capsys.readouterr().err
    assert cli.main(["train", "--config", "run", "--resume"]) == 0
    assert trained == [run]


@pytest.mark.parametrize("command", [
    ["resume", "run"], ["resume", "five"], ["train", "shapes", "--out", "run", "--resume"],
    ["train", "shapes", "--out", "five", "--seeds", "2", "--resume"],
])  # fmt: skip
def test_other_processes_ask_for_no_lock_that_the_first_one_has(command, run, monkeypatch):
    monkeypatch.setattr("emcl_train.data.annotations.require_made", lambda config: None)
    calls = []
    monkeypatch.setattr(trainer, "train", lambda config, **_: calls.append(config))
    monkeypatch.setattr("emcl_train.training.seeds.train", lambda run, console, **_: calls.append(run))
    monkeypatch.setattr("emcl_train.training.seeds.rank_and_world", lambda: (1, 2))
    for seed in (0, 1):
        save_config(Path(f"five/seed-{seed}"), replace(run, train=replace(run.train, seed=seed)))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("commands.training.require_quiet", "training.seeds.require_quiet", "training.seeds.writing"):
        monkeypatch.setattr(f"emcl_train.{name}", lambda folder, **_: pytest.fail(f"{folder} is locked"))
    assert cli.main(command) == 0
    assert len(calls) == (2 if "five" in command else 1)


@pytest.mark.parametrize("flag", ["--print-config", "--dry-run"])
def test_of_several_processes_the_first_one_prints(flag, run, trained, monkeypatch, capsys):
    command = ["train", "shapes", "--out", "new", "--model.clip", "random", flag]
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = {}
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert cli.main(command) == 0
        said[rank] = capsys.readouterr().out
    assert said["0"] != ""
    assert said["1"] == ""


@pytest.mark.usefixtures("one_thread")
def test_a_stopped_training_comes_to_its_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trainer, "write_report", lambda out: out)
    config = replace(tiny_run(tmp_path / "data", tmp_path / "run", save_every=1), recipe="shapes")
    save = trainer.Run.save

    def save_and_stop(self, *arguments):
        save(self, *arguments)
        if self.step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Run, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            trainer.train(config)
    assert (tmp_path / "run" / STATE).is_file()
    assert cli.main(["resume", str(tmp_path / "run")]) == 0
    assert "after step 2 of 8" in " ".join(" ".join(capsys.readouterr()).split())
    assert (tmp_path / "run" / "finished.json").is_file()
