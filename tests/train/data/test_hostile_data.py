"""Annotations, features and arrays of strangers: read, or one error that names the file, and nothing else."""

import pytest
from hostile import held
from hostile_data import CASES, GOOD, random_case, reader_of, with_another_name

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("reader", [reader for reader in CASES if reader != "features"])
def test_a_hostile_file_is_read_or_named(reader):
    read, cases = CASES[reader]
    assert {name: wrong for name, make in cases.items() if (wrong := held(make, read))} == {}


@pytest.mark.parametrize("name", ["\ud800", "a\0b", "a\udc80"], ids=ascii)
@pytest.mark.parametrize("layout", GOOD)
def test_a_name_that_no_file_has_is_read_or_named(layout, name):
    assert held(with_another_name(layout, name), reader_of(layout)) == ""


def test_hostile_features_are_read_or_named():
    """Every third of many."""
    read, cases = CASES["features"]
    names = list(cases)[::3]
    assert {name: wrong for name in names if (wrong := held(cases[name], read))} == {}


def test_files_that_are_spoiled_at_random_are_read_or_named():
    found = {}
    for seed in range(40):
        kind, make, read = random_case(seed)
        found[f"{kind} {seed}"] = held(make, read)
    assert {name: wrong for name, wrong in found.items() if wrong} == {}
