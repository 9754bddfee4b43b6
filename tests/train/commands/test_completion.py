"""Completion scripts, run by the shells that they are for."""

import shutil
import subprocess
import sys

import pytest

from emcl_train import cli
from emcl_train.commands.completing import SHELLS, completed
from emcl_train.recipes import RECIPES

CASES = [
    ("tr", {"train"}),
    ("data ", {"cache", "compress", "doctor", "shapes"}),
    ("train msrvtt-", {"msrvtt-7k", "msrvtt-9k", "msrvtt-full"}),
    ("train shapes --train.opt", {"--train.optimizer"}),
    ("train shapes --train.optimizer ", {"adamw", "bertadam"}),
    ("eval runs/x --em-", {"--em-block"}),
    ("train shapes --dry", {"--dry-run"}),
    ("data cache --", {"--older-than", "--prune"}),
    ("embed no/run --model.init", {"--model.init-from"}),
    ("embed no/run --te", {"--texts"}),
    ("verify x --dev", set()),
    ("completion ", {"bash", "zsh", "fish"}),
    ("index films --cut ", {"auto", "shots", "pieces"}),
    ("search lib --rows ", {"auto", "refined", "plain"}),
    ("serve lib --cache", {"--cache", "--cache-gb"}),
    ("export lib --to ", {"parquet", "faiss", "qdrant"}),
    ("export lib --layout ", {"clip4clip", "emcl", "openai", "transformers"}),
]


@pytest.mark.parametrize(("typed", "expected"), CASES)
def test_words_that_may_follow(typed, expected):
    assert set(completed(typed.split(" "))) >= expected
    assert expected or completed(typed.split(" ")) == []


def test_all_recipes_and_the_flags_of_every_command_are_offered():
    assert completed(["train", ""]) == sorted(RECIPES)
    for name in ("train shapes", "resume x", "eval x", "embed x", "export x y", "refine a b", "report x", "verify x",
                 "data shapes x", "data doctor vatex x", "data compress x y", "index x", "search x y",
                 "serve x"):  # fmt: skip
        found = completed([*name.split(), "--"])
        assert "--help" in found
        assert len(found) > 4, name


def test_export_offers_the_flags_of_a_run_or_of_a_library_as_it_is_one():
    either = set(completed(["export", "x", "--"]))
    assert either >= {"--layout", "--to", "--out", "--description"}
    of_library = set(completed(["export", "x", "--to", "faiss", "--"]))
    assert "--description" in of_library
    assert "--layout" not in of_library
    assert "--description" not in completed(["export", "x", "--layout=emcl", "--"])


@pytest.fixture
def on_path(tmp_path, monkeypatch):
    """A folder with the program, as an installation has it."""
    program = tmp_path / "emcl-train"
    program.write_text(f"#!{sys.executable}\nfrom emcl_train.cli import program\nprogram()\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path


def asked_of(shell: str, typed: str) -> str:
    """A program for a shell that completes what is typed, and prints what it would offer."""
    if shell == "fish":
        return f"emcl-train completion fish | source; complete -C 'emcl-train {typed}'"
    script = 'eval "$(emcl-train completion ' + shell + ')"; '
    if shell == "bash":
        words = " ".join(f"'{word}'" for word in ["emcl-train", *typed.split(" ")])
        last = len(typed.split(" "))
        return script + f"COMP_WORDS=({words}); COMP_CWORD={last}; _emcl_train; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    # In zsh, what compadd is given: completion proper needs a terminal.
    words = " ".join(f"'{word}'" for word in ["emcl-train", *typed.split(" ")])
    stand_ins = 'compdef() {}; compadd() { print -l -- "${(@P)2}" }; _files() {}; '
    return stand_ins + script + f"words=({words}); CURRENT={len(typed.split(' ')) + 1}; _emcl_train"


@pytest.mark.parametrize(("typed", "expected"), CASES)
@pytest.mark.parametrize("shell", sorted(SHELLS))
def test_a_shell_offers_them(shell, typed, expected, on_path):
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    ended = subprocess.run(
        [shell, "-c", asked_of(shell, typed)], capture_output=True, text=True, cwd=on_path, check=False
    )
    offered = {line.split("\t")[0] for line in ended.stdout.splitlines()} - {""}
    assert offered >= expected, ended
    assert ended.stderr == ""


def test_help_and_a_wrong_shell(capsys):
    with pytest.raises(SystemExit):
        cli.main(["completion", "--help"])
    assert "usage: emcl-train completion" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        cli.main(["completion", "tcsh"])
    assert end.value.code == 2
