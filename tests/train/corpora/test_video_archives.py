"""Archives of strangers: what is not a whole video in one is listed, and none of it is written anywhere else."""

import io
import tarfile
from pathlib import Path

import pytest
from corpus_scene import embedded, put_archive, rows_of

from emcl_train.corpora import archives
from emcl_train.corpora.archives import content_of_archive

pytestmark = pytest.mark.usefixtures("one_thread")


def put_hostile(path: Path, film: bytes) -> Path:
    """One good member among others."""
    with tarfile.open(path, "w") as archive:
        for name in ("good.mp4", "../../outside.mp4", "/tmp/absolute.mp4", "good.mp4", "empty.mp4"):
            member = tarfile.TarInfo(name)
            member.size = 0 if name == "empty.mp4" else len(film)
            archive.addfile(member, io.BytesIO(film))
        for name, kind, target in (
            ("link.mp4", tarfile.SYMTYPE, "/etc/passwd"),
            ("hard.mp4", tarfile.LNKTYPE, "good.mp4"),
            ("pipe.mp4", tarfile.FIFOTYPE, ""),
            ("device.mp4", tarfile.CHRTYPE, ""),
            ("folder.mp4", tarfile.DIRTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    return path


def test_names_and_kinds_of_members_lead_nowhere(scene: Path) -> None:
    film = (scene / "films" / "a.mp4").read_bytes()
    put_hostile(scene / "hostile.tar", film)
    before = {path for path in scene.parent.rglob("*") if not path.is_relative_to(scene / "out")}
    out, report = embedded(scene, str(scene / "hostile.tar"))
    assert list(rows_of(out)) == [f"hostile.tar/{key}" for key in ("good", "../../outside", "/tmp/absolute")]
    assert {key.removeprefix("hostile.tar/") for key in report.damaged} == {
        "link.mp4", "hard.mp4", "pipe.mp4", "device.mp4", "folder.mp4", "good.mp4 (again)", "empty",
    }  # fmt: skip
    after = {path for path in scene.parent.rglob("*") if not path.is_relative_to(scene / "out")}
    assert after == before


def test_an_archive_that_ends_too_early_gives_what_is_whole(scene: Path) -> None:
    film = (scene / "films" / "a.mp4").read_bytes()
    path = put_archive(scene / "a.tar", {"a.mp4": film, "b.mp4": film})
    path.write_bytes(path.read_bytes()[: 512 + len(film) + 2000])
    out, report = embedded(scene, str(path))
    assert list(rows_of(out)) == ["a.tar/a"]
    assert report.damaged == {
        "a.tar/b.mp4": "the archive ends before it does",
        "a.tar": "the archive ends before its last member does",
    }


def test_an_archive_that_ends_in_what_is_no_video_is_not_whole(tmp_path: Path) -> None:
    path = put_archive(tmp_path / "a.tar", {"a.mp4": b"film", "a.json": b"{}" * 500, "b.mp4": b"film"})
    path.write_bytes(path.read_bytes()[:1800])
    found = content_of_archive(path)
    assert [member.key for member in found.videos] == ["a"]
    assert found.damaged == {"": "the archive ends before its last member does"}


@pytest.mark.parametrize("kind", ["zeroed header", "two archives", "far behind"])
def test_zeros_in_the_midst_are_not_taken_for_the_end(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "CHUNK", 1 << 12)
    path = put_archive(tmp_path / "a.tar", {"a.mp4": b"film" * 200, "b.mp4": b"film" * 200})
    whole = path.read_bytes()
    assert content_of_archive(path).damaged == {}
    path.write_bytes(
        {
            "zeroed header": whole[:1536] + bytes(512) + whole[2048:],
            "two archives": whole + whole,
            "far behind": whole + bytes(1 << 16) + b"x",
        }[kind]
    )
    found = content_of_archive(path)
    assert [member.key for member in found.videos] == (["a"] if kind == "zeroed header" else ["a", "b"])
    assert "it has something behind its end" in found.damaged[""]


def test_several_videos_of_a_sample_are_rows_of_their_own(scene: Path) -> None:
    film = (scene / "films" / "a.mp4").read_bytes()
    members = {"0001.front.mp4": film, "0001.back.mp4": b"no film", "0001.json": b"{}", "0002.mp4": film}
    out, report = embedded(scene, str(put_archive(scene / "a.tar", members)))
    assert list(rows_of(out)) == ["a.tar/0001.front.mp4", "a.tar/0002"]
    assert list(report.damaged) == ["a.tar/0001.back.mp4"]


def test_an_archive_without_its_end_is_said(scene: Path) -> None:
    film = (scene / "films" / "a.mp4").read_bytes()
    path = put_archive(scene / "a.tar", {"a.mp4": film, "b.mp4": film})
    path.write_bytes(path.read_bytes()[: 512 + -(-len(film) // 512) * 512])
    found = content_of_archive(path)
    assert [member.key for member in found.videos] == ["a"]
    assert "damaged behind its last whole member" in found.damaged[""]


@pytest.mark.parametrize("kind", ["no archive", "gzip", "empty", "huge header", "garbage behind"])
def test_what_is_no_archive_is_damaged(tmp_path: Path, kind: str) -> None:
    path = put_archive(tmp_path / "a.tar", {"a.mp4": b"film" * 200, "b.mp4": b"film" * 200})
    if kind == "no archive":
        path.write_bytes(b"no archive at all" * 1000)
    elif kind == "gzip":
        with tarfile.open(path, "w:gz") as archive:
            archive.addfile(tarfile.TarInfo("a.mp4"))
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "huge header":
        header = tarfile.TarInfo("././@LongLink")
        header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
        path.write_bytes(path.read_bytes()[:1536] + header.tobuf(tarfile.GNU_FORMAT) + b"x" * 4096)
    else:
        path.write_bytes(path.read_bytes()[:1536] + b"garbage " * 1000)
    found = content_of_archive(path)
    assert [member.key for member in found.videos] == (["a"] if kind in ("huge header", "garbage behind") else [])
    assert found.damaged[""].startswith("the archive is ")


def test_headers_are_all_that_is_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put_archive(tmp_path / "a.tar", {"a.mp4": b"film" * (1 << 19)})
    read = []
    whole = archives._Headers.read
    monkeypatch.setattr(archives._Headers, "read", lambda self, size=-1: read.append(size) or whole(self, size))
    assert [member.size for member in content_of_archive(path).videos] == [4 << 19]
    assert max(read) <= 1024
