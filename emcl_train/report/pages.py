"""Pages: every value escaped, one style, no script but the package's own, and nothing loaded from elsewhere.

`templates/base.html` is what all pages have in common, and `templates/parts.html` has the pieces they are put together
from. A page's own template extends the one and imports the other.
"""

import base64
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Undefined
from markupsafe import Markup

from emcl_train.report.paths import Paths
from emcl_train.runs.files import write_text_atomic
from emcl_train.runs.lock import making
from emcl_train.terminal import visible

PACKAGE = "emcl_train.report"
SHOWN = 3
"""Absolute paths that the terminal names; the page names them all."""

Shown = Callable[[Any], Any]
"""A text from a run or its data set, as a page may show it."""


@dataclass(frozen=True)
class Page:
    """The page, and what a reader elsewhere learns from it of the machine."""

    html: str
    paths: tuple[str, ...]
    """Absolute paths in it."""

    def write(self, path: Path, say: Callable[[str], object] | None = None) -> Path:
        """Write the page into a file of its own, and return its path.

        Args:
            path: where to.
            say: takes a sentence on the absolute paths that the page carries.

        Raises:
            UserError: another process writes it, or it cannot be written.
        """
        with making(path):
            write_text_atomic(path, self.html)
        self.say_paths(path, say)
        return path

    def say_paths(self, path: Path, say: Callable[[str], object] | None) -> None:
        """Say which absolute paths the page carries, if it does.

        Args:
            path: of the page.
            say: takes the sentence; None: nobody asks.
        """
        if self.paths and say is not None:
            more = f" and {len(self.paths) - SHOWN} more" if len(self.paths) > SHOWN else ""
            say(f"{path} carries absolute paths, which --share leaves out: {', '.join(self.paths[:SHOWN])}{more}")


@dataclass(frozen=True)
class Drawing:
    """A plot, and what it shows."""

    svg: Markup
    """Drawn by `plots`, with nothing in it that a data set says, so it is not escaped."""
    caption: str
    data: dict[str, Any] = field(default_factory=dict)
    """The values behind it, which `plots.js` shows where the pointer is; see `drawing.Plot`."""


class Quoted(str):
    """A text from a data set, in which a slash begins no path."""


def render(
    template: str,
    values: Mapping[str, Any],
    paths: Paths,
    *,
    share: bool = False,
    scripts: Iterable[str] = ("plots.js",),
    data: Mapping[str, Any] | None = None,
    notices: Iterable[str] = (),
    reload: int | None = None,
) -> Page:
    """A whole page.

    Args:
        template: its name; one that extends base.html.
        values: what the template uses. Texts are escaped, unless they are `Markup`.
        paths: finds the absolute paths in them.
        share: leave out what leads to the last part of absolute paths.
        scripts: names of scripts of the package, which run in this order. The page lets no others run.
        data: JSON for the scripts, by the id of the element that holds it. Its texts are what a page may show.
        notices: what a reader must know before all else, at the top.
        reload: seconds after which the open page reads itself again, while somebody writes it; None: it does not.
    """
    shown = _shown(paths)
    scripts = [*scripts, *(["reload.js"] if reload is not None else [])]
    sources = [Markup(_file(name)) for name in scripts]
    values = dict(values) | {
        "share": share,
        "notices": list(notices),
        "reload": None if reload is None else {"seconds": reload, "written": round(time.time())},
        "scripts": sources,
        "policy": _policy(sources),
        "data": {name: embedded(value, shown) for name, value in (data or {}).items()},
    }

    # Which paths a page has is known when it is there, and is then said on it.
    page = _environment(shown).get_template(template)
    page.render(values, carried=[])
    carried = tuple(paths.found)
    html = page.render(values, carried=[] if share else carried)
    return Page(html, () if share else carried)


def embedded(value: Any, shown: Shown = lambda text: visible(str(text))) -> Markup:
    """A value as JSON inside a <script>: no character in it can end the element or begin another.

    Numbers that are not finite, which JSON does not have, become null.
    """
    text = json.dumps(_plain(value, shown), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)


def _plain(value: Any, shown: Shown) -> Any:
    if isinstance(value, Markup):  # made by the package: base64, for example
        return str(value)
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(shown(str(key))): _plain(one, shown) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one, shown) for one in value]
    return value


def _shown(paths: Paths) -> Shown:
    def shown(value: Any) -> Any:
        """A value of the run or its data set: with control characters visible, and paths as `paths` has them."""
        if isinstance(value, (Markup, Undefined, int, float)):
            return value
        text = visible(str(value))
        return text if isinstance(value, Quoted) else paths.shown(text)

    return shown


def _environment(shown: Shown) -> Environment:
    """Jinja with every value escaped; a name that the template uses and nobody gave is an error."""
    environment = Environment(
        loader=PackageLoader(PACKAGE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["embedded"] = lambda value: embedded(value, shown)
    return environment


def _file(name: str) -> str:
    return (files(PACKAGE) / "templates" / name).read_text(encoding="utf-8")


def _policy(scripts: Iterable[str]) -> str:
    """A Content-Security-Policy: these scripts alone, and no request, should a text ever become markup."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{one}'" for one in hashes) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; media-src blob: data:; "
        "base-uri 'none'; form-action 'none'"
    )
