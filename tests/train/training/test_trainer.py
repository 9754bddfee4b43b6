"""A training run from the first step to its report."""

import io
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tiny_run import tiny_run

from emcl_train.data.annotations import load_annotations
from emcl_train.data.text import CaptionTokenizer
from emcl_train.errors import UserError
from emcl_train.evaluation.run import evaluate_run
from emcl_train.models import VideoFeatures
from emcl_train.runs import contents
from emcl_train.runs import state as checkpoint
from emcl_train.runs.records import MEASURED
from emcl_train.training import losses, trainer


def run(config):
    """Train, and return what was printed."""
    console = Console(file=io.StringIO(), width=160)
    assert trainer.train(config, console) == config.out
    return console.file.getvalue()


def metrics(run_dir: Path):
    lines = [json.loads(line) for line in (run_dir / contents.METRICS).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in lines]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("shapes")


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    """A run folder and what was printed."""
    out = tmp_path_factory.mktemp("runs") / "first"
    return out, run(tiny_run(root, out))


def test_a_run_leaves_its_whole_folder(finished):
    out, _ = finished
    assert {path.name for path in out.iterdir()} >= {
        "config.json",
        "environment.json",
        "tokenizer.json",
        "metrics.jsonl",
        "model.safetensors",
        "state",
        "results.json",
        "embeddings.safetensors",
        "report.html",
    }
    environment = json.loads((out / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    assert {"command", "started", "commit", "processor"} <= environment.keys()
    assert not list(out.rglob("*.partial"))


def test_the_table_has_the_three_rows(finished):
    _, printed = finished
    assert all(row in printed for row in ("EMCL-Net", "EMCL off", "inverted softmax"))
    assert "validation" in printed


def test_every_step_and_every_epoch_is_recorded(finished):
    lines = metrics(finished[0])
    steps = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in steps] == list(range(1, 9))
    assert [line["epoch"] for line in steps] == [1] * 4 + [2] * 4
    assert all(math.isfinite(line["loss"]) for line in steps)
    assert [line["step"] for line in lines if line["kind"] == "validation"] == [4, 8]


def test_the_weights_are_those_of_the_last_epoch_since_eight_clips_are_too_few_to_choose_by(finished):
    out, printed = finished
    state = checkpoint.load_state(out)
    assert state.best_epoch == 2
    weights = load_file(out / contents.WEIGHTS)
    assert all(torch.equal(weights[name], value) for name, value in state.model.items())

    few = "the last epoch, since 8 validation clips are too few to choose by"
    assert json.loads((out / "results.json").read_text())["selection"] == f"{few}: epoch 2"
    assert f"Weights of {few}: epoch 2." in printed
    assert f"Weights of {few}: epoch 2." in (out / "report.html").read_text()
    assert "best so far" not in printed
    assert printed.count("warning: the validation split has 8 clips, fewer than 50") == 1


@pytest.fixture
def no_pictures(monkeypatch):
    """The report's plots take longer than all the rest."""
    monkeypatch.setattr(trainer, "write_report", lambda out: out)


@pytest.mark.usefixtures("no_pictures")
def test_the_same_seed_gives_the_same_bits(finished, root, tmp_path):
    first, second = finished[0], tmp_path / "again"
    run(tiny_run(root, second))
    assert metrics(second) == metrics(first)
    one, other = load_file(first / contents.WEIGHTS), load_file(second / contents.WEIGHTS)
    assert all(torch.equal(one[name], other[name]) for name in one)
    rows = [json.loads((out / "results.json").read_text())["rows"] for out in (first, second)]
    assert rows[0] == rows[1]


@pytest.mark.usefixtures("no_pictures")
def test_a_run_tokenizes_each_caption_once(root, tmp_path, monkeypatch):
    """Two epochs and two validations; the test split comes once, after them."""
    seen = []
    real = CaptionTokenizer.encode
    monkeypatch.setattr(CaptionTokenizer, "encode", lambda self, texts: (seen.extend(texts), real(self, texts))[1])
    config = tiny_run(root, tmp_path / "run")
    config.data.train_captions = "all"
    config.eval.query_bank = 0
    run(config)
    annotations = load_annotations(config.data)
    splits = annotations.train, annotations.val, annotations.test
    assert Counter(seen) == Counter(caption for split in splits for caption in split.captions)


def test_the_configuration_of_the_towers_stays_when_a_run_goes_on(root, tmp_path):
    """transformers may be another version by then; a tower that is another one is refused."""
    config = tiny_run(root, tmp_path / "run", max_steps=1)
    run(config)
    path = tmp_path / "run" / contents.CLIP_CONFIG
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"transformers_version": "4.0", "gone": 1}))
    before = path.read_bytes()
    run(replace(config, resume=True))
    assert path.read_bytes() == before
    content["vision_config"]["hidden_act"] = "gelu"
    path.write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=r"no longer those .*: vision_config.hidden_act was gelu, now quick_gelu; bring"
    ):
        run(replace(config, resume=True))
    assert json.loads(path.read_text()) == content


def test_evaluating_again_gives_the_same_results(finished):
    out, _ = finished
    before = json.loads((out / "results.json").read_text())
    assert evaluate_run(out)[0]["rows"] == before["rows"]


@pytest.mark.usefixtures("no_pictures")
def test_another_seed_and_a_step_limit(finished, root, tmp_path):
    run(tiny_run(root, tmp_path / "run", seed=1, max_steps=2))
    steps = [line for line in metrics(tmp_path / "run") if line["kind"] == "train"]
    assert len(steps) == 2
    assert steps[0]["loss"] != metrics(finished[0])[0]["loss"]


@pytest.mark.usefixtures("no_pictures")
def test_a_split_smaller_than_a_batch_is_taken_whole_and_said(root, tmp_path):
    printed = run(tiny_run(root, tmp_path / "run", batch_size=100, epochs=1))
    assert "the training split has 32 clips, fewer than train.batch_size 100: each step takes all" in printed
    assert len([line for line in metrics(tmp_path / "run") if line["kind"] == "train"]) == 1


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(("mode", "trains_with_em"), [("inference", False), ("off", False)])
def test_modes_of_emcl(root, tmp_path, mode, trains_with_em, monkeypatch):
    config = tiny_run(root, tmp_path / "run", max_steps=1)
    config.emcl.mode = mode
    seen = []

    def watch(name):
        original = getattr(trainer.RetrievalModel, name)

        def method(self, *args, emcl, **rest):
            seen.append((name, emcl))
            return original(self, *args, emcl=emcl, **rest)

        monkeypatch.setattr(trainer.RetrievalModel, name, method)

    watch("similarities")
    watch("similarity_stream")
    run(config)
    assert {emcl for name, emcl in seen if name == "similarities"} == {trains_with_em}
    assert any(emcl for name, emcl in seen if name == "similarity_stream") == (mode == "inference")


@pytest.mark.usefixtures("no_pictures")
def test_a_run_that_ended_before_its_first_step_can_be_started_again(root, tmp_path):
    config = tiny_run(root, tmp_path / "run", max_steps=1)
    config.emcl.num_bases = 17
    with pytest.raises(UserError, match=r"pass --emcl.num-bases 16"):
        run(config)
    config.emcl.num_bases = 16
    run(config)
    assert contents.load_config(config.out).emcl.num_bases == 16
    with pytest.raises(UserError, match="already holds files"):
        run(config)


@pytest.mark.parametrize("value", [1e30, 1e20, math.inf, math.nan])
def test_features_that_the_kernels_refuse_stop_the_run_with_the_step(root, tmp_path, monkeypatch, value):
    def huge(model, batch):
        features = encode(model, batch)
        video = features.video
        assert isinstance(video, VideoFeatures)
        return features._replace(video=replace(video, frames=video.frames * value))

    encode = trainer.RetrievalModel.forward
    monkeypatch.setattr(trainer.RetrievalModel, "forward", huge)
    with pytest.raises(UserError, match=r"the loss is nan at step 1 .* what it starts from, random, too; no state"):
        run(tiny_run(root, tmp_path / "run"))


def test_a_loss_that_is_not_finite_stops_the_run_with_the_step(root, tmp_path, monkeypatch):
    monkeypatch.setattr(losses, "symmetric_info_nce", lambda similarity, scale: scale * math.nan)
    with pytest.raises(UserError, match=r"the loss is nan at step 1 \(epoch 1\); begin .* a lower --train.lr"):
        run(tiny_run(root, tmp_path / "run"))


def test_a_full_disk_ends_with_one_error(root, tmp_path, monkeypatch):
    config = tiny_run(root, tmp_path / "run")

    def full(path, *_):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint, "save_state", full)
    with pytest.raises(UserError, match="the disk is full"):
        run(config)
    assert not list(config.out.rglob("*.partial"))


def test_losses_and_validations_go_to_the_tracker(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out, _ = finished
    events = EventAccumulator(str(out / "tracker"))
    events.Reload()
    expected = [(line["step"], line["loss"]) for line in metrics(out) if line["kind"] == "train"]
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (step, pytest.approx(loss)) for step, loss in expected
    ]
    validations = [line for line in metrics(out) if line["kind"] == "validation"]
    assert [event.value for event in events.Scalars("validation/video_to_text/MnR")] == [
        pytest.approx(line["video_to_text"]["MnR"]) for line in validations
    ]


def test_a_tracker_that_is_not_installed_is_an_error_and_none_is_a_choice(root, tmp_path):
    with pytest.raises(UserError, match=r"train\.tracker is wandb, whose package is not installed"):
        run(tiny_run(root, tmp_path / "a", tracker="wandb"))
    run(tiny_run(root, tmp_path / "b", tracker="none", max_steps=1))
    assert not (tmp_path / "b" / "tracker").exists()


def test_selecting_on_the_test_split_is_said_wherever_figures_stand(root, tmp_path):
    text = run(tiny_run(root, tmp_path / "run", epochs=1, select_on_test=True))
    assert "TEST SET (which makes the figures too high) R@1" in text
    assert "Weights chosen by TEST SET (which makes the figures too high) text→video R@1: epoch 1." in text
    assert "TEST SET" in (tmp_path / "run" / "report.html").read_text()
    validation = next(line for line in metrics(tmp_path / "run") if line["kind"] == "validation")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert validation["split"] == "test"
    assert validation["text_to_video"] == results["rows"][0]["text_to_video"]
