"""What a refiner reads and writes: kinds of arrays, mapped files, and rows that do not depend on their neighbours."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from emcl_kernels import EMRefiner, Refiner
from emcl_kernels.refine import affine, arrays, few_rows
from emcl_kernels.testing import assert_close, clustered_rows

TORCH = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture(scope="module")
def fitted() -> EMRefiner:
    torch.manual_seed(0)
    return EMRefiner(num_bases=9, weight=-0.4).fit(clustered_rows(130, 41) + 0.2, clustered_rows(63, 41))


def queries(count: int = 130, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(count, 41, dtype=torch.float64) * torch.rand(count, 1).double().exp()).to(dtype)


@pytest.mark.parametrize("dtype", TORCH)
def test_a_query_alone_has_the_bits_it_has_in_a_batch(fitted, dtype):
    x = queries(dtype=dtype)
    whole = fitted.transform_text(x)
    alone = torch.cat([fitted.transform_text(row[None]) for row in x])
    assert torch.equal(alone, whole)
    for count in (2, 7, 41, 63):
        chosen = torch.randperm(len(x))[:count]
        assert torch.equal(fitted.transform_text(x[chosen]), whole[chosen])
    assert torch.equal(fitted.transform_text(x[5]), whole[5])


@pytest.mark.parametrize("normalize_rows", [True, False])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_no_number_of_threads_changes_a_bit(threads, normalize_rows):
    refiner = EMRefiner(num_bases=9, weight=-0.4, normalize=normalize_rows)
    refiner.fit(clustered_rows(130, 130), clustered_rows(63, 130))
    x = torch.randn(300, 130)
    whole = refiner.transform_video(x)
    torch.set_num_threads(threads)
    try:
        assert torch.equal(refiner.transform_video(x[100:241]), whole[100:241])
    finally:
        torch.set_num_threads(2)


@pytest.mark.parametrize("precise", [False, True])
def test_order_of_additions_does_not_matter_in_the_product(precise):
    # The same numbers added up from the other end; where one sum is rounded, the bits would differ in some place.
    x, change = queries(63, torch.float64), torch.randn(41, 41, dtype=torch.float64)
    there = affine.AffineMap(change, torch.zeros(41).double())(x, precise=precise)
    turned = torch.arange(40, -1, -1)
    back = affine.AffineMap(change[turned][:, turned], torch.zeros(41).double())(x[:, turned], precise=precise)
    assert torch.equal(there, back[:, turned])
    assert_close("product", there, x + x @ change, 1e-12 if precise else 1e-6)


@pytest.mark.parametrize("normalize_rows", [True, False])
@pytest.mark.parametrize("precise", [False, True])
@pytest.mark.parametrize("width", [1, 7, 41, 512])
def test_few_rows_have_the_bits_of_many(width, precise, normalize_rows, monkeypatch):
    # Few are mapped by numpy and many by torch: zeros, one number, the largest and the smallest.
    x = torch.randn(200, width, dtype=torch.float64)[: few_rows.MOST_NUMBERS // width]
    x[1] = 0
    x[2, 1:] = 0
    x[3] *= 1e300
    x[4] *= 1e-310
    mapped = affine.AffineMap(torch.randn(width, width).double(), torch.randn(width).double())
    assert few_rows.served(x)
    few = mapped(x, precise=precise, normalize=normalize_rows)

    monkeypatch.setattr(few_rows, "MOST_NUMBERS", 0)
    assert not few_rows.served(x)
    assert torch.equal(few, mapped(x, precise=precise, normalize=normalize_rows))


def in_two_kinds(rows: np.ndarray) -> list:
    return [rows, torch.from_numpy(rows)]


@pytest.mark.parametrize("refined_as", [np.float32, np.float64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bank", [False, True])
@pytest.mark.parametrize("kind", ["whitening", "em"])
def test_a_row_alone_goes_by_numpy_to_the_bits_of_a_batch(kind, bank, dtype, refined_as, monkeypatch):
    given = clustered_rows(130, 41) + 0.2, clustered_rows(63, 41)
    refiner = Refiner(kind, num_neighbors=3).fit(*given, text_bank=given[0][:20] if bank else None)
    x = queries(7).numpy().astype(dtype)
    x[2], x[3, 1:], x[4] = 0, 0, x[4] * 1e30
    out = np.zeros((7, 41 + bank), dtype=refined_as)

    # Turned round, in every second column, and on itself.
    strided = np.zeros((14, 82), dtype=dtype)[::-2, ::2]
    strided[...] = x
    alone = [refiner.transform_text(row[None]) for row in x]
    found = {
        "numpy": refiner.transform_text(x),
        "strided": refiner.transform_text(strided),
        "torch": refiner.transform_text(torch.from_numpy(x)).numpy(),
        "alone": np.concatenate(alone),
    }
    refiner.transform_text(x, out=out)
    into = refiner.transform_text(torch.from_numpy(x), out=torch.zeros(out.shape, dtype=torch.from_numpy(out).dtype))
    if not bank:
        itself = x.copy()
        found["itself"] = refiner.transform_text(itself, out=itself)

    monkeypatch.setattr(few_rows, "MOST_NUMBERS", 0)
    whole = refiner.transform_text(x)
    assert {name: np.array_equal(rows, whole) and rows.dtype == dtype for name, rows in found.items()} == dict.fromkeys(
        found, True
    )
    same = refiner.transform_text(x, out=np.zeros_like(out))
    assert np.array_equal(out, same)
    assert np.array_equal(into.numpy(), same)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_row_alone_that_is_not_finite_is_refused_and_nothing_is_written(fitted, dtype, bad):
    row = queries(1).numpy().astype(dtype)
    row[0, 5] = bad
    for x in in_two_kinds(row):
        out = x + 0  # of the same kind
        out[...] = 7
        with pytest.raises(ValueError, match="video holds NaN or infinite values in 1 of its rows"):
            fitted.transform_video(x, out=out)
        assert (out == 7).all()


@pytest.mark.filterwarnings("error")
def test_a_refined_row_that_is_too_large_for_its_dtype_is_infinite_without_a_warning():
    refiner = Refiner(normalize=False).fit(clustered_rows(130, 41), clustered_rows(63, 41))
    row = 1e60 * queries(1).double().numpy()
    for x, out in ((row, np.zeros((1, 41), np.float32)), (torch.from_numpy(row), torch.zeros(1, 41))):
        assert (abs(refiner.transform_text(x, out=out)) == np.inf).all()


def test_plain_rows_in_memory_alone_are_few(tmp_path):
    few = np.zeros((2, 3), dtype=np.float32)
    for x in in_two_kinds(few):
        assert np.shares_memory(arrays.few(x), few)
    np.save(tmp_path / "rows.npy", few)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    many = np.zeros((few_rows.MOST_NUMBERS + 1, 1))
    others = [few.astype(np.float16), few.astype(">f4"), few[:0], mapped, np.asarray(mapped), many]
    tensors = [torch.zeros(2, 3, dtype=torch.bfloat16), torch.zeros(2, 3, device="meta"), torch.from_numpy(many)]
    assert [arrays.few(x) for x in (*others, *tensors)] == [None] * 9
    assert arrays.few(torch.imag(torch.zeros(2, 3, dtype=torch.complex64).conj())) is None


def test_numpy_is_given_plain_rows_in_memory_alone():
    few = torch.zeros(2, 3, dtype=torch.float64)
    assert few_rows.served(few)
    assert not few_rows.served(torch.nn.Parameter(few))
    assert not few_rows.served(few.to("meta"))
    assert not few_rows.served(few.new_zeros(few_rows.MOST_NUMBERS + 1, 1))


@pytest.mark.parametrize("width", [1, 7, 41, 512, 1000])
def test_order_of_additions_does_not_matter_in_a_length(width):
    # The same numbers in another order; where the sum is rounded on the way, the bits differ for some of the rows.
    x = torch.randn(200, width, dtype=torch.float64) * torch.rand(width).double().exp()
    found = affine.lengths(x)
    for order in (torch.arange(width - 1, -1, -1), torch.randperm(width), torch.randperm(width)):
        assert torch.equal(affine.lengths(x[:, order]), found)
    exact = torch.tensor([math.sqrt(math.fsum(n * n for n in row)) for row in x.tolist()], dtype=torch.float64)
    assert float((found[:, 0] / exact - 1).abs().max()) < 4e-16


@pytest.mark.parametrize("exponent", [-1040, -1000, -500, 500, 1000])
def test_rows_of_any_size_have_their_length(exponent):
    # Below 2⁻¹⁰²² numbers have fewer digits: 2⁻¹⁰⁴⁰ leaves 34 bits.
    x = torch.randn(20, 41, dtype=torch.float64).clamp(-8, 8)
    scaled = torch.ldexp(x, torch.tensor(exponent))
    assert_close("length", torch.ldexp(affine.lengths(scaled), torch.tensor(-exponent)), affine.lengths(x), 1e-8)
    assert_close("unit", affine.unit(scaled), affine.unit(x), 1e-8)


@pytest.mark.parametrize("dtype", TORCH)
def test_torch_in_gives_torch_out(fitted, dtype):
    x = queries(dtype=dtype)
    refined = fitted.transform_text(x)
    assert (refined.dtype, refined.shape, refined.requires_grad) == (dtype, x.shape, False)
    expected = normalize(x.double(), dim=-1) @ fitted.matrix - fitted.offset_text
    step = {torch.float16: 5e-4, torch.bfloat16: 4e-3, torch.float32: 2e-7, torch.float64: 1e-14}[dtype]
    assert_close("refined", refined.double(), expected, step)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_numpy_in_gives_numpy_out(fitted, dtype):
    x = queries().numpy().astype(dtype)
    refined = fitted.transform_video(x)
    assert isinstance(refined, np.ndarray)
    assert (refined.dtype, refined.shape) == (x.dtype, x.shape)
    same = fitted.transform_video(torch.from_numpy(x.astype(x.dtype.newbyteorder("="))))
    assert np.array_equal(refined, same.numpy())


def test_a_tensor_that_wants_a_gradient_and_leading_dimensions_pass(fitted):
    x = queries().requires_grad_().view(2, 65, 41)
    assert torch.equal(fitted.transform_text(x).view(130, 41), fitted.transform_text(x.reshape(130, 41)))


def test_no_rows_give_no_rows(fitted):
    assert fitted.transform_text(torch.zeros(0, 41)).shape == (0, 41)
    text, video = clustered_rows(41, 24), clustered_rows(63, 24)
    whole = EMRefiner(num_bases=5).fit(text, video).matrix
    assert torch.equal(EMRefiner(num_bases=5).partial_fit(text, video).partial_fit(text[:0]).matrix, whole)


def test_a_row_of_zeros_has_no_direction_and_moves_by_the_offset_alone(fitted):
    assert_close("refined", fitted.transform_text(torch.zeros(1, 41).double())[0], -fitted.offset_text)


@pytest.mark.parametrize("size", [1e-200, 1e-30, 1e200])
def test_lengths_do_not_overflow_or_underflow(fitted, size):
    x = queries(7, torch.float64)
    assert_close("refined", fitted.transform_text(size * x), fitted.transform_text(x))


def test_finite_rows_whose_sum_overflows_are_finite(fitted):
    x = queries(7, torch.float64).abs()
    assert_close("refined", fitted.transform_text(x * (1.7e308 / x.norm(dim=-1).max())), fitted.transform_text(x))
    opposite = x.clone()
    opposite[3, :2] = torch.tensor([torch.inf, -torch.inf])
    with pytest.raises(ValueError, match="text holds NaN or infinite values in 1 of its rows 0 to 6, first in row 3"):
        fitted.transform_text(opposite)


class Counting:
    """An array that counts how often each of its rows is read; all that a refiner may ask of a source."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows, self.shape, self.dtype = rows, rows.shape, rows.dtype
        self.reads, self.largest = np.zeros(len(rows), dtype=int), 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: slice) -> np.ndarray:
        self.reads[index] += 1
        self.largest = max(self.largest, len(self.rows[index]))
        return self.rows[index]


def test_fitting_reads_each_row_once_and_in_chunks(monkeypatch):
    text, video = (clustered_rows(count, 24).numpy().astype(np.float16) for count in (1000, 410))
    whole = EMRefiner(num_bases=5).fit(text, video).matrix
    monkeypatch.setattr(arrays, "CHUNK_NUMBERS", 63 * 24)
    counting = Counting(text), Counting(video)
    assert_close("matrix", EMRefiner(num_bases=5).fit(*counting).matrix, whole, 1e-9)
    assert all((source.reads == 1).all() and source.largest == 63 for source in counting)


def test_refining_reads_any_source_that_has_slices(fitted):
    x = queries().numpy()
    assert np.array_equal(fitted.transform_text(Counting(x)), fitted.transform_text(x))


def test_refined_rows_can_go_to_a_file(fitted, tmp_path):
    x = queries().numpy()
    out = np.lib.format.open_memmap(tmp_path / "refined.npy", mode="w+", dtype=x.dtype, shape=x.shape)
    assert fitted.transform_text(x, out=out) is out
    assert np.array_equal(np.load(tmp_path / "refined.npy"), fitted.transform_text(x))


MAPPED = """
import sys
import numpy as np
from emcl_kernels import EMRefiner
from emcl_kernels.refine import arrays

arrays.CHUNK_NUMBERS = 1 << 19


def peak():  # of this program alone: the one of getrusage begins with that of the process it was forked from
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])


small = np.random.default_rng(0).normal(size=(1000, 128)).astype(np.float16)
EMRefiner(num_bases=4, num_starts=1).fit(small, small)
before = peak()
text, video = np.load(sys.argv[1], mmap_mode="r")
refiner = EMRefiner(num_bases=4, num_starts=1).fit(text, video)
np.save(sys.argv[2], refiner.matrix.numpy())
out = np.lib.format.open_memmap(sys.argv[3], mode="w+", dtype=np.float16, shape=text.shape)
refiner.transform_text(text, out=out)
print((peak() - before) / 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_mapped_files_are_read_and_written_in_bounded_memory(tmp_path):
    shape = (2, 300_000, 128)
    file = np.lib.format.open_memmap(tmp_path / "rows.npy", mode="w+", dtype=np.float16, shape=shape)
    some = np.random.default_rng(0).normal(1.0, 1.0, size=(6000, 128)).astype(np.float16)
    for start in range(0, shape[1], len(some)):
        file[:, start : start + len(some)] = some * (1 + start % 5)
    del file
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", MAPPED, *(str(tmp_path / f"{name}.npy") for name in ("rows", "matrix", "refined"))],
        capture_output=True, text=True, timeout=300, cwd=root,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    mebibytes = 2 * np.prod(shape) / 2**20
    assert mebibytes > 140
    assert float(done.stdout) < 110, f"{done.stdout} MiB for a file of {mebibytes:.0f} MiB"
    expected = EMRefiner(num_bases=4, num_starts=1).fit(some, some)
    assert_close("matrix", torch.from_numpy(np.load(tmp_path / "matrix.npy")), expected.matrix, 1e-5)
    last = np.load(tmp_path / "refined.npy", mmap_mode="r")[-6000:].astype(np.float64)
    assert_close(
        "refined", torch.from_numpy(last), torch.from_numpy(expected.transform_text(some.astype(np.float64))), 1e-3
    )


def test_a_private_mapping_keeps_what_was_written_to_it(tmp_path):
    np.save(tmp_path / "rows.npy", clustered_rows(41, 24).numpy())
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="c")
    mapped[3] = 0.5
    EMRefiner(num_bases=5).fit(mapped, mapped)
    assert (mapped[3] == 0.5).all()


@pytest.mark.parametrize("seen_as", [lambda m: m.view(np.ndarray), lambda m: np.asarray(m)[1:], lambda m: m[1:]])
def test_a_view_of_a_private_mapping_keeps_what_was_written_to_it(tmp_path, fitted, seen_as):
    np.save(tmp_path / "rows.npy", np.zeros((42, 41), dtype=np.float32))
    written = queries(42).numpy()
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="c")
    mapped[:] = written
    EMRefiner().partial_fit(seen_as(mapped), None)
    assert np.array_equal(mapped, written)
    out = seen_as(np.load(tmp_path / "rows.npy", mmap_mode="c"))
    refined = fitted.transform_text(seen_as(written), out=out)
    assert np.array_equal(refined, fitted.transform_text(seen_as(written)))
    assert not np.load(tmp_path / "rows.npy").any()
