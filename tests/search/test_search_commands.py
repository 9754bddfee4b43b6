"""The commands index, search and export, as they are typed: what they print, what programs get, and what is refused."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from small_library import FILMS, QUERIES, write_films

from emcl_train import Library, cli
from emcl_train.commands import serving
from emcl_train.search import vector_index
from emcl_train.search.cutoff import Cutoff

ROOT = Path(__file__).resolve().parents[2]
MOMENTS_OF_FILMS = 1 + 3 + 1 + 5
HOW = f"{MOMENTS_OF_FILMS} moments are compared one by one, which is exact; an index comes with 100,000"


class Said:
    """What a command ends with and prints."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out = code, out
        # transformers shows a bar here, where the tests have imported it before the program could tell it not to.
        self.err = re.sub(r"^.*Loading weights.*\n", "", err, flags=re.MULTILINE)

    @property
    def json(self) -> dict:
        return json.loads(self.out)

    @property
    def rows(self) -> list[list[str]]:
        """The table of results: score, from, to, file."""
        found = [line.split(maxsplit=3) for line in self.out.splitlines()]
        return [[*row[:3], row[3].rstrip()] for row in found if len(row) == 4 and re.fullmatch(r"-?\d\.\d{3}", row[0])]


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
        return Said(code, *capsys.readouterr())

    return run


@pytest.fixture
def place(indexed: Path) -> Path:
    return indexed / "library"


def rows_of_results(found) -> list[list[str]]:
    """As the table has them."""
    return [[f"{one.score:.3f}", f"0:{one.start:04.1f}", f"0:{one.end:04.1f}", str(one.path)] for one in found]


# ---- index -----------------------------------------------------------------------------------------------------------


def test_index_says_what_it_has_done_and_goes_on_without_being_told_again(scene: Path, typed) -> None:
    library = scene / "library"
    made = ["--model", scene / "clip", "--cut", "pieces", "--piece", "2"]
    first = typed("index", scene / "films", "--out", library, *made)
    assert first.code == 0
    assert f"{library}: {len(FILMS)} files added; {MOMENTS_OF_FILMS} moments\n" in first.out

    (scene / "films" / "a.mp4").unlink()
    (scene / "films" / "broken.mp4").write_bytes(b"no video")
    write_films(scene / "films", {"new.mp4": 40}, first=9)
    second = typed("index", "--out", library, "--json")
    assert second.code == 1
    assert {name: second.json[name] for name in ("added", "removed", "unchanged", "moments", "moments_in_all")} == {
        "added": 1, "removed": 1, "unchanged": 3, "moments": 2, "moments_in_all": MOMENTS_OF_FILMS - 1 + 2,
    }  # fmt: skip
    assert second.json["library"] == str(library)
    assert list(second.json["damaged"]) == [str(scene / "films" / "broken.mp4")]
    assert "broken.mp4 cannot be decoded and is left out: " in second.err

    listed = typed("search", library, "--damaged")
    assert listed.code == 0
    assert listed.out.startswith(f"{scene / 'films' / 'broken.mp4'}: ")
    assert [one["path"] for one in typed("search", library, "--damaged", "--json").json["damaged"]] == [
        str(scene / "films" / "broken.mp4")
    ]

    again = typed("index", "--out", library, "--quiet")
    assert (again.code, again.out) == (0, f"{library}: 5 files as before; {MOMENTS_OF_FILMS + 1} moments\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["films"], "--out"),
        (["films", "--out", "x"], "a new library needs --model: the folder of a run, or a CLIP's folder or name"),
        (["--out", "x"], "x holds no library yet; name the folders of videos: `emcl-train index FOLDER --out LIBRARY`"),
        (["lost", "--out", "x", "--model", "clip"], "lost is no folder that is there; expected the folder that holds"),
        (["films/a.mp4", "--out", "x", "--model", "clip"], "films/a.mp4 is a file; expected the folder that holds"),
        (["films", "--out", "x", "--model", "lost"], "lost"),
        (["films", "--out", "x", "--model", "clip", "--cut", "scenes"], "'scenes' for argument '--cut'. Expected"),
        (["films", "--out", "x", "--model", "clip", "--piece", "-1"], "piece is -1 s"),
        (["films", "--out", "x", "--model", "clip", "--refine", "no.txt"], "there is no file no.txt; pass --refine"),
        (["films", "--out", "x", "--mode", "clip"], "--mode"),
        (["films", "--out", "films/a.mp4", "--model", "clip"], "films/a.mp4 is a file; pass --out with a"),
    ],
)  # fmt: skip
def test_index_refuses_in_one_sentence(
    arguments: list[str], said: str, scene: Path, typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scene)
    ended = typed("index", *arguments)
    assert ended.code in (1, 2)
    assert said in " ".join(ended.err.replace("│", " ").split())
    assert "Traceback" not in ended.err
    if ended.code == 1:
        assert ended.err.startswith("error: ")
        assert ended.err.count("\n") == 1
    assert sorted(path.name for path in scene.iterdir()) == ["clip", "films"]


# ---- search ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", ["auto", "plain", "refined"])
def test_search_prints_score_span_and_file(rows: str, place: Path, typed) -> None:
    expected = Library(place).search("a red thing", 4, refine={"auto": None, "plain": False, "refined": True}[rows])
    said = typed("search", place, "a red thing", "--k", "4", "--rows", rows)
    assert said.code == 0
    assert said.rows == rows_of_results(expected)
    assert said.out.split("\n")[0].split() == ["score", "from", "to", "file"]
    assert said.out.endswith(f"\n{HOW}\n")


@pytest.mark.parametrize("form", ["bare", "dash", "file"])
def test_search_gives_programs_json_and_nothing_else(form: str, place: Path, tmp_path: Path) -> None:
    flags = {"bare": ["--json"], "dash": ["--json", "-"], "file": ["--json", str(tmp_path / "x.json")]}[form]
    command = [sys.executable, "-m", "emcl_train", "search", str(place), "a red thing", "--k", "3", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads((tmp_path / "x.json").read_text() if form == "file" else done.stdout)
    expected = Library(place).search("a red thing", 3)
    assert found["results"] == [one.as_json() for one in expected]
    assert found | {"results": None, "cutoff": None} == {
        "library": str(place), "query": "a red thing", "like": None, "at": None, "refined": True, "results": None,
        "cutoff": None,
    }  # fmt: skip
    assert found["cutoff"] == Library(place).cutoff().score

    # What is for people is on the other stream.
    table = done.stdout if form == "file" else done.stderr
    assert all(f"{one.score:.3f}" in table for one in expected)


def test_search_by_example_finds_the_second(place: Path, indexed: Path, typed) -> None:
    film = indexed / "films" / "d.mp4"
    said = typed("search", place, "--like", film, "--at", "4.5", "--k", "1", "--json")
    assert [(one["path"], one["start"], one["end"]) for one in said.json["results"]] == [(str(film), 4.0, 6.0)]
    assert (said.json["like"], said.json["at"], said.json["cutoff"]) == (str(film), 4.5, None)
    middle = typed("search", place, "--like", film, "--k", "1")
    assert middle.rows[0][1:] == ["0:04.0", "0:06.0", str(film)]


def test_search_cuts_where_nothing_fits(place: Path, typed) -> None:
    library = Library(place)
    cutoff = library.cutoff()
    for query in ("a red thing", QUERIES[3]):
        every = library.search(query)
        said = typed("search", place, query, "--min", "auto")
        assert said.code == 0
        assert said.rows == rows_of_results([one for one in every if one.score >= cutoff.score])
        if every[0].score < cutoff.score:
            assert said.out == f"nothing here fits: {cutoff.said()}\n"
            assert f"perhaps nothing here fits: {cutoff.said()}\n" in typed("search", place, query).out
        assert typed("search", place, query, "--min", "auto", "--json").json["cutoff"] == cutoff.score


def test_search_says_what_the_cut_is_worth_where_something_fits(
    place: Path, typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    best, second, *_ = [one.score for one in Library(place).search("a red thing")]
    cutoff = Cutoff((best + second) / 2, 0.95, 400, "refined")
    monkeypatch.setattr(Library, "cutoff", lambda library, *, refine=None: cutoff)
    said = typed("search", place, "a red thing", "--min", "auto")
    assert len(said.rows) == 1
    assert said.out.endswith(f"\ncut at {cutoff.score:.3g}: {cutoff.said()}\n{HOW}\n")
    assert "cut at" not in typed("search", place, "a red thing").out


def test_search_says_what_an_index_compares(scene: Path, typed, monkeypatch: pytest.MonkeyPatch) -> None:
    library = scene / "library"
    monkeypatch.setattr(vector_index, "LIMIT", 5)
    monkeypatch.setattr(vector_index, "FEWEST", 2)
    typed("index", scene / "films", "--out", library, "--model", scene / "clip", "--cut", "pieces", "--piece", "2")
    said = typed("search", library, "a red thing")
    plan = vector_index.index_of(Library(library).tables.open("moments")).plan
    assert f" groups, of which a query looks at {plan.probes} by " in said.out


def test_search_leaves_out_what_scores_less(place: Path, typed) -> None:
    scores = [one.score for one in Library(place).search("a red thing", refine=False)]
    middle = (scores[3] + scores[4]) / 2
    said = typed("search", place, "a red thing", "--rows", "plain", f"--min={middle}")
    assert [row[0] for row in said.rows] == [f"{score:.3f}" for score in scores[:4]]
    none = typed("search", place, "a red thing", "--min", "0.99")
    assert (none.code, none.out) == (0, "nothing scores 0.99 or more\n")
    assert typed("search", place, "a red thing", "--min", "0.99", "--json").json["results"] == []


def test_search_opens_the_page_with_what_is_asked(
    place: Path, indexed: Path, typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    class Server:
        def run(self, sockets) -> None:
            opened.append(sockets[0].getsockname()[1])

    def server_of(app: object, seen: str) -> Server:
        opened.append(seen)
        return Server()

    monkeypatch.setattr(serving, "server_of", server_of)
    said = typed("search", place, "a red & blue thing", "--open")
    assert said.code == 0
    assert opened == [f"http://127.0.0.1:{opened[1]}/?q=a+red+%26+blue+thing", opened[1]]
    assert f"library: {MOMENTS_OF_FILMS} moments at http://127.0.0.1:{opened[1]}/" in said.out

    opened.clear()
    film = indexed / "films" / "d.mp4"
    assert typed("search", place, "--like", film, "--at", "4.5", "--open").code == 0
    moment = Library(place).like(film, 4.5, 1)[0].id
    assert opened[0] == f"http://127.0.0.1:{opened[1]}/?like={moment}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "search takes one of QUERY, --like, --eval and --damaged, and none was given"),
        (["q", "--like", "films/a.mp4"], "and QUERY and --like were given"),
        (["q", "--at", "3"], "--at is the second of a video; name it with --like"),
        (["q", "--k", "0"], "k is 0, expected 1 to 1000 results"),
        (["q", "--min", "nan"], "--min is nan, expected a number, such as 0.3, or auto"),
        (["q", "--min", "low"], "auto"),
        (["q", "--rows", "best"], "'best' for argument '--rows'. Expected one of"),
        (["q", "--like"], "--like"),
        (["--like", "lost.mp4"], "there is no file lost.mp4; pass a video to search by its example"),
        (["--like", "queries.txt"], "--like is queries.txt, which cannot be decoded: "),
        (["--like", "queries.txt", "--open"], "--like is queries.txt, which cannot be decoded: "),
        (["--like", "films/a.mp4", "--at", "99"], "at is 99 s, and"),
        (["--like", "films/a.mp4", "--min", "auto"], "pass --min a number with --like, or none"),
        (["--eval", "lost.jsonl"], "lost.jsonl"),
        (["--eval", "lost.jsonl", "--k", "3"], "--k does nothing with --eval; leave one of them out"),
        (["--damaged", "--rows", "plain"], "--rows does nothing with --damaged"),
        (["--damaged", "--model", "lost"], "--model does nothing with --damaged; leave one of them out"),
        (["q", "--open", "--json"], "--json does nothing with --open"),
        (["q", "--model", "lost"], "lost"),
    ],
)  # fmt: skip
def test_search_refuses_in_one_sentence(
    arguments: list[str], said: str, indexed: Path, typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(indexed)
    ended = typed("search", "library", *arguments)
    assert ended.code in (1, 2)
    assert said in " ".join(ended.err.replace("│", " ").split())
    assert "Traceback" not in ended.err
    assert ended.out == ""
    if ended.code == 1:
        assert ended.err.startswith("error: ")
        assert ended.err.count("\n") == 1


@pytest.mark.parametrize("command", [["search", "lost", "q"], ["serve", "lost"],
                                     ["export", "lost", "--to", "faiss", "--out", "x"]], ids=" ".join)  # fmt: skip
def test_what_is_no_library_is_said_with_what_makes_one(
    command: list[str], tmp_path: Path, typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = typed(*command)
    assert (ended.code, ended.err) == (
        1, "error: lost is not there; make one with `emcl-train index FOLDER --out lost`\n",
    )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_query_is_text_and_no_markup(place: Path, indexed: Path, scene: Path, typed) -> None:
    write_films(scene / "films", {"[red]x[/red] <b>.mp4": 20}, first=9)
    library = scene / "library"
    typed("index", scene / "films", "--out", library, "--model", scene / "clip", "--cut", "pieces")
    said = typed("search", library, "[bold]<script>", "--k", "100")
    assert "[red]x[/red] <b>.mp4" in said.out


# ---- search --eval ---------------------------------------------------------------------------------------------------


def test_eval_gives_what_is_computed_from_the_vectors_by_hand(place: Path, tmp_path: Path, typed) -> None:
    library = Library(place)
    lines = [
        {"query": "a red thing", "video": "a.mp4"}, {"query": "a blue thing", "video": "b.mkv", "start": 2, "end": 4},
        {"query": "two things", "video": "deep/c.avi"}, {"query": "nothing", "video": "d", "start": 5, "end": 9},
        {"query": "five of them", "video": "b"}, {"query": "a thing of kind z", "video": "d.mp4", "end": 2},
    ]  # fmt: skip
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    found = typed("search", place, "--eval", path, "--json").json

    texts = library.encoder.encode_text([line["query"] for line in lines]).numpy()
    for how in ("plain", "refined"):
        parts = list(library.vectors(refined=how == "refined"))
        moments = library.places([key for keys, _ in parts for key in keys])
        rows = np.concatenate([values for _, values in parts])
        queries = library.refiner.transform_text(texts) if how == "refined" else texts
        of_moments, of_videos = [], []
        for line, scores in zip(lines, queries @ rows.T, strict=True):
            ranked = [moments[number] for number in np.argsort(-scores)]
            stem = Path(line["video"]).stem
            start, end = line.get("start", 0.0), line.get("end", np.inf)
            right = [
                one.path.stem == stem
                and min(end, one.end) - max(start, one.start) >= 0.5 * min(end - start, one.end - one.start)
                for one in ranked
            ]
            of_moments.append(1 + right.index(True))
            of_videos.append(1 + list(dict.fromkeys(one.path.stem for one in ranked)).index(stem))
        for by, places in (("moments", of_moments), ("videos", of_videos)):
            assert found[by]["places"][how] == places
            for k in (1, 5, 10):
                assert found[by][how][f"R@{k}"]["mean"] == pytest.approx(100 * np.mean(np.array(places) <= k))
    for by in ("moments", "videos"):
        means = {how: found[by][how]["R@1"]["mean"] for how in ("plain", "refined", "gain")}
        assert means["gain"] == pytest.approx(means["refined"] - means["plain"])
    assert (found["queries"], found["with_span"], found["videos_in_all"]) == (6, 3, len(FILMS))
    assert found["moments"]["places"]["plain"] != found["moments"]["places"]["refined"]

    said = typed("search", place, "--eval", path)
    for words in ("R@1", "moments, plain", "moments, refined", "videos, refined", "gain", "chance", "Queries: 6"):
        assert words in said.out


def test_eval_without_a_bank_has_one_row_of_each(scene: Path, typed) -> None:
    library = scene / "library"
    typed("index", scene / "films", "--out", library, "--model", scene / "clip", "--cut", "pieces")
    (scene / "pairs.jsonl").write_text('{"query": "a thing", "video": "a.mp4"}')
    found = typed("search", library, "--eval", scene / "pairs.jsonl", "--json").json
    place = [one.path.name for one in Library(library).search("a thing", 100)].index("a.mp4") + 1
    assert found["moments"]["places"] == {"plain": [place]}
    assert "gain" not in found["moments"]


# ---- export ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", ["auto", "plain"])
@pytest.mark.parametrize("to", ["parquet", "faiss", "qdrant"])
def test_an_export_has_the_librarys_rows_and_ranks_as_it_does(
    to: str, rows: str, place: Path, tmp_path: Path, typed
) -> None:
    """Refined rows have D + 1 numbers, and all are compared by inner product."""
    library = Library(place)
    refined = rows == "auto"
    said = typed("export", place, "--to", to, "--out", tmp_path / "out", "--rows", rows)
    assert said.code == 0
    width = library.width + refined
    assert f"wrote {MOMENTS_OF_FILMS} moments to {tmp_path / 'out'}: README.md, " in said.out
    assert f"{width} numbers a moment ({'refined, with a bank' if refined else 'of the model'})" in said.out

    text = library.encoder.encode_text("a red thing").numpy()
    query = library.refiner.transform_text(text)[0] if refined else text[0]
    assert query.shape == (width,)
    expected = library.search("a red thing", MOMENTS_OF_FILMS, refine=refined)
    found = {"parquet": by_parquet, "faiss": by_faiss, "qdrant": by_qdrant}[to](tmp_path / "out", query)
    assert [key for key, _ in found] == [one.id for one in expected]
    assert [score for _, score in found] == pytest.approx([one.score for one in expected], abs=1e-5)

    name = "moments.ids.parquet" if to == "faiss" else "moments.parquet"
    for row in parquet.read_table(tmp_path / "out" / name).to_pylist():
        there = library.moment(row["id"])
        assert (row["path"], row["start"], row["end"]) == (str(there.path), there.start, there.end)


def by_parquet(folder: Path, query: np.ndarray) -> list[tuple[str, float]]:
    table = parquet.read_table(folder / "moments.parquet")
    scores = np.stack(table["vector"].to_numpy()) @ query
    return [(table["id"][number].as_py(), float(scores[number])) for number in np.argsort(-scores)]


def by_faiss(folder: Path, query: np.ndarray) -> list[tuple[str, float]]:
    import faiss

    ids = parquet.read_table(folder / "moments.ids.parquet")["id"].to_pylist()
    scores, numbers = faiss.read_index(str(folder / "moments.faiss")).search(query[None], len(ids))
    return [(ids[number], float(score)) for number, score in zip(numbers[0], scores[0], strict=True)]


def by_qdrant(folder: Path, query: np.ndarray) -> list[tuple[str, float]]:
    """By the program of the export, and qdrant-client's own store."""
    client = pytest.importorskip("qdrant_client")
    load = [sys.executable, "load.py", "--path", "store"]
    done = subprocess.run(load, cwd=folder, capture_output=True, text=True, check=True)
    assert f"has {MOMENTS_OF_FILMS} points" in done.stdout
    store = client.QdrantClient(path=str(folder / "store"))
    points = store.query_points("moments", query=query.tolist(), limit=MOMENTS_OF_FILMS).points
    store.close()
    return [(point.payload["id"], point.score) for point in points]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "csv", "--out", "x"], "'csv' for argument '--to'. Expected one of"),
        (["--to", "parquet"], "--out"),
        (["--to", "parquet", "--out", "films"], "films"),
        (["--to", "parquet", "--out", "x.parquet"], "--out x.parquet looks like a file; an export is a folder"),
        (["--to", "faiss", "--out", "x", "--description", "Falt"], "--description is 'Falt', and FAISS makes no such"),
        (["--to", "parquet", "--out", "x", "--description", "PQ8"], "--description is of a FAISS index, and --to is p"),
        (["--to", "qdrant", "--out", "x", "--description", "PQ8"], "--description is of a FAISS index, and --to is q"),
        (["--to", "faiss", "--out", "x", "--layout", "emcl"], "--layout"),
    ],
)  # fmt: skip
def test_export_refuses_in_one_sentence(
    arguments: list[str], said: str, indexed: Path, typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(indexed)
    before = sorted(indexed.iterdir())
    ended = typed("export", "library", *arguments)
    assert ended.code in (1, 2)
    assert said in " ".join(ended.err.replace("│", " ").split())
    assert "Traceback" not in ended.err
    assert sorted(indexed.iterdir()) == before


# ---- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["index"], ["Bring a library of moments up to date", "--out LIBRARY", "--cut {auto,shots,pieces}"]),
        (["search"], ["Find the moments that fit a sentence", "--like", "--at", "--min", "--eval", "--open", "--json"]),
        (["serve"], ["Serve a library as a page on this machine", "--port", "--cache-gb"]),
        (["export", "--to", "faiss"], ["Write the moments of a library", "--to {parquet,faiss,qdrant}", "--rows"]),
        (["export"], ["Write the best weights of a run", "export LIBRARY --to parquet --out DIR"]),
    ],
    ids=lambda given: " ".join(given),
)  # fmt: skip
def test_help_says_what_a_command_does_and_takes(command: list[str], words: list[str], typed) -> None:
    said = typed(*command, "--help")
    assert said.code == 0
    text = " ".join(said.out.replace("│", " ").replace("|", ",").split())
    for one in words:
        assert one in text, one
