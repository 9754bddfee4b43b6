"""The command serve in this process: what it prints, what it opens, and what it refuses."""

import os
import re
import signal
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from emcl_train import cli
from emcl_train.commands import serving


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
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

    monkeypatch.setattr(serving.webbrowser, "open", browse)
    return seen


def test_a_browser_that_waits_for_the_page_is_answered(indexed: Path, opened, capsys) -> None:
    assert cli.main(["serve", str(indexed / "library"), "--port", "0", "--open"]) == 130
    ((address, answer),) = opened
    assert answer == 200
    assert f" moments at {address} (Ctrl-C ends it)\n" in capsys.readouterr().out


def test_that_there_is_no_browser_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(address: str) -> bool:
        raise serving.webbrowser.Error("could not locate runnable browser")

    for none in (lambda address: False, fail):
        monkeypatch.setattr(serving.webbrowser, "open", none)
        serving._show("http://127.0.0.1:1/", lambda: False)
        said = "warning: no browser could be opened; open http://127.0.0.1:1/ in one\n"
        assert capsys.readouterr().err == said
        serving._show("http://127.0.0.1:1/", lambda: True)
        assert capsys.readouterr().err == ""
