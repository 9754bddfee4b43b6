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
from emcl_train.report.notes import BY_RANK, Results, chance_of, columns_of, differences, error_of_share, sentences
from emcl_train.runs.contents import CONFIG, RESULTS, seed_folders
from emcl_train.runs.finished import require_finished
from emcl_train.runs.folder import Run, load_run, load_so_far
from emcl_train.runs.origin import Origin, sentence_of, what_is_stale
from emcl_train.runs.records import weights_sentence
from emcl_train.runs.standing import Standing, standing_of


@dataclass(frozen=True)
class Group:
    """One run, or several of one configuration with different seeds."""

    path: Path
    runs: tuple[Run, ...]
    """Those that have figures."""
    begun: tuple[Run, ...] = ()
    """Those that have none yet, as `load_so_far` reads them."""
    standings: tuple[Standing, ...] = ()
    """Of those that are not finished."""

    @property
    def curves(self) -> tuple[Run, ...]:
        """The runs whose training can be shown: all."""
        return (*self.runs, *self.begun)


def load_group(path: Path, *, so_far: bool = False) -> Group:
    """Read a run folder, or each one in a folder of seeds.

    Args:
        path: the folder.
        so_far: take runs that are not finished, as far as they came.

    Raises:
        UserError: a run is damaged, or not finished, or runs of a folder differ in more than their seed.
    """
    folders = [path] if (path / CONFIG).is_file() else seed_folders(path) or [path]
    standings: list[Standing] = []
    begun: list[Run] = []
    if so_far:
        every = [standing_of(folder) for folder in folders if (folder / CONFIG).is_file()]
        standings = [standing for standing in every if not standing.finished]
        begun = [load_so_far(one.run_dir) for one in standings if not (one.run_dir / RESULTS).is_file()]
        folders = [folder for folder in folders if folder not in {run.path for run in begun}]

    runs = [load_run(folder) for folder in folders]
    if not so_far:
        for folder in folders:
            require_finished(folder)
    if not runs:
        return Group(path, (), tuple(begun), tuple(standings))
    first = runs[0]

    # All that may differ is the seed: neither other settings nor what was measured, nor how.
    for run in runs[1:]:
        different = differing_settings(
            first.config, replace(run.config, train=replace(run.config.train, seed=first.config.train.seed))
        )
        different += differences([(first.path, first.results), (run.path, run.results)])
        if _questions(first) != _questions(run):
            different.append("evaluated on other questions, or with other answers to choose from")
        if first.results.get("emcl") != run.results.get("emcl"):
            different.append("evaluated with other settings of EMCL")
        if different:
            raise UserError(
                f"{first.path} and {run.path} differ in more than their seed: {'; '.join(different)}; report them one "
                "by one, or evaluate them again alike (emcl-train eval RUN)"
            )

    return Group(path, tuple(runs), tuple(begun), tuple(standings))


def _questions(run: Run) -> tuple[object, ...]:
    """What tells the questions of runs that answer them; nothing of others."""
    figures = run.results.get("figures", {})
    return run.results.get("answers"), figures.get("kept"), figures.get("asked")


def render_group(path: Path, results: Sequence[Results], folders: Sequence[Path] = ()) -> Lines:
    """The rows of runs with different seeds as mean ± standard deviation; for `console.print`.

    Args:
        path: the folder of the runs.
        results: of each run.
        folders: of each run, where its weights may be others by now; none: all were measured just now.

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

    # The same for all of them, since they were measured alike.
    by_chance = chance_of(results[0])
    ways = ["text_to_video", "video_to_text"]
    cells = [f"{by_chance[way][key]:.1f}" for way in ways for key in columns]
    table.add_row(by_chance["name"], *cells, style="dim")
    if by_chance.get("video_to_text_by_rank"):
        cells = [f"{by_chance['video_to_text_by_rank'][key]:.1f}" for key in columns]
        table.add_row(BY_RANK, *[""] * len(columns), *cells, style="dim")

    # The sentences of the first run hold for all, but for those that are about its own error and epoch.
    lines = [f"The deviation is the sample standard deviation of {len(results)} runs that differ only in their seed."]
    share = statistics.fmean(result["rows"][0]["text_to_video"]["R@1"] for result in results) / 100
    error = error_of_share(share, results[0]["queries"])
    lines.append(f"Ties take the mean rank. One standard error of T→V R@1 is {error:.1f} points for one run's queries.")
    of_one = ("Weights ", "Ties take", sentence_of(results[0]))
    lines += [line for line in sentences(results[0]) if not line.startswith(of_one)]
    lines += sorted({weights_sentence(str(result["selection"]).split(":")[0]) for result in results})
    lines.append(origins_of(results))
    stale = [(folder, what_is_stale(folder, one)) for folder, one in zip(folders, results, strict=False)]
    marks = [f"{folder}: {what}." for folder, what in stale if what is not None]
    return Lines(
        table,
        *(Text(f"* {mark}", style="bold yellow") for mark in marks),
        *(Text(f"· {line}", style="dim") for line in lines),
    )


def origins_of(results: Sequence[Results]) -> str:
    """The weights of each run, and the code, which is one in most cases."""
    known = [Origin.of_results(one) for one in results]
    codes = list(dict.fromkeys("code not recorded" if one is None else one.code for one in known))
    weights = ", ".join("not recorded" if one is None else str(one).removeprefix("weights ") for one in known)
    return f"Measured on weights {weights}; by {' and '.join(codes)}."


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; 0 of one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _spread(values: Sequence[float]) -> str:
    mean, deviation = mean_and_deviation(values)
    return f"{mean:.1f}±{deviation:.1f}"
