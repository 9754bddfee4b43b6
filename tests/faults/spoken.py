"""What a command says when it cannot go on: one line, with a way out, and nothing of its inside."""

import re
from collections.abc import Sequence

from server import Outcome

INSIDE = re.compile(r"Traceback \(most recent call last\)|^\s+File \".*\", line \d+|Exception ignored", re.MULTILINE)
REMARK = re.compile(r"^(\x1b\[[0-9;]*m)*(warning|note)\b", re.IGNORECASE)
WAY_ON = re.compile(
    r"--resume|again|go(es)? on|choose|pass |remove|free|start |copy|print|train|write|to be done|--[a-z]"
)


def is_remark(line: str) -> bool:
    return REMARK.match(line) is not None


def problems_of(outcome: Outcome, usual: Sequence[str] = (), *, lines: int = 1, way_on: bool = True) -> list[str]:
    """What is wrong with what a command said before it ended early.

    Args:
        outcome: of the command.
        usual: lines that it says on stderr when nothing happens to it.
        lines: how many it should say beside remarks.
        way_on: whether it should say how to go on.
    """
    problems = []
    if outcome.code == -1000:
        problems.append(f"it hangs (ended after {outcome.seconds:.0f} s)")
    if INSIDE.search(outcome.err) or INSIDE.search(outcome.out):
        last = outcome.lines[-1] if outcome.lines else ""
        return [*problems, f"a traceback, which ends in {last!r}"]

    said = [line for line in outcome.lines if line not in usual and not is_remark(line)]
    if len(said) != lines:
        problems.append(f"{len(said)} lines instead of {lines}: {' | '.join(said[:4])}")
    elif way_on and said and not WAY_ON.search(said[-1]):
        problems.append(f"no way out in {said[-1]!r}")
    return problems
