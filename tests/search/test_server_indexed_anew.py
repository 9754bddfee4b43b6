"""A library that is indexed anew while it is served: answers follow without a restart, and none is a fault."""

import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from served_library import serving
from small_library import make, write_films

from emcl_train import Library


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "the server has not followed for a minute"
        time.sleep(0.1)


def test_films_that_come_are_found_and_those_that_go_are_not_there(scene: Path, tmp_path: Path) -> None:
    path, _ = make(scene, refine=True)
    with serving(Library(path), tmp_path / "parts") as client:

        def found() -> dict[str, str]:
            results = client.get("/api/search?q=a%20thing&k=100&refine=0").json["results"]
            return {one["file"]: one["id"] for one in results}

        before = found()
        assert set(before) == {"a.mp4", "b.mkv", "deep/c.avi", "d.mp4"}
        gone = before["b.mkv"]
        made = client.get(f"/api/playing?id={gone}").json["media"]
        assert client.get(made).status == 200

        # A film that is gone is not sent, though the library does not know it yet, and a part of it lies in the cache.
        (scene / "films" / "b.mkv").unlink()
        for target in (made, f"/api/playing?id={gone}"):
            assert client.get(target).status == 404
        assert client.get(f"/thumbnail/{gone}").status == 200

        write_films(scene / "films", {"new.mp4": 40}, first=20)
        shutil.move(scene / "films" / "d.mp4", scene / "films" / "renamed.mp4")
        make(scene)
        until(lambda: "new.mp4" in found())
        assert set(found()) == {"a.mp4", "deep/c.avi", "new.mp4", "renamed.mp4"}
        assert client.get("/api/library").json["moments"] == len(Library(path))
        for target in (made, f"/thumbnail/{gone}", f"/api/playing?id={gone}", f"/api/like?id={gone}"):
            assert client.get(target).status == 404
        assert client.get(f"/media/{before['d.mp4']}").status == 200
        refined = client.get("/api/search?q=a%20thing&k=100&refine=1").json["results"]
        assert {one["file"] for one in refined} == set(found())


def test_no_answer_is_a_fault_while_index_writes(scene: Path, tmp_path: Path) -> None:
    path, _ = make(scene, refine=True)
    statuses: Counter[tuple[str, int]] = Counter()
    over = threading.Event()
    with serving(Library(path), tmp_path / "parts") as client:
        ids = [one["id"] for one in client.get("/api/search?q=a%20thing&k=100&refine=0").json["results"]]

        def ask(number: int) -> None:
            while not over.is_set():
                for moment in ids[number::4]:
                    for target in (
                        f"/api/search?q=a%20thing&refine={number % 2}",
                        "/api/search?q=a%20thing&min=auto",
                        f"/api/like?id={moment}",
                        f"/api/neighbours?id={moment}",
                        f"/thumbnail/{moment}",
                        f"/api/playing?id={moment}",
                        f"/media/{moment}",
                        "/api/library",
                    ):
                        statuses[target.split("?")[0].split("/" + moment)[0], client.get(target).status] += 1

        askers = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for asker in askers:
            asker.start()
        try:
            for round_ in range(3):
                write_films(scene / "films", {f"new {round_}.mp4": 30}, first=30 + round_)
                if round_:
                    (scene / "films" / f"new {round_ - 1}.mp4").unlink()
                    (scene / "films" / ["d.mp4", "b.mkv"][round_ - 1]).unlink()
                make(scene)
            time.sleep(2)
        finally:
            over.set()
            for asker in askers:
                asker.join()
    assert {status for _, status in statuses} == {200, 404}, statuses
    for address in ("/api/search", "/api/library"):
        assert statuses[address, 200] > 0
        assert statuses[address, 404] == 0
    assert statuses["/media", 404] > 0


def test_a_library_that_is_gone_is_said_and_one_that_comes_back_is_answered(scene: Path, tmp_path: Path) -> None:
    path, _ = make(scene)
    with serving(Library(path), tmp_path / "parts") as client:
        assert client.get("/api/search?q=a%20thing").status == 200
        shutil.move(path, tmp_path / "elsewhere")
        until(lambda: client.get("/api/search?q=a%20thing").status == 503)
        answer = client.get("/api/library")
        assert answer.json["error"].startswith("the library is gone or became another one")
        assert str(scene) not in answer.json["error"]
        shutil.move(tmp_path / "elsewhere", path)
        assert client.get("/api/search?q=a%20thing").status == 200
