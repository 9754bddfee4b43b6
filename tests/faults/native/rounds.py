"""Several threads that make the same calls at once, each in an order of its own, on inputs that they share."""

import dataclasses
import random
import threading

import torch
from torch import Tensor

from native import calls
from native.calls import Call, Given, arguments
from native.judge import Fault, make, same_bits, schema

THREADS = 4
CALLS = 6
"""Of a round; each thread makes all of them."""


def draw(seed: str, names: list[str]) -> list[Call]:
    """Calls that are right."""
    source = random.Random(seed)
    found = []
    while len(found) < CALLS:
        call = calls.draw(f"{seed}/{len(found)}/{source.random()}", names)
        mode = call.mode if call.mode in ("plain", "backward") else "plain"
        found.append(dataclasses.replace(call, wrong=[], values="tame", mode=mode))
    return found


def with_outputs_of_its_own(call: Call, shared: Given) -> Given:
    """Inputs are shared; what an op of the library writes to is not."""
    written = {name for name, _, is_written in schema(call.op) if is_written}
    values = {name: value.clone() if name in written else value for name, value in shared.values.items()}
    return Given(values, {})


def results(call: Call, shared: Given) -> list[Tensor]:
    torch.set_num_threads(call.threads)  # of this thread's loops
    outputs, gradients = make(call, with_outputs_of_its_own(call, shared))
    return [*outputs, *gradients]


def round_of(seed: str, names: list[str]) -> None:
    """One round.

    Raises:
        Fault: a thread failed, or got other bits than the call gives alone.
    """
    made = draw(seed, names)
    shared = [arguments(call) for call in made]
    found: dict[tuple[int, int], list[Tensor]] = {}
    failed: list[str] = []
    begin = threading.Barrier(THREADS)

    def work(thread: int) -> None:
        order = list(range(len(made)))
        random.Random(f"{seed}/{thread}").shuffle(order)
        begin.wait()
        for i in order:
            try:
                found[thread, i] = results(made[i], shared[i])
            except Exception as error:
                failed.append(f"{type(error).__name__}: {error} in {made[i].to_json()}")

    torch.use_deterministic_algorithms(True)
    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise Fault(failed[0])

    for i, call in enumerate(made):
        alone = results(call, shared[i])
        for thread in range(THREADS):
            try:
                same_bits(found[thread, i], alone)
            except Fault as fault:
                raise Fault(f"{fault} in {call.to_json()}") from None
