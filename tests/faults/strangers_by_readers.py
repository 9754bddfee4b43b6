"""Files from strangers, given to the functions that read them: those of `hostile_weights`, which the tests have too.

As a program, in a child of a server: `known FIRST STEP`, or `drawn FIRST LAST`; it prints what each was, and what was
wrong.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from counts import Counts
from scene import Scene, run_in
from server import ROOT, Server, Servers

BY_READERS = "hostile weights, configurations and tokenizers, by their readers"
DRAWN, BATCH, KNOWN_BATCHES = 250, 25, 16
SECONDS = 500.0
"""Of a batch."""


def by_readers(counts: Counts, seed: int, share: float, servers: Servers, scene: Scene) -> None:
    """A share of the cases that were thought of, and of DRAWN ones."""

    def batch(server: Server, arguments: tuple[str, int, int]) -> None:
        folder = scene.case(())
        outcome = run_in(server, folder, *map(str, arguments), program=Path(__file__).read_text(), seconds=SECONDS)
        for line in outcome.out.splitlines():
            what, wrong = json.loads(line)
            counts.add(BY_READERS, [wrong] if wrong else [], what)
        if outcome.code != 0:
            counts.add(BY_READERS, [f"it ended with {outcome.code}: {outcome.err[-500:]}"], str(arguments))
        if outcome.reached_out:
            counts.add(BY_READERS, [f"it reached out: {outcome.reached_out[:3]}"], str(arguments))
        shutil.rmtree(folder, ignore_errors=True)

    first, wanted = seed * DRAWN, max(1, round(share * DRAWN))
    batches = [("drawn", first + n, first + min(n + BATCH, wanted)) for n in range(0, wanted, BATCH)]
    batches += [("known", n, KNOWN_BATCHES) for n in range(0, KNOWN_BATCHES, 1 if share >= 1 else 8)]
    servers.map(batch, batches)


def cases(kind: str, first: int, last: int) -> Iterator[tuple[str, Any, Any]]:
    """What each is, what makes it, and what reads it."""
    from hostile_weights import CASES, random_case

    if kind == "drawn":
        for number in range(first, last):
            what, make, read = random_case(number)
            yield f"{what}, number {number}", make, read
        return

    known = [(f"{of}: {name}", make, read) for of, (read, makes) in CASES.items() for name, make in makes.items()]
    yield from known[first::last]


def main() -> None:
    sys.path[:0] = [str(ROOT / "tests" / "train"), str(ROOT / "tests" / "train" / "weights")]
    from hostile import held

    for what, make, read in cases(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])):
        print(json.dumps([what, held(make, read, Path.cwd())]), flush=True)


if __name__ == "__main__":
    main()
