"""Calls without memory: each allocation is refused in its turn. A call must say so, and give back what it has.

The next call must then be right.
"""

import ctypes
import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from emcl_kernels.backends import cpu
from native import calls
from native.build import loaded_helper
from native.calls import Call, arguments
from native.judge import Fault, bits, filled_memory, make

# Whose allocations are refused, and how many: the library's own or all large ones, one or all from then on.
MANNERS = (("ours", "one"), ("ours", "the rest"), ("all", "one"), ("all", "the rest"))
LARGE = 2048
"""Bytes. What the interpreter allocates on the way is smaller."""
MOST = 10_000
"""Allocations of a call, at most: a place in a number."""


class Memory:
    """The library that refuses memory; it was loaded before everything else."""

    def __init__(self) -> None:
        self._library = loaded_helper("failing.cpp")
        for name in ("faults_stop", "faults_living"):
            getattr(self._library, name).restype = ctypes.c_int64
        self._library.faults_watch(*map(ctypes.c_size_t, code_of(cpu._PATH.name)))

    def refuse(self, nth: int, manner: tuple[str, str]) -> None:
        whose, many = manner
        least = 0 if whose == "ours" else LARGE
        self._library.faults_refuse(ctypes.c_int64(nth), ctypes.c_size_t(least), whose == "ours", many != "one")

    def stop(self) -> int:
        return int(self._library.faults_stop())

    def living(self) -> int:
        return int(self._library.faults_living())


def code_of(library: str) -> tuple[int, int]:
    """Where the code of a loaded library begins and ends."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    spans = [line.split()[0].split("-") for line in lines if line.endswith(f"/{library}") and "x" in line.split()[1]]
    assert spans, f"{library} is not loaded"
    return min(int(begin, 16) for begin, _ in spans), max(int(end, 16) for _, end in spans)


def draw(seed: str, names: list[str]) -> Call:
    """A call that is right, of a size at which outputs are large."""
    call = calls.draw(seed, names)
    source = random.Random(seed)
    sizes = {letter: size if letter != "D" else source.randint(24, 70) for letter, size in call.sizes.items()}
    mode = "backward" if source.random() < 0.5 else "plain"
    leading = [] if 0 in call.leading else call.leading
    return dataclasses.replace(call, sizes=sizes, wrong=[], values="tame", mode=mode, leading=leading)


def results(call: Call) -> list[Tensor]:
    with filled_memory():
        outputs, gradients = make(call, arguments(call))
    return [output.detach() for output in (*outputs, *gradients)]


def says_memory(error: BaseException) -> bool:
    """A MemoryError, or what torch raises when it has none for a tensor."""
    words = ("memory", "bad_alloc")
    return isinstance(error, MemoryError) or (type(error) is RuntimeError and any(word in str(error) for word in words))


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(bool((bits(a) == bits(b)).all()) for a, b in zip(found, expected, strict=True))


def starve(
    memory: Memory, call: Call, manner: tuple[str, str], first: int, at: Callable[[int], None]
) -> tuple[int, str]:
    """Refuse each allocation of a call in its turn.

    Args:
        memory: what refuses.
        call: one that is right.
        manner: of `MANNERS`.
        first: the allocation to begin with.
        at: is told of each before it is refused.

    Returns:
        How many were refused, and what did not hold.
    """
    expected = results(call)
    for nth in range(first, MOST):
        at(nth)
        given = arguments(call)
        living = memory.living()
        error: BaseException | None = None
        found: list[Tensor] = []

        memory.refuse(nth, manner)
        try:
            outputs, gradients = make(call, given)
            found = [output.detach() for output in (*outputs, *gradients)]
        except BaseException as raised:
            error = raised
        refused = memory.stop()

        if refused == 0:
            return nth - first, ""
        where = f"allocation {nth} of {manner[0]}, {manner[1]}: "
        try:
            if error is None and not same(found, expected):
                raise Fault("the call returned other numbers without a word")
            if error is not None and not says_memory(error):
                raise Fault(f"{type(error).__name__} instead of a MemoryError: {error}")
            error = None
            if memory.living() != living:
                raise Fault(f"{memory.living() - living} blocks of memory were not given back")
            if not same(results(call), expected):
                raise Fault("the next call gave other numbers")
        except Fault as fault:
            return nth - first + 1, where + str(fault)
    raise AssertionError(f"a call with more than {MOST} allocations: {call.to_json()}")
