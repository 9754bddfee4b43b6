"""Examine a data set before a run does: look into every clip, count what the protocol counts, name what is wrong."""

import os
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from emcl_train.config import MAX_PIXELS, DataConfig
from emcl_train.data.annotation_files import VIDEO_SUFFIXES, clips_in, count
from emcl_train.data.annotations import Annotations, Clip, Split, read_annotations
from emcl_train.data.cache import only_remembered, place_of
from emcl_train.data.cache_use import use_cache
from emcl_train.data.container import VideoError, VideoInfo, check_packets, probe
from emcl_train.data.layouts import video_folder
from emcl_train.data.loader import in_parallel
from emcl_train.data.opening import fingerprint, not_settled
from emcl_train.data.outside import outside
from emcl_train.data.passing import OF_THE_MACHINE, passing
from emcl_train.data.timeline import MissingFile, Timeline
from emcl_train.data.video import decode_clip
from emcl_train.errors import UserError
from emcl_train.processes import agreed, gather_lists, of_first, rank_and_world
from emcl_train.recipes import OF_CLIP, RECIPES, load_recipe
from emcl_train.runs.files import require_folder, write_json_atomic
from emcl_train.runs.lock import making
from emcl_train.runs.machine import cores_of_each_process
from emcl_train.terminal import console_of, is_watched, warn

LONGEST_TABLE = 200
"""Clips up to which the table shows all of them, and above which only the damaged ones."""

WIDEST = 4096
"""Columns of a line in a log file or a pipe."""

LONG_STILL = 60.0
"""Seconds from which on a frame that is shown for more than half of a film is remarked on."""

IMAGE_SIZE = 32
"""Frames are decoded whole and thrown away: small ones do."""


@dataclass(frozen=True)
class Diagnosis:
    """What one video file is, and why it cannot be decoded, if so."""

    video_id: str
    path: Path
    splits: tuple[str, ...]
    """Where annotations name it; empty where they do not."""
    info: VideoInfo | None
    reason: str | None
    missing: bool
    """There is no such file."""
    remark: str | None = None
    """What else a reader of results should know of it."""
    trouble: str | None = None
    """Why it could not be examined, for which it is not to blame; nothing is known of it then."""


@dataclass(frozen=True)
class _Look:
    """What is found of a file."""

    file: list[int] | None
    """Its fingerprint before it was read; None if there is none."""
    info: VideoInfo | None
    reason: str | None = None
    trouble: str | None = None
    remark: str | None = None
    missing: bool = False

    def of(self, clip: Clip, splits: tuple[str, ...]) -> Diagnosis:
        missing = self.missing and self.reason is not None
        return Diagnosis(clip.video_id, clip.path, splits, self.info, self.reason, missing, self.remark, self.trouble)


@dataclass(frozen=True)
class Summary:
    """One split in numbers."""

    clips: int
    captions: int
    repeated: int
    """Captions that another clip or caption of the split has word for word."""
    missing: int
    damaged: int
    seconds: tuple[float, float, float] | None
    """Shortest, median and longest clip; None where no header gives a duration."""


@dataclass
class Report:
    """What is known of a data set."""

    root: Path
    deep: bool = False
    clips: list[Diagnosis] = field(default_factory=list)
    splits: dict[str, Summary] = field(default_factory=dict)
    counts: list[str] = field(default_factory=list)
    """A sentence for each count that the protocol gives."""
    problems: list[str] = field(default_factory=list)
    """Sentences about what keeps a run from starting, beside the clips."""
    notes: list[str] = field(default_factory=list)
    """Sentences about what a reader of results should know."""

    @property
    def damaged(self) -> list[Diagnosis]:
        return [clip for clip in self.clips if clip.reason is not None]

    @property
    def unread(self) -> list[Diagnosis]:
        return [clip for clip in self.clips if clip.trouble is not None]

    @property
    def exit_code(self) -> int:
        return 1 if self.damaged or self.unread or self.problems else 0

    def to_json(self) -> dict[str, Any]:
        return {
            "root": str(self.root),
            "deep": self.deep,
            "splits": {name: asdict(summary) for name, summary in self.splits.items()},
            "clips": [asdict(clip) for clip in self.clips],
            "missing": [clip.video_id for clip in self.clips if clip.missing],
            "damaged": {clip.video_id: clip.reason for clip in self.damaged},
            "unread": {clip.video_id: clip.trouble for clip in self.unread},
            "counts": self.counts,
            "problems": self.problems,
            "notes": self.notes,
        }


def run_doctor(
    name: str,
    root: Path,
    *,
    videos: Path | None = None,
    deep: bool = False,
    max_pixels: int = MAX_PIXELS,
    json_path: Path | None = None,
    console: Console | None = None,
) -> int:
    """Examine the data set in `root`, print what was found, and write it to a JSON file.

    Of several processes each looks into a part of the clips, and the first one prints and writes.

    Args:
        name: a layout or a recipe.
        root: the folder of the data set.
        videos: as `data.videos`.
        deep: decode what a run would sample of every clip, instead of headers, packets and the first frame.
        max_pixels: as `data.max_pixels`.
        json_path: in place of `doctor.json` where what is known of the data set is remembered.
        console: where to print.

    Returns:
        1 if a clip is missing or damaged or could not be examined, or the annotations cannot be used, else 0; 0 in
        processes that help the first one.

    Raises:
        UserError: there is no such folder.
    """
    require_folder(root, "the annotation files and videos/")
    config = replace(config_of(name, root), max_pixels=max_pixels)
    report = examine(config if videos is None else replace(config, videos=videos), deep=deep)
    if report is None:
        return 0
    console = console_of(console)
    print_report(report, name, console)

    # A file that was not asked for is worth no error.
    with only_remembered("everything found") if json_path is None else making(json_path):
        path = json_path or place_of("doctor.json", config)
        write_json_atomic(path, report.to_json())
        use_cache(config)
        console.print(f"everything found: {escape(str(path))}", soft_wrap=True)
    return report.exit_code


def config_of(name: str, root: Path) -> DataConfig:
    """What a recipe, or the recipe of a layout, reads."""
    if name not in RECIPES:
        # A layout has the settings of its first recipe.
        name = next((recipe for recipe in OF_CLIP if load_recipe(recipe).data.layout == name), name)
    data = load_recipe(name).data if name in RECIPES else DataConfig(layout=name)
    return replace(data, root=root)


def examine(config: DataConfig, *, deep: bool = False) -> Report | None:
    """Look into every clip that annotations name or that lies in the folder, and count captions.

    Returns:
        What is known; None in processes that help the first one.
    """
    report, annotations, places, clips = of_first(lambda: _listed(config, deep))
    looks = _looks(clips, config, deep)
    if looks is None:
        return None

    found = [look.of(clip, tuple(places.get(clip, ()))) for clip, look in looks.items()]
    report.clips = sorted(found, key=lambda d: _natural(d.path.name))

    if annotations:
        for split in (annotations.train, annotations.val, annotations.test):
            report.splits[split.name] = _summary(split, report.clips)
    return report


def _listed(config: DataConfig, deep: bool) -> tuple[Report, Annotations | None, dict[Clip, list[str]], list[Clip]]:
    """What annotations say, with the splits that name each clip, and all clips that are to be looked into."""
    report = Report(config.root, deep)

    annotations = None
    try:
        # Not `load_annotations`: a set of shapes that is not rendered yet is to be reported, not rendered.
        annotations = read_annotations(config)
    except UserError as error:
        report.problems.append(f"The annotations cannot be used: {error}.")

    # Every clip that is named, with the splits that name it, and then every other file of the folder.
    places: dict[Clip, list[str]] = {}
    if annotations:
        for name, group in _groups(annotations):
            for clip in group:
                places.setdefault(clip, []).append(name)
        report.counts = list(annotations.counts)
        report.notes = list(annotations.notes)
    named = {os.path.realpath(clip.path) for clip in places}  # annotations may name them by other paths
    folder = video_folder(config)
    clips = [*places, *(clip for clip in _clips_in_folder(folder) if os.path.realpath(clip.path) not in named)]
    if not clips:
        report.problems.append(
            f"There are no clips: {folder} holds no {', '.join(VIDEO_SUFFIXES)} file and no folder of .jpg files."
        )

    if annotations and (elsewhere := outside(places, config)):
        report.notes.append(
            f"Files that the annotations name outside {config.root}, by absolute paths, by .. or through links: "
            f"{len(elsewhere)}, such as {elsewhere[0]}. `emcl-train train … --data.outside-root refuse` stops at them."
        )
    return report, annotations, places, clips


def _looks(clips: list[Clip], config: DataConfig, deep: bool) -> dict[Clip, _Look] | None:
    """What is found of each clip. Of several processes each looks into a part of the files; the first one has all."""
    rank, world = rank_and_world()
    files = {path: number for number, path in enumerate(dict.fromkeys(clip.path for clip in clips))}
    own = [clip for clip in clips if files[clip.path] % world == rank]
    found = agreed(lambda: list(_looks_into(own, config, deep).items()))

    gathered = found if world == 1 else gather_lists(found)
    if gathered is None:
        return None
    looks = dict(gathered)
    return {clip: looks[clip] for clip in clips}  # in their order, not as they got ready


def _looks_into(clips: list[Clip], config: DataConfig, deep: bool) -> dict[Clip, _Look]:
    small = replace(config, image_size=IMAGE_SIZE)

    @cache  # several clips may be spans of one file
    def look_into(path: Path) -> _Look:
        """What a file is, and what is wrong with it."""
        before = fingerprint(path)
        info = None
        try:
            info = probe(path, config.max_pixels)
            timeline = check_packets(path, config.max_pixels)
        except VideoError as error:
            return _Look(before, info, error.reason, missing=isinstance(error, MissingFile))
        except Exception as error:
            trouble = _trouble(error, path)
            if trouble is not None:
                return _Look(before, info, trouble=trouble)
            return _Look(before, info, _stumbled(error))

        # The packets tell how long it is, whatever the header says.
        return _Look(before, replace(info, duration=timeline.seconds), remark=_remark(timeline))

    def look_deeper(clip: Clip) -> _Look:
        """The same of a clip, which may be a span that its file does not have."""
        look = look_into(clip.path)
        if look.reason is not None or look.trouble is not None:
            return look

        info = look.info
        if clip.start and info and info.duration is not None and clip.start >= info.duration:
            return replace(look, reason=f"it ends at {info.duration:.2f} s, before the span from {clip.start:g} s on")
        if not deep:
            return look
        try:
            decode_clip(clip, small, whole=True)
        except VideoError as error:
            return replace(look, reason=error.reason)
        except Exception as error:
            trouble = _trouble(error, clip.path)
            return replace(look, trouble=trouble) if trouble else replace(look, reason=_stumbled(error))
        return look

    workers = cores_of_each_process()
    looks = dict(in_parallel(look_deeper, clips, workers, "Decode clips" if deep else "Examine clips"))

    # A file that is still being written is not damaged.
    condemned = {clip.path: look.file for clip, look in looks.items() if look.reason is not None}
    changing = not_settled(condemned)
    for clip in clips:
        if clip.path in changing and looks[clip].reason is not None:
            looks[clip] = replace(looks[clip], reason=None, trouble="it is still being written, or comes and goes")
    return looks


def print_report(report: Report, name: str, console: Console) -> None:
    """A table of the splits, one of the clips, then everything else in sentences."""
    damaged = report.damaged

    # Tables; of a large set, only the clips that are damaged.
    if report.splits:
        print_table(_split_table(report.splits), console)
    shown = report.clips if len(report.clips) <= LONGEST_TABLE else [*damaged, *report.unread]
    if shown:
        print_table(_clip_table(shown), console)
    if len(shown) < len(report.clips):
        kinds = Counter(f"{d.info.codec} in {d.info.container}" for d in report.clips if d.info)
        listed = ", ".join(f"{count} × {kind}" for kind, count in kinds.most_common())
        text = f"The table shows damaged clips only. All {len(report.clips)}: {escape(listed)}."
        console.print(text, soft_wrap=True)

    # Sentences.
    for sentence in dict.fromkeys([*report.counts, *report.notes]):
        console.print(escape(sentence), soft_wrap=True)
    for clip in report.clips:
        if clip.remark is not None:
            console.print(escape(f"{clip.video_id}: {clip.remark} [{clip.path}]"), soft_wrap=True)
    for problem in report.problems:
        warn(f"[red]{escape(problem)}[/red]", console)
    for clip in damaged:
        where = ", ".join(clip.splits) or "not annotated"
        line = f"{clip.video_id} ({where}) cannot be decoded: {clip.reason} [{clip.path}]"
        warn(f"[red]{escape(line)}[/red]", console)

    for clip in report.unread:
        where = ", ".join(clip.splits) or "not annotated"
        line = f"{clip.video_id} ({where}) could not be examined: {clip.trouble} [{clip.path}]"
        warn(f"[yellow]{escape(line)}[/yellow]", console)

    # The verdict.
    total = len(report.clips)
    unread = len(report.unread)
    if unread:
        text = f"{count(unread, 'clip')} could not be examined: {OF_THE_MACHINE}. When that is over, examine again."
        warn(text, console)
    does = "decode" if report.deep else "are whole"
    if damaged:
        missing = sum(clip.missing for clip in damaged)
        warn(
            f"{total - len(damaged) - unread} of {total} clips {does}; "
            f"{missing} {'is' if missing == 1 else 'are'} missing, "
            f"{len(damaged) - missing} damaged. Replace the files, or leave them out: "
            "`emcl-train train … --data.on-bad-video skip`.",
            console,
        )
    elif total and not unread:
        console.print(f"All {total} clips of {escape(str(report.root))} ({name}) {does}.", soft_wrap=True)
    if not report.deep:
        text = "Headers, packets and first frames were examined; --deep decodes what a run samples."
        console.print(text, soft_wrap=True)


def _trouble(error: Exception, path: Path) -> str | None:
    """The passing trouble that an error stands for; what every other file would meet ends the examination."""
    trouble = passing(error, path)
    if trouble is not None and trouble.everywhere:
        raise trouble from None
    return None if trouble is None else trouble.reason


def _stumbled(error: Exception) -> str:
    """Of one file that the decoder's library stumbles over, which keeps no other from its report."""
    return f"it stops the decoder's library: {type(error).__name__}: {error}"


def _remark(timeline: Timeline) -> str | None:
    """What the time stamps of a film have that a reader would not expect."""
    if timeline.parts > 1:
        anew = count(timeline.parts - 1, "time")
        return (
            f"its time stamps begin anew or jump {anew}, as of parts that were joined; they are sampled one after the "
            f"other, {timeline.seconds:.1f} s in all"
        )
    begin, seconds = timeline.longest_gap
    if seconds >= LONG_STILL and seconds > timeline.seconds / 2:
        return f"one frame is shown for {seconds:.1f} s, from {begin:.1f} s on; it is sampled as it is watched"
    return None


def _split_table(splits: dict[str, Summary]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("split", no_wrap=True)
    for name in ("clips", "captions", "repeated", "missing", "damaged", "shortest", "median", "longest"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, split in splits.items():
        numbers = (split.clips, split.captions, split.repeated, split.missing, split.damaged)
        seconds = [f"{value:.1f} s" for value in split.seconds] if split.seconds else ["?"] * 3
        table.add_row(name, *map(str, numbers), *seconds)
    return table


def print_table(table: Table, console: Console) -> None:
    """Print a table: on a terminal in its width, elsewhere each row in one line, whatever its length."""
    if is_watched(console):
        console.print(table)
        return
    before = console.width
    console.width = WIDEST
    try:
        console.print(table)
    finally:
        console.width = before


def _clip_table(clips: list[Diagnosis]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("clip", overflow="fold")
    for name in ("split", "codec"):
        table.add_column(name)
    for name in ("size", "frames/s", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("whole", no_wrap=True)
    for clip in clips:
        cells = ["", "", "", ""]
        if info := clip.info:
            rate, seconds = (f"{x:.2f}" if x is not None else "?" for x in (info.fps, info.duration))
            cells = [f"{info.codec} ({_kind(clip.path, info)})", f"{info.width}×{info.height}", rate, seconds]
        verdict = "[red]no[/red]" if clip.reason is not None else "yes" if clip.trouble is None else "?"
        table.add_row(escape(clip.video_id), ", ".join(clip.splits) or "none", *cells, verdict)
    return table


def _kind(path: Path, info: VideoInfo) -> str:
    """What a clip's file is called by."""
    return "frames" if info.container == "folder" else path.suffix[1:]


def _groups(annotations: Annotations) -> Iterable[tuple[str, Sequence[Clip]]]:
    """Clips that annotations name, by where they do."""
    for split in (annotations.train, annotations.val, annotations.test):
        yield split.name, split.clips
    yield "in no list", annotations.unlisted


def _clips_in_folder(folder: Path) -> list[Clip]:
    if not folder.is_dir():
        return []
    files, folders = clips_in(folder)
    return [*(Clip(path.stem, path) for path in files), *(Clip(path.name, path) for path in folders)]


def _summary(split: Split, clips: list[Diagnosis]) -> Summary:
    own = [clip for clip in clips if split.name in clip.splits]
    seconds = [clip.info.duration for clip in own if clip.info and clip.info.duration is not None]
    missing = sum(clip.missing for clip in own)
    return Summary(
        clips=len(split.clips),
        captions=len(split.captions),
        repeated=len(split.captions) - len(set(split.captions)),
        missing=missing,
        damaged=sum(clip.reason is not None for clip in own) - missing,
        seconds=(min(seconds), statistics.median(seconds), max(seconds)) if seconds else None,
    )


def _natural(name: str) -> tuple[str, int, str]:
    """video2 before video10."""
    stem = Path(name).stem
    letters = stem.rstrip("0123456789")
    digits = stem[len(letters) :]
    return letters, int(digits) if digits else -1, name
