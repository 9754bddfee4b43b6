"""Flags of several commands: --quiet, --json, --device, --dry-run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import tiny_run
from tiny_videos import write_data_set

from emcl_train import cli, device
from emcl_train.commands.output import with_bare_json
from emcl_train.data.annotations import read_annotations
from emcl_train.errors import UserError
from emcl_train.recipes import SMOKE_TEST
from emcl_train.terminal import names_a_place, tolerant_output
from emcl_train.training.trainer import train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A data set, and two files of embeddings that refining has nothing to warn of: many rows with one mean."""
    monkeypatch.chdir(tmp_path)
    write_data_set(tmp_path / "set")
    rng = np.random.default_rng(0)
    hubs = 3 * rng.normal(size=64)
    for name in ("text", "video"):
        np.save(tmp_path / f"{name}.npy", (hubs + rng.normal(size=(60, 64))).astype(np.float32))
    return tmp_path


REFINE = ["refine", "text.npy", "video.npy", "--out", "refined", "--paired"]
COMMANDS = {
    "refine": REFINE,
    "doctor": ["data", "doctor", "msrvtt", "set"],
    "compress": ["data", "compress", "set/videos", "small", "--workers", "1"],
    "verify": ["verify", "refined"],
    "cache": ["data", "cache"],
}
KEYS = {
    "cache": {"home", "kept"},
    "refine": {"out", "map", "table"},
    "doctor": {"root", "splits", "clips"},
    "compress": {"folder", "out", "exit_code"},
    "verify": {"folder", "files"},
}


@pytest.mark.parametrize("form", ["bare", "dash", "file"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_result_for_programs_is_all_that_is_printed(command, form, place, capfd):
    if command == "verify":
        cli.main(REFINE)
        capfd.readouterr()
    flags = {"bare": ["--json"], "dash": ["--json", "-"], "file": ["--json", "found.json"]}[form]
    assert cli.main([*COMMANDS[command], *flags]) == 0
    out, err = capfd.readouterr()
    text = (place / "found.json").read_text() if form == "file" else out
    assert KEYS[command] <= json.loads(text).keys()
    assert (err == "") == (form == "file")


@pytest.mark.parametrize("command", ["eval", "report"])
def test_figures_of_a_run_for_programs(command, tiny_whole_run, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("emcl_train.report.write_report", lambda run, **_: run / "report.html")
    run = str(tiny_whole_run[1])
    arguments = [command, run, *(["--out", str(tmp_path / "new")] if command == "eval" else [])]
    assert cli.main([*arguments, "--json", "--quiet"]) == 0
    out, _ = capfd.readouterr()
    found = json.loads(out)
    assert found["runs"][0]["rows"] if command == "report" else found["rows"]


@pytest.mark.parametrize(("command", "keys"), [
    (["export", "{run}", "{out}", "--layout", "clip4clip"], {"run", "out", "layout", "left_out"}),
    (["embed", "{run}", "--texts", "{out}.txt", "--out", "{out}"], {"out", "files", "exit_code"}),
    (["publish", "{run}", "{out}"], {"run", "folder", "files", "weights", "license"}),
    (["data", "shapes", "{data}", "--train-clips", "32", "--val-clips", "8", "--test-clips", "12",
      "--captions-per-clip", "2", "--size", "32", "--seconds", "1", "--fps", "4"], {"root", "clips"}),
])  # fmt: skip
def test_what_is_made_of_a_run_for_programs(command, keys, tiny_whole_run, tmp_path, capfd):
    data, run = tiny_whole_run
    (tmp_path / "out.txt").write_text("a red circle\na blue square\n")
    given = [word.format(run=run, data=data, out=tmp_path / "out") for word in command]
    assert cli.main([*given, "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out).keys() == keys
    assert err or command[0] == "data"


def test_a_training_gives_its_figures_to_programs(place, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("emcl_train.training.trainer.write_report", lambda run: run)
    small = ["--train.max-steps", "1", "--data.workers", "0", "--model.random-clip.width", "16",
             "--model.random-clip.layers", "1", "--model.random-clip.heads", "2", "--emcl.num-bases", "4",
             "--data.num-frames", "2", "--data.image-size", "32", "--eval.query-bank", "0"]  # fmt: skip
    assert cli.main([*TRAIN, *small, "--json"]) == 0
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert found["run"] == "run"
    assert found["rows"][0]["text_to_video"]["R@1"] >= 0
    assert "R@1" in err
    assert cli.main(["resume", "run", "--json", "figures.json"]) == 0
    capfd.readouterr()
    assert json.loads((place / "figures.json").read_text())["rows"] == found["rows"]


def test_json_alone_takes_no_other_flag_for_its_file():
    assert with_bare_json(["a", "--json", "--deep"]) == ["a", "--json", "-", "--deep"]
    assert with_bare_json([]) == []
    assert with_bare_json(["a", "--json", "x", "--json"]) == ["a", "--json", "x", "--json", "-"]


@pytest.mark.parametrize("command", ["refine", "doctor", "verify"])
def test_a_quiet_command_says_where_its_results_are(command, place, capfd):
    if command == "verify":
        cli.main(REFINE)
        capfd.readouterr()
    assert cli.main([*COMMANDS[command], "--quiet"]) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert err == ""
    assert all(map(names_a_place, lines))
    assert len(lines) == {"refine": 3, "doctor": 1, "verify": 1}[command], lines


@pytest.mark.parametrize("flags", [["--quiet"], ["--quiet", "--json"]])
@pytest.mark.parametrize(("command", "said"), [
    ("doctor", "video0 (train) cannot be decoded: "), ("compress", "video0.mp4 cannot be decoded: "),
    ("verify", "damaged: refined/text.npy"),
])  # fmt: skip
def test_a_quiet_command_gives_the_reasons_of_its_exit_code(command, said, flags, place, capfd):
    cli.main(REFINE)
    capfd.readouterr()
    (place / "set/videos/video0.mp4").write_bytes(b"no video")
    with open(place / "refined/text.npy", "r+b") as file:
        file.seek(200)
        file.write(b"\xff\xfe")
    assert cli.main([*COMMANDS[command], *flags]) == 1
    out, err = capfd.readouterr()
    assert said in err
    assert all(map(names_a_place, out.splitlines())) or json.loads(out)


@pytest.mark.parametrize("flags", [["--quiet"], []])
def test_of_a_quiet_command_people_get_no_more_beside_a_result_for_programs(flags, place, capfd):
    assert cli.main([*REFINE, "--json", *flags]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)
    assert ("R@1" in err) == (flags == [])
    assert all(map(names_a_place, err.splitlines())) == (flags != [])


def test_a_quiet_command_says_that_weights_are_random_and_which_videos_are_left_out(place, capfd):
    (place / "set/videos/video0.mp4").write_bytes(b"no video")
    command = ["embed", "set/videos", "--model.clip", "random", "--data.on-bad-video", "skip", "--out", "features"]
    assert cli.main([*command, "--quiet"]) == 1
    out, err = capfd.readouterr()
    assert out.startswith("features: video.npy ")
    assert out.count("\n") == 1
    assert SMOKE_TEST in err
    assert "video0.mp4 cannot be decoded and is left out: " in err


@pytest.mark.parametrize(("line", "is_one"), [
    ("features: features of 3 clips", True), ("report: set/videos", True), ("map: features, 3", True),
    ("set: 3", True), ("clips: 3", False), (".: 3", False), ("R@1 of features", False),
])  # fmt: skip
def test_a_place_needs_no_separator(line, is_one, place):
    (place / "features").mkdir()
    assert names_a_place(line) == is_one


def test_a_quiet_training_warns_of_what_it_warns_of_aloud(place, tmp_path, capfd):
    config = tiny_run(tmp_path / "data", tmp_path / "run", max_steps=1)
    with tolerant_output(quiet=True):
        train(config)
    out, err = capfd.readouterr()
    assert "warning: the validation split has " in err
    assert all(map(names_a_place, out.splitlines()))


def test_a_quiet_command_still_says_what_is_wrong(place, capfd):
    assert cli.main(["train", "no", "--quiet"]) == 1
    assert capfd.readouterr().err.startswith("error: there is no recipe 'no'")
    assert cli.main(["--help", "--quiet"]) == 0
    assert "usage" in capfd.readouterr().out


TRAIN = [
    "train",
    "msrvtt-9k",
    "--data.root",
    "set",
    "--model.clip",
    "random",
    "--out",
    "run",
    "--train.batch-size",
    "4",
]


@pytest.mark.parametrize(("arguments", "said"), [
    ([*TRAIN, "--data.cache-frames"], [
        "clips: 10 train with 30 captions", "steps: 35, 7 in each of 5 epochs of 4 pairs",
        "folder: run, which would be made", "kept frames: ",
    ]),
    ([*TRAIN, "--train.max-steps", "3"], ["stopped after 3"]),
    (["embed", "msrvtt-9k", "--data.root", "set", "--model.clip", "random", "--out", "f"], ["folder: f, which would"]),
    (["train", "shapes", "--out", "run"], ["clips: 2000 train, 256 val and 256 test would be rendered in data/shapes"]),
    (REFINE, ["text: text.npy, 60 × 64", "folder: refined"]),
    (COMMANDS["compress"], ["videos: 14 in set/videos", "0 have a copy"]),
])  # fmt: skip
def test_a_dry_run_says_what_would_be_done_and_writes_nothing(arguments, said, place, capfd):
    before = sorted(place.rglob("*"))
    assert cli.main([*arguments, "--dry-run"]) == 0
    out, err = capfd.readouterr()
    assert all(part in out for part in [*said, "nothing was written"]), out
    assert err == ""
    assert sorted(place.rglob("*")) == before


def test_a_dry_run_finds_what_training_would_refuse(place, capfd):
    assert cli.main(["train", "msrvtt-9k", "--data.root", "none", "--model.clip", "random", "--dry-run"]) == 1
    assert capfd.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(("arguments", "said"), [
    (["verify", "set", "--device", "cpu"],
     "verify takes no --device; train, resume, eval, embed, index, search, serve do"),
    (["report", "set", "--dry-run"], "report takes no --dry-run; train, resume, embed, refine, data compress do"),
    ([*TRAIN, "--device", "gpu"], "device is 'gpu', expected cpu, cuda or cuda:N"),
    ([*TRAIN, "--device"], "device is '', expected cpu"),
    ([*TRAIN, "--device=cuda:0"], "device is cuda:0, and there is cpu; this torch sees no GPU; pass --device with one"),
])  # fmt: skip
def test_what_is_wrong_with_such_a_flag_is_one_line(arguments, said, place, capfd, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(arguments) == 1
    assert capfd.readouterr().err.startswith(f"error: {said}")
    assert not (place / "run").exists()


@pytest.fixture
def two_gpus(monkeypatch):
    """Two GPUs, as far as torch says; the device that was chosen among them."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda n: f"card {n}")
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    yield chosen
    device.use_device(None)


def test_the_device_is_the_one_that_was_asked_for(two_gpus):
    for name, expected in ((None, "cuda:0"), ("cpu", "cpu"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1")):
        device.use_device(name)
        assert device.device() == torch.device(expected)
    assert two_gpus == [torch.device("cuda:1")]  # the first one is torch's own choice
    device.use_device("cuda:2")
    with pytest.raises(UserError, match=r"there is cpu, cuda:0 \(card 0\), cuda:1 \(card 1\); pass --device"):
        device.device()


def test_training_takes_the_device(two_gpus, monkeypatch):
    for name, cpu, told in (
        ("cpu", True, None),
        ("cuda:1", False, "cuda:1"),
        ("cuda", False, None),
        (None, None, None),
    ):
        device.use_device(name)
        assert device.asked_of_accelerate() is cpu
        assert device.os.environ.get(device.OF_ACCELERATE) == told
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="there are several processes"):
        device.use_device("cuda:1")


def test_annotations_are_read_as_training_reads_them(place):
    """What a dry run counts is what there is."""
    from emcl_train.config import DataConfig

    assert len(read_annotations(DataConfig(root=Path("set"))).train.clips) == 10
