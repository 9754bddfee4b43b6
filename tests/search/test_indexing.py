"""index: only what is new is embedded, nothing is lost when it is killed, and what it is told wrong is said."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from clip_folder import put_small_clip
from small_library import FILMS, QUERIES, assert_same_rows, make, rows_of, write_films

from emcl_train.errors import UserError
from emcl_train.search import embedding
from emcl_train.search.indexing import Asked, index
from emcl_train.search.library import Library
from emcl_train.search.tables import MOMENTS, Tables

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data" / "real_videos" / "videos"


def paths_in(library: Path) -> list[str]:
    return [row.path.name for row in Tables(library).files()]


def test_every_film_is_cut_and_embedded(scene: Path) -> None:
    library, report = make(scene)
    assert report.added == len(FILMS)
    assert report.damaged == {}
    assert report.moments == len(Library(library)) == 1 + 3 + 1 + 5
    assert report.seconds == pytest.approx(sum(FILMS.values()) / 10)
    spans = sorted((key, row[:2]) for key, row in rows_of(library).items() if "b.mkv" in key)
    assert [span for _, span in spans] == [(0.0, 2.0), (2.0, 4.0), (4.0, pytest.approx(6.0))]


def test_a_second_call_embeds_nothing(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, _ = make(scene)
    before = rows_of(library)
    monkeypatch.setattr(embedding, "_embedded", pytest.fail)
    _, report = make(scene, folders=(), model=None)
    assert (report.added, report.unchanged, report.removed) == (0, len(FILMS), 0)
    assert rows_of(library) == before


def test_new_changed_moved_copied_and_deleted_files(scene: Path) -> None:
    library, _ = make(scene)
    before = rows_of(library)
    films = scene / "films"

    (films / "a.mp4").unlink()
    shutil.move(films / "b.mkv", films / "deep" / "renamed.mkv")
    shutil.copy(films / "d.mp4", films / "copy of d.mp4")
    write_films(films, {"deep/c.avi": 30}, first=9)
    write_films(films, {"new.mp4": 20}, first=5)
    _, report = make(scene)

    assert (report.added, report.moved, report.removed, report.unchanged) == (2, 2, 1, 1)
    after = rows_of(library)
    assert {key: row for key, row in after.items() if "renamed" in key} == {
        key.replace("b.mkv", "renamed.mkv"): row for key, row in before.items() if "b.mkv" in key
    }
    assert not any("a.mp4" in key or "b.mkv" in key or "nowhere" in key for key in after)
    assert {key[-2:] for key in after if "copy of d.mp4" in key} == {"-0", "-1", "-2", "-3", "-4"}
    old = before["('c.avi',)-0"][2]
    assert after["('c.avi',)-0"][2] != old
    assert sorted(paths_in(library)) == sorted(["c.avi", "renamed.mkv", "copy of d.mp4", "d.mp4", "new.mp4"])


def test_the_first_of_two_copies_may_go(scene: Path) -> None:
    shutil.copy(scene / "films" / "d.mp4", scene / "films" / "e.mp4")
    library, report = make(scene)
    assert (report.added, report.moved) == (len(FILMS), 1)
    (scene / "films" / "d.mp4").unlink()
    _, report = make(scene)
    assert report.added == 0
    assert sum("e.mp4" in key for key in rows_of(library)) == 5


def test_damaged_files_are_listed_and_skipped_until_they_change(scene: Path) -> None:
    broken = scene / "films" / "broken.mp4"
    whole = (scene / "films" / "d.mp4").read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    (scene / "films" / "empty.mp4").touch()
    library, report = make(scene)
    assert sorted(path.name for path in report.damaged) == ["broken.mp4", "empty.mp4"]
    assert sorted(path.name for path, _ in Library(library).damaged) == ["broken.mp4", "empty.mp4"]

    _, report = make(scene)
    assert report.damaged == {}
    shutil.copy(scene / "films" / "a.mp4", broken)
    _, report = make(scene)
    assert (report.added, report.moved) == (0, 1)
    assert [path.name for path, _ in Library(library).damaged] == ["empty.mp4"]


def test_links_that_lead_out_of_the_folder_are_left_out(scene: Path) -> None:
    write_films(scene / "elsewhere", {"secret.mp4": 20}, first=7)
    (scene / "films" / "link.mp4").symlink_to(scene / "elsewhere" / "secret.mp4")
    (scene / "films" / "folder").symlink_to(scene / "elsewhere")
    (scene / "films" / "inside.mp4").symlink_to(scene / "films" / "a.mp4")
    library, report = make(scene)
    assert sorted(path.name for path in report.outside) == ["link.mp4", "secret.mp4"]
    assert "inside.mp4" in paths_in(library)
    assert not {"link.mp4", "secret.mp4"} & set(paths_in(library))


def test_files_of_a_folder_that_is_not_mounted_stay(scene: Path) -> None:
    library, _ = make(scene)
    before = rows_of(library)
    shutil.move(scene / "films", scene / "away")
    _, report = make(scene, folders=())
    assert list(report.kept.values()) == [len(FILMS)]
    (scene / "films").mkdir()
    _, report = make(scene, folders=())
    assert list(report.kept.values()) == [len(FILMS)]
    assert rows_of(library) == before

    _, report = make(scene, folders=(), forget=True)
    assert report.removed == len(FILMS)
    assert len(Library(library)) == 0


def test_several_folders_and_files_of_others_stay(scene: Path) -> None:
    library, _ = make(scene)
    write_films(scene / "more", {"x.mp4": 20}, first=20)
    _, report = make(scene, folders=(scene / "more",))
    assert (report.added, report.unchanged, report.removed) == (1, len(FILMS), 0)
    assert Library(library).about["roots"] == [str(scene / "films"), str(scene / "more")]


def test_another_model_is_refused(scene: Path) -> None:
    make(scene)
    put_small_clip(scene / "other", seed=1)
    with pytest.raises(
        UserError, match=r"was made by .*clip with the fingerprint .* cannot be compared with it; pass --model"
    ):
        make(scene, model=str(scene / "other"))
    shutil.rmtree(scene / "clip")
    put_small_clip(scene / "clip", seed=1)
    with pytest.raises(UserError, match="cannot be compared"):
        Library(scene / "library").search("a thing")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"folders": ()}, "holds no library yet; name the folders of videos"),
        ({"model": None}, "a new library needs --model"),
        ({"folders": ("nowhere",)}, "nowhere is no folder that is there"),
        ({"model": "random"}, 'the model is "random"'),
        ({"piece": 0.0}, "piece is 0 s"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(scene: Path, asked: dict, said: str) -> None:
    if "folders" in asked:
        asked = asked | {"folders": tuple(Path(folder) for folder in asked["folders"])}
    with pytest.raises(UserError, match=said):
        make(scene, **asked)
    assert not (scene / "library").exists()


def test_another_cutting_is_refused(scene: Path) -> None:
    make(scene)
    with pytest.raises(UserError, match=r"is cut into pieces of 2 s; leave --cut and --piece out"):
        make(scene, piece=3.0)


def test_too_few_queries_are_refused_before_anything_is_embedded(scene: Path) -> None:
    (scene / "few.txt").write_text("one\ntwo\n\ntwo\n")
    with pytest.raises(UserError, match=r"few\.txt has 2 different queries, expected at least 19"):
        index(Asked(str(scene / "library"), (scene / "films",), str(scene / "clip"), refine=scene / "few.txt"))
    assert not (scene / "library").exists()


def test_refined_rows_follow_the_library(scene: Path) -> None:
    library, _ = make(scene, refine=True)
    assert Library(library).refines
    before = {key: row for batch in Library(library).vectors(refined=True) for key, row in zip(*batch, strict=True)}
    write_films(scene / "films", {"new.mp4": 40}, first=5)
    make(scene)

    there = Library(library)
    after = {key: row for batch in there.vectors(refined=True) for key, row in zip(*batch, strict=True)}
    assert len(after) == len(there) == len(before) + 2
    assert any((after[key] != before[key]).any() for key in before)
    assert there.cutoff(refine=True).queries == len(QUERIES)


def test_a_folder_that_is_the_library_is_refused(scene: Path) -> None:
    with pytest.raises(UserError, match="is the library, and the folder of videos too"):
        index(Asked(str(scene / "films"), (scene / "films",), str(scene / "clip")))


def start(folder: Path, *more: str) -> subprocess.Popen:
    command = [
        sys.executable,
        *more,
        "-m",
        "emcl_train",
        "index",
        str(folder / "films"),
        "--out",
        str(folder / "library"),
    ]
    command += ["--model", str(folder / "clip"), "--cut", "pieces", "--piece", "2"]
    return subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
    )


KILLED = """
import os, signal, sys
from pathlib import Path
from emcl_train.search import embedding, indexing, tables

count = 0


def dying_at(point, function):
    def counted(*arguments, **named):
        global count
        count += 1
        if count == point:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)

    return counted


def run(folder, point):
    embedding.ROWS_A_COMMIT = 2
    embedding._embedded = dying_at(point, embedding._embedded)
    embedding._Buffer.write = dying_at(point, embedding._Buffer.write)
    for name in ("put_files", "remove_files", "remove_contents", "write_about", "create", "replace", "tidy"):
        setattr(tables.Tables, name, dying_at(point, getattr(tables.Tables, name)))
    places = str(folder / "library"), (folder / "films",), str(folder / "clip")
    indexing.index(indexing.Asked(*places, "pieces", 2.0, folder / "queries.txt"))


# LanceDB has threads, which no fork survives: it is first imported in the children.
assert "lancedb" not in sys.modules
for point in map(int, sys.argv[2:]):
    child = os.fork()
    if not child:
        try:
            run(Path(sys.argv[1]), point)
        finally:
            os._exit(0)
    print("killed" if os.waitpid(child, 0)[1] == signal.SIGKILL else "ended", flush=True)
"""


def test_killed_at_twenty_points_it_goes_on_to_the_same_rows(scene: Path) -> None:
    library, _ = make(scene, refine=True)
    whole = rows_of(library)
    refined = sorted(key for batch in Library(library).vectors(refined=True) for key in batch[0])
    shutil.rmtree(library)

    # Each call goes on where the one before it was killed; the points lie before and behind every kind of commit.
    points = [1, 2, 3, 4, 5, 6, 7, 8, 3, 5, 9, 2, 4, 6, 7, 5, 6, 4, 3, 2]
    command = [sys.executable, "-c", KILLED, str(scene), *map(str, points)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split().count("killed") == len(points), done.stdout
    make(scene, refine=True)
    assert_same_rows(library, whole)
    assert sorted(key for batch in Library(library).vectors(refined=True) for key in batch[0]) == refined


def test_two_processes_share_the_films(scene: Path) -> None:
    library, _ = make(scene)
    one = rows_of(library)
    shutil.rmtree(library)
    done = start(scene, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
    _, said = done.communicate(timeout=300)
    assert done.returncode == 0, said
    assert_same_rows(library, one)


def test_a_signal_leaves_what_is_ready(scene: Path) -> None:
    done = start(scene)
    done.send_signal(signal.SIGTERM)
    done.communicate(timeout=120)
    library, _ = make(scene)
    assert len(Library(library)) == Tables(library).open(MOMENTS).count_rows() == 10


@pytest.mark.skipif(not REAL.is_dir(), reason="the real videos are not here")
@pytest.mark.parametrize("cut", ["shots", "pieces"])
def test_the_real_videos(scene: Path, cut: str) -> None:
    if cut == "shots":
        pytest.importorskip("scenedetect")
    library, report = make(scene, folders=(REAL,), cut=cut, piece=None)
    assert report.added == 20
    assert [path.name for path in report.damaged] == ["video20.mp4"]

    there = Library(library)
    for row in there.files:
        at = 0.6 * row.seconds
        found = there.like(row.path, at, k=1)[0]
        assert found.path == row.path
        assert found.start - 1 <= at <= found.end + 1
        assert found.score == pytest.approx(1.0, abs=1e-5)
