"""Steps of several ways in turns, in one process, and what a record has of them."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def timed(
    step: Callable[[str], float], ways: Sequence[str], turns: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each way's step in each turn, after one step of each that is not counted.

    Args:
        step: makes one, of the way that is named.
        ways: their names.
        turns: of one step each.
        clock: in seconds.
    """
    for way in ways:
        step(way)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    names = list(ways)
    for turn in range(turns):
        # Each way is first, second and last about equally often.
        first = turn % len(names)
        for way in names[first:] + names[:first]:
            begin = clock()
            step(way)
            seconds[way].append(clock() - begin)
        print(f"turn {turn + 1} of {turns}: " + ", ".join(f"{w} {s[-1]:.2f} s" for w, s in seconds.items()), flush=True)
    return seconds


def measured(seconds: Mapping[str, Sequence[float]], peaks: Mapping[str, float]) -> dict[str, Any]:
    """The ways of a record's case.

    Args:
        seconds: of each way's steps.
        peaks: the most memory of each way, in MiB.
    """
    ways: dict[str, Any] = {}
    for way, values in seconds.items():
        low, _, high = statistics.quantiles(values, n=4)
        ways[way] = {
            "median_s": statistics.median(values),
            "iqr_s": high - low,
            "repeats": len(values),
            "peak_mib": peaks[way],
            "seconds": values,
        }
    return ways
