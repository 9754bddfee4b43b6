"""Examine a data set before a run does: decode every clip, count what the protocol counts, and name what is wrong."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from emcl_train.checkpoint import write_json_atomic
from emcl_train.config import DataConfig
from emcl_train.data.annotations import VIDEO_SUFFIXES, Annotations, Clip, Split, load_annotations
from emcl_train.data.loader import in_parallel, unlisted_clips
from emcl_train.data.video import VideoError, VideoInfo, decode_frames, probe
from emcl_train.errors import UserError

PROTOCOL = {"train": 9000, "test": 1000}
"""Clips in the lists of MSR-VTT 1k-A; those held out for validation count as training clips here."""

LONGEST_TABLE = 200
"""Clips up to which the table shows all of them, and above which only the damaged ones."""

NUM_FRAMES, IMAGE_SIZE = 12, 32


@dataclass(frozen=True)
class Diagnosis:
    """What one video file is, and why it cannot be decoded, if so."""

    video_id: str
    path: Path
    splits: tuple[str, ...]
    """Where annotations name it; empty where they do not."""
    info: VideoInfo | None
    reason: str | None


@dataclass
class Report:
    """What is known of a data set."""

    root: Path
    clips: list[Diagnosis] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Sentences about what keeps a run from starting, beside the clips."""
    notes: list[str] = field(default_factory=list)
    """Sentences about what a reader of results should know."""

    @property
    def damaged(self) -> list[Diagnosis]:
        return [clip for clip in self.clips if clip.reason is not None]

    @property
    def exit_code(self) -> int:
        return 1 if self.damaged or self.problems else 0

    def to_json(self) -> dict[str, Any]:
        return {
            "root": str(self.root),
            "clips": [asdict(clip) for clip in self.clips],
            "damaged": {clip.video_id: clip.reason for clip in self.damaged},
            "problems": self.problems,
            "notes": self.notes,
        }


def run_doctor(
    layout: Literal["msrvtt", "shapes"], root: Path, *, json_path: Path | None = None, console: Console | None = None
) -> int:
    """Examine the data set in `root` and print what was found, to a JSON file as well where one is named.

    Returns: 1 where a clip cannot be decoded or the annotations cannot be used, else 0.
    Raises: UserError where there is no such folder.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; pass the one that holds the annotation files and videos/")
    report = examine(root)
    print_report(report, layout, console or Console())
    if json_path is not None:
        write_json_atomic(json_path, report.to_json())
    return report.exit_code


def examine(root: Path) -> Report:
    """Decode every clip that annotations name or that lies in the folder, and count captions."""
    report = Report(root)
    annotations = None
    try:
        # "shapes" is the same layout; what is not rendered yet is to be reported, not rendered.
        annotations = load_annotations(DataConfig(layout="msrvtt", root=root))
    except UserError as error:
        report.problems.append(f"The annotations cannot be used: {error}.")
    places: dict[str, list[str]] = {}
    clips = {clip.path: clip for clip in _clips_in_folder(root / "videos")}
    if annotations:
        for name, group in _groups(annotations, root):
            clips |= {clip.path: clip for clip in group}
            for clip in group:
                places.setdefault(clip.video_id, []).append(name)
        report.notes += [*annotations.notes, *_counts(annotations)]
    if not clips:
        report.problems.append(f"There are no clips: {root / 'videos'} holds no {', '.join(VIDEO_SUFFIXES)} file.")

    def diagnose(clip: Clip) -> Diagnosis:
        info, reason = None, None
        try:
            info = probe(clip.path)
            decode_frames(clip.path, NUM_FRAMES, IMAGE_SIZE)
        except VideoError as error:
            reason = error.reason
        return Diagnosis(clip.video_id, clip.path, tuple(places.get(clip.video_id, ())), info, reason)

    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = in_parallel(diagnose, list(clips.values()), workers, "Decode clips")
    report.clips = sorted((diagnosis for _, diagnosis in found), key=lambda d: _natural(d.path.name))
    return report


def print_report(report: Report, layout: str, console: Console) -> None:
    """A table of the clips, then everything else in sentences."""
    damaged = report.damaged
    shown = report.clips if len(report.clips) <= LONGEST_TABLE else damaged
    if shown:
        console.print(_table(shown))
    if len(shown) < len(report.clips):
        kinds = Counter(f"{d.info.codec} in {d.info.container}" for d in report.clips if d.info)
        listed = ", ".join(f"{count} × {kind}" for kind, count in kinds.most_common())
        console.print(f"The table shows damaged clips only. All {len(report.clips)}: {escape(listed)}.")
    for note in report.notes:
        console.print(escape(note), soft_wrap=True)
    for problem in report.problems:
        console.print(f"[red]{escape(problem)}[/red]", soft_wrap=True)
    for clip in damaged:
        where = ", ".join(clip.splits) or "not annotated"
        line = f"{clip.video_id} ({where}) cannot be decoded: {clip.reason} [{clip.path}]"
        console.print(f"[red]{escape(line)}[/red]", soft_wrap=True)
    total = len(report.clips)
    if damaged:
        console.print(
            f"{total - len(damaged)} of {total} clips decode, {len(damaged)} {'do' if len(damaged) > 1 else 'does'} "
            f"not. Replace the files, or train with --data.on-bad-video skip.",
            soft_wrap=True,
        )
    else:
        console.print(f"All {total} clips of {escape(str(report.root))} ({layout}) decode.", soft_wrap=True)


def _table(clips: list[Diagnosis]) -> Table:
    table = Table()
    for name in ("clip", "split", "codec"):
        table.add_column(name)
    for name in ("size", "frames/s", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("decodes")
    for clip in clips:
        cells = ["", "", "", ""]
        if info := clip.info:
            rate, seconds = (f"{x:.2f}" if x is not None else "?" for x in (info.fps, info.duration))
            cells = [f"{info.codec} ({clip.path.suffix[1:]})", f"{info.width}×{info.height}", rate, seconds]
        verdict = "yes" if clip.reason is None else "[red]no[/red]"
        table.add_row(escape(clip.video_id), ", ".join(clip.splits) or "none", *cells, verdict)
    return table


def _groups(annotations: Annotations, root: Path) -> Iterable[tuple[str, Sequence[Clip]]]:
    """Clips that annotations name, by where they do."""
    for split in (annotations.train, annotations.val, annotations.test):
        yield split.name, split.clips
    yield "in no list", unlisted_clips(root, annotations)


def _clips_in_folder(folder: Path) -> list[Clip]:
    if not folder.is_dir():
        return []
    return [Clip(path.stem, path) for path in folder.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES]


def _counts(annotations: Annotations) -> list[str]:
    clips = {
        "train": len(annotations.train.clips) + len(annotations.val.clips),
        "test": len(annotations.test.clips),
    }
    lines = [
        f"{name}: {clips[name]} clips; MSR-VTT 1k-A has {expected}."
        for name, expected in PROTOCOL.items()
        if clips[name] != expected
    ] or ["The lists have as many clips as MSR-VTT 1k-A: 9000 and 1000."]
    for split in (annotations.train, annotations.val, annotations.test):
        lines.append(f"{split.name}: {len(split.clips)} clips with {len(split.captions)} captions{_flaws(split)}.")
    return lines


def _flaws(split: Split) -> str:
    empty = sum(not caption.strip() for caption in split.captions)
    repeated = len(split.captions) - len(set(split.captions))
    return (f", {empty} of them empty" if empty else "") + (f", {repeated} of them repeated" if repeated else "")


def _natural(name: str) -> tuple[str, int, str]:
    """video2 before video10."""
    stem = Path(name).stem
    letters = stem.rstrip("0123456789")
    digits = stem[len(letters) :]
    return letters, int(digits) if digits else -1, name
