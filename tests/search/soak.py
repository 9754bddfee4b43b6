"""Fifty clients of one `emcl-train serve` for a minute: what it answers, and its memory and open files meanwhile.

    PYTHONPATH=. python tests/search/soak.py [--seconds 60] [--clients 50]

The library is of a few small films and a CLIP with random weights; the server is a process of its own. Clients search,
look at pictures, play films in ranges, hang up in the middle, and ask for what there is not: paths that lead out, long
queries, other hosts, ranges beyond the end. Each kind of question has the statuses that it may get; none is of a fault.
"""

import argparse
import random
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

sys.path.append(str(Path(__file__).resolve().parent.parent / "train"))  # what small_library takes films from

from served_command import Served, served  # noqa: E402
from served_library import Client  # noqa: E402

EVERY = 0.25
"""Seconds between two looks at the server's process."""
REST = 7.0
"""Seconds after the last question, in which connections that rest are closed."""


@dataclass(frozen=True)
class Look:
    """What a process takes at one time."""

    second: float
    mib: float
    """Resident memory."""
    descriptors: int
    threads: int

    @classmethod
    def at(cls, pid: int, begin: float) -> "Look":
        status = Path(f"/proc/{pid}/status").read_text()
        kib, threads = (int(status.split(f"{name}:")[1].split()[0]) for name in ("VmRSS", "Threads"))
        return cls(time.monotonic() - begin, kib / 1024, len(list(Path(f"/proc/{pid}/fd").iterdir())), threads)


@dataclass
class Soaked:
    """What came of it."""

    seconds: float
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    """How often each kind of question got each status."""
    unexpected: Counter[str] = field(default_factory=Counter)
    looks: list[Look] = field(default_factory=list)
    """While clients asked."""
    before: Look | None = None
    """After each kind of question was asked once."""
    after: Look | None = None
    """When all have gone."""
    answers_afterwards: bool = False

    def near(self, share: float) -> Look:
        """The look at a share of the time."""
        return min(self.looks, key=lambda look: abs(look.second - share * self.seconds))


Ask = Callable[[Client, random.Random], int | None]
"""A question; its status, or None where nobody waited for the answer."""


def questions(client: Client) -> dict[str, tuple[int, tuple[int, ...], Ask]]:
    """Kinds of questions: how often each is asked, the statuses that it may get, and how it is asked."""
    found = client.get("/api/search?q=a%20thing&k=100&refine=0").json["results"]
    ids = [one["id"] for one in found]
    played = {one["id"]: client.get(f"/api/playing?id={one['id']}").json["media"] for one in found}

    def get(target: Callable[[random.Random], str], **how: str) -> Ask:
        return lambda asked, draw: asked.get(target(draw), **how).status

    def media(draw: random.Random) -> str:
        return str(played[draw.choice(ids)])

    def words(draw: random.Random) -> str:
        return quote(" ".join(draw.choice(["red", "a", "dog", "<script>", "漢字", "water"]) for _ in range(6)))

    def a_range(asked: Client, draw: random.Random) -> int:
        begin = draw.randrange(400)
        return asked.get(media(draw), {"Range": f"bytes={begin}-{begin + draw.randrange(100_000)}"}).status

    return {
        "search": (30, (200,), get(lambda draw: f"/api/search?q={words(draw)}&refine={draw.randrange(2)}")),
        "search above the cut-off": (4, (200,), get(lambda draw: f"/api/search?q={words(draw)}&min=auto")),
        "more like this": (8, (200,), get(lambda draw: f"/api/like?id={draw.choice(ids)}")),
        "neighbours": (8, (200,), get(lambda draw: f"/api/neighbours?id={draw.choice(ids)}")),
        "library and page": (4, (200,), get(lambda draw: draw.choice(["/api/library", "/", "/api/openapi.json"]))),
        "thumbnail": (30, (200,), get(lambda draw: f"/thumbnail/{draw.choice(ids)}")),
        "playing": (8, (200,), get(lambda draw: f"/api/playing?id={draw.choice(ids)}")),
        "whole film": (8, (200,), get(media)),
        "range of a film": (20, (206,), a_range),
        "range beyond it": (4, (416,), lambda asked, draw: asked.get(media(draw), {"Range": "bytes=99999999-"}).status),
        "part beyond it": (2, (404,), get(lambda draw: f"/media/{draw.choice(ids)}?part={draw.randrange(5, 99)}")),
        "path that leads out": (8, (400, 404), get(_path_that_leads_out)),
        "moment that is not there": (4, (404,), get(lambda draw: f"/media/{draw.getrandbits(128):032x}-0")),
        "10 000 letters": (4, (400,), get(lambda draw: "/api/search?q=" + quote(draw.choice("aé漢") * 10_000))),
        "another host": (4, (421,), get(lambda draw: "/api/library", host="evil.example")),
        "another method": (2, (405,), get(lambda draw: "/api/library", method="POST")),
        "hangs up": (8, (), lambda asked, draw: _hangs_up(asked, media(draw), draw)),
    }


def _path_that_leads_out(draw: random.Random) -> str:
    path = draw.choice(["../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd", "%00"])
    return draw.choice(["/media/", "/thumbnail/", "/page/", "/api/like?id=", "/api/playing?id="]) + path


def _hangs_up(asked: Client, target: str, draw: random.Random) -> None:
    """Go away before all is asked, before the answer, or in the middle of it."""
    request = f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{asked.port}\r\n\r\n".encode()
    with suppress(OSError), socket.create_connection(("127.0.0.1", asked.port), timeout=30) as connection:
        connection.sendall(request[: draw.choice([10, len(request)])])
        if draw.random() < 0.5:
            connection.recv(100)


def soak(library: Path, cache: Path, *, seconds: float, clients: int) -> Soaked:
    """Start a server, ask it, and look at it.

    Args:
        library: that is served.
        cache: folder for parts of films.
        seconds: for which it is asked.
        clients: at once.
    """
    soaked = Soaked(seconds)
    with served(library, "--cache", cache) as server:
        kinds = questions(server.client)
        for weight_statuses_ask in kinds.values():
            weight_statuses_ask[2](server.client, random.Random(0))
        time.sleep(min(REST, seconds))
        begin = time.monotonic()
        soaked.before = Look.at(server.process.pid, begin)

        lock = threading.Lock()
        askers = [
            threading.Thread(target=_ask_on, args=(server, kinds, random.Random(n), begin + seconds, soaked, lock))
            for n in range(clients)
        ]
        for asker in askers:
            asker.start()
        while time.monotonic() < begin + seconds:
            time.sleep(EVERY)
            soaked.looks.append(Look.at(server.process.pid, begin))
        for asker in askers:
            asker.join()

        time.sleep(REST)
        soaked.after = Look.at(server.process.pid, begin)
        soaked.answers_afterwards = server.client.get("/api/search?q=a%20thing").status == 200
        code, said = server.end()
        if code != 130 or "Traceback" in said:
            soaked.unexpected[f"ended with {code}: {said[-500:]}"] += 1
    return soaked


def _ask_on(
    server: Served,
    kinds: dict[str, tuple[int, tuple[int, ...], Ask]],
    draw: random.Random,
    until: float,
    soaked: Soaked,
    lock: threading.Lock,
) -> None:
    names = list(kinds)
    weights = [weight for weight, _, _ in kinds.values()]
    while time.monotonic() < until:
        name = draw.choices(names, weights)[0]
        _, expected, ask = kinds[name]
        try:
            status = ask(server.client, draw)
        except Exception as error:  # noqa: BLE001 - what a client meets is counted
            with lock:
                soaked.unexpected[f"{name}: {error!r}"] += 1
            continue
        with lock:
            if status is None:
                soaked.answers[name, 0] += 1
                continue
            soaked.answers[name, status] += 1
            if status not in expected:
                soaked.unexpected[f"{name}: {status}"] += 1


def told(soaked: Soaked) -> str:
    """The result, for people."""
    lines = [f"{sum(soaked.answers.values())} questions in {soaked.seconds:g} s", ""]
    for (name, status), times in sorted(soaked.answers.items(), key=lambda item: -item[1]):
        lines.append(f"  {times:>7}  {status or 'nobody waited':<13}  {name}")
    lines += ["", f"  {'':<24}{'memory':>12}{'descriptors':>14}{'threads':>10}"]
    assert soaked.before is not None
    assert soaked.after is not None
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    rows = [("before", soaked.before)]
    rows += [(f"after {soaked.near(share).second:.0f} s", soaked.near(share)) for share in shares]
    rows += [("when all have gone", soaked.after)]
    for name, look in rows:
        lines.append(f"  {name:<24}{look.mib:>8.1f} MiB{look.descriptors:>14}{look.threads:>10}")
    most = max(soaked.looks, key=lambda look: look.mib)
    lines.append(f"  {'at most':<24}{most.mib:>8.1f} MiB{max(look.descriptors for look in soaked.looks):>14}")
    lines += ["", f"unexpected: {dict(soaked.unexpected) or 'nothing'}"]
    lines.append(f"it answers afterwards: {'yes' if soaked.answers_afterwards else 'no'}")
    return "\n".join(lines)


def main() -> None:
    from small_library import make, small_clip, write_films

    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--seconds", type=float, default=60.0)
    arguments.add_argument("--clients", type=int, default=50)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="emcl-soak-") as folder:
        place = Path(folder)
        write_films(place / "films")
        small_clip(place)
        library, _ = make(place, refine=True)
        soaked = soak(library, place / "parts", seconds=given.seconds, clients=given.clients)
    print(told(soaked))
    sys.exit(bool(soaked.unexpected) or not soaked.answers_afterwards)


if __name__ == "__main__":
    main()
