"""docs/protocol.md lists what differs from the releases: its settings exist, and defaults are as it says."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from emcl_train.config import BEFORE, RECIPES_BEFORE, RunConfig, flattened
from emcl_train.recipes import RECIPES, load_recipe

PAGE = Path(__file__).resolve().parents[2] / "docs" / "protocol.md"
USUAL = "msrvtt-9k"
# `train.batches any`, or of another recipe `didemo: data.augment none`
PAIR = re.compile(r"`(?:([a-z0-9-]+): )?([a-z_]+\.[a-z_]+) ([^`]+)`")


def tables() -> list[list[list[str]]]:
    """The cells of each table of the page, without its head."""
    found: list[list[list[str]]] = []
    before = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            if not before.startswith("|"):
                found.append([])
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        before = line
    return [rows[2:] for rows in found]


DIFFERENCES, KEPT = tables()
HERE = [pair for row in DIFFERENCES for pair in PAIR.findall(row[2])]
THEIRS = [pair for row in DIFFERENCES for pair in PAIR.findall(row[3])]


def settings(recipe: str) -> dict[str, Any]:
    return flattened(asdict(load_recipe(recipe or USUAL)))


def values_of(name: str) -> tuple[str, ...] | None:
    """What a setting may be, if it is one of a few."""
    section, field = name.split(".")
    hints = get_type_hints(get_type_hints(RunConfig)[section])
    kind = hints[field]
    if kind is bool:
        return "False", "True"
    return tuple(map(str, get_args(kind))) if "Literal" in str(kind) else None


def test_the_page_has_the_tables() -> None:
    assert len(DIFFERENCES) > 15
    assert all(len(row) == 5 for row in DIFFERENCES)
    assert all(len(row) == 4 for row in KEPT)
    assert HERE
    assert THEIRS


@pytest.mark.parametrize(("recipe", "name", "value"), HERE)
def test_a_default_is_what_the_page_says(recipe: str, name: str, value: str) -> None:
    assert recipe in ("", *RECIPES)
    assert str(settings(recipe)[name]) == value


@pytest.mark.parametrize(("recipe", "name", "value"), THEIRS)
def test_what_the_releases_have_can_be_asked_for(recipe: str, name: str, value: str) -> None:
    default = settings(recipe)[name]
    assert str(default) != value
    values = values_of(name)
    if values is not None:
        assert value in values
    else:
        assert isinstance(default, int)
        int(value)


def test_every_row_says_what_theirs_is() -> None:
    """By a setting, or by a dash and what it is that cannot be had."""
    for row in DIFFERENCES:
        assert PAIR.search(row[3]) or row[3].startswith("–"), row[0]


@pytest.mark.parametrize("recipe", RECIPES_BEFORE)
def test_what_a_recipe_had_before_is_said(recipe: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name, before in RECIPES_BEFORE[recipe].items():
        now = settings(recipe)[name]
        assert now != before
        assert f"`{recipe}: {name} {now}`" in page


def test_what_older_runs_had_is_listed_whole() -> None:
    listed = {row[0].strip("`"): (row[1].strip("`"), row[2].strip("`")) for row in KEPT}
    assert listed == {name: (str(settings("")[name]), str(value)) for name, value in BEFORE.items()}
