"""A library's refined rows: the map and the bank, fitted to its own rows and to queries that are known beforehand."""

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa

from emcl_kernels import Refiner
from emcl_train.data.annotation_files import read_text
from emcl_train.encoder import Encoder
from emcl_train.errors import UserError
from emcl_train.search import vector_index
from emcl_train.search.tables import MAP, MOMENTS, OF_REFINER, PLACE, REFINED, REFINER, Tables, of_refined

MULTIPLE = 16
"""Refined rows are as wide as a multiple of it, with zeros behind: indexes quantise by parts."""
FEWEST = 50
"""Queries below which the map and the bank say little."""


def read_queries(path: Path, fewest: int) -> list[str]:
    """The queries of a file, one a line, each once.

    Raises:
        UserError: there is no such file, or it has too few.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}; pass --refine a text file with a query a line")
    lines = [line.strip() for line in read_text(path).split("\n")]
    texts = list(dict.fromkeys(line for line in lines if line))
    if len(texts) < fewest:
        raise UserError(
            f"{path} has {len(texts)} different queries, expected at least {fewest}; write down what people ask for, a "
            f"query a line, such as queries of earlier days or captions of other videos"
        )
    return texts


def known_queries(tables: Tables) -> list[str]:
    """The queries of the library's bank; none where it has no bank."""
    if not tables.has(REFINER):
        return []
    rows = tables.open(REFINER).search().limit(1).select(["json"]).to_list()
    return list(json.loads(rows[0]["json"])["texts"]) if rows else []


def is_current(tables: Tables, texts: list[str], rows: str) -> bool:
    """Whether the refined rows are of these queries and of the moments that are there."""
    if not (tables.has(REFINER) and tables.has(REFINED)):
        return False
    found = tables.open(REFINER).search().limit(1).select(["json"]).to_list()
    if not found:
        return False

    # Whoever was killed on the way has left rows of another map, or fewer of them.
    told, refined = json.loads(found[0]["json"]), tables.open(REFINED)
    made_by = (refined.schema.metadata or {}).get(MAP.encode(), b"").decode()
    return (told["of"], told["rows"], told.get(MAP, "")) == (hash_of(texts, rows), refined.count_rows(), made_by)


def refine(tables: Tables, encoder: Encoder, texts: list[str], rows: str) -> Refiner:
    """Fit the map to the library's rows and to the queries, which are the bank too, and write the refined rows.

    Args:
        tables: of the library.
        encoder: of its model.
        texts: the queries.
        rows: stands for the moments that are there, see `hash_of_rows`.

    Raises:
        UserError: the rows cannot be refined, as where all are the same.
    """
    bank = encoder.encode_text(texts).numpy()
    refiner = Refiner()
    try:
        refiner.partial_fit(text=bank)
        for _, values in tables.vectors():
            refiner.partial_fit(video=values)
        refiner.set_bank(text_bank=bank)
    except ValueError as error:
        raise UserError(f"the library cannot be refined: {error}") from error

    with TemporaryDirectory(prefix="emcl-library-") as folder:
        path = Path(folder) / "map.safetensors"
        refiner.save(path)
        saved = path.read_bytes()
    # Which rows and which map belong together: those who read see the one before the other.
    map_id = sha256(saved).hexdigest()[:16]

    width = encoder.width + 1
    padded = width + -width % MULTIPLE
    schema = of_refined(padded).with_metadata({MAP: map_id})
    tables.replace(REFINED, schema, _refined_batches(tables, refiner, schema, padded))
    vector_index.create_index(tables.open(REFINED))

    about = {"texts": texts, "width": width, "of": hash_of(texts, rows), "rows": tables.open(REFINED).count_rows()}
    row = pa.RecordBatch.from_pylist([{"map": saved, "json": json.dumps({**about, MAP: map_id})}], schema=OF_REFINER)
    tables.replace(REFINER, OF_REFINER, [row])
    return refiner


def hash_of_rows(tables: Tables) -> str:
    """Stands for the moments that are there; another one where a film came or went."""
    digest = sha256()
    for content, (count, _) in sorted(tables.contents().items()):
        digest.update(f"{content} {count};".encode())
    return digest.hexdigest()[:16]


def _refined_batches(tables: Tables, refiner: Refiner, schema: pa.Schema, width: int) -> Iterator[pa.RecordBatch]:
    for rows, values in tables.vectors(MOMENTS):
        refined = np.zeros((len(values), width), dtype=np.float32)
        made = refiner.transform_video(values)
        refined[:, : made.shape[1]] = made
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(refined.reshape(-1), pa.float32()), width)
        yield pa.RecordBatch.from_arrays([*(rows[name] for name in PLACE), vectors], schema=schema)


def hash_of(texts: list[str], rows: str) -> str:
    """Stands for queries and moments together."""
    return sha256("\n".join([rows, *texts]).encode()).hexdigest()[:16]
