"""The benchmark of a step in less memory: ways that are what their names say, and pairs that are counted as pairs."""

import argparse

import pytest
import record
import timed_steps
import towers_memory
from towers_memory import AGAIN, HALF, PLAIN, WAYS, Step, described


@pytest.mark.parametrize("towers", ["clip", "siglip"])
def test_ways_are_of_one_model_and_make_steps(towers):
    step = Step(described(towers, reduced=True), 3, [PLAIN, AGAIN, HALF])
    begun = []
    step.models[0].towers.inner.vision_model.encoder.layers[0].mlp.register_forward_pre_hook(
        lambda module, inputs: begun.append(inputs[0].dtype)
    )
    losses = {}
    for way in (PLAIN, AGAIN, HALF):
        begun.clear()
        losses[way] = step(way)
        assert len(begun) == (2 if way == AGAIN else 1)
    assert list(step.models) == [0]
    assert len(set(losses.values())) == 3  # the weights have learnt


def test_towers_are_of_real_size():
    sizes = described("clip", reduced=False)
    assert (sizes["vision_config"]["hidden_size"], sizes["vision_config"]["patch_size"]) == (768, 32)
    assert (sizes["text_config"]["hidden_size"], sizes["text_config"]["num_hidden_layers"]) == (512, 12)
    assert described("siglip", reduced=False)["vision_config"]["patch_size"] == 16


def test_a_record_has_ratios_of_pairs_and_peaks(capsys):
    """A machine that is slow for a turn does not change them."""
    slow = [1.0, 1.1, 4.0, 1.0]
    seconds = {way: [(1 + number / 10) * s for s in slow] for number, way in enumerate(WAYS)}
    peaks = {way: 1000.0 - 100 * number for number, way in enumerate(WAYS)}
    made = towers_memory.record_of(seconds, peaks, argparse.Namespace(threads=2, towers="clip", pairs=16))
    page = record.markdown(made, "name")
    assert "| time, checkpointing ÷ plain | none | 1.100 [1.100, 1.100] |  |" in page
    assert "| peak memory, LoRA, checkpointing ÷ plain | none | 0.500 |  |" in page
    assert "| bf16 | 1.26 s |" in page
    order = []
    timed_steps.timed(lambda way: order.append(way) or 0.0, ["a", "b"], 2, clock=iter(range(99)).__next__)
    assert order == ["a", "b", "a", "b", "b", "a"]
