"""The plan of a folder of shards: which clips are in which, decided once, by whichever process comes first."""

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emcl_train.corpora.sources import Corpus, Item, read_corpus
from emcl_train.data.annotation_files import count
from emcl_train.encoder import Encoder
from emcl_train.errors import UserError
from emcl_train.flags import again
from emcl_train.runs.files import discard_folder, partial_of, whole, write_json_atomic
from emcl_train.runs.lock import BusyError, making
from emcl_train.search.reaching import is_address
from emcl_train.tools.arrays import MANIFEST, PLAN, is_shards, pyarrow_modules
from emcl_train.tools.shards import VERSION, Shards

A_MOMENT = 0.2
"""Seconds between looks at a plan that another process makes."""


@dataclass(frozen=True)
class Asked:
    """What a user wants embedded."""

    corpus: str
    out: Path
    model: str
    """A run or a CLIP."""
    clips: int = 1000
    """Of a shard."""
    piece: float | None = None
    """Seconds of a row; None: a clip is a row."""
    frames: bool = False
    """Whether the features of frames are wanted too."""
    workers: int | None = None
    """Threads of each process that decode beside the towers; None: as the model's configuration says."""

    def place(self) -> str:
        """The corpus as the manifest names it."""
        return self.corpus.rstrip("/") if is_address(self.corpus) else str(Path(self.corpus).expanduser().absolute())


def prepared(asked: Asked, encoder: Encoder) -> tuple[Shards, list[str]]:
    """The folder with its plan: as it is there, or made now.

    Returns:
        The folder, and what a reader should know of the corpus.

    Raises:
        UserError: the corpus is none, or the folder is of another model, corpus or plan, or none of shards.
    """
    out = asked.out
    if not is_shards(out) and (out.is_file() or (out.is_dir() and any(_foreign(out)))):
        raise UserError(f"{out} exists already and holds no shards; choose another --out, or remove it")
    made = not out.is_dir()
    out.mkdir(parents=True, exist_ok=True)
    try:
        return _planned(asked, encoder)
    finally:
        if made:
            with suppress(OSError):  # it is not empty
                out.rmdir()


def _planned(asked: Asked, encoder: Encoder) -> tuple[Shards, list[str]]:
    out = asked.out
    scratch = partial_of(out / MANIFEST)
    while True:
        try:
            with making(out / MANIFEST):
                scratch.mkdir()
                try:
                    corpus = read_corpus(asked.corpus, encoder.config.data, scratch)
                finally:
                    discard_folder(scratch)
                if not is_shards(out):
                    _write(asked, encoder, corpus)
                shards = Shards.open(out)
                _require_same(shards, asked, encoder)
                return shards, [*corpus.notes, *_changed(shards, corpus)]
        except BusyError:  # another process is at it
            if is_shards(out):
                shards = Shards.open(out)
                _require_same(shards, asked, encoder)
                return shards, []
            time.sleep(A_MOMENT)


def _foreign(out: Path) -> list[Path]:
    """What lies in a folder that is to have shards and was not put there on the way to them."""
    return [path for path in out.iterdir() if not path.name.startswith(".") and path.name != PLAN]


def _write(asked: Asked, encoder: Encoder, corpus: Corpus) -> None:
    """The plan, and the manifest after it."""
    pq, pa = pyarrow_modules()
    schema = pa.schema([("id", pa.string()), ("path", pa.string()), ("start", pa.float64()), ("end", pa.float64())])
    shards = 0
    with whole(asked.out / PLAN) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as file:
        for items in corpus.shards(asked.clips):
            file.write_table(pa.Table.from_pylist([vars(item) for item in items], schema), row_group_size=len(items))
            shards += 1
    about = encoder.about()
    write_json_atomic(
        asked.out / MANIFEST,
        {
            "version": VERSION,
            "model": {
                "path": _place_of(asked.model),
                "label": about["model"],
                "fingerprint": about["fingerprint"],
                "width": about["width"],
                "smoke_test": encoder.is_smoke_test,
            },
            "frames": about["frames"],
            "corpus": {"place": asked.place(), "kind": corpus.kind, "items": len(corpus.items)},
            "plan": {"shards": shards, "clips": asked.clips, "file": PLAN},
            "piece": asked.piece,
            "frame_features": asked.frames,
        },
    )


def _place_of(model: str) -> str:
    path = Path(model).expanduser()
    return str(path.absolute()) if path.exists() else model


def _require_same(shards: Shards, asked: Asked, encoder: Encoder) -> None:
    """Refuse another model, corpus or plan than the folder has."""
    manifest, out = shards.manifest, asked.out
    if encoder.fingerprint != shards.fingerprint:
        made_by = manifest["model"]
        raise UserError(
            f"{out} was made by {made_by['label']} with the fingerprint {shards.fingerprint}, and {asked.model} is "
            f"{encoder.label} with {encoder.fingerprint}, whose rows cannot be compared with it; pass --model with the "
            f"one that made it, or another --out"
        )
    same: dict[str, tuple[Any, Any]] = {
        "the corpus": (manifest["corpus"]["place"], asked.place()),
        "--clips-a-shard": (manifest["plan"]["clips"], asked.clips),
        "--piece": (manifest["piece"], asked.piece),
        "--frames": (manifest["frame_features"], asked.frames),
    }
    for name, (there, now) in same.items():
        if there != now:
            raise UserError(f"{out} was begun with {name} {there}, and now it is {now}; pass {there}, or another --out")


def _changed(shards: Shards, corpus: Corpus) -> list[str]:
    """What the corpus has now beside the plan, which is kept."""
    planned = {item for number in range(shards.count) for item in planned_items(shards, number)}
    now = set(corpus.items)
    notes = []
    if new := len(now - planned):
        notes.append(
            f"{count(new, 'clip')} of the corpus came after the plan of {shards.folder} was made, and will be in no "
            f"shard of it; embed the corpus into another folder"
        )
    if gone := len(planned - now):
        notes.append(f"{count(gone, 'clip')} of the plan of {shards.folder} left the corpus since")
    return notes


def planned_items(shards: Shards, number: int) -> list[Item]:
    """The clips of a shard.

    Raises:
        UserError: the plan is damaged.
    """
    pq, _ = pyarrow_modules()
    path = shards.folder / PLAN
    try:
        rows = pq.ParquetFile(path).read_row_group(number).to_pylist()
        return [Item(**row) for row in rows]
    except (OSError, ValueError, TypeError, IndexError) as error:
        raise UserError(f"{path} is damaged: {error}; embed the corpus into another folder, and {again()}") from error
