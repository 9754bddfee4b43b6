"""A run that diverges ends with one line that says since when, what to change and what there is."""

import io

import diverging_processes
import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from launching import launched
from rich.console import Console
from tiny_run import tiny_run
from torch import nn

from emcl_kernels import SimilarityStream
from emcl_train.errors import NotFinite, UserError, of_input
from emcl_train.runs import contents
from emcl_train.runs import state as checkpoint
from emcl_train.tools.embed import embed
from emcl_train.training import trainer
from emcl_train.training.divergence import Diverged, all_finite, moments_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("shapes")


@pytest.fixture
def other_precision():
    """accelerate keeps the precision of a process's first run."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def diverge(config):
    """What the run says."""
    with pytest.raises(Diverged) as error:
        trainer.train(config, Console(file=io.StringIO()))
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("mode", ["train", "inference", "off"])
@pytest.mark.parametrize("head", ["text-conditioned", "mean", "wti"])
def test_a_rate_that_is_too_high(root, tmp_path, head, mode):
    config = tiny_run(root, tmp_path / "run", lr=1e9, warmup=0.0, tracker="none")
    config.model.head, config.emcl.mode = head, mode
    text = diverge(config)
    assert "the loss is nan at step 2 (epoch 1), after a loss of " in text
    assert "begin another run, with another --out, and try a lower --train.lr (it is 1e+09), a longer" in text
    assert f"no state was saved in {tmp_path / 'run' / 'state'}" in text
    assert "--train.precision" not in text
    assert "starts from" not in text


@pytest.mark.usefixtures("other_precision")
@pytest.mark.parametrize(
    "train",
    [{"chunks": 2}, {"optimizer": "bertadam"}, {"precision": "bf16"}, {"precision": "fp16"}, {"clip_lr_factor": 0.0}],
    ids=str,
)
@pytest.mark.parametrize("lr", [1e4, 1e9, 1e25])
def test_with_other_settings_of_training(root, tmp_path, train, lr):
    text = diverge(tiny_run(root, tmp_path / "run", lr=lr, warmup=0.0, tracker="none", **train))
    assert text.startswith("training has diverged: ")
    assert ("--train.precision no" in text) == ("precision" in train)


def test_on_features(root, tmp_path):
    config = tiny_run(root, tmp_path / "run", lr=1e12, warmup=0.0, tracker="none")
    embed(config, tmp_path / "features")
    config.from_features = tmp_path / "features"
    assert diverge(config).startswith("training has diverged: ")


def test_a_validation_that_shows_it_first(root, tmp_path):
    text = diverge(tiny_run(root, tmp_path / "run", lr=1e9, warmup=0.0, max_steps=1, tracker="none"))
    assert "numbers of the validation after it are not finite (the video tower gave NaN" in text
    assert "at step 1 (epoch 1), after a loss of" in text
    assert "the damaged weights are not saved" in text
    assert not (tmp_path / "run" / contents.STATE).exists()


@pytest.mark.parametrize("what", ["bases", "similarity"])
def test_em_that_shows_it_first(root, tmp_path, monkeypatch, what):
    """In the validation all features are finite, and EM or the comparison gives NaN."""
    real = trainer.evaluate

    def evaluate(model, embeddings, config):
        if what == "bases":
            model.emcl.bases.fill_(torch.nan)
        else:
            monkeypatch.setattr(
                trainer.RetrievalModel,
                "similarity_stream",
                lambda self, text, video, **_: SimilarityStream(
                    1, lambda: iter([torch.full((len(text), len(video)), torch.nan)])
                ),
            )
        return real(model, embeddings, config)

    monkeypatch.setattr(trainer, "evaluate", evaluate)
    text = diverge(tiny_run(root, tmp_path / "run", tracker="none"))
    assert "numbers of the validation after it are not finite (the model: " in text


@pytest.mark.parametrize("what", ["weight", "moment", "buffer"])
def test_damaged_weights_are_not_saved_over_good_ones(root, tmp_path, monkeypatch, what):
    """At step 3 of the second epoch, which is one that is saved; the state of the first epoch's end stays."""
    real = trainer.Run.log

    def log(run, **values):
        real(run, **values)
        if values["kind"] == "train" and values["step"] == 6:
            tensor = {
                "weight": lambda: run.model.temporal.position_embedding,
                "moment": lambda: moments_of(run.optimizer.optimizer)[-1],
                "buffer": lambda: run.model.emcl.bases,
            }[what]()
            with torch.no_grad():
                tensor.view(-1)[0] = torch.inf

    monkeypatch.setattr(trainer.Run, "log", log)
    config = tiny_run(root, tmp_path / "run", tracker="none")
    text = diverge(config)
    assert "weights are not finite at step 6 (epoch 2)" in text
    assert f"the state in {config.out / 'state'} is of step 4, before it; the damaged weights are not saved" in text
    assert checkpoint.load_state(config.out).step == 4


def test_other_errors_of_mathematics_stay_what_they_are(root, tmp_path, monkeypatch):
    def wrong(run, features, batch):
        raise ValueError("expected two dimensions")

    monkeypatch.setattr(trainer.Run, "loss", wrong)
    with pytest.raises(ValueError, match="expected two dimensions"):
        trainer.train(tiny_run(root, tmp_path / "run", tracker="none"), Console(file=io.StringIO()))


def test_numbers_that_are_not_finite_are_told_from_other_mistakes():
    with pytest.raises(NotFinite, match="a: similarity must not hold NaN"), of_input("a"):
        raise ValueError("similarity must not hold NaN")
    with pytest.raises(UserError) as error, of_input("a"):
        raise ValueError("a shape")
    assert not isinstance(error.value, NotFinite)


def test_what_is_finite():
    net = nn.Linear(2, 2)
    assert all_finite([*net.parameters(), torch.tensor([1, 2]), torch.empty(0), torch.tensor(True)])
    assert all_finite([])
    for value in (torch.nan, torch.inf, -torch.inf):
        assert not all_finite([torch.zeros(3), torch.tensor([0.0, value])])


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch was built without gloo")
@pytest.mark.parametrize(
    ("where", "said"),
    [("captions", "the loss is nan at step 2"), ("validation", "numbers of the validation after it are not finite")],
)
def test_several_processes_end_together_and_the_first_one_says_it(tiny_whole_run, tmp_path, where, said):
    done = launched(diverging_processes.__file__, tiny_whole_run[0], tmp_path / "run", where)
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith(f"error: training has diverged: {said}")
    # torchrun's own report has a traceback; ours has none.
    assert "emcl_train" not in done.stderr.replace("emcl_train_", "").partition("Traceback")[2]
