"""Put the moments of an exported folder into Qdrant: a server, or a folder of qdrant-client's own local mode.

    pip install qdrant-client pyarrow
    python load.py --url http://localhost:6333 --collection moments

It stands in the folder that `emcl-train export LIBRARY --to qdrant` wrote, and needs nothing else of emcl. A key goes
into the environment as QDRANT_API_KEY. Points are named after their moments, so that a second call, of the same export
or of a later one, replaces points and doubles none. A moment that has left the library since stays: for that, load into
a new collection. README.md says how a query is made.
"""

import argparse
import json
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet

MOMENTS = "moments.parquet"
METADATA = "emcl"
"""Under which name the file says what its rows are, as JSON."""
NAMES = uuid.UUID("7d0f4d0e-6a58-5c0b-9a1e-2f1d3a5b7c90")
"""What the names of points are made from, with the id of the moment: Qdrant takes numbers and UUIDs alone."""
BATCH = 256
"""Points a request: some megabytes, below the 32 that a server takes unless it is told otherwise."""


def point_of(moment: str) -> str:
    """The name of a moment's point."""
    return str(uuid.uuid5(NAMES, moment))


def points_of(file: parquet.ParquetFile) -> Iterator[Any]:
    """The points of a file, one after the other, so that only a batch of them is in memory."""
    from qdrant_client import models

    for batch in file.iter_batches(batch_size=BATCH):
        vectors = batch.column("vector").to_pylist()
        payloads = batch.drop_columns(["vector"]).to_pylist()
        for payload, vector in zip(payloads, vectors, strict=True):
            yield models.PointStruct(id=point_of(payload["id"]), vector=vector, payload=payload)


def load(folder: Path, client: Any, collection: str) -> int:
    """Put all moments of a folder into a collection, which is made if it is not there.

    Args:
        folder: what `emcl-train export LIBRARY --to qdrant` wrote.
        client: a `qdrant_client.QdrantClient`.
        collection: its name.

    Returns:
        How many points the collection has now.

    Raises:
        ValueError: there is a collection of that name whose vectors are of another width or compared otherwise.
    """
    from qdrant_client import models

    file = parquet.ParquetFile(folder / MOMENTS)
    about = json.loads(file.schema_arrow.metadata[METADATA.encode()])
    wanted = models.VectorParams(size=about["numbers"], distance=models.Distance.DOT)
    if not client.collection_exists(collection):
        client.create_collection(collection, vectors_config=wanted)
    there = client.get_collection(collection).config.params.vectors
    if not isinstance(there, models.VectorParams) or (there.size, there.distance) != (wanted.size, wanted.distance):
        raise ValueError(
            f"the collection {collection!r} has vectors of {there}; expected {wanted.size} numbers compared by the "
            f"inner product, as {folder / MOMENTS} has them: pass another --collection"
        )
    client.upload_points(collection, points=points_of(file), batch_size=BATCH, wait=True)
    return int(client.count(collection, exact=True).count)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--url", help="of a server, such as http://localhost:6333")
    place.add_argument("--path", help="folder of qdrant-client's local mode, which needs no server: for a trial")
    parser.add_argument("--collection", default="moments")
    parser.add_argument("--folder", type=Path, default=Path(__file__).resolve().parent, help="the exported folder")
    options = parser.parse_args()
    try:
        from qdrant_client import QdrantClient
    except ImportError:
        print("error: qdrant-client is not installed; pip install qdrant-client", file=sys.stderr)
        return 1

    if options.url:
        client = QdrantClient(url=options.url, api_key=os.environ.get("QDRANT_API_KEY"), timeout=60)
    else:
        client = QdrantClient(path=options.path)
    try:
        count = load(options.folder, client, options.collection)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        client.close()
    print(f"the collection {options.collection!r} has {count} points")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
