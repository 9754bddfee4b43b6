"""Every command that writes, sent a signal at points drawn by a seed; and its output's reader gone."""

import random
import shutil
import signal
from typing import Any

from counts import Counts
from kills import WORKS, Undisturbed, Work, after_a_kill, drawn, rerun, usual_of
from scene import Scene, run_in
from server import Server, Servers, Stop
from spoken import problems_of
from trees import differences, left_over, tree_of

COUNT = 6
"""Signals at each command in full."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGTERM, signal.SIGINT)
AT_A_TIME = 0.3


def one_signal(
    server: Server, scene: Scene, work: Work, usual: Undisturbed, number: signal.Signals, draw: random.Random
) -> tuple[str, list[str]]:
    """Send a signal to a work once, and let it run again. Returns how ("" if it ended before), and what was wrong."""
    if draw.random() < AT_A_TIME:
        seconds = draw.uniform(0.1, 1.0) * usual.outcome.seconds
        how = f"after {seconds:.2f} s"
        asked: dict[str, Any] = {"timers": [[seconds, int(number)]]}
    else:
        stop = Stop("signal", draw.randint(1, usual.outcome.events), int(number))
        how = f"at change {stop.at} of {usual.outcome.events}"
        asked = {"stop": stop}

    folder = scene.case(work.parts)
    ended = run_in(server, folder, *work.arguments, **asked)
    if ended.log:
        how += f" ({' '.join(ended.log[-1][1:3])})".replace(f"{folder}/", "")

    if number == signal.SIGPIPE or ended.code == usual.outcome.code:
        # It came behind the end. One of SIGPIPE changes nothing.
        problems = [] if ended.code == usual.outcome.code else [f"it ended with {ended.code}"]
        problems += differences(usual.after, tree_of(folder))
        if number != signal.SIGPIPE and not problems:
            how = ""
    else:
        problems = problems_of(ended, usual.outcome.lines)
        if ended.code != 128 + number:
            problems.append(f"exit code {ended.code} instead of {128 + number}")
        problems += left_over(tree_of(folder))
        problems += after_a_kill(folder, work, usual)
        problems += rerun(server, folder, work, usual)
        problems += [f"after the rerun: {line}" for line in differences(usual.after, tree_of(folder))]

    if not problems:
        shutil.rmtree(folder)
    return how, problems


def reader_gone(server: Server, scene: Scene, work: Work, usual: Undisturbed) -> list[str]:
    """`command | head -1`: it does its work to the end, and says of it one line at most."""
    folder = scene.case(work.parts)
    ended = run_in(server, folder, *work.arguments, stdout="head")
    problems = [] if ended.code in (usual.outcome.code, 141) else [f"it ended with {ended.code}"]
    said = [line for line in ended.lines if line not in usual.outcome.lines]
    problems += problems_of(ended, usual.outcome.lines, lines=min(1, len(said)))
    problems += differences(usual.after, tree_of(folder))
    if not problems:
        shutil.rmtree(folder)
    return problems


def run(seed: int, count: int = COUNT, *, servers: Servers, scene: Scene, only: str = "") -> Counts:
    """Send each work `count` signals."""
    counts = Counts("signals")
    works = [work for work in WORKS if only in work.name]
    usual = usual_of(servers, scene, works)

    def one(server: Server, job: tuple[Work, int]) -> None:
        work, number = job
        sent = SIGNALS[number % len(SIGNALS)]
        how, problems = drawn(
            f"{seed} {work.name} {number}", lambda draw: one_signal(server, scene, work, usual[work.name], sent, draw)
        )
        counts.add(f"{sent.name} at {work.name}", problems, f"seed {seed}, number {number}: {how}")

    servers.map(one, [(work, number) for number in range(count) for work in works])
    servers.map(
        lambda server, work: counts.add(
            f"| head of {work.name}", reader_gone(server, scene, work, usual[work.name]), " ".join(work.arguments[:2])
        ),
        works,
    )
    return counts
