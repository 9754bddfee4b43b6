"""Values of files that may come from anybody, as an error shows them: their beginning, in bounded time."""

import json
import reprlib
from typing import Any

MOST_LETTERS = 120
MOST_VALUES = 200
"""Values that are looked at: one that refers to itself may have without end."""


def shortened(value: Any) -> str:
    """A value as JSON, of at most `MOST_LETTERS` letters."""
    text = json.dumps(_beginning(value, [MOST_VALUES], 0), ensure_ascii=False, default=reprlib.repr)
    return text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]}…"


def _beginning(value: Any, left: list[int], depth: int) -> Any:
    """The first values in a value, as far as some are left to look at."""
    left[0] -= 1
    if isinstance(value, str):
        return value[: 2 * MOST_LETTERS]
    if isinstance(value, (dict, list, tuple)) and (left[0] < 0 or depth > MOST_LETTERS):
        return "…"

    if isinstance(value, dict):
        found: dict[str, Any] = {}
        for name, one in value.items():
            if left[0] < 0:
                break
            key = name[: 2 * MOST_LETTERS] if isinstance(name, str) else reprlib.repr(name)
            found[key] = _beginning(one, left, depth + 1)
        return found
    if isinstance(value, (list, tuple)):
        beginning = []
        for one in value:
            if left[0] < 0:
                break
            beginning.append(_beginning(one, left, depth + 1))
        return beginning
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**MOST_LETTERS:
        return "a whole number of hundreds of digits"
    return value
