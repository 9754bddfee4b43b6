"""Every flag that an error names is one that the command at hand takes."""

import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from fake_run import make_run
from tiny_evaluation import tiny_config, tiny_model

from emcl_train import cli, flags
from emcl_train.commands import data, embedding, evaluating, exporting, refining, reporting, training, verifying
from emcl_train.commands.entry import flags_of
from emcl_train.config import check_config
from emcl_train.errors import UserError
from emcl_train.flags import Command, again, flag, of_command, takes
from emcl_train.recipes import load_recipe
from emcl_train.runs.contents import save_config
from emcl_train.runs.state import save_tensors_atomic

FLAG = re.compile(r"(?<![\w.-])--[a-z][\w-]*(?:\.[\w-]+)*")
OPTION = re.compile(r"^(?:│ |  )(?:-h, )?(--[a-z][\w.-]*)(?:, (--[\w.-]+))?", re.MULTILINE)
PACKAGE = Path(cli.__file__).parent


def help_of(arguments, capsys) -> set[str]:
    """The options that the help of a command lists."""
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--help"])
    return {name for pair in OPTION.findall(capsys.readouterr().out) for name in pair if name}


def named_in(text: str) -> set[str]:
    """Flags in a text, but for those of a command that it quotes."""
    return set(FLAG.findall(re.sub(r"`[^`]*`", "", text)))


@pytest.fixture
def place(tmp_path):
    """A run on shapes that are gone, a folder of features for refine, and a data set without its videos."""
    config = tiny_config()
    config.data.root = tmp_path / "gone"
    save_config(tmp_path / "run", config)
    save_tensors_atomic(tmp_path / "run" / "model.safetensors", tiny_model(config).state_dict())
    np.save(tmp_path / "text.npy", np.ones((3, 4), np.float32))
    np.save(tmp_path / "video.npy", np.ones((2, 4), np.float32))
    for name in ("empty", "lists"):
        (tmp_path / name).mkdir()
    for split in ("train", "val", "test"):
        (tmp_path / "lists" / f"{split}_list.txt").write_text("a")
    (tmp_path / "lists" / "vatex_data.json").write_text('{"a": {"enCap": ["x"]}}')
    return tmp_path


COMMANDS = {
    "train shapes": [
        ["--train.epochs", "0"],
        ["--data.root", "run", "--out", "new", "--data.shapes.size", "15"],
        ["--data.root", "run", "--out", "new"],
        ["--data.root", "none", "--data.layout", "msrvtt", "--out", "new"],
        ["--model.clip", "none.pt", "--out", "new"],
        ["--out", "empty", "--resume", "--eval.em-block", "0"],
    ],
    "eval run": [
        [],
        ["--em-block", "0"],
        ["--inverted-softmax-temperature", "0"],
        ["--emcl.num-bases", "0"],
        ["--out", "run"],
        ["--data.root", "empty"],
        ["--data.root", "lists", "--data.videos", "none"],
        ["--from-features", "none"],
    ],
    "embed shapes --out new": [["--data.shapes.fps", "0", "--data.root", "none"], ["--data.root", "run"]],
    "embed run --out new": [[], ["--data.root", "empty"]],
    "export run empty --layout emcl": [[]],
    "data shapes run": [
        [],
        ["--train-clips", "0"],
        ["--size", "15"],
        ["--seconds", "0"],
        ["--captions-per-clip", "99"],
    ],
    "data doctor vatex": [["none"], ["empty"], ["lists"], ["lists", "--videos", "none"]],
    "data compress run out": [["--fps", "0"], ["--short-side", "3"]],
    "refine text.npy video.npy --out new": [["--paired"], ["--pairs", "none"], ["--map", "em", "--num-bases", "0"]],
    "report run": [["empty"], ["run", "--watch"], ["--out", "one.html"], ["--watch", "--json", "found.json"]],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_errors_name_flags_of_their_command(command, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    known = help_of(command.split(), capsys)
    for arguments in COMMANDS[command]:
        assert cli.main([*command.split(), *arguments]) != 0, arguments
        said = " ".join(capsys.readouterr())
        assert named_in(said) <= known, (arguments, said)


@pytest.mark.parametrize(
    ("command", "way_out"),
    [
        ("data shapes new --train-clips 0", "pass --train-clips with such a value"),
        ("data shapes new --captions-per-clip 99", "pass a smaller --captions-per-clip"),
        ("data doctor vatex empty", "or pass DIR with the folder that has it"),
        ("data doctor vatex lists --videos none", "or pass --videos with the folder that has them"),
        ("eval run --em-block 0", "pass --em-block with such a value"),
        ("eval run", "pass --data.root with the folder that holds"),
        ("embed run --out new", "pass --data.root with the folder that holds"),
    ],
)
def test_a_command_is_told_its_own_flag(command, way_out, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert cli.main(command.split()) == 1
    assert way_out in " ".join(" ".join(capsys.readouterr()).split())


KINDS = {
    "eval run": evaluating.EvalArguments,
    "embed run --out new": embedding.EmbedRunArguments,
    "embed shapes": embedding.EmbedArguments,
    "train shapes": training.TrainArguments,
    "export run x.bin": exporting.export,
    "data shapes": data.shapes,
    "data doctor": data.doctor,
    "data compress": data.compress,
    "refine": refining.refine,
    "report": reporting.report,
    "verify": verifying.verify,
}


@pytest.mark.parametrize("command", KINDS)
def test_flags_are_those_of_the_help(command, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert flags_of(KINDS[command]) == help_of(command.split(), capsys) - {"--help"}


def test_a_setting_is_spelled_as_the_command_at_hand_takes_it():
    assert (flag("data.num_frames"), again()) == ("--data.num-frames", "go on with --resume")
    with of_command(Command(frozenset({"--em-block"}), "eval.", {"data.root": "DIR"}, "{name} in the file")):
        assert [flag(name) for name in ("eval.em_block", "data.root", "data.layout")] == [
            "--em-block", "DIR", "data.layout in the file",
        ]  # fmt: skip
        assert (takes("data.root"), takes("data.layout"), again()) == (True, False, "run the command again")
    assert flag("eval.em_block") == "--eval.em-block"


def test_a_command_does_not_speak_for_the_next(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    cli.main(["eval", "run", "--em-block", "0"])
    assert flags.flag("eval.em_block") == "--eval.em-block"
    config = load_recipe("shapes")
    config.eval.em_block = 0
    with pytest.raises(UserError, match=r"pass --eval\.em-block with"):
        check_config(config)


@pytest.mark.parametrize("path", [*sorted((PACKAGE / "data").rglob("*.py")), *map(PACKAGE.joinpath, (
    "config.py", "runs/files.py", "runs/contents.py", "runs/evaluations.py", "runs/folder.py", "runs/clip_config.py",
    "evaluation/encode.py", "evaluation/run.py", "evaluation/provenance.py", "evaluation/rerank.py",
))], ids=lambda path: path.name)  # fmt: skip
def test_what_several_commands_read_names_no_flag_of_one(path):
    code = re.sub(r'"""[\s\S]*?"""|`[^`]*`', "", path.read_text(encoding="utf-8"))
    assert re.findall(r"--(?:data|eval|emcl|model|train)\.", code) == []


def test_a_report_sends_to_the_configuration(place, capsys):
    (place / "data").mkdir()
    make_run(place / "other", root=place / "data")
    assert cli.main(["report", str(place / "other")]) == 0
    page = unescape((place / "other" / "report.html").read_text())
    assert "data.root in the run's config.json" in page
    assert "--data.root" not in page
