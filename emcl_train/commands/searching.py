"""The command search."""

from math import isfinite
from pathlib import Path
from typing import Any, Literal

from rich.table import Table
from tyro.conf import Positional

from emcl_train.commands.entry import Entry, of_function, switches_of
from emcl_train.commands.output import json_result
from emcl_train.errors import UserError
from emcl_train.extras import require_packages
from emcl_train.terminal import console_of, escaped

RESULTS = 10
"""Unless a number is asked for."""


def search(
    library: Positional[str],
    query: Positional[str | None] = None,
    *,
    like: Path | None = None,
    at: float | None = None,
    k: int = RESULTS,
    min: Literal["auto"] | float | None = None,
    rows: Literal["auto", "refined", "plain"] = "auto",
    model: str | None = None,
    eval: Path | None = None,
    damaged: bool = False,
    open: bool = False,
    json: Path | None = None,
) -> None:
    """Find the moments that fit a sentence, or that are like a moment of a video.

    Args:
        library: What `index` has made.
        query: What is to be seen, such as "a dog jumps into water".
        like: A video to search by, in place of a sentence.
        at: The second in it; None: its middle.
        k: Results at most.
        min: Leave out what scores less. "auto": less than 95 of 100 unrelated queries reach, so that a query which
            nothing fits finds nothing.
        rows: Compare refined rows, or the model's own; "auto": refined ones where the library has a bank.
        model: Where the model lies now, if it has moved.
        eval: Measure retrieval on the pairs in this file, a JSON object a line with "query" and "video", and perhaps
            "start" and "end".
        damaged: List the files that cannot be decoded, in place of a search.
        open: Show the results in the browser, on a page of this machine.
        json: Write the results to this file; alone, or with -, print them in place of all else.
    """
    require_packages("search")
    asked = {"QUERY": query, "--like": like, "--eval": eval, "--damaged": damaged}
    given = [name for name, value in asked.items() if value]
    if len(given) != 1:
        said = f"{' and '.join(given)} were given" if given else "none was given"
        raise UserError(f"search takes one of QUERY, --like, --eval and --damaged, and {said}")
    if at is not None and like is None:
        raise UserError("--at is the second of a video; name it with --like")
    of_results = {"--k": k != RESULTS, "--min": min is not None, "--rows": rows != "auto"}
    if eval is not None or damaged:
        _refuse(given[0], {**of_results, "--open": open, "--model": damaged and model is not None})
    if open:
        _refuse("--open", {**of_results, "--json": json})
    if isinstance(min, float) and not isfinite(min):
        raise UserError(f"--min is {min}, expected a number, such as 0.3, or auto")

    from emcl_train.search.library import Library
    from emcl_train.search.reaching import reaching

    refine = {"auto": None, "refined": True, "plain": False}[rows]
    with reaching(library), json_result(json) as result:
        there = Library(library, model)
        if open:
            from emcl_train.commands.serving import open_page

            open_page(there, {"q": query or ""} if like is None else {"like": _moment_of(there, like, at)})
        elif damaged:
            _print_damaged(there)
            result({"damaged": [{"path": path, "reason": reason} for path, reason in there.damaged]})
        elif eval is not None:
            from emcl_train.search.measuring import measure

            measured = measure(there, eval)
            console_of().print(measured.table())
            result(measured.as_json())
        else:
            if like is None:
                found = there.search(query or "", k, refine=refine, minimum=min)
            else:
                found = _like(there, like, at, k, refine=refine, minimum=min)
            cutoff = there.cutoff(refine=refine) if like is None else None
            refined = there.refines if refine is None else refine
            _print_found(found, there, cutoff, minimum=min, refined=refined)
            result(
                {
                    "library": library,
                    "query": query,
                    "like": like,
                    "at": at,
                    "refined": refined,
                    "cutoff": None if cutoff is None else cutoff.score,
                    "results": [one.as_json() for one in found],
                }
            )


def _refuse(flag: str, others: dict[str, object]) -> None:
    """Refuse flags that do nothing beside another one.

    Raises:
        UserError: one of them is given.
    """
    for other, is_given in others.items():
        if is_given:
            raise UserError(f"{other} does nothing with {flag}; leave one of them out")


def _like(library: Any, example: Path, *rest: Any, **named: Any) -> list[Any]:
    """Search by an example, whose file may be none.

    Raises:
        UserError: it cannot be decoded.
    """
    from emcl_train.data.timeline import VideoError

    try:
        return list(library.like(example, *rest, **named))
    except VideoError as error:
        raise UserError(f"--like is {example}, which cannot be decoded: {error.reason}; pass a video") from error


def _moment_of(library: Any, example: Path, at: float | None) -> str:
    """The id of the library's moment that an example is.

    Raises:
        UserError: it cannot be decoded, or is not in the library.
    """
    from emcl_train.search.finding import content_of

    found = _like(library, example, at, 1)
    if not found or found[0].content != content_of(example):
        raise UserError(
            f"--open shows moments of the library, and {example} is not in it; index its folder, or leave out --open"
        )
    return str(found[0].id)


def _print_found(found: list[Any], library: Any, cutoff: Any, *, minimum: Any, refined: bool) -> None:
    console = console_of()
    if library.about["model"].get("smoke_test"):
        console.print("[yellow]the model has random weights: results mean nothing[/yellow]", highlight=False)
    if not found:
        if minimum == "auto" and cutoff is not None:
            console.print(f"nothing here fits: {cutoff.said()}", soft_wrap=True, highlight=False)
        elif minimum is not None:
            console.print(f"nothing scores {minimum:g} or more", highlight=False)
        else:
            console.print("the library has no moments", highlight=False)
        return

    table = Table(box=None, pad_edge=False)
    table.add_column("score", justify="right")
    table.add_column("from", justify="right")
    table.add_column("to", justify="right")
    table.add_column("file", overflow="fold")
    for one in found:
        below = minimum is None and cutoff is not None and one.score < cutoff.score
        table.add_row(
            f"{one.score:.3f}", clock(one.start), clock(one.end), escaped(one.path), style="dim" if below else None
        )
    console.print(table)
    if cutoff is not None and minimum == "auto":
        console.print(f"cut at {cutoff.score:.3g}: {cutoff.said()}", soft_wrap=True, highlight=False)
    if cutoff is not None and minimum is None and found[0].score < cutoff.score:
        console.print(f"perhaps nothing here fits: {cutoff.said()}", soft_wrap=True, highlight=False)
    console.print(_how_searched(library, refined=refined), style="dim", soft_wrap=True, highlight=False)


def _how_searched(library: Any, *, refined: bool) -> str:
    """Whether all moments were compared, or those that an index chose."""
    from emcl_train.search.tables import MOMENTS, REFINED
    from emcl_train.search.vector_index import describe

    return str(describe(library.tables.open(REFINED if refined else MOMENTS))["said"])


def _print_damaged(library: Any) -> None:
    console = console_of()
    for path, reason in library.damaged:
        console.print(f"{escaped(path)}: {escaped(reason)}", soft_wrap=True, highlight=False)
    if not library.damaged:
        console.print("no file is damaged", highlight=False)


def clock(seconds: float) -> str:
    """A time in a film, to a tenth of a second.

    Examples:
        >>> clock(3725.25), clock(7.5)
        ('1:02:05.2', '0:07.5')
    """
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"


COMMANDS = {
    "search": Entry(
        'LIBRARY "WORDS"',
        "find the moments that fit a sentence, or that are like one of a video",
        of_function("search", search),
        library=lambda arguments: "",
        switches=switches_of(search),
    ),
}
