"""`--config FILE` and `--print-config` of commands that are no training, over all of them."""

import json

import pytest
import yaml
from tiny_run import tiny_run

from emcl_train import cli
from emcl_train.commands import COMMANDS
from emcl_train.commands.completing import completed, targets_of
from emcl_train.commands.entry import flags_of, options_of
from emcl_train.commands.everywhere import CONFIG, PRINT_CONFIG, WITHOUT_A_FILE
from emcl_train.commands.options_file import as_file, collecting, with_file
from emcl_train.runs.contents import save_config

TAKES = {
    "eval": ["run"],
    "embed": ["shapes", "--out", "features"],
    "export": ["run", "weights.bin", "--layout", "emcl"],
    "publish": ["run", "folder"],
    "data shapes": ["folder"],
    "data doctor": ["msrvtt", "folder"],
    "data compress": ["folder", "other"],
    "data cache": [],
    "refine": ["text.npy", "video.npy", "--out", "refined"],
    "index": ["films", "--out", "library"],
    "search": ["library", "a dog"],
    "serve": ["library"],
    "report": ["run"],
    "verify": ["run"],
}
"""What each command needs."""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a run as far as its settings."""
    monkeypatch.chdir(tmp_path)
    save_config(tmp_path / "run", tiny_run(tmp_path / "data", tmp_path / "run"))
    return tmp_path


def printed(arguments, capsys) -> str:
    capsys.readouterr()
    assert cli.main(arguments) == 0
    return capsys.readouterr().out


def test_every_command_with_options_has_a_file_of_them():
    assert set(TAKES) == set(COMMANDS) - set(WITHOUT_A_FILE)


@pytest.mark.parametrize("command", TAKES)
def test_what_is_printed_is_read_and_printed_again(command, place, capsys):
    first = printed([*command.split(), *TAKES[command], "--print-config"], capsys)
    (place / "options.yaml").write_text(first)
    again = printed([*command.split(), *TAKES[command], "--config", "options.yaml", "--print-config"], capsys)
    assert again == first
    (target,) = targets_of(command, TAKES[command])
    assert len(options_of(target)) == len(flat(yaml.safe_load(first)))
    assert sorted(path.name for path in place.iterdir()) == ["options.yaml", "run"]


def flat(tree, prefix=""):
    found = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def test_flags_win_over_the_file_wherever_they_stand(place, capsys):
    (place / "o.json").write_text(json.dumps({"num_bases": 9, "num-iters": 3, "paired": True, "out": "from_file"}))
    command = ["refine", "--num-bases=5", "text.npy", "--config=o.json", "--no-paired"]
    found = yaml.safe_load(printed([*command, "--print-config"], capsys))
    assert (found["num_bases"], found["num_iters"], found["paired"], found["out"]) == (5, 3, False, "from_file")


def test_of_eval_other_settings_are_the_runs_own_and_the_mode_decides_theirs(place, capsys):
    (place / "o.yaml").write_text("em_block: 4\nemcl:\n  mode: inference\n  num_iters: 3\n")
    found = yaml.safe_load(printed(["eval", "run", "--config", "o.yaml", "--print-config"], capsys))
    assert (found["em_block"], found["batch_size"]) == (4, 8)
    assert found["emcl"]["mode"] == "inference"
    assert (found["emcl"]["num_bases"], found["emcl"]["num_iters"]) == (7, 3)


def test_embed_takes_the_file_of_train(place, capsys):
    (place / "run.yaml").write_text(printed(["train", "shapes", "--train.lr", "0.5", "--print-config"], capsys))
    arguments = ["embed", "shapes", "--config", "run.yaml", "--out", "features", "--print-config"]
    found = yaml.safe_load(printed(arguments, capsys))
    assert (found["out"], found["train"]["lr"], found["select_on_test"]) == ("features", 0.5, False)
    assert cli.main(["embed", "msrvtt-9k", "--config", "run.yaml", "--out", "features"]) == 1
    assert "run.yaml has options of the recipe shapes; pass that one" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "said"), [
    ("num_base: 3", "o.yaml has 'num_base', which `refine` has not (did you mean num_bases?); `emcl-train refine"),
    ("paired: 3", "o.yaml: paired is 3, expected true or false"),
    ("- 3", "o.yaml must hold settings by their names, got a list"),
    ("a: &b 3", "it has an anchor"),
    ("recipe: shapes", "o.yaml has 'recipe', which `refine` has not"),
])  # fmt: skip
def test_what_is_wrong_in_a_file_is_one_line(text, said, place, capsys):
    (place / "o.yaml").write_text(text)
    assert cli.main(["refine", "a.npy", "b.npy", "--out", "o", "--config", "o.yaml"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--config"], ["--config", "--paired"], ["--config="]])
def test_a_file_has_to_follow(arguments, place, capsys):
    assert cli.main(["refine", "a.npy", "b.npy", "--out", "o", *arguments]) == 1
    assert "--config needs a file behind it" in capsys.readouterr().err


def test_an_address_in_a_file_is_refused_as_one_that_is_typed(place, capsys):
    (place / "o.yaml").write_text("out: s3://bucket/x")
    assert cli.main(["refine", "a.npy", "b.npy", "--config", "o.yaml"]) == 1
    assert "--out is s3://bucket/x, an address" in capsys.readouterr().err


def test_without_a_file_nothing_is_changed():
    assert with_file("refine", (), ["a", "--out", "b"]) == ["a", "--out", "b"]


def test_values_of_all_kinds_come_back():
    def command(*, names: tuple[str, ...] = (), width: float | None = None, on: bool = True, word: str = "no") -> None:
        """A command."""

    def seen(**given) -> list[str]:
        tree = yaml.safe_load(as_file(command, collecting(command)(**given)))
        assert tree.keys() == {"names", "width", "on", "word"}
        return tree

    assert seen(names=("a", "b"), width=1e-9, on=False) == {
        "names": ["a", "b"], "width": 1e-9, "on": False, "word": "no",
    }  # fmt: skip


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_completes_what_it_takes(command, place):
    given = TAKES.get(command, ["shapes"])[:1]
    found = set(completed([*command.split(), *given, "--"]))
    has_file = command not in WITHOUT_A_FILE
    assert (PRINT_CONFIG in found) == (has_file or command in ("train", "resume"))
    assert (CONFIG in found) == (has_file or command in ("train", "resume"))
    for target in targets_of(command, given):
        assert flags_of(target) <= found | {"--json"}


JSON_HAS_NO_USE = {
    "completion": "prints a script for a shell",
    "serve": "runs until it is ended, and prints its address at once",
}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_that_ends_has_a_result_for_programs(command, place):
    for target in targets_of(command, TAKES.get(command, ["shapes"])):
        assert ("--json" in flags_of(target)) == (command not in JSON_HAS_NO_USE), target
