"""A library in an object store: made, brought up to date, searched and exported at its address, and what is refused."""

import json
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
from small_library import FILMS, make, rows_of, write_films
from small_store import Store, serving

from emcl_train import Library, cli
from emcl_train.commands import COMMANDS
from emcl_train.search import embedding
from emcl_train.search.reaching import reason_of

ADDRESS = "s3://films/holidays/library"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch):
    with serving("films") as there:
        for name, value in there.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield there


def indexed(scene: Path, *more: str) -> int:
    """What `index` ends with, of the films of a scene into the store."""
    asked = ["--model", str(scene / "clip"), "--cut", "pieces", "--piece", "2"]
    return cli.main(["index", str(scene / "films"), "--out", ADDRESS, *asked, *more])


def test_a_library_in_a_store_is_that_of_a_folder(
    scene: Path, store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = make(scene, refine=True)
    assert indexed(scene, "--refine", str(scene / "queries.txt")) == 0
    assert rows_of(ADDRESS) == rows_of(folder)
    assert not Path("s3:").exists()

    # What is there is not embedded again; what has changed is.
    with monkeypatch.context() as patch:
        patch.setattr(embedding, "_embedded", pytest.fail)
        assert cli.main(["index", "--out", ADDRESS]) == 0
        assert f"{len(FILMS)} files as before" in capsys.readouterr().out
    write_films(scene / "films", {"new.mp4": 40}, first=9)
    (scene / "films" / "a.mp4").unlink()
    assert indexed(scene) == 0
    make(scene)
    assert rows_of(ADDRESS) == rows_of(folder)
    capsys.readouterr()

    assert cli.main(["search", ADDRESS, "s3://is what is searched for", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = [one.as_json() for one in Library(folder).search("s3://is what is searched for")]
    assert found["results"] == expected
    assert found["library"] == ADDRESS
    assert Library(ADDRESS).name == "library"

    assert cli.main(["export", ADDRESS, "--to", "parquet", "--out", str(scene / "exported")]) == 0
    ids = parquet.read_table(scene / "exported" / "moments.parquet")["id"].to_pylist()
    assert sorted(ids) == sorted(key for batch in Library(folder).vectors() for key in batch[0])


def test_a_store_that_is_wrong_is_one_sentence(
    store: Store, scene: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*arguments: str) -> str:
        assert cli.main(list(arguments)) == 1
        printed = capsys.readouterr()
        assert printed.err.count("\n") == 1, printed.err
        assert printed.err.startswith("error: ")
        return printed.err

    words = "check the address, and what LanceDB takes from the environment, such as AWS_ACCESS_KEY_ID"
    assert f"s3://others/x cannot be reached: the store says NoSuchBucket; {words}" in said(
        "search", "s3://others/x", "q"
    )
    assert f"{ADDRESS} holds no library; make one with" in said("search", ADDRESS, "q")
    store.refuses = True
    assert "the store says AccessDenied" in said(
        "index", str(scene / "films"), "--out", ADDRESS, "--model", str(scene / "clip")
    )
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    assert "AWS_ALLOW_HTTP is not true" in said("serve", ADDRESS)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert "there are no credentials" in said("export", ADDRESS, "--to", "faiss", "--out", str(scene / "out"))
    assert not (scene / "out").exists()


def test_a_store_that_goes_away_is_one_sentence(
    store: Store, scene: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert indexed(scene) == 0
    capsys.readouterr()
    whole = Library.search

    def search(*arguments, **named):
        store.refuses = True
        return whole(*arguments, **named)

    monkeypatch.setattr(Library, "search", search)
    assert cli.main(["search", ADDRESS, "a thing"]) == 1
    *bars, said = capsys.readouterr().err.strip().split("\n")
    assert said.startswith(f"error: {ADDRESS} cannot be reached: ")
    assert all("Loading weights" in bar for bar in bars)

    # And while films are embedded.
    store.refuses = False
    write_films(scene / "films", {"new.mp4": 40}, first=9)
    embedded = embedding._embedded

    def last(*arguments):
        store.refuses = True
        return embedded(*arguments)

    monkeypatch.setattr(embedding, "_embedded", last)
    assert indexed(scene) == 1
    assert f"error: {ADDRESS} cannot be reached: " in capsys.readouterr().err
    store.refuses = False
    monkeypatch.undo()


@pytest.mark.parametrize(
    "arguments",
    [
        ["index", "s3://films/x", "--out", "library"], ["index", "films", "--out=library", "--refine", "s3://films/x"],
        ["index", "--out", "library", "--model=s3://films/x"], ["search", "library", "--like", "s3://films/x"],
        ["search", "library", "--eval", "s3://films/x"], ["search", "library", "q", "--json", "s3://films/x"],
        ["export", "library", "--to", "faiss", "--out", "s3://films/x"], ["serve", "library", "--cache", "s3://films/x"],
        ["export", "s3://films/x", "run", "--layout", "openai"],
        ["export", "run", "s3://films/x", "--layout", "openai"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_an_address_of_all_else_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 1
    assert "s3://films/x, an address, expected a file or folder of this machine; download it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["index", "films", "--out", "https://x/y"], ["index", "films", "--out=https://x/y"],
        ["search", "https://x/y", "q"],
        ["search", "--open", "https://x/y", "q"], ["export", "https://x/y", "--to", "faiss", "--out", "x"],
        ["serve", "https://x/y"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_library_is_in_a_folder_or_an_object_store(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 1
    assert (
        "the library is https://x/y, an address, expected a folder of this machine, or an object store's address (s3, "
    ) in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["search", "--open", "s3://b/x", "q"], ["search", "--damaged", "gs://b/x"], ["serve", "--no-open", "az://b/x"],
     ["search", "s3://b/x", "--k", "3", "q://x"], ["index", "--out=s3+ddb://b/x"],
     ["export", "--to", "qdrant", "s3://b/x", "--out", "y"]],
    ids=" ".join,
)  # fmt: skip
def test_the_library_may_stand_behind_flags(arguments: list[str]) -> None:
    cli.refuse_addresses(arguments[1:], COMMANDS[arguments[0]])


def test_what_is_said_of_a_store_that_says_something_else_has_an_end() -> None:
    said = reason_of("Invalid input, something " + "long " * 100 + "\nBacktrace:\n 0: <unknown>")
    assert said.startswith("something long long")
    assert len(said) < 210
