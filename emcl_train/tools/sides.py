"""The two sides that refine takes: of two files, or of one folder that has both, with the pairs where it knows them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from emcl_train.errors import UserError
from emcl_train.kinds import SYSTEMS
from emcl_train.reading.arrays import open_npy
from emcl_train.reading.plain_files import require_regular
from emcl_train.recipes import SMOKE_TEST, is_smoke_test
from emcl_train.runs.checksums import has_checksum, read_unchanged
from emcl_train.runs.contents import CONFIG, EMBEDDINGS, FEATURES
from emcl_train.runs.files import json_if_whole
from emcl_train.runs.folder import load_run
from emcl_train.tools.arrays import Embeddings, read_embeddings

TEXT, VIDEO, PAIRS = "text.npy", "video.npy", "pairs.npy"
"""What `embed` writes of lists of texts and of folders of videos."""
RECORD = "embedding.json"
"""Beside them, what made them."""
PIECE = 1 << 12
"""Clips whose frames are pooled at a time."""


@dataclass(frozen=True)
class Sides:
    """Rows of both sides."""

    text: Embeddings
    video: Embeddings
    caption_clip: Tensor | None = None
    """The video's row for each text; None if the source does not say."""
    notes: tuple[str, ...] = ()
    """What a reader of the table should know."""

    @property
    def by_name(self) -> dict[str, Embeddings]:
        return {"text": self.text, "video": self.video}


def read_sides(text: str, video: str | None) -> Sides:
    """Open the embeddings that the arguments of refine name.

    Args:
        text: FILE or FILE:NAME; without `video`, the folder of a run or of what `embed` wrote.
        video: FILE or FILE:NAME.

    Raises:
        UserError: there is no such file or folder, or it does not hold both sides.
    """
    if video is not None:
        return Sides(read_embeddings(text), read_embeddings(video))

    folder = Path(text)
    if folder.is_file():
        raise UserError(f"refine was given {text} alone; name the file of the videos, too, or a folder that has both")
    if (folder / CONFIG).is_file():
        return _of_run(folder)
    if (folder / FEATURES).is_file():
        return _of_features(folder)
    if (folder / TEXT).is_file() and (folder / VIDEO).is_file():
        pairs = folder / PAIRS
        sides = read_embeddings(str(folder / TEXT)), read_embeddings(str(folder / VIDEO))
        known = read_pairs(pairs, len(sides[0].rows), len(sides[1].rows)) if pairs.is_file() else None
        record = json_if_whole(folder / RECORD)
        random = isinstance(record, dict) and record.get("smoke_test") is True
        notes = (SMOKE_TEST,) if random else ()
        return Sides(*sides, known, notes)
    raise UserError(
        f"{folder} is no folder of a run or of features, and has not both {TEXT} and {VIDEO}; pass two files of "
        f"embeddings, a run such as runs/shapes, or what `emcl-train embed` wrote of videos and of texts"
    )


def read_pairs(path: Path, texts: int, videos: int) -> Tensor:
    """The numbers in a `.npy` that embed wrote beside so many texts and videos."""
    try:
        require_regular(path)
        found = read_unchanged(path, "embed again", open_npy) if has_checksum(path) else open_npy(path)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path} cannot be read: {error}; embed again") from error
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise UserError(f"{path} holds no list of row numbers; embed again")
    if len(found) != texts or (texts and not 0 <= found.min() <= found.max() < videos):
        raise UserError(
            f"{path} does not belong to the rows beside it: expected for each of {texts} texts the row of one of "
            f"{videos} videos; embed again"
        )
    return torch.from_numpy(found.astype(np.int64))


def pooled(frames: Tensor, frame_mask: Tensor) -> Tensor:
    """One row of length one for each clip: the mean of its unit frames, as CLIP4Clip has it.

    Args:
        frames: [G, F, D].
        frame_mask: [G, F].
    """
    unit = normalize(frames.masked_fill(~frame_mask.unsqueeze(-1), 0.0), dim=-1)
    mean = unit.sum(1) / frame_mask.sum(1, keepdim=True).clamp_min(1)
    return normalize(mean, dim=-1)


def _of_run(folder: Path) -> Sides:
    """The split that a run, or an evaluation, was evaluated on last."""
    run = load_run(folder)
    if run.config.answers_questions:
        raise UserError(f"{folder} answers questions, and keeps no embeddings; pass the folder of a run of retrieval")
    if run.config.model.system != "clip":
        label = SYSTEMS[run.config.model.system].label
        raise UserError(
            f"{folder} is a run of {label}, which has no row for each text and video that a map could refine; pass the "
            f"folder of a run on CLIP's towers, or two files of embeddings"
        )
    tensors = run.tensors
    if lacking := [name for name in ("text", "frames", "frame_mask", "caption_clip") if name not in tensors]:
        raise UserError(
            f"{folder / EMBEDDINGS} has no {', '.join(lacking)}; `emcl-train eval {folder}` writes it again"
        )
    video = pooled(tensors["frames"].float(), tensors["frame_mask"].bool())
    path = folder / EMBEDDINGS
    return Sides(
        Embeddings(tensors["text"].float().numpy(), path, None, TEXT),
        Embeddings(video.numpy(), path, None, VIDEO),
        tensors["caption_clip"].long(),
        (SMOKE_TEST,) if is_smoke_test(run.config) else (),
    )


def _of_features(folder: Path) -> Sides:
    """The test split of features that a run could train on."""
    from emcl_train.data.features import open_split, read_features  # which reads videos elsewhere

    record = read_features(folder)
    split = open_split(folder, "test", tokens=False)
    frames = split.arrays["frames"]
    mask = split.arrays["frame_mask"]
    if not len(frames) or not split.captions:
        raise UserError(f"the test split of {folder} is empty; embed a data set that has one")
    pieces = [
        pooled(*(torch.from_numpy(np.array(array[start : start + PIECE])) for array in (frames, mask)))
        for start in range(0, len(frames), PIECE)
    ]
    return Sides(
        Embeddings(np.array(split.arrays["text"][:, 0]), folder / "test_text.npy", None),
        Embeddings(torch.cat(pieces).numpy(), folder / "test_frames.npy", None),
        torch.tensor(split.caption_clip),
        (SMOKE_TEST,) if record.get("smoke_test") is True else (),
    )
