"""Each command that shares its work: two and three processes leave what one leaves, and each has done a part.

All sizes are such that neither two nor three processes have equally many batches.
"""

import json
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import commands_together
import numpy as np
import pytest
import torch
import torch.distributed as dist
from launching import launched
from safetensors.torch import load_file
from tiny_layouts import SMALL, jsonl
from tiny_videos import write_data_set, write_video

from emcl_train import cli

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch was built without gloo"),
]
MODEL = SMALL[: SMALL.index("--train.max-steps")]
SIZE = ("--eval.batch-size", "2")


def commands(run: Path, films: Path, table: Path, damaged: Path) -> dict[str, list[str]]:
    """By name; {out} is the folder that a command writes, and {json} a file."""
    evaluate = ["eval", str(run), "--batch-size", "5", "--out", "{out}"]
    lists = ["embed", str(films), "--texts", str(films / "texts.txt"), *MODEL, *SIZE, "--out", "{out}"]
    return {
        "eval": [*evaluate, "--query-bank", "7"],
        "eval in blocks": [*evaluate, "--em-block", "4"],
        "eval in large blocks": [*evaluate, "--em-block", "16"],
        "eval without EMCL": [*evaluate, "--emcl.mode", "off"],
        "eval into a folder that is there": ["eval", str(run), "--out", str(films)],
        "embed RUN": ["embed", str(run), "--out", "{out}"],
        "embed TABLE": ["embed", str(table / "all.jsonl"), *MODEL, *SIZE, "--out", "{out}"],
        "embed RECIPE": ["embed", "jsonl", "--data.root", str(table), *MODEL, *SIZE, "--tokens", "--out", "{out}"],
        "embed, a damaged clip": [*lists],
        "embed, a damaged clip left out": [*lists, "--data.on-bad-video", "skip"],
        "data doctor": ["data", "doctor", "msrvtt", str(damaged), "--json", "{json}"],
        "data doctor --deep": ["data", "doctor", "jsonl", str(table), "--deep", "--json", "{json}"],
        "data compress": ["data", "compress", str(films), "{out}", "--short-side", "32", "--workers", "1"],
        "data compress again": ["data", "compress", str(films), "{out-of-compress}", "--short-side", "32"],
        "embed no such run": ["embed", str(films / "none"), "--out", "{out}"],
    }


def filled(asked: dict[str, list[str]], folder: Path) -> list[list[str]]:
    """The arguments, with places in a folder."""
    places = {name: {"{out}": str(folder / name), "{json}": str(folder / f"{name}.json")} for name in asked}
    for name in asked:
        places[name]["{out-of-compress}"] = places["data compress"]["{out}"]
    return [[places[name].get(argument, argument) for argument in of_one] for name, of_one in asked.items()]


@pytest.fixture(scope="module")
def asked(tiny_whole_run, tmp_path_factory):
    """The commands, on a run, on a folder with films of which one is damaged, and on a data set."""
    folder = tmp_path_factory.mktemp("sources")
    run = folder / "run"
    shutil.copytree(tiny_whole_run[1], run)

    films = folder / "films"
    (films / "more").mkdir(parents=True)
    for n, name in enumerate(("a.mp4", "b.mkv", "more/c.mp4", "d.mp4", "more/e.mp4")):
        write_video(films / name, [n] * (12 + 3 * n), size=(48, 32))
    (films / "z.mp4").write_bytes(b"nothing")
    (films / "texts.txt").write_text("".join(f"text {n}\n" for n in range(7)))

    table = folder / "table"
    jsonl(table)
    clips = sorted((table / "films").glob("*.mkv"))[:7]
    lines = [json.dumps({"video": f"films/{path.name}", "captions": [f"a {path.stem}"]}) for path in clips]
    (table / "all.jsonl").write_text("\n".join(lines) + "\n")

    damaged = write_data_set(folder / "set")
    (damaged / "videos" / "video3.mp4").write_bytes(b"")
    (damaged / "videos" / "video6.mp4").unlink()
    return commands(run, films, table, damaged)


@pytest.fixture(scope="module")
def alone(asked, tmp_path_factory):
    """What one process leaves."""
    folder = tmp_path_factory.mktemp("alone")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        for name, arguments in zip(asked, filled(asked, folder), strict=True):
            with redirect_stdout(StringIO()) as out:
                code = cli.main(arguments)
            found[name] = {"code": code, "out": out.getvalue()}
    return SimpleNamespace(folder=folder, found=found)


@pytest.fixture(scope="module", params=[2, 3])
def together(request, asked, tmp_path_factory):
    """What several leave, each of which starts with an empty cache."""
    folder = tmp_path_factory.mktemp(f"processes-{request.param}")
    (folder / "commands.json").write_text(json.dumps(filled(asked, folder)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        done = launched(commands_together.__file__, folder, processes=request.param)
    assert done.returncode == 0, done.stderr
    of_each = [json.loads((folder / f"done-{rank}.json").read_text()) for rank in range(request.param)]
    return SimpleNamespace(folder=folder, ranks=[dict(zip(asked, found, strict=True)) for found in of_each])


NAMES = list(commands(*map(Path, ("run", "films", "table", "set"))))


@pytest.mark.parametrize("name", NAMES)
def test_the_first_process_says_and_returns_what_one_does(alone, together, name):
    first, *others = [of_rank[name] for of_rank in together.ranks]
    assert first["code"] == alone.found[name]["code"]
    assert first["out"].replace(str(together.folder), str(alone.folder)) == alone.found[name]["out"]
    failed = "error: " in first["err"]
    assert first["err"].count("error: ") <= 1
    for other in others:
        assert other["out"] == other["err"] == "", name
        assert (other["code"] != 0) == failed  # a damaged clip that is reported is no error


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("data compress again",)])
def test_files_are_those_of_one_process(alone, together, name):
    one, several = files(alone.folder / name), files(together.folder / name)
    assert one.keys() == several.keys()
    for file in one.keys() - CLOSE:
        expected = one[file].replace(str(alone.folder).encode(), str(together.folder).encode())
        assert several[file] == expected, file


CLOSE = {"embeddings.safetensors", "checksums.json", "report.html", "environment.json"}
"""Files in which similarities stand, or what follows from their last digit."""


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("eval") and "there" not in name])
def test_figures_are_equal_and_similarities_to_the_last_digits(alone, together, name):
    one, several = (load_file(place.folder / name / "embeddings.safetensors") for place in (alone, together))
    assert one.keys() == several.keys()
    for tensor, value in one.items():
        if tensor.startswith("similarity"):
            torch.testing.assert_close(several[tensor], value, atol=1e-6, rtol=0)
        else:
            assert several[tensor].equal(value), tensor
    results = [json.loads((place.folder / name / "results.json").read_text()) for place in (alone, together)]
    assert results[0] == results[1]


@pytest.mark.parametrize("name", ["data doctor", "data doctor --deep"])
def test_what_doctor_found_is_what_one_process_finds(alone, together, name):
    one, several = (json.loads((place.folder / f"{name}.json").read_text()) for place in (alone, together))
    assert one == several
    assert len(one["clips"]) > 6


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("eval", "clips"), ("eval", "texts"), ("eval in blocks", "texts"), ("embed RUN", "clips"),
        ("embed RUN", "texts"), ("embed TABLE", "decoded"), ("embed TABLE", "clips"), ("embed RECIPE", "decoded"),
        ("embed RECIPE", "texts"), ("embed, a damaged clip left out", "texts"), ("data doctor", "examined"),
        ("data compress", "copied"),
    ],
)  # fmt: skip
def test_each_process_does_a_part(together, name, kind):
    shares = [of_rank[name]["done"][kind] for of_rank in together.ranks]
    assert min(shares) > 0
    assert max(shares) <= 0.7 * sum(shares)


def test_a_damaged_clip_is_named_once_whichever_process_meets_it(together):
    first, *others = [of_rank["embed, a damaged clip"] for of_rank in together.ranks]
    assert "1 of 6 videos" in first["err"]
    assert "z.mp4" in first["err"]
    assert [other["err"] for other in others] == [""] * len(others)
    left = [path.name for path in together.folder.iterdir() if path.name.startswith(".")]
    assert not left  # no partial folder, and no lock


def test_rows_stand_in_their_places(together):
    """A row that went astray would be another clip's."""
    rows = np.load(together.folder / "embed TABLE" / "video.npy")
    assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() < 1e-6
    assert len(np.unique(rows.round(5), axis=0)) == len(rows)
