"""The EMCL_* variables: a value that is not on the list is an error that has the list."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from emcl_kernels import environment
from emcl_kernels.backends import cpu

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("value", ["nonsense", "AVX2", " auto", "0x1", "auto,gram"])
@pytest.mark.parametrize("variable", environment.CHOICES)
def test_a_value_that_is_not_on_the_list_is_an_error(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    names = ", ".join(environment.CHOICES[variable])
    for look in (environment.check, lambda: environment.chosen(variable)):
        with pytest.raises(ValueError, match=f'{variable} is "{value}"; expected one of {names}'):
            look()


@pytest.mark.parametrize("variable", environment.CHOICES)
def test_every_value_on_the_list_is_taken_and_none_is_as_not_set(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in ("", *environment.CHOICES[variable]):
        monkeypatch.setenv(variable, value)
        environment.check()
        assert environment.chosen(variable) == value
    monkeypatch.delenv(variable)
    assert environment.chosen(variable) == ""


def test_a_table_that_is_no_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMCL_TABLE", str(tmp_path / "none.json"))
    with pytest.raises(ValueError, match=r"EMCL_TABLE is .*none\.json, which is no file"):
        environment.check()


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["EMCL_ISA", "EMCL_FORM"])
def test_the_package_does_not_load_with_a_value_that_is_not_on_the_list(variable: str) -> None:
    variables = os.environ | {"PYTHONPATH": str(ROOT), variable: "nonsense"}
    done = subprocess.run([sys.executable, "-c", "import emcl_kernels"], env=variables, capture_output=True, text=True)
    assert done.returncode == 1
    assert f'ValueError: {variable} is "nonsense"; expected one of ' in done.stderr


@pytest.mark.skipif(bool(cpu.backend.reason), reason=cpu.backend.reason)
def test_an_instruction_set_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is on the list. The library, which is loaded already, uses its own."""
    for isa in environment.ISAS:
        monkeypatch.setenv("EMCL_ISA", isa)
        if isa == cpu.backend.isa:
            assert cpu._load() == (isa, "")
            continue
        with pytest.raises(ValueError, match=f"EMCL_ISA is {isa}, which this machine or this build of .* lacks"):
            cpu._load()
