"""`emcl-train export LIBRARY --to parquet|faiss|qdrant`: the moments of a library for those who have a server.

What is written is a folder that appears when it is whole. It holds the moments in the form that was asked for, a page
on how they are searched, and the refiner if the rows are refined. Rows are read and written in blocks: memory does not
grow with the library, except for a FAISS index, which FAISS builds in memory.

All are compared by the **inner product**. Refined rows of a library with a bank have one more number than the model
gives, and cosine would rank them otherwise.
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from emcl_kernels import Refiner
from emcl_kernels.integrations import indexes
from emcl_train.errors import UserError
from emcl_train.flags import flag
from emcl_train.runs.files import require_free, whole_folder
from emcl_train.search import load_into_qdrant

FORMATS = ("parquet", "faiss", "qdrant")
BLOCK = 16384
"""Moments that are in memory at once: some tens of megabytes."""
TRAINED_ON = 256 << 20
"""Bytes of rows, at most, that a FAISS index is trained on."""
PROBED, PROBED_AT_LEAST = 16, 8
"""An index of lists is told to search one in so many of them, and some at least. FAISS would search a single one."""

MOMENTS = load_into_qdrant.MOMENTS
INDEX = "moments.faiss"
IDS = "moments.ids.parquet"
REFINER = "refiner.safetensors"
LOADER = "load.py"
PAGE = "README.md"
METADATA = load_into_qdrant.METADATA


@runtime_checkable
class Place(Protocol):
    """Where a moment is. A `Found` of the library is one."""

    @property
    def id(self) -> str: ...
    @property
    def path(self) -> Path: ...
    @property
    def start(self) -> float: ...
    @property
    def end(self) -> float: ...
    @property
    def also_at(self) -> Sequence[Path]: ...


@runtime_checkable
class Source(Protocol):
    """What is asked of a library; and, where it `refines`, for its `refiner`, a `Refiner`."""

    @property
    def name(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def refines(self) -> bool: ...
    @property
    def about(self) -> Mapping[str, Any]: ...

    def __len__(self) -> int: ...

    def vectors(self, *, refined: bool, batch: int = BLOCK) -> Iterator[tuple[list[str], np.ndarray]]:
        """Ids and rows of all moments, as they were at one time, in the same order with every call on it."""

    def places(self, ids: Sequence[str]) -> Sequence[Place | None]:
        """Where these moments are; None for one that has left the library since."""


@dataclass(frozen=True)
class About:
    """What the rows are. It goes with them, as JSON."""

    library: str
    numbers: int
    """Of a row."""
    metric: str
    """Always "dot", the inner product."""
    refined: bool
    bank: bool
    """Whether the last number of a row is what a bank of queries takes from it."""
    model: Mapping[str, Any]
    """Its path, fingerprint and label."""
    query: str
    """How a query is made, in Python."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    files: tuple[str, ...]
    rows: int
    left_out: int
    """Moments that left the library while it was read."""
    about: About

    def said(self) -> list[str]:
        """It in lines, for people."""
        kind = "refined, with a bank" if self.about.bank else "refined" if self.about.refined else "of the model"
        lines = [
            f"wrote {self.rows:,} moments to {self.folder}: {', '.join(self.files)}",
            f"{self.about.numbers} numbers a moment ({kind}), compared by the inner product; {PAGE} says how to search",
        ]
        if self.left_out:
            lines.append(f"{self.left_out:,} moments left the library in the meantime and are not in it")
        return lines


def export_library(
    library: Source, to: str, out: Path, *, refined: bool | None = None, description: str = "Flat"
) -> Exported:
    """Write the moments of a library into a folder, whole or not at all.

    Args:
        library: where they are.
        to: "parquet", "faiss" or "qdrant".
        out: the folder, which must not exist.
        refined: whether rows are refined; None: where the library has such.
        description: of a FAISS index, as `faiss.index_factory` takes it. "Flat" is exact, "IVF1024,Flat" faster.

    Returns:
        What was written.

    Raises:
        UserError: the folder exists, the library has no moments or no refined ones, FAISS makes no such index of them,
            or the disk is full.

    Examples:
        >>> export_library(Library("library"), "parquet", Path("exported"))
    """
    refined = library.refines if refined is None else refined
    _require(library, to, out, refined)
    with whole_folder(out) as folder:
        if refined:
            _refiner(library).save(folder / REFINER)
        about = _about(library, refined)
        moments = _Moments(library, about)
        if to == "faiss":
            _write_faiss(folder, moments, description)
        else:
            _write_parquet(folder / MOMENTS, moments)
        if to == "qdrant":
            shutil.copyfile(load_into_qdrant.__file__, folder / LOADER)
        (folder / PAGE).write_text(_page(to, about, moments.rows, description), encoding="utf-8")
        files = tuple(sorted(path.name for path in folder.iterdir()))
    return Exported(out, files, moments.rows, moments.left_out, about)


def _require(library: Source, to: str, out: Path, refined: bool) -> None:
    """Refuse what cannot be exported before anything is written."""
    if to not in FORMATS:
        raise UserError(f"{flag('to')} is {to!r}; expected one of {', '.join(FORMATS)}")
    if out.suffix in (".parquet", ".faiss", ".index"):
        raise UserError(
            f"{flag('out')} {out} looks like a file; an export is a folder, with a page on how to search it: pass "
            f"{out.with_suffix('')}"
        )
    require_free(out)
    if refined and not library.refines:
        raise UserError(f"{library.name} has no refined rows; export those of the model, or index it with a refiner")
    if len(library) == 0:
        raise UserError(f"{library.name} has no moments; index some videos first")


def _refiner(library: Any) -> Refiner:
    """The map with its bank. A library without one raises here, so that it is no part of `Source`."""
    refiner: Refiner = library.refiner
    return refiner


def _about(library: Source, refined: bool) -> About:
    """What the rows are."""
    bank = refined and _refiner(library).bank("text") is not None
    return About(
        library=library.name,
        numbers=library.width + bank,
        metric="dot",
        refined=refined,
        bank=bank,
        model=dict(library.about["model"]),
        query="\n".join(_query(library.about["model"], refined, bank)),
    )


class _Moments:
    """The moments of a library in blocks, each with its row, and how many there were."""

    def __init__(self, library: Source, about: About) -> None:
        self.library, self.about = library, about
        self.rows = self.left_out = 0

    def __iter__(self) -> Iterator[tuple[list[Place], np.ndarray]]:
        self.rows = self.left_out = 0
        for ids, rows in self.library.vectors(refined=self.about.refined, batch=BLOCK):
            places = self.library.places(ids)
            here = [place is not None for place in places]
            kept = self._checked(ids, rows)[here]
            self.left_out += len(ids) - len(kept)
            self.rows += len(kept)
            if len(kept):
                yield [place for place in places if place is not None], kept

    def sample(self, share: float) -> np.ndarray:
        """About so large a part of the rows, from all over the library."""
        parts = []
        for number, (ids, rows) in enumerate(self.library.vectors(refined=self.about.refined, batch=BLOCK)):
            chosen = np.random.default_rng([0, number]).random(len(ids)) < share
            parts.append(self._checked(ids, rows)[chosen])
        return np.concatenate(parts)

    def _checked(self, ids: Sequence[str], rows: np.ndarray) -> np.ndarray:
        """Rows without the zeros that the library has behind them."""
        numbers = self.about.numbers
        bad = ~np.isfinite(rows).all(axis=1)
        if rows.shape[1] < numbers or rows[:, numbers:].any() or bad.any():
            wrong = f"moment {ids[int(bad.argmax())]} is not finite" if bad.any() else f"rows are {rows.shape[1]} wide"
            raise UserError(
                f"{self.library.name} is damaged: {wrong}; expected {numbers} finite numbers and zeros behind them. "
                "Index the videos again into a new library"
            )
        return np.ascontiguousarray(rows[:, :numbers], dtype=np.float32)


# ---- the formats -----------------------------------------------------------------------------------------------------

PLACES = [
    ("id", pa.string()),
    ("path", pa.string()),
    ("also_at", pa.list_(pa.string())),
    ("start", pa.float64()),
    ("end", pa.float64()),
]
"""Columns that say where a moment is; seconds are from the first frame of the file."""


def _columns(places: Sequence[Place]) -> list[pa.Array]:
    return [
        pa.array([place.id for place in places], pa.string()),
        pa.array([str(place.path) for place in places], pa.string()),
        pa.array([[str(path) for path in place.also_at] for place in places], pa.list_(pa.string())),
        pa.array([place.start for place in places], pa.float64()),
        pa.array([place.end for place in places], pa.float64()),
    ]


def _schema(about: About, *more: tuple[str, pa.DataType]) -> pa.Schema:
    return pa.schema([*PLACES, *more], metadata={METADATA: json.dumps(asdict(about))})


def _write_parquet(path: Path, moments: _Moments) -> None:
    """Columns of the places, and `vector`, a list of float32."""
    schema = _schema(moments.about, ("vector", pa.list_(pa.float32())))
    # Vectors hardly pack at all.
    packed = dict.fromkeys(schema.names, "zstd") | {"vector": "none"}
    with parquet.ParquetWriter(path, schema, compression=packed, use_dictionary=["path"]) as file:
        for places, rows in moments:
            starts = np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]
            vectors = pa.ListArray.from_arrays(pa.array(starts), pa.array(rows.reshape(-1)))
            file.write_batch(pa.record_batch([*_columns(places), vectors], schema=schema))


def _write_faiss(folder: Path, moments: _Moments, description: str) -> None:
    """An index by the inner product, and beside it the place of each of its numbers, in their order."""
    import faiss

    pad_to = 16 if _cuts_into_parts(description) else 1
    sample = np.zeros((1, moments.about.numbers), np.float32)
    if _is_trained(description, sample, pad_to):
        sample = moments.sample(TRAINED_ON / (sample.nbytes * len(moments.library)))
    try:
        index = indexes.faiss_index(sample, description, pad_to=pad_to)
    except ValueError as error:
        reason = str(error.__cause__).rpartition("failed: ")[2].strip()
        width = indexes.padded(sample[:1], pad_to).shape[1]
        raise UserError(
            f"{flag('description')} is {description!r}, and FAISS makes no such index of rows of {width} numbers: "
            f'{reason}; pass one that faiss.index_factory takes, such as "Flat" or "IVF256,Flat"'
        ) from error
    index.reset()
    _probe_more(index)

    schema = _schema(moments.about)
    with parquet.ParquetWriter(folder / IDS, schema, compression="zstd", use_dictionary=["path"]) as file:
        for places, rows in moments:
            index.add(indexes.padded(rows, pad_to))
            file.write_batch(pa.record_batch(_columns(places), schema=schema))
    faiss.write_index(index, str(folder / INDEX))


def _is_trained(description: str, row: np.ndarray, pad_to: int) -> bool:
    """Whether an index needs rows before it is filled; not if there is no such index."""
    import faiss

    width = indexes.padded(row, pad_to).shape[1]
    try:
        return not faiss.index_factory(width, description, faiss.METRIC_INNER_PRODUCT).is_trained
    except RuntimeError:
        return False


def _cuts_into_parts(description: str) -> bool:
    """Whether an index quantises rows in parts, whose number has to divide the width."""
    return re.search(r"PQ|LSQ|RQ", description) is not None


def _probe_more(index: Any) -> None:
    import faiss

    lists = faiss.try_extract_index_ivf(index)
    if lists is not None:
        lists.nprobe = min(lists.nlist, max(PROBED_AT_LEAST, lists.nlist // PROBED))


# ---- the page --------------------------------------------------------------------------------------------------------


def _query(model: Mapping[str, Any], refined: bool, bank: bool) -> list[str]:
    """Lines of Python that make a query."""
    lines = ["import emcl_train"]
    if refined:
        lines.append("from emcl_kernels import Refiner")
    lines += ["", f"encoder = emcl_train.load({str(model['path'])!r})"]
    lines.append('query = encoder.encode_text(["a dog jumps into water"])')
    if refined:
        lines.append(f'query = Refiner.load("{REFINER}").transform_text(query)')
    if refined and not bank:
        lines.append("query = query / (query**2).sum(-1, keepdims=True) ** 0.5")
    return lines


def _page(to: str, about: About, rows: int, description: str) -> str:
    """How these moments are searched, for people."""
    last = (
        " The last one of a moment is what a bank of queries takes from it, that of a query is 1: compared by cosine, "
        f"or cut to {about.numbers - 1} numbers, they rank otherwise."
        if about.bank
        else " They have length one, so it is their cosine."
    )
    model = f"{about.model.get('label', about.model['path'])}, fingerprint {about.model.get('fingerprint', 'unknown')}"
    refiner = " and the refiner of this folder" if about.refined else ""
    parts = [
        f"# {rows:,} moments of {about.library}",
        f"{about.numbers} numbers a moment, compared by the **inner product** (“dot”, “ip”).{last} A moment is a piece "
        "of a video: `path`, and `start` and `end` in seconds from its first frame; `also_at` are copies of the file.",
        f"A query is made with the same model ({model}){refiner}:",
        _block("python", about.query),
        *_search_lines(to, about, description),
    ]
    return "\n\n".join(parts) + "\n"


def _search_lines(to: str, about: About, description: str) -> list[str]:
    if to == "qdrant":
        return [
            "Into a server, with its key in QDRANT_API_KEY if it asks for one:",
            _block("sh", f"pip install qdrant-client pyarrow\npython {LOADER} --url http://localhost:6333"),
            "Then, in Python:",
            _block(
                "python",
                "from qdrant_client import QdrantClient\n\n"
                'client = QdrantClient(url="http://localhost:6333")\n'
                'for point in client.query_points("moments", query=query[0].tolist(), limit=10).points:\n'
                '    print(point.score, point.payload["path"], point.payload["start"])',
            ),
        ]
    if to == "faiss":
        padded = _cuts_into_parts(description) and about.numbers % 16
        zeros = f"query = np.pad(query, ((0, 0), (0, {-about.numbers % 16})))  # as the index has its rows\n"
        return [
            f"`{INDEX}` is a FAISS index, “{description}”; row i of `{IDS}` is the moment that it calls i:",
            _block(
                "python",
                "import faiss\nimport numpy as np\nimport pyarrow.parquet as parquet\n\n"
                f'index = faiss.read_index("{INDEX}")\nplaces = parquet.read_table("{IDS}").to_pylist()\n'
                + (zeros if padded else "")
                + "scores, numbers = index.search(np.asarray(query, dtype=np.float32), 10)\n"
                "for score, number in zip(scores[0], numbers[0]):\n"
                '    print(score, places[number]["path"], places[number]["start"])',
            ),
        ]
    return [
        f"`{MOMENTS}` has the columns id, path, also_at, start, end and vector, a list of {about.numbers} float32. "
        "Vector databases read that; tell it to compare by the inner product. Without one:",
        _block(
            "python",
            "import numpy as np\nimport pyarrow.parquet as parquet\n\n"
            f'moments = parquet.read_table("{MOMENTS}")\n'
            'vectors = np.stack(moments["vector"].to_numpy())\n'
            "scores = vectors @ np.asarray(query)[0]\n"
            "for number in (-scores).argsort()[:10]:\n"
            '    print(scores[number], moments["path"][number], moments["start"][number])',
        ),
    ]


def _block(language: str, code: str) -> str:
    return f"```{language}\n{code}\n```"
