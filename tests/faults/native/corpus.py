"""Calls that failed once: one small file each in tests/faults/corpus, made as small as they can be, and tried first."""

import hashlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from parts import CORPUS

from native.drive import Found, Teller

MOST_SECONDS = 60
"""For one call; a busy machine makes fewer tries in them, and then a larger file."""


def read() -> dict[str, dict[str, Any]]:
    """All of them, by the names of their files."""
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(CORPUS.glob("call-*.json"))}


def keep(found: Found, teller: Teller) -> Path:
    """Make a failing call small, and write it down.

    Args:
        found: the call, and what is wrong with it.
        teller: of the build that it failed in.

    Returns:
        The file.
    """
    small = reduce(json.loads(found.call), teller)
    text = json.dumps(small)
    name = re.sub("[:_]+", "-", small["op"])
    path = CORPUS / f"call-{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"
    said = next((line for line in (teller.fault(text) or found.fault).splitlines() if "ERROR" in line), "")
    about = {"call": small, "fault": said or found.fault.splitlines()[0], "drawn": json.loads(found.call)}
    if about["drawn"] == small:
        del about["drawn"]
    path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return path


def reduce(call: dict[str, Any], teller: Teller) -> dict[str, Any]:
    """The smallest call near this one that fails in the same way; the same one, if it does not fail any more."""
    fault = in_short(teller.fault(json.dumps(call)))
    if not fault:
        return call
    end = time.monotonic() + MOST_SECONDS
    smaller = True
    while smaller and time.monotonic() < end:
        smaller = False
        for other in simpler(call):
            if time.monotonic() > end:
                break
            if in_short(teller.fault(json.dumps(other))) == fault:
                call = other
                smaller = True
                break
    return call


def in_short(fault: str) -> str:
    """What went wrong, without its numbers."""
    lines = [line for line in fault.splitlines() if "ERROR" in line or "runtime error" in line] or fault.splitlines()
    return re.sub(r"0x[0-9a-f]+|[-+]?[0-9][0-9.e+-]*", "", lines[0]) if lines else ""


def simpler(call: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The call with one thing less, or one size smaller; the largest steps first."""
    for name in ("layouts", "mode", "threads", "values", "empty", "leading", "dtype", "start"):
        if name in call:
            yield {key: value for key, value in call.items() if key != name}
    wrong = call.get("wrong", [])
    if len(wrong) > 1:
        for each in wrong:
            yield call | {"wrong": [other for other in wrong if other != each]}
    for name in list(call.get("layouts", {})):
        yield call | {"layouts": {key: value for key, value in call["layouts"].items() if key != name}}
    for letter, size in call["sizes"].items():
        for other in (1, size // 2, size - 1):
            if 0 < other < size:
                yield call | {"sizes": call["sizes"] | {letter: other}}
    for name, value in call.get("settings", {}).items():
        if name == "num_iters" and value > 1:
            yield call | {"settings": call["settings"] | {name: 1}}
        if isinstance(value, float) and value != 1.0:
            yield call | {"settings": call["settings"] | {name: 1.0}}
