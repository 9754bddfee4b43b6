"""Features and captions of MMT: one HDF5 file a clip, in folders of the first three letters of its id.

The file has `features.<expert>` `[steps, D]`, `features_t.<expert>` `[steps, 2]`, `raw_captions.<i>` `[words]` and
`raw_captions_t.<i>` `[words, 2]`. An expert is missing if its data set is absent, has no row, or begins with NaN.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from emcl_train.data.annotation_files import few
from emcl_train.data.experts.features import (
    Examined,
    ExpertError,
    ExpertReader,
    ExpertSteps,
    ShapeFault,
    checked_steps,
    most_common_width,
    no_features,
)
from emcl_train.data.experts.mmt_captions import KeptCaptions, TimedCaption
from emcl_train.data.names import can_be_a_file
from emcl_train.data.opening import fingerprint
from emcl_train.data.passing import NOT_THERE, trouble_with
from emcl_train.errors import UserError
from emcl_train.experts.mmt import EXPERTS, TIMES_OF_EXPERTS, mmt_sizes
from emcl_train.flags import flag
from emcl_train.reading.hdf5 import Hdf5Error, Hdf5Group, open_hdf5

FEATURES = "vid_feat_files/mult_h5"
LOOKED_AT = 50
"""Clips whose features tell how wide an expert is."""
MOST_CAPTIONS = 1000


class MMTFeatures(ExpertReader):
    """The experts and captions of a data set; see `ExpertReader`. Files are opened one at a time and closed again."""

    def __init__(
        self,
        root: Path,
        dataset: str,
        widths: Mapping[str, int] | None = None,
        kept: KeptCaptions | None = None,
    ) -> None:
        """Look for the folder of features.

        Args:
            root: the folder of the data set, with `vid_feat_files`.
            dataset: "msrvtt", "activitynet" or "lsmdc".
            widths: which experts there are, and how wide; None: those of the data set, as wide as most clips have them.
            kept: captions that an earlier run has read.

        Raises:
            UserError: there is no such folder.
        """
        self.folder = root / FEATURES
        if not self.folder.is_dir():
            raise UserError(
                f"there is no folder {self.folder}; unpack the archive of MMT's features, and pass "
                f"{flag('data.root')} with the folder that holds {FEATURES.partition('/')[0]}"
            )
        self.experts: tuple[str, ...] = tuple(sorted(mmt_sizes(dataset).names if widths is None else widths))
        self._asked = None if widths is None else dict(widths)
        self.kept = kept

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"kept": None}

    @cached_property
    def widths(self) -> Mapping[str, int]:
        if self._asked is not None:
            return self._asked
        found: dict[str, list[int]] = {expert: [] for expert in self.experts}
        for number, video_id in enumerate(self.ids()):
            if number >= LOOKED_AT and all(found.values()):
                break
            with suppress_unreadable(), self._opened(video_id) as file:
                for expert in self.experts:
                    name = f"features.{expert}"
                    shape = file.shape(name) if name in file else ()
                    if len(shape) == 2 and shape[0]:
                        found[expert].append(shape[1])

        widths = {expert: most_common_width(of_expert) for expert, of_expert in found.items()}
        if nowhere := [expert for expert, width in widths.items() if width is None]:
            raise UserError(
                f"{self.folder}: no clip has anything of {few(nowhere)}; unpack the archive again, or leave the expert "
                f"out"
            )
        return {expert: width for expert, width in widths.items() if width is not None}

    def path(self, video_id: str) -> Path:
        """The file of a clip, which may not be there."""
        letters = (video_id + "___")[:3]
        return self.folder / letters[0] / letters[1] / letters[2] / f"{video_id}.h5"

    def __contains__(self, video_id: str) -> bool:
        return _is_name(video_id) and self.path(video_id).is_file()

    def files_of(self, video_id: str) -> tuple[Path, ...]:
        return (self.path(video_id),)

    def ids(self) -> Iterator[str]:
        for path in sorted(self.folder.glob("?/?/?/*.h5")):
            yield path.stem

    def examine(self, video_id: str) -> Examined:
        widths = self.widths
        found = Examined()
        with self._opened(video_id) as file:
            for expert in self.experts:
                try:
                    found.steps[expert] = self._steps(file, expert, video_id, widths[expert])
                except ExpertError as error:
                    found.faults[expert] = error
        return found

    def read(self, video_id: str) -> dict[str, ExpertSteps | None]:
        return self.examine(video_id).whole()

    def _steps(self, file: Hdf5Group, expert: str, video_id: str, width: int) -> ExpertSteps | None:
        name = f"features.{expert}"
        if name not in file:
            return None
        try:
            values = file.array(name)
            if not values.size or (values.dtype.kind == "f" and np.isnan(values.flat[0])):
                return None
            times = None
            if expert in TIMES_OF_EXPERTS and f"features_t.{expert}" in file:
                times = file.array(f"features_t.{expert}")
        except Hdf5Error as error:
            raise ShapeFault(f"{self.path(video_id)}: {error}; unpack the archive again") from error
        known = EXPERTS.get(expert)
        if times is None and known is not None and known.seconds is not None:
            times = counted_times(len(values), known.seconds)
        return checked_steps(values, times, expert=expert, video_id=video_id, place=self.path(video_id), width=width)

    def captions(self, video_id: str) -> list[TimedCaption]:
        """The captions of a clip, in the order of their numbers.

        Raises:
            UserError: there is nothing of this clip, or its file cannot be read.
        """
        path = self.path(video_id)
        if self.kept is not None and (known := self.kept.read(video_id, path)) is not None:
            return known

        before = fingerprint(path)
        found = []
        with self._opened(video_id) as file:
            for number in range(MOST_CAPTIONS):
                name = f"raw_captions.{number}"
                if name not in file:
                    break
                words = file.words(name)
                times = np.zeros((len(words), 2), np.float32)
                if (timed := f"raw_captions_t.{number}") in file:
                    read = file.array(timed)
                    if read.ndim != 2 or read.shape[1] != 2 or len(read) < len(words):
                        raise Hdf5Error(f"{timed} has the shape {list(read.shape)}, expected [{len(words)}, 2]")
                    times = np.asarray(read[: len(words)], dtype=np.float32)
                found.append(TimedCaption(tuple(words), times))
        if self.kept is not None:
            self.kept.add(video_id, before, found)
        return found

    def caption_count(self, video_id: str) -> int:
        """How many captions a clip has, without reading them; errors as of `captions`."""
        with self._opened(video_id) as file:
            return next((n for n in range(MOST_CAPTIONS) if f"raw_captions.{n}" not in file), MOST_CAPTIONS)

    @contextmanager
    def _opened(self, video_id: str) -> Iterator[Hdf5Group]:
        path = self.path(video_id)
        if not _is_name(video_id):
            raise UserError(f"{video_id!r} is no id of a clip: no file can have this name; correct the list")
        try:
            with open_hdf5(path) as file:
                yield file
        except Hdf5Error as error:
            raise UserError(f"{path}: {error}; unpack the archive again, or take {video_id} off the lists") from error
        except OSError as error:
            if error.errno in NOT_THERE:
                raise no_features(video_id, self.folder) from error
            raise trouble_with(error, path) from error


@contextmanager
def suppress_unreadable() -> Iterator[None]:
    """Go on where a clip cannot be read, which is said where it is read for its own sake."""
    try:
        yield
    except UserError as error:
        if not isinstance(error.__cause__, Hdf5Error):
            raise


def counted_times(steps: int, seconds: float) -> Float32[np.ndarray, "steps 2"]:
    """Times of steps that follow each other from 0 on; that the first begins at 0 is inferred."""
    edges = seconds * np.arange(steps + 1)
    return np.stack([edges[:-1], edges[1:]], axis=1).astype(np.float32)


def _is_name(video_id: str) -> bool:
    return bool(video_id) and "/" not in video_id and video_id[0] != "." and can_be_a_file(video_id)
