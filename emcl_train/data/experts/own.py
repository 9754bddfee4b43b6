"""Experts of one's own: `features/<expert>/<id>.npy` or `.safetensors`, a file a clip and expert.

An array is `[steps, width]`, or `[width]` for a single step, in any kind of numbers. Times are `[steps, 2]`: in a
safetensors file under the name `times` beside `features`, and for `<id>.npy` in `<id>.times.npy`.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from emcl_train.data.annotation_files import few, visible_files
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
from emcl_train.data.passing import trouble_with
from emcl_train.errors import UserError
from emcl_train.flags import flag
from emcl_train.reading.arrays import open_npy
from emcl_train.reading.plain_files import require_regular

FEATURES = "features"
SUFFIXES = (".npy", ".safetensors")
TIMES = ".times.npy"
LOOKED_AT = 50
"""Clips whose features tell how wide an expert is."""


class OwnFeatures(ExpertReader):
    """A folder of experts; see `ExpertReader`."""

    def __init__(self, root: Path, widths: Mapping[str, int] | None = None) -> None:
        """List the files of every expert.

        Args:
            root: the folder that holds `features`.
            widths: which experts there are, and how wide; None: every folder, as wide as most of its files.

        Raises:
            UserError: there is no such folder, it holds no features, or a clip has two files of one expert.
        """
        self.folder = root / FEATURES
        if not self.folder.is_dir():
            raise UserError(
                f"there is no folder {self.folder}; write {FEATURES}/<expert>/<id>.npy there, or pass "
                f"{flag('data.root')} with the folder that holds {FEATURES}"
            )
        there = sorted(path.name for path in self.folder.iterdir() if path.is_dir() and path.name[0] != ".")
        names = there if widths is None else sorted(widths)
        if unknown := [name for name in names if name not in there]:
            raise UserError(f"{self.folder} has no expert {few(unknown)}; it has {few(there) or 'none'}")
        self.files = {name: _files_of(self.folder / name) for name in names}
        if not any(self.files.values()):
            raise UserError(f"{self.folder} holds no features; write {FEATURES}/<expert>/<id>.npy or .safetensors")
        self.experts: tuple[str, ...] = tuple(names)
        self._asked = None if widths is None else dict(widths)

    @cached_property
    def widths(self) -> Mapping[str, int]:
        if self._asked is not None:
            return self._asked
        return {expert: self._width_of(expert) for expert in self.experts}

    def _width_of(self, expert: str) -> int:
        widths: list[int] = []
        for video_id, path in self.files[expert].items():
            if len(widths) == LOOKED_AT:
                break
            try:
                values, _ = _read(path, expert, video_id)
            except ExpertError:  # which is said where this clip is read
                continue
            if values.ndim and values.size:  # others are said where this clip is read
                widths.append(values.shape[-1])
        width = most_common_width(widths)
        if width is None:
            raise UserError(f"{self.folder / expert}: no clip has anything; write its features, or remove the folder")
        return width

    def __contains__(self, video_id: str) -> bool:
        return any(video_id in files for files in self.files.values())

    def files_of(self, video_id: str) -> tuple[Path, ...]:
        paths = [files[video_id] for files in self.files.values() if video_id in files]
        times = [_times_of(path) for path in paths if path.suffix == ".npy"]
        return (*paths, *(path for path in times if path.is_file()))

    def ids(self) -> Iterable[str]:
        return dict.fromkeys(video_id for files in self.files.values() for video_id in files)

    def examine(self, video_id: str) -> Examined:
        if video_id not in self:
            raise no_features(video_id, self.folder)
        found = Examined()
        for expert, files in self.files.items():
            if video_id not in files:
                found.steps[expert] = None
                continue
            path = files[video_id]
            try:
                values, times = _read(path, expert, video_id)
                found.steps[expert] = checked_steps(
                    values, times, expert=expert, video_id=video_id, place=path, width=self.widths[expert]
                )
            except ExpertError as error:
                found.faults[expert] = error
        return found

    def read(self, video_id: str) -> dict[str, ExpertSteps | None]:
        return self.examine(video_id).whole()


def _files_of(folder: Path) -> dict[str, Path]:
    """The file of each clip; ids of files in folders have these in front, as in film/clip."""
    files: dict[str, Path] = {}
    for path in sorted(visible_files(folder)):
        if path.suffix not in SUFFIXES or path.name.endswith(TIMES):
            continue
        video_id = path.relative_to(folder).as_posix().removesuffix(path.suffix)
        if video_id in files:
            raise UserError(f"{folder} has two files of {video_id}, {files[video_id].name} and {path.name}; keep one")
        files[video_id] = path
    return files


def _times_of(path: Path) -> Path:
    """Where the times of an array lie, if it has any."""
    return path.with_name(path.name.removesuffix(".npy") + TIMES)


def _read(path: Path, expert: str, video_id: str) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        beside = _times_of(path)
        return open_npy(path), open_npy(beside) if beside.is_file() else None
    except ValueError as error:
        raise ShapeFault(f"{path}: {expert} of {video_id} cannot be read: {error}; write it again") from error
    except OSError as error:
        raise trouble_with(error, path) from error


def _read_safetensors(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """`features`, or the only tensor there is, and `times`."""
    from safetensors import SafetensorError, safe_open

    require_regular(path)
    try:
        # Torch knows bfloat16, which NumPy does not.
        with safe_open(path, framework="pt") as file:
            names = sorted(set(file.keys()) - {"times"})
            if "features" not in names and len(names) != 1:
                raise ValueError(f"it has the tensors {few(names) or 'none'}, expected features")
            values = file.get_tensor("features" if "features" in names else names[0])
            times = file.get_tensor("times").float().numpy() if "times" in file.keys() else None  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    return values.float().numpy(), times
