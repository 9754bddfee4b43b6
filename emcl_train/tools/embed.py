"""Encode a data set's frames and captions once, into a folder that runs train and evaluate from."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from emcl_train.config import RunConfig, check_config
from emcl_train.data.annotations import load_annotations, require_made
from emcl_train.data.clips import Annotations, Split
from emcl_train.data.features import BINARY, SPLITS, TOWERS, VERSION, settings_of_features
from emcl_train.data.loader import caption_loader, clip_loader, prepare
from emcl_train.data.text import CaptionTokenizer, load_tokenizer
from emcl_train.device import device as device_of_command
from emcl_train.errors import UserError
from emcl_train.evaluation.provenance import clip_config_of, frames_of, hash_of_towers
from emcl_train.kinds import HEADS
from emcl_train.models import RetrievalModel, build_model, look_ahead
from emcl_train.processes import own_rows, passed_to_first, rank_and_world, rounds_of
from emcl_train.recipes import SMOKE_TEST, is_smoke_test
from emcl_train.runs.checksums import note_all
from emcl_train.runs.clip_config import read_clip_config
from emcl_train.runs.contents import FEATURES, TOKENIZER
from emcl_train.runs.files import require_free, whole_folder, write_json_atomic
from emcl_train.runs.finished import say_if_unfinished
from emcl_train.runs.lock import making
from emcl_train.runs.mapped import GIGABYTE, new_mapped
from emcl_train.runs.state import save_tensors_atomic
from emcl_train.terminal import console_of, warn, with_progress
from emcl_train.tools.export import whole_weights
from emcl_train.training.start import seed_everything
from emcl_train.weights.keys import put_weights
from emcl_train.weights.settling import settled


def embed(
    config: RunConfig,
    out: Path,
    *,
    tokens: bool = False,
    run_dir: Path | None = None,
    render: bool = False,
    settle: bool = True,
    console: Console | None = None,
) -> None:
    """Write the folder `out`, which must not exist: it appears when it is whole.

    Of several processes each encodes a part, and hands it to the first one, which alone writes.

    Args:
        config: of a recipe, or of the run in `run_dir`, whose towers are then taken.
        out: the folder.
        tokens: store the features of every token too, as the head "wti" needs them; it gets them unasked.
        run_dir: the folder of a run.
        render: of a run too, render the bundled set in `data.root` if it is not there: the user named that folder.
        settle: put in what the model brings along, where the settings are as the recipe has them; False where the
            caller has done so (`weights/settling.py`). A run's have it.
        console: where to say what was written.

    Raises:
        UserError: `out` exists, or anything that training refuses.
    """
    if run_dir is None:
        config = replace(config, from_features=None)
        config = settled(config) if settle else config
    check_config(replace(config, from_features=None))
    first = rank_and_world()[0] == 0
    with making(out) if first else nullcontext():
        if first:
            require_free(out)
        _embed(config, out, tokens=tokens, run_dir=run_dir, render=render, console=console_of(console))


@torch.no_grad()
def _embed(config: RunConfig, out: Path, *, tokens: bool, run_dir: Path | None, render: bool, console: Console) -> None:
    first = rank_and_world()[0] == 0
    width: int | None = None
    if run_dir is None:
        width = look_ahead(config)
        if is_smoke_test(config):
            warn(SMOKE_TEST, console)
    device = device_of_command()
    tokens = tokens or HEADS[config.model.head].tokens
    of_run = config
    config = replace(config, from_features=None, data=replace(config.data, augment="none"))
    seed_everything(config.train.seed, device)  # as training does, for towers with random weights
    if run_dir is not None and not render:
        require_made(config.data)

    # What is wrong with the settings, or too large for the disk, is said before a clip is decoded.
    towers = None if run_dir is None else read_clip_config(run_dir)
    if towers is not None:
        width = int(towers["projection_dim"])
    if width is not None and first:
        require_room(load_annotations(config.data), config, out, width=width, tokens=tokens)
    annotations = prepare(config, together=True)
    tokenizer = load_tokenizer(config, run_dir)
    model = build_model(config, tokenizer, clip_config=towers)
    if run_dir is not None:
        put_weights(model, whole_weights(of_run, run_dir), run_dir)
        say_if_unfinished(run_dir)

    model = model.eval().to(device)
    with whole_folder(out) if first else nullcontext() as partial:
        for name in SPLITS:
            write_split(partial, name, getattr(annotations, name), model, tokenizer, config, tokens=tokens)
        if partial is None:
            return
        tokenizer.save(partial / TOKENIZER)
        save_tensors_atomic(partial / TOWERS, dict(model.towers.inner.state_dict()))
        note_all(partial, BINARY)

        # Last: a folder without it was not written to its end.
        record = {
            "version": VERSION,
            "settings": settings_of_features(config),
            "weights": hash_of_towers(model.state_dict()),
            "clip_config": clip_config_of(model, config),
            "tokens": tokens,
            "smoke_test": is_smoke_test(config),
            "root": config.data.root,
            "run": run_dir,
            "frames": frames_of(config),
            "notes": annotations.notes,
            "left_out": annotations.left_out,
        }
        write_json_atomic(partial / FEATURES, record)

    clips = ", ".join(f"{len(getattr(annotations, name).clips)} {name}" for name in SPLITS)
    console.print(f"{out}: features of {clips} clips{' and of every token' if tokens else ''}", soft_wrap=True)


def require_room(annotations: Annotations, config: RunConfig, out: Path, *, width: int, tokens: bool) -> None:
    """Raise a UserError where the disk is too small for the arrays of all splits."""
    splits = [getattr(annotations, name) for name in SPLITS]
    clips, captions = sum(len(split.clips) for split in splits), sum(len(split.captions) for split in splits)
    frames, words = config.data.num_frames, config.data.max_words
    numbers = clips * frames * width + captions * (1 + words * tokens) * width
    needed = 4 * numbers + clips * frames + 8 * captions * words
    there = next(place for place in out.resolve().parents if place.is_dir())
    free = shutil.disk_usage(there).free
    if needed > free:
        of_tokens = ", which features of every token take most of" if tokens else ""
        raise UserError(
            f"the disk is too small: features of {clips} clips and {captions} captions take {needed / GIGABYTE:.3g} "
            f"GB{of_tokens}, and {out.parent} has {free / GIGABYTE:.3g} GB left; free some space, or choose another "
            f"--out"
        )


def write_split(
    folder: Path | None,
    name: str,
    split: Split,
    model: RetrievalModel,
    tokenizer: CaptionTokenizer,
    config: RunConfig,
    *,
    tokens: bool,
) -> None:
    """Arrays of one split, written as they get ready, and the lists that number their rows.

    Args:
        folder: where to; None in a process that hands over what it encodes.
        name: of the split, in names of files.
        split: the split.
        model: whose towers encode.
        tokenizer: of the captions.
        config: how frames are sampled and captions cut, and `eval.batch_size`.
        tokens: whether to write the features of every token.
    """
    towers, device = model.towers, next(model.parameters()).device
    size = config.eval.batch_size
    clips, captions = len(split.clips), len(split.captions)
    frames, width, words = towers.rows_of(config.data.num_frames), towers.width, config.data.max_words

    def array(kind: str, shape: tuple[int, ...], dtype: type) -> np.memmap | None:
        if folder is None:
            return None
        path = folder / f"{name}_{kind}.npy"
        more = "; features of tokens take most" if kind == "text" else ""
        way_out = f"free some space, or choose another --out{more}"
        return new_mapped(path, shape, dtype, what=path.name, way_out=way_out, folder=folder.parent)

    def encoded_clips() -> Iterator[Encoded]:
        if not (own := own_rows(clips, size)):
            return
        for batch in with_progress(clip_loader(split, config.data, size, own), f"Encode {name}: clips"):
            mask = towers.rows_mask(batch["frame_mask"])
            inputs = {name: batch[name].to(device) for name in towers.frame_inputs}
            of_frames = finite(towers.encode_frames(**inputs), mask, "video")
            yield batch["index"].numpy(), (of_frames, mask.numpy())

    def encoded_captions() -> Iterator[Encoded]:
        if not (own := own_rows(captions, size)):
            return
        loader = caption_loader(split, tokenizer, config.data, size, own)
        for batch in with_progress(loader, f"Encode {name}: captions"):
            mask = batch["attention_mask"]
            pooled, of_tokens = towers.encode_text(batch["input_ids"].to(device), mask.to(device), tokens=tokens)
            parts = [finite(pooled.unsqueeze(1), torch.ones(len(mask), 1, dtype=torch.bool), "text")]
            if of_tokens is not None:
                parts.append(finite(of_tokens, mask.bool(), "text"))
            yield batch["index"].numpy(), (np.concatenate(parts, axis=1), mask.numpy())

    # One side after the other, whose arrays are there before the first row.
    of_clips = array("frames", (clips, frames, width), np.float32), array("frame_mask", (clips, frames), np.bool_)
    fill(of_clips, encoded_clips(), rounds_of(clips, size))
    of_captions = (
        array("text", (captions, 1 + words * tokens, width), np.float32),
        array("token_mask", (captions, words), np.int64),
    )
    fill(of_captions, encoded_captions(), rounds_of(captions, size))
    if folder is None:
        return
    lists = {
        "name": split.name,
        "video_ids": [clip.video_id for clip in split.clips],
        "paths": [clip.path for clip in split.clips],
        "captions": split.captions,
        "caption_clip": split.caption_clip,
    }
    write_json_atomic(folder / f"{name}.json", lists)


Encoded = tuple[np.ndarray, tuple[np.ndarray, ...]]
"""Numbers of rows, and what is to stand in them in each of some arrays."""


def fill(arrays: Sequence[np.memmap | None], encoded: Iterable[Encoded], rounds: int) -> None:
    """Write rows into arrays as they get ready, here and in other processes, which hand them over.

    Args:
        arrays: to be filled; None in the other processes.
        encoded: rows of this process.
        rounds: how many times the process gives rows that has most.
    """
    for rows, values in passed_to_first(encoded, rounds):
        for array, value in zip(arrays, values, strict=True):
            assert array is not None
            array[rows] = value
    for array in arrays:
        if array is not None:
            array.flush()


def finite(features: Tensor, mask: Tensor, tower: str) -> np.ndarray:
    """Features as an array, or a UserError where one that is no padding is NaN or infinite."""
    features = features.float().cpu()
    if not torch.isfinite(features[mask]).all():
        raise UserError(f"the {tower} tower gave NaN or infinity; its weights are damaged: use another checkpoint")
    return features.numpy()
