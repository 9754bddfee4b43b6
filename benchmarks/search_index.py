"""A million moments in LanceDB as a library has them: recall, query time and memory, beside FAISS's HNSW and numpy.

    PYTHONPATH=. python benchmarks/search_index.py [--rows 1000000] [--like coco500] [--name NAME]

Moments and queries are synthetic and follow real sets (synthetic_moments.py). Queries are texts of moments that are in
the gallery; the nearest ten are known from comparing with all rows. Each part runs in a process of its own, on two
cores, and its peak is that process's high-water mark: of writing, of building, and of searching. With fewer rows than a
million it is a trial, and no record is written. A record goes to benchmarks/results, and is never edited.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from memory import high_water_kib
from record import RESULTS, Record, made_here, name_of, save
from synthetic_moments import FITTED, WIDTH, Moments

WHOLE = 1_000_000
QUERIES = 256
SETTING = 64
"""Queries more, by which FAISS's setting is chosen; ours follows from the number of rows alone."""
NEAREST = 10
BLOCK = 8192
RECALL, MEDIAN_S, PEAK_MIB = 0.95, 0.030, 2e9 / (1 << 20)
"""Targets: recall at least, median query and memory at most."""
EF_CONSTRUCTION = 40
EF_SEARCH = (64, 128, 256, 512, 1024, 2048)

OURS, EXACT, FAISS, NUMPY = "LanceDB, as a library searches", "LanceDB, exact", "FAISS HNSW", "numpy, exact"
VECTORS, ASKED = "vectors.f32", "asked.npz"

Array = np.ndarray

METHOD = (
    "float32, 512 numbers a moment, inner product, ten nearest. Moments and queries are drawn by "
    "benchmarks/synthetic_moments.py; queries are texts. Recall is the share of the ten nearest, known from comparing "
    "with all rows, that a way finds; the mean over queries. Medians of wall-clock time of single queries, one after "
    "the other, after eight that are not counted; IQR is the interquartile range. Every part runs in a process of its "
    "own, held to as many cores as named, and its peak memory is that process's high-water mark. LanceDB reads "
    "vectors from its files: the system's page cache, which it may take them from, is not part of the peak. numpy and "
    "FAISS have all rows in memory; numpy compares by one matrix-vector product. FAISS: IndexHNSWFlat by inner "
    f"product, M = 32, filled in blocks; its efSearch is the least of {', '.join(map(str, EF_SEARCH))} whose recall on "
    f"{SETTING} other queries is at least {RECALL}."
)


# ---- parts, each in a process of its own -----------------------------------------------------------------------------


def part_write(folder: Path, options: argparse.Namespace) -> Record:
    """The table, the same rows in one file, and queries with their nearest by comparing with all rows."""
    import lancedb
    import pyarrow as pa

    rows = options.rows
    moments = Moments(FITTED[options.like])
    chosen = np.random.default_rng(1).choice(rows, QUERIES + SETTING, replace=False)
    texts = moments.texts(chosen)
    examples = moments.rows(rows, rows + QUERIES)
    nearest = Nearest(np.concatenate([texts, examples]))

    def batches() -> Iterator[Any]:
        with (folder / VECTORS).open("wb") as file:
            for number, block in enumerate(moments.blocks(rows, BLOCK)):
                start = number * BLOCK
                nearest.add(start, block)
                file.write(block.tobytes())
                numbers = np.arange(start, start + len(block))
                yield pa.record_batch(
                    [
                        pa.array([f"{number // 60:032x}-{number % 60}" for number in numbers]),
                        pa.array(numbers.astype(np.int64)),
                        pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), WIDTH),
                    ],
                    schema=schema,
                )

    schema = pa.schema([("id", pa.string()), ("row", pa.int64()), ("vector", pa.list_(pa.float32(), WIDTH))])
    begin = time.perf_counter()
    lancedb.connect(folder / "library").create_table("moments", batches(), schema=schema)
    seconds = time.perf_counter() - begin
    np.savez(folder / ASKED, asked=nearest.asked, rows=nearest.rows, scores=nearest.scores)
    return {"seconds": seconds}


class Nearest:
    """The nearest rows of some queries, from blocks of all rows."""

    def __init__(self, asked: Array) -> None:
        self.asked = asked
        self.scores = np.full((len(asked), NEAREST), -np.inf, np.float32)
        self.rows = np.full((len(asked), NEAREST), -1)

    def add(self, start: int, block: Array) -> None:
        found = self.asked @ block.T
        scores = np.concatenate([self.scores, found], axis=1)
        numbers = np.broadcast_to(np.arange(start, start + len(block)), found.shape)
        rows = np.concatenate([self.rows, numbers], axis=1)
        best = np.argpartition(-scores, NEAREST - 1, axis=1)[:, :NEAREST]
        self.scores = np.take_along_axis(scores, best, axis=1)
        self.rows = np.take_along_axis(rows, best, axis=1)


def part_build(folder: Path, options: argparse.Namespace) -> Record:
    """The index as a library gets it."""
    from emcl_train.search import vector_index

    table = opened(folder)
    begin = time.perf_counter()
    vector_index.create_index(table, force=True)
    return {"seconds": time.perf_counter() - begin, "about": vector_index.describe(table)}


def part_search(folder: Path, options: argparse.Namespace) -> Record:
    """Queries as a library answers them."""
    from emcl_train.search import vector_index

    table = opened(folder)
    return measured(folder, lambda row: vector_index.search(table, row, NEAREST, ["row"])["row"].to_numpy())


def part_exact(folder: Path, options: argparse.Namespace) -> Record:
    """A few queries without the index."""
    table = opened(folder)

    def ask(row: Array) -> Array:
        search = table.search(row, vector_column_name="vector").distance_type("dot").bypass_vector_index()
        return np.asarray(search.select(["row", "_distance"]).limit(NEAREST).to_arrow()["row"])

    return measured(folder, ask, queries=32)


def part_faiss(folder: Path, options: argparse.Namespace) -> Record:
    """HNSW, filled in blocks."""
    import faiss

    faiss.omp_set_num_threads(options.cores)
    index = faiss.IndexHNSWFlat(WIDTH, 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = options.ef_construction
    begin = time.perf_counter()
    every = np.memmap(folder / VECTORS, np.float32, "r").reshape(-1, WIDTH)
    for start in range(0, len(every), 1 << 16):
        index.add(np.array(every[start : start + (1 << 16)]))
        print(f"{len(every) and index.ntotal} rows, {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    build = time.perf_counter() - begin
    del every

    asked, rows = asked_of(folder)
    faiss.omp_set_num_threads(1)  # as FAISS takes one thread a query
    for setting in EF_SEARCH:
        index.hnsw.efSearch = setting
        found = index.search(asked[QUERIES : QUERIES + SETTING], NEAREST)[1]
        if recall(found, rows[QUERIES : QUERIES + SETTING]) >= RECALL:
            break
    done = measured(folder, lambda row: index.search(row[None], NEAREST)[1][0])
    return done | {"build_s": build, "setting": f"efConstruction {options.ef_construction}, efSearch {setting}"}


def part_numpy(folder: Path, options: argparse.Namespace) -> Record:
    """All rows in memory, one product a query."""
    every = np.fromfile(folder / VECTORS, np.float32).reshape(-1, WIDTH)

    def ask(row: Array) -> Array:
        scores = every @ row
        return np.argpartition(-scores, NEAREST)[:NEAREST].copy()  # a view would keep all of them in memory

    return measured(folder, ask)


PARTS = {"write": part_write, "build": part_build, "search": part_search, "exact": part_exact, "faiss": part_faiss,
         "numpy": part_numpy}  # fmt: skip


def opened(folder: Path) -> Any:
    import lancedb

    return lancedb.connect(folder / "library").open_table("moments")


def asked_of(folder: Path) -> tuple[Array, Array]:
    """All queries, texts and then moments, and the rows that are nearest to each."""
    with np.load(folder / ASKED) as file:
        return file["asked"], file["rows"]


def recall(found: Array, rows: Array) -> float:
    return float(np.mean([len(set(a.tolist()) & set(b.tolist())) / NEAREST for a, b in zip(found, rows, strict=True)]))


def measured(folder: Path, ask: Callable[[Array], Array], queries: int = QUERIES) -> Record:
    """Seconds of each query by a text, and the share of the nearest that it finds; of examples the share too."""
    asked, rows = asked_of(folder)
    for row in asked[-8:]:
        ask(row)
    seconds = []
    found = []
    for row in asked[:queries]:
        begin = time.perf_counter()
        found.append(ask(row))
        seconds.append(time.perf_counter() - begin)
    examples = [ask(row) for row in asked[-queries:]]
    return {
        "seconds": seconds,
        "recall": recall(np.array(found), rows[:queries]),
        "recall_of_examples": recall(np.array(examples), rows[-queries:]),
    }


# ---- the whole -------------------------------------------------------------------------------------------------------


def run(part: str, folder: Path, options: argparse.Namespace) -> Record:
    """A part in a process of its own, on as many cores as were asked for."""
    arguments = ["--rows", str(options.rows), "--like", options.like, "--cores", str(options.cores),
                 "--ef-construction", str(options.ef_construction)]  # fmt: skip
    threads = {name: str(options.cores) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--part", part, "--folder", str(folder), *arguments],
        stdout=subprocess.PIPE, text=True, check=True, env=os.environ | threads,
    )  # fmt: skip
    found: Record = json.loads(done.stdout.splitlines()[-1])
    line = {key: value for key, value in found.items() if key != "seconds"}
    if isinstance(found.get("seconds"), list):
        line["median_ms"] = round(1e3 * statistics.median(found["seconds"]), 2)
    print(f"{part}, {time.perf_counter() - begin:.0f} s: {line}", flush=True)
    return found


def way(found: Record, note: str) -> Record:
    """A row of the record."""
    low, _, high = statistics.quantiles(found["seconds"], n=4)
    return {
        "median_s": statistics.median(found["seconds"]),
        "iqr_s": high - low,
        "repeats": len(found["seconds"]),
        "peak_mib": found["peak_mib"],
        "recall": found["recall"],
        "recall_of_examples": found["recall_of_examples"],
        "note": f"recall@10 {found['recall']:.3f}, by example {found['recall_of_examples']:.3f}; {note}",
        "seconds": found["seconds"],
    }


def record_of(parts: dict[str, Record], options: argparse.Namespace) -> Record:
    """What was measured, as records have it."""
    write, build, search, hnsw = (parts[name] for name in ("write", "build", "search", "faiss"))
    ours = way(search, f"built in {build['seconds']:.0f} s with {build['peak_mib']:.0f} MiB at most")
    made = made_here(
        f"Search among {options.rows:,} moments",
        f"{options.cores} cores",
        "PYTHONPATH=. python benchmarks/search_index.py",
        {name: version(name) for name in ("lancedb", "faiss-cpu", "numpy", "pyarrow")},
    )
    return made | {
        "method": METHOD + f" Rows follow {options.like}. Index: {json.dumps(build['about'])}.",
        "targets": [
            target("recall@10", search["recall"], RECALL, "≥", "{:.3f}"),
            target("median query, ms", 1e3 * ours["median_s"], 1e3 * MEDIAN_S, "≤", "{:.1f}"),
            target("peak memory of building, MiB", build["peak_mib"], PEAK_MIB, "≤", "{:.0f}"),
            target("peak memory of searching, MiB", search["peak_mib"], PEAK_MIB, "≤", "{:.0f}"),
            target("peak memory of writing, MiB", write["peak_mib"], PEAK_MIB, "≤", "{:.0f}"),
        ],
        "cases": [
            {
                "shape": f"ten nearest of {options.rows:,} moments of {WIDTH} numbers",
                "dtype": "float32",
                "ways": {
                    OURS: ours,
                    EXACT: way(parts["exact"], "without the index"),
                    FAISS: way(hnsw, f"{hnsw['setting']}; built in {hnsw['build_s']:.0f} s"),
                    NUMPY: way(parts["numpy"], "all rows in memory"),
                },
            }
        ],
        "parts": parts,
    }


def target(what: str, value: float, bound: float, sign: str, form: str) -> Record:
    met = value >= bound if sign == "≥" else value <= bound
    shown = form.format(bound) if sign == "≤" else str(bound)
    verdict = "met" if met else "missed"
    return {"case": what, "target": f"{sign} {shown}", "measured": form.format(value), "verdict": verdict}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=WHOLE, help="fewer are a trial, without a record")
    parser.add_argument("--like", choices=sorted(FITTED), default="coco500", help="real set that the rows follow")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--ef-construction", type=int, default=EF_CONSTRUCTION, help="of FAISS's HNSW")
    parser.add_argument("--skip", nargs="*", default=[], choices=["exact", "faiss", "numpy"], help="of a trial")
    parser.add_argument("--folder", type=Path, help="for files of the run, 5 GB at a million; default: a temporary one")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    parser.add_argument("--name", help="of the record's files; by default <date>-<processor>-search-index")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()

    if options.part is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
        found = PARTS[options.part](options.folder, options)
        print(json.dumps(found | {"peak_mib": high_water_kib() / 1024}))
        return 0

    trial = options.rows < WHOLE
    if options.skip and not trial:
        parser.error("a record has all ways; --skip is for a trial with fewer --rows")
    name = None if trial else name_of("search-index", options.name, options.out)
    if name is None and not trial:
        return 1

    with tempfile.TemporaryDirectory(prefix="search-index-") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        parts = {part: run(part, folder, options) for part in PARTS if part not in options.skip}
    if options.skip:
        return 0
    record = record_of(parts, options)
    for row in record["targets"]:
        print(f"{row['case']:<32} {row['measured']:<12} {row['target']:<8} {row['verdict']}")
    if name is not None:
        save(record, options.out, name)
        print(f"wrote {options.out / name}.json and .md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
