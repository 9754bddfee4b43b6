"""Two trees of this repository in turns: whether a change made a kernel slower.

    python benchmarks/turns.py /path/to/old/tree [--turns 10] [--cases TEXT] [--json out.json]

Each turn times every case of `make bench` that is ours once in the old tree and once in this one, each in a process of
its own, in an order that changes from turn to turn. Both trees need their compiled libraries. A case is slower if the
95 % interval of the ratio new / old lies wholly above 1.03; then the exit code is 1.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from intervals import interval

HERE = Path(__file__).resolve().parent
SLOWER = 1.03
SECONDS = 0.35
"""Time that a case may take in a turn, beyond three calls."""


def cases() -> Iterator[tuple[str, Callable[[], object]]]:
    """Name and call of every case, on the packages that this process imports."""
    import torch
    from cases import EVALUATION, PROJECT, TRAINING, pairs, released_start, rows
    from ways import EVALUATION_WAYS, PROJECT_WAYS, TRAINING_WAYS, project_forward, project_step, training_step

    small, start = torch.randn(64, 64), torch.randn(8)
    yield "em_project [64, 64] K=8 forward", project_forward(PROJECT_WAYS["ours"], small, start)
    for project in PROJECT:
        yield f"em_project {project.name} forward", project_forward(PROJECT_WAYS["ours"], *rows(project))
    for project in PROJECT[1:4]:
        yield f"em_project {project.name} full", project_step(PROJECT_WAYS["ours"], *rows(project))
    for training in TRAINING:
        for way in ("ours", "EMCL off"):
            yield f"{training.name} step, {way}", training_step(TRAINING_WAYS[way], pairs(training))
    for evaluation in EVALUATION:
        *features, init = pairs(evaluation)
        for name, bases in (("distinct", init), ("released", released_start(evaluation.bases))):
            inputs = (*features, bases, evaluation.em_block)
            yield f"{evaluation.name} blocks, {name} start", _evaluation(EVALUATION_WAYS["ours"], inputs)


def _evaluation(function: Callable[..., object], inputs: tuple[object, ...]) -> Callable[[], object]:
    def run() -> object:
        import torch

        with torch.no_grad():
            return function(*inputs)

    return run


def measure(wanted: str) -> dict[str, float]:
    """Milliseconds of each case with `wanted` in its name: the median of three calls and of what else fits the time."""
    found = {}
    for name, run in cases():
        if wanted not in name:
            continue
        run()
        times: list[float] = []
        begin = time.perf_counter()
        while len(times) < 3 or (time.perf_counter() - begin < SECONDS and len(times) < 2000):
            start = time.perf_counter()
            run()
            times.append(1000 * (time.perf_counter() - start))
        found[name] = statistics.median(times)
    return found


def one_turn(tree: Path, wanted: str) -> dict[str, float]:
    """`measure` on the packages of a tree, by the cases of this one."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tree), str(HERE)])}
    command = [sys.executable, str(HERE / "turns.py"), "--measure", "--cases", wanted]
    done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{tree} cannot be measured:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", nargs="?", type=Path, help="the other tree")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--cases", default="", help="only cases with this text in their name")
    parser.add_argument("--json", type=Path, help="file for the milliseconds of every turn")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.cases)))
        return 0
    if options.old is None or options.turns < 2:
        parser.error("name the old tree, and at least two turns")

    new, old = HERE.parent, options.old.resolve()
    turns: list[dict[str, dict[str, float]]] = []
    for turn in range(options.turns):
        order = [("old", old), ("new", new)][:: 1 if turn % 2 == 0 else -1]
        turns.append({name: one_turn(tree, options.cases) for name, tree in order})
        if not turns[0]["new"]:
            parser.error(f'no case has "{options.cases}" in its name')
        print(f"turn {turn + 1} of {options.turns}", file=sys.stderr, flush=True)
        if options.json:
            options.json.write_text(json.dumps(turns, indent=1), encoding="utf-8")

    slower = []
    print(f"{'case':<48} {'old ms':>10} {'new ms':>10}  new / old")
    for name in turns[0]["old"]:
        before, after = ([turn[tree][name] for turn in turns] for tree in ("old", "new"))
        mean, low, high = interval([b / a for a, b in zip(before, after, strict=True)])
        verdict = "  SLOWER" if low > SLOWER else ""
        medians = f"{statistics.median(before):>10.3f} {statistics.median(after):>10.3f}"
        print(f"{name:<48} {medians}  {mean:.3f} [{low:.3f}, {high:.3f}]{verdict}")
        if verdict:
            slower.append(name)
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
