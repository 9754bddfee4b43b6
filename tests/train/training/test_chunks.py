"""Chunked encoding: the gradients are those of the whole batch at once, whatever the chunks, dropout included."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from several_processes import one_step, step_config
from torch import nn

from emcl_train.errors import UserError
from emcl_train.models import BatchFeatures, TextFeatures, VideoFeatures
from emcl_train.training import trainer
from emcl_train.training.chunks import split_rows

CASE = "relative-full"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def root(tiny_whole_run):
    """The folder of a rendered data set."""
    return tiny_whole_run[0]


def close(found, expected, factor=1.0):
    everything = torch.cat([gradient.flatten() for gradient in expected["gradients"].values()]).norm()
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    for name, gradient in expected["gradients"].items():
        error = (found["gradients"][name] / factor - gradient).norm()
        # In exact arithmetic the biases of the keys have no gradient at all.
        assert error <= 1e-5 * gradient.norm() + 1e-8 * everything, name
    torch.testing.assert_close(found["bases"], expected["bases"])


@pytest.mark.parametrize("temporal", ["transformer", "lstm"])
@pytest.mark.parametrize("batch_size", [8, 7])
def test_gradients_are_those_of_the_whole_batch(root, tmp_path, batch_size, temporal):
    steps = {}
    for chunks in (1, 2, 3, batch_size):
        config = step_config(root, tmp_path / str(chunks), CASE, batch_size=batch_size, chunks=chunks)
        config.model.temporal = temporal
        steps[chunks] = one_step(config)
    assert steps[1]["gradients"]["towers.clip.logit_scale"].abs() > 1e-3
    for chunks in (2, 3, batch_size):
        close(steps[chunks], steps[1])


def test_the_bias_of_the_sigmoid_loss_learns_in_chunks_too(root, tmp_path):
    whole = one_step(step_config(root, tmp_path / "whole", "sigmoid"))
    assert whole["gradients"]["own_bias"].abs() > 1e-3
    close(one_step(step_config(root, tmp_path / "chunks", "sigmoid", chunks=3)), whole)


class InChunks(nn.Module):
    """Every chunk with its graph: what chunked encoding must equal, with all activations in memory."""

    def __init__(self, model, chunks):
        super().__init__()
        self.model, self.chunks = model, chunks

    def forward(self, batch):
        parts = [self.model(part) for part in split_rows(batch, self.chunks)]
        text = TextFeatures.cat([part.text for part in parts])
        video = VideoFeatures.cat([part.video for part in parts])
        return BatchFeatures(text, video, parts[0].logit_scale)


@pytest.mark.parametrize("chunks", [2, 3, 8])
def test_dropout_draws_the_same_numbers_in_both_passes(root, tmp_path, chunks):
    def drop_out(run):
        attentions = [module for module in run.model.modules() if hasattr(module, "dropout")]
        assert len(attentions) == 3  # text, vision, temporal
        for attention in attentions:
            attention.dropout = 0.3

    def in_chunks(run):
        drop_out(run)
        run.wrapped = InChunks(run.wrapped, chunks)

    expected = one_step(step_config(root, tmp_path / "graph", CASE), in_chunks)
    after = torch.get_rng_state()
    found = one_step(step_config(root, tmp_path / "chunks", CASE, chunks=chunks), drop_out)
    close(found, expected)
    assert torch.equal(torch.get_rng_state(), after)
    without = one_step(step_config(root, tmp_path / "without", CASE))
    assert without["loss"] != found["loss"]


def test_a_gradient_scaler_scales_every_gradient_once(root, tmp_path):
    def scale(run):
        run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    expected = one_step(step_config(root, tmp_path / "whole", CASE))
    close(one_step(step_config(root, tmp_path / "chunks", CASE, chunks=3), scale), expected, factor=1024.0)


def test_the_towers_hold_the_graph_of_one_chunk(root, tmp_path):
    seen = []

    def watch(run):
        run.model.temporal.register_forward_hook(
            lambda module, inputs, output: seen.append((len(output), output.requires_grad))
        )

    one_step(step_config(root, tmp_path, CASE, chunks=3), watch)
    assert seen == [(3, False), (3, False), (2, False), (3, True), (3, True), (2, True)]


@pytest.mark.parametrize(
    ("processes", "printed"), [(1, []), (3, ["3 processes do not divide 8 pairs: each step takes 6"])]
)
def test_more_chunks_than_pairs_of_a_process(processes, printed):
    said = []
    train = SimpleNamespace(batch_size=8, chunks=8 // processes)
    run = SimpleNamespace(
        config=SimpleNamespace(train=train),
        annotations=SimpleNamespace(train=SimpleNamespace(clips=[None] * 9)),
        processes=processes,
        print=said.append,
    )
    assert trainer.Run.pairs_per_step(run) == 8 // processes * processes
    assert said == printed
    train.chunks += 1
    with pytest.raises(UserError, match=rf"train.chunks is {train.chunks}, .* pass --train.chunks {train.chunks - 1}"):
        trainer.Run.pairs_per_step(run)


def test_mixed_precision(root, tmp_path):
    AcceleratorState._reset_state()
    try:
        steps = [
            one_step(step_config(root, tmp_path / str(chunks), CASE, chunks=chunks, precision="bf16"), change)
            for chunks, change in (
                (1, lambda run: setattr(run, "wrapped", InChunks(run.wrapped, 3))),
                (3, lambda run: None),
            )
        ]
    finally:
        AcceleratorState._reset_state()
    close(steps[1], steps[0])
    assert steps[0]["loss"] != pytest.approx(one_step(step_config(root, tmp_path / "no", CASE))["loss"], rel=1e-6)
