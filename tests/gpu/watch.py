"""Run a command that may crash, hang or lose the GPU, and see it through."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any


def run_watched(command: list[str], progress: Path, silence: float, **options: Any) -> int | None:
    """Run a command until it ends, or until the file `progress` has not been written for `silence` seconds.

    Returns: the exit code (negative: the signal that ended it), or None where it was silent and was killed. What it
        started and left behind is killed in any case.
    """
    # a group of its own to be killed, in the session of its parent to be ended with it
    group = {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}
    process = subprocess.Popen(command, **group, **options)
    written, since = _written(progress), time.monotonic()
    try:
        while process.poll() is None:
            time.sleep(0.1)
            if (now := _written(progress)) != written:
                written, since = now, time.monotonic()
            elif time.monotonic() - since > silence:
                return None
        return process.returncode
    finally:
        with suppress(ProcessLookupError):  # nothing is left of it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _written(file: Path) -> int:
    return file.stat().st_mtime_ns if file.exists() else 0
