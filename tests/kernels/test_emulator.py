"""The emulator of CUDA: what can be asked of it, what it refuses, and what it counts."""

import ctypes
import threading

import pytest
import torch
from emulator import emulate
from torch import Tensor

from emcl_kernels import em_fit, em_moments, em_reconstruct, use_backend
from emcl_kernels.backends import cuda
from emcl_kernels.testing import assert_close, clustered_rows


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("ORDER", "sideways", "forward, backward or shuffled"),
        ("COPIES", "never", "late or early"),
        ("SUMS", "volta", "exact or hopper"),
        ("ARCHITECTURE", "75", "a number such as 90, from 80 on"),
        ("ARCHITECTURE", "hopper", "a number such as 90, from 80 on"),
        ("SHARED", "99 KB", "a number such as 101376, from 1024 on"),
        ("SHARED", "-1", "a number such as 101376, from 1024 on"),
        ("SHARED", "", "a number such as 101376, from 1024 on"),
        ("CLUSTER", "0", "a number such as 8, from 1 on"),
    ],
)
def test_what_cannot_be_emulated_is_refused_by_name(
    variable: str, value: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulate(monkeypatch, **{variable: value})
    message = f"EMCL_EMULATED_{variable} is {value}, expected {expected}"
    with use_backend("cuda"), pytest.raises(ValueError, match=message):
        em_moments(torch.ones(3, 4))


# ---- shared memory ---------------------------------------------------------------------------------------------------


def test_a_launch_that_asks_for_more_shared_memory_than_a_block_may_have_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a card of compute capability 8.6, 8.9 or 12.0, if nobody kept the call from it."""
    emulate(monkeypatch, ARCHITECTURE=86, SHARED=101376)
    x = torch.ones(3, 4, dtype=torch.bfloat16)
    with use_backend("cuda"):
        em_fit(torch.eye(4), torch.ones(4, 3))
        with pytest.raises(RuntimeError, match="asks for 139264 bytes of shared memory, a block may have 101376"):
            em_moments(x)

        emulate(monkeypatch)
        em_moments(x)


# ---- sums of the tensor cores ----------------------------------------------------------------------------------------


def test_sums_are_cut_to_25_bits_below_the_largest_addend_as_on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    # 1 + 15·2⁻²⁶ = 1 + 1.875·2⁻²³: the exact sum loses what float32 does not hold, Hopper every addend of its own.
    x = torch.full((16, 1), 2.0**-13, dtype=torch.bfloat16)
    x[0] = 1
    grams = {}
    for sums in ("exact", "hopper"):
        emulate(monkeypatch, SUMS=sums)
        with use_backend("cuda"):
            grams[sums] = float(em_moments(x)[0])
    assert grams == {"exact": 1 + 2.0**-23, "hopper": 1.0}


def test_numbers_that_are_not_finite_pass_through_the_sums_of_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    emulate(monkeypatch, SUMS="hopper")
    x = torch.tensor([[float("inf")], [1.0]], dtype=torch.bfloat16)
    with use_backend("cuda"):
        assert float(torch.ops.emcl.em_moments(x)[0]) == float("inf")


# ---- attributes of launches ------------------------------------------------------------------------------------------


@pytest.fixture
def attributes(monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    """The emulated library, with no attribute set, as in a new process."""
    emulate(monkeypatch)
    library = ctypes.CDLL(str(cuda._EMULATED_LIBRARY))
    library.emcl_emulated_attributes.restype = ctypes.c_int64
    library.emcl_emulated_forget_attributes.restype = None
    library.emcl_emulated_forget_attributes()
    return library


def inputs(width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of em_reconstruct, which has a kernel whose shared memory grows with the width."""
    return clustered_rows(20, width).float(), torch.rand(width, 7), torch.rand(7) / width


def test_attributes_are_set_once_for_each_kernel_whatever_the_width(attributes: ctypes.CDLL) -> None:
    for width in (100, 130, 100):
        with use_backend("cuda"):
            em_reconstruct(*inputs(width))
        assert attributes.emcl_emulated_attributes() == 1


def reconstruct_in_threads(given: dict[int, tuple[Tensor, Tensor, Tensor]]) -> dict[int, Tensor]:
    """One thread for each width, all at the same time."""
    results: dict[int, Tensor] = {}
    together = threading.Barrier(len(given))

    def call(width: int) -> None:
        together.wait(120)
        results[width] = em_reconstruct(*given[width])

    threads = [threading.Thread(target=call, args=(width,)) for width in given]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_of_two_threads_that_launch_a_kernel_first_one_sets_its_attributes(attributes: ctypes.CDLL) -> None:
    given = {width: inputs(width) for width in (100, 130)}
    with use_backend("reference"):
        expected = {width: em_reconstruct(*tensors) for width, tensors in given.items()}

    for _ in range(10):
        attributes.emcl_emulated_forget_attributes()
        with use_backend("cuda"):
            results = reconstruct_in_threads(given)
        for width, y in expected.items():
            assert_close(f"y of width {width}", results[width], y)
        assert attributes.emcl_emulated_attributes() == 1


def test_large_clusters_have_an_attribute_of_their_own(
    attributes: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    for way in ("cluster8", "cluster16", "cluster8", "cluster16"):
        monkeypatch.setenv("EMCL_FIT", way)
        with use_backend("cuda"):
            em_fit(torch.eye(300), torch.ones(300, 3), num_iters=1)
        counts.append(attributes.emcl_emulated_attributes())
    # 8 blocks of 48 rows and 16 of 32 are two kernels.
    assert counts == [1, 3, 3, 3]
