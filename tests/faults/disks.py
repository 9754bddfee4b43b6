"""Every command that writes on a disk that gets full, fails, or can only be read.

Three ways, because each sees what the others do not. A tmpfs of a few kilobytes is a real full disk, where a write into
a hole of a mapped file kills the process; it needs the right to mount (in a namespace of the command alone). The n-th
change of a file that fails (stopper.c) reaches every point, and errors that no small disk gives: EIO, EDQUOT, ESTALE.
A limit on the size of files stands for a disk where nothing can be mounted.
"""

import errno
import random
import shutil
from pathlib import Path
from typing import Any

from counts import Counts
from kills import WORKS, Undisturbed, Work, after_a_kill, rerun, usual_of
from scene import Scene, environment_of
from server import Outcome, Server, Servers, Stop
from spoken import problems_of
from trees import PAGE, differences, is_temporary, left_over, size_of, tree_of

COUNT = 10
"""Tries of each work in full."""
KINDS = ("small disk", "full", "full", "failing once", "small disk", "quota", "read-only disk", "failing", "/dev/full",
         "limit")  # fmt: skip
ERRORS = (errno.EIO, errno.EACCES, errno.ESTALE, errno.EMFILE)


def draw_a_try(
    kind: str, folder: Path, usual: Undisturbed, collect: Path, draw: random.Random
) -> tuple[str, dict[str, Any]]:
    """How a disk fails: in words, and as arguments of `run_in`."""
    events = usual.outcome.events
    at = draw.randint(1, events)
    if kind == "small disk":
        size = size_of(folder) + PAGE * draw.randint(0, max(1, usual.grown // PAGE - 1))
        return f"{size} bytes", {"disk": {"folder": str(folder), "options": f"size={size}", "collect": str(collect)}}
    if kind == "read-only disk":
        disk = {"folder": str(folder), "options": "size=64m", "collect": str(collect), "read_only": "yes"}
        return "nothing can be written", {"disk": disk}
    if kind in ("full", "quota"):
        code = errno.ENOSPC if kind == "full" else errno.EDQUOT
        return f"{errno.errorcode[code]} from change {at} of {events} on", {"stop": Stop("fail-on", at, code)}
    if kind == "failing":
        return f"EROFS from change {at} of {events} on", {"stop": Stop("fail-on", at, errno.EROFS)}
    if kind == "failing once":
        code = draw.choice(ERRORS)
        return f"{errno.errorcode[code]} at change {at} of {events}", {"stop": Stop("fail-once", at, code)}
    if kind == "/dev/full":
        return "stdout is /dev/full", {"stdout": "/dev/full"}
    size = draw.randint(PAGE, max(PAGE, usual.largest))  # what is said on stderr goes into a file too
    return f"files of at most {size} bytes", {"limits": {"FSIZE": size}}


def one_try(
    server: Server, scene: Scene, work: Work, usual: Undisturbed, kind: str, draw: random.Random
) -> tuple[str, list[str]]:
    """One work on one bad disk. Returns how ("" where it made no difference), and what was wrong."""
    folder = scene.case(work.parts)
    collect = Path(f"{folder}.collected")
    cache = Path(f"{folder}.cache")  # without it a run goes on, and says so: not what is asked here
    cache.mkdir()
    how, asked = draw_a_try(kind, folder, usual, collect, draw)
    environment = environment_of(folder) | {"XDG_CACHE_HOME": str(cache)}
    ended = server.run(work.arguments, folder, environment=environment, **asked)
    if collect.is_dir():
        shutil.rmtree(folder)
        collect.rename(folder)
    (folder / "cache").mkdir(exist_ok=True)

    lasts = kind in ("failing", "read-only disk")
    expected = {name: value for name, value in usual.after.items() if not name.startswith("cache/")}
    there = without_cache(folder)
    if kind == "/dev/full":
        problems = of_a_full_output(ended, usual, work) + differences(expected, there)
    elif ended.code == usual.outcome.code and not differences(expected, but_for_notes(there) if lasts else there):
        how, problems = "", []  # it fitted, or what failed was not needed
    else:
        problems = problems_of(ended, usual.outcome.lines)
        if ended.code != 1:
            problems.append(f"exit code {ended.code} instead of 1")
        if not lasts:
            problems += left_over(there)
        problems += [line for line in after_a_kill(folder, work, usual) if "cache/" not in line]
        problems += rerun(server, folder, work, usual)
        problems += [f"after the rerun: {line}" for line in differences(expected, without_cache(folder))]

    shutil.rmtree(cache)
    if not problems:
        shutil.rmtree(folder)
    return how, problems


def but_for_notes(there: dict[str, str]) -> dict[str, str]:
    """Without notes and old files: a command that is done cannot take its own away where nothing can be removed."""
    return {name: value for name, value in there.items() if not is_temporary(name)}


def without_cache(folder: Path) -> dict[str, str]:
    return {name: value for name, value in tree_of(folder).items() if not name.startswith("cache/")}


def of_a_full_output(ended: Outcome, usual: Undisturbed, work: Work) -> list[str]:
    """Work is done, and then one line says that not all could be printed, if there was something to print.

    A training whose log is lost is whole without it, and its exit code says so (docs/cli.md).
    """
    problems = problems_of(ended, usual.outcome.lines, lines=1 if usual.outcome.out else 0)
    if not usual.outcome.out or work.arguments[0] == "train":
        return problems + ([f"exit code {ended.code} instead of 0"] if ended.code != 0 else [])
    if ended.code <= 0 or ended.code > 127:
        problems.append(f"exit code {ended.code}, as if all had been printed")
    return problems


def can_mount(server: Server, scene: Scene) -> bool:
    """Whether a small disk can be had here."""
    folder = scene.case(())
    collect = Path(f"{folder}.collected")
    disk = {"folder": str(folder), "options": "size=64k", "collect": str(collect)}
    found = server.run([], folder, disk=disk, program="import os; os.write(1, b'here')")
    return found.code == 0 and found.out == "here"


def run(seed: int, count: int = COUNT, *, servers: Servers, scene: Scene, only: str = "") -> Counts:
    """Let each work meet `count` bad disks."""
    counts = Counts("disks")
    works = [work for work in WORKS if only in work.name]
    usual = usual_of(servers, scene, works)
    mounts = can_mount(servers.one, scene)

    def one(server: Server, job: tuple[Work, int]) -> None:
        work, number = job
        kind = KINDS[number % len(KINDS)]
        if not mounts and kind in ("small disk", "read-only disk"):
            kind = "limit" if kind == "small disk" else "failing"
        how = ""
        problems: list[str] = []
        for attempt in range(10):
            draw = random.Random(f"{seed} {work.name} {number} {attempt}")
            how, problems = one_try(server, scene, work, usual[work.name], kind, draw)
            if how or problems:
                break
        counts.add(f"disk: {kind}", problems, f"{work.name}, seed {seed}, number {number}: {how}")

    servers.map(one, [(work, number + place) for number in range(count) for place, work in enumerate(works)])
    return counts
