"""One's own videos in a table, a caption a row: `train.csv`, `test.csv` and, if there is one, `val.csv`.

    video,caption,start,end
    films/a.mp4,"a dog runs, and a cat",3.0,12.5

`start` and `end` (seconds from the first frame) may be left out. One file alone, of any name, does too: its column
`split` says train, val or test; without that column all its clips are test clips. Several captions of a clip stand in
rows of their own. Paths are found as those of the layout jsonl.
"""

import re
from pathlib import Path

from emcl_train.config import DataConfig
from emcl_train.data.annotation_files import few, quoted, read_table
from emcl_train.data.names import can_be_a_file
from emcl_train.data.own_videos import Part, Row, seconds, splits_of
from emcl_train.data.split_rules import SplitFiles, check_root
from emcl_train.errors import UserError
from emcl_train.flags import flag
from emcl_train.reading.shown import shortened

NAMES_PATHS = True
"""Paths in the rows begin at the root unless `data.videos` is given."""
COLUMNS = ("video", "caption")
OPTIONAL = ("start", "end", "split")
SPLITS = ("train", "val", "test")
NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?|\.[0-9]+")


def read(config: DataConfig) -> SplitFiles:
    """The rows of each split in order. Rows about the same span of the same video are one clip."""
    check_root(config, "train.csv and test.csv, or one file with a column split")
    notes: list[str] = []
    files = {split: config.root / f"{split}.csv" for split in SPLITS}
    if files["train"].is_file() and files["test"].is_file():
        parts = {split: _part(path, split, notes) for split, path in files.items() if path.is_file()}
    else:
        parts = _of_one_file(_only_file(config.root), notes)

    return splits_of(
        config,
        parts["train"],
        parts.get("val"),
        parts["test"],
        notes=notes,
        hold_out_from='write a val.csv, or "val" into the column split',
    )


def read_rows(path: Path, notes: list[str]) -> list[Row]:
    """The rows of one file, of whatever split; `notes` gets the columns that are not read."""
    return [row for row, _ in _rows(path, notes)]


def _only_file(root: Path) -> Path:
    """The one table in a folder."""
    tables = sorted(path.name for path in root.iterdir() if path.suffix.lower() == ".csv" and path.name[0] != ".")
    if len(tables) == 1:
        return root / tables[0]
    found = f"it has {few(tables)}" if tables else "it has no .csv file"
    raise UserError(
        f"{root} has not both train.csv and test.csv, nor one single table: {found}; write train.csv and test.csv, or "
        f"one file with the columns video,caption,split, or pass {flag('data.root')} with the folder that has them"
    )


def _part(path: Path, split: str, notes: list[str]) -> Part:
    """The rows of a file that is a split's by its name."""
    found = _rows(path, notes)
    for row, said in found:
        if said not in (None, split):
            raise UserError(
                f"{row.place}: split is {shortened(said)}, in a file of the split {split}; move the row, or keep all "
                f"rows in one file"
            )
    return Part(path, [row for row, _ in found])


def _of_one_file(path: Path, notes: list[str]) -> dict[str, Part]:
    """The splits of a file that has them all."""
    found = _rows(path, notes)
    if all(split is None for _, split in found):
        notes.append(f"{path.name} has no column split: all of its clips are test clips.")
        return {"train": Part(path, []), "test": Part(path, [row for row, _ in found])}

    parts = {split: Part(path, [row for row, said in found if said == split]) for split in SPLITS}
    if not parts["test"].rows:
        raise UserError(f"{path} has no row whose split is test; write test for the clips to report on")
    return {split: part for split, part in parts.items() if part.rows or split != "val"}


def _rows(path: Path, notes: list[str]) -> list[tuple[Row, str | None]]:
    """The rows of a table, each with the split that it names."""
    table = read_table(path, COLUMNS, OPTIONAL)
    if table.others:
        notes.append(f"Columns of {path.name} that are not read: {quoted(table.others)}.")
    rows = []
    for number, cells in table.rows:
        place = f"{path}, line {number}"
        video = cells["video"]
        if not can_be_a_file(video):
            raise UserError(f"{place}: {video!r} is no name that a file can have; correct it")
        start, end = (_seconds(place, name, cells.get(name, "")) for name in ("start", "end"))
        rows.append((Row(place, video, [cells["caption"]], start, end), _split(place, cells)))
    return rows


def _seconds(place: str, name: str, cell: str) -> float | None:
    if cell and not NUMBER.fullmatch(cell):
        raise UserError(
            f'{place}: "{name}" is {shortened(cell)}, expected seconds of 0 or more, such as 62.5; correct it, or '
            f"leave it empty"
        )
    return seconds(place, name, float(cell) if cell else None)


def _split(place: str, cells: dict[str, str]) -> str | None:
    if "split" not in cells:
        return None
    if cells["split"] not in SPLITS:
        raise UserError(f"{place}: split is {shortened(cells['split'])}, expected train, val or test; correct it")
    return cells["split"]
