"""Ways to refine embeddings, or scores with a bank of other queries: each is fitted to rows, and scores other rows.

Rows have length one. *Seen* are the rows that a way may use: it fits to them, and they are its bank. *Test* are the
queries and the gallery that it is measured on. Settings are those of the papers; where a family has several,
`measure.chosen_by_others` chooses for each set by the others.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from emcl_kernels import EMCL, Refiner
from emcl_kernels.refine import EM, Mean, Whitening
from emcl_train.evaluation.rerank import qb_norm

Sides = tuple[Tensor, Tensor]
"""Texts and videos."""


@dataclass
class Seen:
    """Rows that a way may use, with what several ways need of them."""

    text: Tensor
    video: Tensor
    _principal: dict[float, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def principal(self, share: float) -> tuple[Tensor, Tensor]:
        """Eigenvalues and directions of both sides' second moments without a share of their means."""
        if share not in self._principal:
            text, video = (side - share * side.mean(0) for side in (self.text, self.video))
            self._principal[share] = tuple(torch.linalg.eigh(text.T @ text / len(text) + video.T @ video / len(video)))
        return self._principal[share]


Map = Callable[[Seen, Sides, int], tuple[Sides, Sides]]
"""Seen rows, test rows and a seed → both refined, of length one."""
Rerank = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Queries [Q, D], gallery [G, D], bank of queries [B, D] and of gallery-like items [C, D] → scores [Q, G]."""


@dataclass(frozen=True)
class Method:
    """One way, with settings."""

    map: Map
    rerank: Rerank | None = None
    seeds: int = 1
    """How many it depends on."""
    only_evaluated: bool = False
    """Whether it has no fit that could be applied to other rows."""

    def scores(self, seen: Seen, test: Sides, seed: int) -> Sides:
        """Of text→video [texts, videos], and of video→text [videos, texts]."""
        banks, (text, video) = self.map(seen, test, seed)
        if self.rerank is None:
            similarity = text @ video.T
            return similarity, similarity.T
        return self.rerank(text, video, *banks), self.rerank(video, text, banks[1], banks[0])

    def of_rows(self, count: int) -> "Method":
        """The same way, fitted to the first rows of a side alone."""

        def fitted_to_few(seen: Seen, test: Sides, seed: int) -> tuple[Sides, Sides]:
            return self.map(Seen(seen.text[:count], seen.video[:count]), test, seed)

        return replace(self, map=fitted_to_few)


# ---- maps ------------------------------------------------------------------------------------------------------------


def by_refiner(seen: Seen, test: Sides, seed: int, *, kind: Any) -> tuple[Sides, Sides]:
    """A map of `Refiner`, by plain products in float64. kind: gives the map for a seed."""
    refiner = Refiner(kind(seed)).fit(seen.text, seen.video)
    matrix = refiner.matrix
    return _of_both(
        lambda rows: rows @ matrix - refiner.offset_text, lambda rows: rows @ matrix - refiner.offset_video, seen, test
    )


def unchanged(seen: Seen, test: Sides, seed: int) -> tuple[Sides, Sides]:
    """Rows as they are."""
    return (seen.text, seen.video), test


def without_top(seen: Seen, test: Sides, seed: int, *, count: int, taken: float, share: float) -> tuple[Sides, Sides]:
    """A part of the leading principal directions of both sides together taken out, after a share of the means."""
    top = seen.principal(share)[1][:, -count:]

    def refined(rows: Tensor, mean: Tensor) -> Tensor:
        rows = rows - share * mean
        return rows - taken * (rows @ top) @ top.T

    return _about_means(refined, seen, test)


def whitened(seen: Seen, test: Sides, seed: int, *, shrinkage: float, share: float) -> tuple[Sides, Sides]:
    """By the second moments of both sides together, shrunk towards the identity, after a share of the means."""
    values, directions = seen.principal(share)
    values = (1 - shrinkage) * values + shrinkage * values.mean()
    root = (directions * values.rsqrt()) @ directions.T
    return _about_means(lambda rows, mean: (rows - share * mean) @ root, seen, test)


def whitened_each(seen: Seen, test: Sides, seed: int, *, shrinkage: float, share: float) -> tuple[Sides, Sides]:
    """Each side by its own second moments."""

    def of_side(rows: Tensor) -> Callable[[Tensor], Tensor]:
        mean = share * rows.mean(0)
        values, directions = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
        values = (1 - shrinkage) * values + shrinkage * values.mean()
        root = (directions * values.rsqrt()) @ directions.T
        return lambda x: (x - mean) @ root

    return _of_both(of_side(seen.text), of_side(seen.video), seen, test)


def released(seen: Seen, test: Sides, seed: int, **settings: Any) -> tuple[Sides, Sides]:
    """EMCL over all rows of the test as its authors' code has it, from its ±1 start. It fits to what it is given."""
    torch.manual_seed(seed)
    text, video = (normalize(side, dim=-1) for side in EMCL(**settings).double().eval()(*test))
    return (text, video), (text, video)


def _about_means(refined: Callable[[Tensor, Tensor], Tensor], seen: Seen, test: Sides) -> tuple[Sides, Sides]:
    text, video = seen.text.mean(0), seen.video.mean(0)
    return _of_both(lambda rows: refined(rows, text), lambda rows: refined(rows, video), seen, test)


def _of_both(
    of_text: Callable[[Tensor], Tensor], of_video: Callable[[Tensor], Tensor], seen: Seen, test: Sides
) -> tuple[Sides, Sides]:
    """Seen rows and test rows, refined and of length one."""

    def both(text: Tensor, video: Tensor) -> Sides:
        return normalize(of_text(text), dim=-1), normalize(of_video(video), dim=-1)

    return both(seen.text, seen.video), both(*test)


# ---- with a bank -----------------------------------------------------------------------------------------------------


def nnn(query: Tensor, gallery: Tensor, bank: Tensor, _: Tensor, *, neighbors: int, weight: float) -> Tensor:
    """Less weight · mean of the item's largest similarities with the bank (NNN, EMNLP 2024); CSLS has the weight ½."""
    near = (gallery @ bank.T).topk(min(neighbors, len(bank)), dim=1).values.mean(1)
    return query @ gallery.T - weight * near


def inverted_softmax(query: Tensor, gallery: Tensor, bank: Tensor, _: Tensor, *, beta: float) -> Tensor:
    """Divided by what the bank makes of the item: β s − log Σ exp(β s of the bank)."""
    return beta * (query @ gallery.T) - torch.logsumexp(beta * (bank @ gallery.T), 0)


def by_qb_norm(query: Tensor, gallery: Tensor, bank: Tensor, _: Tensor, *, beta: float) -> Tensor:
    """The same, for queries alone whose best item is the best one of a query of the bank (CVPR 2022)."""
    return qb_norm(query @ gallery.T, bank @ gallery.T, temperature=1 / beta)


def sinkhorn(query: Tensor, gallery: Tensor, bank: Tensor, _: Tensor, *, beta: float, rounds: int) -> Tensor:
    """Potentials of the items in the optimal transport between bank and gallery (SIGIR 2023)."""
    logits = beta * (bank @ gallery.T)
    of_items = torch.zeros(len(gallery), dtype=logits.dtype)
    for _round in range(rounds):
        of_bank = -torch.logsumexp(logits + of_items, 1)
        of_items = -torch.logsumexp(logits + of_bank[:, None], 0)
    return beta * (query @ gallery.T) + of_items


def dbnorm(query: Tensor, gallery: Tensor, bank: Tensor, items: Tensor, *, beta: float, beta_items: float) -> Tensor:
    """Two inverted softmaxes multiplied: over the bank, and over items that are like the gallery (EMNLP 2023).

    The released function never looks at the test similarities; this is what its paper describes.
    """
    similarity = query @ gallery.T
    by_queries = beta * similarity - torch.logsumexp(beta * (bank @ gallery.T), 0)
    by_items = beta_items * similarity - torch.logsumexp(beta_items * (items @ gallery.T), 0)
    return by_queries + by_items


def invgc(query: Tensor, gallery: Tensor, bank: Tensor, items: Tensor, *, own: float, other: float) -> Tensor:
    """Each item moved away from others of its own side and from the bank (InvGC, EMNLP Findings 2023)."""

    def message(rows: Tensor, strength: float) -> Tensor:
        similarity = gallery @ rows.T
        return normalize(gallery - strength * (similarity - similarity.mean()) @ rows / len(rows), dim=-1)

    return query @ normalize(message(items, own) + message(bank, other), dim=-1).T


# ---- all of them -----------------------------------------------------------------------------------------------------

DEFAULT = "Refiner, default"
EM_DEFAULT = "EMRefiner, default"
WITH_BANK = "Refiner with a bank"
NOTHING = "no refinement"

SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SHRINKAGES = (0.5, 0.7, 0.9, 0.95, 0.98, 0.99)


def _refiner(kind: Callable[[int], Any], **more: Any) -> Method:
    return Method(partial(by_refiner, kind=kind), **more)


def _mean(share: float) -> Method:
    return _refiner(lambda seed: Mean(share))


whitening: Map = partial(by_refiner, kind=lambda seed: Whitening())
em: Map = partial(by_refiner, kind=lambda seed: EM(seed=seed))
CSLS = partial(nnn, neighbors=10, weight=0.5)

FIXED: dict[str, Method] = {
    NOTHING: Method(unchanged),
    DEFAULT: Method(whitening),
    EM_DEFAULT: Method(em, seeds=10),
    "0.7 of each side's mean": _refiner(lambda seed: Mean(0.7)),
    "all of each side's mean (GR-CLIP, I0T)": _refiner(lambda seed: Mean(1.0)),
    "EMCL as released, at inference": Method(
        partial(released, num_bases=7, num_iters=10, temperature=0.1, residual_weight=4.0),
        seeds=10,
        only_evaluated=True,
    ),
    "EMCL as released, as in training": Method(partial(released), seeds=10, only_evaluated=True),
}
"""Without a bank, settings fixed beforehand."""

FIXED_WITH_BANK: dict[str, Method] = {
    WITH_BANK: Method(whitening, CSLS),
    "EMRefiner with a bank": Method(em, CSLS, seeds=10),
    "CSLS (k 10)": Method(unchanged, CSLS),
    "NNN (k 128, α 0.75)": Method(unchanged, partial(nnn, neighbors=128, weight=0.75)),
    "QB-Norm (β 20)": Method(unchanged, partial(by_qb_norm, beta=20.0)),
    "inverted softmax (β 100)": Method(unchanged, partial(inverted_softmax, beta=100.0)),
    "Sinkhorn (β 100, 10 rounds)": Method(unchanged, partial(sinkhorn, beta=100.0, rounds=10)),
    "DBNorm (β 1/1.99 and 3)": Method(unchanged, partial(dbnorm, beta=1 / 1.99, beta_items=3.0)),
}
"""With a bank, settings as published."""

without_gap: Map = partial(by_refiner, kind=lambda seed: Whitening(mean_share=1.0))
FOR_MIXED_GALLERIES: dict[str, Method] = {
    "Refiner, all of the means": Method(without_gap),
    "Refiner, all of the means, with a bank": Method(without_gap, CSLS),
}
"""Where texts and videos lie in one gallery, what is left of the gap between them decides."""

FAMILIES: dict[str, dict[str, Method]] = {
    "a share of the means": {f"{share}": _mean(share) for share in SHARES},
    "top directions": {
        f"{taken:.0%} of {count} after {share} of the means": Method(
            partial(without_top, count=count, taken=taken, share=share)
        )
        for share in (0.0, 0.5, 1.0)
        for count in (1, 2, 4)
        for taken in (0.25, 0.5, 1.0)
    },
    "whitening of both sides": {
        f"shrinkage {shrinkage} after {share} of the means": Method(partial(whitened, shrinkage=shrinkage, share=share))
        for share in (0.0, 0.5, 1.0)
        for shrinkage in SHRINKAGES
    },
    "whitening of each side": {
        f"shrinkage {shrinkage} after {share} of the means": Method(
            partial(whitened_each, shrinkage=shrinkage, share=share)
        )
        for share in (0.5, 1.0)
        for shrinkage in (0.9, 0.98)
    },
}
"""Without a bank: one of the settings, chosen for each set by the other sets."""

FAMILIES_WITH_BANK: dict[str, dict[str, Method]] = {
    "NNN": {
        f"k {k}, α {alpha}": Method(unchanged, partial(nnn, neighbors=k, weight=alpha))
        for k in (1, 5, 10, 20, 50)
        for alpha in (0.25, 0.5, 0.75, 1.0)
    },
    "QB-Norm": {f"β {beta}": Method(unchanged, partial(by_qb_norm, beta=beta)) for beta in (10.0, 20.0, 50.0, 100.0)},
    "inverted softmax": {
        f"β {beta}": Method(unchanged, partial(inverted_softmax, beta=beta)) for beta in (10.0, 20.0, 50.0, 100.0)
    },
    "Sinkhorn": {
        f"β {beta}, {rounds} rounds": Method(unchanged, partial(sinkhorn, beta=beta, rounds=rounds))
        for beta in (20.0, 50.0, 100.0)
        for rounds in (1, 10)
    },
    "DBNorm": {
        f"β {beta} and {other}": Method(unchanged, partial(dbnorm, beta=beta, beta_items=other))
        for beta in (20.0, 50.0)
        for other in (1.0, 3.0, 10.0)
    },
    "InvGC": {
        f"r {own} and {other}": Method(unchanged, partial(invgc, own=own, other=other))
        for own in (0.0, 1.0, 2.0)
        for other in (0.5, 1.0, 2.0)
    },
}
"""With a bank: one of the settings, chosen for each set by the other sets."""
