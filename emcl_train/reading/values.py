"""Values of a description in JSON, each of the kind that it has to be, or a ValueError that names it."""

import math
from collections.abc import Collection, Mapping
from typing import Any

LARGEST = 2**31 - 1
"""No size of a tower is larger."""


def whole(value: Any, name: str, *, largest: int = LARGEST) -> int:
    """A size: a whole number above 0, also if it is written as a float."""
    if not _is_number(value) or value != int(value) or not 0 < value <= largest:
        raise ValueError(f"{name} is {_shown(value)}, expected a whole number from 1 to {largest}")
    return int(value)


def number(value: Any, name: str) -> float:
    """A number that a float can hold."""
    if not _is_number(value):
        raise ValueError(f"{name} is {_shown(value)}, expected a number")
    return float(value)


def token_id(value: Any, name: str) -> int | None:
    """The number of a token, counted from 0; null where there is none."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST:
        raise ValueError(f"{name} is {_shown(value)}, expected a whole number from 0 to {LARGEST}, or null")
    return value


def end_token(value: Any, name: str) -> int | None:
    """As `token_id`; transformers writes it as a list as well, of which one is taken."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list):
        raise ValueError(f"{name} is {_shown(value)}, expected one token with which captions end")
    return token_id(value, name)


def between(value: Any, name: str, *, least: float, largest: float) -> float:
    """A number within bounds."""
    if not _is_number(value) or not least <= value <= largest:
        raise ValueError(f"{name} is {_shown(value)}, expected a number from {least:g} to {largest:g}")
    return float(value)


def one_of(value: Any, name: str, known: Collection[str]) -> str:
    """One of some names."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} is {_shown(value)}, expected one of {', '.join(sorted(known))}")
    return value


def positive(value: Any, name: str, *, largest: float) -> float:
    """A number above 0, up to the largest that makes sense."""
    if not _is_number(value) or not 0 < value <= largest:
        raise ValueError(f"{name} is {_shown(value)}, expected a number above 0, up to {largest:g}")
    return float(value)


def switch(value: Any, name: str) -> bool:
    """True or false; a text that says so is neither."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {_shown(value)}, expected true or false")
    return value


def side(value: Any, name: str, *, largest: int = LARGEST) -> int:
    """The side of a square, given once or as two equal numbers."""
    if not isinstance(value, list):
        return whole(value, name, largest=largest)
    sides = [whole(one, f"{name} {_shown(value)}, of which one,", largest=largest) for one in value]
    if len(sides) != 2 or sides[0] != sides[1]:
        raise ValueError(f"{name} is {_shown(value)}, expected a square: one number, or two that are equal")
    return sides[0]


def arguments(value: Any, name: str) -> Mapping[str, Any]:
    """Named arguments; null stands for none."""
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{name} is {_shown(value)}, expected an object of named values, or null")
    return value or {}


def three(value: Any, name: str) -> tuple[float, ...]:
    """A number for each channel of a picture."""
    if not isinstance(value, list) or len(value) != 3 or not all(_is_number(one) for one in value):
        raise ValueError(f"{name} is {_shown(value)}, expected 3 numbers")
    return tuple(float(one) for one in value)


def _is_number(value: Any) -> bool:
    """Whether this is a number that a float can hold: JSON as Python reads it has NaN, infinity and endless digits."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= 1e300 if isinstance(value, int) else math.isfinite(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
