"""Parts that try the compiled kernels: random calls, memory that is refused, threads, the emulated CUDA kernels."""

import json
import re
from collections.abc import Iterator

from native import controls, corpus
from native.build import Build, build, helper, machine_isas, plain
from native.drive import Found, Outcome, Teller, shares, work
from parts import Part, Size, Tried

OPS = ("emcl", "emcl_native")
UNDER = {
    "address": "under the address sanitizer",
    "address-undefined": "under the sanitizers of addresses and undefined behaviour",
}
# Failures that are made small and written down; each takes a minute, and the rest is like them.
MOST_KEPT = 5
# Calls whose memory is refused: a number is one of these in one of four manners, and an allocation (worker.py).
MANNERS, ALLOCATIONS = 4, 10_000


def calls(size: Size) -> Iterator[Tried]:
    """The known ones first, then random ones, for each instruction set."""
    # To compile for undefined behaviour too takes minutes.
    isas = machine_isas()[-1:] if size.short else machine_isas()
    sanitizer = "address" if size.short else "address-undefined"
    sanitized = build(sanitizer, isas)
    controls.seen(sanitized, isas[-1])

    known = corpus.read()
    with Teller(sanitized, isas[-1]) as teller:
        again = {name: teller.fault(json.dumps(each["call"])) for name, each in known.items()}
    failures = [f"{name}: {fault}" for name, fault in again.items() if fault]
    yield Tried(len(known), f"calls that failed once, {UNDER[sanitizer]}", failures)

    for isa in isas:
        count = 1_600 if size.short else 14_000
        outcome = work(sanitized, isa, shares("calls", count, size.jobs, f"{size.seed}/{isa}", OPS), size.jobs)
        yield Tried(outcome.tried, f"random calls {UNDER[sanitizer]} ({isa})", told(outcome, sanitized, isa))


def memory(size: Size) -> Iterator[Tried]:
    built = plain()
    count = (24 if size.short else 400) * MANNERS
    parts = shares("starve", count, size.jobs, str(size.seed), OPS, step=ALLOCATIONS)
    outcome = work(built, built.isas[-1], parts, size.jobs, (helper("failing.cpp"),))
    failures = [found.fault for found in outcome.found]
    if outcome.tried < count:
        failures.append(f"of {count} calls only {outcome.tried} allocations were refused; is failing.cpp loaded?")
    yield Tried(outcome.tried, "allocations refused inside an op", failures)


def threads(size: Size) -> Iterator[Tried]:
    isa = machine_isas()[-1]
    sanitized = build("thread", (isa,))
    preload = (helper("regions.cpp"),)
    controls.seen(sanitized, isa, preload)

    count = 12 if size.short else 120
    outcome = work(sanitized, isa, shares("rounds", count, size.jobs, str(size.seed), OPS), size.jobs, preload)
    yield Tried(outcome.tried, "rounds of threads under the thread sanitizer", [found.fault for found in outcome.found])


def emulated(size: Size) -> Iterator[Tried]:
    if size.short:
        return
    sanitized = build("address", machine_isas()[:1], emulated=True)
    isa = sanitized.isas[0]
    controls.seen(sanitized, isa)

    variables = {"EMCL_CUDA_EMULATED": "1"}
    parts = shares("calls", 1_500, size.jobs, f"{size.seed}/emulated", ("emcl", "emcl_emulated"), small=True)
    outcome = work(sanitized, isa, parts, size.jobs, **variables)
    what = f"random calls of the emulated CUDA kernels {UNDER[sanitized.sanitizer]}"
    yield Tried(outcome.tried, what, told(outcome, sanitized, isa, **variables))


def told(outcome: Outcome, sanitized: Build, isa: str, **variables: str) -> list[str]:
    """What did not hold, once for every kind, with the file that the smallest such call was written into."""
    kinds: dict[str, list[Found]] = {}
    for found in outcome.found:
        kinds.setdefault(kind_of(found), []).append(found)
    if not kinds:
        return []

    failures = []
    with Teller(sanitized, isa, **variables) as teller:
        for i, alike in enumerate(kinds.values()):
            first = min(alike, key=lambda found: len(found.call))
            kept = ""
            if first.call and i < MOST_KEPT and not variables:
                kept = f"; made small, in tests/faults/corpus/{corpus.keep(first, teller).name}"
            failures.append(f"{len(alike)} times{kept}\n{first.call}\n{first.fault}")
    return failures


def kind_of(found: Found) -> str:
    """The op, and what went wrong without its numbers."""
    op = re.match(r'{"op": "([^"]*)"', found.call)
    return f"{op and op[1]} {corpus.in_short(found.fault)}"


PARTS = (
    Part("calls", "random calls of every op, right and wrong, with the compiled kernels under sanitizers", calls),
    Part("memory", "each allocation of an op refused in its turn", memory),
    Part("threads", "several threads that call at once, under the thread sanitizer", threads),
    Part("emulated", "random calls of the emulated CUDA kernels under a sanitizer (not in the short run)", emulated),
)
