"""Clips, captions, and the splits they are in: what every layout of files is read into."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Clip:
    """One video file, or a span of it. Whether it exists and decodes is the loader's question."""

    video_id: str
    path: Path
    start: float | None = None
    """Seconds from the file's first frame at which the clip begins; None: with the file."""
    end: float | None = None
    """Seconds from the file's first frame at which the clip ends, or with the file where that is shorter."""


@dataclass(frozen=True)
class Split:
    """Clips and captions; caption i belongs to clips[caption_clip[i]]."""

    name: str
    clips: tuple[Clip, ...]
    captions: tuple[str, ...]
    caption_clip: tuple[int, ...]

    def without(self, bad: set[str]) -> "Split":
        """The split without the clips of these ids and their captions."""
        kept = [index for index, clip in enumerate(self.clips) if clip.video_id not in bad]
        place = {old: new for new, old in enumerate(kept)}
        pairs = [(text, place[i]) for text, i in zip(self.captions, self.caption_clip, strict=True) if i in place]
        return Split(
            self.name,
            clips=tuple(self.clips[index] for index in kept),
            captions=tuple(text for text, _ in pairs),
            caption_clip=tuple(index for _, index in pairs),
        )

    def of_pairs(self, name: str, pairs: Sequence[tuple[int, int]]) -> "Split":
        """A split of these clips, each with this one of its captions."""
        return Split(
            name,
            clips=tuple(self.clips[clip] for clip, _ in pairs),
            captions=tuple(self.captions[caption] for _, caption in pairs),
            caption_clip=tuple(range(len(pairs))),
        )


@dataclass(frozen=True)
class Annotations:
    """The three splits of a data set, and what a reader of its results should know about them."""

    train: Split
    val: Split
    test: Split
    notes: tuple[str, ...] = ()
    """Sentences: counts that are not the protocol's, repetitions, overlaps, whether validation clips were held out."""
    counts: tuple[str, ...] = ()
    """One sentence for each count that the protocol gives, whether it is met or not."""
    unlisted: tuple[Clip, ...] = ()
    """Clips that have captions and a file, but that no list names: a run with other lists would use them."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Why each clip that cannot be decoded is in no split, by its id."""
