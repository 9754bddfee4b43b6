"""One test for all the bad input of an op."""

from collections.abc import Callable

import pytest

Refusal = tuple[str, Callable[[], object], type[Exception], str]
"""What is wrong, a call, the error that it raises, and a pattern of its message."""


def refusals(table: list[Refusal]) -> Callable[..., None]:
    """A test of every row: bad input is refused, with the way out."""

    @pytest.mark.parametrize(("call", "error", "message"), [row[1:] for row in table], ids=[row[0] for row in table])
    def test(call: Callable[[], object], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            call()

    return test
