"""Results for programs: `--json` of the commands that have one."""

import json as json_format
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from emcl_train.runs.files import as_json, write_json_atomic
from emcl_train.runs.lock import making
from emcl_train.terminal import print_whole, quiet_stderr

STDOUT = Path("-")
"""In place of a file: print the result, and what is said to people to stderr."""


def with_bare_json(arguments: list[str]) -> list[str]:
    """The arguments with `--json -` where `--json` stands alone: at the end, or before another flag."""
    following = [*arguments[1:], "--"]
    found: list[str] = []
    for argument, after in zip(arguments, following, strict=False):
        found += [argument, str(STDOUT)] if argument == "--json" and after.startswith("--") else [argument]
    return found


@contextmanager
def json_result(path: Path | None) -> Iterator[Callable[[Any], None]]:
    """Take a command's result, and write it when the block has ended.

    Args:
        path: where to; None: nowhere.
    """
    results: list[Any] = []
    stdout = sys.stdout
    if path == STDOUT:
        with redirect_stdout(quiet_stderr()):
            yield results.append
    else:
        yield results.append
    if path is None or not results:
        return
    if path == STDOUT:
        print_whole(json_format.dumps(as_json(results[-1]), indent=1, ensure_ascii=False) + "\n", stdout)
    else:
        with making(path):
            write_json_atomic(path, results[-1])


@contextmanager
def json_file(path: Path | None) -> Iterator[Path | None]:
    """The same for a tool that writes its result to a file itself.

    Args:
        path: where to; None: nowhere.

    Yields:
        The file for the tool to write.
    """
    if path != STDOUT:
        yield path
        return
    stdout = sys.stdout
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        with redirect_stdout(quiet_stderr()):
            yield file
        if file.is_file():
            print_whole(file.read_text(encoding="utf-8").rstrip("\n") + "\n", stdout)
