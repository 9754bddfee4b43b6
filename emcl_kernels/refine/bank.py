"""A bank of other queries: how near the items of a gallery are to queries at large, one number an item.

An item that is near to every query is found by all and meant by few: a hub. CSLS and NNN take from each score
weight · r(item), where r is the mean of the item's k largest cosines with a bank of queries that are known beforehand,
such as captions of other videos. What is taken is the same for every query, so it fits into one more number of a
vector: (query, 1) · (item, −weight · r).
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from emcl_kernels.refine import affine
from emcl_kernels.refine.nearest import nearest

GRID = 2.0**-24
"""Rows of a bank are whole multiples of it. float32 has each such number, and float64 has their products and sums."""
SPARE = 6
"""Rows of the bank beyond k that are looked at again, for float32 cannot tell which of those near k are the nearest."""
CHUNK_NUMBERS = 1 << 22  # of the nearest rows of a chunk, in float64: 32 MiB

Search = Callable[[np.ndarray, int], np.ndarray]
"""Of rows `[n, D]` in float32, and k: the k largest inner products of each with the bank, `[n, k]`."""


OTHER = {"text": "video", "video": "text"}
"""By the side of the gallery, that of the queries, and the other way round."""


def on_grid(rows: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """Rows brought to length one, in float64, as whole multiples of GRID."""
    return torch.round(affine.unit(rows) / GRID) * GRID


class Bank:
    """Rows of queries, and the mean of the largest cosines with them.

    Args:
        rows: `[B, D]` in float32, from `on_grid`.
        count: k, at most B.
        search: finds the largest inner products in an index of the rows, in place of comparing with all of them.
    """

    def __init__(self, rows: Float[Tensor, "B D"], count: int, search: Search | None = None) -> None:
        self.rows = rows
        self.count = count
        self.search = search
        self._on: dict[torch.device, Tensor] = {rows.device: rows}

    def nearness(self, rows: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
        """Mean of the k largest inner products of each row with the bank.

        A row alone gives the same bits as in a batch: float32 chooses, with some to spare, and the products of those
        chosen are exact in float64, in whatever order they are added up. Where more than SPARE rows of the bank are
        as near as the k-th, to the rounding of float32, the last digits may differ.

        Args:
            rows: `[N, D]` in float64, from `on_grid`.

        Returns:
            `[N]` in float64.

        Raises:
            ValueError: `search` gave another shape, or numbers that are not finite.
        """
        if self.search is not None:
            return self._by_search(rows)

        found = rows.new_empty(len(rows))
        chosen = min(self.count + SPARE, len(self.rows))
        bank = self._rows_on(rows.device)
        _, places = nearest(rows.float(), bank, chosen)

        size = max(1, CHUNK_NUMBERS // (chosen * rows.shape[1]))
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            of_part = bank[places[start : start + size]].double()
            products = (of_part @ part.unsqueeze(2)).squeeze(2)
            largest = products.topk(self.count).values
            found[start : start + size] = _in_order(largest) / self.count
        return found

    def _rows_on(self, device: torch.device) -> Float[Tensor, "B D"]:
        """The rows on a device, which are brought there once: a model asks for every batch."""
        if device not in self._on:
            self._on[device] = self.rows.to(device)
        return self._on[device]

    def _by_search(self, rows: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
        assert self.search is not None
        largest = np.asarray(self.search(rows.float().cpu().numpy(), self.count))
        if largest.shape != (len(rows), self.count) or not np.isfinite(largest).all():
            raise ValueError(
                f"search gave an array of shape {list(largest.shape)} for {len(rows)} rows and k = {self.count}; "
                f"expected [{len(rows)}, {self.count}] finite inner products: an index of at least k rows has them"
            )
        return _in_order(torch.from_numpy(largest.astype(np.float64)).to(rows.device)) / self.count


class Banks:
    """The banks of a refiner, by their side. Without any, rows are as they are.

    Args:
        banks: by "text" and "video".
        weight: α, what an item's nearness counts beside a cosine.
    """

    def __init__(self, banks: dict[str, Bank], weight: float) -> None:
        self._banks = banks
        self._weight = weight

    def __bool__(self) -> bool:
        return bool(self._banks)

    def rows(self) -> dict[str, Tensor]:
        """Rows `[B, D]` of each bank in float32, by its side."""
        return {side: bank.rows for side, bank in self._banks.items()}

    def serve(self, gallery: str, query_side: str | None = None) -> bool:
        """Whether a side can be the gallery of some queries.

        Items that the queries' bank does not correct are not comparable with those that it does.

        Args:
            gallery: side of the items.
            query_side: of the queries; None: the other one.
        """
        return not self._banks or (query_side or OTHER[gallery]) in self._banks

    def role_of(self, side: str, role: str | None, query_side: str | None = None) -> str:
        """Whether rows are queries or the gallery.

        Args:
            side: of the rows.
            role: what a user asked for; None: what the banks suggest.
            query_side: of the queries that search this gallery, if a user named it.

        Returns:
            "query" or "gallery".

        Raises:
            ValueError: there is no such role or side; or there is a bank, but none that corrects such a gallery.
        """
        if role not in (None, "query", "gallery"):
            raise ValueError(f'role is {role!r}; expected "query" or "gallery"')
        if query_side not in (None, *OTHER):
            raise ValueError(f'query_side is {query_side!r}; expected "text" or "video"')
        if query_side is not None and role == "query":
            raise ValueError('query_side says which queries search a gallery; leave it out, or pass role="gallery"')
        if role is None:
            role = "gallery" if query_side or (side == "video") == ("text" in self._banks) else "query"
        if role == "gallery" and not self.serve(side, query_side):
            searching = query_side or OTHER[side]
            raise ValueError(
                f"{side}s as a gallery that {searching}s search are corrected by a bank of {searching}s, and there is "
                f'none; pass {searching}_bank to fit or set_bank, or role="query" for {side}s that search'
            )
        return role

    def with_last_number(
        self, refined: Float[Tensor, "N D"], side: str, role: str, query_side: str | None = None
    ) -> Float[Tensor, "N E"]:
        """Rows of length one, and behind them what the bank takes from an item, or 1 for a query."""
        if not self._banks:
            return refined
        if role == "query":
            last = refined.new_ones(len(refined))
        else:
            last = -self._weight * self._banks[query_side or OTHER[side]].nearness(on_grid(refined))
        return torch.cat([affine.unit(refined), last[:, None]], dim=1)


def _in_order(columns: Float[Tensor, "N C"]) -> Float[Tensor, " N"]:
    """The sum of each row, added up from the first column to the last, whatever the number of rows."""
    total = torch.zeros_like(columns[:, 0])
    for column in columns.unbind(1):
        total = total + column
    return total
