"""The bundled video set: clips of coloured shapes, rendered as real video files in the layout of MSR-VTT."""

import fcntl
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from emcl_train.checkpoint import raise_if_disk_full, write_json_atomic, write_text_atomic
from emcl_train.config import ShapesConfig
from emcl_train.data.annotations import MSRVTT_CAPTIONS, MSRVTT_TEST, MSRVTT_TRAIN
from emcl_train.data.scenes import COLOURS, SHAPES, Scene, captions, render, scenes
from emcl_train.errors import UserError

MANIFEST = "shapes.json"
RENDER_VERSION = 1
"""Raised whenever the same settings would give other clips or captions."""
MOST_LOOKS = len(COLOURS) * (len(COLOURS) - 1) // 2 * len(SHAPES) ** 2
SPLITS = {"train": "train", "val": "validate", "test": "test"}
"""Our name of each split and MSR-VTT's, in the order of the clips."""


def render_shapes(root: Path, config: ShapesConfig) -> None:
    """Write the set to `root`: annotation files, `videos/`, and a manifest that says when it is complete.

    A complete set with the same settings is left as it is, one that was interrupted is completed. Processes that come
    at the same time wait for the first.

    Raises: UserError for settings that cannot be, and where `root` holds anything else.
    """
    _validate(config)
    manifest = {"program": "emcl-train data shapes", "version": RENDER_VERSION, "settings": asdict(config)}
    if _is_complete(root, manifest):
        return
    try:
        (root / "videos").mkdir(parents=True, exist_ok=True)
        with _locked(root / ".lock"):
            if not _is_complete(root, manifest):
                write_json_atomic(root / MANIFEST, manifest | {"complete": False})
                described = _describe(config)
                _render_clips(root / "videos", described, config)
                _write_annotations(root, described)
                write_json_atomic(root / MANIFEST, manifest | {"complete": True, "clips": len(described)})
    except OSError as error:
        raise_if_disk_full(error, root)
        raise UserError(f"{root} cannot be written: {error.strerror or error}; choose another folder") from error


@dataclass(frozen=True)
class _Described:
    """A clip before it is rendered."""

    number: int
    split: str
    scene: Scene
    captions: tuple[str, ...]

    @property
    def video_id(self) -> str:
        return f"video{self.number}"


def _describe(config: ShapesConfig) -> list[_Described]:
    """All clips with their captions; no caption is given twice."""
    counts = {"train": config.train_clips, "val": config.val_clips, "test": config.test_clips}
    by_split = scenes(counts, config.seed)
    taken: set[str] = set()
    described: list[_Described] = []
    for split in SPLITS:
        for scene in by_split[split]:
            number = len(described)
            generator = np.random.default_rng([config.seed, 1, number])
            own: list[str] = []
            for text in captions(scene, config.captions_per_clip, generator):
                if text not in taken:
                    taken.add(text)
                    own.append(text)
                if len(own) == config.captions_per_clip:
                    break
            else:
                raise UserError(
                    f"captions_per_clip is {config.captions_per_clip}, more than there are ways to say one scene; "
                    f"use at most 20"
                )
            described.append(_Described(number, split, scene, tuple(own)))
    repeated = [text for text, count in Counter(t for clip in described for t in clip.captions).items() if count > 1]
    assert not repeated, f"captions that fit more than one clip: {repeated[:3]}"
    return described


def _render_clips(folder: Path, described: list[_Described], config: ShapesConfig) -> None:
    todo = [clip for clip in described if not (folder / f"{clip.video_id}.mp4").is_file()]
    chunks = [todo[i : i + 16] for i in range(0, len(todo), 16)]
    columns = (TextColumn("rendering shapes"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("render", total=len(described), completed=len(described) - len(todo))
        workers = min(len(os.sched_getaffinity(0)), len(chunks))
        if workers <= 1 or len(todo) < 100:  # not worth starting processes
            for chunk in chunks:
                progress.advance(task, _render_chunk(folder, chunk, config))
            return
        # Not by fork: torch and the progress bar have threads.
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            for done in pool.map(_render_chunk, [folder] * len(chunks), chunks, [config] * len(chunks)):
                progress.advance(task, done)


def _render_chunk(folder: Path, clips: list[_Described], config: ShapesConfig) -> int:
    for clip in clips:
        path = folder / f"{clip.video_id}.mp4"
        partial = folder / f".{clip.video_id}.partial"
        try:
            _render_clip(partial, clip, config)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    return len(clips)


def _render_clip(path: Path, clip: _Described, config: ShapesConfig) -> None:
    generator = np.random.default_rng([config.seed, 2, clip.number])
    frames = max(1, round(config.seconds * config.fps))
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=config.fps)
        stream.width = stream.height = config.size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, config.fps)
        # One thread: with more, the bytes depend on the machine.
        stream.options = {"threads": "1", "preset": "veryfast", "crf": "18", "g": str(config.fps)}
        for picture in render(clip.scene, generator, frames=frames, size=config.size):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def _write_annotations(root: Path, described: list[_Described]) -> None:
    videos = [
        {
            "video_id": clip.video_id,
            "category": 0,
            "id": clip.number,
            "split": SPLITS[clip.split],
            "url": "",
            "start time": 0.0,
            "end time": 0.0,
        }
        for clip in described
    ]
    pairs = [(clip.video_id, text) for clip in described for text in clip.captions]
    sentences = [{"caption": text, "video_id": name, "sen_id": i} for i, (name, text) in enumerate(pairs)]
    document = {"info": {"description": "coloured shapes, rendered"}, "videos": videos, "sentences": sentences}
    write_json_atomic(root / MSRVTT_CAPTIONS, document)
    train = [clip.video_id for clip in described if clip.split == "train"]
    write_text_atomic(root / MSRVTT_TRAIN, "\n".join(["video_id", *train]) + "\n")
    test = [clip for clip in described if clip.split == "test"]
    lines = [f"ret{i},msr{clip.number},{clip.video_id},{clip.captions[0]}" for i, clip in enumerate(test)]
    write_text_atomic(root / MSRVTT_TEST, "\n".join(["key,vid_key,video_id,sentence", *lines]) + "\n")


def _is_complete(root: Path, manifest: dict[str, object]) -> bool:
    """Whether `root` holds this very set.

    Raises: UserError where it holds something that is not ours, or was rendered otherwise.
    """
    if not root.exists():
        return False
    if not root.is_dir():
        raise UserError(f"{root} is a file; choose a folder for the shapes")
    path = root / MANIFEST
    # A process that comes at the same time may have made the folder and not yet the manifest.
    if not path.is_file():
        strange = sorted(entry.name for entry in root.iterdir() if entry.name not in ("videos", ".lock"))
        strange += sorted(entry.name for entry in (root / "videos").glob("*"))
        strange = [name for name in strange if not name.endswith(".partial")]
        if strange:
            raise UserError(
                f"{root} holds {strange[0]!r} but no {MANIFEST}: it is not a folder of shapes and stays as it is; "
                f"choose an empty folder"
            )
        return False
    try:
        found = json.loads(path.read_text())
        same = {key: found[key] for key in manifest} == manifest
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete {root}, or choose another folder") from error
    if not same:
        names = sorted(
            name for name, value in asdict_settings(manifest).items() if asdict_settings(found).get(name) != value
        )
        what = ", ".join(names) or "an older version of the program"
        raise UserError(
            f"{root} holds shapes that were rendered with other settings ({what}); choose another folder, or delete it"
        )
    return bool(found.get("complete"))


def asdict_settings(manifest: dict[str, object]) -> dict[str, object]:
    settings = manifest["settings"]
    return settings if isinstance(settings, dict) else {}


def _validate(config: ShapesConfig) -> None:
    for name in ("train_clips", "val_clips", "test_clips", "captions_per_clip", "fps"):
        if getattr(config, name) < 1:
            raise UserError(f"shapes.{name} is {getattr(config, name)}; use at least 1")
    if config.size < 16 or config.size % 2:
        raise UserError(f"shapes.size is {config.size}; h264 needs an even number, and a shape at least 16 pixels")
    if not config.seconds > 0:
        raise UserError(f"shapes.seconds is {config.seconds}; use more than 0")
    if config.seed < 0:
        raise UserError(f"shapes.seed is {config.seed}; use 0 or more")
    for name, most in (("val_clips", MOST_LOOKS // 2), ("test_clips", MOST_LOOKS // 2), ("train_clips", 20_000)):
        if getattr(config, name) > most:
            raise UserError(
                f"shapes.{name} is {getattr(config, name)}, more than there are clearly different scenes; "
                f"use at most {most}"
            )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
