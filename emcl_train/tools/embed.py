"""Encode a data set's frames and captions once, into a folder that runs train and evaluate from."""

import math
import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from rich.console import Console
from rich.progress import track
from torch import Tensor

from emcl_train.config import RunConfig, check_config
from emcl_train.data.clips import Split
from emcl_train.data.features import FEATURES, SPLITS, TOWERS, VERSION, settings_of_features
from emcl_train.data.loader import caption_loader, clip_loader, prepare
from emcl_train.data.text import CaptionTokenizer, load_tokenizer
from emcl_train.errors import UserError
from emcl_train.evaluation.evaluate import (
    clip_config_of,
    frames_of,
    hash_of_towers,
    put_weights,
    read_clip_config,
    read_weights,
)
from emcl_train.models import RetrievalModel, build_model, look_at_clip
from emcl_train.runs.files import TOKENIZER, alone, raise_if_disk_full, require_free, write_json_atomic
from emcl_train.runs.state import save_tensors_atomic
from emcl_train.training.trainer import seed_everything


@torch.no_grad()
def embed(
    config: RunConfig, out: Path, *, tokens: bool = False, run_dir: Path | None = None, console: Console | None = None
) -> None:
    """Write the folder `out`, which must not exist: it appears when it is whole.

    Args: config: of a recipe, or of the run in `run_dir`, whose towers are then taken. tokens: store the features of
        every token too, as the head "wti" needs them; without asking where `config.model.head` is that.
    Raises: UserError as training does, and where `out` exists.
    """
    check_config(replace(config, from_features=None))
    require_free(out)
    if run_dir is None:
        look_at_clip(config.model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    console, tokens = console or Console(), tokens or config.model.head == "wti"
    config = replace(config, from_features=None, data=replace(config.data, augment="none"))
    seed_everything(config.train.seed, torch.device(device))  # as training does, for towers with random weights
    annotations = prepare(config)
    tokenizer = load_tokenizer(config, run_dir)
    model = build_model(config, tokenizer, clip_config=None if run_dir is None else read_clip_config(run_dir))
    if run_dir is not None:
        put_weights(model, read_weights(run_dir), run_dir)
    partial = out.with_name(f".{out.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    with alone(partial):
        for left in partial.iterdir():  # of a process that was killed
            left.unlink()
        try:
            model = model.eval().to(device)
            for name in SPLITS:
                write_split(partial, name, getattr(annotations, name), model, tokenizer, config, tokens=tokens)
            tokenizer.save(partial / TOKENIZER)
            save_tensors_atomic(partial / TOWERS, dict(model.towers.clip.state_dict()))
            record = {
                "version": VERSION,
                "settings": settings_of_features(config),
                "weights": hash_of_towers(model.state_dict()),
                "clip_config": clip_config_of(model, config),
                "tokens": tokens,
                "root": config.data.root,
                "run": run_dir,
                "frames": frames_of(config),
                "notes": annotations.notes,
                "left_out": annotations.left_out,
            }
            write_json_atomic(partial / FEATURES, record)
            if out.exists():
                raise UserError(f"{out} exists by now and is not overwritten; choose another --out, or remove it")
            partial.rename(out)
        except OSError as error:
            raise_if_disk_full(error, out)
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    clips = ", ".join(f"{len(getattr(annotations, name).clips)} {name}" for name in SPLITS)
    console.print(f"{out}: features of {clips} clips{' and of every token' if tokens else ''}", soft_wrap=True)


def write_split(
    folder: Path,
    name: str,
    split: Split,
    model: RetrievalModel,
    tokenizer: CaptionTokenizer,
    config: RunConfig,
    *,
    tokens: bool,
) -> None:
    """Arrays of one split, written as they get ready, and the lists that number their rows."""
    towers, device = model.towers, next(model.parameters()).device
    clips, captions = len(split.clips), len(split.captions)
    frames, width, words = config.data.num_frames, towers.width, config.data.max_words

    def array(kind: str, shape: tuple[int, ...], dtype: type) -> np.memmap:
        path = folder / f"{name}_{kind}.npy"
        size, free = math.prod(shape) * np.dtype(dtype).itemsize, shutil.disk_usage(folder).free
        if size > free:
            raise UserError(
                f"{name}_{kind}.npy takes {size / 1e9:.1f} GB, and {folder.parent} has {free / 1e9:.1f} GB left; free "
                f"some space, or choose another --out{'; features of tokens take most' if kind == 'text' else ''}"
            )
        created = open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        if hasattr(os, "posix_fallocate"):  # a write into a hole of a mapped file on a full disk kills the process
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return created

    features, masks = (
        array("frames", (clips, frames, width), np.float32),
        array("frame_mask", (clips, frames), np.bool_),
    )
    for batch in shown(clip_loader(split, config.data, config.eval.batch_size), f"Encode {name}: clips"):
        rows = batch["index"].numpy()
        features[rows] = finite(towers.encode_frames(batch["frames"].to(device)), batch["frame_mask"], "video")
        masks[rows] = batch["frame_mask"].numpy()
    text = array("text", (captions, 1 + words * tokens, width), np.float32)
    token_masks = array("token_mask", (captions, words), np.int64)
    for batch in shown(
        caption_loader(split, tokenizer, config.data, config.eval.batch_size), f"Encode {name}: captions"
    ):
        rows, mask = batch["index"].numpy(), batch["attention_mask"]
        pooled, of_tokens = towers.encode_text(batch["input_ids"].to(device), mask.to(device), tokens=tokens)
        text[rows, :1] = finite(pooled.unsqueeze(1), torch.ones(len(rows), 1, dtype=torch.bool), "text")
        if of_tokens is not None:
            text[rows, 1:] = finite(of_tokens, mask.bool(), "text")
        token_masks[rows] = mask.numpy()
    for values in (features, masks, text, token_masks):
        values.flush()
    lists = {
        "name": split.name,
        "video_ids": [clip.video_id for clip in split.clips],
        "paths": [clip.path for clip in split.clips],
        "captions": split.captions,
        "caption_clip": split.caption_clip,
    }
    write_json_atomic(folder / f"{name}.json", lists)


def finite(features: Tensor, mask: Tensor, tower: str) -> np.ndarray:
    """Features as an array, or a UserError where one that is no padding is NaN or infinite."""
    features = features.float().cpu()
    if not torch.isfinite(features[mask]).all():
        raise UserError(f"the {tower} tower gave NaN or infinity; its weights are damaged: use another checkpoint")
    return features.numpy()


def shown(batches: Iterable[dict[str, Tensor]], description: str) -> Iterable[dict[str, Tensor]]:
    return track(batches, description=description, console=Console(stderr=True), transient=True)
