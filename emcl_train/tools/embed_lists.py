"""Encode videos or texts that are no data set: one row each, in the arrays that `refine` and other programs take."""

import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.nn.functional import normalize

from emcl_train.config import DataConfig, RunConfig, check_config
from emcl_train.data.annotation_files import VIDEO_SUFFIXES, count, read_text, visible_files
from emcl_train.data.clips import Clip, Split
from emcl_train.data.loader import SHOWN, caption_loader, check_clips, clip_loader
from emcl_train.data.own_videos import split_of_table, tables
from emcl_train.data.text import CaptionTokenizer, load_tokenizer, tokenizer_name, word_tokenizer
from emcl_train.device import device as device_of_command
from emcl_train.errors import UserError
from emcl_train.evaluation.provenance import frames_of, hash_of_towers
from emcl_train.flags import flag
from emcl_train.models import RetrievalModel, build_model, look_ahead, on_device
from emcl_train.processes import of_first, own_rows, rank_and_world, rounds_of
from emcl_train.recipes import SMOKE_TEST, is_smoke_test
from emcl_train.runs.checksums import note_all
from emcl_train.runs.clip_config import read_clip_config
from emcl_train.runs.files import require_free, whole_folder, write_json_atomic
from emcl_train.runs.finished import say_if_unfinished
from emcl_train.runs.lock import making
from emcl_train.runs.mapped import GIGABYTE, new_mapped
from emcl_train.terminal import console_of, escaped, warn, with_progress
from emcl_train.tools.embed import Encoded, fill, finite
from emcl_train.tools.export import whole_weights
from emcl_train.tools.sides import PAIRS, RECORD, TEXT, VIDEO, pooled
from emcl_train.training.start import seed_everything
from emcl_train.weights.keys import put_weights
from emcl_train.weights.settling import settled

VIDEO_IDS, TEXTS = "video_ids.json", "texts.json"
BINARY = (TEXT, VIDEO, PAIRS)
"""Files that have checksums."""
VERSION = 1


@dataclass(frozen=True)
class Lists:
    """What is to be encoded."""

    split: Split
    data: DataConfig
    """Where the videos lie."""
    paired: bool = False
    """Whether caption i belongs to clip `caption_clip[i]`, as a table says it."""
    notes: tuple[str, ...] = ()


def lists_of(videos: Path | None, texts: Path | None, data: DataConfig) -> Lists:
    """Read what a user has named, and nothing of the videos themselves.

    Args:
        videos: a folder of videos, and of folders of them.
        texts: `.txt`, a text a line; or a table of videos and captions (`tables`), which then names the videos too.
        data: how frames are sampled.

    Raises:
        UserError: there is no such thing, or nothing in it.
    """
    table = texts is not None and texts.suffix.lower() in tables()
    if table and videos is not None:
        raise UserError(
            f"{texts} is a table, which names its videos, and the folder {videos} was given too; leave one of them "
            f"out, or write the texts into a .txt, one a line"
        )
    if texts is not None and table:
        if not texts.is_file():
            raise UserError(f"there is no file {texts}")
        root = texts.parent if texts.parent.parts else Path(".")
        data = replace(data, layout=texts.suffix.lower()[1:], root=root)
        split, notes = split_of_table(texts, data)
        return Lists(split, data, paired=True, notes=tuple(notes))

    clips: list[Clip] = []
    if videos is not None:
        clips = _clips_in(videos)
        data = replace(data, root=videos, videos=Path())
    captions, notes = ([], []) if texts is None else _texts_in(texts)
    return Lists(Split("all", tuple(clips), tuple(captions), ()), data, notes=tuple(notes))


def embed_lists(
    config: RunConfig,
    out: Path,
    *,
    videos: Path | None = None,
    texts: Path | None = None,
    run_dir: Path | None = None,
    settle: bool = True,
    console: Console | None = None,
) -> int:
    """Write the folder `out`, which must not exist: it appears when it is whole.

    It holds, of what was given, `video.npy` [N, D] with `video_ids.json`, `text.npy` [M, D] with `texts.json`, and for
    a table `pairs.npy` [M], the video's row for each text. All rows have length one. A video's is the mean of its unit
    frames, as CLIP4Clip pools them. Of several processes each encodes a part, and hands it to the first one, which
    alone writes.

    Args:
        config: of a model and of how frames are sampled; or of the run in `run_dir`, whose weights are then taken, its
            temporal layers too.
        out: the folder.
        videos: see `lists_of`.
        texts: see `lists_of`.
        run_dir: the folder of a run.
        settle: put in what the model brings along, where the settings are as the recipe has them; False where the
            caller has done so (`weights/settling.py`). A run's have it.
        console: where to say what was written.

    Returns:
        1 if videos cannot be decoded and were left out, else 0; 0 in processes that help the first one.

    Raises:
        UserError: `out` exists, videos cannot be decoded and `data.on_bad_video` is "stop", or anything that training
            refuses.
    """
    of_run = config
    config = replace(config, from_features=None, data=replace(config.data, augment="none", cache_frames=False))
    config = settled(config) if settle and run_dir is None else config
    check_config(config)
    console = console_of(console)
    first = rank_and_world()[0] == 0
    with making(out) if first else nullcontext():
        if first:
            require_free(out)
        lists = of_first(lambda: lists_of(videos, texts, config.data))
        for note in lists.notes:
            warn(escaped(note), console)
        return _embed(replace(config, data=lists.data), of_run, out, lists, run_dir, console)


@torch.no_grad()
def _embed(
    config: RunConfig, of_run: RunConfig, out: Path, lists: Lists, run_dir: Path | None, console: Console
) -> int:
    """`of_run` is the configuration as the run was trained."""
    # The model first: what is wrong with it is said before a video is decoded.
    if run_dir is None:
        look_ahead(config)
        if is_smoke_test(config):
            warn(SMOKE_TEST, console)
    device = device_of_command()
    seed_everything(config.train.seed, device)
    tokenizer = _tokenizer(config, lists.split.captions, run_dir)
    model = build_model(config, tokenizer, clip_config=None if run_dir is None else read_clip_config(run_dir))
    if run_dir is not None:
        put_weights(model, whole_weights(of_run, run_dir), run_dir)
        say_if_unfinished(run_dir)
    model = model.eval().to(device)
    first = rank_and_world()[0] == 0
    if first:
        _require_room(out, lists.split, model.towers.width)

    split, bad = _whole_clips(lists.split, config.data)
    with whole_folder(out) if first else nullcontext() as partial:
        if split.clips:
            _write_videos(partial, split, model, config, of_run=run_dir is not None)
        if split.captions:
            _write_texts(partial, split, model, tokenizer, config)
        if partial is None:
            return 0
        if lists.paired:
            np.save(partial / PAIRS, np.array(split.caption_clip, dtype=np.int64))
        note_all(partial, [name for name in BINARY if (partial / name).is_file()])

        # Last: a folder without it was not written to its end.
        record: dict[str, Any] = {
            "version": VERSION,
            "clip": config.model.clip,
            "weights": hash_of_towers(model.state_dict()),
            "run": run_dir,
            "frames": frames_of(config),
            "videos": len(split.clips),
            "texts": len(split.captions),
            "width": model.towers.width,
            "smoke_test": run_dir is None and is_smoke_test(config),
            "left_out": bad,
        }
        write_json_atomic(partial / RECORD, record)

    for video_id, reason in bad.items():
        warn(f"[red]{escaped(video_id)} cannot be decoded and is left out: {escaped(reason)}[/red]", console)
    sides = [(VIDEO, len(split.clips), "video"), (TEXT, len(split.captions), "text")]
    said = ", ".join(f"{name} {n} × {model.towers.width} ({count(n, unit)})" for name, n, unit in sides if n)
    console.print(f"{escaped(out)}: {said}" + (f", {PAIRS}" if lists.paired else ""), soft_wrap=True, highlight=False)
    if bad:
        warn(f"{len(bad)} of {len(lists.split.clips)} videos cannot be decoded", console)
    return 1 if bad else 0


def _tokenizer(config: RunConfig, captions: tuple[str, ...], run_dir: Path | None) -> CaptionTokenizer:
    """The tokenizer of the weights; for random ones, words are counted in the texts themselves."""
    if run_dir is None and config.model.init_from is None and tokenizer_name(config.model) is None:
        return word_tokenizer(captions, config.data.max_words, config.data.clean_captions)
    return load_tokenizer(config, run_dir)


def _require_room(out: Path, split: Split, width: int) -> None:
    """Raise a UserError where the disk is too small for the arrays."""
    needed = 4 * width * (len(split.clips) + len(split.captions))
    free = shutil.disk_usage(out.parent).free
    if needed > free:
        raise UserError(
            f"the disk is too small: {len(split.clips)} videos and {len(split.captions)} texts of {width} numbers take "
            f"{needed / GIGABYTE:.3g} GB, and {out.parent} has {free / GIGABYTE:.3g} GB left; free some space, or "
            f"choose another {flag('out')}"
        )


def _whole_clips(split: Split, data: DataConfig) -> tuple[Split, dict[str, str]]:
    """The split without clips that cannot be decoded, and why they cannot.

    Raises:
        UserError: there are some and `data.on_bad_video` is "stop", or there are no others.
    """
    if not split.clips:
        return split, {}
    bad = check_clips(split.clips, data, together=True)
    if not bad:
        return split, {}
    named = "; ".join(f"{video_id} ({reason})" for video_id, reason in list(bad.items())[:SHOWN])
    more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    said = f"{len(bad)} of {len(split.clips)} videos in {data.root} cannot be decoded: {named}{more}"
    if len(bad) == len(split.clips):
        raise UserError(f"{said}; replace the files")
    if data.on_bad_video == "stop":
        raise UserError(
            f"{said}. Replace the files, or pass {flag('data.on_bad_video')} skip to leave them out, which is said"
        )
    if split.caption_clip:
        return split.without(set(bad)), bad
    return replace(split, clips=tuple(clip for clip in split.clips if clip.video_id not in bad)), bad


def _write_videos(folder: Path | None, split: Split, model: RetrievalModel, config: RunConfig, *, of_run: bool) -> None:
    """`video.npy` and the ids of its rows. Only a run's temporal layers are trained.

    Args:
        folder: where to; None in a process that hands over what it encodes.
        split: the videos.
        model: what encodes.
        config: how frames are sampled, and `eval.batch_size`.
        of_run: whether the model is that of a run.
    """
    device = next(model.parameters()).device
    size = config.eval.batch_size

    def encoded() -> Iterator[Encoded]:
        if not (own := own_rows(len(split.clips), size)):
            return
        for batch in with_progress(clip_loader(split, config.data, size, own), "Encode videos"):
            mask = model.towers.rows_mask(batch["frame_mask"])
            if of_run:
                frames = model.encode_video(on_device(batch, device)).frames.float().cpu()
            else:
                inputs = {name: batch[name].to(device) for name in model.towers.frame_inputs}
                frames = model.towers.encode_frames(**inputs).float().cpu()
            finite(frames, mask, "video")
            yield batch["index"].numpy(), (pooled(frames, mask).numpy(),)

    fill([_array(folder, VIDEO, len(split.clips), model.towers.width)], encoded(), rounds_of(len(split.clips), size))
    if folder is not None:
        write_json_atomic(folder / VIDEO_IDS, [clip.video_id for clip in split.clips])


def _write_texts(
    folder: Path | None, split: Split, model: RetrievalModel, tokenizer: CaptionTokenizer, config: RunConfig
) -> None:
    """`text.npy` and the texts of its rows; the arguments are like those of `_write_videos`."""
    device = next(model.parameters()).device
    size = config.eval.batch_size

    def encoded() -> Iterator[Encoded]:
        if not (own := own_rows(len(split.captions), size)):
            return
        for batch in with_progress(caption_loader(split, tokenizer, config.data, size, own), "Encode texts"):
            rows: Tensor
            rows, _ = model.towers.encode_text(batch["input_ids"].to(device), batch["attention_mask"].to(device))
            finite(rows, torch.ones(len(rows), dtype=torch.bool), "text")
            yield batch["index"].numpy(), (normalize(rows.float(), dim=-1).cpu().numpy(),)

    number = len(split.captions)
    fill([_array(folder, TEXT, number, model.towers.width)], encoded(), rounds_of(number, size))
    if folder is not None:
        write_json_atomic(folder / TEXTS, list(split.captions))


def _array(folder: Path | None, name: str, rows: int, width: int) -> np.memmap | None:
    if folder is None:
        return None
    way_out = f"free some space, or choose another {flag('out')}"
    return new_mapped(folder / name, (rows, width), np.float32, what=name, way_out=way_out, folder=folder.parent)


def _clips_in(folder: Path) -> list[Clip]:
    """The videos in a folder and in those inside it, by their paths, which are their ids."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; pass the one that holds the videos")
    found = [path for path in visible_files(folder) if path.suffix.lower() in VIDEO_SUFFIXES]
    if not found:
        raise UserError(
            f"{folder} is no folder of a run, and holds no video: no {', '.join(VIDEO_SUFFIXES)} file in it or below"
        )
    return [Clip(path.relative_to(folder).as_posix(), path) for path in sorted(found)]


def _texts_in(path: Path) -> tuple[list[str], list[str]]:
    """The texts of a file, one a line, and what a reader should know of them."""
    known = f"a .txt with one text a line, or {' or '.join(tables())} with videos and captions"
    if not path.is_file():
        raise UserError(f"there is no file {path}; pass {known}")
    if path.suffix.lower() != ".txt":
        raise UserError(f"{path} is a {path.suffix or 'file without a suffix'}; expected {known}")
    # By line feeds alone: a text may hold other characters that Python takes for the end of a line.
    lines = [line.strip() for line in read_text(path).split("\n")]
    texts = [line for line in lines if line]
    if not texts:
        raise UserError(f"{path} has no text; write one a line")
    empty = len(lines[:-1]) - sum(bool(line) for line in lines[:-1])
    return texts, [f"{path.name}: {count(empty, 'empty line')} left out."] if empty else []
