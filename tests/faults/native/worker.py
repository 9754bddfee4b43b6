"""The process that makes calls. A sanitizer may end it at any of them, so it writes down where it is before each.

worker.py calls  STATE FIRST LAST PREFIX NAMESPACE [small]   random calls
worker.py starve STATE FIRST LAST PREFIX NAMESPACE           calls whose memory is refused
worker.py rounds STATE FIRST LAST PREFIX NAMESPACE           rounds of threads that call at once
worker.py name   STATE FIRST LAST PREFIX NAMESPACE [small]   the call of the number FIRST, on stdout
worker.py tell                                               calls as lines of JSON on stdin, verdicts on stdout
"""

import json
import os
import resource
import sys
import tempfile
import warnings
from typing import Any

import torch

from emcl_kernels.backends import cpu, cuda
from emcl_kernels.dispatch import asked
from native import calls, rounds, starve
from native.calls import Call
from native.judge import Fault, judge

MOST_MEMORY = 16 << 30
"""Bytes of addresses, so that a call for terabytes is refused at once. Sanitizers have limits of their own."""


class State:
    """Where the process is, and what it found: two files next to each other.

    Args:
        path: of the first; the other one ends in ".found".
    """

    def __init__(self, path: str) -> None:
        self._at = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self._found = os.open(path + ".found", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def at(self, number: int) -> None:
        os.pwrite(self._at, b"%20d" % number, 0)

    def found(self, call: str, fault: str) -> None:
        self._write({"call": call, "fault": fault})

    def tried(self, count: int) -> None:
        """So many were tried, since it was said last."""
        self._write({"tried": count})

    def _write(self, line: dict[str, Any]) -> None:
        os.write(self._found, (json.dumps(line) + "\n").encode())


def verdict(call: Call) -> str:
    """What is wrong with a call; nothing, if it held."""
    try:
        judge(call)
    except Fault as fault:
        return str(fault)
    return ""


def make_calls(state: State, first: int, last: int, prefix: str, names: list[str], small: bool) -> None:
    for number in range(first, last):
        state.at(number)
        call = calls.draw(f"{prefix}{number}", names, small=small)
        if fault := verdict(call):
            state.found(call.to_json(), fault)


def starve_calls(state: State, first: int, last: int, prefix: str, names: list[str]) -> None:
    """A number is a call, a manner, and the allocation that is refused."""
    memory = starve.Memory()
    number = first
    while number < last:
        index, nth = divmod(number, starve.MOST)
        drawn, manner = divmod(index, len(starve.MANNERS))
        call = starve.draw(f"{prefix}{drawn}", names)
        start = index * starve.MOST

        tried, fault = starve.starve(memory, call, starve.MANNERS[manner], max(1, nth), lambda n: state.at(start + n))  # noqa: B023
        state.tried(tried)
        if fault:
            state.found(call.to_json(), fault)
        number = start + starve.MOST


def make_rounds(state: State, first: int, last: int, prefix: str, names: list[str]) -> None:
    for number in range(first, last):
        state.at(number)
        try:
            rounds.round_of(f"{prefix}{number}", names)
        except Fault as fault:
            state.found("", f"round {prefix}{number}: {fault}")


def name(first: int, prefix: str, names: list[str], what: str, small: bool) -> None:
    if what == "starve":
        print(starve.draw(f"{prefix}{first // starve.MOST // len(starve.MANNERS)}", names).to_json())
    elif what == "rounds":
        print("\n".join(call.to_json() for call in rounds.draw(f"{prefix}{first}", names)))
    else:
        print(calls.draw(f"{prefix}{first}", names, small=small).to_json())


def tell() -> None:
    """Every call in a child of this process, which has torch already and not yet a second thread."""
    for line in sys.stdin:
        with tempfile.TemporaryFile() as said:
            child = os.fork()
            if child == 0:
                in_child(Call.from_json(line), said.fileno())
            _, status = os.waitpid(child, 0)
            said.seek(0)
            text = said.read().decode(errors="replace")
        print(json.dumps({"fault": text, "died": os.waitstatus_to_exitcode(status)}), flush=True)


def in_child(call: Call, said: int) -> None:
    """Ends the process: 0 if the call held, 3 if it did not, and otherwise as a sanitizer or a signal ends it."""
    os.dup2(said, 2)
    code = 4
    try:
        fault = verdict(call)
        os.write(2, fault.encode())
        code = 3 if fault else 0
    finally:
        os._exit(code)


def main() -> None:
    what, *rest = sys.argv[1:]
    warnings.simplefilter("ignore")
    assert not cpu.backend.reason, cpu.backend.reason
    assert os.environ.get("EMCL_ISA", cpu.backend.isa) == cpu.backend.isa, cpu.backend.isa
    asked.backend = "native"
    if os.environ.get("EMCL_CUDA_EMULATED") == "1":
        assert not cuda._load_emulated(), cuda._load_emulated()
        asked.backend = "cuda"
    torch.set_num_threads(1)
    if "_OPTIONS" not in "".join(name for name in os.environ if name.startswith(("ASAN", "TSAN"))):
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))

    if what == "tell":
        tell()
        return
    path, first, last, prefix, namespace, *small = rest
    names = calls.ops((namespace,))
    if what.startswith("name"):
        name(int(first), prefix, names, what.partition("-")[2], bool(small))
        return
    state = State(path)
    numbers = int(first), int(last), prefix, names
    if what == "calls":
        make_calls(state, *numbers, bool(small))
    elif what == "starve":
        starve_calls(state, *numbers)
    else:
        make_rounds(state, *numbers)


if __name__ == "__main__":
    main()
