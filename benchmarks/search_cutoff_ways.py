"""Ways to find the score that 95 of 100 unrelated queries do not reach, of queries of which some may be answered.

The rule by which one was chosen was written before any of them was tried, and looks at the two development sets alone:

- The loss of a way is how far the false alarms of new unanswerable queries are from 5 %, as a root mean square over
  splits, averaged over both sets, over cosine and refined rows with and without a bank, and over banks of which 0, 5,
  10 and 20 % are answered by the gallery.
- The empirical quantile is taken unless another way has a loss that is smaller by a tenth or more, and, on a bank that
  is clean, one that is at most one point larger on either set: the quantile assumes nothing of how scores are spread,
  and it alone is what the sentence for users says.
"""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np

Way = Callable[[np.ndarray, float], float]
"""Of the best scores of unrelated queries and a share: the score that this share of them does not reach."""
ITERATIONS = 200
EULER = 0.5772156649015329


def quantile(best: np.ndarray, share: float) -> float:
    """The order statistic at (B + 1) · share."""
    return float(np.quantile(best, share, method="weibull"))


def median_and_mad(best: np.ndarray, share: float) -> float:
    """Of a normal distribution with this median, whose deviation is 1.4826 times the median absolute deviation."""
    median = np.median(best)
    return float(median + NormalDist().inv_cdf(share) * 1.4826 * np.median(np.abs(best - median)))


def lower_half(best: np.ndarray, share: float) -> float:
    """The same with the deviation of the scores below the median alone."""
    median = np.median(best)
    return float(median + NormalDist().inv_cdf(share) * 1.4826 * np.median(median - best[best <= median]))


def gumbel(best: np.ndarray, share: float, below: float = 0.6) -> float:
    """Of a Gumbel distribution, that of a maximum, through the lower part of the scores: a line in a Gumbel plot."""
    ordered = np.sort(best)
    places = (np.arange(1, len(best) + 1) - 0.44) / (len(best) + 0.12)
    kept = places <= below
    at = -np.log(-np.log(places[kept]))
    slope, start = np.polyfit(at, ordered[kept], 1)
    return float(start - slope * math.log(-math.log(share)))


def gumbel_of_moments(best: np.ndarray, share: float) -> float:
    """Of a Gumbel distribution with the mean and the deviation of all scores."""
    slope = best.std(ddof=1) * math.sqrt(6) / math.pi
    return float(best.mean() - EULER * slope - slope * math.log(-math.log(share)))


def mixture(best: np.ndarray, share: float) -> float:
    """Of the lower of two normal distributions whose mixture the scores are, by EM from a cut at the 80 % quantile."""
    x = best.astype(np.float64)
    upper = (x > np.quantile(x, 0.8)).astype(np.float64)
    floor = (0.1 * x.std()) ** 2
    lower_mean = x.mean()
    lower_deviation = x.std()
    for _ in range(ITERATIONS):
        densities = []
        for weight in (1 - upper, upper):
            total = max(weight.sum(), 1e-9)
            mean = float((weight * x).sum() / total)
            variance = max(float((weight * (x - mean) ** 2).sum() / total), floor)
            log_density = -0.5 * (x - mean) ** 2 / variance - 0.5 * math.log(variance)
            densities.append(total / len(x) * np.exp(log_density))
            if weight is not upper:
                lower_mean, lower_deviation = mean, math.sqrt(variance)
        upper = densities[1] / np.maximum(densities[0] + densities[1], 1e-300)
    return lower_mean + NormalDist().inv_cdf(share) * lower_deviation


def lower_of_both(best: np.ndarray, share: float) -> float:
    """The empirical quantile or that of the Gumbel line, whichever is lower: answered queries can only raise one."""
    return min(quantile(best, share), gumbel(best, share))


WAYS: dict[str, Way] = {
    "quantile": quantile,
    "median + 1.645 · 1.4826 · MAD": median_and_mad,
    "the same below the median": lower_half,
    "Gumbel, line through the lower 60 %": gumbel,
    "Gumbel, mean and deviation": gumbel_of_moments,
    "two normal distributions": mixture,
    "quantile or Gumbel line, the lower": lower_of_both,
}
CHOSEN = "quantile"
"""What emcl_train.search.cutoff does."""
MISSES = "misses of the chosen way"
"""Stands among the ways in a record."""
