"""The command index: bring a library up to date with the videos in its folders.

Whatever ends it, the next one goes on: what was embedded is kept in commits that are whole or not there at all.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from emcl_kernels import Refiner
from emcl_train.encoder import Encoder, load
from emcl_train.errors import UserError
from emcl_train.processes import agreed, first_then_others, gather_objects, of_first, rank_and_world
from emcl_train.runs.lock import writing
from emcl_train.search import refining, vector_index
from emcl_train.search.cutoff import SHARE, fewest_queries
from emcl_train.search.embedding import Done, embed
from emcl_train.search.finding import Changes, Listing, Seen, absolute_roots, compare, list_videos
from emcl_train.search.moments import Cutting, choose
from emcl_train.search.outcome import Report
from emcl_train.search.reaching import is_address, reaching
from emcl_train.search.refining import read_queries
from emcl_train.search.tables import (
    ABOUT,
    DAMAGED,
    FILES,
    INDEXED,
    MOMENTS,
    OF_FILES,
    REFINED,
    REFINER,
    Tables,
    of_moments,
)
from emcl_train.search.taking_over import require_same_model, take_over
from emcl_train.search.ways import Way
from emcl_train.tools.arrays import is_shards
from emcl_train.tools.shards import Shards


@dataclass(frozen=True)
class Asked:
    """What a user wants indexed."""

    out: str
    folders: tuple[Path, ...] = ()
    """Beside those that the library knows. A folder of shards is one whose rows are taken over."""
    model: str | None = None
    """A run or a CLIP; None: the one that made the library."""
    cut: Way = "auto"
    piece: float | None = None
    """Seconds of a piece; None: as the library has it, or 4."""
    refine: Path | None = None
    """A text file with a query a line: the bank."""
    forget: bool = False
    """Take out the files of folders that are gone or have become empty."""


def index(asked: Asked) -> Report:
    """Bring a library up to date, or make it.

    Returns:
        What was done; in several processes, in the first one what all have done.

    Raises:
        UserError: a folder, the model or the library is not what it should be, or an object store does not answer.
    """
    # Read before anything is embedded, which may take hours.
    fewest = max(Refiner().num_neighbors, fewest_queries(SHARE))
    texts = [] if asked.refine is None else read_queries(asked.refine, fewest)
    rank, _ = rank_and_world()
    if is_address(asked.out) or rank > 0:
        with reaching(asked.out):
            return _index(asked, texts)
    folder = Path(asked.out).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{asked.out} is a file; pass --out with a folder, or one that is to be made")
    with writing(folder):
        return _index(asked, texts)


def _index(asked: Asked, texts: list[str]) -> Report:
    rank, world = rank_and_world()

    # What is wrong with folders, model or library is said before anything is made. The first process makes tables.
    tables, encoder, about = first_then_others(lambda: _opened(asked))
    cutting = Cutting(**about["cutting"])
    roots = [Path(root) for root in about["roots"]]

    # Every process looks at the same folders, and takes its own part of what is new.
    listing, changes = of_first(lambda: _look(tables, roots, asked.forget))
    done = agreed(lambda: embed(tables, encoder, cutting, own_part(changes.to_read, rank, world), quiet=rank > 0))

    for other in gather_objects(done)[1:] if world > 1 else []:
        done.add(other)
    if rank == 0:
        for shards in shards_among(asked.folders):
            take_over(tables, encoder, shards, done.report)
        _settle(tables, listing, changes, done)
        _bring_up_to_date(tables, encoder, about, asked, texts)
    agreed(lambda: None)
    return done.report


def _opened(asked: Asked) -> tuple[Tables, Encoder, dict[str, Any]]:
    """The library, made if it is new, the model, and what the library is."""
    there = Tables(asked.out, create=True)
    new = not there.has(ABOUT)
    if new and not asked.folders:
        raise UserError(
            f"{asked.out} holds no library yet; name the folders of videos: `emcl-train index FOLDER --out LIBRARY`"
        )
    if new and asked.model is None:
        raise UserError("a new library needs --model: the folder of a run, or a CLIP's folder or name on the hub")
    shards = shards_among(asked.folders)
    roots = [str(root) for root in absolute_roots(folder for folder in asked.folders if not is_shards(folder))]
    _require_apart(asked, roots)

    if new:
        encoder = load(str(asked.model))
        for one in shards:
            require_same_model(one, encoder)
        cutting = choose(asked.cut, asked.piece)
        about: dict[str, Any] = {
            "created": datetime.now(timezone.utc).isoformat(),
            "model": _model(asked, encoder),
            "cutting": cutting.as_json(),
            "width": encoder.width,
            "roots": roots,
        }
        data = encoder.config.data
        numbers = data.num_frames * encoder.width if encoder.has_head else 0
        # What says which library it is comes last; without it, tables are what a killed program has left.
        for name in (FILES, MOMENTS, REFINED, REFINER):
            there.drop(name)
        there.create(FILES, OF_FILES)
        there.create(MOMENTS, of_moments(encoder.width, numbers))
        there.write_about(about)
        return there, encoder, about

    about = there.about()
    encoder = load(asked.model or about["model"]["path"])
    _require_same(asked, about, encoder)
    for one in shards:
        require_same_model(one, encoder)
    known = about["roots"]
    there_already = {os.path.realpath(root) for root in known}
    new_roots = [root for root in roots if os.path.realpath(root) not in there_already]
    about |= {"roots": [*known, *new_roots], "model": _model(asked, encoder, about)}
    there.write_about(about)
    return there, encoder, about


def shards_among(folders: Sequence[Path]) -> list[Shards]:
    """Those of some folders that are folders of shards."""
    return [Shards.open(folder) for folder in folders if is_shards(folder)]


def _model(asked: Asked, encoder: Encoder, about: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the library remembers of its model."""
    path = asked.model if asked.model is not None else (about or {})["model"]["path"]
    place = Path(path).expanduser()
    return {
        "path": str(place.absolute()) if place.exists() else path,
        "label": encoder.label,
        "fingerprint": encoder.fingerprint,
        "frames": encoder.about()["frames"],
        "smoke_test": encoder.is_smoke_test,
    }


def _require_same(asked: Asked, about: dict[str, Any], encoder: Encoder) -> None:
    """Refuse a model, or a way of cutting, that is not the library's."""
    made_by = about["model"]
    if encoder.fingerprint != made_by["fingerprint"]:
        raise UserError(
            f"{asked.out} was made by {made_by['label']} with the fingerprint {made_by['fingerprint']}, and "
            f"{asked.model or made_by['path']} is {encoder.label} with {encoder.fingerprint}, whose rows cannot be "
            f"compared with it; pass --model with the one that made it, or another --out"
        )
    cutting = Cutting(**about["cutting"])
    if (asked.cut != "auto" and asked.cut != cutting.way) or (
        asked.piece is not None and (cutting.way, asked.piece) != ("pieces", cutting.seconds)
    ):
        raise UserError(
            f"{asked.out} is cut into {cutting.said()}; leave --cut and --piece out, or choose another --out"
        )
    if cutting.way == "shots":
        now = choose("shots")
        if now.detector != cutting.detector:
            raise UserError(
                f"{asked.out} is cut by {cutting.detector}, and {now.detector} is installed, whose cuts may be others; "
                f"install that version again, or index into another --out"
            )


def _require_apart(asked: Asked, roots: Sequence[str]) -> None:
    """Refuse to look for videos inside the library."""
    if is_address(asked.out):
        return
    out = Path(asked.out).expanduser().resolve()
    for root in roots:
        if Path(root).resolve() == out:
            raise UserError(f"{asked.out} is the library, and the folder of videos too; choose another --out")


# ---- what has changed ------------------------------------------------------------------------------------------------


def _look(tables: Tables, roots: list[Path], forget: bool) -> tuple[Listing, Changes]:
    """List the folders, and compare them with what is known; nothing is read yet."""
    listing = list_videos(roots)
    return listing, compare(listing, tables.files(), roots, forget=forget)


def own_part(files: Sequence[Seen], rank: int, world: int) -> list[Seen]:
    """The files that one of several processes embeds: about as many bytes for each, and copies in one process."""
    sizes: dict[int, list[Seen]] = {}
    for seen in files:
        sizes.setdefault(seen.size, []).append(seen)

    # The largest first, each to the process that has the least; files of one size may be copies.
    loads = [0] * world
    own = []
    for size in sorted(sizes, reverse=True):
        process = loads.index(min(loads))
        loads[process] += max(1, size) * len(sizes[size])
        if process == rank:
            own.extend(sizes[size])
    return sorted(own, key=lambda seen: seen.path)


# ---- the end ---------------------------------------------------------------------------------------------------------


def _settle(tables: Tables, listing: Listing, changes: Changes, done: Done) -> None:
    """Enter copies and what was moved, and take out what is gone; the first process does it, when all have embedded."""
    report = done.report
    there = tables.contents()
    entered = []
    for row in done.copies:
        if row.content in there:
            entered.append(replace(row, seconds=there[row.content][1]))
        elif row.content in done.damaged:
            entered.append(replace(row, status=DAMAGED, reason=done.damaged[row.content]))
            report.damaged[row.path] = done.damaged[row.content]
        else:
            report.trouble[row.path] = "a file of the same content could not be read to its end"
    tables.put_files(entered)
    tables.remove_files(changes.missing)
    _forget_moved(tables, changes)

    # Contents that no file has any more.
    used = {row.content for row in tables.files()}
    tables.remove_contents([content for content in there if content not in used])

    moved = {row.content for row in entered if row.status == INDEXED}
    report.moved = sum(row.status == INDEXED for row in entered)
    report.removed = sum(row.content not in moved for row in changes.missing)
    report.unchanged += len(changes.unchanged)
    report.outside = listing.outside
    report.trouble |= listing.unseen
    report.kept = changes.kept


def _forget_moved(tables: Tables, changes: Changes) -> None:
    """Of folders that are not there, take out files that lie elsewhere now: a folder that was renamed is no lost disk.

    Their moments stay, so that nothing is embedded again when a disk with a copy comes back.
    """
    if not changes.kept_rows:
        return
    lost = {row.path for row in changes.kept_rows}
    elsewhere = {row.content for row in tables.files() if row.path not in lost}
    moved = [row for row in changes.kept_rows if row.content in elsewhere]
    tables.remove_files(moved)
    for row in moved:
        changes.kept[row.root] -= 1
        if not changes.kept[row.root]:
            del changes.kept[row.root]


def _bring_up_to_date(tables: Tables, encoder: Encoder, about: dict[str, Any], asked: Asked, texts: list[str]) -> None:
    """Keep the indexes right, refine the rows anew where they or the queries have changed, and find the cut-offs."""
    tables.tidy()
    if not tables.open(MOMENTS).count_rows():
        return
    if vector_index.create_index(tables.open(MOMENTS)) != "none":
        tables.index_ids()

    texts = texts or refining.known_queries(tables)
    rows = refining.hash_of_rows(tables)
    if texts and not refining.is_current(tables, texts, rows):
        refining.refine(tables, encoder, texts, rows)
    of = refining.hash_of(texts, rows)
    if about.get("cutoffs", {}).get("of") != of:
        from emcl_train.search.calibrating import cutoffs_of

        tables.write_about({**about, "cutoffs": {**cutoffs_of(asked.out, encoder, texts), "of": of}})
