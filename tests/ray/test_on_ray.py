"""embed --engine ray: the shards are those without Ray, whatever dies, and the moments are those of the rows."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus_scene import NAMES, assert_same_rows, embedded, rows_of

from emcl_kernels import Refiner
from emcl_train import cli
from emcl_train.corpora.on_ray import embed_on_ray
from emcl_train.corpora.plan import Asked
from emcl_train.errors import UserError
from emcl_train.tools.arrays import Embeddings
from emcl_train.tools.refine import fit
from emcl_train.tools.shards import Shards, read_moments, read_shards


def on_ray(scene: Path, out: Path, clips: int = 1, model: str = "clip"):
    return embed_on_ray(Asked(str(scene / "films"), out, str(scene / model), clips), actors=2)


@pytest.fixture(scope="session")
def expected(scene: Path) -> dict[str, tuple[Any, ...]]:
    return rows_of(embedded(scene, out="without", clips=1)[0])


def moments_of(out: Path) -> np.ndarray:
    rows = np.asarray(read_shards(out).rows, np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return np.concatenate([(rows.T @ rows).ravel(), rows.sum(0), [len(rows)]])


def test_shards_and_moments_are_those_without_ray(
    scene: Path, tmp_path: Path, cluster: Any, expected: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    words = ["embed", str(scene / "films"), "--out", str(out), "--shards", "--model", str(scene / "clip")]
    assert cli.main([*words, "--clips-a-shard", "1", "--engine", "ray", "--actors", "2", "--quiet"]) == 0
    assert_same_rows(rows_of(out), expected)
    found = read_moments(Shards.open(out), len(NAMES))
    assert found is not None
    assert np.allclose(found, moments_of(out), atol=1e-9)

    # And a refiner that is fitted to them is that of the rows.
    rows = np.asarray(read_shards(out).rows)
    text = Embeddings(rows + np.random.default_rng(0).normal(size=rows.shape) / 3, out, None)
    by_moments, by_rows = Refiner(), Refiner()
    fit(by_moments, text, read_shards(out))
    by_rows.fit(text.rows, rows)
    assert np.allclose(by_moments.transform_video(rows), by_rows.transform_video(rows), atol=1e-6)


def test_a_worker_that_is_killed_in_the_middle_changes_nothing(
    scene: Path, tmp_path: Path, cluster: Any, expected: dict
) -> None:
    out = tmp_path / "out"
    killed: list[int] = []

    def kill() -> None:
        """The process that has a shard in hand, once the first one is there."""
        while not killed:
            records = list(out.glob(".shard-*.writing.json"))
            if records and list(out.glob("shard-*.parquet")):
                try:
                    process = json.loads(records[0].read_text())["process"]
                    os.kill(process, signal.SIGKILL)
                    killed.append(process)
                except (OSError, ValueError):
                    continue
            time.sleep(0.002)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    report = on_ray(scene, out)
    thread.join(5)
    assert killed
    assert killed[0] != os.getpid()
    assert report.there == len(NAMES)
    assert report.code == 0
    assert_same_rows(rows_of(out), expected)
    found = read_moments(Shards.open(out), len(NAMES))
    assert found is not None
    assert np.allclose(found, moments_of(out), atol=1e-9)
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


def test_it_goes_on_where_another_start_was(scene: Path, tmp_path: Path, cluster: Any, expected: dict) -> None:
    out = tmp_path / "out"
    embed = embedded(scene, out=str(out), clips=1)
    (out / "shard-00003.parquet").unlink()
    (out / "shard-00006.parquet").unlink()
    report = on_ray(scene, out)
    assert sorted(report.written) == [3, 6]
    assert_same_rows(rows_of(out), expected)
    assert embed[1].there == len(NAMES)
    with pytest.raises(UserError, match="was begun with --clips-a-shard 1"):
        on_ray(scene, out, clips=2)
