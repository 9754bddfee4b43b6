"""Have processes make many calls, start another one where one died, and keep what did not hold."""

import contextlib
import json
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parts import BUILD

from native.build import Build

WORKER = Path(__file__).resolve().parent / "worker.py"
# A call takes milliseconds, and seconds under a sanitizer; what the machine does meanwhile for others does not count.
SECONDS_OF_A_CALL = 120
# A call that waits for ever uses none.
SECONDS_OF_WAITING = 1800
# Of one process. Then something is so wrong that more of the same says nothing.
MOST_DEATHS = 20


@dataclass
class Found:
    """What did not hold.

    Args:
        call: as JSON; empty, if it is more than one call.
        fault: what is wrong; its first line says it in short.
    """

    call: str
    fault: str


@dataclass
class Outcome:
    """Of many calls."""

    tried: int = 0
    found: list[Found] = field(default_factory=list)


@dataclass
class Share:
    """Work for one process: what it does with the numbers from `first` to before `last` (worker.py)."""

    what: str
    first: int
    last: int
    prefix: str
    namespace: str
    small: bool = False

    def arguments(self, what: str, state: Path, first: int) -> list[str]:
        numbers = [str(first), str(self.last), self.prefix, self.namespace]
        return [str(WORKER), what, str(state), *numbers, *(["small"] if self.small else [])]


def shares(
    what: str, count: int, jobs: int, prefix: str, namespaces: tuple[str, ...], *, step: int = 1, small: bool = False
) -> list[Share]:
    """Numbers from 0 to before `count`, in equal parts for the processes and the namespaces, each times `step`."""
    parts = jobs * len(namespaces)
    edges = [i * count // parts * step for i in range(parts + 1)]
    return [
        Share(what, edges[i], edges[i + 1], f"{prefix}/{space}/", space, small)
        for i, space in enumerate(namespaces * jobs)
    ]


def work(
    build: Build, isa: str, shares: list[Share], jobs: int, preload: tuple[str, ...] = (), **variables: str
) -> Outcome:
    """Do all shares, `jobs` at a time."""
    environment = build.environment(isa, preload) | variables
    with ThreadPoolExecutor(jobs) as pool:
        outcomes = list(pool.map(lambda share: one_share(build, environment, share), shares))
    return Outcome(sum(each.tried for each in outcomes), [found for each in outcomes for found in each.found])


def one_share(build: Build, environment: dict[str, str], share: Share) -> Outcome:
    """Do a share in one process, or in more, where one dies."""
    folder = BUILD / "logs" / str(os.getpid())  # another run beside this one has its own
    folder.mkdir(parents=True, exist_ok=True)
    isa = environment["EMCL_ISA"]
    state = folder / f"{share.what}-{build.sanitizer}-{isa}-{share.namespace}-{share.first}"
    told, log = Path(f"{state}.found"), Path(f"{state}.log")
    told.unlink(missing_ok=True)
    outcome = Outcome()

    first = share.first
    deaths = 0
    while first < share.last and deaths < MOST_DEATHS:
        state.write_text(str(first), encoding="utf-8")
        code = watch([*build.command(), *share.arguments(share.what, state, first)], environment, state, log)
        if code == 0:
            break
        deaths += 1
        at = int(state.read_text(encoding="utf-8") or first)
        outcome.tried += 1
        outcome.found.append(died(build, environment, share, at, f"{how(code)}\n{log.read_text(errors='replace')}"))
        first = at + 1

    for line in told.read_text(encoding="utf-8").splitlines() if told.exists() else []:
        said = json.loads(line)
        if "tried" in said:
            outcome.tried += said["tried"]
        else:
            outcome.found.append(Found(said["call"], said["fault"]))
    if share.what != "starve":
        outcome.tried = (share.last if deaths < MOST_DEATHS else first) - share.first
    return outcome


def watch(command: list[str], environment: dict[str, str], state: Path, log: Path) -> int:
    """Run a process, and end it if it comes no further. Its exit code."""
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)
        seen, used, since = "", 0.0, time.monotonic()
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=2)
            now = state.read_text(encoding="utf-8")
            if now != seen:
                seen, used, since = now, cpu_seconds(process.pid), time.monotonic()
            waited = time.monotonic() - since
            if cpu_seconds(process.pid) - used > SECONDS_OF_A_CALL or waited > SECONDS_OF_WAITING:
                process.kill()
                process.wait()
                stream.write(b"\nthe call did not end\n")
                return 1


def cpu_seconds(process: int) -> float:
    """That a process has used, on all its threads."""
    with contextlib.suppress(OSError):
        after_name = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def how(code: int) -> str:
    """In words, how a process ended."""
    if code == 99:
        return "a sanitizer ended the process"
    return f"the process died of signal {-code}" if code < 0 else f"the process ended with {code}"


def died(build: Build, environment: dict[str, str], share: Share, number: int, fault: str) -> Found:
    """The call at which a process died, as another one draws it."""
    command = [*build.command(), *share.arguments(f"name-{share.what}", Path("-"), number)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    call = done.stdout.strip()
    if share.what == "calls":
        return Found(call, fault)
    # More than a call: it is told of, and not made smaller.
    return Found("", f"{share.what} {share.prefix}{number}: {fault}\n{call}")


class Teller:
    """A process that says of single calls whether they hold; each is made in a child of it, so that none ends it."""

    def __init__(self, build: Build, isa: str, **variables: str) -> None:
        self._process = subprocess.Popen(
            [*build.command(), str(WORKER), "tell"],
            env=build.environment(isa) | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Teller":
        return self

    def __exit__(self, *_: Any) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()

    def fault(self, call: str) -> str:
        """What is wrong with a call; nothing, if it holds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(call + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process that tells of calls ended with {self._process.wait()}")
        answer = json.loads(line)
        if not answer["died"]:
            return ""
        return str(answer["fault"]) if answer["died"] == 3 else f"{how(answer['died'])}\n{answer['fault']}"
