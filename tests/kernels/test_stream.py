"""The pooled similarity in rows: equal to one go whatever the chunk is, and never larger than a chunk."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from emcl_kernels import (
    EMCL,
    pooled_cosine_similarity,
    pooled_cosine_similarity_stream,
    pooled_similarity,
    pooled_similarity_blocks,
    pooled_similarity_stream,
    use_backend,
)
from emcl_kernels.testing import assert_close, clustered_rows, distinct_init

BACKENDS = ["reference", "native"]
SHAPES = [(1, 5, 3, 16, 1), (30, 1, 2, 16, 7), (41, 13, 4, 32, 7), (13, 41, 4, 63, 32)]


def sample(a: int, b: int, f: int, d: int, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, EMCL]:
    """Text, frames, mask and a layer at whose settings EM changes the similarity, and is not sensitive to rounding."""
    mask = torch.rand(b, f) < 0.7
    mask[:, 0] = True
    layer = EMCL(num_bases=k, temperature=2.0).to(dtype)
    layer.bases.copy_(distinct_init(k))
    return 3 * clustered_rows(a, d, dtype=dtype), 3 * clustered_rows(b, f, d, dtype=dtype), mask, layer.eval()


def relative(layer: EMCL) -> EMCL:
    layer.scale, layer.residual_weight = "relative", -0.3
    return layer


@pytest.mark.parametrize("scale", ["release", "relative"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_any_chunk_are_those_of_one_go(
    backend: str, shape: tuple[int, int, int, int, int], dtype: torch.dtype, scale: str
) -> None:
    text, frames, mask, layer = sample(*shape, dtype)
    layer = relative(layer) if scale == "relative" else layer
    with use_backend(backend):
        whole = layer.pooled_similarity(text, frames, mask, pooling_temperature=2.0)
        for chunk in (1, 5, 13, None):
            stream = layer.pooled_similarity_stream(text, frames, mask, chunk=chunk, pooling_temperature=2.0)
            rows = list(stream)
            assert len(rows) == len(stream)
            assert max(part.shape[0] for part in rows) <= (chunk or shape[0])
            assert rows[0].dtype == dtype
            assert_close(f"chunk {chunk}", torch.cat(rows), whole)


@pytest.mark.parametrize("scale", ["release", "relative"])
@pytest.mark.parametrize("em_block", [5, 32])
@pytest.mark.parametrize("shape", SHAPES[-2:])
@pytest.mark.parametrize("backend", BACKENDS)
def test_blocks_are_those_of_a_loop_over_blocks(
    backend: str, shape: tuple[int, int, int, int, int], em_block: int, scale: str
) -> None:
    text, frames, mask, layer = sample(*shape, torch.float32)
    layer = relative(layer) if scale == "relative" else layer
    tolerance = 1e-6
    with use_backend(backend):
        clips = list(zip(frames.split(em_block), mask.split(em_block), strict=True))
        loop = torch.cat(
            [torch.cat([layer.pooled_similarity(t, *clip) for clip in clips], dim=1) for t in text.split(em_block)]
        )
        whole = pooled_similarity_blocks(
            text,
            frames,
            mask,
            layer.bases,
            em_block=em_block,
            temperature=2.0,
            residual_weight=layer.residual_weight,
            relative=scale == "relative",
        )
        assert_close("blocks", whole, loop, tolerance)
        for chunk in (9, None):
            stream = layer.pooled_similarity_stream(text, frames, mask, em_block=em_block, chunk=chunk)
            rows = list(stream)
            assert len(rows) == len(stream)
            assert all(part.shape[0] % em_block == 0 for part in rows[:-1])
            assert_close(f"chunk {chunk}", torch.cat(rows), loop, tolerance)


@pytest.mark.parametrize("chunk", [3, None])
@pytest.mark.parametrize("parts", [(20, 41), (1, 8, 41)])
def test_processes_with_texts_of_their_own_give_the_rows_of_one(parts: tuple[int, ...], chunk: int | None) -> None:
    """Threads stand for the processes; each adds up once in an iteration, in however many steps it gathers."""
    text, frames, mask, layer = sample(41, 13, 4, 32, 7, torch.float64)
    expected = torch.cat(list(layer.pooled_similarity_stream(text, frames, mask)))
    meeting = threading.Barrier(len(parts), timeout=60)
    given: dict[int, list[Tensor]] = {number: [] for number in range(len(parts))}

    def of_process(number: int, part: slice) -> Tensor:
        def add_up(vector: Tensor) -> Tensor:
            given[number].append(vector)
            meeting.wait()
            return torch.stack([vectors[0] for vectors in given.values()]).sum(0)

        return torch.cat(list(layer.pooled_similarity_stream(text[part], frames, mask, chunk=chunk, add_up=add_up)))

    bounds = [slice(start, end) for start, end in pairwise([0, *parts])]
    with ThreadPoolExecutor() as pool:
        found = torch.cat(list(pool.map(of_process, range(len(parts)), bounds)))
    assert_close("similarity", found, expected)
    assert all(len(vectors) == 1 for vectors in given.values())


def test_blocks_add_nothing_up() -> None:
    text, frames, mask, layer = sample(41, 13, 4, 32, 7, torch.float32)
    with pytest.raises(ValueError, match="give each process whole blocks of texts, and leave add_up out"):
        layer.pooled_similarity_stream(text, frames, mask, em_block=4, add_up=lambda vector: vector)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_em(backend: str) -> None:
    text, frames, mask, _ = sample(41, 13, 4, 32, 7, torch.float64)
    with use_backend(backend):
        whole = pooled_cosine_similarity(text, frames, mask, pooling_temperature=2.0)
        for chunk, steps in ((1, 41), (5, 9), (41, 1), (None, 1)):
            stream = pooled_cosine_similarity_stream(text, frames, mask, chunk=chunk, pooling_temperature=2.0)
            assert len(stream) == steps
            assert_close(f"chunk {chunk}", torch.cat(list(stream)), whole)


def test_em_is_visible_in_these_samples() -> None:
    text, frames, mask, layer = sample(41, 13, 4, 32, 7, torch.float64)
    off = pooled_cosine_similarity(text, frames, mask)
    for changed in (layer, relative(layer)):
        assert float((changed.pooled_similarity(text, frames, mask) - off).abs().max()) > 1e-2


def test_a_chunk_by_default_is_bounded_by_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    text, frames, mask, layer = sample(41, 13, 4, 32, 7, torch.float64)
    monkeypatch.setattr("emcl_kernels.stream.CHUNK_WEIGHTS", 10 * 13 * 4 + 3)
    rows = list(layer.pooled_similarity_stream(text, frames, mask))
    assert [part.shape[0] for part in rows if len(part)] == [10, 10, 10, 10, 1]
    monkeypatch.setattr("emcl_kernels.stream.CHUNK_BLOCKS", 9)
    rows = list(layer.pooled_similarity_stream(text, frames, mask, em_block=4))
    assert [part.shape[0] for part in rows] == [12, 12, 12, 5]


@pytest.mark.parametrize("em_block", [None, 15])
@pytest.mark.parametrize("videos", [60, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_step_holds_more_than_the_weights_of_a_chunk(backend: str, videos: int, em_block: int | None) -> None:
    a, b, f, d, chunk = 150, videos, 9, 4, 15
    text, frames, mask, layer = sample(a, b, f, d, 4, torch.float32)
    largest = max(chunk * b * (f + 1), b * f * max(d, f), a * d)
    assert largest < a * b * f
    with (
        use_backend(backend),  # type: ignore[arg-type]
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile,
    ):
        for _ in layer.pooled_similarity_stream(text, frames, mask, em_block=em_block, chunk=chunk):
            pass
    shapes = [shape for event in profile.events() or [] for shape in event.input_shapes]
    assert max(torch.Size(shape).numel() for shape in shapes if all(isinstance(size, int) for size in shape)) <= largest


def test_inference_moves_no_bases_and_keeps_no_graph() -> None:
    text, frames, mask, layer = sample(9, 4, 3, 16, 7, torch.float64)
    layer.train()
    before = layer.bases.clone()
    for em_block in (None, 4):
        stream = layer.pooled_similarity_stream(text.requires_grad_(), frames, mask, em_block=em_block, chunk=4)
        first = torch.cat(list(stream))
        assert not first.requires_grad
        assert torch.equal(layer.bases, before)
        layer(clustered_rows(20, 16))
        assert torch.equal(torch.cat(list(stream)), first)  # the start is that of the call
        layer.bases.copy_(before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk": 0}, r"chunk is 0; expected at least 1 text a step"),
        ({"em_block": 4, "chunk": -1}, r"chunk is -1"),
        ({"em_block": 0}, r"em_block is 0"),
        ({"num_iters": 0}, r"num_iters is 0"),
        ({"init": torch.ones(0)}, r"init has shape \[0\]"),
        ({"frame_mask": torch.ones(3, 2)}, r"frame_mask has shape \[3, 2\]; expected \[4, 2\]"),
    ],
)
def test_what_is_wrong_is_said_before_the_first_step(change: dict[str, object], message: str) -> None:
    inputs = {
        "text": torch.ones(5, 8), "frames": torch.ones(4, 2, 8), "frame_mask": torch.ones(4, 2), "init": torch.ones(3),
    }  # fmt: skip
    function: Callable[..., object] = pooled_similarity_stream
    with pytest.raises(ValueError, match=message):
        function(**{**inputs, **change})


def test_more_bases_than_channels_and_nan_are_refused() -> None:
    text, frames, mask, layer = sample(9, 4, 3, 16, 7, torch.float64)
    with pytest.raises(ValueError, match=r"num_bases is 17"):
        EMCL(num_bases=17).double().pooled_similarity_stream(text, frames, mask)
    text[3, 2] = torch.nan
    for em_block in (None, 4):
        with pytest.raises(ValueError, match="not finite"):
            list(layer.pooled_similarity_stream(text, frames, mask, em_block=em_block, chunk=2))


def test_the_functions_and_the_layer_agree() -> None:
    text, frames, mask, layer = sample(9, 4, 3, 16, 7, torch.float64)
    expected, _ = pooled_similarity(text, frames, mask, layer.bases, temperature=2.0)
    stream = pooled_similarity_stream(text, frames, mask, layer.bases, temperature=2.0)
    assert torch.equal(torch.cat(list(stream)), expected)


def test_under_autocast_the_wider_dtype_serves_both() -> None:
    text, frames, mask, layer = sample(9, 5, 3, 16, 4, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        streams = (
            layer.pooled_similarity_stream(text.bfloat16(), frames, mask),
            pooled_cosine_similarity_stream(text.bfloat16(), frames, mask),
        )
        expected = layer.pooled_similarity(text.bfloat16(), frames, mask)
        rows = [torch.cat(list(stream)) for stream in streams]
    assert torch.equal(rows[0], expected)
    assert torch.equal(rows[1], pooled_cosine_similarity(text.bfloat16().float(), frames, mask))
    with pytest.raises(TypeError, match=r"frames is torch\.float32 but text is torch\.bfloat16"):
        layer.pooled_similarity_stream(text.bfloat16(), frames, mask)
