"""`emcl-train refine`: fit a map to two files of embeddings, write them refined, and measure where pairs are known."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from safetensors import safe_open

from emcl_kernels import Refiner
from emcl_train.config import RefineConfig
from emcl_train.errors import UserError
from emcl_train.evaluation.bootstrap import Interval
from emcl_train.flags import flag
from emcl_train.runs.checksums import note_all
from emcl_train.runs.files import current, remove, whole, write_json_atomic
from emcl_train.runs.lock import writing
from emcl_train.runs.origin import ORIGIN, origin_of_tensors, sentence_of
from emcl_train.runs.together import together
from emcl_train.terminal import console_of, warn
from emcl_train.tools.arrays import Embeddings, read_embeddings, read_written
from emcl_train.tools.expectation import expectation
from emcl_train.tools.paired import (
    DIRECTIONS,
    RECALLS,
    query_ranks,
    results_of,
    rows_among,
    table_of,
    video_of_each_text,
)
from emcl_train.tools.shards import ShardEmbeddings
from emcl_train.tools.sides import Sides, read_sides

MAP = "map.safetensors"
RESULTS = "results.json"
WRITTEN = "files"
"""Where a map names the files beside it that refine wrote."""
ANY = ""
"""The fingerprint of a file that was not whole yet, in maps of earlier versions."""
PIECE = 1 << 20


@dataclass(frozen=True)
class Asked:
    """What to refine, and where to."""

    text: str
    """FILE or FILE:NAME, see `emcl_train.tools.arrays`; or without `video` a folder, see `read_sides`."""
    video: str | None
    """FILE or FILE:NAME of the other side."""
    out: Path
    """Folder for the refined files, which keep their formats, and for the map, which names them. It replaces there only
    what an earlier call wrote, as it was written."""
    paired: bool = False
    """Row i of the texts belongs to row i of the videos. Only the table uses it."""
    pairs: Path | None = None
    """File with the video's row for each text: `.npy`, or text with one number a line."""
    queries: str | None = None
    """FILE or FILE:NAME of a bank: queries that are known beforehand, raw like the sides."""
    query_side: str | None = None
    """Whether those are texts, which search videos, or videos, which search texts; None: texts."""

    @property
    def bank_side(self) -> str:
        return self.query_side or "text"

    @property
    def other_side(self) -> str:
        return "video" if self.bank_side == "text" else "text"


@dataclass(frozen=True)
class Refined:
    """What was found besides the files that were written."""

    results: dict[str, Any] | None
    """The table; None where pairs are not known."""
    hubness: dict[str, dict[str, float]]
    """Skewness of N10 "before" and "after", by direction."""
    reasons: list[str]
    """Not to refine, as `Refiner.diagnose` finds them."""
    bank_rows: int | None
    """Of the bank; None without one."""

    @property
    def warnings(self) -> list[str]:
        """Reasons not to refine, or not to trust the table."""
        bank = {} if self.results is None else self.results.get("bank", {})
        if not bank.get("known"):
            return self.reasons
        return [
            *self.reasons,
            f"{bank['known']} of {bank['looked_at']} {bank['side']}s are in the bank themselves, as no new query will "
            "be, so the table promises too much; take them out of the bank",
        ]


@dataclass(frozen=True)
class Source:
    """The rows that were asked for."""

    sides: Sides
    bank: Embeddings | None


def refine_files(asked: Asked, settings: RefineConfig, console: Console | None = None) -> Refined:
    """Refine two files of embeddings.

    Args:
        asked: of what, and where to.
        settings: of the map and the bank.
        console: where to print.

    Returns:
        The table and the hubs.

    Raises:
        UserError: a file, its arrays or the pairs are not what they should be, or a file is in the way.
    """
    with writing(asked.out):
        return _refine_files(asked, settings, console_of(console))


def print_plan(asked: Asked, settings: RefineConfig, console: Console | None = None) -> None:
    """Look at what `refine_files` would read, and say what it would write, which it does not.

    Args:
        asked: as of `refine_files`.
        settings: likewise.
        console: where to print.
    """
    console = console_of(console)
    source = _opened(asked, refiner_of(settings, asked).num_neighbors)
    known = source.sides.caption_clip is not None
    banks = {} if source.bank is None else {f"bank of {asked.bank_side}s": source.bank}
    for name, of in (source.sides.by_name | banks).items():
        console.print(f"{name}: {of.path}, {' × '.join(map(str, of.rows.shape))}", soft_wrap=True, markup=False)
    console.print(
        f"folder: {asked.out}, the refined files, {MAP}{f' and {RESULTS}' if known else ''}",
        soft_wrap=True,
        markup=False,
    )
    console.print("nothing was written")


def _refine_files(asked: Asked, settings: RefineConfig, console: Console) -> Refined:
    out = asked.out
    refiner = refiner_of(settings, asked)
    source = _opened(asked, refiner.num_neighbors)
    sides, caption_clip, bank = source.sides.by_name, source.sides.caption_clip, source.bank

    # Text, video, map and table are of one fit: all change, or none.
    with together(out):
        with _of_these_rows():
            fit(refiner, sides["text"], sides["video"])
        if bank is not None:
            with _of_these_rows(f"--queries {bank.path}: "):
                refiner.set_bank(**{f"{asked.bank_side}_bank": bank.rows})
        with _of_these_rows():
            diagnosis = refiner.diagnose(sides["text"].rows, sides["video"].rows)
            hubness = {"before": diagnosis.hubness_before, "after": diagnosis.hubness_after}

        width = sides["text"].rows.shape[1] + (bank is not None)
        files = {
            "text": sides["text"].write(out, "text", _of_rows(refiner.transform_text), width),
            "video": sides["video"].write(out, "video", _of_rows(refiner.transform_video), width),
        }

        # What refining did, as the files say that were written.
        results = None
        if caption_clip is None:
            remove(out / RESULTS)
        else:
            read_back = {side: _read_back(file, sides[side].name) for side, file in files.items()}
            before = query_ranks(sides, caption_clip)
            after = query_ranks(read_back, caption_clip, by_cosine=bank is None)
            results = results_of(before, after, refiner, sides)
            results["hubness"] = hubness
            if bank is not None:
                known, of = rows_among(sides[asked.bank_side].rows, bank.rows)
                results["bank"] = {"side": asked.bank_side, "rows": len(bank.rows), "known": known, "looked_at": of}
            results[ORIGIN] = origin_of_tensors(refiner.tensors)
            write_json_atomic(out / RESULTS, results)

        # The map names the files beside it, those of other formats that an earlier call wrote too.
        earlier = {name: of for name, of in (_written(out / MAP) or {}).items() if (out / name).exists()}
        written = [*(file.name for file in files.values()), *([RESULTS] if results is not None else [])]
        earlier.pop(RESULTS, None)
        _save_map(refiner, out / MAP, earlier | {name: fingerprint(current(out / name)) for name in written})
        note_all(out, [file.name for file in (*files.values(), out / MAP)], others=True)

    for side, file in files.items():
        console.print(f"{side}: {file}, {len(sides[side].rows)} × {width}", soft_wrap=True, markup=False)
    console.print(f"map: {out / MAP}", soft_wrap=True, markup=False)
    if bank is not None:
        console.print(
            f"bank: {bank.path}, {len(bank.rows)} {asked.bank_side}s that search {asked.other_side}s, the other "
            f"direction is as without it; rows have {width} numbers: compare them by inner product, never by cosine",
            soft_wrap=True,
            markup=False,
        )
    if results is None:
        console.print("no table: name the pairs with --paired or --pairs FILE to see what refining does to retrieval")
    else:
        _print_results(results, source.sides, console)
    refined = Refined(results, hubness, diagnosis.warnings, None if bank is None else len(bank.rows))
    _print_diagnosis(refined, refiner, console)
    return refined


def _print_results(results: dict[str, Any], sides: Sides, console: Console) -> None:
    """The table, of which map it is, and what a reader should know."""
    console.print(table_of(results))
    console.print(sentence_of(results).replace("weights", "the map", 1), highlight=False, soft_wrap=True)
    for note in sides.notes:
        console.print(note)
    for name, key in DIRECTIONS.items():
        gains = [f"R@{k} {Interval(**results['difference'][key][f'R@{k}'])}" for k in RECALLS]
        console.print(
            f"{name} difference in points, 95 % of a paired bootstrap over queries: {', '.join(gains)}", soft_wrap=True
        )


def _print_diagnosis(refined: Refined, refiner: Refiner, console: Console) -> None:
    """Hubs before and after, what may be expected, and reasons to doubt."""
    found = [
        f"{direction} {before:.2f} before, {refined.hubness['after'][direction]:.2f} after"
        for direction, before in refined.hubness["before"].items()
    ]
    console.print(f"hubs (skewness of N10): {'; '.join(found)}", highlight=False, soft_wrap=True)
    if not refined.reasons and (expected := expectation(refiner)) is not None:
        console.print(expected.sentence, highlight=False, soft_wrap=True)
    for warning in refined.warnings:
        warn(f"warning: {warning}", console)


def _opened(asked: Asked, neighbors: int) -> Source:
    """Both sides, with the pairs that were asked for or that the folder knows; looks at what lies in `out` as well.

    Args:
        asked: of what, and where to.
        neighbors: fewest rows of a bank.
    """
    sides = read_sides(asked.text, asked.video)
    pairs = video_of_each_text(sides.by_name, asked.paired, asked.pairs)
    bank = None if asked.queries is None else read_embeddings(asked.queries)
    inputs = {of.path: f"the {side} embeddings" for side, of in sides.by_name.items()}
    if asked.pairs is not None:
        inputs[asked.pairs] = "the pairs"
    if bank is not None:
        inputs[bank.path] = "the queries of the bank"
    _require_free(asked.out, sides.by_name, inputs)
    _require_one_space(sides, bank, neighbors)
    return Source(sides if pairs is None else replace(sides, caption_clip=pairs), bank)


def fit(refiner: Refiner, text: Embeddings, video: Embeddings) -> None:
    """Fit to the rows of both sides, each read once; where their moments have been added up already, to these."""
    sides = {"text": text, "video": video}
    packed = {
        name: of.packed_moments
        for name, of in sides.items()
        if isinstance(of, ShardEmbeddings) and refiner.normalize and of.packed_moments is not None
    }
    if not packed:
        refiner.fit(text.rows, video.rows)
        return

    # Whoever added them up is to the refiner as another process, which has those rows.
    width = text.rows.shape[1]
    nothing = np.zeros(width * width + width + 1)
    moments = torch.from_numpy(np.concatenate([packed.get(name, nothing) for name in sides]))
    agreement = torch.tensor([1.0, 0.0, 1.0, width, width * width], dtype=torch.float64)

    def add_up(vector: torch.Tensor) -> torch.Tensor:
        return vector + (agreement if len(vector) == len(agreement) else moments)

    refiner.fit(*(None if name in packed else of.rows for name, of in sides.items()), add_up=add_up)


@contextmanager
def _of_these_rows(of: str = "") -> Iterator[None]:
    """Take what the refiner does not take for an error of the user's, with this before it."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UserError(f"{of}{error}") from error


def _of_rows(transform: Callable[..., Any]) -> Callable[..., Any]:
    """A transform of the refiner whose errors are the user's."""

    def transformed(*args: Any, **kwargs: Any) -> Any:
        with _of_these_rows():
            return transform(*args, **kwargs)

    return transformed


def _read_back(file: Path, name: str | None) -> Embeddings:
    """What was written and has not its name yet. Other columns stay in a table, so that one is named."""
    return read_written(file, current(file), name)


def _require_one_space(sides: Sides, bank: Embeddings | None, neighbors: int) -> None:
    """Raise a UserError if rows are no floats or of several widths, or a bank has too few."""
    width = sides.text.rows.shape[1]
    for of in (sides.text, sides.video, *([] if bank is None else [bank])):
        rows = of.rows
        if not (rows.is_floating_point() if isinstance(rows, torch.Tensor) else rows.dtype.kind == "f"):
            raise UserError(f"{of.path} holds {rows.dtype} numbers; expected floats, write it as float32")
        if rows.shape[1] != width:
            raise UserError(
                f"{of.path} has shape {list(rows.shape)} but {sides.text.path} is {width} wide; all must come from one "
                "joint space"
            )
    if bank is not None and len(bank.rows) < neighbors:
        raise UserError(
            f"--queries {bank.path} has {len(bank.rows)} rows, fewer than --num-neighbors {neighbors}; pass more, or "
            "fewer neighbours"
        )


def _require_free(out: Path, sides: dict[str, Embeddings], read: dict[Path, str]) -> None:
    """Raise a UserError if refining would write over what it reads, or over what no earlier call wrote so.

    Args:
        out: the folder.
        sides: what is written there again.
        read: what each file is that is read.
    """
    targets = [*(of.target(out, side) for side, of in sides.items()), out / MAP, out / RESULTS]
    inputs = {path.resolve(): what for path, what in read.items()}
    written = _written(out / MAP)
    for target in targets:
        if target.resolve() in inputs:
            raise UserError(f"{target} would be written over {inputs[target.resolve()]}; choose another --out")
        if not target.exists() or (target == out / MAP and written is not None):
            continue
        if written is None:
            why = f"exists, and no {MAP} of an earlier refine lies beside it"
        elif target.name not in written:
            why = f"exists, and is not among the files that {MAP} beside it names as refine's"
        elif written[target.name] not in (ANY, fingerprint(target)):
            why = "is not as refine wrote it"
        else:
            continue
        raise UserError(f"{target} {why}; choose another --out, or move it")


def _save_map(refiner: Refiner, path: Path, files: dict[str, str]) -> None:
    """The map, with the files beside it that are refine's, by name, and their fingerprints."""
    with whole(path) as partial:
        refiner.save(partial, notes={WRITTEN: json.dumps(files)})


def refiner_of(settings: RefineConfig, asked: Asked) -> Refiner:
    """A refiner with the settings that were given.

    Raises:
        UserError: a setting is out of its range, of another map, or of a bank and there is none.
    """
    kind = Refiner.MAPS[settings.map]
    own = {field.name for field in fields(kind)}
    given = settings.of_map()
    if others := sorted(set(given) - own):
        whose = [name for name, other in Refiner.MAPS.items() if others[0] in {field.name for field in fields(other)}]
        raise UserError(
            f"{others[0]} is no setting of the map {settings.map!r}, but of {' and '.join(map(repr, whose))}; leave "
            f"{flag(others[0])} out, or pass {flag('map')} {whose[0]}"
        )
    of_bank = settings.of_bank()
    names = [*of_bank, *(["query_side"] if asked.query_side is not None else [])]
    if names and asked.queries is None:
        raise UserError(f"{flag(names[0])} is of a bank, and there is none; name one with --queries, or leave it out")
    with _of_these_rows():
        return Refiner(kind(**given), normalize=settings.normalize, **of_bank)


def _written(path: Path) -> dict[str, str] | None:
    """The files that a map names as refine's; None where it is none, or was saved by other means."""
    try:
        Refiner.load(path)
        with safe_open(path, framework="pt") as file:
            return dict(json.loads(file.metadata()[WRITTEN]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def fingerprint(path: Path) -> str:
    """Of all of a file: an edit in the middle of a mapped array changes neither its length nor its ends."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()[:16]
