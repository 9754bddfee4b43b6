"""Synthetic moments and captions whose similarities follow those of real ones, in any number and in bounded memory.

    PYTHONPATH=. python benchmarks/synthetic_moments.py ../shared/data/embeddings [--fit coco500]

prints, for each real set, quantiles of its similarities beside those of as many synthetic rows. A real set is
[2, N, D]: N images or videos, and the text of each. With --fit the parameters of one set are looked for anew.

A row is a mean, the centre of its kind of scene, and what is its own:

    moment = unit(mean · e + √between · centre + √(1 - between) · scale · own)
    text   = unit(text_mean · (cos a · e + sin a · f) + √kept · (what its moment adds to e) + √(1 - kept) · own)

Kinds of scenes differ in how many moments they have (a power of their number) and in how much these vary. Centres and
what is a row's own are normal, and vary in a few directions much and in many a little (a power of the direction's
number); a random turn hides these directions from an index that cuts rows into parts. So rows are neither isotropic nor
tight clusters: of the rows of one kind, the nearest to each other are little nearer than the nearest of two kinds.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

WIDTH = 512
KINDS = 16384
"""Kinds of scenes: at a million rows 60 moments a kind in the mean, and thousands in the largest."""
BLOCK = 1024
"""Rows that are drawn together: a row is the same whichever others are asked for."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

Array = np.ndarray


@dataclass(frozen=True)
class Mixture:
    """What the rows are drawn by."""

    mean: float
    """Length of the moments' mean, where what they add to it has length one."""
    between: float
    """Share of the centres in the square of what a moment adds to the mean."""
    centre_decay: float
    """The i-th direction's deviation is i to the minus this, of centres."""
    own_decay: float
    """The same, of what is a row's own."""
    kind_spread: float
    """Deviation of the logarithm of how much the moments of a kind vary."""
    row_spread: float
    """Deviation of the logarithm of how much a row adds to the mean."""
    popularity: float
    """The i-th kind has moments in proportion to (10 + i) to the minus this."""
    text_mean: float
    """Length of the texts' mean."""
    text_angle: float
    """Cosine between the two means."""
    kept: float
    """Share of its moment in the square of what a text adds to the mean."""
    text_decay: float
    """Like own_decay, of what is a text's own."""


FITTED = {
    "coco500": Mixture(
        mean=1.098, between=0.581, centre_decay=0.531, own_decay=0.21, kind_spread=0.179,
        row_spread=0.179, popularity=1.468, text_mean=2.305, text_angle=0.262, kept=0.228,
        text_decay=0.029,
    ),
    "amazon996": Mixture(
        mean=1.133, between=0.572, centre_decay=0.509, own_decay=0.257, kind_spread=0.374,
        row_spread=0.16, popularity=0.909, text_mean=1.821, text_angle=0.271, kept=0.236,
        text_decay=0.0,
    ),
}  # fmt: skip
"""By the real set that they were fitted to."""


class Moments:
    """Rows of length one, [rows, width] float32, and texts that ask for some of them.

    Args:
        mixture: what the rows are drawn by.
        seed: the same rows for the same seed.
        width: numbers a row.
        turned: False leaves out the random turn, which changes no similarity.
    """

    def __init__(self, mixture: Mixture, seed: int = 0, width: int = WIDTH, *, turned: bool = True) -> None:
        self.mixture, self.seed, self.width = mixture, seed, width
        kinds, mean, other, turn = _drawn_once(seed, width)
        self.turn = turn if turned else None
        self.mean, self.other = self._turned(mean), self._turned(other)
        self.kinds = kinds
        self.centre_deviations = np.float32(mixture.between**0.5) * _deviations(width, mixture.centre_decay)
        self.own_deviations = np.float32((1 - mixture.between) ** 0.5) * _deviations(width, mixture.own_decay)
        varied = np.random.default_rng([seed, 1]).standard_normal(KINDS, np.float32)
        self.scales = np.exp(mixture.kind_spread * varied).astype(np.float32)
        popularity = (10.0 + np.arange(KINDS)) ** -mixture.popularity
        self.up_to = np.cumsum(popularity / popularity.sum())

    def rows(self, start: int, stop: int) -> Array:
        """The moments from one number to before another."""
        return self._at(np.arange(start, stop))[0]

    def blocks(self, total: int, size: int) -> Iterator[Array]:
        """All moments before a number, in blocks of a size."""
        for start in range(0, total, size):
            yield self.rows(start, min(total, start + size))

    def texts(self, targets: Array) -> Array:
        """A text for each of the moments with these numbers. Two texts of one moment are the same."""
        _, added = self._at(targets)
        own = np.empty_like(added)
        deviations = _deviations(self.width, self.mixture.text_decay)
        for block, here in _by_block(targets):
            draws = np.random.default_rng([self.seed, 3, block])
            every = self._turned(draws.standard_normal((BLOCK, self.width), np.float32) * deviations)
            own[here] = every[targets[here] % BLOCK]
        cosine = self.mixture.text_angle
        mean = cosine * self.mean + np.sqrt(1 - cosine**2) * self.other
        kept = self.mixture.kept
        return _unit(self.mixture.text_mean * mean + np.sqrt(kept) * added + np.sqrt(1 - kept) * own)

    def _at(self, numbers: Array) -> tuple[Array, Array]:
        """Moments, and what each adds to the mean before it is brought to length one."""
        added = np.empty((len(numbers), self.width), np.float32)
        for block, here in _by_block(numbers):
            added[here] = self._added(block)[numbers[here] % BLOCK]
        return _unit(self.mixture.mean * self.mean + added), added

    def _added(self, block: int) -> Array:
        """What the moments of a block add to the mean: [BLOCK, width]."""
        draws = np.random.default_rng([self.seed, 2, block])
        kinds = np.minimum(np.searchsorted(self.up_to, draws.random(BLOCK)), KINDS - 1)
        row_scale = np.exp(self.mixture.row_spread * draws.standard_normal(BLOCK))
        own = draws.standard_normal((BLOCK, self.width), np.float32)
        own *= self.own_deviations * self.scales[kinds][:, None]
        rows = self.kinds[kinds] * self.centre_deviations + own
        return self._turned(rows * row_scale[:, None].astype(np.float32))

    def _turned(self, rows: Array) -> Array:
        return rows if self.turn is None else rows @ self.turn


@lru_cache(maxsize=4)
def _drawn_once(seed: int, width: int) -> tuple[Array, Array, Array, Array]:
    """Centres before they are scaled, two directions at a right angle, and a random turn."""
    draws = np.random.default_rng([seed, 0])
    kinds = draws.standard_normal((KINDS, width), np.float32)
    two, _ = np.linalg.qr(draws.standard_normal((width, 2)))
    turn, _ = np.linalg.qr(draws.standard_normal((width, width)))
    return kinds, two[:, 0].astype(np.float32), two[:, 1].astype(np.float32), turn.astype(np.float32)


def _deviations(width: int, decay: float) -> Array:
    """Of each direction, so that a row has length one in the square mean."""
    deviations = np.arange(1, width + 1, dtype=np.float32) ** np.float32(-decay)
    return np.asarray(deviations / np.linalg.norm(deviations))


def _by_block(numbers: Array) -> Iterator[tuple[int, Array]]:
    """The blocks that some rows are in, with the places of these rows."""
    blocks = numbers // BLOCK
    for block in np.unique(blocks):
        yield int(block), np.flatnonzero(blocks == block)


def _unit(rows: Array) -> Array:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


# ---- real sets beside synthetic ones ---------------------------------------------------------------------------------


def similarities(gallery: Array, texts: Array) -> dict[str, Array]:
    """Cosines of all rows by what they say; row i of the texts belongs to row i of the gallery."""
    within = gallery @ gallery.T
    np.fill_diagonal(within, np.nan)
    across = texts @ gallery.T
    others = within[~np.isnan(within)]
    nearest = -np.sort(-np.where(np.isnan(within), -2, within), axis=1)
    found = -np.sort(-across, axis=1)
    return {
        "moment to nearest": nearest[:, 0],
        "moment to 10th": nearest[:, 9],
        "moment to any": others,
        "text to nearest": found[:, 0],
        "text to 10th": found[:, 9],
        "text to its own": np.diagonal(across),
        "text to any": across.reshape(-1),
    }


def quantiles(gallery: Array, texts: Array) -> dict[str, Array]:
    """Those of each kind of similarity, at `QUANTILES`."""
    return {name: np.quantile(values, QUANTILES) for name, values in similarities(gallery, texts).items()}


def synthetic(mixture: Mixture, count: int, seed: int, width: int = WIDTH) -> tuple[Array, Array]:
    """As many moments as a real set has, each with its text."""
    moments = Moments(mixture, seed, width, turned=False)
    return moments.rows(0, count), moments.texts(np.arange(count))


def read_real(path: Path) -> tuple[Array, Array]:
    """A real set's gallery and texts, of length one."""
    gallery, texts = np.load(path).astype(np.float32)
    return _unit(gallery), _unit(texts)


def some(gallery: Array, texts: Array, count: int) -> tuple[Array, Array]:
    """A random part of a real set."""
    chosen = np.random.default_rng(0).permutation(len(gallery))[:count]
    return gallery[chosen], texts[chosen]


def mean_of(parts: list[dict[str, Array]]) -> dict[str, Array]:
    return {name: np.mean([part[name] for part in parts], axis=0) for name in parts[0]}


def compared(real: tuple[Array, Array], mixture: Mixture, seeds: range) -> tuple[dict[str, Array], dict[str, Array]]:
    """Quantiles of a real set and of as many synthetic rows, these as means over seeds."""
    count, width = real[0].shape
    return quantiles(*real), mean_of([quantiles(*synthetic(mixture, count, seed, width)) for seed in seeds])


def print_compared(name: str, real: tuple[Array, Array], mixture: Mixture) -> None:
    """A table of both, whole and of a quarter of the rows, which shows how similarities grow with their number."""
    for share in (1, 4):
        part = some(*real, len(real[0]) // share)
        of_real, ours = compared(part, mixture, range(3))
        print(f"\n{name}, {len(part[0])} pairs: quantiles {', '.join(f'{q:.0%}' for q in QUANTILES)}")
        for kind, values in of_real.items():
            pair = (" ".join(f"{value:6.3f}" for value in row) for row in (values, ours[kind]))
            worst = np.abs(values - ours[kind]).max()
            print("  {:<18} real {}   synthetic {}   {:.3f} apart at most".format(kind, *pair, worst))


# ---- fitting ---------------------------------------------------------------------------------------------------------

FITTED_TO = 500
"""Rows of a real set, at most: more would take long."""
WEIGHTS = {"moment to any": 0.5, "text to any": 0.5, "text to its own": 0.5}
BOUNDS = {
    "mean": (0.2, 3.0), "between": (0.05, 0.95), "centre_decay": (0.0, 1.5), "own_decay": (0.0, 1.5),
    "kind_spread": (0.0, 0.8), "row_spread": (0.0, 0.5), "popularity": (0.0, 1.5), "text_mean": (0.2, 4.0),
    "text_angle": (-0.9, 0.95), "kept": (0.02, 0.95), "text_decay": (0.0, 1.5),
}  # fmt: skip


def distance(real: list[tuple[Array, Array]], mixture: Mixture, wanted: list[dict[str, Array]]) -> float:
    """Root mean square between the quantiles, over the real set and its quarter."""
    total = 0.0
    for part, target in zip(real, wanted, strict=True):
        ours = mean_of([quantiles(*synthetic(mixture, len(part[0]), seed, part[0].shape[1])) for seed in range(2)])
        total += sum(WEIGHTS.get(name, 1.0) * float(np.mean((target[name] - ours[name]) ** 2)) for name in target)
    return float(np.sqrt(total / sum(WEIGHTS.get(name, 1.0) for name in wanted[0]) / len(real)))


def fitted(real: tuple[Array, Array], start: Mixture, steps: int, say: Callable[[str], None]) -> Mixture:
    """Parameters whose quantiles are near those of a real set: a random walk that keeps what is better."""
    whole = some(*real, min(FITTED_TO, len(real[0])))
    parts = [whole, some(*whole, len(whole[0]) // 4)]
    wanted = [quantiles(*part) for part in parts]
    draws = np.random.default_rng(0)
    best = start
    least = distance(parts, best, wanted)
    size = 0.1
    for step in range(steps):
        moved = {}
        for name, (low, high) in BOUNDS.items():
            off = size * draws.standard_normal() * (draws.random() < 0.4)
            moved[name] = float(np.clip(getattr(best, name) + off * (high - low), low, high))
        found = distance(parts, Mixture(**moved), wanted)
        if found < least:
            best, least = Mixture(**moved), found
            size = min(0.2, size * 1.3)
            say(f"{step}: {least:.4f} {best}")
        else:
            size = max(0.003, size * 0.97)
    return dataclasses.replace(best, **{name: round(getattr(best, name), 3) for name in BOUNDS})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of real sets, each a .npy file of [2, N, D]")
    parser.add_argument("--fit", choices=sorted(FITTED), help="look for the parameters of this set anew")
    parser.add_argument("--steps", type=int, default=600, help="of the walk")
    options = parser.parse_args()
    for name, mixture in FITTED.items():
        if options.fit not in (None, name):
            continue
        [path] = options.folder.glob(f"{name}_*.npy")
        real = read_real(path)
        if options.fit:
            mixture = fitted(real, mixture, options.steps, lambda line: print(line, flush=True))
            print(mixture)
        print_compared(name, real, mixture)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
