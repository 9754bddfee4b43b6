"""The questions that the API takes: which parameters, what they may be, and how they are read.

The same table makes `openapi.json`, so that the document cannot say what the server does not do.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from emcl_train.search.server.refusing import Refused

LONGEST_QUERY = 1000
"""Letters of a query. The text towers read some 77 tokens, which are fewer letters than that."""
MOST_RESULTS = 100
MOST_AROUND = 20
MOST_PARTS = 100_000
"""Parts behind the first one of a converted film: they go on for half a minute each."""
ID = re.compile(r"[0-9a-f]{32}-[0-9]{1,9}")
"""How a moment is called: the content of its file, and its number in it."""
SHOWN = 40
"""Letters of a wrong value that an error repeats."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a question."""

    name: str
    says: str
    """What it is, for people."""
    schema: dict[str, Any]
    """What it may be, as a JSON schema."""
    read: Callable[[str], Any]
    """Gives the value, or raises a ValueError whose text goes on after "NAME is"."""
    default: Any = None
    required: bool = False
    in_path: bool = False


def asked(request: Request, parameters: tuple[Parameter, ...]) -> dict[str, Any]:
    """The values of a question's parameters.

    Raises:
        Refused: one is missing, wrong, there twice, or not known.
    """
    given: dict[str, str] = {name: str(value) for name, value in request.path_params.items()}
    for name, value in request.query_params.multi_items():
        if name in given:
            raise Refused(400, f"{_short(name)} is there twice, expected once")
        given[name] = value

    known = [parameter.name for parameter in parameters]
    unknown = [name for name in given if name not in known]
    if unknown:
        expected = ", ".join(known) or "none"
        raise Refused(400, f"there is no parameter {_short(unknown[0])} here; there is: {expected}")

    values: dict[str, Any] = {}
    for parameter in parameters:
        if parameter.name not in given:
            if parameter.required:
                raise Refused(400, f"{parameter.name} is missing: {parameter.says}")
            values[parameter.name] = parameter.default
            continue
        try:
            values[parameter.name] = parameter.read(given[parameter.name])
        except ValueError as error:
            status = 404 if parameter.in_path else 400
            raise Refused(status, f"{parameter.name} is {error}") from error
    return values


def _short(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")


def _query(text: str) -> str:
    if not text.strip():
        raise ValueError("empty; expected words that say what is to be seen")
    if len(text) > LONGEST_QUERY:
        raise ValueError(f"{len(text)} letters long, expected at most {LONGEST_QUERY}; shorten it")
    return text.strip()


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        number = int(text) if re.fullmatch("[0-9]{1,9}", text) else -1
        if not least <= number <= most:
            raise ValueError(f"{_short(text)}, expected a whole number from {least} to {most}")
        return number

    return read


def _switch(text: str) -> bool:
    values = {"1": True, "true": True, "0": False, "false": False}
    if text.lower() not in values:
        raise ValueError(f"{_short(text)}, expected 1 or 0")
    return values[text.lower()]


def _minimum(text: str) -> float | str:
    if text == "auto":
        return text
    try:
        number = float(text) if len(text) <= SHOWN else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{_short(text)}, expected a number or auto")
    return number


def moment_id(text: str) -> str:
    """The id of a moment.

    Raises:
        ValueError: it is none, whether or not there is such a moment.
    """
    if ID.fullmatch(text) is None:
        raise ValueError(f"{_short(text)}, expected the id of a moment, as search gives it")
    return text


QUERY = Parameter("q", "words that say what is to be seen",
                  {"type": "string", "minLength": 1, "maxLength": LONGEST_QUERY}, _query, required=True)  # fmt: skip
COUNT = Parameter("k", "how many moments at most",
                  {"type": "integer", "minimum": 1, "maximum": MOST_RESULTS, "default": 24},
                  _whole(1, MOST_RESULTS), 24)  # fmt: skip
REFINE = Parameter("refine", "1: rank by the refined vectors; 0: by the model's own; else refined where there are any",
                   {"type": "string", "enum": ["0", "1"]}, _switch)  # fmt: skip
MINIMUM = Parameter("min", "leave out lower scores; auto: the score that 95 % of unrelated queries stay below",
                    {"oneOf": [{"type": "number"}, {"const": "auto"}]}, _minimum)  # fmt: skip
OF = Parameter("id", "the id of a moment", {"type": "string", "pattern": f"^{ID.pattern}$"}, moment_id, required=True)
IN_PATH = Parameter("id", OF.says, OF.schema, moment_id, required=True, in_path=True)
AROUND = Parameter("around", "how many moments before it and behind it",
                   {"type": "integer", "minimum": 1, "maximum": MOST_AROUND, "default": 2},
                   _whole(1, MOST_AROUND), 2)  # fmt: skip
PART = Parameter("part", "of a film that is converted: 0: the part with the moment; 1, 2, …: those that follow",
                 {"type": "integer", "minimum": 0, "maximum": MOST_PARTS, "default": 0},
                 _whole(0, MOST_PARTS), 0)  # fmt: skip

PARAMETERS: dict[str, tuple[Parameter, ...]] = {
    "/api/library": (),
    "/api/search": (QUERY, COUNT, REFINE, MINIMUM),
    "/api/like": (OF, COUNT, REFINE),
    "/api/neighbours": (OF, AROUND),
    "/api/playing": (OF, PART),
    "/api/openapi.json": (),
    "/thumbnail/{id}": (IN_PATH,),
    "/media/{id}": (IN_PATH, PART),
}
"""What each address takes."""
