"""A folder of small films and a CLIP with random weights, and the rows that embed makes of them."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from clip_folder import put_small_clip
from tiny_videos import write_video

from emcl_train.corpora.outcome import Report
from emcl_train.corpora.plan import Asked
from emcl_train.corpora.running import embed_corpus
from emcl_train.tools.shards import Shards

NAMES = [f"{letter}.mp4" for letter in "abcdef"] + [f"deep/{letter}.mkv" for letter in "gh"]


def put_scene(folder: Path, names: list[str] = NAMES) -> Path:
    """Films of changing pictures, each other than the others, and a CLIP."""
    put_films(folder / "films", names)
    put_small_clip(folder / "clip")
    return folder


def put_films(folder: Path, names: list[str]) -> Path:
    for place, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draw = np.random.default_rng(place)
        colours = draw.integers(0, 256, (4, 2, 3))

        def paint(image: np.ndarray, number: int, colours: np.ndarray = colours) -> None:
            image[:24], image[24:] = colours[number // 10]

        write_video(path, [0] * (12 + 3 * place), paint=paint, options={"g": "10"})
    return folder


def put_archive(path: Path, members: dict[str, bytes]) -> Path:
    """A .tar of these members, as webdataset writes one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def embedded(scene: Path, corpus: str = "", out: str = "out", **asked: Any) -> tuple[Path, Report]:
    """Embed the films of a scene, or another corpus, into shards of three clips."""
    settings = {"model": str(scene / "clip"), "clips": 3} | asked
    return scene / out, embed_corpus(Asked(corpus or str(scene / "films"), scene / out, **settings))


def rows_of(out: Path) -> dict[str, tuple[Any, ...]]:
    """Every row by its id: where it is, and its vector; an id that is there twice is an error."""
    found: dict[str, tuple[Any, ...]] = {}
    for shard in Shards.open(out).each():
        for batch in shard.batches(["id", "path", "start", "end", "vector", "content"]):
            for row in batch.to_pylist():
                assert row["id"] not in found, f"{row['id']} is there twice"
                vector = np.array(row["vector"], np.float32)
                found[row["id"]] = row["path"], row["start"], row["end"], row["content"], vector
    return found


def assert_same_rows(found: dict[str, tuple[Any, ...]], expected: dict[str, tuple[Any, ...]]) -> None:
    """The same rows, but for the rounding of another number of threads."""
    assert list(found) == list(expected)
    for key, (*place, vector) in expected.items():
        assert list(found[key][:-1]) == place, key
        assert np.allclose(found[key][-1], vector, atol=1e-6), key
