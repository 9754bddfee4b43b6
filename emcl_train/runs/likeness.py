"""Whether a value from a JSON file is what its readers expect: a flipped byte may leave good JSON of other things."""

import math
import types
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

Like = Any
"""A type; a `Number`; a `OneOf`; `Optional(like)`; `[like]`, a list of such; `{name: like}`, an object that has these
names, and under `ANY` what all others are."""
ANY = object()
SHOWN = 60
NAMES = {str: "a text", int: "a whole number", bool: "true or false", dict: "an object", list: "a list"}


@dataclass(frozen=True)
class Number:
    """A number, whole or not, between two others."""

    low: int | float = -math.inf
    high: int | float = math.inf


@dataclass(frozen=True)
class OneOf:
    """One of these values."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Optional:
    """A value, or null, or none at all."""

    like: Like


def like_of(kind: Any) -> Like:
    """What a dataclass, or a type of one of its fields, is in JSON. A file may lack fields."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return {field.name: Optional(like_of(hints[field.name])) for field in fields(kind)}

    origin = get_origin(kind)
    arguments = get_args(kind)
    if origin is Literal:
        return OneOf(arguments)
    if origin in (Union, types.UnionType):
        (other,) = (one for one in arguments if one is not type(None))
        return Optional(like_of(other))
    if origin in (tuple, list):
        return [like_of(arguments[0])]
    if kind is float:
        return Number()
    return str if issubclass(kind, Path) else kind


def unlike(value: Any, like: Like, place: str = "") -> str | None:
    """What is wrong with a value, with its place in the file; None if nothing is.

    Args:
        value: as JSON has it.
        like: what is expected.
        place: of the value, such as "rows[0].name".
    """
    if isinstance(like, Mapping):
        return _unlike_object(value, like, place)
    if isinstance(like, list):
        if not isinstance(value, list):
            return _expected(value, "a list", place)
        found = (unlike(one, like[0], f"{place}[{index}]") for index, one in enumerate(value))
        return next((wrong for wrong in found if wrong), None)
    if isinstance(like, Optional):
        return None if value is None else unlike(value, like.like, place)
    if isinstance(like, OneOf):
        # By their kinds too: to Python, true is 1.
        known = any(type(one) is type(value) and one == value for one in like.values)
        return None if known else _expected(value, f"one of {', '.join(map(repr, like.values))}", place)
    if isinstance(like, Number):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and like.low <= value <= like.high:
            return None
        between = "" if math.isinf(like.low) or math.isinf(like.high) else f" from {like.low:g} to {like.high:g}"
        return _expected(value, f"a number{between}", place)

    of_kind = isinstance(value, like) and not (like is int and isinstance(value, bool))
    return None if of_kind else _expected(value, NAMES[like], place)


def _unlike_object(value: Any, like: Mapping[Any, Like], place: str) -> str | None:
    if not isinstance(value, dict):
        return _expected(value, "an object", place)
    inside = f"{place}." if place else ""
    if absent := sorted(name for name in like if name is not ANY and name not in value and not may_lack(like[name])):
        return f"{inside}{absent[0]} is missing"

    for name, one in value.items():
        expected = like.get(name, like.get(ANY))
        if expected is not None and (wrong := unlike(one, expected, f"{inside}{name}")):
            return wrong
    return None


def may_lack(like: Like) -> bool:
    """Whether an object may be without a value that is to be like this."""
    return isinstance(like, Optional)


def _expected(value: Any, what: str, place: str) -> str:
    text = repr(value)
    shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
    return f"{place or 'it'} is {shown}, expected {what}"
