"""The command line: what it says, and how it ends."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from emcl_train import cli
from emcl_train.config import EMCLConfig, EvalConfig, RunConfig
from emcl_train.errors import UserError
from emcl_train.recipes import OF_CLIP, RECIPES, load_recipe
from emcl_train.runs.contents import save_config
from emcl_train.runs.files import write_json_atomic

KNOWN = (
    "activitynet, ce-activitynet, ce-lsmdc, ce-msrvtt, ce-msrvtt-full, clip2video-msrvtt, clip2video-msrvtt-full, "
    "clip2video-msvd, clip2video-vatex, csv, didemo, jsfusion-lsmdc, jsfusion-msrvtt, jsonl, lsmdc, mmt-activitynet, "
    "mmt-lsmdc, mmt-msrvtt, mmt-own, msrvtt-7k, msrvtt-9k, msrvtt-full, msrvtt-qa, msvd, shapes, vatex"
)


@pytest.fixture
def trained(monkeypatch):
    """Configurations that `train` was called with."""
    import emcl_train.training.trainer

    calls = []
    monkeypatch.setattr(emcl_train.training.trainer, "train", lambda config, **_: calls.append(config))
    return calls


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_a_recipe_trains_as_it_stands(trained, recipe, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where no run is: beside a checkout's own, --out would be taken
    assert cli.main(["train", recipe]) == 0
    assert trained == [load_recipe(recipe)]
    assert trained[0].recipe == recipe


def test_flags_override_single_settings_of_a_recipe(trained, tmp_path):
    flags = [
        "--data.root",
        "x/y",
        "--data.on-bad-video",
        "skip",
        "--train.max-steps",
        "3",
        "--emcl.mode",
        "off",
        "--resume",
        "--out",
        str(tmp_path),
    ]
    assert cli.main(["train", "msrvtt-9k", *flags]) == 0
    config, default = trained[0], load_recipe("msrvtt-9k")
    assert (str(config.data.root), config.data.on_bad_video, config.train.max_steps) == ("x/y", "skip", 3)
    assert (config.emcl.mode, config.resume) == ("off", True)
    assert config.model == default.model


def test_the_recipe_of_the_paper_trains_on_every_caption():
    captions = {name: load_recipe(name).data.train_captions for name in OF_CLIP}
    assert captions == dict.fromkeys(OF_CLIP, "all") | {"shapes": "one"}


def test_the_default_of_every_recipe_has_emcl_on_in_training():
    """But for CLIP2Video, which was released with EMCL at inference."""
    for name in OF_CLIP:
        assert load_recipe(name).emcl.mode == ("inference" if name.startswith("clip2video-") else "train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "shape"], "there is no recipe 'shape'; known recipes: " + KNOWN),
        (["train"], "train needs a recipe before its options, or --config FILE with settings of one; known recipes: "),
        (["train", "--train.lr", "1", "shapes"], "train needs a recipe before its options"),
        (["trian", "shapes"], "there is no command 'trian shapes'; see emcl-train --help"),
        (["eval"], "eval needs the folder of a run before its options, such as runs/shapes"),
        (["eval", "--em-block", "32", "runs/x"], "eval needs the folder of a run before its options"),
        (["eval", "no/such/run"], "no/such/run is not a run folder: no such folder; pass the --out folder"),
        (["export", "no/such/run", "x.bin", "--layout", "emcl"], "no/such/run is not a run folder: no such folder"),
        (
            ["embed", "no/such/run", "--out", "x"],
            "there is no recipe 'no/such/run', and no such folder of a run or of videos, nor",
        ),
        (["report"], "report needs the folder of at least one run"),
        (["data", "docter", "msrvtt", "x"], "there is no command 'data docter'"),
    ],
)
def test_a_wrong_word_is_one_line_with_the_way_out(capsys, arguments, message):
    assert cli.main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["train", "shapes", "--train.lr", "fast"], ["train", "shapes", "--nothing"]])
def test_a_wrong_flag_ends_with_a_message_and_code_2(capsys, arguments):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_debug_shows_where_an_error_came_from():
    with pytest.raises(UserError, match="there is no recipe"):
        cli.main(["train", "shape", "--debug"])


def test_help_names_every_command_and_recipe(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("train", "eval", "data shapes", "data doctor", "report", *RECIPES))


def test_help_of_a_recipe_explains_its_settings(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "shapes", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "--emcl.num-bases" in text
    assert "--recipe" not in text
    assert load_recipe("shapes").out.name in text


@pytest.fixture
def evaluated(monkeypatch):
    """What `evaluate_run` was called with."""
    import emcl_train.evaluation.run
    import emcl_train.report

    calls = []

    def evaluate_run(run, eval_config, *, place, emcl, split, from_features, out, render):
        calls.append((run, eval_config, split, emcl))
        return {}, out or run

    monkeypatch.setattr(emcl_train.evaluation.run, "evaluate_run", evaluate_run)
    monkeypatch.setattr(emcl_train.report, "render_table", str)
    monkeypatch.setattr(emcl_train.report, "write_report", lambda run: run / "report.html")
    return calls


def test_evaluation_takes_the_settings_of_the_run_unless_told_otherwise(evaluated, tmp_path, capsys):
    own = EvalConfig(batch_size=5, em_block=32, inverted_softmax_temperature=0.5)
    save_config(tmp_path, RunConfig(eval=own))
    assert cli.main(["eval", str(tmp_path)]) == 0
    assert cli.main(["eval", str(tmp_path), "--em-block", "None", "--split", "val"]) == 0
    flags = ["--em-block", "7", "--inverted-softmax-temperature", "0.2", "--batch-size", "9"]
    assert cli.main(["eval", str(tmp_path), *flags]) == 0
    assert evaluated == [
        (tmp_path, own, "test", EMCLConfig()),
        (tmp_path, replace(own, em_block=None), "val", EMCLConfig()),
        (tmp_path, EvalConfig(batch_size=9, em_block=7, inverted_softmax_temperature=0.2), "test", EMCLConfig()),
    ]
    assert f"report: {tmp_path / 'report.html'}" in capsys.readouterr().out
    assert cli.main(["eval", str(tmp_path), "--out", "kept"]) == 0
    assert "report: kept/report.html" in capsys.readouterr().out


def test_emcl_at_inference_has_the_settings_of_the_paper_unless_told_otherwise(evaluated, tmp_path):
    save_config(tmp_path, RunConfig(emcl=EMCLConfig(mode="off", num_bases=5)))
    assert cli.main(["eval", str(tmp_path), "--emcl.mode", "inference", "--emcl.num-iters", "3"]) == 0
    save_config(tmp_path, RunConfig(emcl=EMCLConfig(num_bases=5)))
    assert cli.main(["eval", str(tmp_path), "--emcl.mode", "inference"]) == 0
    paper = EMCLConfig("inference", num_bases=7, num_iters=3, temperature=0.1, residual_weight=4.0)
    assert [call[3] for call in evaluated] == [paper, replace(paper, num_iters=10)]


def test_a_recipe_with_emcl_at_inference_has_the_settings_of_the_paper(trained):
    assert cli.main(["train", "msrvtt-9k", "--emcl.mode", "inference", "--emcl.residual-weight", "2"]) == 0
    assert trained[0].emcl == EMCLConfig("inference", num_bases=7, num_iters=10, temperature=0.1, residual_weight=2.0)


def test_a_setting_of_the_evaluation_out_of_range_is_named_with_its_flag(tmp_path, capsys):
    save_config(tmp_path, RunConfig())
    assert cli.main(["eval", str(tmp_path), "--em-block", "0"]) == 1
    assert capsys.readouterr().err == (
        "error: eval.em_block is 0, expected 1 or more; pass --em-block with such a value\n"
    )


@pytest.mark.parametrize("command", [["eval"], ["export"], ["embed"]])
def test_a_folder_of_seeds_is_refused_with_the_runs_in_it(tmp_path, capsys, command):
    """And a folder of results with the run that they are of."""
    for seed in (0, 1, 10):
        save_config(tmp_path / f"seed-{seed}", RunConfig())
    rest = {
        "eval": [],
        "export": [str(tmp_path / "x.bin"), "--layout", "emcl"],
        "embed": ["--out", str(tmp_path / "x")],
    }
    assert cli.main([*command, str(tmp_path), *rest[command[0]]]) == 1
    runs = ", ".join(str(tmp_path / f"seed-{seed}") for seed in (0, 1, 10))
    assert capsys.readouterr().err == (
        f"error: {tmp_path} holds 3 runs with different seeds; pass one of them: {runs}\n"
    )


@pytest.mark.parametrize("command", ["eval", "export"])
def test_a_folder_of_results_is_refused_with_the_run_that_they_are_of(tmp_path, capsys, command):
    save_config(tmp_path / "results", RunConfig())
    write_json_atomic(tmp_path / "results" / "evaluation.json", {"run": "runs/x"})
    rest = [] if command == "eval" else [str(tmp_path / "x.bin"), "--layout", "emcl"]
    assert cli.main([command, str(tmp_path / "results"), *rest]) == 1
    assert "no weights; pass the run itself, runs/x\n" in capsys.readouterr().err


def test_help_of_eval_needs_no_run_and_with_one_shows_its_settings(tmp_path, capsys):
    assert cli.main(["eval", "--help"]) == 0
    assert "eval RUN" in capsys.readouterr().out
    save_config(tmp_path, RunConfig(eval=EvalConfig(em_block=27)))
    with pytest.raises(SystemExit) as end:
        cli.main(["eval", str(tmp_path), "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("--split", "--em-block", "27"))


@pytest.mark.parametrize(("flags", "path"), [([], None), (["--json", "found.json"], Path("found.json"))])
def test_the_doctor_writes_json_where_asked(monkeypatch, tmp_path, flags, path):
    import emcl_train.tools.doctor

    calls = []

    def run_doctor(layout, root, *, videos, deep, max_pixels, json_path):
        calls.append((layout, root, json_path))
        return 1

    monkeypatch.setattr(emcl_train.tools.doctor, "run_doctor", run_doctor)
    assert cli.main(["data", "doctor", "msrvtt", str(tmp_path), *flags]) == 1
    assert calls == [("msrvtt", tmp_path, path)]


def test_interruption_says_how_to_go_on(monkeypatch, capsys, tmp_path):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("emcl_train.training.trainer.train", interrupt)
    assert cli.main(["train", "shapes", "--out", str(tmp_path / "run")]) == 130
    assert "was saved yet; the same command begins it again" in capsys.readouterr().err


MISTAKES = [
    "--help",
    "train no",
    "train shapes --help",
    "train shapes --train.epochs 0",
    "train shapes --train.epochs many",
    "train shapes --model.clip ./none",
    "train shapes --out run",
    "eval none",
    "eval run --help",
    "eval run --nothing",
    "eval run --em-block 0",
    "eval run --out run",
    "embed none --out new",
    "embed shapes --out run",
    "embed run --help",
    "export none x --layout emcl",
    "export run run --layout emcl",
    "report none",
    "data doctor msrvtt none",
    "data compress none new",
    "data shapes new --nothing",
    "refine --help",
]


def test_mistakes_are_answered_without_waiting_for_torch(tmp_path):
    save_config(tmp_path / "run", RunConfig())
    (tmp_path / "run" / "metrics.jsonl").touch()
    code = f"""
import sys
from emcl_train.cli import main
for line in {MISTAKES!r}:
    try:
        code = main(line.split())
    except SystemExit as end:
        code = end.code
    assert bool(code) == ("--help" not in line), line
    loaded = {{"torch", "transformers", "numpy"}} & set(sys.modules)
    assert not loaded, (line, loaded)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr[-2000:]


def test_python_m_is_the_same_program():
    ended = subprocess.run(
        [sys.executable, "-m", "emcl_train", "train", "no"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr == f"error: there is no recipe 'no'; known recipes: {KNOWN}\n"


def test_configurations_of_recipes_are_not_shared():
    first = load_recipe("shapes")
    first.train.lr = 7.0
    assert load_recipe("shapes").train.lr != 7.0
    assert isinstance(first, RunConfig)


def test_a_place_that_cannot_be_written_to_is_one_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(
        "emcl_train.training.trainer.train", lambda config, **_: (config.out.parent / "file" / "run").mkdir()
    )
    assert cli.main(["train", "shapes", "--out", str(tmp_path / "new")]) == 1
    assert (
        capsys.readouterr().err
        == f"error: {tmp_path / 'file' / 'run'}: Not a directory; choose another place, or see --debug\n"
    )


def test_help_of_a_group_of_commands(capsys):
    assert cli.main(["data", "--help"]) == 0
    assert "data doctor" in capsys.readouterr().out
