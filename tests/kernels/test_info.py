"""`python -m emcl_kernels.info`: one answer in every state of the installation."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from emcl_kernels import __version__, dispatch, info
from emcl_kernels.backends import cpu


def built(**cpu: object) -> str:
    target = {"built": True, "file": "libemcl_cpu.so", "reason": "", "isas": ["baseline", "avx2"], "flags": []} | cpu
    return json.dumps({"compiler": "g++ 12", "torch": "2.13.0", "python": "3.11.7", "targets": {"cpu": target}})


def test_the_command_prints_versions_and_exits_with_zero() -> None:
    done = subprocess.run([sys.executable, "-m", "emcl_kernels.info"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"emcl {__version__}" in done.stdout
    assert f"torch {torch.__version__}" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "nothing: the native parts were never built here; run `make setup`"),
        ("{", "build_info.json is not JSON"),
        (built(), "libemcl_cpu.so: yes, for baseline, avx2"),
        (built(built=False, reason="no C++ compiler was found"), "libemcl_cpu.so: no: no C++ compiler was found"),
    ],
)
def test_what_was_built_is_told(
    content: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "build_info.json"
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr(info, "BUILD_INFO", path)
    assert expected in info.describe()


def test_a_library_that_does_not_load_gives_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    status = {"loaded": False, "path": "/x/libemcl_cpu.so", "isa": "", "reason": "undefined symbol: somewhere"}
    monkeypatch.setattr(cpu.backend, "status", lambda: status)
    monkeypatch.setattr(cpu.backend, "reason", "undefined symbol: somewhere")
    described = info.describe()
    assert "libemcl_cpu.so: no: undefined symbol: somewhere" in described
    assert "native on cpu      not available: undefined symbol: somewhere" in described
    assert info.which_backend("em_fit", "cpu").startswith("reference  (native: undefined symbol: somewhere")


def test_missing_bindings_give_their_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "emcl_kernels._bindings", None)
    assert "_bindings: no: " in info.describe()


def test_a_missing_triton_gives_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "triton not importable (" in info.describe()


def test_an_order_that_nobody_measured_is_said_to_be_by_arithmetic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guessed = {"backend": "cuda", "origin": "by arithmetic: x"}
    measured = {"backend": "cuda", "origin": "measured"}
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"rows": [guessed, measured]}))
    monkeypatch.setenv("EMCL_TABLE", str(path))
    assert f"CUDA, Triton or torch is chosen by\n  {path} (rows: 2, by arithmetic: 1)" in info.describe()
    path.write_text(json.dumps({"rows": [measured]}))
    assert f"{path} (rows: 1)" in info.describe()


@pytest.mark.parametrize("op", info.families())
def test_the_backend_named_is_the_one_that_runs(op: str) -> None:
    with dispatch.use_backend("reference"):
        assert info.which_backend(op, "cpu").split()[0] == "reference"


def test_a_backend_asked_for_that_cannot_run_is_none_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu.backend, "reason", "not built")
    with dispatch.use_backend("native"):
        assert info.which_backend("em_fit", "cpu").startswith('none: backend "native" is not available for em_fit')
