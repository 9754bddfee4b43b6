"""A page in the browser, as somebody with this screen and theme sees it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HOSTILE = [
    "</script><script>window.ran = 1; alert(1)</script>",
    "<img src=x onerror='window.ran = 1'>",
    "<svg onload='window.ran = 1'>",
    '" onmouseover="window.ran = 1" x="',
    "javascript:window.ran=1",
    "<!-- <script>",
    "]]><script>window.ran = 1</script>",
    "a\u2028b\u2029c \u202egnp.exe \x00\x1b[31m",
    "<style>@import 'http://example.org/x';</style><link rel=stylesheet href=http://example.org/x>",
    "${window.ran = 1} {{ window.ran }} \\u003cb\\u003e",
]
"""Captions of somebody who wants to run something in the page, or have it load something."""

OWN = ("file:", "data:", "blob:")

LONG = 120.0
"""Seconds after which something has not happened. A slow machine may need most of a minute for a page."""

LUMINANCE = """
(colour) => {
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  context.fillStyle = colour;
  context.fillRect(0, 0, 1, 1);
  const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).map((value) => {
    const share = value / 255;
    return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
"""


class Opened:
    """One page in a window of its own."""

    def __init__(
        self,
        browser: Any,
        path: Path,
        *,
        width: int = 1200,
        height: int = 900,
        theme: str = "light",
        scripts: bool = True,
    ) -> None:
        self._context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=theme, java_script_enabled=scripts, offline=True
        )
        self.page = self._context.new_page()
        if scripts:
            # The page's timers run when a test says so, and not also by themselves: `pass_by`.
            self.page.clock.install(time=time.time())
            self.page.clock.pause_at(time.time() + 1)
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda said: said.type in ("error", "warning") and self.errors.append(said.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.errors.append(f"a dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("request", self._requested)
        self.page.goto(path.as_uri())
        self._own = path.as_uri()

    def _requested(self, request: Any) -> None:
        if not request.url.startswith(OWN) or (request.url.startswith("file:") and not request.is_navigation_request()):
            self.requests.append(request.url)

    def text(self) -> str:
        """All that can be read in it now."""
        return self.page.inner_text("body")

    def items(self) -> list[str]:
        """What the list of queries shows, one text a query."""
        return self.page.locator("#list > .item").all_inner_texts()

    def found(self) -> tuple[int, int, int]:
        """How many queries are shown, found, and there."""
        words = self.page.locator("#shown").inner_text().split()
        if words[0] == "none":
            return 0, 0, int(words[2])
        return int(words[0]), int(words[3]), int(words[5])

    def pass_by(self, milliseconds: int) -> None:
        """Let so much of the page's time pass, with what its timers do in it."""
        self.page.clock.run_for(milliseconds)

    def read_again(self, milliseconds: int) -> None:
        """Let so much of the page's time pass, in which it reads itself again; that has ended then."""
        with self.page.expect_navigation():
            self.pass_by(milliseconds)

    def search(self, text: str) -> None:
        """Type into the search box; the list has then followed."""
        self.page.locator("#search").fill(text)
        self.pass_by(300)

    def until(self, condition: str | Callable[[], bool]) -> None:
        """Wait until an expression of the page, or a function, is true.

        Playwright's own way has the page evaluate a text, which it refuses.
        """
        end = time.monotonic() + LONG
        while not (self.page.evaluate(condition) if isinstance(condition, str) else condition()):
            assert time.monotonic() < end, f"after {LONG:g} s still not: {condition}"
            self.page.wait_for_timeout(50)

    def luminance(self, colour: str) -> float:
        return float(self.page.evaluate(LUMINANCE, colour))

    def contrast(self, colour: str, ground: str) -> float:
        """Of two colours of CSS, as WCAG counts it."""
        darker, lighter = sorted((self.luminance(colour), self.luminance(ground)))
        return (lighter + 0.05) / (darker + 0.05)

    def close(self) -> None:
        self._context.close()
