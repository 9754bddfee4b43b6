"""Every command that writes, killed at points drawn by a seed: what is there then, and what a rerun makes of it.

One checker for all of them. After the kill each file under its own name is as it was before, or as the undisturbed
command has it at some time, and files that belong together are all old or all new. After the rerun the folder is that
of the undisturbed command, byte for byte and name for name, apart from what `trees.OF_THE_CLOCK` lists.
"""

import json
import random
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from counts import Counts
from scene import SHAPES, TRAIN, Scene, run_in
from server import Outcome, Server, Servers, Stop
from spoken import problems_of
from trees import Tree, content_of, differences, in_any_folder, is_temporary, size_of, tree_of

JOURNAL = ".changing.json"
COUNT = 20
"""Kills of each work in full."""
ATTEMPTS = 10
"""Draws until a work was stopped before its end."""
AT_A_TIME = 0.25
"""Share of kills at a random time instead of a random change of a file."""


@dataclass(frozen=True)
class Work:
    """A command that writes."""

    name: str
    parts: tuple[str, ...]
    """Of the scene, which it reads or writes over."""
    arguments: tuple[str, ...]
    resumes: str = ""
    """A file: where it is there, the command goes on with --resume."""
    together: tuple[str, ...] = ()
    """Patterns of paths: the files of each are all old or all new."""
    mark: str = ""
    """A file without which those that belong together count as unfinished, by every command that reads them."""
    reader: tuple[str, ...] = ()
    """A command that reads what this one writes: after every other kill it comes before the rerun."""


WORKS = [
    Work("shapes", (), ("data", "shapes", "set", *SHAPES)),
    Work("train", ("set",), (*TRAIN, "--out", "out"), "out/config.json", (r"out/.*",), "out/finished.json",
         ("report", "out")),
    Work(
        "seeds", ("set",), (*TRAIN, "--seeds", "2", "--out", "out"), "out",
        (r"out/seed-0/.*", r"out/seed-1/.*"), "finished.json", ("report", "out"),
    ),
    Work("eval", ("set", "run"), ("eval", "run", "--em-block", "4"),
         together=(r"run/evaluations/em-block-4/(?!report).*",), mark="results.json",
         reader=("report", "run/evaluations/em-block-4")),
    Work("eval again", ("set", "run"), ("eval", "run"), together=(r"run/(results|queries)\.json|run/embeddings.*",),
         reader=("report", "run")),
    Work("embed", ("set", "run"), ("embed", "run", "--out", "out"), together=(r"out/.*",)),
    Work("refine", ("text.npy", "video.npy"), ("refine", "text.npy", "video.npy", "--out", "out", "--paired"),
         together=(r"out/.*",)),
    Work("refine over an older one", ("text.npy", "video.npy", "refined"),
         ("refine", "text.npy", "video.npy", "--out", "refined", "--paired"), together=(r"refined/.*",)),
    Work("export", ("run",), ("export", "run", "out.safetensors", "--layout", "openai")),
    Work("export of a folder", ("run",), ("export", "run", "out", "--layout", "transformers"), together=(r"out/.*",)),
    Work("report", ("set", "run", "run2"), ("report", "run", "run2", "--json", "out.json")),
    Work("compress", ("videos",), ("data", "compress", "videos", "out", "--workers", "1")),
]  # fmt: skip


@dataclass
class Undisturbed:
    """What a work does when nobody disturbs it."""

    before: Tree
    after: Tree
    outcome: Outcome
    versions: dict[str, set[str]] = field(default_factory=dict)
    """Of each path: every content that took that name in one piece."""
    lines: dict[str, list[str]] = field(default_factory=dict)
    """Of each file that grows line by line: its lines in the end."""
    grown: int = 0
    """Bytes that it adds on a disk."""
    largest: int = 0
    """Bytes of the largest file in the end."""


def undisturbed(server: Server, scene: Scene, work: Work) -> Undisturbed:
    """Watch a work, and keep every file that takes its place."""
    folder = scene.case(work.parts)
    store = Path(f"{folder}.store")
    store.mkdir()
    before = tree_of(folder)
    size = size_of(folder)
    outcome = run_in(server, folder, *work.arguments, store=str(store))
    found = Undisturbed(before, tree_of(folder), outcome)
    if outcome.code not in (0, 1):
        raise RuntimeError(f"{work.name} ended with {outcome.code}: {outcome.out}{outcome.err}")

    for number, _, _, target in (line for line in outcome.log if line[1] in ("rename", "link")):
        if (kept := store / number).is_file():
            name = in_any_folder(str(Path(target).resolve().relative_to(folder.resolve())))
            found.versions.setdefault(name, set()).add(content_of(name, kept.read_bytes()))
    for path in folder.rglob("*.jsonl"):
        name = str(path.relative_to(folder))
        found.lines[name] = growing(path)

    found.grown = max(0, size_of(folder) - size)
    found.largest = max((path.stat().st_size for path in folder.rglob("*") if path.is_file()), default=0)

    shutil.rmtree(store)
    shutil.rmtree(folder)
    return found


def growing(path: Path) -> list[str]:
    """Lines of a file that grows, without times."""
    return [content_of(path.name, line) for line in path.read_bytes().splitlines()]


def after_a_kill(folder: Path, work: Work, usual: Undisturbed) -> list[str]:
    """What is wrong with what a killed command left."""
    found = changes_brought_about(folder, tree_of(folder))
    problems = []

    # Whole files under their own names, and none of those that were there before gone.
    for name in sorted(usual.before.keys() | usual.after.keys() | usual.versions.keys() | found.keys()):
        if is_temporary(name) or name.endswith("/"):
            continue
        if name in usual.lines and name in found:
            lines = growing(folder / name)
            if lines != usual.lines[name][: len(lines)]:
                problems.append(f"{name} has other lines than the undisturbed run")
            continue
        if name.startswith("cache/") and name.endswith(".json") and name in found:
            continue  # what is remembered of some clips is true without the others
        allowed = {usual.before.get(name), usual.after.get(name)} | usual.versions.get(name, set())
        if name not in usual.before:
            allowed.add(None)
        if name not in found and None not in allowed:
            problems.append(f"{name} is lost")
        elif found.get(name) not in allowed:
            problems.append(f"{name} is neither old nor new")

    # What belongs together.
    for pattern in work.together:
        names = [name for name in usual.before | usual.after | found if re.fullmatch(pattern, name)]
        names = [name for name in names if not is_temporary(name) and usual.before.get(name) != usual.after.get(name)]
        new = [name for name in names if found.get(name) == usual.after.get(name)]
        old = [name for name in names if found.get(name) == usual.before.get(name)]
        if len(new) == len(names) or len(old) == len(names):
            continue
        if work.mark and not any(name.endswith(work.mark) for name in new):
            continue
        problems.append(f"mixed: {', '.join(new)} new beside {', '.join(sorted(set(names) - set(new)))}")
    return problems


def changes_brought_about(folder: Path, found: Tree) -> Tree:
    """A folder as the next command takes it: changes of several files that a journal says are done.

    See docs/design/what-belongs-together.md; this is what it promises, and not the program's own code.
    """
    found = dict(found)
    for path in folder.rglob(JOURNAL):
        inside = path.parent.relative_to(folder)
        journal = json.loads(path.read_text())
        for partial, name in journal["renamed"].items():
            if (path.parent / partial).exists():
                target = (inside / name).as_posix()
                found[target] = content_of(target, (path.parent / partial).read_bytes())
        for name in journal["removed"]:
            found.pop((inside / name).as_posix(), None)
    return found


def go_on(server: Server, folder: Path, work: Work) -> Outcome:
    """The same command again; with --resume where it goes on by that."""
    plain = list(work.arguments)
    resumed = [*plain, "--resume"]
    if not work.resumes:
        return run_in(server, folder, *plain)

    first, second = (resumed, plain) if (folder / work.resumes).exists() else (plain, resumed)
    outcome = run_in(server, folder, *first)
    if outcome.code == 1 and "--resume" in outcome.err:  # what the message says
        outcome = run_in(server, folder, *second)
    return outcome


def rerun(server: Server, folder: Path, work: Work, usual: Undisturbed) -> list[str]:
    """What is wrong with how the same command ends where it was ended before; one that was done may refuse."""
    again = go_on(server, folder, work)
    if again.code == usual.outcome.code or "exists already" in again.err:
        return []
    return [f"the rerun ended with {again.code}: {' | '.join(again.lines[-3:])}"]


def one_kill(
    server: Server, scene: Scene, work: Work, usual: Undisturbed, draw: random.Random
) -> tuple[str, list[str]]:
    """Kill a work once, and let it run again. Returns how it was killed ("" if it ended before), and what was wrong."""
    if draw.random() < AT_A_TIME:
        seconds = draw.uniform(0.0, usual.outcome.seconds)
        how = f"after {seconds:.2f} s"
        asked: dict[str, Any] = {"timers": [[seconds, signal.SIGKILL]]}
    else:
        stop = Stop(draw.choice(("kill-before", "kill-torn", "kill-after")), draw.randint(1, usual.outcome.events))
        how = f"{stop.action} change {stop.at} of {usual.outcome.events}"
        asked = {"stop": stop}

    folder = scene.case(work.parts)
    killed = run_in(server, folder, *work.arguments, **asked)
    if not killed.was_killed:
        shutil.rmtree(folder)
        return "", []
    if killed.log:
        _, what, path, other = killed.log[-1]
        how += f" ({what} {' to '.join(str(Path(p).name) for p in (path, other) if p)})"

    problems = after_a_kill(folder, work, usual)
    if work.reader and draw.random() < 0.5:
        read = run_in(server, folder, *work.reader)
        problems += [
            f"{work.reader[0]} after the kill: {line}" for line in problems_of(read, lines=read.code, way_on=False)
        ]
    problems += rerun(server, folder, work, usual)
    problems += [f"after the rerun: {line}" for line in differences(usual.after, tree_of(folder))]
    if not problems:
        shutil.rmtree(folder)
    return how, problems


def usual_of(servers: Servers, scene: Scene, works: list[Work]) -> dict[str, Undisturbed]:
    """What works do undisturbed, by their names; watched once for all parts."""
    known: dict[str, Undisturbed] = scene.known
    unknown = [work for work in works if work.name not in known]
    watched = servers.map(lambda server, work: undisturbed(server, scene, work), unknown)
    known.update(zip([work.name for work in unknown], watched, strict=True))
    return known


def drawn(seed: str, once: Callable[[random.Random], tuple[str, list[str]]]) -> tuple[str, list[str]]:
    """What `once` tells of the first draw that it could carry out: a drawn time may lie behind the end."""
    how, problems = "", list[str]()
    for attempt in range(ATTEMPTS):
        how, problems = once(random.Random(f"{seed} {attempt}"))
        if how:
            break
    return how, problems


def run(seed: int, count: int = COUNT, *, servers: Servers, scene: Scene, only: str = "") -> Counts:
    """Kill every work `count` times."""
    counts = Counts("kills")
    works = [work for work in WORKS if only in work.name]
    usual = usual_of(servers, scene, works)

    def one(server: Server, job: tuple[Work, int]) -> None:
        work, number = job
        how, problems = drawn(
            f"{seed} {work.name} {number}", lambda draw: one_kill(server, scene, work, usual[work.name], draw)
        )
        counts.add(f"kills of {work.name}", problems, f"seed {seed}, number {number}: {how}")

    servers.map(one, [(work, number) for number in range(count) for work in works])
    return counts
