"""One changed bit in each file that commands read: it is noticed and the file named, or it changes no figure.

Of a run, of the state that a run goes on from, of features, of the cache, and of what refine wrote. What is noticed is
an error, or a remark, that has the file's name. "No figure" means that what the command writes is the same.

Text has no checksums: people may edit it. A flip after which it can still be read as what it was is such an edit, and
is counted in a line of its own, where other figures are right.
"""

import json
import random
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from counts import Counts
from scene import TRAIN, Scene, run_in
from server import Outcome, Server, Servers
from spoken import INSIDE
from trees import Tree, tree_of

COUNT = 4
"""Flips of each file by each command in full."""


@dataclass(frozen=True)
class Reading:
    """Commands that read a folder."""

    name: str
    parts: tuple[str, ...]
    flipped: str
    """The folder whose files are changed."""
    files: str
    """Pattern of those that the commands read."""
    commands: tuple[tuple[str, ...], ...]
    figures: str
    """Pattern of the files that hold what they find."""
    prepare: tuple[tuple[str, ...], ...] = ()
    """Commands before the flip."""


OF_TRAINING = r"(config|environment|clip_config|tokenizer|finished|checksums)\.json|metrics\.jsonl|model\.safetensors"
BINARY = r".*\.(safetensors|pt|npy)"
READINGS = [
    Reading("eval", ("set", "run"), "run", OF_TRAINING, (("eval", "run", "--out", "out"),),
            r"out/(results|queries)\.json|out/embeddings\.safetensors"),
    Reading("report", ("set", "run"), "run",
            OF_TRAINING + r"|results\.json|queries\.json|embeddings\.safetensors",
            (("report", "run", "--json", "out.json"),), r"out\.json"),
    Reading("verify", ("run",), "run", BINARY, (("verify", "run"),), r"nothing"),
    Reading("verify of features", ("features",), "features", BINARY, (("verify", "features"),), r"nothing"),
    Reading("verify of what refine wrote", ("refined",), "refined", BINARY, (("verify", "refined"),), r"nothing"),
    Reading("verify of a cache", ("set",), "cache", BINARY, (("verify", "cache"),), r"nothing",
            ((*TRAIN, "--out", "first", "--train.max-steps", "2"),)),
    Reading("export", ("run",), "run", OF_TRAINING, (("export", "run", "out.safetensors", "--layout", "clip4clip"),),
            r"out\.safetensors"),
    Reading("resume", ("set", "half"), "half", r"(?!report).*", ((*TRAIN, "--out", "half", "--resume"),),
            r"half/(results|queries)\.json|half/(embeddings|model)\.safetensors|half/metrics\.jsonl"),
    Reading("train from features", ("set", "features"), "features", r".*",
            ((*TRAIN, "--from-features", "features", "--out", "out"),),
            r"out/(results|queries)\.json|out/(embeddings|model)\.safetensors|out/metrics\.jsonl"),
    Reading("cache", ("set",), "cache", r".*", ((*TRAIN, "--out", "out", "--train.max-steps", "2"),),
            r"out/(results|queries)\.json|out/(embeddings|model)\.safetensors|out/metrics\.jsonl",
            ((*TRAIN, "--out", "first", "--train.max-steps", "2"),)),
    Reading("refine over what was flipped", ("text.npy", "video.npy", "refined"), "refined", r".*",
            (("refine", "text.npy", "video.npy", "--out", "refined", "--paired"),), r"refined/.*"),
]  # fmt: skip


def flip(path: Path, draw: random.Random) -> str:
    """Change one bit of a file that is not empty. Returns where."""
    data = bytearray(path.read_bytes())
    place, bit = draw.randrange(len(data)), draw.randrange(8)
    data[place] ^= 1 << bit
    path.write_bytes(data)
    return f"bit {bit} of byte {place} of {len(data)}"


def prepared(server: Server, scene: Scene, reading: Reading) -> Path:
    folder = scene.case(reading.parts)
    for arguments in reading.prepare:
        run_in(server, folder, *arguments)
    return folder


def figures_of(folder: Path, reading: Reading, outcomes: Sequence[Outcome]) -> Tree:
    """What was written, and printed."""
    written = {name: value for name, value in tree_of(folder).items() if re.fullmatch(reading.figures, name)}
    return written | {str(number): outcome.out for number, outcome in enumerate(outcomes)}


def is_an_edit(path: Path) -> bool:
    """Whether a file is text that can still be read."""
    lines = path.read_bytes().splitlines() if path.suffix == ".jsonl" else [path.read_bytes()]
    try:
        return path.suffix in (".json", ".jsonl") and all(json.loads(line) is not None for line in lines)
    except ValueError:
        return False


def read_all(server: Server, folder: Path, reading: Reading) -> list[Outcome]:
    return [run_in(server, folder, *arguments) for arguments in reading.commands]


def one_flip(
    server: Server, scene: Scene, reading: Reading, name: str, figures: Tree, draw: random.Random
) -> tuple[str, bool, list[str]]:
    """Flip a bit of a file, and read it. Returns where it was, whether that is an edit of text, and what was wrong."""
    folder = prepared(server, scene, reading)
    path = next(iter(folder.glob(f"{reading.flipped}/{name}")))
    how = flip(path, draw)
    edit = is_an_edit(path)

    problems = []
    outcomes = read_all(server, folder, reading)
    said = "".join(outcome.err + outcome.out for outcome in outcomes)
    for outcome in outcomes:
        if outcome.code not in (0, 1):
            problems.append(f"it ended with {outcome.code}")
        if INSIDE.search(outcome.err):
            problems.append(f"a traceback, which ends in {outcome.lines[-1]!r}")
    if not problems and path.name not in said:
        if edit:
            pass  # refused for a name or a value in it, or taken as it is
        elif any(outcome.code for outcome in outcomes):
            problems.append(f"refused without the name of the file: {outcomes[-1].lines[-1:]}")
        elif reading.name.startswith("verify") or figures_of(folder, reading, outcomes) != figures:
            problems.append("other figures, and not a word")
    if not problems:
        shutil.rmtree(folder)
    return how, edit, problems


def files_of(folder: Path, reading: Reading) -> list[str]:
    """What a reading reads: patterns below its folder, since a part of the cache's path depends on the case."""
    found = []
    for path in sorted((folder / reading.flipped).rglob("*")):
        name = str(path.relative_to(folder / reading.flipped))
        if path.is_file() and path.stat().st_size and re.fullmatch(reading.files, name):
            found.append(re.sub(r"^emcl/[0-9a-f]{16}/", "emcl/*/", name))
    return found


def run(seed: int, count: int = COUNT, *, servers: Servers, scene: Scene, only: str = "", most: int = 0) -> Counts:
    """Flip `count` bits of each file for each command that reads it; or `most` in all."""
    counts = Counts("flips")
    readings: Sequence[Reading] = [reading for reading in READINGS if only in reading.name]

    def usual(server: Server, reading: Reading) -> tuple[list[str], Tree]:
        folder = prepared(server, scene, reading)
        names = files_of(folder, reading)
        outcomes = read_all(server, folder, reading)
        if any(outcome.code for outcome in outcomes):
            counts.add(f"flips before {reading.name}", [outcomes[-1].err or "it failed"], "before any flip")
            names = []
        figures = figures_of(folder, reading, outcomes)
        shutil.rmtree(folder)
        return names, figures

    known = servers.map(usual, readings)

    def one(server: Server, job: tuple[Reading, str, Tree, int]) -> None:
        reading, name, figures, number = job
        draw = random.Random(f"{seed} {reading.name} {name} {number}")
        how, edit, problems = one_flip(server, scene, reading, name, figures, draw)
        kind = "flips that edit text, with no traceback" if edit else f"flips before {reading.name}"
        counts.add(kind, problems, f"{name} before {reading.name}, seed {seed}, number {number}: {how}")

    jobs = [
        (reading, name, figures, number)
        for number in range(count)
        for reading, (names, figures) in zip(readings, known, strict=True)
        for name in names
    ]
    if most:
        jobs = random.Random(seed).sample(jobs, min(most, len(jobs)))
    servers.map(one, jobs)
    return counts
