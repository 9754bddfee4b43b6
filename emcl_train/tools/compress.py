"""Small copies of the videos of a folder: few frames a second, a short side of few pixels, no sound.

Each copy is written beside its place and renamed when it is whole, so that a run that was killed goes on where it was,
and ends with the same bytes: each file is encoded by one thread, and none says when it was made.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from rich.console import Console
from rich.markup import escape

from emcl_train.config import MAX_PIXELS
from emcl_train.data.annotation_files import VIDEO_SUFFIXES, visible_files
from emcl_train.data.clips import Clip
from emcl_train.data.container import VideoError, decoder_version, open_video, rewound, whole_timeline
from emcl_train.data.converting import converted
from emcl_train.data.decoding import frames_shown_at
from emcl_train.data.h264 import repeatable
from emcl_train.data.loader import in_parallel
from emcl_train.data.opening import fingerprint, not_settled
from emcl_train.data.passing import OF_THE_MACHINE, PassingError, passing
from emcl_train.data.picture import Picture, picture_of
from emcl_train.data.provenance import COMPRESSED
from emcl_train.data.timeline import Timeline
from emcl_train.errors import UserError
from emcl_train.processes import agreed, gather_lists, of_first, own_share, rank_and_world, require_seen
from emcl_train.runs.files import (
    raise_if_disk_full,
    read_json,
    require_folder,
    whole,
    write_atomic,
    write_json_atomic,
)
from emcl_train.runs.lock import writing
from emcl_train.runs.machine import cores_of_each_process
from emcl_train.terminal import console_of, warn
from emcl_train.tools.ledger import COPIES, Ledger

ANNOTATIONS = {".json", ".jsonl", ".csv", ".txt", ".pkl"}
MOST_COPIES = 100_000
"""Frames of a copy that are never too many."""
MOST_OF_A_FRAME = 1000
"""Beside these, how often a copy may have each frame of its video on the average."""
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
    max_pixels: int = MAX_PIXELS,
    console: Console | None = None,
) -> int:
    """Copy every video below `folder` to the same place below `out`, as H.264 in MP4.

    Of several processes each copies a part of the videos, about as many bytes as each other one, into `out` itself,
    which all of them have to see; the first one does all else.

    A copy that is there is kept until its video has changed and a copy of the new one is whole. The settings stand in
    `compressed.json`, with the videos that cannot be decoded and what each copy was made of. Annotation files in
    `folder` itself are copied as they are, so that `out` is a data set too.

    Args:
        folder: the originals; nothing in it is changed.
        out: the copies.
        fps: frames a second.
        short_side: height or width in pixels, whichever is smaller.
        workers: videos at a time, in each process; 0: one for each core.
        max_pixels: of a frame; a video with larger ones cannot be decoded.
        console: where to print.

    Returns:
        1 if a video cannot be decoded or read, else 0; 0 in processes that help the first one.

    Raises:
        UserError: copies could take the place of originals, `out` holds copies of other settings, a copy cannot be
            written, or a process does not see `out` as the first one does.
    """
    console = console_of(console)
    settings = Settings(fps, short_side)
    if rank_and_world()[0] > 0:
        _help(folder, out, settings, workers, max_pixels)
        return 0

    _check(folder, out, settings)
    jobs, twins = _jobs(folder, out)

    with writing(out, deep=True):
        _check_manifest(out, settings)
        # Of earlier versions, which wrote a copy under this name first.
        for job in jobs:
            partial = job.target.with_name(f".{job.target.name}.partial")
            if partial.is_file() and not partial.is_symlink():
                partial.unlink()
        ledger = Ledger.open(out)
        write_json_atomic(out / COMPRESSED, _manifest(settings, {}, ledger.entries()))
        pending = [job for job in jobs if not _is_done(job, ledger)]
        console.print(
            f"{len(jobs)} videos in {escape(str(folder))}, {len(jobs) - len(pending)} of them done before; "
            f"{fps:g} frames/s, short side {short_side}",
            soft_wrap=True,
        )
        _copy_annotations(folder, out)
        outcome = _run_together(pending, folder, out, settings, ledger, workers, max_pixels)
        broken = outcome.broken
        names = [ledger.name_of(job.target) for job in jobs]
        write_json_atomic(out / COMPRESSED, _manifest(settings, broken, ledger.entries(names)))
        ledger.close()

    for path in twins:
        warn(f"left out, since a file beside it has the same name: {escape(str(path))}", console)
    for name, reason in broken.items():
        kept = "; the copy of what it was before stays" if name in outcome.kept else ""
        warn(f"[red]{escape(name)} cannot be decoded: {escape(reason)}{kept}[/red]", console)
    for name, trouble in outcome.troubles.items():
        kept = ", the copy that was there stays" if name in outcome.kept else ""
        warn(f"[yellow]{escape(name)} cannot be read now: {escape(trouble)}{kept}[/yellow]", console)
    lacking = len(broken) + len(outcome.troubles)
    console.print(
        f"{len(jobs) - lacking} of {len(jobs)} videos are in {escape(str(out))}"
        + (f"; {len(broken)} cannot be decoded" if broken else "")
        + (f"; {len(outcome.troubles)} could not be read: {OF_THE_MACHINE}. Run again" if outcome.troubles else ""),
        soft_wrap=True,
    )
    return 1 if lacking else 0


def plan_of_copies(folder: Path, out: Path, fps: float, short_side: int, console: Console | None = None) -> int:
    """Say what `compress` would do; nothing is decoded or written.

    Args:
        folder: as of `compress`.
        out: likewise.
        fps: likewise.
        short_side: likewise.
        console: where to print.

    Returns:
        0.

    Raises:
        UserError: as of `compress`, before it decodes.
    """
    console = console_of(console)
    settings = Settings(fps, short_side)
    _check(folder, out, settings)
    if out.is_dir():
        _check_manifest(out, settings)
    jobs, twins = _jobs(folder, out)
    there = sum(job.target.is_file() for job in jobs)
    taken = sum(job.source.stat().st_size for job in jobs)
    for line in (
        f"videos: {len(jobs)} in {folder}, {taken / 1e6:.1f} MB; {there} have a copy",
        f"folder: {out}, at {fps:g} frames/s, short side {short_side}",
        *(f"left out, since a file beside it has the same name: {path}" for path in twins),
        "nothing was written, and no video was decoded",
    ):
        console.print(escape(line), soft_wrap=True, highlight=False)
    return 0


def compress_video(
    source: Path,
    target: Path,
    settings: Settings,
    *,
    max_pixels: int = MAX_PIXELS,
    before_it_appears: Callable[[Path, list[int]], None] = lambda copy, video: None,
) -> None:
    """Write the frames on display at each 1/fps second, from the first frame on; nothing is there before it is whole.

    Args:
        source: the video.
        target: its copy.
        settings: what it is made like.
        max_pixels: of a frame of the video.
        before_it_appears: called with the whole copy, which has another name yet, and the video's fingerprint.

    Raises:
        VideoError: the video cannot be decoded to its end.
        PassingError: it cannot be read now, or is another one than at the beginning.
        UserError: the copy cannot be written.
    """
    with whole(target) as partial:
        video = fingerprint(source)
        with open_video(source, max_pixels=max_pixels) as (container, stream):
            # As many as there are steps of 1/fps from the first frame to the last.
            timeline = whole_timeline(container, stream, source)
            targets = _targets(timeline, source, settings)
            with rewound(container, stream, timeline, source, max_pixels) as film:
                frames = frames_shown_at(*film, source, timeline, targets)
                pictures = (picture_of(frame, stream.sample_aspect_ratio) for frame in frames)
                _encode(partial, target, _of_video(source, pictures), settings, max_pixels)

        # What was read is what was there before, or the copy is of neither.
        if video is None or fingerprint(source) != video:
            raise PassingError(source, "it changed while it was compressed")

        # By its time a copy is known to be of the video as it is now.
        with _of_copy(target):
            os.utime(partial, ns=(video[1], video[1]))
            before_it_appears(partial, video)


def _targets(timeline: Timeline, source: Path, settings: Settings) -> list[float]:
    """The times of a copy's frames."""
    first = timeline.times[0]
    number = math.floor((timeline.times[-1] - first) * settings.fps + 1e-6) + 1
    if number > MOST_COPIES + MOST_OF_A_FRAME * len(timeline.times):
        raise VideoError(
            source, f"it shows {len(timeline.times)} frames in {timeline.seconds:.0f} s, of which a copy has {number}"
        )
    return [first + i / settings.fps for i in range(number)]


@contextmanager
def _of_copy(target: Path) -> Iterator[None]:
    """Blame what goes wrong inside the block on the copy that is written.

    Raises:
        UserError: it cannot be written.
    """
    try:
        yield
    except (OSError, MemoryError, av.error.FFmpegError) as error:
        raise_if_disk_full(error, target)
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(
            f"{target} cannot be written: {reason}; whatever was there before stays as it was. Run the command again, "
            "or choose another folder"
        ) from error


def _of_video(source: Path, pictures: Iterator[Picture]) -> Iterator[Picture]:
    """Pictures of a video, whose own errors are told from those of the copy that they are written to."""
    try:
        yield from pictures
    except (OSError, MemoryError, av.error.FFmpegError) as error:
        raise passing(error, source) or VideoError(source, f"{error.args[1]} ({type(error).__name__})") from error


def _encode(path: Path, target: Path, pictures: Iterator[Picture], settings: Settings, max_pixels: int) -> None:
    """Encode pictures into a file that has another name yet; what cannot be written is said of its own name."""
    rate = Fraction(settings.fps).limit_denominator(1000)
    options = {"fflags": "+bitexact", "movflags": "+faststart"}  # bitexact: no version and no date in the file
    with _of_copy(target), av.open(f"file:{path}", "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", rate=rate, options=repeatable(ENCODING))
        stream.codec_context.thread_count = 1
        stream.pix_fmt = "yuv420p"
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        stream.codec_context.time_base = 1 / rate
        for i, picture in enumerate(pictures):
            if i == 0:
                stream.width, stream.height = _size(picture.width, picture.height, settings.short_side)
                if stream.width * stream.height > max_pixels:
                    raise VideoError(target, f"a copy of it would have {stream.width} × {stream.height} pixels")
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture.pixels), format="rgb24")
            frame = converted(frame, stream.width, stream.height, format="yuv420p", interpolation="BICUBIC")
            frame.pts = i
            frame.time_base = 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """The shape of the original with this short side, in even numbers, as H.264 needs them."""
    scale = short_side / min(width, height)
    long_side = max(short_side, 2 * round(max(width, height) * scale / 2))
    return (short_side, long_side) if width < height else (long_side, short_side)


@dataclass(frozen=True)
class _Outcome:
    """What came of the videos that had no copy, by their places in the folder."""

    broken: dict[str, str]
    """Why they cannot be decoded."""
    troubles: dict[str, str]
    """Why they could not be read."""
    kept: set[str]
    """Of both, those with a copy from before."""

    def __add__(self, other: "_Outcome") -> "_Outcome":
        broken = dict(sorted((self.broken | other.broken).items()))
        return _Outcome(broken, dict(sorted((self.troubles | other.troubles).items())), self.kept | other.kept)


def _help(folder: Path, out: Path, settings: Settings, workers: int, max_pixels: int) -> None:
    """What a process does that is not the first one: its part of the videos that the first one has found."""
    _run_together([], folder, out, settings, Ledger(out, {}, rank_and_world()[0]), workers, max_pixels)


def _run_together(
    jobs: list[Job], folder: Path, out: Path, settings: Settings, ledger: "Ledger", workers: int, max_pixels: int
) -> _Outcome:
    """`_run` by several processes, each with a part of the videos; the first one, whose list it is, is told of all."""
    if rank_and_world()[1] == 1:
        return _run(jobs, folder, settings, ledger, workers, max_pixels)

    sized = of_first(lambda: [(job, (fingerprint(job.source) or [0])[0]) for job in jobs])
    require_seen(out)
    own = [job for job, _ in own_share(sized, lambda of_one: of_one[1])]
    outcome = agreed(lambda: _run(own, folder, settings, ledger, workers, max_pixels))

    merged = _Outcome({}, {}, set())
    for of_process, entries in gather_lists([(outcome, ledger.entries())]) or []:
        merged = merged + of_process
        ledger.take_up(entries)
    return merged


def _run(
    jobs: list[Job], folder: Path, settings: Settings, ledger: "Ledger", workers: int, max_pixels: int
) -> _Outcome:
    """Compress videos. A copy that is there goes only where a newer one takes its place."""
    by_source = {job.source: job for job in jobs}
    read = {}

    def work(clip: Clip) -> VideoError | PassingError | None:
        job = by_source[clip.path]
        read[job.source] = fingerprint(job.source)
        try:
            compress_video(
                job.source,
                job.target,
                settings,
                max_pixels=max_pixels,
                before_it_appears=lambda copy, video: ledger.add(job.target, copy, video),
            )
        except VideoError as error:
            return error
        except PassingError as error:
            if error.everywhere:
                raise
            return error
        return None

    clips = [Clip(job.source.stem, job.source) for job in jobs]
    done = in_parallel(work, clips, workers or cores_of_each_process(), "Compress videos")
    failed = {clip.path: error for clip, error in done if error is not None}

    # A file that is still being written is not broken.
    changing = not_settled({path: read[path] for path, error in failed.items() if isinstance(error, VideoError)})
    broken = {}
    troubles = {}
    for path, error in sorted(failed.items()):
        name = str(path.relative_to(folder))
        if isinstance(error, PassingError):
            troubles[name] = error.reason
        elif path in changing:
            troubles[name] = "it is still being written, or comes and goes"
        else:
            broken[name] = error.reason
    kept = {str(path.relative_to(folder)) for path in failed if by_source[path].target.is_file()}
    return _Outcome(broken, troubles, kept)


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


def _is_done(job: Job, ledger: "Ledger") -> bool:
    # A copy carries the time of its video: a video that was replaced since is copied again.
    video = fingerprint(job.source)
    if video is None or not job.target.is_file():
        return False
    copied = job.target.stat()

    # Some file systems keep whole seconds, or every other one.
    coarse = copied.st_mtime_ns % 1_000_000_000 == 0 and abs(copied.st_mtime_ns - video[1]) < 2_000_000_000
    same_time = copied.st_mtime_ns == video[1] or coarse
    return same_time and ledger.agrees(job.target, copied.st_size, video[0])


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


def _manifest(
    settings: Settings, broken: dict[str, str], copies: dict[str, list[list[int]]] | None = None
) -> dict[str, object]:
    encoder = {"encoding": ENCODING, "encoder": decoder_version()}
    return {**asdict(settings), **encoder, "broken": broken, COPIES: copies or {}}


def _check_manifest(out: Path, settings: Settings) -> None:
    """Copies of other settings, or files of somebody else, are not to be mixed with those of this run."""
    path = out / COMPRESSED
    if not path.is_file():
        if any(file.suffix.lower() in VIDEO_SUFFIXES for file in visible_files(out)):
            raise UserError(
                f"{out} holds videos and no {COMPRESSED}: they are no copies of this program; pass an empty folder"
            )
        return

    asked = {name: value for name, value in _manifest(settings, {}).items() if name not in ("broken", COPIES)}
    before = read_json(path, "pass an empty folder", keys=asked.keys())
    different = [name for name, value in asked.items() if before[name] != value]
    if different:
        said = "; ".join(f"{name} was {before[name]}, now {asked[name]}" for name in different)
        raise UserError(
            f"{out} holds copies of other settings: {said}; go on with the same ones, or pass another folder"
        )
