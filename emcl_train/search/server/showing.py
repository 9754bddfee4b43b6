"""What of a library is shown: names of files without the folders above them, seconds, and scores in words."""

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from emcl_train.search.server.contract import Cutoff, Moment, Searchable

DAMAGED = 100
"""Damaged files that are named."""


def about(library: Searchable) -> dict[str, Any]:
    """What a library is. Of this machine's folders, only the names of those that were indexed."""
    model = library.about.get("model") or {}
    roots = roots_of(library)
    damaged = library.damaged
    named = [{"file": name_of(Path(path), roots), "reason": text_of(reason)} for path, reason in damaged[:DAMAGED]]
    return {
        "name": text_of(library.name),
        "moments": len(library),
        "model": {
            "label": text_of(model.get("label", "")),
            "fingerprint": text_of(model.get("fingerprint", "")),
            "random": bool(model.get("smoke_test")),
        },
        "cutting": cut_in_words(library.about.get("cutting") or {}),
        "roots": [text_of(root.name) for root in roots],
        "refines": library.refines,
        "cutoff": {
            "plain": score_of(library.cutoff(refine=False)),
            "refined": score_of(library.cutoff(refine=True)) if library.refines else None,
        },
        "damaged": {"count": len(damaged), "files": named},
    }


def roots_of(library: Searchable) -> list[Path]:
    """The folders that were indexed, the longest path first."""
    roots = [Path(str(root)) for root in library.about.get("roots") or []]
    return sorted(roots, key=lambda root: -len(root.parts))


def results(
    library: Searchable, found: Sequence[Moment], *, cutoff: float | None = None, asked: dict[str, Any] | None = None
) -> dict[str, Any]:
    """An answer with moments.

    Args:
        library: whose they are.
        found: the best first.
        cutoff: the score below which nothing fits, where there is one.
        asked: what is repeated of the question.
    """
    roots = roots_of(library)
    shown = [shown_moment(moment, roots, cutoff) for moment in found]
    fits = None if cutoff is None else any(not one["below"] for one in shown)
    return {**(asked or {}), "cutoff": number(cutoff), "fits": fits, "said": said_of(found, cutoff), "results": shown}


def said_of(found: Sequence[Moment], cutoff: float | None) -> str:
    """What comes of a search, in a sentence."""
    if cutoff is None:
        return "" if found else "There is no moment."
    under = "95 % of unrelated queries stay under that"
    if not found:
        return f"Nothing here fits: no moment reaches {cutoff:.3f}, and {under}."
    best = max(moment.score for moment in found)
    if best < cutoff:
        return f"Nothing here fits: the best score, {best:.3f}, is below {cutoff:.3f}, and {under}."
    return ""


def shown_moment(moment: Moment, roots: Iterable[Path], cutoff: float | None = None) -> dict[str, Any]:
    """A moment as JSON."""
    roots = list(roots)
    score = number(moment.score)
    return {
        "id": moment.id,
        "file": name_of(moment.path, roots),
        "also_at": [name_of(path, roots) for path in moment.also_at],
        "start": number(moment.start),
        "end": number(moment.end),
        "score": score,
        "below": cutoff is not None and score is not None and score < cutoff,
        "thumbnail": f"/thumbnail/{moment.id}",
        "media": f"/media/{moment.id}",
    }


def name_of(path: Path, roots: Iterable[Path]) -> str:
    """A file as it is shown: its path inside the folder that was indexed."""
    for root in roots:
        if path.is_relative_to(root) and path != root:
            return text_of(path.relative_to(root).as_posix())
    return text_of(path.name)


def text_of(value: object) -> str:
    """A text that can be sent: names of files may be no UTF-8."""
    return os.fsencode(str(value)).decode("utf-8", "replace") if _is_strange(str(value)) else str(value)


def _is_strange(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def cut_in_words(cutting: dict[str, Any]) -> str:
    """How files were cut into moments; "" where the library does not say."""
    if cutting.get("way") == "shots":
        return "shots"
    seconds = cutting.get("seconds")
    return f"pieces of {seconds:g} s" if isinstance(seconds, int | float) else ""


def score_of(cutoff: Cutoff | None) -> float | None:
    """The score of a cut-off, if there is one."""
    return None if cutoff is None else number(cutoff.score)


def number(value: float | None) -> float | None:
    """A number, or None for one that JSON has not."""
    return float(value) if value is not None and math.isfinite(value) else None
