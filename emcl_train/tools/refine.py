"""`emcl-train refine`: fit a map to two files of embeddings, write them refined, and measure where pairs are known."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import normalize

from emcl_kernels import EMRefiner
from emcl_train.config import RefineConfig
from emcl_train.errors import UserError, of_input
from emcl_train.evaluation.bootstrap import Interval, paired_bootstrap
from emcl_train.evaluation.metrics import ranks, retrieval_metrics, video_to_text_ranks_by_similarity
from emcl_train.reading.arrays import open_npy
from emcl_train.runs.checksums import note_all
from emcl_train.runs.files import current, remove, whole, write_json_atomic
from emcl_train.runs.lock import writing
from emcl_train.runs.together import together
from emcl_train.terminal import console_of
from emcl_train.tools.arrays import Embeddings, as_float_tensor, read_embeddings, read_written

MAP = "map.safetensors"
RESULTS = "results.json"
WRITTEN = "files"
"""Where a map names the files beside it that refine wrote."""
ANY = ""
"""The fingerprint of a file that was not whole yet, in maps of earlier versions."""
PIECE = 1 << 20
LARGEST_SIMILARITY = 1 << 28  # scores of the table: 1 GiB in float32
COLUMNS = ("R@1", "R@5", "R@10", "MdR", "MnR")
RECALLS = (1, 5, 10)
DIRECTIONS = {"T→V": "text_to_video", "V→T": "video_to_text"}


def refine_files(
    text: str,
    video: str,
    out: Path,
    settings: RefineConfig,
    *,
    paired: bool = False,
    pairs: Path | None = None,
    console: Console | None = None,
) -> Path:
    """Refine two files of embeddings.

    Args:
        text: FILE or FILE:NAME, see `emcl_train.tools.arrays`.
        video: the same, of the other side.
        out: folder for the refined files, which keep their formats, and for the map, which names them. It replaces
            there only what an earlier call wrote, as it was written.
        paired: row i of the texts belongs to row i of the videos. Only the table uses it.
        pairs: file with the video's row for each text: `.npy`, or text with one number a line.
        settings: of the map.
        console: where to print.

    Returns:
        The folder.

    Raises:
        UserError: a file, its arrays or the pairs are not what they should be, or a file is in the way.
    """
    with writing(out):
        return _refine_files(text, video, out, settings, paired, pairs, console_of(console))


def _refine_files(
    text: str, video: str, out: Path, settings: RefineConfig, paired: bool, pairs: Path | None, console: Console
) -> Path:
    sides = {"text": read_embeddings(text), "video": read_embeddings(video)}
    caption_clip = _pairs(sides, paired, pairs)
    _require_free(out, sides, pairs)

    # Text, video, map and table are of one fit: all change, or none.
    with together(out):
        with _of_these_rows():
            refiner = EMRefiner(**asdict(settings)).fit(sides["text"].rows, sides["video"].rows)
        files = {
            "text": sides["text"].write(out, "text", _of_rows(refiner.transform_text)),
            "video": sides["video"].write(out, "video", _of_rows(refiner.transform_video)),
        }

        # What refining did, as the files say that were written.
        results = None
        if caption_clip is None:
            remove(out / RESULTS)
        else:
            refined = {side: _read_back(file, sides[side].name) for side, file in files.items()}
            before, after = (_query_ranks(of, caption_clip) for of in (sides, refined))
            results = _results(before, after, refiner, sides)
            write_json_atomic(out / RESULTS, results)

        # The map names the files beside it, those of other formats that an earlier call wrote too.
        earlier = {name: of for name, of in (_written(out / MAP) or {}).items() if (out / name).exists()}
        written = [*(file.name for file in files.values()), *([RESULTS] if results is not None else [])]
        earlier.pop(RESULTS, None)
        _save_map(refiner, out / MAP, earlier | {name: fingerprint(current(out / name)) for name in written})
        note_all(out, [file.name for file in (*files.values(), out / MAP)], others=True)

    for side, file in files.items():
        console.print(f"{side}: {file}, {' × '.join(map(str, sides[side].rows.shape))}")
    console.print(f"map: {out / MAP}")
    if results is None:
        console.print("no table: name the pairs with --paired or --pairs FILE to see what refining does to retrieval")
        return out

    console.print(_table(results))
    for name, key in DIRECTIONS.items():
        gains = [f"R@{k} {Interval(**results['difference'][key][f'R@{k}'])}" for k in RECALLS]
        console.print(
            f"{name} difference in points, 95 % of a paired bootstrap over queries: {', '.join(gains)}", soft_wrap=True
        )
    return out


@contextmanager
def _of_these_rows() -> Iterator[None]:
    """Take what the refiner does not take for an error of the user's."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error


def _of_rows(transform: Callable[..., Any]) -> Callable[..., Any]:
    """A transform of the refiner whose errors are the user's."""

    def transformed(*args: Any, **kwargs: Any) -> Any:
        with _of_these_rows():
            return transform(*args, **kwargs)

    return transformed


def _read_back(file: Path, name: str | None) -> Embeddings:
    """What was written and has not its name yet. Other columns stay in a table, so that one is named."""
    return read_written(file, current(file), name)


def _require_free(out: Path, sides: dict[str, Embeddings], pairs: Path | None) -> None:
    """Raise a UserError if refining would write over an input, or over what no earlier call wrote so."""
    targets = [*(of.target(out, side) for side, of in sides.items()), out / MAP, out / RESULTS]
    inputs = {of.path.resolve(): f"the {side} embeddings" for side, of in sides.items()}
    if pairs is not None:
        inputs[pairs.resolve()] = "the pairs"

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


def _save_map(refiner: EMRefiner, path: Path, files: dict[str, str]) -> None:
    """The map, with the files beside it that are refine's, by name, and their fingerprints."""
    with whole(path) as partial:
        refiner.save(partial, notes={WRITTEN: json.dumps(files)})


def _written(path: Path) -> dict[str, str] | None:
    """The files that a map names as refine's; None where it is none, or was saved by other means."""
    try:
        EMRefiner.load(path)
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


def _pairs(sides: dict[str, Embeddings], paired: bool, pairs: Path | None) -> Tensor | None:
    """The video's row for each text, or None where pairs are not known."""
    texts, videos = (len(sides[side].rows) for side in ("text", "video"))
    if paired and pairs is not None:
        raise UserError("--paired and --pairs were both given; --paired means that row i belongs to row i")
    if not paired and pairs is None:
        return None

    if texts * videos > LARGEST_SIMILARITY:
        raise UserError(
            f"a table of {texts} texts against {videos} videos needs {texts * videos} scores; refine without --paired "
            "or --pairs, and measure a part of the files"
        )
    if pairs is None:
        if texts != videos:
            raise UserError(
                f"--paired needs as many texts as videos, got {texts} and {videos}; name each text's video with --pairs"
            )
        return torch.arange(texts)

    if not pairs.is_file():
        raise UserError(f"there is no file {pairs}; --pairs takes a .npy, or text with one number a line")
    try:
        found = np.array(open_npy(pairs)) if pairs.suffix == ".npy" else np.loadtxt(pairs, dtype=np.int64, ndmin=1)
    except (ValueError, OSError, EOFError, OverflowError) as error:
        raise UserError(f"{pairs} holds no list of row numbers ({error}); write one number a line, from 0") from error
    if found.ndim != 1 or found.dtype.kind not in "iu" or len(found) != texts:
        raise UserError(
            f"{pairs} has {found.dtype} numbers of shape {list(found.shape)}; expected {texts} whole numbers, for each "
            "text the row of its video"
        )
    if found.min() < 0 or found.max() >= videos:
        raise UserError(f"{pairs} names rows {found.min()} to {found.max()}; expected rows of {videos} videos, from 0")
    return torch.from_numpy(found.astype(np.int64))


def _query_ranks(sides: dict[str, Embeddings], caption_clip: Tensor) -> dict[str, Tensor]:
    """Texts rank all videos; a video without a text has nothing to find, so only the others are queries."""
    text, video = (normalize(as_float_tensor(sides[side].rows), dim=-1) for side in ("text", "video"))
    dtype = torch.promote_types(text.dtype, video.dtype)
    similarity = text.to(dtype) @ video.to(dtype).T
    with_text, place = caption_clip.unique(return_inverse=True)
    with of_input(" and ".join(str(of.path) for of in sides.values())):
        return {
            "text_to_video": ranks(similarity, caption_clip),
            "video_to_text": video_to_text_ranks_by_similarity(similarity[:, with_text], place),
        }


def _results(
    before: dict[str, Tensor], after: dict[str, Tensor], refiner: EMRefiner, sides: dict[str, Embeddings]
) -> dict[str, Any]:
    """What goes into results.json."""
    difference: dict[str, dict[str, Any]] = {}
    for direction in DIRECTIONS.values():
        difference[direction] = {}
        for k in RECALLS:
            # Of each query: 100 points if its right item is among the first k.
            points = [100.0 * (of[direction] <= k).double().numpy() for of in (before, after)]
            difference[direction][f"R@{k}"] = asdict(paired_bootstrap(*points))

    return {
        "refiner": repr(refiner),
        "texts": len(sides["text"].rows),
        "videos": len(sides["video"].rows),
        "videos_with_text": len(before["video_to_text"]),
        "before": {direction: retrieval_metrics(found) for direction, found in before.items()},
        "after": {direction: retrieval_metrics(found) for direction, found in after.items()},
        "difference": difference,
    }


def _table(results: dict[str, Any]) -> Table:
    title = f"{results['texts']} texts, {results['videos']} videos"
    if results["videos_with_text"] < results["videos"]:
        title += f"; V→T of the {results['videos_with_text']} with a text"
    table = Table(
        title=title,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        padding=(0, 0),
        pad_edge=False,
    )
    table.add_column("", min_width=6, no_wrap=True)
    for name in DIRECTIONS:
        for column in COLUMNS:
            table.add_column(f"{name}\n{column}", justify="right", no_wrap=True, min_width=6)
    for label in ("before", "after"):
        cells = [f"{results[label][key][column]:.1f}" for key in DIRECTIONS.values() for column in COLUMNS]
        table.add_row(label, *cells, style="bold" if label == "after" else None)
    return table
