"""A run folder that version 0.1.0 wrote is still a run: it is evaluated, resumed, reported, and exported weights load.

`old_run/run` is what that version's `train shapes` with `SETTINGS` left behind, without its pictures. The results are
those of the whole run. `state/latest.pt` is the state that was saved after the third of its four steps, in the middle
of the second epoch. `old_run/exported.safetensors` is what its `export --layout emcl` made of it.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from emcl_train import report
from emcl_train.cli import main
from emcl_train.config import BEFORE
from emcl_train.data.text import load_tokenizer
from emcl_train.models import build_model
from emcl_train.runs.contents import load_config
from emcl_train.training import trainer

OLD = Path(__file__).parent / "old_run"
SHAPES = """
--data.shapes.train-clips 16 --data.shapes.val-clips 4 --data.shapes.test-clips 6 --data.shapes.captions-per-clip 2
--data.shapes.size 32 --data.shapes.seconds 1 --data.shapes.fps 4
"""
SETTINGS = f"""
{SHAPES}
--data.root set --data.num-frames 3 --data.image-size 16 --data.max-words 24 --data.workers 0
--model.random-clip.width 16 --model.random-clip.layers 1 --model.random-clip.heads 2 --model.random-clip.patch-size 8
--model.temporal-layers 1 --emcl.num-bases 4 --train.epochs 2 --train.batch-size 8 --train.save-every 3
--train.tracker none --eval.batch-size 8
"""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of the run, rendered anew."""
    folder = tmp_path_factory.mktemp("rendered") / "set"
    settings = SHAPES.replace("--data.shapes.", "--").split()
    assert main(["data", "shapes", str(folder), *settings]) == 0
    return folder


@pytest.fixture
def here(rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the run in `run` and its data set in `set`, since the run names both by these paths."""
    shutil.copytree(OLD / "run", tmp_path / "run")
    (tmp_path / "set").symlink_to(rendered)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take longer than all the rest; one test draws them."""
    monkeypatch.setattr(trainer, "write_report", lambda out: out)
    monkeypatch.setattr(report, "write_report", lambda out: out)


def rows(folder: Path) -> list[dict]:
    return json.loads((folder / "results.json").read_text())["rows"]


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "train"]


def test_it_is_small_and_names_no_machine() -> None:
    files = [path for path in OLD.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1 << 20
    config = load_config(OLD / "run")
    assert not any(path.is_absolute() for path in (config.out, config.data.root))


@pytest.mark.usefixtures("no_pictures")
def test_evaluating_it_again_gives_its_figures(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "run"]) == 0
    assert "was trained on other frames" not in capfd.readouterr().err
    assert rows(here / "run") == rows(OLD / "run")
    assert not (here / "run" / "evaluations").exists()  # where other figures would have gone


@pytest.mark.usefixtures("no_pictures")
def test_it_goes_on_from_its_state_to_its_end(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("results.json", "queries.json", "embeddings.safetensors"):
        (here / "run" / name).unlink()

    assert main(["train", "shapes", "--out", "run", *SETTINGS.split(), "--resume"]) == 0

    assert "resuming run after step 3 of 4" in capfd.readouterr().out
    assert losses(here / "run") == pytest.approx(losses(OLD / "run"), rel=1e-3)
    assert rows(here / "run") == rows(OLD / "run")


@pytest.mark.usefixtures("no_pictures")
def test_what_it_keeps_of_its_time_is_said(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BEFORE, "train.warmup", 0.5)
    saved = json.loads((here / "run" / "config.json").read_text())
    del saved["train"]["warmup"]
    (here / "run" / "config.json").write_text(json.dumps(saved))

    assert main(["train", "shapes", "--out", "run", *SETTINGS.split(), "--resume"]) == 0
    shown = capfd.readouterr().out
    assert "run is older than some settings, and keeps its own:" in shown
    assert "train.warmup was 0.5, now 0.1" in shown


def test_its_report_is_written(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "run"]) == 0
    assert "EMCL-Net + inverted softmax" in capfd.readouterr().out
    assert "EMCL-Net + QB-Norm" in (here / "run" / "report.html").read_text()


def test_its_exported_weights_start_a_model(here: Path) -> None:
    config = load_config(here / "run")
    config.model.init_from = OLD / "exported.safetensors"
    model = build_model(config, load_tokenizer(config, here / "run"))
    expected = load_file(OLD / "run" / "model.safetensors")
    assert model.state_dict().keys() == expected.keys()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0, msg=name)


@pytest.mark.usefixtures("no_pictures")
def test_its_exported_weights_start_a_run(here: Path) -> None:
    start = ["--model.init-from", str(OLD / "exported.safetensors"), "--train.max-steps", "1"]
    assert main(["train", "shapes", "--out", "next", *SETTINGS.split(), *start]) == 0
    assert len(losses(here / "next")) == 1
