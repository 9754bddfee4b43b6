"""What the ratios of pairs say: their mean, and how sure it is."""

import math
import statistics

STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26, 12: 2.20, 15: 2.14}
"""97.5 % points of Student's distribution, by the number of turns; between two, the one for fewer turns."""


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """Geometric mean of the ratios, and the ends of its 95 % interval."""
    logs = [math.log(ratio) for ratio in ratios]
    point = STUDENT[max(n for n in STUDENT if n <= len(ratios))]
    half = point * statistics.stdev(logs) / math.sqrt(len(logs))
    mean = statistics.fmean(logs)
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)
