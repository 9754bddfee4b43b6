"""embed --shards: what is written, that it goes on, and what is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as parquet
import pytest
from clip_folder import put_small_clip
from corpus_scene import NAMES, assert_same_rows, embedded, put_archive, put_films, rows_of
from launching import launched
from safetensors.numpy import load_file

import emcl_train
from emcl_train import cli
from emcl_train.corpora import embedding, running
from emcl_train.data import opening
from emcl_train.data.passing import PassingError
from emcl_train.encoder import Encoder
from emcl_train.errors import UserError
from emcl_train.runs.lock import making
from emcl_train.tools.shards import MOMENTS, Shards, name_of

pytestmark = pytest.mark.usefixtures("one_thread")


def test_rows_are_those_of_the_encoder(scene: Path) -> None:
    out, report = embedded(scene, frames=True)
    assert (report.shards, report.there, report.rows, report.damaged, report.code) == (3, 3, len(NAMES), {}, 0)
    found = rows_of(out)
    assert list(found) == sorted(NAMES)
    encoder = emcl_train.load(scene / "clip")
    for name, (path, start, end, content, vector) in found.items():
        assert path == str(scene / "films" / name)
        assert (start, round(end, 6)) == (0.0, (12 + 3 * NAMES.index(name)) / 10)
        assert len(content) == 32
        assert np.allclose(vector, encoder.encode_video(path)[0], atol=1e-6)

    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["model"]["fingerprint"] == encoder.fingerprint
    assert manifest["frames"] == json.loads(json.dumps(encoder.about()["frames"]))
    assert manifest["plan"] == {"shards": 3, "clips": 3, "file": "plan.parquet"}

    features = load_file(out / "shard-00001.safetensors")
    rows = parquet.read_table(out / name_of(1))
    assert features["frames"].shape == (len(rows), encoder.config.data.num_frames, encoder.width)
    for place, frames, count in zip(rows["path"].to_pylist(), features["frames"], features["num_frames"], strict=True):
        unit = frames[:count].astype(np.float32)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        mean = unit.mean(0) / np.linalg.norm(unit.mean(0))
        assert np.allclose(mean, found[Path(place).relative_to(scene / "films").as_posix()][-1], atol=2e-3)


def test_threads_that_decode_change_nothing(scene: Path) -> None:
    by_threads, _ = embedded(scene, out="threads", workers=3)
    by_none, _ = embedded(scene, workers=0)
    assert_same_rows(rows_of(by_none), rows_of(by_threads))


def test_pieces_are_rows_of_their_own(scene: Path) -> None:
    out, report = embedded(scene, piece=1.0)
    found = rows_of(out)
    assert [key for key in found if key.startswith("deep/h")] == ["deep/h.mkv#0", "deep/h.mkv#1", "deep/h.mkv#2"]
    assert [found[f"deep/h.mkv#{number}"][1] for number in range(3)] == [0.0, 1.0, 2.0]
    assert report.rows == len(found) > len(NAMES)


def test_a_second_start_makes_only_what_is_not_there(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, _ = embedded(scene)
    before = rows_of(out)
    (out / name_of(1)).unlink()
    made = []
    write = running.write_shard
    monkeypatch.setattr(
        running, "write_shard", lambda shards, number, *rest: made.append(number) or write(shards, number, *rest)
    )
    _, report = embedded(scene)
    assert made == report.written == [1]
    assert_same_rows(rows_of(out), before)


def test_damaged_clips_are_listed_and_skipped(scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (scene / "films" / "b.mp4").write_bytes(b"no film at all" * 100)
    (scene / "films" / "c.mp4").write_bytes((scene / "films" / "c.mp4").read_bytes()[:900])
    out, report = embedded(scene)
    assert set(report.damaged) == {"b.mp4", "c.mp4"}
    assert set(rows_of(out)) == set(NAMES) - {"b.mp4", "c.mp4"}
    listed = [json.loads(line) for line in (out / "damaged.jsonl").read_text().splitlines()]
    assert {entry["id"]: entry["reason"] for entry in listed} == report.damaged
    arguments = ["embed", str(scene / "films"), "--out", str(out), "--shards", "--model", str(scene / "clip")]
    assert cli.main([*arguments, "--clips-a-shard", "3"]) == 1
    printed = capsys.readouterr()
    assert "b.mp4 cannot be decoded and is left out" in printed.out + printed.err
    assert f"{out}: 3 shards of 3, 0 of them made now, 6 rows" in printed.out


def test_a_file_that_cannot_be_read_now_leaves_its_shard_for_later(
    scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = embedding.decoded
    with monkeypatch.context() as patch:

        def refused(files, *rest):
            if files[0].items[0].id == "a.mp4":
                raise PassingError(scene / "films" / "a.mp4", "Permission denied", 13)
            return whole(files, *rest)

        patch.setattr(embedding, "decoded", refused)
        out, report = embedded(scene)
        assert report.code == 1
        assert list(report.trouble) == [0]
        assert "Permission denied" in report.trouble[0]
        assert Shards.open(out).missing() == [0]
        assert not (out / "damaged.jsonl").exists()
    _, report = embedded(scene)
    assert (report.written, report.code) == ([0], 0)
    assert set(rows_of(out)) == set(NAMES)


def without_shards(out: Path) -> Shards:
    """The folder with its plan alone."""
    for shard in out.glob("shard-*"):
        shard.unlink()
    return Shards.open(out)


@pytest.mark.parametrize("left", ["mount point", "nothing", "another disk"])
def test_files_that_are_away_for_a_moment_are_no_damage(scene: Path, left: str) -> None:
    """As where a disk is unmounted while the program runs."""
    out, _ = embedded(scene)
    expected = rows_of(out)
    shards, encoder = without_shards(out), emcl_train.load(scene / "clip")
    (scene / "films").rename(scene / "unmounted")
    if left != "nothing":
        (scene / "films").mkdir()
    if left == "another disk":
        put_films(scene / "films" / "other", ["z.mp4"])
    report = running.make_shards(shards, encoder, 0, quiet=True)
    assert (list(report.trouble), report.code, shards.missing()) == ([0, 1, 2], 1, [0, 1, 2])
    for why in report.trouble.values():
        assert "there is no such file, and" in why
        assert "run the command again when it is there, or, if it will never be" in why

    shutil.rmtree(scene / "films", ignore_errors=True)
    (scene / "unmounted").rename(scene / "films")
    report = running.make_shards(shards, encoder, 0, quiet=True)
    assert (report.written, report.code) == ([0, 1, 2], 0)
    assert_same_rows(rows_of(out), expected)


def test_a_film_that_was_removed_is_listed(scene: Path) -> None:
    out, _ = embedded(scene)
    without_shards(out)
    (scene / "films" / "a.mp4").unlink()
    shutil.rmtree(scene / "films" / "deep")
    _, report = embedded(scene)
    assert report.damaged == dict.fromkeys(("a.mp4", "deep/g.mkv", "deep/h.mkv"), "there is no such file")
    assert set(rows_of(out)) == set(NAMES[1:6])


def test_archives_that_are_away_for_a_moment_are_no_damage(scene: Path) -> None:
    films = scene / "films"
    put_archive(scene / "tars" / "a.tar", {"a.mp4": (films / "a.mp4").read_bytes()})
    out, _ = embedded(scene, str(scene / "tars"))
    shards, encoder = without_shards(out), emcl_train.load(scene / "clip")
    (scene / "tars").rename(scene / "unmounted")
    report = running.make_shards(shards, encoder, 0, quiet=True)
    assert "its corpus is not there either" in report.trouble[0]
    assert shards.missing() == [0]


@pytest.mark.parametrize("corpus", ["films", "tars"])
def test_a_film_that_is_still_being_copied_is_not_damaged(
    scene: Path, corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = scene / "films" / "c.mp4"
    if corpus == "tars":
        films = {name: (scene / "films" / name).read_bytes() for name in ("a.mp4", "b.mp4")}
        path = put_archive(scene / "tars" / "a.tar", films)
    whole = path.read_bytes()
    path.write_bytes(whole[:900])
    with monkeypatch.context() as patch:  # the copy goes on a moment later
        patch.setattr(opening, "time", SimpleNamespace(time=time.time, sleep=lambda seconds: path.write_bytes(whole)))
        _, report = embedded(scene, str(scene / corpus))
    assert report.damaged == {}
    assert list(report.trouble) == [0]
    assert "as a file does that is still being written" in report.trouble[0]
    _, report = embedded(scene, str(scene / corpus))
    assert (report.written, report.code) == ([0], 0)


def test_moments_of_other_rows_go_with_a_shard_that_is_made_again(scene: Path) -> None:
    out, _ = embedded(scene)
    (out / MOMENTS).write_bytes(b"of the rows that were there")
    embedded(scene)
    assert (out / MOMENTS).exists()
    (out / name_of(1)).unlink()
    embedded(scene)
    assert not (out / MOMENTS).exists()


def test_frames_are_counted_as_the_tower_gives_them(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """X-CLIP gives one feature of a clip, however many frames it has seen."""
    encode = Encoder.encode_frames

    def one_a_clip(self, frames, mask):
        encoded = encode(self, frames, mask)
        features = replace(
            encoded.features, frames=encoded.features.frames[:, :1], frame_mask=encoded.features.frame_mask[:, :1]
        )
        return replace(encoded, features=features)

    monkeypatch.setattr(Encoder, "encode_frames", one_a_clip)
    out, _ = embedded(scene, frames=True)
    for path in out.glob("shard-*.safetensors"):
        found = load_file(path)
        assert found["num_frames"].tolist() == [1] * len(found["frames"])
        assert not found["frames"][:, 1:].any()


def test_another_model_or_plan_is_refused(scene: Path) -> None:
    out, _ = embedded(scene)
    put_small_clip(scene / "other", seed=1)
    before = rows_of(out)
    with pytest.raises(
        UserError, match=r"with the fingerprint \w{16}, and .*other is .* whose rows cannot be compared"
    ):
        embedded(scene, model=str(scene / "other"))
    for name, asked in {
        "--clips-a-shard 3": {"clips": 4},
        "--piece None": {"piece": 2.0},
        "--frames False": {"frames": True},
    }.items():
        with pytest.raises(UserError, match=f"was begun with {name}"):
            embedded(scene, **asked)
    with pytest.raises(UserError, match="was begun with the corpus"):
        embedded(scene, corpus=str(scene / "films" / "deep"))
    assert_same_rows(rows_of(out), before)

    (scene / "mine").mkdir()
    (scene / "mine" / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already and holds no shards"):
        embedded(scene, out="mine")


def test_clips_that_came_later_are_said(scene: Path) -> None:
    out, _ = embedded(scene)
    put_films(scene / "films", ["z.mp4"])
    (scene / "films" / "a.mp4").unlink()
    _, report = embedded(scene)
    assert "1 clip of the corpus came after the plan" in report.notes[0]
    assert "1 clip of the plan" in report.notes[1]
    assert set(rows_of(out)) == set(NAMES)


def test_a_shard_that_is_none_is_named(scene: Path) -> None:
    out, _ = embedded(scene)
    shards = Shards.open(out)
    shutil.copy(out / name_of(0), out / name_of(1))
    with pytest.raises(UserError, match=r"shard-00001\.parquet is shard 0 of the model"):
        shards.opened(1)
    (out / name_of(1)).write_bytes(b"PAR1 and nothing else")
    with pytest.raises(UserError, match="is no shard that can be read"):
        embedded(scene)


def test_processes_share_the_shards(scene: Path) -> None:
    """One has a shard, and the other makes the rest; then it ends, and the shard is made."""
    out, _ = embedded(scene, out="expected")
    expected = rows_of(out)
    out, _ = embedded(scene)
    for number in range(3):
        (out / name_of(number)).unlink()
    code = (
        "import sys; from pathlib import Path; from emcl_train.runs.lock import making\n"
        f"with making(Path({str(out / name_of(2))!r})): print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        _, report = embedded(scene)
        assert (report.written, report.busy, report.there, report.code) == ([0, 1], [2], 2, 0)
    finally:
        other.kill()
        other.communicate()
    _, report = embedded(scene)
    assert report.written == [2]
    assert_same_rows(rows_of(out), expected)


def command(scene: Path, out: str, *more: str) -> list[str]:
    asked = ["--out", str(scene / out), "--shards", "--model", str(scene / "clip"), "--clips-a-shard", "1"]
    return [sys.executable, "-m", "emcl_train", "embed", str(scene / "films"), *asked, *more]


SLOWED = """
import sys, time
from emcl_train import cli
from emcl_train.corpora import embedding
write = embedding._write
def slow(*arguments):
    time.sleep(0.15)
    write(*arguments)
    time.sleep(0.15)
embedding._write = slow
sys.exit(cli.main(sys.argv[1:]))
"""


def test_killed_at_any_point_it_goes_on(scene: Path) -> None:
    """Two processes at a time, killed at other moments each time, until all is there."""
    expected = rows_of(embedded(scene, out="expected", clips=1)[0])
    words = [sys.executable, "-c", SLOWED, *command(scene, "out")[3:]]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    out = scene / "out"
    seen = []
    for _ in range(2):
        before = len(seen)
        processes = [
            subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for _ in range(2)
        ]
        deadline = time.monotonic() + 300
        while len(seen) <= before and any(one.poll() is None for one in processes) and time.monotonic() < deadline:
            time.sleep(0.02)
            seen = sorted(out.glob("shard-*.parquet"))
        for one in processes:
            one.send_signal(signal.SIGKILL)
            one.wait()
    assert 2 <= len(sorted(out.glob("shard-*.parquet"))) < len(NAMES)
    for shard in out.glob("shard-*.parquet"):
        assert parquet.read_table(shard).num_rows == 1  # whole
    _, report = embedded(scene, clips=1)
    assert report.there == len(NAMES)
    assert_same_rows(rows_of(out), expected)
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


def test_under_torchrun_all_shards_are_made_once(scene: Path) -> None:
    expected = rows_of(embedded(scene, out="expected", clips=1)[0])
    done = launched(*command(scene, "out", "--json", "-")[1:])
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["there"], result["written"], result["rows"]) == (8, 8, 8)
    assert_same_rows(rows_of(scene / "out"), expected)


def test_towers_that_give_no_numbers_end_it(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self, frames, mask):
        raise UserError("the video tower gives numbers that are not finite")

    monkeypatch.setattr(Encoder, "encode_frames", broken)
    with pytest.raises(UserError, match="not finite"):
        embedded(scene)
    assert not list((scene / "out").glob("shard-*"))
    with making(scene / "out" / name_of(0)):  # nobody has it any more
        pass
