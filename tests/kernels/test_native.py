"""The C++ kernels one by one: every dtype, every instruction set, both forms, the same bits for any thread count."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from by_backend import Functions
from torch import Tensor

from emcl_kernels import reference
from emcl_kernels.backends import cpu
from emcl_kernels.testing import TOLERANCE, assert_close, clustered_rows, distinct_init, relative_error

native, plain = Functions("native"), Functions("reference")

pytestmark = pytest.mark.skipif(not cpu.backend.status()["loaded"], reason=cpu.backend.status()["reason"])

POOLED = Path(__file__).with_name("test_native_pooled.py")
ODD = [(1, 16, 1), (7, 1, 7), (41, 63, 32), (130, 25, 7), (1000, 130, 41), (1037, 512, 130)]


def fitted(rows: int, width: int, bases: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    x = clustered_rows(2, rows, width).to(dtype)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    gram, colsum = plain.moments(x)
    logits = reference.start_logits(x.to(acc), colsum, distinct_init(2, bases).to(acc))
    return x, gram, logits, *plain.fit(gram, logits, 3, 1.0, 1e-6)


def compare(names: str, actual: tuple[Tensor, ...], truth: tuple[Tensor, ...], allowed: float | None) -> None:
    for name, a, b in zip(names.split(), actual, truth, strict=True):
        if float(b.abs().max()) > 1e-12:
            assert_close(name, a, b, allowed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "width", "bases"), ODD)
def test_every_kernel_equals_the_reference(rows: int, width: int, bases: int, dtype: torch.dtype) -> None:
    x, gram, logits, r, s = fitted(rows, width, bases, dtype)
    row_tolerance = {torch.bfloat16: 4e-3, torch.float16: 5e-4}.get(dtype, TOLERANCE.get(dtype))  # one rounding of y
    wide = x.double()
    moments = native.moments(x)
    compare("gram colsum", moments, reference.em_moments(wide), TOLERANCE[moments[0].dtype])
    assert torch.equal(moments[0], moments[0].mT)

    d_gram, d_colsum = torch.randn_like(gram), torch.randn_like(moments[1])
    compare(
        "d_x",
        (native.moments_backward(d_gram, d_colsum, x),),
        (reference.em_moments_backward(wide, d_gram.double(), d_colsum.double()),),
        row_tolerance,
    )
    settings = {"num_iters": 3, "temperature": 1.0}
    truth = reference.em_fit(gram.double(), logits.double(), **settings)
    compare("responsibilities scale", native.fit(gram, logits, 3, 1.0, 1e-6), truth, None)
    d_r, d_s = torch.randn_like(r), torch.randn_like(s)
    truth = reference.em_fit_backward(gram.double(), logits.double(), d_r.double(), d_s.double(), **settings)
    same = reference.em_fit_backward(gram, logits, d_r, d_s, **settings)
    ours = native.fit_backward(d_r, d_s, gram, logits, 3, 1.0, 1e-6)
    for name, a, b, c in zip(("d_gram", "d_logits"), ours, truth, same, strict=True):
        if float(b.abs().max()) > 1e-9:
            assert_close(name, a, b, max(TOLERANCE[a.dtype], 2 * relative_error(c, b)))

    compare(
        "y",
        (native.reconstruct(x, r, s, -1.5),),
        (reference.em_reconstruct(wide, r.double(), s.double(), weight=-1.5),),
        row_tolerance,
    )
    d_y = torch.randn(x.shape).to(dtype)
    truth = reference.em_reconstruct_backward(d_y.double(), wide, r.double(), s.double(), weight=-1.5)
    ours = native.reconstruct_backward(d_y, x, r, s, -1.5)
    compare("d_x", ours[:1], truth[:1], row_tolerance)
    compare("d_responsibilities d_scale", ours[1:], truth[1:], 10 * TOLERANCE[s.dtype])


@pytest.mark.parametrize("form", ["gram", "loop"])
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize(("rows", "width", "bases"), [(7, 63, 7), (130, 16, 32), (1000, 63, 1)])
def test_both_forms_are_exact(
    rows: int, width: int, bases: int, per_row: bool, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMCL_FORM", form)
    x = clustered_rows(rows, width)
    init = distinct_init(rows, bases) if per_row else distinct_init(bases)
    y, mean_bases = reference.em_project_loop(x, init)
    out = native.project(x, init, 9, 1.0, 3.0, 1e-6, False)
    assert_close("reconstruction", out[0] - x, y - x)
    assert_close("mean_bases", out[1], mean_bases, 1e-9)


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    x, init = clustered_rows(2, 3000, 130).float(), distinct_init(2, 32).float()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        out = native.project(x, init, 9, 1.0, 3.0, 1e-6, False)
        r, s = out[2], out[3]
        gram, colsum = native.moments(x)
        logits = reference.start_logits(x, colsum, init)
        backward = native.reconstruct_backward(x, x, r, s, 3.0) + native.fit_backward(r, s, gram, logits, 9, 1.0, 1e-6)
        results.append((*out, gram, colsum, *backward, native.moments_backward(gram, colsum, x)))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_of_this_machine(isa: str) -> None:
    """Runs this file's comparison again under a narrower choice."""
    environment = {**os.environ, "EMCL_ISA": isa}
    script = "from emcl_kernels.backends import cpu; print(cpu.backend.isa)"
    found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    if found.stdout.strip() != isa:
        pytest.skip(f"this machine has no {isa}")
    if cpu.backend.isa == isa:
        return  # what all other tests here have run on
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", __file__, str(POOLED), "-k", "reference or forms"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]


def test_empty_library_folder_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_PATH", cpu._PATH.with_name("missing.so"))
    isa, reason = cpu._load()
    assert isa == ""
    assert "was not built" in reason
