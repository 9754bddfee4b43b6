"""Weights, configurations and tokenizers of strangers: read, or one error that names the file, and nothing else."""

import pytest
from hostile import held
from hostile_weights import CASES, GOOD, REFUSED, random_case

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
]
TOGETHER = "configuration"
"""A reader with so many files that they are one test, and here every fifth of them."""


@pytest.mark.parametrize(
    ("reader", "name"), [(reader, name) for reader, (_, cases) in CASES.items() if reader != TOGETHER for name in cases]
)
def test_a_hostile_file_is_read_or_named(reader, name):
    read, cases = CASES[reader]
    assert held(cases[name], read, refused=True if name in REFUSED[reader] else None) == ""


@pytest.mark.parametrize("reader", CASES)
def test_a_good_file_is_read(reader):
    read, cases = CASES[reader]
    assert held(GOOD[reader], read, refused=False) == ""
    assert set(REFUSED[reader]) <= set(cases)


@pytest.mark.parametrize("part", range(4))
def test_hostile_settings_are_left_alone_or_named(part):
    read, cases = CASES[TOGETHER]
    names = list(cases)[part * 5 :: 20]
    assert {name: wrong for name in names if (wrong := held(cases[name], read))} == {}


@pytest.mark.parametrize("name", REFUSED[TOGETHER])
def test_hostile_settings_are_refused(name):
    read, cases = CASES[TOGETHER]
    assert held(cases[name], read, refused=True) == ""


def test_files_that_are_spoiled_at_random_are_read_or_named():
    found = {}
    for seed in range(12):
        kind, make, read = random_case(seed)
        found[f"{kind} {seed}"] = held(make, read)
    assert {name: wrong for name, wrong in found.items() if wrong} == {}
