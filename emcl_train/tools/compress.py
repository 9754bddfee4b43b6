"""Small copies of the videos of a folder: few frames a second, a short side of few pixels, no sound.

Each copy is written beside its place and renamed when it is whole, so that a run that was killed goes on where it was,
and ends with the same bytes: each file is encoded by one thread, and none says when it was made.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from rich.console import Console
from rich.markup import escape

from emcl_train.data.annotation_files import VIDEO_SUFFIXES, visible_files
from emcl_train.data.clips import Clip
from emcl_train.data.container import VideoError, decoder_version, open_video, rewound, whole_timeline
from emcl_train.data.decoding import frames_shown_at
from emcl_train.data.h264 import repeatable
from emcl_train.data.loader import in_parallel
from emcl_train.data.picture import Picture, picture_of
from emcl_train.data.provenance import COMPRESSED
from emcl_train.errors import UserError
from emcl_train.runs.files import read_json, require_folder, whole, write_atomic, write_json_atomic
from emcl_train.runs.lock import writing
from emcl_train.terminal import console_of

ANNOTATIONS = {".json", ".jsonl", ".csv", ".txt", ".pkl"}
ENCODING = {"crf": "20", "preset": "medium", "g": "12", "threads": "1"}


@dataclass(frozen=True)
class Settings:
    """What copies are made like."""

    fps: float
    short_side: int


@dataclass(frozen=True)
class Job:
    """One video and the place of its copy."""

    source: Path
    target: Path


def compress(
    folder: Path,
    out: Path,
    *,
    fps: float = 3.0,
    short_side: int = 224,
    workers: int = 0,
    console: Console | None = None,
) -> int:
    """Copy every video below `folder` to the same place below `out`, as H.264 in MP4.

    A copy that is there is kept unless its video has changed; the settings stand in `compressed.json`, with the videos
    that cannot be decoded. Annotation files in `folder` itself are copied as they are, so that `out` is a data set too.

    Args:
        folder: the originals; nothing in it is changed.
        out: the copies.
        fps: frames a second.
        short_side: height or width in pixels, whichever is smaller.
        workers: videos at a time; 0: one for each core.
        console: where to print.

    Returns:
        1 if a video cannot be decoded, else 0.

    Raises:
        UserError: copies could take the place of originals, or `out` holds copies of other settings.
    """
    console = console_of(console)
    settings = Settings(fps, short_side)
    _check(folder, out, settings)
    jobs, twins = _jobs(folder, out)

    with writing(out, deep=True):
        _check_manifest(out, settings)
        for partial in out.rglob(".*.partial"):
            partial.unlink()
        write_json_atomic(out / COMPRESSED, _manifest(settings, {}))
        pending = [job for job in jobs if not _is_done(job)]
        console.print(
            f"{len(jobs)} videos in {escape(str(folder))}, {len(jobs) - len(pending)} of them done before; "
            f"{fps:g} frames/s, short side {short_side}",
            soft_wrap=True,
        )
        _copy_annotations(folder, out)
        broken = _run(pending, folder, settings, workers)
        write_json_atomic(out / COMPRESSED, _manifest(settings, broken))

    for path in twins:
        console.print(f"left out, since a file beside it has the same name: {escape(str(path))}", soft_wrap=True)
    for name, reason in broken.items():
        console.print(f"[red]{escape(name)} cannot be decoded: {escape(reason)}[/red]", soft_wrap=True)
    console.print(
        f"{len(jobs) - len(broken)} of {len(jobs)} videos are in {escape(str(out))}"
        + (f"; {len(broken)} cannot be decoded and have no copy" if broken else ""),
        soft_wrap=True,
    )
    return 1 if broken else 0


def compress_video(source: Path, target: Path, settings: Settings) -> None:
    """Write the frames on display at each 1/fps second, from the first frame on; nothing is there before it is whole.

    Raises:
        VideoError: the video cannot be decoded to its end.
        UserError: the disk is full.
    """
    with whole(target) as partial:
        with open_video(source) as (container, stream):
            # As many as there are steps of 1/fps from the first frame to the last.
            timeline = whole_timeline(container, stream, source)
            first = timeline.times[0]
            last = timeline.times[-1]
            number = math.floor((last - first) * settings.fps + 1e-6) + 1
            targets = [first + i / settings.fps for i in range(number)]
            with rewound(container, stream, timeline, source) as film:
                frames = frames_shown_at(*film, source, timeline, targets)
                _encode(partial, (picture_of(frame, stream.sample_aspect_ratio) for frame in frames), settings)

        # By its time a copy is known to be of the video as it is now.
        modified = source.stat().st_mtime_ns
        os.utime(partial, ns=(modified, modified))


def _encode(path: Path, pictures: Iterator[Picture], settings: Settings) -> None:
    rate = Fraction(settings.fps).limit_denominator(1000)
    options = {"fflags": "+bitexact", "movflags": "+faststart"}  # bitexact: no version and no date in the file
    with av.open(str(path), "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", rate=rate, options=repeatable(ENCODING))
        stream.codec_context.thread_count = 1
        stream.pix_fmt = "yuv420p"
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        stream.codec_context.time_base = 1 / rate
        for i, picture in enumerate(pictures):
            if i == 0:
                stream.width, stream.height = _size(picture.width, picture.height, settings.short_side)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture.pixels), format="rgb24")
            frame = frame.reformat(stream.width, stream.height, format="yuv420p", interpolation="BICUBIC")
            frame.pts = i
            frame.time_base = 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """The shape of the original with this short side, in even numbers, as H.264 needs them."""
    scale = short_side / min(width, height)
    long_side = max(short_side, 2 * round(max(width, height) * scale / 2))
    return (short_side, long_side) if width < height else (long_side, short_side)


def _run(jobs: list[Job], folder: Path, settings: Settings, workers: int) -> dict[str, str]:
    """Why videos cannot be decoded, by their place in the folder."""
    by_source = {job.source: job for job in jobs}

    def work(clip: Clip) -> str | None:
        job = by_source[clip.path]
        try:
            compress_video(job.source, job.target, settings)
        except VideoError as error:
            job.target.unlink(missing_ok=True)  # of the video as it was before
            return error.reason
        return None

    clips = [Clip(job.source.stem, job.source) for job in jobs]
    done = in_parallel(work, clips, workers or os.cpu_count() or 1, "Compress videos")
    return dict(sorted((str(clip.path.relative_to(folder)), reason) for clip, reason in done if reason is not None))


def _jobs(folder: Path, out: Path) -> tuple[list[Job], list[Path]]:
    """What to copy where; and files whose copy would have the name of another one's."""
    videos = [path for path in visible_files(folder) if path.suffix.lower() in VIDEO_SUFFIXES]
    if not videos:
        raise UserError(f"{folder} holds no video: no {', '.join(VIDEO_SUFFIXES)} file in it or below")
    videos.sort(key=lambda path: (VIDEO_SUFFIXES.index(path.suffix.lower()), str(path)))
    jobs: dict[Path, Job] = {}
    twins = []
    for path in videos:
        target = (out / path.relative_to(folder)).with_suffix(".mp4")
        if not target.parent.resolve().is_relative_to(out.resolve()):
            raise UserError(f"{target.parent} leads out of {out}; remove that link, or pass another folder")
        if target in jobs:
            twins.append(path)
        else:
            jobs[target] = Job(path, target)
    return sorted(jobs.values(), key=lambda job: str(job.source)), twins


def _copy_annotations(folder: Path, out: Path) -> None:
    for path in sorted(folder.iterdir()):
        copied = path.suffix.lower() in ANNOTATIONS and path.name != COMPRESSED and path.name[0] != "."
        if copied and path.is_file():
            _copy(path, out / path.name)


def _copy(source: Path, target: Path) -> None:
    data = source.read_bytes()
    if not target.is_file() or target.read_bytes() != data:
        write_atomic(target, lambda file: file.write(data))


def _is_done(job: Job) -> bool:
    # A copy carries the time of its video: a video that was replaced since is copied again.
    if not job.target.is_file():
        return False
    copy, video = job.target.stat().st_mtime_ns, job.source.stat().st_mtime_ns
    # Some file systems keep whole seconds, or every other one.
    return copy == video or (copy % 1_000_000_000 == 0 and abs(copy - video) < 2_000_000_000)


def _check(folder: Path, out: Path, settings: Settings) -> None:
    require_folder(folder, "the videos")
    source, target = folder.resolve(), out.resolve()
    if source == target or source.is_relative_to(target) or target.is_relative_to(source):
        raise UserError(
            f"{out} is {folder}, inside it, or around it; pass a folder beside it, so that no original is lost"
        )
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, expected a folder for the copies; pass another one")
    if not 0 < settings.fps <= 1000:
        raise UserError(f"fps is {settings.fps:g}, expected more than 0 and at most 1000; pass --fps 3, for example")
    if settings.short_side < 2 or settings.short_side % 2:
        raise UserError(
            f"short_side is {settings.short_side}, expected an even number from 2 on; pass --short-side 224"
        )


def _manifest(settings: Settings, broken: dict[str, str]) -> dict[str, object]:
    return {**asdict(settings), "encoding": ENCODING, "encoder": decoder_version(), "broken": broken}


def _check_manifest(out: Path, settings: Settings) -> None:
    """Copies of other settings, or files of somebody else, are not to be mixed with those of this run."""
    path = out / COMPRESSED
    if not path.is_file():
        if any(file.suffix.lower() in VIDEO_SUFFIXES for file in visible_files(out)):
            raise UserError(
                f"{out} holds videos and no {COMPRESSED}: they are no copies of this program; pass an empty folder"
            )
        return

    asked = _manifest(settings, {})
    before = read_json(path, "pass an empty folder", keys=asked.keys())
    different = [name for name, value in asked.items() if name != "broken" and before[name] != value]
    if different:
        said = "; ".join(f"{name} was {before[name]}, now {asked[name]}" for name in different)
        raise UserError(
            f"{out} holds copies of other settings: {said}; go on with the same ones, or pass another folder"
        )
