"""The automatic cut-offs of a library: what its own search finds for queries that none of its videos answers."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from emcl_kernels import Refiner
from emcl_train.encoder import Encoder
from emcl_train.search.cutoff import (
    SHARE,
    Cutoff,
    cutoff_of,
    fewest_queries,
    refined_scores,
    unrelated_captions,
    unrelated_scores,
)
from emcl_train.search.library import Library
from emcl_train.search.tables import MOMENTS, REFINED

PLAIN, BY_REFINED = "plain", "refined"
"""Names of the two ways to search in what a library remembers."""


def cutoffs_of(place: str, encoder: Encoder, texts: list[str]) -> dict[str, Any]:
    """The cut-offs of both ways to search.

    Args:
        place: of the library, which has moments.
        encoder: of its model.
        texts: the queries of its bank; none: captions of many subjects that come with this package.

    Returns:
        As JSON, by way; ways without are left out, as where the queries are too few.
    """
    library = Library(place, encoder)
    queries = texts or unrelated_captions()
    if len(queries) < fewest_queries(SHARE):
        return {}

    found: dict[str, Any] = {PLAIN: _plain(library, encoder, queries).as_json()}
    if library.refines:
        found[BY_REFINED] = _refined(library, encoder, queries).as_json()
    return found


def _plain(library: Library, encoder: Encoder, queries: list[str]) -> Cutoff:
    if library.ranks_by_head:
        best = [library.search(query, 1, refine=False)[0].score for query in queries]
        return cutoff_of(np.array(best), way=encoder.label)
    return cutoff_of(unrelated_scores(encoder.encode_text(queries).numpy(), _blocks(library, MOMENTS)))


def _refined(library: Library, encoder: Encoder, queries: list[str]) -> Cutoff:
    refiner = library.refiner

    def fit(texts: Any) -> Refiner:
        other = Refiner(refiner.map, num_neighbors=refiner.num_neighbors, bank_weight=refiner.bank_weight)
        other.partial_fit(text=texts)
        for rows in _blocks(library, MOMENTS):
            other.partial_fit(video=rows)
        return other

    best = refined_scores(
        encoder.encode_text(queries).numpy(),
        refiner,
        _blocks(library, REFINED),
        raw=lambda: _blocks(library, MOMENTS),
        fit=fit,
    )
    return cutoff_of(best, way="refined")


def _blocks(library: Library, name: str) -> Iterator[np.ndarray]:
    return (values for _, values in library.tables.vectors(name))
