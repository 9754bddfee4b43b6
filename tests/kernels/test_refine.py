"""EMRefiner: the map it fits, and that nothing but the rows themselves decides it."""

import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from emcl_kernels import EMRefiner, reference
from emcl_kernels.testing import assert_close, clustered_rows

SMALL: dict = {"num_bases": 5, "num_starts": 2, "num_iters": 4, "temperature": 0.4}
SMALL |= {"weight": -0.3, "mean_share": 0.4, "fit_mean_share": 0.7}


def two_sides(texts: int = 41, videos: int = 63, width: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of lengths other than one, with a mean of their own on each side."""
    sides = clustered_rows(texts, width) + 0.3, clustered_rows(videos, width) - 0.2
    return tuple(side * torch.linspace(0.5, 4.0, len(side), dtype=torch.float64)[:, None] for side in sides)


def test_the_map_is_the_loop_of_em_on_rows_of_both_sides_and_their_negatives():
    text, video = two_sides()
    refiner = EMRefiner(**SMALL, seed=3).fit(text, video)
    sides = [normalize(side, dim=-1) for side in (text, video)]
    offsets = [0.4 * side.mean(0) for side in sides]
    rows = torch.cat([(side - 0.7 * side.mean(0)) / math.sqrt(len(side)) for side in sides])
    rows = rows / rows.square().sum(0).mean().sqrt()  # the mean square length of a channel is one
    generator, expected = torch.Generator().manual_seed(3), torch.zeros(24, 24, dtype=torch.float64)
    for _ in range(2):
        start = torch.randperm(24, generator=generator)[:5]
        bases = normalize(rows, dim=0)[:, start]
        pairs = torch.cat([bases, -bases], dim=1)
        bases, responsibilities, _ = reference.em_loop(
            torch.cat([rows, -rows], dim=1), pairs, num_iters=4, temperature=0.4
        )
        reconstruction = (bases @ responsibilities.T)[:, :24]
        change = torch.linalg.lstsq(rows, reconstruction).solution
        expected += change * rows.norm() / reconstruction.norm() / 2
    assert_close("matrix", refiner.matrix, torch.eye(24, dtype=torch.float64) - 0.3 * expected, 1e-9)
    assert_close("text", refiner.transform_text(text), sides[0] @ refiner.matrix - offsets[0])
    assert_close("video", refiner.transform_video(video), sides[1] @ refiner.matrix - offsets[1])


def test_a_map_computed_by_hand():
    # Two channels, rows ±e1 and ±e2: no mean, a Gram matrix of two halves, two bases that start one from each channel.
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    refiner = EMRefiner(num_bases=2, num_starts=1, num_iters=1, temperature=1.0, weight=-0.25, eps=0.0)
    refiner.fit(rows, rows)
    # A channel's logits are ±1 for the pair that started from it and 0 for the other, so only its own pair moves it.
    # The reconstruction of a row is then a multiple of the row, and the weight is relative: a quarter is taken out.
    assert_close("matrix", refiner.matrix, torch.diag(torch.tensor([0.75, 0.75], dtype=torch.float64)))
    assert refiner.offset_text.tolist() == [0.0, 0.0]
    query = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    assert_close("a query", refiner.transform_text(query), torch.tensor([[0.45, 0.6]], dtype=torch.float64))


def test_weight_zero_only_takes_out_the_share_of_the_mean():
    text, video = two_sides()
    refined = EMRefiner(**SMALL | {"weight": 0.0}).fit(text, video).transform_video(video)
    unit = normalize(video, dim=-1)
    assert_close("video", refined, unit - 0.4 * unit.mean(0))


def test_a_sign_of_a_channel_does_not_matter():
    text, video = two_sides()
    signs = torch.where(torch.arange(24) % 3 == 0, -1.0, 1.0).double()
    plain, flipped = EMRefiner(**SMALL).fit(text, video), EMRefiner(**SMALL).fit(text * signs, video * signs)
    assert_close("matrix", flipped.matrix, signs[:, None] * plain.matrix * signs, 1e-9)


def test_sides_count_alike_whatever_their_sizes():
    text, video = two_sides()
    once = EMRefiner(**SMALL).fit(text, video).matrix
    assert_close("texts three times", EMRefiner(**SMALL).fit(text.repeat(3, 1), video).matrix, once, 1e-9)


def test_lengths_of_rows_do_not_matter_unless_asked():
    text, video = two_sides()
    sizes = torch.rand(len(text), 1, dtype=torch.float64) + 0.5
    plain = EMRefiner(**SMALL).fit(text, video)
    assert_close("matrix", EMRefiner(**SMALL).fit(text * sizes, video).matrix, plain.matrix, 1e-9)
    assert_close("a text", plain.transform_text(7 * text), plain.transform_text(text))
    raw = EMRefiner(**SMALL, normalize=False).fit(text, video)
    assert_close("raw text", raw.transform_text(text), text @ raw.matrix - 0.4 * text.mean(0))
    assert (raw.matrix - plain.matrix).abs().max() > 1e-3


def test_a_seed_fixes_what_is_drawn():
    text, video = two_sides()
    maps = [EMRefiner(**SMALL, seed=seed).fit(text, video).matrix for seed in (0, 0, 1)]
    assert torch.equal(maps[0], maps[1])
    assert not torch.allclose(maps[0], maps[2])


@pytest.mark.parametrize("parts", [1, 7, 41])
def test_no_split_or_order_of_a_stream_changes_the_map(parts):
    text, video = two_sides()
    at_once = EMRefiner(**SMALL).fit(text, video)
    stream = EMRefiner(**SMALL)
    for part in torch.randperm(len(video)).chunk(parts):
        stream.partial_fit(video=video[part])
    for part in torch.randperm(len(text)).chunk(parts):
        stream.partial_fit(text[part])
    for name in ("matrix", "offset_text", "offset_video"):
        assert_close(name, getattr(stream, name), getattr(at_once, name), 1e-9)


def test_a_stream_may_go_on_after_its_map_was_used():
    text, video = two_sides()
    stream = EMRefiner(**SMALL).partial_fit(text[:20], video[:30])
    before = stream.transform_text(text)
    stream.partial_fit(text[20:], video[30:])
    assert_close("text", stream.transform_text(text), EMRefiner(**SMALL).fit(text, video).transform_text(text), 1e-9)
    assert not torch.allclose(before, stream.transform_text(text))


def test_fit_forgets_what_was_seen_before():
    text, video = two_sides()
    refiner = EMRefiner(**SMALL).fit(video, text).fit(text, video)
    assert torch.equal(refiner.matrix, EMRefiner(**SMALL).fit(text, video).matrix)


def in_processes(*calls: Callable[[Callable], object]) -> list:
    """What each call gives or raises, side by side, with an add_up that waits for all as a collective does."""
    sent: list = [None] * len(calls)
    meet = threading.Barrier(len(calls), timeout=120)

    def run(rank: int) -> object:
        def add_up(vector: torch.Tensor) -> torch.Tensor:
            sent[rank] = vector
            meet.wait()
            summed = torch.stack(sent).sum(0)
            meet.wait()  # nobody sends the next vector before all have read this one
            return summed

        try:
            return calls[rank](add_up)
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, range(len(calls))))


def fit_in_processes(*sides: tuple) -> list:
    return in_processes(*(partial(lambda side, add_up: EMRefiner(**SMALL).fit(*side, add_up=add_up), s) for s in sides))


def test_parts_of_several_processes_add_up_to_the_map_of_one():
    text, video = two_sides()
    alone = EMRefiner(**SMALL).fit(text, video)
    for together in fit_in_processes((text[::2], video[::2]), (text[1::2], video[1::2])):
        assert_close("matrix", together.matrix, alone.matrix, 1e-9)


@pytest.mark.parametrize("nothing", [(None, None), (torch.empty(0, 24), None)], ids=["None", "no rows"])
def test_a_process_without_rows_has_the_map_of_the_others(nothing):
    text, video = two_sides()
    alone = EMRefiner(**SMALL).fit(text, video)
    for together in fit_in_processes((text, None), nothing, (None, video)):
        assert_close("matrix", together.matrix, alone.matrix, 1e-9)
    streams = in_processes(EMRefiner(**SMALL).partial_fit(text, video).all_reduce, EMRefiner(**SMALL).all_reduce)
    assert torch.equal(streams[0].matrix, streams[1].matrix)


BAD_PART = {
    "NaN": (lambda x: torch.full_like(x, math.nan), "rows of 1 of 3 processes were refused, so nothing was added up"),
    "no array": (lambda x: x.tolist(), "rows of 1 of 3 processes were refused, so nothing was added up"),
    "another width": (lambda x: x[:, :20], "rows of 3 processes are of different widths, 22.6667 on average"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD_PART.values(), ids=BAD_PART)
def test_bad_rows_of_one_process_are_the_same_error_in_all(spoil, message):
    text, video = two_sides()
    bad = spoil(text), spoil(video)
    errors = fit_in_processes((text, video), bad, (text, video))
    assert [type(error) for error in errors] == [ValueError] * 3
    assert len({str(error) for error in errors}) == 1
    assert message in str(errors[0])
    if "refused" in message:
        assert "text" in str(errors[1].__cause__)


def test_a_loaded_map_is_an_error_in_all_processes(tmp_path):
    refiner = EMRefiner(**SMALL).fit(*two_sides())
    refiner.save(tmp_path / "map")
    errors = in_processes(EMRefiner.load(tmp_path / "map").all_reduce, refiner.all_reduce)
    assert ["rows of 1 of 2 processes were refused" in str(error) for error in errors] == [True, True]
    assert "a loaded map has no moments" in str(errors[0].__cause__)


def test_what_was_added_up_is_not_added_up_again():
    text, video = two_sides()
    refiner = EMRefiner(**SMALL).partial_fit(text, video).all_reduce(lambda vector: 2 * vector)
    refiner.all_reduce(lambda vector: 2 * vector)
    assert_close("offset", refiner.offset_text, EMRefiner(**SMALL).fit(text, video).offset_text)
    assert refiner._seen.both()[0].num_rows == 2 * len(text)


TWO_PROCESSES = """
import sys, torch
from emcl_kernels import EMRefiner
folder, rank = sys.argv[1], int(sys.argv[2])
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
rows = torch.load(f"{folder}/rows.pt")
refiner = EMRefiner(num_bases=5).partial_fit(rows["text"][rank::2], rows["video"][rank::2]).all_reduce()
torch.save(refiner.matrix, f"{folder}/{rank}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="torch has no gloo"
)
def test_two_processes_have_the_map_of_one(tmp_path):
    text, video = two_sides()
    torch.save({"text": text, "video": video}, tmp_path / "rows.pt")
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(tmp_path), str(rank)],
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    expected = EMRefiner(num_bases=5).fit(text, video).matrix
    for rank in range(2):
        assert_close(f"process {rank}", torch.load(tmp_path / f"{rank}.pt"), expected, 1e-9)


def test_the_factors_make_the_matrix():
    refiner = EMRefiner(**SMALL).fit(*two_sides())
    left, right = refiner.factors
    assert left.shape == right.shape == (24, 10)
    assert_close("matrix", torch.eye(24, dtype=torch.float64) + left @ right.T, refiner.matrix)
    assert_close("symmetry", refiner.matrix.T, refiner.matrix)


def test_channels_that_are_zero_start_no_basis():
    text, video = two_sides()
    for side in (text, video):
        side[:, ::2] = 0
    refiner = EMRefiner(**SMALL | {"num_bases": 12}).fit(text, video)
    assert bool(torch.isfinite(refiner.matrix).all())
    assert refiner.matrix[::2, ::2].equal(torch.eye(12, dtype=torch.float64))


@pytest.mark.parametrize("name", ["coco500_clip_vitb16", "msrvtt100_videoclip"])
def test_retrieval_on_real_embeddings_improves_for_every_seed(shared_data, name):
    video, text = np.load(shared_data / "embeddings" / f"{name}.npy")
    least = {"coco500_clip_vitb16": (2.4, 1.8), "msrvtt100_videoclip": (12.0, 5.0)}[name]

    def recall(text: np.ndarray, video: np.ndarray) -> np.ndarray:
        text, video = (torch.nn.functional.normalize(torch.from_numpy(x), dim=-1) for x in (text, video))
        similarity = text @ video.T
        own = similarity.diagonal()
        better = (similarity > own[:, None]).sum(1), (similarity > own).sum(0)
        return np.array([100 * float((count == 0).double().mean()) for count in better])

    before = recall(text, video)
    gains = [recall(*EMRefiner(seed=seed).fit_transform(text, video)) - before for seed in range(10)]
    mean = np.mean(gains, axis=0)
    assert mean[0] >= least[0]
    assert mean[1] >= least[1]
    assert np.min(gains) >= -0.3
