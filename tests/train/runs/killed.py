"""A process that is killed at each step that others can see, one after the other: before a name changes, and after."""

import ctypes
import os
import signal
from collections.abc import Callable, Iterator

import pytest
import torch

STEPS = ("replace", "rename", "unlink", "link", "rmdir", "mkdir")
"""Calls of `os` by which names come and go; `renameat2` is counted too, and what is built on these."""


def killed_at_each_step(work: Callable[[], object], *, first: int = 1) -> Iterator[int]:
    """Run some work in forked processes of which each is killed a step later, until one comes to its end.

    Args:
        work: what is done.
        first: the step to begin with.

    Yields:
        The number of the step before which the process was killed; what it left can be looked at.
    """
    step = first
    while True:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                torch.set_num_threads(1)  # the threads of the pool that torch has made are not in a forked process
                kill_at(step)
                work()
                code = 0
            finally:
                os._exit(code)
        status = os.waitpid(child, 0)[1]
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            return
        assert os.WTERMSIG(status) == signal.SIGKILL
        yield step
        step += 1


def kill_at(step: int) -> None:
    """Kill this process when it calls one of `STEPS` for the so-manieth time."""
    calls = 0

    def counted(original: Callable) -> Callable:
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return call

    # A forked process ends without having put anything back.
    patch = pytest.MonkeyPatch()
    for name in STEPS:
        patch.setattr(os, name, counted(getattr(os, name)))
    library = ctypes.CDLL(None, use_errno=True)
    if hasattr(library, "renameat2"):
        library.renameat2 = counted(library.renameat2)
    patch.setattr(ctypes, "CDLL", lambda *_, **__: library)
