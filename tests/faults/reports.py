"""Reports of runs whose texts and numbers come from somebody who wants to write into the page or onto the terminal.

A hostile report is compared with one of the same run whose texts are harmless: it has no other kinds of elements, no
other attributes, and no more of them than paths and marks of direction need. Nor does the text stand in it as it is.
"""

import json
import random
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from counts import Counts
from scene import Scene, run_in
from server import Outcome, Server, Servers
from spoken import INSIDE

import emcl_train.report

COUNT = 1
"""Rounds over all texts in full."""
LEAVES = 60
"""Values of results.json, config.json, ... that are replaced one at a time."""

HARMLESS = "a red circle, /home/somebody/clips, \u202eabc\u202c"
MORE = 60
"""Elements that a page may have beside those of harmless texts: each path and each mark of direction has one."""
TEXTS = {
    "script": "<script>alert(1)</script>",
    "image": "<img src=x onerror=alert(1)>",
    "end of the style": "</style><script>alert(1)</script>",
    "end of the title": "</title></head><body onload=alert(1)>",
    "end of a drawing": "</svg><svg onload=alert(1)>",
    "double quote": '" onmouseover="alert(1)" x="',
    "single quote": "' onmouseover='alert(1)' x='",
    "no quote": "x onmouseover=alert(1) y",
    "comment": "<!-- --!> <script>alert(1)</script> -->",
    "marked section": "<![CDATA[ ]]><script>alert(1)</script>",
    "declaration": "<!DOCTYPE x [<!ENTITY y SYSTEM 'file:///etc/passwd'>]>&y;",
    "entities": "&lt;script&gt;alert(1)&lt;/script&gt; &#60;img src=x&#62; &amp;lt;",
    "link": "javascript:alert(1)",
    "link in an element": '<a href="javascript:alert(1)">x</a>',
    "base and refresh": '<base href="http://x/"><meta http-equiv="refresh" content="0;url=http://x/">',
    "style": '<style>@import "http://x/";</style>{background:url(http://x/)}',
    "template": "{{ 7 * 7 }} {% for x in range(9) %}x{% endfor %} ${7*7} {{ config.__class__ }}",
    "markup of the terminal": "[bold red]x[/bold red] [link=http://x/]y[/link] [/] [[",
    "colours of a terminal": "\x1b[2J\x1b[1;31mred\x1b[0m\x1b]8;;http://x/\x07link\x1b]8;;\x07",
    "clipboard of a terminal": "\x1b]52;c;cm0gLXJmIC8=\x07 \x9b31m \x90q\x9c",
    "other controls": "a\x00b\x01c\x07d\x08\x08e\x0bf\x0cg\x7fh\x85i",
    "lines": "first\nerror: second\r\nthird\rfourth\u2028fifth\u2029sixth",
    "order of letters": "abc\u202egnp.exe\u202c \u2066\u2067x\u2069 \u200f\u061c\u200e \u202axyz",
    "without width": "a\u200bb\u200cc\u200dd\ufeffe\u2060f",
    "halves of letters": "x\ud800y\udfffz",
    "long": "<b>" * 40_000,
    "many marks": "a" + "\u0301" * 5000,
    "numbers": "1e999999999 ١٢٣ 𝟙 ½ ∞ -0 NaN",
    "paths": "../../../../etc/passwd /dev/zero ~root file:///etc/passwd \\\\host\\share C:\\x",
}
"""Each stands in the place of every text that a report shows."""
HOSTILE_VALUES = [
    "<script>alert(1)</script>", "\x1b[31m", -1, 0, 10**30, 1e308, float("nan"), float("inf"), None, True, [], {},
    [[[]]],
    {"<b>": "<i>"}, "9" * 5000, ["<b>"] * 1000,
]  # fmt: skip

# Of HTML: what an element must not be, and what may be loaded.
FORBIDDEN = {
    "iframe",
    "object",
    "embed",
    "base",
    "form",
    "link",
    "img src",
    "video",
    "audio",
    "foreignobject",
}
TEMPLATES = Path(emcl_train.report.__file__).parent / "templates"
SCRIPTS = {path.read_text(encoding="utf-8").strip() for path in TEMPLATES.glob("*.js")}
"""Those of the package, which a page has; no text of a run is among them."""
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
BIDI = re.compile(r"[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class Structure(HTMLParser):
    """The elements of a page, their attributes' names, and what could run or load."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, ...]] = []
        self.bad: list[str] = []
        self.open: list[str] = []
        self.script: list[str] | None = None
        """What has been read of a script."""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, *sorted(name for name, _ in attributes)))
        self.open.append(tag)
        if tag in FORBIDDEN:
            self.bad.append(f"<{tag}>")
        if tag == "script" and attributes[:1] != [("type", "application/json")]:
            self.script = []
        for name, value in attributes:
            value = (value or "").strip().lower()
            loads = name in ("src", "href", "xlink:href", "action", "data") and not value.startswith(
                ("#", "data:image/")
            )
            if name.startswith("on") or loads or "javascript:" in value or "expression(" in value:
                self.bad.append(f'<{tag} {name}="{value[:60]}">')

    def handle_endtag(self, tag: str) -> None:
        if tag == "script" and self.script is not None:
            if (source := "".join(self.script).strip()) not in SCRIPTS:
                self.bad.append(f"a script: {source[:60]!r}")
            self.script = None
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if self.script is not None:
            self.script.append(data)
        inside = {"bdi", "pre", "code"} & set(self.open)
        if BIDI.search(data) and not inside and not _is_balanced(data):
            self.bad.append(f"marks of direction outside of <bdi>: {data[:60]!r}")
        if re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", data):
            self.bad.append(f"control characters: {data[:60]!r}")


def _is_balanced(data: str) -> bool:
    """Whether a text's marks of direction end inside it, as isolates do."""
    return data.startswith("\u2068") and data.endswith("\u2069")


def structure_of(page: str) -> Structure:
    structure = Structure()
    structure.feed(page)
    structure.close()
    return structure


def put_text(run: Path, text: str) -> None:
    """A text in the place of every text of a run that a report shows."""

    def change(name: str, edit: Callable[[Any], None]) -> None:
        value = json.loads((run / name).read_text())
        edit(value)
        (run / name).write_text(json.dumps(value))

    def queries(value: Any) -> None:
        value["captions"] = [f"{text} {n}" for n in range(len(value["captions"]))]
        value["video_ids"] = [f"{text} {n}" for n in range(len(value["video_ids"]))]

    def results(value: Any) -> None:
        value["notes"] = [text, f"x {text}"]
        value["left_out"] = {f"{text}": text, "clip": text}
        value["selection"] = text
        value["recipe"] = text
        value["split"] = text
        for row in value["rows"][1:]:
            row["name"] = f"{row['name']} {text}"

    def config(value: Any) -> None:
        value["recipe"] = text
        value["data"]["root"] = text.replace("\x00", "")

    def environment(value: Any) -> None:
        value["python"] = value["platform"] = value["device"] = text
        value["packages"][text] = text

    change("queries.json", queries)
    change("results.json", results)
    change("config.json", config)
    change("environment.json", environment)


def put_value(run: Path, draw: random.Random) -> str:
    """Another value in one place of one file of a run. Returns which."""
    name = draw.choice(
        ("results.json", "results.json", "config.json", "queries.json", "environment.json", "metrics.jsonl")
    )
    path = run / name
    lines = path.read_text().splitlines() if name.endswith("l") else [path.read_text()]
    number = draw.randrange(len(lines))
    value = json.loads(lines[number])
    place: Any = value
    names: list[Any] = []
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw.choice(keys)
        names.append(key)
        deeper = isinstance(place[key], (dict, list)) and len(place[key]) > 0
        if not deeper or draw.random() < 0.1:
            break
        place = place[key]
    place[key] = draw.choice(HOSTILE_VALUES)
    lines[number] = json.dumps(value)
    path.write_text("\n".join(lines) + "\n")
    return f"{name} {'.'.join(map(str, names))} = {str(place[key])[:40]!r}"


def of_the_terminal(outcome: Outcome) -> list[str]:
    """What must not be in what a command prints."""
    problems = []
    for name, text in (("stdout", outcome.out), ("stderr", outcome.err)):
        if found := CONTROLS.search(text):
            problems.append(f"{name} has {found[0]!r}: {text[max(0, found.start() - 30) : found.start() + 30]!r}")
    return problems


def judge(outcome: Outcome, run: Path, harmless: Structure | None) -> list[str]:
    """A report, or one line that says why there is none."""
    problems = of_the_terminal(outcome)
    if outcome.code not in (0, 1):
        problems.append(f"it ended with {outcome.code}")
    if INSIDE.search(outcome.err):
        problems.append(f"a traceback, which ends in {outcome.lines[-1]!r}")
    if outcome.reached_out:
        problems.append(f"it reached out: {outcome.reached_out[:3]}")
    if outcome.code == 1 and harmless is not None:
        problems.append(f"it is refused: {outcome.lines[-1:]}")
    page = run / "report.html"
    if outcome.code == 0 and page.is_file():
        found = structure_of(page.read_bytes().decode("utf-8", "replace"))
        problems += found.bad
        if harmless is not None and (new := set(found.elements) - set(harmless.elements)):
            problems.append(f"elements that harmless texts do not make: {sorted(new)[:3]}")
        if harmless is not None and len(found.elements) > len(harmless.elements) + MORE:
            problems.append(f"{len(found.elements)} elements, and {len(harmless.elements)} of harmless texts")
    return problems


def run(
    seed: int, count: int = COUNT, *, servers: Servers, scene: Scene, only: str = "", leaves: int = LEAVES
) -> Counts:
    """Write a report of each text, `count` times with other folders; and of a run with one value changed."""
    counts = Counts("reports")

    def made(server: Server, text: str, *, plots: bool = False) -> tuple[Outcome, Path]:
        folder = scene.case(("run",))
        (folder / "run" / "report.html").unlink()
        put_text(folder / "run", text)
        return run_in(server, folder, "report", "run", plots=plots), folder

    outcome, folder = made(servers.one, HARMLESS)
    if outcome.code:
        raise RuntimeError(f"the report of harmless texts ended with {outcome.code}: {outcome.err}")
    harmless = structure_of((folder / "run" / "report.html").read_text())
    shutil.rmtree(folder)

    def one_text(server: Server, name: str) -> None:
        outcome, folder = made(server, TEXTS[name], plots=name == "script")
        compared = None if name == "script" else harmless  # with plots it has other elements
        problems = judge(outcome, folder / "run", compared)
        page = folder / "run" / "report.html"
        if re.search("<[a-z!/]", TEXTS[name]) and page.is_file() and TEXTS[name] in page.read_text():
            problems.append("the text stands in the page as it is")
        counts.add("reports with hostile texts", problems, name)
        if not problems:
            shutil.rmtree(folder)

    def one_value(server: Server, number: int) -> None:
        folder = scene.case(("run",))
        (folder / "run" / "report.html").unlink()
        how = put_value(folder / "run", random.Random(f"{seed} {number}"))
        outcome = run_in(server, folder, "report", "run")
        problems = judge(outcome, folder / "run", None)
        counts.add("reports with one hostile value", problems, f"seed {seed}, number {number}: {how}")
        if not problems:
            shutil.rmtree(folder)

    servers.map(one_text, [name for name in TEXTS for _ in range(count)])
    servers.map(one_value, range(leaves))
    return counts
