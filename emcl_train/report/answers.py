"""What runs of video question answering found, as tables in the terminal, and what a reader must know of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group as Lines
from rich.table import Table
from rich.text import Text

from emcl_train.evaluation.answers import Accuracies
from emcl_train.report.groups import mean_and_deviation, origins_of
from emcl_train.report.notes import Results, error_of_share, left_out_of
from emcl_train.report.published import published_accuracy_of
from emcl_train.runs.origin import sentence_of, what_is_stale
from emcl_train.runs.records import weights_sentence

SENTENCES = (
    "Published figures are over the kept questions: those whose answer is one of the listed ones. Over all questions, "
    "the others count as answered wrong.",
    "A right answer with as great a logit as others stands behind them.",
)


def are_answers(results: Results) -> bool:
    """Whether results.json is of a run that answers questions."""
    return "rows" not in results


def accuracies_of(results: Results) -> Accuracies:
    """Those of results.json."""
    return Accuracies(**results["figures"])


def beside_published(results: Results) -> list[tuple[str, float]]:
    """Lines to stand below a run's own: chance, and what was published of these questions."""
    lines = [(f"chance: one of {results['answers']} answers, of the kept questions", 100 / results["answers"])]
    if (published := published_accuracy_of(results)) is not None:
        label = f"published: {published.system.label}, CLIP {published.towers}, over the kept questions"
        lines.append((label, published.kept))
    return lines


def sentences_of_answers(results: Results) -> list[str]:
    """What belongs under the table of a run."""
    return [
        *_of_the_task(results),
        weights_sentence(str(results["selection"])),
        sentence_of(results),
        *left_out_of(results),
        *results.get("notes", []),
    ]


def render_answers(results: Results, path: Path | None = None) -> Lines:
    """The accuracies of one run, each over the kept and over all questions; for `console.print`.

    Args:
        results: what results.json holds.
        path: the folder that it lies in, whose weights may be others by now; None: it was measured just now.
    """
    table = _table(f"{results.get('recipe', 'run')}, {results['split']} split, {results['answers']} answers")
    table.add_column("percent", justify="right")
    for number, (name, value) in enumerate(accuracies_of(results).lines()):
        table.add_row(name, f"{value:.1f}", style="bold" if number == 0 else None)
    for name, value in beside_published(results):
        table.add_row(name, f"{value:.1f}", style="dim italic")

    stale = None if path is None else what_is_stale(path, results)
    marks = [] if stale is None else [f"These figures are {stale}."]
    return _with_sentences(table, sentences_of_answers(results), marks)


def render_answers_beside(runs: Sequence[tuple[Path, Results]]) -> Lines:
    """Several runs in one table, a line each; for `console.print`."""
    table = _table(f"{len(runs)} runs that answer questions, accuracy in percent")
    for title in ("top 1\nkept", "top 1\nall", "top 5\nkept", "top 5\nall"):
        table.add_column(title, justify="right", no_wrap=True)
    marks = []
    for path, results in runs:
        found = accuracies_of(results)
        questions = f"{found.kept} of {found.asked} questions kept"
        name = f"{path} ({results['split']}, {questions}, {results['answers']} answers)"
        cells = [found.top1_of_kept, found.top1_of_all, found.top5_of_kept, found.top5_of_all]
        table.add_row(Text(name), *(f"{value:.1f}" for value in cells))
        if (stale := what_is_stale(path, results)) is not None:
            marks.append(f"{path}: {stale}.")

    lines = list(SENTENCES)
    if len({_measured(results) for _, results in runs}) > 1:
        lines.insert(0, "Not measured alike: other questions, or another number of answers to choose from.")
    lines += [f"{path}: {weights_sentence(str(results['selection']))} {sentence_of(results)}" for path, results in runs]
    return _with_sentences(table, lines, marks)


def render_answers_group(path: Path, results: Sequence[Results], folders: Sequence[Path] = ()) -> Lines:
    """Runs with different seeds as mean ± standard deviation; for `console.print`.

    Args:
        path: the folder of the runs.
        results: of each run.
        folders: of each run, where its weights may be others by now; none: all were measured just now.
    """
    table = _table(f"{path}: {len(results)} seeds, mean ± deviation, {results[0]['split']} split")
    table.add_column("percent", justify="right", no_wrap=True)
    for number, line in enumerate(spread_of(results)):
        table.add_row(line[0], line[1], style="bold" if number == 0 else None)
    for name, value in beside_published(results[0]):
        table.add_row(name, f"{value:.1f}", style="dim italic")

    lines = [f"The deviation is the sample standard deviation of {len(results)} runs that differ only in their seed."]
    lines += _of_the_task(results[0])
    lines += sorted({weights_sentence(str(one["selection"]).split(":")[0]) for one in results})
    lines += [*left_out_of(results[0]), *results[0].get("notes", []), origins_of(results)]
    stale = [(folder, what_is_stale(folder, one)) for folder, one in zip(folders, results, strict=False)]
    return _with_sentences(table, lines, [f"{folder}: {what}." for folder, what in stale if what is not None])


def spread_of(results: Sequence[Results]) -> list[tuple[str, str]]:
    """The lines of several runs on the same questions, as mean and deviation."""
    lines = [accuracies_of(one).lines() for one in results]
    found = []
    for number, (name, _) in enumerate(lines[0]):
        mean, deviation = mean_and_deviation([line[number][1] for line in lines])
        found.append((name, f"{mean:.1f}±{deviation:.1f}"))
    return found


def _of_the_task(results: Results) -> list[str]:
    found = accuracies_of(results)
    error = error_of_share(found.top1_of_kept / 100, found.kept)
    return [*SENTENCES, f"One standard error of the accuracy over the kept questions is {error:.1f} points."]


def _measured(results: Results) -> tuple[Any, ...]:
    found = accuracies_of(results)
    return results["split"], results["answers"], found.kept, found.asked


def _table(title: str) -> Table:
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title_justify="left")
    table.add_column("", overflow="fold", min_width=14)
    return table


def _with_sentences(table: Table, sentences: Sequence[str], marks: Sequence[str]) -> Lines:
    return Lines(
        table,
        *(Text(f"* {mark}", style="bold yellow") for mark in marks),
        *(Text(f"· {sentence}", style="dim") for sentence in sentences),
    )
