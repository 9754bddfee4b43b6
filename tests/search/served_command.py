"""The command serve in a process of its own."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from served_library import Client

ROOT = Path(__file__).resolve().parent.parent.parent
STARTS = re.compile(
    r"(?P<name>.*): (?P<moments>\d+) moments at http://127\.0\.0\.1:(?P<port>\d+)/ \(Ctrl-C ends it\)\n"
)
PATIENCE = 240
"""Seconds after which it is killed; it imports torch, which a busy machine may take a minute for."""


@dataclass
class Served:
    """A server that runs."""

    process: "subprocess.Popen[str]"
    client: Client
    said: "re.Match[str]"
    """Its first line."""

    def end(self, number: int = signal.SIGINT) -> tuple[int, str]:
        """Send a signal; the exit code, and what was said on standard error."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, errors


@contextmanager
def served(library: Path, *arguments: object) -> Iterator[Served]:
    """Start `emcl-train serve` on a free port; it is killed at the end, if it still runs."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "emcl_train", "serve", str(library), "--port", "0", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        said = STARTS.fullmatch(line)
        assert said is not None, f"serve has said {line!r} and {process.stderr.read()!r}"
        yield Served(process, Client(int(said["port"])), said)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
