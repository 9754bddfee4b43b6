"""Threads that make the parts of things, some things ahead of who takes them, in order, with little in memory."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar, runtime_checkable

AHEAD = 2
"""Parts of each thing that wait to be taken."""


@runtime_checkable
class HasEnd(Protocol):
    """A part that says whether it is the last one of its thing."""

    last: bool


Part = TypeVar("Part", bound=HasEnd)


def made_ahead(count: int, parts_of: Callable[[int], Iterator[Part]], workers: int) -> Iterator[Part]:
    """The parts of every thing, thing by thing, in order.

    Args:
        count: how many things there are.
        parts_of: the parts of the thing of a number. It runs in a thread, raises nothing, and its last part says so.
        workers: threads, each of which makes one thing at a time; 0: parts are made where they are taken.
    """
    if workers == 0:
        for number in range(count):
            yield from parts_of(number)
        return

    waiting: dict[int, queue.Queue[Part]] = {}
    order = iter(range(count))
    next_one = threading.Lock()
    ended = threading.Event()
    ahead = threading.Semaphore(workers + 1)
    """Things that are begun and not yet taken to their end."""

    def waiting_of(number: int) -> "queue.Queue[Part]":
        with next_one:
            return waiting.setdefault(number, queue.Queue(AHEAD))

    def put(number: int, part: Part) -> bool:
        parts = waiting_of(number)
        while not ended.is_set():
            try:
                parts.put(part, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        while not ended.is_set():
            ahead.acquire()
            with next_one:
                number = next(order, None)
            if number is None or ended.is_set():
                ahead.release()
                return
            for part in parts_of(number):
                if not put(number, part):
                    return

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(workers, count))]
    for thread in threads:
        thread.start()
    try:
        for number in range(count):
            parts = waiting_of(number)
            part = parts.get()
            while not part.last:
                yield part
                part = parts.get()
            yield part
            del waiting[number]
            ahead.release()
    finally:
        ended.set()
        for _ in threads:
            ahead.release()
        for thread in threads:
            thread.join()
