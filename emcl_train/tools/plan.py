"""What a command would do, for `--dry-run`: read from lists and settings. No clip is decoded, nothing is written."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from emcl_train.config import RunConfig
from emcl_train.data.annotations import read_annotations, require_made
from emcl_train.data.clips import Annotations
from emcl_train.data.datasets.shapes import is_made
from emcl_train.data.experts.prepare import prepare_experts
from emcl_train.data.features import open_features
from emcl_train.data.loader import steps_per_epoch
from emcl_train.errors import UserError
from emcl_train.kinds import HEADS
from emcl_train.models import look_ahead
from emcl_train.reading.picture_fields import SQUARES
from emcl_train.reading.tower_fields import OPEN_CLIP
from emcl_train.runs.clip_config import read_clip_config
from emcl_train.terminal import console_of, escaped
from emcl_train.tools.embed import require_room
from emcl_train.tools.embed_lists import lists_of
from emcl_train.weights.prepared import family_of_model

SPLITS = ("train", "val", "test")


def print_plan(config: RunConfig, console: Console | None = None) -> None:
    """Say what a training would do: clips, steps, folder, and space on the disk.

    Args:
        config: of the training.
        console: where to print.

    Raises:
        UserError: anything that training refuses before it decodes.
    """
    console = console_of(console)
    if config.from_features is None:
        look_ahead(config)
        if to_be_rendered(config):
            for line in (
                *_towers(config),
                f"clips: {_rendered(config)}",
                f"folder: {config.out}",
                "nothing was written",
            ):
                console.print(escaped(line), soft_wrap=True, highlight=False)
            return
        if config.model.system == "clip":
            annotations = read_annotations(config.data)
        else:
            annotations = prepare_experts(config, only_read=True)
    else:
        annotations = open_features(config)

    lines = [*_towers(config), f"clips: {_counted(annotations)}"]
    lines.append(f"steps: {_steps(config, annotations)}")
    if config.seeds > 1:
        lines.append(f"runs: {config.seeds}, with seeds from {config.train.seed} on")
    lines.append(f"folder: {config.out}, {'which goes on' if config.resume else 'which would be made'}")
    lines += _space(config, annotations)
    looked_at = "no clip was decoded: whether all can be is not known"
    if config.model.system != "clip":
        looked_at = "no features were examined: whether all can be used is not known"
    lines.append(f"nothing was written, and {looked_at}")
    for line in lines:
        console.print(escaped(line), soft_wrap=True, highlight=False)


def print_plan_of_features(
    config: RunConfig, out: Path, *, tokens: bool = False, run_dir: Path | None = None, console: Console | None = None
) -> None:
    """Say what embedding would do.

    Args:
        config: whose data set.
        out: the folder.
        tokens: as of `embed`.
        run_dir: the folder of the run whose towers are taken; None: those of the configuration.
        console: where to print.

    Raises:
        UserError: anything that embedding refuses before it decodes, such as a disk that is too small.
    """
    console = console_of(console)
    of_run = None if run_dir is None else read_clip_config(run_dir)
    width = look_ahead(replace(config, resume=False)) if of_run is None else int(of_run["projection_dim"])
    if to_be_rendered(config) and run_dir is None:
        for line in (f"clips: {_rendered(config)}", f"folder: {out}, which would be made", "nothing was written"):
            console.print(escaped(line), soft_wrap=True, highlight=False)
        return
    require_made(config.data)
    annotations = read_annotations(config.data)
    if width is not None:
        tokens = tokens or HEADS[config.model.head].tokens
        require_room(annotations, config, out, width=width, tokens=tokens)
    lines = [
        f"clips: {_counted(annotations)}",
        f"folder: {out}, which would be made",
        "nothing was written, and no clip was decoded: whether all can be is not known",
    ]
    for line in lines:
        console.print(escaped(line), soft_wrap=True, highlight=False)


def print_plan_of_lists(
    config: RunConfig,
    out: Path,
    *,
    videos: Path | None = None,
    texts: Path | None = None,
    run_dir: Path | None = None,
    console: Console | None = None,
) -> None:
    """Say what embedding a folder of videos or a file of texts would do.

    Args:
        config: as of `embed_lists`.
        out: the folder.
        videos: as of `embed_lists`.
        texts: as of `embed_lists`.
        run_dir: as of `embed_lists`.
        console: where to print.
    """
    console = console_of(console)
    if run_dir is None:
        look_ahead(config)
    lists = lists_of(videos, texts, config.data)
    lines = [
        *lists.notes,
        f"rows: {len(lists.split.clips)} of videos, {len(lists.split.captions)} of texts",
        f"folder: {out}, which would be made",
        "nothing was written, and no video was decoded: whether all can be is not known",
    ]
    for line in lines:
        console.print(escaped(line), soft_wrap=True, highlight=False)


def to_be_rendered(config: RunConfig) -> bool:
    """Whether the data set is the bundled one, and not there yet."""
    return config.data.layout == "shapes" and not is_made(config.data)


def _rendered(config: RunConfig) -> str:
    shapes = config.data.shapes
    return (
        f"{shapes.train_clips} train, {shapes.val_clips} val and {shapes.test_clips} test would be rendered in "
        f"{config.data.root}"
    )


def _counted(annotations: Annotations) -> str:
    splits = {name: getattr(annotations, name) for name in SPLITS}
    return ", ".join(f"{len(split.clips)} {name} with {len(split.captions)} captions" for name, split in splits.items())


def _is_of_open_clip(config: RunConfig) -> bool:
    """Whether its towers are OpenCLIP's, whose pictures may be prepared as CLIP's."""
    return config.from_features is None and family_of_model(config.model) == OPEN_CLIP


def _towers(config: RunConfig) -> Sequence[str]:
    """What towers that are not CLIP's bring along."""
    if config.model.system != "clip" or (config.data.resize not in SQUARES and not _is_of_open_clip(config)):
        return []
    data = config.data
    return [
        f"towers: {config.model.clip}, pictures {data.image_size} x {data.image_size} by {data.resize}, captions of "
        f"{data.max_words} tokens, loss {config.train.loss}"
    ]


def _steps(config: RunConfig, annotations: Annotations) -> str:
    """How many steps there would be, if all clips can be decoded."""
    train = config.train
    items = annotations.train.captions if config.answers_questions else annotations.train.clips
    size = min(train.batch_size, len(items))
    if size < 2:
        raise UserError(f"the training split has {len(annotations.train.clips)} clips, expected 2 or more; add clips")
    each = steps_per_epoch(annotations.train, config.data, size)
    steps = train.epochs * each
    stopped = "" if train.max_steps is None or train.max_steps >= steps else f", stopped after {train.max_steps}"
    return f"{steps}, {each} in each of {train.epochs} epochs of {size} pairs{stopped}"


def _space(config: RunConfig, annotations: Annotations) -> Sequence[str]:
    """What the cache of frames would take, and what is free there."""
    data = config.data
    if not data.cache_frames or config.from_features is not None:
        return []
    from emcl_train.data.cache import cache_folder

    clips = {clip.video_id for name in SPLITS for clip in getattr(annotations, name).clips}
    needed = len(clips) * data.num_frames * 3 * data.image_size**2
    folder = cache_folder(data)
    if folder is None:
        return []
    there = next(place for place in (folder, *folder.resolve().parents) if place.is_dir())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise UserError(
            f"frames of {len(clips)} clips would take {_size(needed)} in {folder}, where {_size(free)} are free; make "
            f"room, or pass --data.no-cache-frames or another --data.cache-dir"
        )
    return [f"kept frames: {_size(needed)} at most in {folder}, where {_size(free)} are free"]


def _size(count: int) -> str:
    """Bytes as people say them."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"
