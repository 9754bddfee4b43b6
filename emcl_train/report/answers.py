"""What a run of video question answering found: a table in the terminal, and report.html."""

from html import escape
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from emcl_train.errors import UserError
from emcl_train.runs.contents import METRICS, REPORT, RESULTS
from emcl_train.runs.files import read_json, write_text_atomic
from emcl_train.runs.records import read_records

SHOWN = 50
"""Questions on a page."""
PUBLISHED = ("EMCL-QA, the authors' figure over the kept questions", 45.8)
"""On MSRVTT-QA's test split."""
SENTENCES = (
    "Published figures are over the kept questions: those whose answer is one of the listed ones. Over all questions, "
    "the others count as answered wrong.",
)


def render_answers(results: dict[str, Any]) -> Group:
    """The accuracies of one run, each over the kept and over all questions; for `console.print`."""
    title = f"{results['recipe']}, {results['split']} split, {results['answers']} answers"
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title_justify="left")
    table.add_column("")
    table.add_column("percent", justify="right")
    for name, value in results["accuracies"].items():
        table.add_row(name, f"{value:.1f}")
    if results["split"] == "test":
        table.add_row(f"published: {PUBLISHED[0]}", f"{PUBLISHED[1]:.1f}", style="dim italic")
    return Group(table, *(Text(f"· {sentence}", style="dim") for sentence in (*results["notes"], *SENTENCES)))


def results_of_answers(folder: Path) -> dict[str, Any]:
    """What results.json in a folder of such a run holds."""
    way_out = f"evaluate the run again with `emcl-train eval {folder}`"
    results = dict(read_json(folder / RESULTS, way_out, keys=("accuracies",)))
    if not isinstance(results["accuracies"], dict):
        raise UserError(f"{folder / RESULTS} has no accuracies; {way_out}")
    return results


def write_answers_report(folder: Path) -> Path:
    """Write report.html into a folder of such a run, and return its path.

    Raises:
        UserError: the folder lacks a file, or one cannot be read.
    """
    results = results_of_answers(folder)
    way_out = f"evaluate the run again with `emcl-train eval {folder}`"
    given = read_json(folder / "answers.json", way_out)
    # An evaluation in a folder of its own has no training beside it.
    records = read_records(folder / METRICS) if (folder / METRICS).is_file() else []
    losses = [line for line in records if line.get("kind") == "train"]

    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{value:.1f} %</td></tr>" for name, value in results["accuracies"].items()
    )
    published = f"<tr><td>published: {escape(PUBLISHED[0])}</td><td>{PUBLISHED[1]} %</td></tr>"
    questions = "".join(
        f"<tr><td>{escape(str(row['video_id']))}</td><td>{escape(str(row['question']))}</td>"
        f"<td>{escape(str(row['answer']))}</td><td>{escape(', '.join(map(str, row['given'])))}</td></tr>"
        for row in given[:SHOWN]
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in (*results["notes"], *SENTENCES))
    curve = f"<p>Loss: {losses[0]['loss']:.3f} at first, {losses[-1]['loss']:.3f} at the end.</p>" if losses else ""
    title = escape(f"{results['recipe']}: video question answering, {results['split']} split")
    write_text_atomic(
        folder / REPORT,
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        "<style>body{font-family:sans-serif;max-width:60em;margin:2em auto}td,th{padding:.2em .8em;text-align:left}"
        f"</style></head><body><h1>{title}</h1><table>{rows}"
        f"{published if results['split'] == 'test' else ''}</table>{curve}<ul>{notes}</ul>"
        f"<h2>The first {min(SHOWN, len(given))} kept questions</h2><table>"
        "<tr><th>video</th><th>question</th><th>right</th><th>given, best first</th></tr>"
        f"{questions}</table></body></html>\n",
    )
    return folder / REPORT
