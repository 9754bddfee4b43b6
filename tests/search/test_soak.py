"""Many clients at once: no fault, and nothing is left open. A minute of it: tests/search/soak.py."""

from pathlib import Path

from soak import soak, told

GROWTH = 96
"""MiB that the server may grow by behind the first half: buffers of 50 answers, and what torch and LanceDB keep."""


def test_fifty_clients_get_what_is_expected_and_leave_nothing_behind(indexed: Path, tmp_path: Path) -> None:
    soaked = soak(indexed / "library", tmp_path / "parts", seconds=5, clients=50)
    assert soaked.unexpected == {}, told(soaked)
    assert {name for name, _ in soaked.answers} >= {"search", "range of a film", "hangs up", "10 000 letters"}
    assert soaked.answers_afterwards
    assert soaked.before is not None
    assert soaked.after is not None
    assert soaked.after.descriptors <= soaked.before.descriptors + 2, told(soaked)
    assert soaked.near(1.0).mib <= soaked.near(0.5).mib + GROWTH, told(soaked)
