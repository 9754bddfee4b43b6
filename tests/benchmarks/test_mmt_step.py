"""The benchmark of a step of MMT + EMCL: ways that differ in what they should, and pairs that are counted as pairs."""

import argparse

import mmt_step
import pytest
import record
import timed_steps
import torch

from emcl_train.experts.mmt import mmt_sizes, reduced


@pytest.fixture
def step():
    made = mmt_step.Step(reduced(mmt_sizes("msrvtt"), layers=1), pairs=4)
    for module in made.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return made


def test_each_way_learns_what_it_has(step):
    gate = step.system.video_gates["s3d"].embed.weight
    shared = step.system.reduce["s3d"].weight
    start_of = step.model.emcl
    for way, (moves_start, moves_gate) in {"ours": (1, 1), "EMCL off": (0, 1), "MMT": (0, 0)}.items():
        start, before, reduce = start_of.bases.clone(), gate.detach().clone(), shared.detach().clone()
        step(way)
        assert (not start_of.bases.equal(start), not gate.equal(before)) == (moves_start, moves_gate)
        assert not shared.equal(reduce)


def test_ways_are_first_equally_often(step, capsys):
    order = []
    seconds = timed_steps.timed(
        lambda way: order.append(way) or 0.0, list(mmt_step.WAYS), 3, clock=iter(range(99)).__next__
    )
    assert order[3::3] == ["ours", "EMCL off", "MMT"]
    assert seconds == {way: [1, 1, 1] for way in mmt_step.WAYS}
    assert capsys.readouterr().out.startswith("turn 1 of 3: ours 1.00 s, EMCL off 1.00 s, MMT 1.00 s\n")


def test_a_record_has_ratios_of_pairs():
    """A machine that is slow for a turn does not change them."""
    slow = [1.0, 1.1, 4.0, 1.0]
    seconds = {"ours": [1.04 * s for s in slow], "EMCL off": slow, "MMT": [0.9 * s for s in slow]}
    peaks = {"ours": 110.0, "EMCL off": 100.0, "MMT": 90.0}
    made = mmt_step.record_of(seconds, peaks, argparse.Namespace(threads=2))
    assert [(row["measured"], row["verdict"]) for row in made["targets"]] == [
        ("1.040 [1.040, 1.040]", "met"), ("1.156 [1.156, 1.156]", ""), ("1.100", "missed"), ("1.222", "")
    ]  # fmt: skip
    page = record.markdown(made, "name")
    assert "| time, ours ÷ EMCL off | ≤ 1.05 | 1.040 [1.040, 1.040] | met |" in page
    assert "transformers" in page
