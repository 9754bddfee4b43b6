"""One's own videos, whatever file lists them: rows that name a file, a span of it and captions become splits."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emcl_train.config import LAYOUTS, DataConfig
from emcl_train.data.clips import Clip, Split
from emcl_train.data.layouts import module_of
from emcl_train.data.named_videos import NamedVideos
from emcl_train.data.split_rules import Captions, SplitFiles, captions_of, queries, split_of
from emcl_train.errors import UserError
from emcl_train.reading.shown import shortened

LONGEST = 1e9
"""Seconds of a film, of which no float is too small to tell frames apart."""


@dataclass(frozen=True)
class Row:
    """What one row says of a clip."""

    place: str
    """File and line, for errors."""
    video: str
    """Path of the file."""
    captions: list[str]
    start: float | None = None
    end: float | None = None
    video_id: str | None = None
    """None: the clip is called by its file and span."""

    def clip(self, path: Path) -> Clip:
        """The clip, whose file is at `path`.

        Raises:
            UserError: it ends before it begins.
        """
        if self.end is not None and self.end <= (self.start or 0.0):
            raise UserError(
                f"{self.place}: end is {self.end:g} and start {self.start or 0:g}; expected an end after the start"
            )
        start = self.start or None  # from the first frame, however a row says it
        span = "" if start is None and self.end is None else f"#{_shown(start or 0.0)}-{_shown(self.end)}"
        return Clip(self.video_id or f"{self.video}{span}", path, start, self.end)


def _shown(seconds: float | None) -> str:
    """A time as an id has it: 3 for 3.0, and every digit of others."""
    if seconds is None:
        return ""
    return str(int(seconds)) if seconds.is_integer() else repr(seconds)


@dataclass(frozen=True)
class Part:
    """The rows of one split, in order, and the file that has them."""

    path: Path
    rows: Sequence[Row]


def seconds(place: str, name: str, value: object) -> float | None:
    """A time in a film; None where there is none.

    Raises:
        UserError: it is something else.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= LONGEST:
        raise UserError(f'{place}: "{name}" is {shortened(value)}, expected seconds of 0 or more; correct it')
    return float(value)


class OwnVideos:
    """Clips of rows. Rows about the same span of the same file, or of the same id, are one clip."""

    def __init__(self, config: DataConfig) -> None:
        """`config` says where the files lie. Raises a UserError where their folder is missing."""
        self._videos = NamedVideos(config)
        self._clips: dict[str, Clip] = {}

    def captions(self, part: Part, notes: list[str]) -> Captions:
        """The captions of each clip, in the order of the rows; `notes` gets what a reader should know.

        Raises:
            UserError: a row is about another clip than its id says, or several files may be meant.
        """
        found = self.take(part)
        return captions_of(list(found), found, part.path, part.path, notes)

    def take(self, part: Part) -> Captions:
        """The clips of rows with what is said of each, which may be nothing; the errors are those of `captions`."""
        found: Captions = {}
        for row in part.rows:
            clip = row.clip(self._videos.find(row.video, row.place))
            known = self._clips.setdefault(clip.video_id, clip)
            if known != clip:
                raise UserError(
                    f"{row.place}: the id {clip.video_id} stands for another clip already, {known.path}; give each "
                    f"clip its own id"
                )
            found.setdefault(clip.video_id, []).extend(row.captions)
        return found

    def clip(self, video_id: str) -> Clip:
        """The clip of an id that a row has."""
        return self._clips[video_id]

    def notes(self) -> list[str]:
        """What a reader should know of the files that were found."""
        return self._videos.notes()


def splits_of(
    config: DataConfig, train: Part, val: Part | None, test: Part, *, notes: Sequence[str], hold_out_from: str
) -> SplitFiles:
    """Splits of rows.

    Args:
        config: says where the files lie.
        train: the rows to train on; there may be none, in a data set that is only encoded or evaluated.
        val: the rows to select the epoch on; None: some are held out of the training rows.
        test: the rows to report on.
        notes: what a reader of the results should know of the files.
        hold_out_from: what else to do where there are too few clips to hold one out.

    Raises:
        UserError: as `OwnVideos.captions` says.
    """
    videos = OwnVideos(config)
    said = list(notes)
    of_train = videos.captions(train, said)
    of_test = queries(videos.captions(test, said), config)
    of_val = {} if val is None else queries(videos.captions(val, said), config)
    return SplitFiles(
        of_train,
        of_val,
        of_test,
        videos.clip,
        train.path,
        notes=[*said, *videos.notes()],
        hold_out_from=hold_out_from,
    )


def tables() -> list[str]:
    """Suffixes of the files whose rows name videos and captions, each for itself: the layouts that can read one."""
    return [f".{layout}" for layout in LAYOUTS if hasattr(module_of(layout), "read_rows")]


def split_of_table(path: Path, config: DataConfig) -> tuple[Split, list[str]]:
    """All rows of one file, whatever split they are of, and what a reader should know of them.

    Args:
        path: of the file, whose suffix is one of `tables`.
        config: says where the videos lie.

    Raises:
        UserError: the file or a row cannot be read, or is not what it should be.
    """
    part, notes = _whole_table(path)
    videos = OwnVideos(config)
    captions = videos.captions(part, notes)
    return split_of("all", captions, videos.clip), [*notes, *videos.notes()]


def clips_of_table(path: Path, config: DataConfig) -> tuple[list[Clip], list[str]]:
    """The clips of all rows of one file, captioned or not; arguments and errors are those of `split_of_table`."""
    part, notes = _whole_table(path)
    videos = OwnVideos(config)
    clips = [videos.clip(video_id) for video_id in videos.take(part)]
    return clips, [*notes, *videos.notes()]


def _whole_table(path: Path) -> tuple[Part, list[str]]:
    notes: list[str] = []
    return Part(path, module_of(path.suffix.lower()[1:]).read_rows(path, notes)), notes
