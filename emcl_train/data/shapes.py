"""Render the bundled video set: clips of moving coloured shapes, with captions, in the MSR-VTT layout.

No two clips of a set show the same combination of colours, shapes and motions, in whichever split they are: the test
clips are new combinations of attributes that are all seen in training. Every caption is true of exactly one clip of its
split, so that a perfect model reaches R@1 of 100.
"""

import csv
import io
import itertools
import json
import math
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from emcl_train.config import ShapesConfig
from emcl_train.data.h264 import repeatable
from emcl_train.errors import UserError
from emcl_train.flags import flag, takes
from emcl_train.runs.files import read_json, whole
from emcl_train.terminal import progress_bar

VERSION = 1  # of the look and of the wording: a set of another version is not this one
MANIFEST, PARTIAL = "shapes.json", "shapes.partial.json"
SPLITS = ("train", "validate", "test")

COLORS = {
    "red": (222, 36, 36),
    "orange": (246, 136, 20),
    "yellow": (236, 214, 30),
    "green": (36, 170, 56),
    "cyan": (30, 196, 214),
    "blue": (44, 76, 226),
    "purple": (140, 44, 190),
    "pink": (246, 110, 186),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
MOTIONS = {
    "left": ("moves left", "goes left", "slides to the left"),
    "right": ("moves right", "goes right", "slides to the right"),
    "up": ("moves up", "goes up", "slides to the top"),
    "down": ("moves down", "goes down", "slides to the bottom"),
    "grow": ("grows", "gets bigger"),
    "shrink": ("shrinks", "gets smaller"),
    "appear": ("appears", "suddenly appears"),
    "cross": ("crosses the frame", "crosses diagonally"),
}
OPENINGS = ("", "", "", "here ", "in this clip ")
LONE = ("a lone", "a single")  # a caption of two objects would be true of "a red circle" as well
JOINTS = ("and", "while", "as")
LONE_SHARE = 0.1  # of the clips, with one object instead of two
STILL_SHARE = 0.1  # of the captions, without the motions, where colours and shapes alone tell the clip apart
OVERSAMPLING = 4
CRF = "18"
# Without the tree of macroblocks, for which x264 reads memory that nobody wrote: bytes would differ from run to run.
X264 = {"crf": CRF, "preset": "veryfast", "x264-params": "mbtree=0"}
CLIPS_PER_PROCESS = 64  # at least: a process takes about a second to start, in which so many clips are rendered


@dataclass(frozen=True)
class Shape:
    """One object: what a caption can say of it."""

    color: str
    shape: str
    motion: str


@dataclass(frozen=True)
class PlannedClip:
    """One clip before it is rendered; its number fixes whatever the captions do not say."""

    number: int
    split: str
    shapes: tuple[Shape, ...]
    captions: tuple[str, ...]

    @property
    def video_id(self) -> str:
        return f"video{self.number}"


def render_shapes(root: Path, config: ShapesConfig) -> None:
    """Render the set into `root`: at once if it is there, the rest of it if an earlier call was interrupted.

    The same configuration gives the same clips and captions. The manifest `shapes.json` is written last, so that its
    presence marks a complete set.

    Raises:
        UserError: settings are out of range, or `root` holds anything but a set of these settings.
    """
    _check(config)
    if is_rendered(root, config):
        return
    manifest = _manifest(config)
    if "libx264" not in av.codecs_available:
        raise UserError(
            "this build of PyAV has no encoder libx264; install the wheel: pip install --force-reinstall av"
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
        _write(root / PARTIAL, _json(manifest))  # first: it marks everything else in the folder as ours
        videos = root / "videos"
        videos.mkdir(exist_ok=True)
        clips = plan_clips(config)
        _render([clip for clip in clips if not (videos / f"{clip.video_id}.mp4").exists()], root, config)
        for name, text in _annotation_files(clips, config).items():
            _write(root / name, text)
        _write(root / MANIFEST, _json(manifest))
        (root / PARTIAL).unlink(missing_ok=True)
    except BrokenProcessPool as error:
        raise UserError(
            f"a process that renders clips into {root} was killed, perhaps for lack of memory; run the command again: "
            f"it goes on with the clips that are missing"
        ) from error
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or root}: {error.strerror}; free space there, or choose another folder. "
            f"Run again, it goes on with the clips that are missing"
        ) from error


def is_rendered(root: Path, config: ShapesConfig) -> bool:
    """Whether the whole set is there; nothing is written.

    Raises:
        UserError: `root` holds anything but a set of these settings.
    """
    return _is_complete(root, _manifest(config))


def _manifest(config: ShapesConfig) -> dict[str, object]:
    return {"version": VERSION, "config": asdict(config)}


def plan_clips(config: ShapesConfig) -> list[PlannedClip]:
    """What each clip shows and says: a pure function of the configuration."""
    rng = np.random.default_rng(config.seed)
    counts = (config.train_clips, config.val_clips, config.test_clips)
    scenes = _scenes(sum(counts), rng)
    clips: list[PlannedClip] = []
    for split, count in zip(SPLITS, counts, strict=True):
        members = [next(scenes) for _ in range(count)]
        looks = Counter(_look(scene) for scene in members)
        said: set[str] = set()
        for scene in members:
            captions = _captions(scene, looks[_look(scene)] == 1, config.captions_per_clip, rng)
            if said & set(captions):
                raise RuntimeError(f"two clips of split {split} share a caption: {sorted(said & set(captions))}")
            said.update(captions)
            clips.append(PlannedClip(len(clips), split, scene, captions))
    return clips


def _scenes(number: int, rng: np.random.Generator) -> Iterator[tuple[Shape, ...]]:
    """Combinations, each at most once; the order of two objects does not make a combination another one."""
    every = [Shape(*attributes) for attributes in itertools.product(COLORS, SHAPES, MOTIONS)]
    lone = [(every[i],) for i in rng.permutation(len(every))[: round(LONE_SHARE * number)]]
    seen: set[frozenset[Shape]] = set()
    pairs: list[tuple[Shape, ...]] = []
    while len(lone) + len(pairs) < number:
        first, second = (every[i] for i in rng.integers(len(every), size=2))
        if frozenset((first, second)) in seen or (first.color, first.shape) == (second.color, second.shape):
            continue
        seen.add(frozenset((first, second)))
        pairs.append((first, second))
    scenes = [*lone, *pairs]
    return (scenes[i] for i in rng.permutation(number))


def _look(scene: Sequence[Shape]) -> frozenset[tuple[str, str]]:
    return frozenset((shape.color, shape.shape) for shape in scene)


def _captions(scene: tuple[Shape, ...], look_is_unique: bool, number: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Different captions of a clip. The first, which is the test file's sentence, always names the motions."""
    captions: list[str] = []
    for _ in range(100 * number):
        still = bool(captions) and look_is_unique and len(scene) == 2 and rng.random() < STILL_SHARE
        if (caption := _caption(scene, still, rng)) not in captions:
            captions.append(caption)
        if len(captions) == number:
            return tuple(captions)
    raise UserError(
        f"captions_per_clip is {number}, but a clip of {_noun(scene[0])} has no more than {len(captions)} wordings; "
        f"pass a smaller {flag('data.shapes.captions_per_clip')}"
    )


def _caption(scene: tuple[Shape, ...], still: bool, rng: np.random.Generator) -> str:
    opening = _one_of(OPENINGS, rng)
    if len(scene) == 1:
        return f"{opening}{_one_of(LONE, rng)} {_noun(scene[0])} {_one_of(MOTIONS[scene[0].motion], rng)}"
    parts = []
    for shape in (scene[i] for i in rng.permutation(2)):
        article = _one_of(("an" if shape.color == "orange" else "a", "the"), rng)
        parts.append(f"{article} {_noun(shape)}" + ("" if still else f" {_one_of(MOTIONS[shape.motion], rng)}"))
    return opening + f" {'and' if still else _one_of(JOINTS, rng)} ".join(parts)


def _one_of(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _noun(shape: Shape) -> str:
    return f"{shape.color} {shape.shape}"


@dataclass(frozen=True)
class Track:
    """Where one object is at each frame, as shares of the frame's side; a radius of 0 is invisible."""

    x: np.ndarray  # [F]
    y: np.ndarray  # [F]
    radius: np.ndarray  # [F]


def _track(motion: str, num_frames: int, rng: np.random.Generator) -> Track:
    """A path that stays inside the frame."""
    t = np.linspace(0.0, 1.0, num_frames)
    radius = np.full(num_frames, rng.uniform(0.15, 0.19))
    if motion == "grow":
        radius *= 0.4 + 1.0 * t
    elif motion == "shrink":
        radius *= 1.4 - 1.0 * t
    margin = radius.max() + 0.01
    travel = 1 - 2 * margin if motion == "cross" else rng.uniform(0.4, 0.55)
    dx, dy = {
        "left": (-1, 0),
        "right": (1, 0),
        "up": (0, -1),
        "down": (0, 1),
        "cross": (int(rng.choice((-1, 1))), int(rng.choice((-1, 1)))),
    }.get(motion, (0, 0))
    reach = margin + travel / 2
    x = rng.uniform(reach, 1 - reach) if dx else rng.uniform(margin, 1 - margin)
    y = rng.uniform(reach, 1 - reach) if dy else rng.uniform(margin, 1 - margin)
    if motion == "appear":
        radius = np.where(t > 0.45, radius, 0.0)
    return Track(x + dx * travel * (t - 0.5), y + dy * travel * (t - 0.5), radius)


def _tracks(scene: Sequence[Shape], num_frames: int, rng: np.random.Generator) -> list[Track]:
    """One track each; of several draws, the one in which the objects hide each other least."""
    best = [_track(shape.motion, num_frames, rng) for shape in scene]
    for _ in range(30):
        if _overlap(best) == 0.0:
            break
        draw = [_track(shape.motion, num_frames, rng) for shape in scene]
        best = min(best, draw, key=_overlap)
    return best


def _overlap(tracks: Sequence[Track]) -> float:
    if len(tracks) < 2:
        return 0.0
    a, b = tracks
    return float(np.maximum(a.radius + b.radius - np.hypot(a.x - b.x, a.y - b.y), 0.0).sum())


def draw_frames(clip: PlannedClip, config: ShapesConfig) -> Iterator[Image.Image]:
    """The frames of a clip, in order, before any compression."""
    rng = np.random.default_rng((config.seed, clip.number))
    low, high = ((10, 56), (206, 246))[rng.integers(2)]
    background = tuple(int(value) for value in rng.integers(low, high, size=3))
    num_frames = round(config.seconds * config.fps)
    tracks = _tracks(clip.shapes, num_frames, rng)
    side = config.size * OVERSAMPLING
    for frame in range(num_frames):
        image = Image.new("RGB", (side, side), background)
        canvas = ImageDraw.Draw(image)
        for shape, track in zip(clip.shapes, tracks, strict=True):
            if track.radius[frame] > 0:
                x, y, radius = (float(values[frame]) * side for values in (track.x, track.y, track.radius))
                _draw(canvas, shape, x, y, radius)
        yield image.reduce(OVERSAMPLING)


def _draw(canvas: ImageDraw.ImageDraw, shape: Shape, x: float, y: float, r: float) -> None:
    color = COLORS[shape.color]
    polygons = {
        "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
        "diamond": ((0, -1), (0.8, 0), (0, 1), (-0.8, 0)),
        "triangle": ((0, -1), (0.95, 0.8), (-0.95, 0.8)),
    }
    if shape.shape == "circle":
        canvas.ellipse((x - r, y - r, x + r, y + r), fill=color)
    elif shape.shape == "ring":
        canvas.ellipse((x - r, y - r, x + r, y + r), outline=color, width=max(1, round(0.42 * r)))
    elif shape.shape == "cross":
        arm = 0.33 * r
        canvas.rectangle((x - arm, y - r, x + arm, y + r), fill=color)
        canvas.rectangle((x - r, y - arm, x + r, y + arm), fill=color)
    else:
        canvas.polygon([(x + px * r, y + py * r) for px, py in polygons[shape.shape]], fill=color)


def _encode(clip: PlannedClip, config: ShapesConfig) -> bytes:
    """An mp4 file. One thread, since the frames that threads share out differ from run to run."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=config.fps, options=repeatable(X264))
        stream.width = stream.height = config.size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for index, image in enumerate(draw_frames(clip, config)):
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = index, Fraction(1, config.fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def _render_clip(job: tuple[PlannedClip, Path, ShapesConfig]) -> None:
    clip, root, config = job
    _write(root / "videos" / f"{clip.video_id}.mp4", _encode(clip, config))


def _render(clips: Sequence[PlannedClip], root: Path, config: ShapesConfig) -> None:
    jobs = [(clip, root, config) for clip in clips]
    processes = min(_cpu_count(), math.ceil(len(jobs) / CLIPS_PER_PROCESS))
    columns = TextColumn("rendering shapes"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with progress_bar(*columns) as progress:
        task = progress.add_task("", total=len(jobs))
        if processes <= 1:
            for job in jobs:
                _render_clip(job)
                progress.advance(task)
            return
        # "spawn": a fork of a process that runs threads, as torch does, can stop dead.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            for _ in pool.map(_render_clip, jobs, chunksize=16):
                progress.advance(task)


def _cpu_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _annotation_files(clips: Sequence[PlannedClip], config: ShapesConfig) -> dict[str, str]:
    """Text of each annotation file by its name."""
    videos = [
        {
            "video_id": clip.video_id,
            "category": 0,
            "id": clip.number,
            "split": clip.split,
            "url": "",
            "start time": 0.0,
            "end time": config.seconds,
        }
        for clip in clips
    ]
    pairs = [(clip, caption) for clip in clips for caption in clip.captions]
    sentences = [
        {"caption": caption, "video_id": clip.video_id, "sen_id": number}
        for number, (clip, caption) in enumerate(pairs)
    ]
    info = {"description": "moving coloured shapes, rendered", "version": str(VERSION)}
    train = [[clip.video_id] for clip in clips if clip.split == "train"]
    test = [
        [f"ret{number}", f"msr{clip.number}", clip.video_id, clip.captions[0]]
        for number, clip in enumerate(clip for clip in clips if clip.split == "test")
    ]
    return {
        "MSRVTT_data.json": _json({"info": info, "videos": videos, "sentences": sentences}),
        "MSRVTT_train.9k.csv": _csv([["video_id"], *train]),
        "MSRVTT_JSFUSION_test.csv": _csv([["key", "vid_key", "video_id", "sentence"], *test]),
    }


def _is_complete(root: Path, manifest: dict[str, object]) -> bool:
    """Whether the set is there. False where it may be rendered.

    Raises: UserError where something else is there, which nothing here may overwrite.
    """
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is a file, expected a folder for the shapes set; pass another folder")
    for name in (MANIFEST, PARTIAL):
        if not (root / name).is_file():
            continue
        found = read_json(root / name, f"delete {root} and render it again")
        if found != manifest:
            raise UserError(
                f"{root} holds a shapes set of other settings ({_difference(found, manifest)}); "
                f"delete it, or choose another folder for this one"
            )
        return name == MANIFEST
    if root.is_dir() and (entries := sorted(path.name for path in root.iterdir() if path.name[0] != ".")):
        layout = f", or {flag('data.layout')} msrvtt for such data" if takes("data.layout") else ""
        raise UserError(
            f"{root} is not empty and holds no shapes set: {', '.join(entries[:5])}"
            f"{' and more' if len(entries) > 5 else ''}; choose another folder{layout}"
        )
    return False


def _difference(found: object, wanted: dict[str, object]) -> str:
    if not isinstance(found, dict) or not isinstance(found.get("config"), dict):
        return "its manifest is not one of ours"
    there = {"version": found.get("version"), **found["config"]}
    here = {"version": wanted["version"], **dict(wanted["config"])}  # type: ignore[call-overload]
    return ", ".join(f"{key} {there.get(key)}, not {value}" for key, value in here.items() if there.get(key) != value)


def _check(config: ShapesConfig) -> None:
    for name in ("train_clips", "val_clips", "test_clips", "captions_per_clip", "fps"):
        if getattr(config, name) < 1:
            raise _bad(config, name, "1 or more")
    if config.size < 16 or config.size % 2:
        raise _bad(config, "size", "an even number from 16 on, as h264 needs it")
    if not (math.isfinite(config.seconds) and round(config.seconds * config.fps) >= 2):
        raise _bad(config, "seconds", f"at least {2 / config.fps:g}, two frames at fps {config.fps}")
    if config.seed < 0:
        raise _bad(config, "seed", "0 or more")
    total, most = config.train_clips + config.val_clips + config.test_clips, 50_000
    if total > most:
        raise _bad(config, "train_clips", f"at most {most} clips in all, which show different things, and not {total}")


def _bad(config: ShapesConfig, name: str, expected: str) -> UserError:
    setting = f"data.shapes.{name}"
    value = getattr(config, name)
    return UserError(f"{setting} is {value}, expected {expected}; pass {flag(setting)} with such a value")


def _json(value: object) -> str:
    return json.dumps(value, indent=1) + "\n"


def _csv(rows: Sequence[Sequence[str]]) -> str:
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()


def _write(path: Path, content: str | bytes) -> None:
    """Whole or not at all, and never mixed with what another process writes there."""
    with whole(path, shared=True) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
