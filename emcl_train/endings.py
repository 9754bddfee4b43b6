"""How a command ends before its time: signals, and memory that is not there. docs/cli.md has the exit codes.

A signal that asks the process to end arrives as a KeyboardInterrupt, whichever it is: what is being written is cleared
away, and the command says in a sentence of its own what there is and how to go on.
"""

import errno
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from emcl_train.errors import UserError, causes

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C; what `kill`, batch systems and torchrun send; a terminal that was closed."""
AFTER_A_SIGNAL = 128
"""The exit code is this and the number of the signal, as shells have it: 130, 143, 129."""
ONE_WISH = 1.0
"""Seconds in which several signals are one wish."""
READER_GONE = AFTER_A_SIGNAL + signal.SIGPIPE
"""Exit code of a command whose output nobody read to its end, as in `| head`."""
WANT_OF_MEMORY = (
    "cannot allocate memory",
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "unable to allocate",
    "bad_alloc",
    "(os error 12)",
)
"""How torch, safetensors, the loader of libraries and the system say it, in small letters."""
WORKER_KILLED = "killed by signal: killed"
"""How torch says that the system ended a data worker, which it does for want of memory."""

NOTHING = "nothing was written; run the command again"

_received: int | None = None
_held_back = 0
"""Blocks of `held_back` that the main thread is in."""
_waiting: int | None = None
"""The signal that came inside one."""
_what_there_is: Callable[[], str] | None = None


class Ended(KeyboardInterrupt):
    """A signal asks the process to end."""


@contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Let signals that end the process raise `Ended` inside the block, in this process's main thread.

    Signals that the caller ignores, as nohup does, stay ignored. Children that are forked inside the block
    end as usual.
    """
    global _received
    _received = None
    own = os.getpid()
    last = -math.inf

    def end(number: int, frame: FrameType | None) -> None:
        global _received, _waiting
        nonlocal last

        # A data worker was forked with this handler. Ctrl-C reaches it too, and the main process then ends it.
        if os.getpid() != own:
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return

        # A second one right behind the first is the same wish, as torchrun passes on its own and the terminal's: it
        # must not end the clearing away. A later one is another wish.
        now = time.monotonic()
        if now - last > ONE_WISH:
            last = now
            if _held_back:
                _waiting = number
                return
            _received = number
            raise Ended(signal.Signals(number).name)

    before = {}
    try:
        for number in SIGNALS:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, end)
    except ValueError:  # not the main thread, which alone may ask for signals
        pass
    try:
        yield
    finally:
        for number, handler in before.items():
            # Once more while the program ends, as torchrun sends it, would end it without its exit code.
            signal.signal(number, signal.SIG_IGN if _received is not None else handler)


@contextmanager
def held_back() -> Iterator[None]:
    """Let a signal that ends the process wait for the end of the block, which is short.

    A file is made in such a block together with the note of who removes it: between the two nobody would.
    """
    global _held_back, _received, _waiting
    if threading.current_thread() is not threading.main_thread():  # no other one sees signals
        yield
        return

    _held_back += 1
    try:
        yield
    finally:
        _held_back -= 1
        if not _held_back and _waiting is not None:
            _received, _waiting = _waiting, None
            raise Ended(signal.Signals(_received).name)


def end_with(code: int) -> NoReturn:
    """End the program, whose work is done. A signal that comes while it ends changes nothing, and its code neither."""
    for number in SIGNALS:
        if signal.getsignal(number) == signal.SIG_DFL or signal.getsignal(number) is signal.default_int_handler:
            signal.signal(number, lambda *_: os._exit(code))
    sys.exit(code)


def received() -> int | None:
    """The signal that asked the process to end, if one did: other errors may only be its consequence."""
    return _received


def say_if_ended(what_there_is: Callable[[], str] | None) -> None:
    """From now on, this is what is said if the command does not come to its end.

    Args:
        what_there_is: gives the sentence: what there is, and how to go on. It is asked when the command has ended.
            None: nothing was written yet.
    """
    global _what_there_is
    _what_there_is = what_there_is


def what_there_is() -> str:
    """What the command at hand leaves, and how to go on."""
    return NOTHING if _what_there_is is None else _what_there_is()


def is_want_of_memory(error: BaseException) -> bool:
    """Whether an error, or what caused it, means that the machine had no memory left.

    What a UserError says is ours; only what caused it counts.
    """
    for cause in causes(error):
        text = "" if isinstance(cause, UserError) else str(cause).lower()
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM):
            return True
        if any(said in text for said in (*WANT_OF_MEMORY, WORKER_KILLED)):
            return True
    return False


def open_missing_streams() -> None:
    """Put nothing in the place of standard streams that were closed.

    Otherwise the next file that is opened gets their number, and what a library prints ends up in it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
