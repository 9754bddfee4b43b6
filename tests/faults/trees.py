"""Folders as they were at one time, and whether two of them say the same.

What a command writes is compared byte for byte, apart from what `OF_THE_CLOCK` lists.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from emcl_train.runs.code import OF_THE_START
from emcl_train.runs.records import MEASURED

PAGE = 4096
"""What a file takes on a disk is a multiple of it."""

Tree = dict[str, str]
"""Of each file below a folder, by its path there: what is compared. Of an empty folder, its path with a slash: ""."""


def _without_measures(data: bytes) -> bytes:
    lines = []
    for line in data.split(b"\n"):
        try:
            record = json.loads(line)
        except ValueError:
            lines.append(line)
            continue
        if isinstance(record, dict):
            for name in MEASURED:
                record.pop(name, None)
        lines.append(json.dumps(record).encode())
    return b"\n".join(lines)


def _without_start(data: bytes) -> bytes:
    """environment.json of a run that went on: the command and the time of its start are others."""
    try:
        record = json.loads(data)
    except ValueError:
        return data
    if not isinstance(record, dict):
        return data
    return json.dumps({name: value for name, value in record.items() if name not in OF_THE_START}).encode()


def _without_origin(data: bytes) -> bytes:
    return re.sub(rb'<dl class="origin">.*?</dl>', b"", data, flags=re.DOTALL)


OF_THE_CLOCK: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    r"(.*/)?metrics\.jsonl": (_without_measures, "each step has what it took of time and memory"),
    r"(.*/)?environment\.json": (_without_start, "it has the command and the time of the start"),
    r"(.*/)?report\.html": (_without_origin, "so has its head"),
    r"cache/(.*/)?data-set\.txt": (lambda data: b"", "it names the folder of the data set, which each trial has anew"),
}
"""By the path of a file: what takes the time out of it, and why there is one."""


def content_of(name: str, data: bytes) -> str:
    """What is compared of a file."""
    for pattern, (without, _) in OF_THE_CLOCK.items():
        if re.fullmatch(pattern, name):
            data = without(data)
    return hashlib.sha256(data).hexdigest()


def tree_of(folder: Path) -> Tree:
    """A folder as it is now."""
    tree: Tree = {}
    for place, folders, files in os.walk(folder):
        inside = Path(place).relative_to(folder)
        for name in files:
            path = Path(place) / name
            shown = in_any_folder((inside / name).as_posix())
            if path.is_symlink():
                tree[shown] = f"link to {os.readlink(path)}"
            elif path.is_file():
                tree[shown] = content_of(shown, path.read_bytes())
            else:
                tree[shown] = "neither a file nor a folder"
        if not folders and not files and inside.parts:
            tree[in_any_folder(f"{inside.as_posix()}/")] = ""
    return tree


def in_any_folder(name: str) -> str:
    """A path without what depends on where the case lies: the cache of a data set is named for the data set's place."""
    return re.sub(r"^cache/emcl/[0-9a-f]{16}/", "cache/emcl/SET/", name)


def differences(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """What is missing, new and other in the second, one line each."""
    lines = [f"missing: {name}" for name in expected if name not in found]
    lines += [f"left over: {name}" for name in found if name not in expected]
    lines += [f"other: {name}" for name in expected if name in found and found[name] != expected[name]]
    return sorted(lines)


def size_of(folder: Path) -> int:
    """What a folder takes on a tmpfs."""
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in folder.rglob("*") if path.is_file())


def is_temporary(name: str) -> bool:
    """Whether a path is one of a file that is not whole yet."""
    return any(part.startswith(".") or part.endswith(".partial") for part in name.split("/"))


def left_over(names: Iterable[str]) -> list[str]:
    """Those of files that are not whole yet, and of notes on who writes; not what `data compress` goes on from."""
    return [f"left over: {name}" for name in names if is_temporary(name) and not name.endswith("/.compressed.jsonl")]


def copy_of(source: Path, target: Path) -> Path:
    """The same files with the same times."""
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)
    return target
