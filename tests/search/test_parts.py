"""The cache of parts: bounded, each made once, and whole or not there."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from emcl_train.errors import UserError
from emcl_train.search.server.converting import Written
from emcl_train.search.server.parts import LEAST, WAITING, Part, Parts, key_of
from emcl_train.search.server.playing import Kind
from emcl_train.search.server.refusing import Refused
from emcl_train.search.server.tracks import Limits, TooMuch

PIECE = LEAST // 8


class Asker:
    """One who asks; away after so many looks."""

    def __init__(self, looks: int = 10**9) -> None:
        self.looks = looks

    async def is_disconnected(self) -> bool:
        self.looks -= 1
        return self.looks < 0


class Maker:
    """Writes parts of a size, and counts how many it has made, and how many at once."""

    def __init__(self, size: int = 100, pause: float = 0.0, kind: Kind = "mp4") -> None:
        self.size, self.pause, self.kind = size, pause, kind
        self.made = self.at_once = self.most_at_once = 0
        self.may_go = threading.Event()
        self.may_go.set()
        self._lock = threading.Lock()

    def __call__(self, target: Path, limits: Limits) -> Written:
        with self._lock:
            self.made += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        assert self.may_go.wait(60)
        time.sleep(self.pause)
        with target.open("wb") as file:
            file.truncate(self.size)
        with self._lock:
            self.at_once -= 1
        return Written(1.5, 9.25, True, False, self.kind, "transcoded")


def get(parts: Parts, key: str, make: object) -> Part:
    return asyncio.run(parts.get(Asker(), key, make))


def taken(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_a_part_is_made_once_and_what_is_known_of_it_is_in_its_name(tmp_path):
    make = Maker()
    key = key_of("a", 1)
    first = get(Parts(tmp_path / "parts", LEAST), key, make)
    assert (first.begin, first.end, first.more, first.muted) == (1.5, 9.25, True, False)
    assert (first.kind, first.way) == ("mp4", "transcoded")
    assert get(Parts(tmp_path / "parts", LEAST), key, make) == first
    assert make.made == 1
    assert [path.name for path in (tmp_path / "parts").iterdir()] == [f"{key}_1500000_9250000_101.mp4"]
    assert key_of("a", 1) != key_of("a", 2)
    assert get(Parts(tmp_path / "parts", LEAST), key_of("a", 2), Maker(kind="webm")).path.suffix == ".webm"


def test_many_who_ask_for_one_part_get_the_same_one(tmp_path):
    make = Maker(pause=0.2)
    parts = Parts(tmp_path, LEAST)

    async def ask() -> list[Part]:
        return await asyncio.gather(*(parts.get(Asker(), key_of("a"), make) for _ in range(30)))

    found = asyncio.run(ask())
    assert make.made == 1
    assert set(found) == {found[0]}


def test_so_many_are_made_at_once_and_so_many_wait(tmp_path):
    make = Maker(pause=0.02)
    make.may_go.clear()
    parts = Parts(tmp_path, LEAST, at_once=2)

    async def ask() -> list[object]:
        coming = [parts.get(Asker(), key_of(number), make) for number in range(WAITING + 5)]
        asked = [asyncio.create_task(one) for one in coming]
        while sum(one.done() for one in asked) < 5:
            await asyncio.sleep(0.01)
        make.may_go.set()
        return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(ask())
    refused = [one for one in found if isinstance(one, Refused)]
    assert len(refused) == 5
    assert all(one.status == 503 and one.headers["retry-after"] for one in refused)
    assert make.made == WAITING
    assert make.most_at_once == 2


def test_its_bytes_are_bounded_and_what_was_not_used_for_longest_goes_first(tmp_path):
    parts = Parts(tmp_path, LEAST)
    make = Maker(PIECE)
    for number in range(6):
        get(parts, key_of(number), make)
        time.sleep(0.01)
    assert parts.find(key_of(0)) is not None  # used just now
    for number in range(6, 12):
        get(parts, key_of(number), make)
        assert taken(tmp_path) <= LEAST
        assert parts.find(key_of(0)) is not None
        time.sleep(0.01)
    there = [number for number in range(12) if parts.find(key_of(number)) is not None]
    assert there == [0, *range(12 - len(there) + 1, 12)]
    assert len(there) >= 5


def test_its_bytes_are_bounded_under_many_at_once(tmp_path):
    parts = Parts(tmp_path, LEAST, at_once=4)
    make = Maker(PIECE, pause=0.01)
    most = 0

    async def ask() -> None:
        nonlocal most
        for begin in range(0, 40, 10):
            await asyncio.gather(*(parts.get(Asker(), key_of(n), make) for n in range(begin, begin + 10)))
            most = max(most, taken(tmp_path))

    asyncio.run(ask())
    assert make.made == 40
    assert most <= LEAST


def test_parts_that_grow_at_once_have_room_for_both(tmp_path):
    parts = Parts(tmp_path, LEAST, at_once=2)
    for number in range(7):
        get(parts, key_of(number), Maker(PIECE))
    both_here, both_written = threading.Barrier(2, timeout=20), threading.Barrier(2, timeout=20)
    most = []

    def make(target: Path, limits: Limits) -> Written:
        both_here.wait()
        written = Maker(2 * PIECE)(target, limits)
        both_written.wait()
        most.append(taken(tmp_path))
        both_written.wait()
        return written

    async def ask() -> None:
        await asyncio.gather(*(parts.get(Asker(), key_of(name), make) for name in "ab"))

    asyncio.run(ask())
    assert max(most) <= LEAST
    assert taken(tmp_path) > LEAST // 2


def test_the_least_that_the_command_takes_is_enough(tmp_path):
    Parts(tmp_path, int(0.064 * 1e9))


def test_whoever_has_gone_away_gets_nothing_made(tmp_path):
    make = Maker(pause=0.8)
    parts = Parts(tmp_path, LEAST, at_once=1)

    async def ask() -> list[object]:
        first = asyncio.create_task(parts.get(Asker(), key_of("first"), make))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(parts.get(Asker(looks=0), key_of("second"), make))
        return await asyncio.gather(first, second, return_exceptions=True)

    first, second = asyncio.run(ask())
    assert isinstance(first, Part)
    assert isinstance(second, Refused)
    assert make.made == 1


def test_what_nobody_waits_for_any_more_is_given_up_and_made_anew_for_the_next(tmp_path):
    parts = Parts(tmp_path, LEAST, at_once=1)
    begun, ended, may_end = threading.Event(), threading.Event(), threading.Event()

    def endless(target: Path, limits: Limits) -> Written:
        begun.set()
        until = time.monotonic() + 20
        while time.monotonic() < until:
            try:
                limits.check(target)
            except TooMuch:
                assert may_end.wait(20)
                ended.set()
                raise
            time.sleep(0.01)
        raise AssertionError("nobody has ended it")

    async def ask() -> Part:
        with pytest.raises(Refused, match="gone away"):
            await parts.get(Asker(looks=0), key_of("a"), endless)
        assert begun.is_set()
        anew = asyncio.create_task(parts.get(Asker(), key_of("a"), Maker()))
        await asyncio.sleep(0.1)
        may_end.set()
        return await anew

    assert asyncio.run(ask()).end == 9.25
    assert ended.is_set()


def test_one_of_two_who_goes_away_ends_nothing(tmp_path):
    parts = Parts(tmp_path, LEAST)

    def checks(target: Path, limits: Limits) -> Written:
        for _ in range(100):
            limits.check(target)
            time.sleep(0.01)
        return Maker()(target, limits)

    async def ask() -> list[object]:
        both = (parts.get(Asker(looks), key_of("a"), checks) for looks in (0, 10**9))
        return await asyncio.gather(*both, return_exceptions=True)

    left, stayed = asyncio.run(ask())
    assert isinstance(left, Refused)
    assert isinstance(stayed, Part)


def test_what_fails_leaves_nothing_and_is_tried_again(tmp_path):
    def fails(target: Path, limits: Limits) -> Written:
        target.write_bytes(b"half")
        raise TooMuch("it takes longer")

    parts = Parts(tmp_path, LEAST)
    with pytest.raises(TooMuch):
        get(parts, key_of("a"), fails)
    assert list(tmp_path.iterdir()) == []
    assert get(parts, key_of("a"), Maker()).end == 9.25


def test_a_killed_server_leaves_nothing_that_counts(tmp_path):
    program = (
        "import asyncio, pathlib, time\n"
        "class Asker:\n"
        "    async def is_disconnected(self): return False\n"
        "from emcl_train.search.server.parts import Parts, LEAST, key_of\n"
        "def make(target, limits):\n"
        "    target.write_bytes(b'x' * 1000); print('made', flush=True); time.sleep(600)\n"
        f"parts = Parts(pathlib.Path({str(tmp_path)!r}), LEAST)\n"
        "asyncio.run(parts.get(Asker(), key_of('a'), make))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=env) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"made\n"
        (half,) = tmp_path.iterdir()
        assert half.stat().st_size == 1000
        assert Parts(tmp_path, LEAST).find(key_of("a")) is None
        assert half.exists()  # somebody else is at work on it
        server.send_signal(signal.SIGKILL)
        server.wait(30)
    assert Parts(tmp_path, LEAST).find(key_of("a")) is None
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_ours_stays_and_is_not_sent(tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    with (tmp_path / "film.mp4").open("wb") as file:  # larger than all parts may be
        file.truncate(2 * LEAST)
    (tmp_path / f"{key_of('a')}.mp4").write_text("no part")
    parts = Parts(tmp_path, LEAST)
    assert parts.find(key_of("a")) is None
    for number in range(12):
        get(parts, key_of(number), Maker(PIECE))
    assert (tmp_path / "letter.txt").read_text() == "mine"
    assert (tmp_path / "film.mp4").stat().st_size == 2 * LEAST
    assert all(parts.find(key_of(number)) is not None for number in range(8, 12))  # it takes no room of theirs


def test_a_folder_that_cannot_be_used_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another folder with --cache"):
        Parts(tmp_path / "file", LEAST)
    with pytest.raises(UserError, match="may hold 1 MB, expected at least 64"):
        Parts(tmp_path / "parts", 1 << 20)
