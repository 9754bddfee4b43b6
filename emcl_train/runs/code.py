"""What a run was started with: the command, the day, the processor, and the code. Nothing here needs torch."""

import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout, if the package is not installed without one."""
OF_THE_START = ("command", "started", "commit", "processor")
"""What environment.json has of a run's first start, whatever it went on with."""
PATIENCE = 10.0
"""Seconds for git."""


def command_line(arguments: Sequence[str] | None = None) -> str:
    """The command that was typed, as a shell takes it, without the folder that the program lies in."""
    program, *rest = sys.argv if arguments is None else arguments
    path = Path(program)
    names = ["python", "-m", path.parent.name] if path.name == "__main__.py" else [path.name or "python"]
    return shlex.join([*names, *rest])


def now() -> str:
    """The time, to the second, in UTC."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def processor() -> str:
    """What the processor calls itself; its kind, where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine() or "unknown"


def commit(root: Path = ROOT) -> str | None:
    """The commit of the checkout that the code runs from, with "+" if files were changed since; None: no checkout.

    Args:
        root: the folder of the package's folder.
    """
    if not (root / ".git").exists():
        return None  # a repository around it is somebody else's
    try:
        head = _git(root, "rev-parse", "--short=10", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "--no-optional-locks", "-C", str(root), *arguments],
        capture_output=True, text=True, check=True, timeout=PATIENCE,
    )  # fmt: skip
    return done.stdout.strip()
