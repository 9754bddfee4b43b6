"""Runs that differ only in their seed: a folder of run folders, and mean ± deviation over them."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich import box
from rich.console import Group as Lines
from rich.table import Table
from rich.text import Text

from emcl_train.config import differing_settings
from emcl_train.errors import UserError
from emcl_train.report.notes import BY_RANK, Results, columns_of, differences, error_of_share, sentences
from emcl_train.runs.contents import CONFIG, seed_folders
from emcl_train.runs.finished import require_finished
from emcl_train.runs.folder import Run, load_run


@dataclass(frozen=True)
class Group:
    """One run, or several of one configuration with different seeds."""

    path: Path
    runs: tuple[Run, ...]


def load_group(path: Path) -> Group:
    """Read a run folder, or each one in a folder of seeds.

    Raises:
        UserError: a run is not finished or damaged, or runs of a folder differ in more than their seed.
    """
    folders = [path] if (path / CONFIG).is_file() else seed_folders(path) or [path]
    runs = [load_run(folder) for folder in folders]
    for folder in folders:
        require_finished(folder)
    first = runs[0]

    # All that may differ is the seed: neither other settings nor what was measured, nor how.
    for run in runs[1:]:
        different = differing_settings(
            first.config, replace(run.config, train=replace(run.config.train, seed=first.config.train.seed))
        )
        different += differences([(first.path, first.results), (run.path, run.results)])
        if first.results.get("emcl") != run.results.get("emcl"):
            different.append("evaluated with other settings of EMCL")
        if different:
            raise UserError(
                f"{first.path} and {run.path} differ in more than their seed: {'; '.join(different)}; report them one "
                "by one, or evaluate them again alike (emcl-train eval RUN)"
            )

    return Group(path, tuple(runs))


def render_group(path: Path, results: Sequence[Results]) -> Lines:
    """The rows of runs with different seeds as mean ± standard deviation; for `console.print`.

    Raises:
        UserError: the runs do not have the same rows.
    """
    names = [row["name"] for row in results[0]["rows"]]
    for other in results[1:]:
        if [row["name"] for row in other["rows"]] != names:
            raise UserError(
                f"the runs in {path} do not have the same rows: {names} and {[row['name'] for row in other['rows']]}; "
                "evaluate them again with the same settings (emcl-train eval RUN)"
            )

    columns = columns_of(results[0])
    table = Table(
        title=Text(f"{path}: {len(results)} seeds, mean ± deviation, {results[0]['split']} split"),
        box=box.SIMPLE_HEAD,
        padding=(0, 0),
        pad_edge=False,
        title_justify="left",
    )
    table.add_column("", overflow="fold", min_width=14)
    for direction, colour in (("T→V", "cyan"), ("V→T", "magenta")):
        for metric in columns:
            table.add_column(f"{direction}\n{metric}", justify="right", no_wrap=True, header_style=colour)

    for index, name in enumerate(names):
        rows = [result["rows"][index] for result in results]
        cells = [
            _spread([row[way][key] for row in rows]) for way in ("text_to_video", "video_to_text") for key in columns
        ]
        table.add_row(Text(name), *cells, style="bold" if index == 0 else None)
        if rows[0].get("video_to_text_by_rank"):
            by_rank = [_spread([row["video_to_text_by_rank"][key] for row in rows]) for key in columns]
            table.add_row(BY_RANK, *[""] * len(columns), *by_rank, style="dim")

    # The sentences of the first run hold for all, but for those that are about its own error and epoch.
    lines = [f"The deviation is the sample standard deviation of {len(results)} runs that differ only in their seed."]
    share = statistics.fmean(result["rows"][0]["text_to_video"]["R@1"] for result in results) / 100
    error = error_of_share(share, results[0]["queries"])
    lines.append(f"Ties take the mean rank. One standard error of T→V R@1 is {error:.1f} points for one run's queries.")
    lines += [line for line in sentences(results[0]) if not line.startswith(("Weights chosen", "Ties take"))]
    selections = sorted({str(result["selection"]).split(":")[0] for result in results})
    lines.append(f"Weights chosen by {', '.join(selections)}.")
    return Lines(table, *(Text(f"· {line}", style="dim") for line in lines))


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; 0 of one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _spread(values: Sequence[float]) -> str:
    mean, deviation = mean_and_deviation(values)
    return f"{mean:.1f}±{deviation:.1f}"
