"""`--help` behind every command shows that command, and `--version` what runs."""

import platform
import re
import subprocess
import sys
from importlib import metadata

import pytest

from emcl_kernels import __version__
from emcl_train import cli
from emcl_train.commands import COMMANDS, version
from emcl_train.commands.everywhere import COMPUTING, EVERYWHERE, PLANNED
from emcl_train.recipes import OF_CLIP, RECIPES
from emcl_train.runs.code import commit


def said_by(arguments, capsys) -> tuple[int, str]:
    """The exit code of a command that ends by itself, and what it prints."""
    try:
        code = cli.main(arguments)
    except SystemExit as end:
        code = end.code
    return code, capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_is_its_own(command, flag, capsys):
    code, text = said_by([*command.split(), flag], capsys)
    assert code == 0
    assert re.match(rf"usage: emcl-train {command}\b", text)
    assert "COMMAND" not in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_the_flags_of_several(command, capsys):
    _, text = said_by([*command.split(), "--help"], capsys)
    assert all(flag in text for flag in EVERYWHERE)
    assert ("--device" in text) == (command in COMPUTING)
    assert ("--dry-run" in text) == (command in PLANNED)


def test_help_of_embed_says_that_it_takes_videos_and_texts(capsys, tmp_path):
    _, text = said_by(["embed", "--help"], capsys)
    assert "A folder of videos" in text
    _, text = said_by(["embed", str(tmp_path), "--help"], capsys)
    assert "or a table (.csv" in " ".join(text.split())


@pytest.mark.parametrize(
    ("command", "option"), [("train", "--train.lr"), ("eval", "--em-block"), ("embed", "--tokens")]
)
def test_help_without_a_word_lists_options_and_recipes(command, option, capsys):
    _, text = said_by([command, "--help"], capsys)
    assert option in text
    named = {"train": RECIPES, "eval": (), "embed": OF_CLIP}[command]
    assert all(recipe in text for recipe in named)


def test_help_is_given_beside_a_run_that_there_is_not(capsys):
    assert cli.main(["eval", "no/such/run", "--help"]) == 1
    out, err = capsys.readouterr()
    assert "usage: emcl-train eval RUN" in out
    assert err.startswith("error: no/such/run is not a run folder")


def test_help_of_a_family_lists_its_commands_alone(capsys):
    own = [name for name in COMMANDS if name.startswith("data ")]
    for arguments, code in ((["data", "--help"], 0), (["data"], 2)):
        assert cli.main(arguments) == code
        text = capsys.readouterr().out
        assert all(name in text for name in own)
        assert "train RECIPE" not in text


def test_version_names_the_program_and_what_it_runs_on(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(version, "commit", lambda: commit(tmp_path))
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == (
        f"emcl-train {__version__}\ntorch {metadata.version('torch')}\nPython {platform.python_version()}\n"
    )


def test_version_of_a_checkout_has_its_commit(capsys, monkeypatch, tmp_path):
    def git(*arguments):
        subprocess.run(["git", "-C", tmp_path, *arguments], check=True, capture_output=True)

    (tmp_path / "file").write_text("a")
    git("init")
    git("add", "file")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "Add a file")
    monkeypatch.setattr(version, "commit", lambda: commit(tmp_path))
    assert cli.main(["--version"]) == 0
    assert re.match(r"emcl-train \S+ \(commit [0-9a-f]{10}\)\n", capsys.readouterr().out)
    (tmp_path / "file").write_text("b")
    assert cli.main(["--version"]) == 0
    assert re.match(r"emcl-train \S+ \(commit [0-9a-f]{10}, with changes\)\n", capsys.readouterr().out)


@pytest.mark.parametrize("arguments", [["--version"], ["train", "--help"], ["eval", "--help"], ["embed", "--help"]])
def test_help_and_version_do_not_wait_for_torch(arguments):
    code = f"import sys; from emcl_train.cli import main; main({arguments!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
