"""A folder of small films, a CLIP with random weights, and the library that index makes of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clip_folder import put_small_clip
from tiny_videos import write_video

from emcl_train.search.indexing import Asked, Report, index
from emcl_train.search.tables import MOMENTS, Tables

FILMS = {"a.mp4": 24, "b.mkv": 60, "deep/c.avi": 12, "d.mp4": 100}
"""Frames of each, ten a second."""
QUERIES = [f"a thing of kind {letter} and number {number}" for letter in "abcdef" for number in range(5)]


def write_films(folder: Path, films: dict[str, int] | None = None, first: int = 0) -> Path:
    """Films of changing pictures, each other than the others."""
    for place, (name, frames) in enumerate((films or FILMS).items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draw = np.random.default_rng(first + place)
        colours = draw.integers(0, 256, (frames // 10 + 1, 2, 3))

        def paint(image: np.ndarray, number: int, colours: np.ndarray = colours) -> None:
            image[:24], image[24:] = colours[number // 10]

        codec = "mpeg4" if path.suffix == ".avi" else "libx264"
        options = {"g": "10"} if codec == "mpeg4" else {"crf": "10", "preset": "ultrafast", "g": "10"}
        write_video(path, [0] * frames, paint=paint, codec=codec, options=options)
    return folder


def small_clip(folder: Path) -> Path:
    """A CLIP's folder in the layout of transformers, with random weights."""
    return put_small_clip(folder / "clip")


def make(folder: Path, *, refine: bool = False, **asked: Any) -> tuple[Path, Report]:
    """Index the films in `folder/films` into `folder/library`."""
    if refine:
        (folder / "queries.txt").write_text("\n".join(QUERIES))
        asked["refine"] = folder / "queries.txt"
    settings = {"folders": (folder / "films",), "model": str(folder / "clip"), "cut": "pieces", "piece": 2.0} | asked
    report = index(Asked(str(folder / "library"), **settings))
    return folder / "library", report


def rows_of(library: Path) -> dict[str, tuple[Any, ...]]:
    """Every moment of every file: where it is, and its vector to the bit."""
    tables = Tables(library)
    paths: dict[str, list[str]] = {}
    for row in tables.files():
        if row.status == "indexed":
            paths.setdefault(row.content, []).append(row.path.name)
    found = {}
    for row in tables.open(MOMENTS).search().to_arrow().to_pylist():
        vector = np.array(row["vector"], dtype=np.float32).tobytes()
        where = tuple(sorted(paths.get(row["content"], ["nowhere"])))
        key = f"{where}-{row['number']}"
        assert key not in found, f"{key} is there twice"
        found[key] = row["start"], row["end"], vector, row["thumbnail"]
    return found


def assert_same_rows(library: Path, expected: dict[str, tuple[Any, ...]]) -> None:
    """The same moments with the same vectors, but for the rounding of another number of threads."""
    found = rows_of(library)
    assert found.keys() == expected.keys()
    for key, (*place, vector, picture) in expected.items():
        assert [*found[key][:2], found[key][3]] == [*place, picture], key
        rows = [np.frombuffer(one, dtype=np.float32) for one in (found[key][2], vector)]
        assert np.allclose(*rows, atol=1e-6), key


def names(found: Sequence[Any]) -> list[str]:
    """Files of results."""
    return [one.path.name for one in found]


def unit(rows: Any) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.as_tensor(rows), dim=-1)
