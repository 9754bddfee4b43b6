"""Every command that writes into a folder is refused while another process does, before it writes or reads much."""

import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from fake_run import make_run
from tiny_videos import write_video

from emcl_train import cli
from emcl_train.errors import UserError
from emcl_train.evaluation.run import evaluate_run
from emcl_train.runs.contents import load_config
from emcl_train.runs.lock import RECORD, Writer
from emcl_train.training.start import open_run_folder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def somebody():
    """A process that does nothing but be there."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a run, features in files and videos, as the working directory."""
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        make_run(Path(f"s/seed-{seed}"))
    make_run(Path("run"))
    rows = np.random.default_rng(0).normal(size=(41, 24)).astype(np.float32)
    np.save("text.npy", rows)
    np.save("video.npy", rows[::-1])
    Path("videos").mkdir()
    write_video(Path("videos/a.mp4"), [1, 2])
    return tmp_path


def record(path: Path, process: int) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(replace(Writer.here(), process=process, started=""))))
    return path.read_bytes()


INSIDE = f"{{}}/{RECORD}"
BESIDE = f"{{0.parent}}/.{{0.name}}{RECORD}"
COMMANDS = {
    "train": ("train shapes --out new", INSIDE, "new"),
    "resume": ("train shapes --out run --resume", INSIDE, "run"),
    "seeds": ("train shapes --out s --seeds 3 --resume", INSIDE, "s"),
    "seeds, one of whose runs is written": ("train shapes --out s --seeds 4 --train.seed 2", INSIDE, "s/seed-4"),
    "a run of seeds": ("train shapes --out s/seed-0 --resume", INSIDE, "s"),
    "eval": ("eval run", INSIDE, "run"),
    "eval elsewhere": ("eval run --out new", BESIDE, "new"),
    "refine": ("refine text.npy video.npy --map em --num-bases 3 --out new", INSIDE, "new"),
    "export": ("export run new.bin --layout emcl", BESIDE, "new.bin"),
    "compress": ("data compress videos new", INSIDE, "new"),
    "embed": ("embed shapes --out new", BESIDE, "new"),
    "report": ("report run", INSIDE, "run"),
    "report of seeds": ("report s", INSIDE, "s/seed-1"),
    "report to a file": ("report run s --json new.json", BESIDE, "new.json"),
    "accepting": ("verify run --accept", INSIDE, "run"),
    "accepting in runs of seeds": ("verify s --accept", INSIDE, "s/seed-1"),
    "doctor to a file": ("data doctor jsonl videos --json new.json", BESIDE, "new.json"),
}


@pytest.mark.parametrize("unlocked", [(), ("--no-lock",)], ids=["", "no-lock"])
@pytest.mark.parametrize(("command", "where", "what"), COMMANDS.values(), ids=COMMANDS)
def test_a_second_writer_is_refused_and_told_who_is_there(somebody, place, capsys, command, where, what, unlocked):
    path = Path(where.format(Path(what)))
    theirs = record(path, somebody.pid)
    before = {found: found.read_bytes() for found in place.rglob("*") if found.is_file()}
    assert cli.main([*command.split(), *unlocked]) == 1
    error = capsys.readouterr().err
    # A folder that stands for the one that was named may be given from the root on.
    assert re.search(rf"another process writes to (/\S*/)?{what}: process {somebody.pid} on ", error)
    assert error.count("\n") == 1
    assert path.read_bytes() == theirs
    pages = set(place.rglob("report.html"))  # of other runs, whose pages come first
    after = {found: found.read_bytes() for found in place.rglob("*") if found.is_file() and found not in pages}
    assert after == before


@pytest.mark.parametrize("name", ["evaluations", "state", "tracker"])
def test_a_link_in_the_place_of_a_folder_inside_a_run_is_refused(place, name):
    """Whoever made the run's folder does not decide where files are written."""
    Path("mine").mkdir()
    Path("run", name).symlink_to("../mine")
    with pytest.raises(UserError, match=rf"run/{name} is a link to \.\./mine; .*: put a folder in the link's place"):
        open_run_folder(replace(load_config(Path("run")), resume=True))
    if name == "evaluations":
        with pytest.raises(UserError, match=r"run/evaluations is a link to \.\./mine"):
            evaluate_run(Path("run"))
    assert list(Path("mine").iterdir()) == []
