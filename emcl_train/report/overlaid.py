"""Curves of several runs over each other, and the intervals of their differences.

Runs are letters in the drawings, which the page explains: nothing that a folder is called gets into an SVG.
"""

import statistics
import string
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib

from emcl_train.report.compare import Comparison
from emcl_train.report.drawing import COLOURS, INK, MARKERS, STYLE, Curve, Level, as_svg, curves, figure, running_means
from emcl_train.report.groups import Group
from emcl_train.report.pages import Drawing
from emcl_train.runs.folder import Run

WINDOWS = 40
"""A loss is drawn as the mean of a fortieth of its steps."""
LETTERS = string.ascii_uppercase


def letter(number: int) -> str:
    """The name of a run in drawings: A, B, …, Z, AA, …"""
    return LETTERS[number % 26] * (number // 26 + 1)


def training_of_all(groups: Sequence[Group]) -> list[Drawing]:
    """The loss, and recall on the split that chose the weights, of every run; of seeds the mean."""
    found = []
    losses = [_smoothed(_mean_over(group.curves, "train", _loss, "step")) for group in groups]
    if any(points for points in losses):
        plot = curves("loss", _lines(losses), xlabel="step", ylabel="training loss", ylim=(0, None))
        caption = "Training loss, as the mean of a fortieth of the steps; its height depends on the pairs of a step."
        found.append(Drawing(plot.svg, caption, plot.data))

    for way, name in (("text_to_video", "text→video"), ("video_to_text", "video→text")):
        recalls = [_mean_over(group.curves, "validation", _recall(way), "epoch") for group in groups]
        if not any(points for points in recalls):
            continue
        plot = curves(
            f"recall-{way}", _lines(recalls), xlabel="epoch", ylabel="R@1 in %", ylim=(0, None), levels=_chance(groups)
        )
        caption = f"R@1 {name} after each epoch, on the split that chose the weights."
        found.append(Drawing(plot.svg, caption, plot.data))
    return found


def intervals(name: str, comparison: Comparison, letters: Sequence[str]) -> Drawing:
    """The differences of recalls with their intervals, one above the other.

    Args:
        name: of the figure, which no other one on the page has.
        comparison: of two runs.
        letters: of both.
    """
    drawn = [one for one in comparison.differences if one.metric != "MnR"]
    with matplotlib.rc_context(STYLE):
        picture, axes = figure(5.6, 2.9)
        axes.axvline(0, color=INK, linewidth=0.9, linestyle=(0, (2, 3)))
        for row, one in enumerate(drawn):
            number = 0 if one.direction == "T→V" else 1
            axes.plot([one.strict.low, one.strict.high], [row, row], color=COLOURS[number], linewidth=1.0)
            axes.plot([one.interval.low, one.interval.high], [row, row], color=COLOURS[number], linewidth=3.4)
            axes.plot(
                [one.interval.mean], [row], MARKERS[number], color=COLOURS[number], markeredgecolor=INK, markersize=7
            )
        axes.set_yticks(range(len(drawn)), [f"{one.direction} {one.metric}" for one in drawn])
        axes.invert_yaxis()
        axes.set(xlabel="difference in points")
        svg = as_svg(picture, name)
    caption = (
        f"{letters[1]} minus {letters[0]}. Thick: the 95 % interval. Thin: the interval that the verdict goes by, "
        "since eight metrics are looked at. An interval that holds zero shows no difference."
    )
    return Drawing(svg, caption)


Points = list[tuple[float, float]]


def _mean_over(runs: Sequence[Run], kind: str, value: Callable[[dict[str, Any]], Any], place: str) -> Points:
    """The mean of a value over those runs that have it, at each step or epoch."""
    found: dict[float, list[float]] = defaultdict(list)
    for run in runs:
        for record in run.of_kind(kind):
            number = value(record)
            if number is not None:
                found[float(record[place])].append(float(number))
    most = max(map(len, found.values()), default=0)
    # Where a seed is not as far as the others, the mean would jump.
    return [(at, statistics.fmean(numbers)) for at, numbers in sorted(found.items()) if len(numbers) == most]


def _loss(record: dict[str, Any]) -> Any:
    return record["loss"]


def _recall(way: str) -> Callable[[dict[str, Any]], Any]:
    return lambda record: record[way]["R@1"]


def _smoothed(points: Points) -> Points:
    window = max(1, len(points) // WINDOWS)
    means = running_means([value for _, value in points], window)
    return [(step, mean) for (step, _), mean in zip(points[window - 1 :], means, strict=True)]


def _lines(all_points: Sequence[Points]) -> list[Curve]:
    return [
        Curve(letter(number), [x for x, _ in points], [y for _, y in points], style=number)
        for number, points in enumerate(all_points)
        if points
    ]


def _chance(groups: Sequence[Group]) -> list[Level]:
    """The line that chance gives, if all runs were validated on as many clips."""
    clips = {record.get("clips") for group in groups for run in group.curves for record in run.of_kind("validation")}
    only = clips.pop() if len(clips) == 1 else None
    return [Level("chance", 100 / only)] if isinstance(only, int) and only > 0 else []
