"""The best and the worst retrievals of a run, with frames of the right clip and of the one at its place."""

import base64
import io
import os
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from matplotlib.image import imsave
from torch import Tensor

from emcl_train.config import DataConfig
from emcl_train.data.annotations import Clip, read_annotations
from emcl_train.data.passing import PassingError
from emcl_train.data.video import FrameRequest, VideoError, decode_frames
from emcl_train.errors import UserError
from emcl_train.report import films
from emcl_train.report.films import Media, make_media
from emcl_train.report.ranks import text_ranks
from emcl_train.runs.folder import Run

SHOWN = 4
"""Retrievals of each kind."""
FRAMES = 6
FRAME_SIZE = 96
GAP = 3
"""Pixels between two frames."""


NO_ROOM = f"a page has no room for more than {films.MOST_FILMS} films, {films.MOST_PICTURES} pictures and 11 MB of both"


@dataclass(frozen=True)
class Retrieval:
    """One caption, its right clip, and the clip that competes with it."""

    caption: str
    rank: float
    right: int
    right_similarity: float
    other: int
    """The clip at rank 1, or where that is the right one, the runner-up."""
    other_similarity: float


@dataclass(frozen=True)
class Strip:
    """Frames of a clip side by side as a JPEG, base64; or why there are none."""

    jpeg: str | None
    reason: str = ""


def best_and_worst(run: Run) -> tuple[list[Retrieval], list[Retrieval]]:
    """Captions at rank 1 with the largest lead, and captions with the largest rank; each clip once."""
    similarity, target = run.similarity, run.tensors["caption_clip"]
    if similarity.shape[1] < 2:
        return [], []  # with one clip nothing competes
    own = similarity.gather(1, target[:, None])[:, 0]
    others, competitor = similarity.scatter(1, target[:, None], float("-inf")).max(dim=1)
    rank = text_ranks(run)
    lead = own - others

    def pick(order: Tensor, keep: Tensor) -> list[Retrieval]:
        """The first captions in this order, of those to keep, each of another clip."""
        chosen: dict[int, Retrieval] = {}
        for i in order[keep[order]].tolist():
            right = int(target[i])
            if right not in chosen:
                chosen[right] = Retrieval(
                    caption=run.captions[i],
                    rank=rank[i].item(),
                    right=right,
                    right_similarity=own[i].item(),
                    other=int(competitor[i]),
                    other_similarity=others[i].item(),
                )
            if len(chosen) == SHOWN:
                break
        return list(chosen.values())

    by_lead = lead.argsort(descending=True, stable=True)
    # Among equal ranks the smaller lead is the worse retrieval.
    by_rank = by_lead.flip(0)[rank[by_lead.flip(0)].argsort(descending=True, stable=True)]
    return pick(by_lead, rank == 1), pick(by_rank, rank > 1)


def strips(run: Run, clips: set[int]) -> tuple[dict[int, Strip], str]:
    """Frames of clips, from the data set of the run's configuration, and why there are none at all, if so."""
    if run.config.model.system != "clip":
        return {}, "the run compares features of experts, and knows no videos"
    try:
        found = _clips(run.config.data, run.results["split"])
    except (UserError, OSError) as error:
        return {}, f"the data set of the run cannot be read here: {error}"
    return {clip: _strip(found.get(run.video_ids[clip]), run.video_ids[clip]) for clip in sorted(clips)}, ""


def media_of(run: Run, clips: list[int], budget: int) -> tuple[Media, str]:
    """Pictures and films of clips, from the data set of the run's configuration, and a sentence on what there is.

    Args:
        run: the run, whose data set can be read here.
        clips: by number, those that matter most first.
        budget: letters of them at most.
    """
    found = _clips(run.config.data, run.results["split"])
    present = [(clip, found[run.video_ids[clip]]) for clip in clips if run.video_ids[clip] in found]
    media = make_media(present, run.config.data, budget, run.config.data.workers or os.cpu_count() or 1)

    left_out = []
    absent = len(clips) - len(present)
    broken = len(media.reasons)
    if absent:
        left_out.append(f"{absent} are no longer in the data set")
    if broken:
        left_out.append(f"{broken} cannot be decoded")
    if without := len(present) - broken - len(media.pictures):
        left_out.append(f"{without} have no picture, since {NO_ROOM}")
    if silent := len(media.pictures) - len(media.films):
        left_out.append(f"{silent} cannot be played, since {NO_ROOM}: those of the largest ranks come first")
    sentence = (
        f"Of {len(clips)} clips {len(media.pictures)} have a picture, and {len(media.films)} play: {films.SECONDS:g} s "
        "from their middle, without sound."
    )
    return media, sentence + (f" Of the others, {'; '.join(left_out)}." if left_out else "")


def _clips(config: DataConfig, split: str) -> dict[str, Clip]:
    if not config.root.is_dir():
        raise UserError(f"there is no folder {config.root}")

    # Not `load_annotations`, which renders the bundled set: a report writes nothing where a run's configuration says.
    annotations = read_annotations(config)
    for part in (annotations.test, annotations.val):
        if part.name == split:
            return {clip.video_id: clip for clip in part.clips}
    raise UserError(f"it has no {split} split")


def _strip(clip: Clip | None, video_id: str) -> Strip:
    if clip is None:
        return Strip(None, f"the data set has no clip {video_id} any more")
    try:
        frames, mask = decode_frames(FrameRequest(clip.path, FRAMES, FRAME_SIZE, start=clip.start, end=clip.end))
    except (VideoError, PassingError) as error:
        return Strip(None, str(error))
    return Strip(_jpeg(frames[mask]))


def _jpeg(frames: UInt8[Tensor, "F 3 S S"]) -> str:
    gap = torch.full((3, frames.shape[2], GAP), 255, dtype=torch.uint8)
    columns = [part for frame in frames for part in (frame, gap)][:-1]
    data = io.BytesIO()
    image = torch.cat(columns, dim=2).permute(1, 2, 0).contiguous().numpy()
    imsave(data, image, format="jpg", pil_kwargs={"quality": 85})
    return base64.b64encode(data.getvalue()).decode()
