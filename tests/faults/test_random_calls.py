"""The random calls themselves: every op is known to them, a seed is a call, and a failing one is made small."""

import json
from typing import Any

import pytest
from native import calls, corpus
from native.calls import Call

from emcl_kernels.backends import library

NAMES = calls.ops(("emcl", library.NATIVE))


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_of_every_op_is_known(name: str) -> None:
    for seed in range(8):
        call = calls.draw(f"{seed}", [name])
        given = calls.arguments(call)
        assert list(given.values) == [argument for argument, _, _ in calls.schema(name)]


@pytest.mark.parametrize("seed", range(20))
def test_a_call_is_what_its_file_says(seed: int) -> None:
    call = calls.draw(f"{seed}", NAMES)
    assert calls.draw(f"{seed}", NAMES) == call
    assert Call.from_json(call.to_json()) == call


def test_every_call_of_the_corpus_can_be_made() -> None:
    found = corpus.read()
    assert found
    for name, each in found.items():
        call = Call.from_json(json.dumps(each["call"]))
        assert call.op in NAMES, name
        calls.arguments(call)


class Teller:
    """Stands for a process: a call fails if it has two rows or more and is not in float32."""

    def fault(self, call: str) -> str:
        given = json.loads(call)
        if given["sizes"]["N"] >= 2 and given.get("dtype", "float32") != "float32":
            return f"==17==ERROR: a write of {given['sizes']['N']} bytes at 0x7f12"
        return ""


def test_a_failing_call_is_made_as_small_as_it_can_be() -> None:
    call: dict[str, Any] = json.loads(calls.draw("7", ["emcl::em_moments"]).to_json())
    call |= {"sizes": {"N": 37, "D": 12}, "dtype": "float16", "threads": 3, "layouts": {"x": "sliced"}}
    small = corpus.reduce(call, Teller())  # type: ignore[arg-type]
    assert small == {"op": "emcl::em_moments", "seed": call["seed"], "sizes": {"N": 2, "D": 1}, "dtype": "float16"}
