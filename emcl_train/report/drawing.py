"""How figures are drawn: matplotlib's SVG, whose colours are variables of the page and fit light and dark alike.

Curves are told apart by dashes, markers and a label at their end as well as by colour.
"""

import io
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK = "#010203"
"""Stands for the page's own ink while matplotlib draws."""
COLOURS = ("#2a7fd4", "#e0662e", "#2f9e6e", "#a35bd0", "#b5860b", "#d1477c")
"""Stand for the variables --series-1, --series-2, … of style.css, which are others in the dark."""
TEXT, VIDEO = COLOURS[:2]
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.6)),
    (0, (1.2, 1.4)),
    (0, (6, 1.5, 1.2, 1.5)),
    (0, (9, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
)
MARKERS = ("o", "^", "s", "D", "v", "P")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
MOST_POINTS = 400
"""Of a curve: more are closer to each other than a pixel of the page."""
LINE_OF_TEXT = 0.075
"""Height of a label of a curve, as a share of the axes'."""


Number = int | float
Numbers = Sequence[Number]


@dataclass(frozen=True)
class Plot:
    """A figure as an <svg> element, and the values behind it for `plots.js`."""

    svg: Markup
    data: dict[str, Any]
    """`kind`, and for every kind `box`: left, top, width and height of the axes in the units of the SVG's viewBox.

    "lines": `x` and `y`, the limits of the axes; `series`, each with a `name` and its points `x`, `y`.
    "bars": the same, and `labels` of the bars in place of numbers.
    "matrix": `values`, row by row; `rows` and `columns`, what they are called.
    "points": `x`, `y`, and `series`, whose points have `labels`; of several axes `panels`, each of them such.
    """


@dataclass(frozen=True)
class Curve:
    """Values over steps, for example."""

    name: str
    x: Numbers
    y: Numbers
    faint: bool = False
    """Drawn thin and in the background, without a label: single steps behind their mean."""
    style: int | None = None
    """Which colour, dash and marker; None: those of its place among the curves."""
    dash: int | None = None
    """Which dash, if it is another one than that of `style`."""


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare with: what chance gives, for example."""

    name: str
    y: Number


def curves(
    name: str,
    lines: Sequence[Curve],
    *,
    xlabel: str,
    ylabel: str,
    ylim: tuple[Number | None, Number | None] = (None, None),
    levels: Sequence[Level] = (),
    size: tuple[float, float] = (5.2, 3.2),
    whole_numbers: bool = True,
) -> Plot:
    """Curves over each other, each with its name at its end.

    Args:
        name: of the figure, which no other one on the page has.
        lines: what to draw; the later over the earlier.
        xlabel: what the x axis shows.
        ylabel: what the y axis shows.
        ylim: ends of the y axis; None: where the values end.
        levels: lines across.
        size: width and height in inches.
        whole_numbers: whether x is counted in whole numbers.
    """
    thinned = [_thinned(line) for line in lines]
    with matplotlib.rc_context(STYLE):
        drawn, axes = figure(*size)
        places = iter(range(len(thinned)))
        clear = [line for line in thinned if not line.faint]
        for line in thinned:
            style = line.style if line.style is not None else (0 if line.faint else next(places))
            style %= len(COLOURS)
            if line.faint:
                axes.plot(line.x, line.y, color=COLOURS[style], linewidth=0.8, alpha=0.45)
                continue
            axes.plot(
                line.x, line.y,
                color=COLOURS[style],
                linestyle=DASHES[(style if line.dash is None else line.dash) % len(DASHES)],
                linewidth=1.6,
                marker=MARKERS[style] if len(clear) > 1 or len(line.x) == 1 else None,
                markersize=3.5,
                markevery=max(1, math.ceil(len(line.x) / 8)),
            )  # fmt: skip
        for level in levels:
            axes.axhline(level.y, color=INK, linewidth=0.8, linestyle=(0, (2, 3)), alpha=0.75)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.set_ylim(*_limits(thinned, levels, ylim))
        positions = {x for line in thinned for x in line.x}
        if len(positions) == 1:  # else the axis of a single epoch shows fractions of it
            only = positions.pop()
            axes.set_xlim(only - 1, only + 1)
        if whole_numbers:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.margins(x=0.02)
        ends = [(line.name, line.x[-1], line.y[-1]) for line in clear if len(clear) > 1 and line.y]
        right = axes.get_xlim()[1]
        label_ends(axes, [*ends, *((level.name, right, level.y) for level in levels)])
        svg = as_svg(drawn, name)
        box = box_of(drawn, axes)
        limits = {"x": list(axes.get_xlim()), "y": list(axes.get_ylim())}
    series = [
        {"name": line.name, "x": _rounded(line.x), "y": _rounded(line.y)}
        for line in thinned
        if not (line.faint and len(clear) > 0)
    ]
    data = {"kind": "lines", "box": box, **limits, "xlabel": xlabel, "series": series}
    return Plot(svg, data)


def figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure of this many inches, and its axes; to be used inside `rc_context(STYLE)`."""
    drawn = Figure(figsize=(width, height), layout="constrained")
    return drawn, drawn.subplots()


def label_ends(axes: Axes, ends: Sequence[tuple[str, Number, Number]]) -> None:
    """Names at the right of the axes, each beside the point where its curve ends, or as near as there is room."""
    low, high = axes.get_ylim()
    shares = [min(1.0, max(0.0, (y - low) / (high - low))) for _, _, y in ends]
    for (name, x, y), height in zip(ends, _spread(shares), strict=True):
        axes.annotate(
            name,
            xy=(x, y),
            xytext=(1.05, height),
            textcoords="axes fraction",
            va="center",
            fontsize=8.5,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "linewidth": 0.5,
                "color": INK,
                "alpha": 0.6,
                "shrinkA": 2,
                "shrinkB": 3,
                "relpos": (0, 0.5),
            },
        )


def as_svg(drawn: Figure, name: str) -> Markup:
    """The figure as an <svg> element whose ids are its own on the page."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):  # without a salt the ids differ from run to run
        drawn.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    for number, colour in enumerate(COLOURS, start=1):
        svg = svg.replace(colour, f"var(--series-{number})")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    return Markup(svg)


def box_of(drawn: Figure, axes: Axes) -> list[float]:
    """Left, top, width and height of the axes in the units of the SVG's viewBox; known when it was drawn."""
    width, height = (72 * inches for inches in drawn.get_size_inches())
    place = axes.get_position()
    box = (place.x0 * width, (1 - place.y1) * height, place.width * width, place.height * height)
    return [round(float(value), 2) for value in box]


def _thinned(line: Curve) -> Curve:
    """The same curve with at most `MOST_POINTS` of its points, the last among them."""
    count = len(line.x)
    if count <= MOST_POINTS:
        return line
    kept = sorted({round(i * (count - 1) / (MOST_POINTS - 1)) for i in range(MOST_POINTS)})
    return Curve(line.name, [line.x[i] for i in kept], [line.y[i] for i in kept], line.faint, line.style, line.dash)


def _limits(
    lines: Sequence[Curve], levels: Sequence[Level], asked: tuple[Number | None, Number | None]
) -> tuple[Number, Number]:
    """Ends of the y axis, with some room above and below; never the same."""
    values = [value for line in lines for value in line.y if math.isfinite(value)]
    values += [level.y for level in levels]
    low = min(values, default=0.0) if asked[0] is None else asked[0]
    high = max(values, default=1.0) if asked[1] is None else asked[1]
    if high <= low:
        high = low + (abs(low) or 1.0) * 0.1
    room = 0.06 * (high - low)
    return low - (room if asked[0] is None else 0.0), high + (room if asked[1] is None else 0.0)


def _spread(heights: Numbers) -> list[Number]:
    """Heights at least a line of text apart, each as near as may be to where it was."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed: list[Number] = [heights[i] for i in order]
    for n in range(1, len(placed)):
        placed[n] = max(placed[n], placed[n - 1] + LINE_OF_TEXT)
    for n in range(len(placed) - 1, -1, -1):
        above = placed[n + 1] - LINE_OF_TEXT if n + 1 < len(placed) else 1.0 + LINE_OF_TEXT / 2
        placed[n] = min(placed[n], above)
    spread: list[Number] = [0.0] * len(heights)
    for n, i in enumerate(order):
        spread[i] = placed[n]
    return spread


def _rounded(values: Numbers) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def running_means(values: Sequence[float], window: int) -> list[float]:
    """The mean of each `window` values that follow each other: one fewer than the window leaves out."""
    sums = list(itertools.accumulate(values, initial=0.0))
    return [(sums[end] - sums[end - window]) / window for end in range(window, len(sums))]
