"""refine takes a folder of shards for one side, and reads it shard by shard."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from corpus_scene import NAMES, embedded, rows_of
from safetensors.numpy import save_file

from emcl_kernels import Refiner
from emcl_train.config import RefineConfig
from emcl_train.errors import UserError
from emcl_train.tools import shards as shards_module
from emcl_train.tools.refine import Asked, refine_files
from emcl_train.tools.shards import Shards, name_of, read_shards

pytestmark = pytest.mark.usefixtures("one_thread")


def put_texts(scene: Path, out: Path, near: float = 0.3) -> Path:
    videos = np.stack([row[-1] for row in rows_of(out).values()])
    draw = np.random.default_rng(0).normal(size=videos.shape)
    np.save(scene / "text.npy", (videos + near * draw).astype(np.float32))
    return scene / "text.npy"


def test_shards_are_refined_as_an_array_is(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, _ = embedded(scene, clips=1)
    text = put_texts(scene, out)
    videos = np.stack([row[-1] for row in rows_of(out).values()])
    np.save(scene / "video.npy", videos)
    expected = refine_files(Asked(str(text), str(scene / "video.npy"), scene / "by-array", paired=True), RefineConfig())

    # At no time two shards in memory.
    held = []
    monkeypatch.setattr(shards_module.ShardRows, "__array__", _never)
    whole = shards_module.Shard.vectors
    monkeypatch.setattr(shards_module.Shard, "vectors", lambda self: held.append(len(whole(self))) or whole(self))
    found = refine_files(Asked(str(text), str(out), scene / "by-shards"), RefineConfig())
    assert max(held) == 1
    assert found.hubness == expected.hubness
    table = parquet.read_table(scene / "by-shards" / "video.parquet")
    assert table.column_names == ["id", "path", "start", "end", "vector"]
    assert table["id"].to_pylist() == sorted(NAMES)
    refined = np.array(table["vector"].to_pylist(), np.float32)
    assert np.allclose(refined, np.load(scene / "by-array" / "video.npy"), atol=1e-6)


def _never(*_: object) -> None:
    pytest.fail("all rows are in memory")


def test_pairs_and_a_bank_work_with_shards(scene: Path) -> None:
    out, _ = embedded(scene)
    text = put_texts(scene, out)
    asked = Asked(str(text), str(out), scene / "refined", paired=True, queries=str(text))
    refined = refine_files(asked, RefineConfig(num_neighbors=3))
    assert refined.results is not None
    assert parquet.read_table(scene / "refined" / "video.parquet")["vector"].type.list_size == 25


def test_moments_that_were_added_up_stand_for_the_rows(scene: Path) -> None:
    out, _ = embedded(scene)
    text = put_texts(scene, out)
    refine_files(Asked(str(text), str(out), scene / "streamed"), RefineConfig())
    rows = read_shards(out).rows
    unit = np.asarray(rows, np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    moments = np.concatenate([(unit.T @ unit).ravel(), unit.sum(0), [len(unit)]])
    fingerprint = Shards.open(out).fingerprint
    save_file({"moments": moments}, out / "moments.safetensors", metadata={"fingerprint": fingerprint})
    assert read_shards(out).packed_moments is not None
    refine_files(Asked(str(text), str(out), scene / "added"), RefineConfig())
    maps = [Refiner.load(scene / name / "map.safetensors") for name in ("streamed", "added")]
    assert np.allclose(*(one.transform_video(np.asarray(rows)) for one in maps), atol=1e-5)

    # Those of other rows stand for none.
    moments[-1] += 1
    save_file({"moments": moments}, out / "moments.safetensors", metadata={"fingerprint": fingerprint})
    assert read_shards(out).packed_moments is None


def test_shards_that_are_not_there_yet_are_named(scene: Path) -> None:
    out, _ = embedded(scene)
    text = put_texts(scene, out)
    (out / name_of(1)).unlink()
    with pytest.raises(UserError, match=r"has 2 of 3 shards, and shard-00001\.parquet is not there yet"):
        refine_files(Asked(str(text), str(out), scene / "refined"), RefineConfig())
    assert not (scene / "refined").exists()
