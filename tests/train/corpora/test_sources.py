"""What embed --shards reads: folders, tables, archives of webdataset, and all of them in an object store."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from corpus_scene import NAMES, embedded, put_archive, rows_of
from small_store import Store, serving

from emcl_train import cli
from emcl_train.config import DataConfig
from emcl_train.corpora.sources import Corpus, Item, read_corpus
from emcl_train.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")
FILMS = NAMES[:4]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch):
    with serving("bucket") as there:
        for name, value in there.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield there


def put_few(scene: Path) -> Path:
    """A folder of few of the films."""
    for name in FILMS:
        (scene / "few" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(scene / "films" / name, scene / "few" / name)
    return scene / "few"


def vectors(out: Path) -> np.ndarray:
    return np.stack([row[-1] for row in rows_of(out).values()])


def places(out: Path) -> dict[str, tuple]:
    return {key: (path, start, round(end, 6)) for key, (path, start, end, *_) in rows_of(out).items()}


def test_clips_of_one_file_are_in_one_shard() -> None:
    items = [Item(str(number), path) for number, path in enumerate("aabbbcd")]
    assert [[item.id for item in shard] for shard in Corpus("x", "table", items).shards(3)] == [
        ["0", "1", "2", "3", "4"],
        ["5", "6"],
    ]


def test_a_table_names_spans(scene: Path) -> None:
    lines = [
        {"video": "a.mp4", "captions": ["one"], "id": "first"},
        {"video": "b.mp4", "captions": ["two"], "start": 0.5, "end": 1.0},
        {"video": "a.mp4", "captions": ["three"], "end": 0.4},
        {"video": "lost.mp4", "captions": ["four"]},
        {"video": "a.mp4", "captions": ["five"], "start": 50, "end": 60},
    ]
    table = scene / "films" / "clips.jsonl"
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out, report = embedded(scene, str(table))
    films = scene / "films"
    assert places(out) == {
        "first": (str(films / "a.mp4"), 0.0, 1.2),
        "a.mp4#0-0.4": (str(films / "a.mp4"), 0.0, 0.4),
        "b.mp4#0.5-1": (str(films / "b.mp4"), 0.5, 1.0),
    }
    assert report.damaged["lost.mp4"] == "there is no such file"
    assert "before the span from 50 s on" in report.damaged["a.mp4#50-60"]


def test_a_local_table_may_have_clips_of_which_nothing_is_said(scene: Path) -> None:
    table = scene / "films" / "clips.jsonl"
    table.write_text('{"video": "a.mp4", "captions": []}\n{"video": "b.mp4", "captions": ["two"], "end": 1.0}\n')
    out, report = embedded(scene, str(table))
    assert set(rows_of(out)) == {"a.mp4", "b.mp4#0-1"}
    assert not report.damaged


def test_a_table_that_names_folders_of_frames_is_refused_once(scene: Path) -> None:
    (scene / "films" / "frames").mkdir()
    table = scene / "films" / "clips.jsonl"
    table.write_text("".join(json.dumps({"video": name, "captions": ["x"]}) + "\n" for name in ("a.mp4", "frames")))
    with pytest.raises(UserError, match=r"names 1 folder in place of video files, such as .*frames; a corpus is of"):
        embedded(scene, str(table))
    assert not (scene / "out").exists()


def test_archives_of_webdataset_are_shards(scene: Path) -> None:
    films = scene / "films"
    for number, names in enumerate((FILMS[:3], FILMS[3:])):
        members = {"000/readme.txt": b"what this is", "._a.mp4": b"of a Mac"}
        for name in names:
            members |= {f"x/{name}": (films / name).read_bytes(), f"x/{name[0]}.json": b"{}"}
        put_archive(scene / "tars" / f"s-{number}.tar", members)
    out, report = embedded(scene, str(scene / "tars"))
    assert (report.shards, report.damaged) == (2, {})
    assert list(places(out)) == [f"s-{FILMS.index(name) // 3}.tar/x/{name[0]}" for name in FILMS]
    assert places(out)["s-1.tar/x/d"] == (f"{scene / 'tars' / 's-1.tar'}/x/d.mp4", 0.0, 2.1)

    expected, _ = embedded(scene, str(put_few(scene)), out="expected")
    assert np.allclose(vectors(out), vectors(expected), atol=1e-6)


def test_a_store_gives_what_a_folder_gives(scene: Path, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    folder = put_few(scene)
    files = {name: (folder / name).read_bytes() for name in FILMS}
    store.objects |= {f"videos/{name}": content for name, content in files.items()}
    store.objects["tars/s-0.tar"] = put_archive(scene / "s-0.tar", files).read_bytes()
    lines = [json.dumps({"video": f"videos/{name}", "captions": []}) for name in FILMS[:2]]
    store.objects["clips.jsonl"] = "\n".join(lines).encode()
    expected = vectors(embedded(scene, str(folder), out="expected")[0])

    asked = ["--shards", "--model", str(scene / "clip"), "--clips-a-shard", "3", "--quiet"]
    assert cli.main(["embed", "s3://bucket/videos", "--out", str(scene / "of-folder"), *asked]) == 0
    assert np.array_equal(vectors(scene / "of-folder"), expected)
    assert places(scene / "of-folder")["b.mp4"][0] == "s3://bucket/videos/b.mp4"
    assert cli.main(["embed", "s3://bucket/tars/", "--out", str(scene / "of-tars"), *asked]) == 0
    assert np.allclose(vectors(scene / "of-tars"), expected, atol=1e-6)  # in another shard beside others
    assert cli.main(["embed", "s3://bucket/clips.jsonl", "--out", str(scene / "of-table"), *asked]) == 0
    assert np.allclose(vectors(scene / "of-table"), expected[:2], atol=1e-6)
    assert not list(scene.rglob("*.partial"))

    # What was fetched before is not asked for again; what is refused is said.
    store.refuses = True
    capsys.readouterr()
    assert cli.main(["embed", "s3://bucket/videos", "--out", str(scene / "new"), *asked]) == 1
    said = capsys.readouterr().err.strip().split("\n")[-1]
    assert said.startswith("error: s3://bucket/videos cannot be reached: "), said
    assert not (scene / "new").exists()


def test_an_object_that_cannot_be_read_now_is_not_damaged(scene: Path, store: Store) -> None:
    store.objects |= {f"videos/{name}": (scene / "films" / name).read_bytes() for name in FILMS}
    store.objects["videos/b.mp4"] = b"no film"
    out, report = embedded(scene, "s3://bucket/videos", clips=1)
    assert set(report.damaged) == {"b.mp4"}
    (out / "shard-00000.parquet").unlink()
    del store.objects["videos/a.mp4"]
    _, report = embedded(scene, "s3://bucket/videos", clips=1)
    assert report.damaged["a.mp4"] == "there is no such file"


def test_a_table_in_a_store_names_nothing_else(scene: Path, store: Store) -> None:
    for video in ("../other/a.mp4", "/etc/passwd", "s3://other/a.mp4", "http://x/a.mp4"):
        store.objects["clips.jsonl"] = json.dumps({"video": video, "captions": []}).encode()
        with pytest.raises(UserError, match="names videos beside it or below"):
            read_corpus("s3://bucket/clips.jsonl", DataConfig(), scene)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("nowhere", "is not there; pass a folder of videos"),
        ("clip/vocab.json", "is a file of another kind"),
        ("clip", "holds no video"),
        ("mixed", "holds 1 videos and 1 .tar files"),
        ("http://x/videos", "or an object store's address \\(s3\\)"),
        ("simplecache::s3://x/videos", "or an object store's address \\(s3\\)"),
    ],
)
def test_what_is_no_corpus_is_refused(scene: Path, place: str, said: str) -> None:
    put_archive(scene / "mixed" / "a.tar", {})
    shutil.copy(scene / "films" / "a.mp4", scene / "mixed")
    with pytest.raises(UserError, match=said):
        read_corpus(place if "://" in place else str(scene / place), DataConfig(), scene)
