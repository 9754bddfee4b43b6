"""The command serve in this process: what it prints, what it opens, and what it refuses."""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from served_library import Client, StandIn, write_folder
from served_library import serving as serving_in_a_thread

from emcl_train import cli
from emcl_train.commands import serving
from emcl_train.endings import SIGNALS
from emcl_train.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, object]]]:
    """A browser that sees an address before it returns, as one in the terminal does, and then presses Ctrl-C."""
    seen: list[tuple[str, object]] = []

    def browse(address: str) -> bool:
        try:
            with urlopen(address, timeout=10) as answer:
                seen.append((address, answer.status))
        except (URLError, TimeoutError) as error:
            seen.append((address, error))
        os.kill(os.getpid(), signal.SIGINT)
        return True

    # A command that a signal has ended ignores all others from then on, until its process is gone.
    before = {number: signal.getsignal(number) for number in SIGNALS}
    monkeypatch.setattr(serving.webbrowser, "open", browse)
    yield seen
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_browser_that_waits_for_the_page_is_answered(indexed: Path, opened, capsys) -> None:
    assert cli.main(["serve", str(indexed / "library"), "--port", "0", "--open"]) == 130
    ((address, answer),) = opened
    assert answer == 200
    assert f" moments at {address} (Ctrl-C ends it)\n" in capsys.readouterr().out


def test_that_there_is_no_browser_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(address: str) -> bool:
        raise serving.webbrowser.Error("could not locate runnable browser")

    for none in (lambda address: False, fail):
        monkeypatch.setattr(serving.webbrowser, "open", none)
        serving._show("http://127.0.0.1:1/", lambda: False)
        said = "warning: no browser could be opened; open http://127.0.0.1:1/ in one\n"
        assert capsys.readouterr().err == said
        serving._show("http://127.0.0.1:1/", lambda: True)
        assert capsys.readouterr().err == ""


def test_a_quiet_server_says_where_it_is(indexed: Path, opened, capsys) -> None:
    assert cli.main(["serve", str(indexed / "library"), "--port", "0", "--open", "--quiet"]) == 130
    said = capsys.readouterr().out
    assert re.fullmatch(r"library: \d+ moments at (http://127\.0\.0\.1:\d+/) \(Ctrl-C ends it\)\n", said)
    assert opened[0][0] in said


@pytest.mark.parametrize("host", ["0", "0.0", "0x0", "0.0.0.0", "::", "::0", "0:0::0", "::ffff:0.0.0.0", ""])
def test_every_address_is_refused_however_it_is_written(host: str, capsys) -> None:
    assert cli.main(["serve", "library", "--host", host]) == 1
    assert capsys.readouterr().err.startswith(f"error: --host is {host!r}, every address of this machine, and ")


@pytest.mark.parametrize("host", ["no..name", "x" * 70, "no.such.host.invalid"])
def test_what_is_no_host_is_said(host: str) -> None:
    with pytest.raises(UserError, match=f"nothing can be served at {host}, port 0: .*; pass --host with an address"):
        serving.listening(host, 0)


def test_an_answer_that_is_cut_off_at_the_end_is_no_error(tmp_path: Path, capsys) -> None:
    """As that of a film which a browser holds while it is paused."""
    library = StandIn(write_folder(tmp_path / "films"))
    with serving_in_a_thread(library, tmp_path / "parts") as client:
        library.pause = serving.FAREWELL + 1.5
        asker = threading.Thread(target=ask_and_wait, args=(client, "/api/search?q=red"))
        asker.start()
        end = time.monotonic() + 60
        while not library.searches:
            assert time.monotonic() < end
            time.sleep(0.01)
    asker.join()
    said = capsys.readouterr()
    assert said.out + said.err == ""


def ask_and_wait(client: Client, target: str) -> None:
    with suppress(OSError, HTTPException):
        client.get(target)


def test_make_search_has_a_library_of_each_training_run(tmp_path: Path) -> None:
    """Another model is refused by a library, and its run lies in the same folder."""
    (tmp_path / "runs" / "shapes").mkdir(parents=True)
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    there = ["-o", ".venv/.built", "-o", ".venv-search/.deps", f"SEARCH_BIN={python.parent}"]
    command = ["make", "-s", "-f", str(ROOT / "Makefile"), "search", *there]

    places = []
    for weights in (b"first", b"second", b"first"):
        (tmp_path / "runs" / "shapes" / "model.safetensors").write_bytes(weights)
        said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        found = re.fullmatch(r".* index .* --out (build/\S+) --model runs/shapes\n.* serve (\S+) --open\n", said)
        assert found is not None, said
        assert found[1] == found[2]
        places.append(found[1])
    assert places[0] == places[2] != places[1]
