"""The page of a library in the browser, as somebody with this screen and theme sees it."""

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

LONG = 120.0
"""Seconds after which something has not happened. A slow machine may need most of a minute for a film."""

LEVEL = """
() => {
  const video = document.querySelector("video");
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 8;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(video, 0, 0, 8, 8);
  const { data } = context.getImageData(0, 0, 8, 8);
  return (data[0] + data[1] + data[2]) / 3;
}
"""
"""The brightness of the picture that the player shows."""


class SeenPage:
    """The page in a window of its own. What it logs, and whom it asks, is kept."""

    def __init__(
        self, browser: Any, port: int, address: str = "/", *, width: int = 1280, height: int = 900, theme: str = "light"
    ) -> None:
        self._own = f"http://127.0.0.1:{port}"
        self._context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
        self._context.set_default_timeout(LONG * 1000)
        self.page = self._context.new_page()
        self.errors: list[str] = []
        self.elsewhere: list[str] = []
        self.page.on("console", lambda said: said.type in ("error", "warning") and self.errors.append(said.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.errors.append(f"a dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("request", self._requested)
        self.page.goto(self._own + address)

    def _requested(self, request: Any) -> None:
        if not request.url.startswith(self._own + "/"):
            self.elsewhere.append(request.url)

    @property
    def address(self) -> str:
        return str(self.page.url).removeprefix(self._own)

    def status(self) -> str:
        return str(self.page.text_content("#status"))

    def files(self, of: str = "#lists") -> list[str]:
        """Names on the cards, in their order."""
        return list(self.page.locator(f"{of} .card .file").all_inner_texts())

    def focused(self) -> str:
        """What has the focus: its id, or the label of a card."""
        return str(
            self.page.evaluate("document.activeElement.id || document.activeElement.getAttribute('aria-label') || ''")
        )

    def search(self, text: str) -> None:
        """Type into the search box; the results have then followed."""
        self.page.locator("#query").fill(text)
        self.until(lambda: parse_qs(urlsplit(self.address).query).get("q") == [text])
        self.settled()

    def settled(self) -> None:
        self.until("document.querySelector('#lists .card') && document.querySelector('#lists').ariaBusy !== 'true'")

    def level(self) -> int:
        """The level, as tiny_videos writes it, of the picture that the player shows."""
        from tiny_videos import FIRST, STEP

        return round((float(self.page.evaluate(LEVEL)) - FIRST) / STEP)

    def video(self, what: str) -> Any:
        """A property of the player's video."""
        return self.page.evaluate(f"document.querySelector('video').{what}")

    def until(self, condition: str | Callable[[], bool]) -> None:
        """Wait until an expression of the page, or a function, is true.

        Playwright's own way has the page evaluate a text, which it refuses.
        """
        end = time.monotonic() + LONG
        while not (self.page.evaluate(condition) if isinstance(condition, str) else condition()):
            assert time.monotonic() < end, f"after {LONG:g} s still not: {condition}"
            self.page.wait_for_timeout(50)

    def close(self) -> None:
        self._context.close()
