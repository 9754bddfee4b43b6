"""Several processes: the same losses, gradients and results as one process, and no exchange of what can stay."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import several_processes
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType
from launching import launched
from safetensors.torch import load_file
from several_processes import CASES, STORED_SCALE, at_scale, one_step, spread_loss, step_config

from emcl_train.errors import UserError
from emcl_train.processes import PATIENCE, gather_rows, max_over_processes, sum_over_processes
from emcl_train.runs import contents
from emcl_train.runs.records import MEASURED
from emcl_train.training.sharding import is_sharded

WORLD = 2
TEXTS, VIDEOS, FRAMES, WIDTH = 4, 8, 3, 16

needs_gloo = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="torch was built without gloo"
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def alone(tiny_whole_run, tmp_path_factory):
    """What one process finds."""
    root, out = tiny_whole_run[0], tmp_path_factory.mktemp("one")
    found = {case: one_step(step_config(root, out, case)) for case in CASES}
    found["scale"] = one_step(step_config(root, out / "scale", "identity", lr=10.0), at_scale(STORED_SCALE))
    return found | {"loss": spread_loss(0, 1)}


@pytest.fixture(scope="module")
def together(tiny_whole_run, tmp_path_factory):
    """What each of two processes finds, and their folder."""
    folder = tmp_path_factory.mktemp("two")
    done = launched(several_processes.__file__, tiny_whole_run[0], folder, processes=WORLD)
    assert done.returncode == 0, done.stderr
    return folder, [torch.load(folder / f"process{rank}.pt") for rank in range(WORLD)]


@needs_gloo
@pytest.mark.parametrize("case", CASES)
def test_a_step_is_the_one_of_a_single_process(case, alone, together):
    expected = alone[case]
    everything = torch.cat([gradient.flatten() for gradient in expected["gradients"].values()]).norm()
    for found in together[1]:
        assert found[case]["loss"] == pytest.approx(expected["loss"], rel=3e-7, abs=1e-6)
        for name, gradient in expected["gradients"].items():
            error = (found[case]["gradients"][name] - gradient).norm()
            # In exact arithmetic the biases of the keys have no gradient at all.
            assert error <= 1e-5 * gradient.norm() + 1e-8 * everything, name
        torch.testing.assert_close(found[case]["bases"], expected["bases"])


@needs_gloo
@pytest.mark.parametrize("case", CASES)
def test_processes_agree_to_the_bit(case, together):
    first, second = (found[case] for found in together[1])
    assert first["loss"] == second["loss"]
    assert torch.equal(first["bases"], second["bases"])
    assert all(torch.equal(gradient, second["gradients"][name]) for name, gradient in first["gradients"].items())


def test_the_cases_differ(alone):
    """Else the ways that gradients take through EM would not be tested."""
    gradients = [torch.cat([g.flatten() for g in alone[case]["gradients"].values()]) for case in CASES]
    for i, one in enumerate(gradients):
        for other in gradients[:i]:
            assert one.shape != other.shape or (one - other).norm() > 1e-3 * one.norm()


@needs_gloo
def test_the_loss_is_that_of_all_rows(alone, together):
    expected, gradient = alone["loss"]
    parts = [found["loss"] for found in together[1]]
    for loss, _ in parts:
        assert loss == pytest.approx(expected, rel=1e-12)
    # As many times too large as there are processes, which DistributedDataParallel divides by.
    torch.testing.assert_close(torch.cat([part for _, part in parts]) / WORLD, gradient)


@needs_gloo
def test_the_others_wait_while_the_first_evaluates(together):
    for found in together[1]:
        assert found["patience"] == PATIENCE.total_seconds()


@needs_gloo
def test_each_process_takes_its_part_of_a_validation(together):
    """Eight clips with a caption each, in batches of three; the figures are those of one process, see below."""
    first, second = (found["validated"] for found in together[1])
    assert first == [[3, 0, 3]] * 2
    assert second == [[5, 3, 8]] * 2


@needs_gloo
def test_each_process_takes_its_part_of_the_batch(alone, together):
    parts = [found["identity"]["pairs"] for found in together[1]]
    assert torch.equal(torch.cat(parts), alone["identity"]["pairs"])


@needs_gloo
@pytest.mark.parametrize("case", [case for case in CASES if "head" not in CASES[case]])
def test_no_text_is_gathered_and_nothing_of_the_size_of_the_pairs(case, alone, together):
    parameters = sum(gradient.numel() for gradient in alone[case]["gradients"].values())
    moments = [] if case == "off" else [("allreduce_", [WIDTH * WIDTH + WIDTH + 1])]
    expected = [
        ("allgather_", [TEXTS, FRAMES, WIDTH]),
        ("allgather_", [TEXTS, FRAMES]),
        *moments,
        *[("allreduce_", [VIDEOS])] * 2,  # maxima and sums of the columns
        *[("allreduce_", [])] * 2,  # the loss, forward and backward
        ("allreduce_", [VIDEOS]),
        *(moments if "full" in case else []),
        ("reduce_scatter_", [TEXTS, FRAMES, WIDTH]),
        ("allreduce_", [parameters]),
    ]
    for found in together[1]:
        # DistributedDataParallel hands out the first process's buffers: constants, positions, the maintained bases.
        assert [exchange for exchange in found[case]["exchanges"] if exchange[0] != "broadcast_"] == expected
    assert alone[case]["exchanges"] == []


@needs_gloo
@pytest.mark.parametrize("case", [case for case in CASES if "head" in CASES[case]])
def test_other_heads_gather_frames_and_sum_moments(case, alone, together):
    clips = [("allgather_", [TEXTS, FRAMES, WIDTH]), ("allgather_", [TEXTS, FRAMES])]
    weights = [("allgather_", [TEXTS, FRAMES])] if case.startswith("wti") else []
    moments = ("allreduce_", [WIDTH * WIDTH + WIDTH + 1])
    parameters = sum(gradient.numel() for gradient in alone[case]["gradients"].values())
    for found in together[1]:
        exchanges = [exchange for exchange in found[case]["exchanges"] if exchange[0] != "broadcast_"]
        assert [exchange for exchange in exchanges if exchange[0] == "allgather_"] == clips + weights
        assert exchanges.count(moments) == (0 if case.endswith("off") else 2 if case.endswith("full") else 1)
        assert exchanges.count(("allreduce_", [parameters])) == 1
    assert alone[case]["exchanges"] == []


@needs_gloo
@pytest.mark.parametrize(("case", "whole"), [("chunks", "full"), ("wti-chunks", "wti-full")])
def test_chunks_of_several_processes_exchange_gradients_once(case, whole, alone, together):
    expected = alone[whole]
    everything = torch.cat([gradient.flatten() for gradient in expected["gradients"].values()]).norm()
    for found in together[1]:
        assert found[case]["loss"] == pytest.approx(expected["loss"], rel=3e-7, abs=1e-6)
        for name, gradient in expected["gradients"].items():
            error = (found[case]["gradients"][name] - gradient).norm()
            assert error <= 1e-5 * gradient.norm() + 1e-8 * everything, name
        ours, others = (
            [exchange for exchange in found[name]["exchanges"] if exchange[0] != "broadcast_"] for name in (case, whole)
        )
        assert ours == others


@needs_gloo
def test_the_logit_scale_of_trained_weights_learns_and_is_held_in_each_process(alone, together):
    name = "towers.clip.logit_scale"
    expected = alone["scale"]["gradients"][name]
    assert expected.abs() > 1e-6
    for found in (alone, *together[1]):
        torch.testing.assert_close(found["scale"]["gradients"][name], expected, rtol=1e-4, atol=0)
        assert found["scale"]["logit_scale"] <= 100 * (1 + 1e-7)


def record(out: Path):
    lines = [json.loads(line) for line in (out / contents.METRICS).read_text().splitlines()]
    return lines, json.loads((out / "results.json").read_text())


@needs_gloo
def test_a_whole_run_ends_as_with_one_process(tiny_whole_run, together):
    (lines, results), (other_lines, other_results) = record(tiny_whole_run[1]), record(together[0] / "run")
    assert len(lines) == len(other_lines) == 10
    for line, other in zip(lines, other_lines, strict=True):
        for name in line.keys() - {*MEASURED, "kind", "split"}:
            assert other[name] == pytest.approx(line[name], rel=1e-5)
    # Weights of several processes are the same but for roundings, and their fingerprints are others.
    assert other_results.pop("origin")["step"] == results.pop("origin")["step"]
    assert other_results == results


def test_one_process_exchanges_nothing():
    rows = torch.randn(3, 2)
    assert gather_rows(rows) is rows
    assert sum_over_processes(rows) is rows
    assert torch.equal(max_over_processes(rows), rows)


@needs_gloo
def test_a_run_with_sharded_weights_ends_as_with_one_process(tiny_whole_run, tmp_path):
    """Ended and gone on with in the middle of the second epoch; validation and the final weights are whole."""
    script = Path(several_processes.__file__).with_name("sharded_processes.py")
    done = launched(script, tiny_whole_run[0], tmp_path, processes=WORLD)
    assert done.returncode == 0, done.stderr
    (lines, results), (other_lines, other_results) = record(tiny_whole_run[1]), record(tmp_path / "run")
    assert len(lines) == len(other_lines)
    for line, other in zip(lines, other_lines, strict=True):
        for name in line.keys() - {*MEASURED, "kind", "split"}:
            assert other[name] == pytest.approx(line[name], rel=1e-4), name
    assert other_results["rows"] == results["rows"]
    weights, others = (load_file(out / contents.WEIGHTS) for out in (tiny_whole_run[1], tmp_path / "run"))
    assert others.keys() == weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, atol=1e-5, rtol=1e-3)


def test_another_version_of_sharding_is_refused():
    accelerator = object.__new__(Accelerator)
    accelerator.state = SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=False)
    with pytest.raises(UserError, match="set up for version 1 of FSDP, expected 2"):
        is_sharded(accelerator)
