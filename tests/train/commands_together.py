"""Commands one after another in each of several processes, which join once: starting them takes the longest.

As a script: `torchrun --nproc-per-node 2 commands_together.py FOLDER`, with the commands' arguments in
FOLDER/commands.json. Process r leaves FOLDER/done-r.json with what became of each, and what this process did for it.
"""

import io
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from emcl_train import cli, processes
from emcl_train.data import loader
from emcl_train.models.clip import CLIPTowers
from emcl_train.processes import joined, leave, rank_and_world
from emcl_train.tools import compress, doctor


def counted(done: dict[str, int], owner: Any, name: str, kind: str, number: Callable[..., int]) -> None:
    """Count what a function is given, from now on."""
    real = getattr(owner, name)
    done[kind] = 0

    def function(*arguments: Any, **named: Any) -> Any:
        done[kind] += number(*arguments, **named)
        return real(*arguments, **named)

    setattr(owner, name, function)


def run(arguments: list[str], done: dict[str, int]) -> dict[str, Any]:
    """What becomes of a command."""
    done.update(dict.fromkeys(done, 0))
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = cli.main(arguments)
    return {"code": code, "out": out.getvalue(), "err": err.getvalue(), "done": dict(done)}


def main(folder: Path) -> None:
    done: dict[str, int] = {}
    counted(done, loader, "decode_clip", "decoded", lambda *_, **__: 1)
    counted(done, doctor, "check_packets", "examined", lambda *_, **__: 1)
    counted(done, compress, "compress_video", "copied", lambda *_, **__: 1)
    counted(done, CLIPTowers, "encode_frames", "clips", lambda self, frames, *_: len(frames))
    counted(done, CLIPTowers, "encode_text", "texts", lambda self, input_ids, *_, **__: len(input_ids))
    cli.FOR_THE_FIRST = 0.0

    commands = json.loads((folder / "commands.json").read_text())
    with joined():
        processes.joined = nullcontext
        found = [run(arguments, done) for arguments in commands]
        (folder / f"done-{rank_and_world()[0]}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave()
