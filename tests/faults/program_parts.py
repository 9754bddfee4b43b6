"""Faults around the training program: kills, signals, bad disks, changed bytes, files from strangers, hostile reports.

All of them run commands in children of one process that has imported everything (`server`), in copies of one small
scene (`scene`), which the first part makes.
"""

import atexit
import functools
import importlib
import os
from collections.abc import Iterator
from typing import Any

from parts import Part, Size, Tried

# How much of each part is tried: in continuous integration, and by hand.
PARTS_AND_TURNS: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("kills", "every command that writes, killed at drawn points, and run again", {"count": 1}, {"count": 20}),
    ("signals", "the same commands, interrupted", {"count": 1}, {"count": 6}),
    ("disks", "the same commands on disks that are full, small, broken, or to be read only",
     {"count": 1}, {"count": 10}),
    ("flips", "one changed bit in each file that commands read", {"count": 4, "most": 24}, {"count": 4}),
    ("strangers", "files from strangers: weights, configurations, tokenizers, annotations, pickles, videos",
     {"share": 0.06}, {"share": 1.0}),
    ("reports", "runs whose texts want to write into the page", {"leaves": 6}, {"leaves": 60}),
]  # fmt: skip


@functools.cache
def stage(jobs: int) -> dict[str, Any]:
    """The servers and the scene, made once a run."""
    from scene import Scene
    from server import Servers

    servers = Servers(jobs)
    scene = Scene(servers.one)
    if not os.environ.get("EMCL_FAULTS_KEEP"):
        atexit.register(scene.close)
    atexit.register(servers.close)
    return {"servers": servers, "scene": scene}


def part_of(name: str, about: str, short: dict[str, Any], whole: dict[str, Any]) -> Part:
    """A part whose turns are those of the module of its name."""

    def turns(size: Size) -> Iterator[Tried]:
        run = importlib.import_module(name).run
        only = os.environ.get("EMCL_FAULTS_ONLY", "")
        counts = run(size.seed, **(short if size.short else whole), **stage(size.jobs), only=only)
        for kind, number in counts.tries.items():
            yield Tried(number, kind, [failure for failure in counts.failures if failure.startswith(f"{kind}; ")])

    return Part(name, about, turns)


PARTS = tuple(part_of(*turns) for turns in PARTS_AND_TURNS)
