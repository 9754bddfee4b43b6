"""Video files that rows of annotations name by paths, found where the originals or their compressed copies lie."""

import os
from pathlib import Path

from emcl_train.config import DataConfig
from emcl_train.data.annotation_files import VIDEO_SUFFIXES, count, video_files, without_video_suffix
from emcl_train.data.layouts import video_folder
from emcl_train.data.names import Files, Names, is_there, one_form
from emcl_train.data.split_rules import require_one_place
from emcl_train.errors import UserError
from emcl_train.flags import flag


class NamedVideos:
    """Finds the file that a path means.

    A path begins at `data.videos`, or at the root. If there is no such file, one of another suffix is taken, as copies
    are mp4 files whatever their originals were; and then one that lies elsewhere in that folder (without `data.videos`,
    in `videos` of the root), if one of both paths is the end of the other: copies of a folder inside the data set have
    shorter paths, and clips that were sorted into folders have longer ones.
    """

    def __init__(self, config: DataConfig) -> None:
        """Raises a UserError where the folder is missing."""
        self._start = video_folder(config)
        if not self._start.is_dir():
            raise UserError(
                f"there is no folder {self._start}; pass {flag('data.videos')} with the one that the paths in "
                f"the lists begin at, or leave it out where that is {config.root}"
            )
        self._searched = self._start if config.videos is not None else config.root / "videos"
        self._files = Files()
        self._elsewhere: dict[str, list[Path]] | None = None
        self._names = Names(())
        self._taken: dict[Path, str] = {}
        self._moved: set[str] = set()

    def find(self, video: str, place: str) -> Path:
        """The file; where there is none, where it should be.

        Args:
            video: the path that a row gives.
            place: of the row, for errors.

        Raises:
            UserError: several files may be meant, or the file that is found may be that of another row's path.
        """
        path = self._files.find(self._start / video)
        found = path if is_there(path) else self._beside(path) or self._in_folders(video, place)
        if found is None:
            return path

        # One copy is of one original. Where two paths lead to it, one of them is of a video that has none.
        asked = one_form(os.path.normpath(self._start / video))
        other = self._taken.setdefault(found, asked)
        if other != asked:
            raise UserError(
                f"{place}: {found} may be {video}, and it may be {other}, which another row names; give each "
                f"video a file of its own, or correct the path"
            )
        if found != path:
            self._moved.add(asked)
        return found

    def notes(self) -> list[str]:
        """A sentence about files that were not found as they are named."""
        if not self._moved:
            return []
        return [f"{count(len(self._moved), 'video')} found under another suffix or in another folder than named."]

    def _beside(self, path: Path) -> Path | None:
        """A file in the same folder, of the same name with another suffix."""
        stem = without_video_suffix(path.name)
        others = (self._files.find(path.with_name(f"{stem}{suffix}")) for suffix in VIDEO_SUFFIXES if stem)
        return next((other for other in others if is_there(other)), None)

    def _in_folders(self, video: str, place: str) -> Path | None:
        """A file elsewhere in the folder that is searched, whose path and the one that is asked for agree."""
        if self._elsewhere is None:
            self._elsewhere = video_files(self._searched) if self._searched.is_dir() else {}
            self._names = Names(self._elsewhere)
        asked = _parts(Path(os.path.normpath(video)))
        name = self._names.find(without_video_suffix(Path(video).name))
        if name is None:
            return None

        # The longest agreement wins: films/a/1.avi is a/1.mp4, and not 1.mp4.
        agreeing: dict[int, list[Path]] = {}
        for file in self._elsewhere[name]:
            there = _parts(file.relative_to(self._searched))
            length = min(len(asked), len(there))
            if asked[-length:] == there[-length:]:
                agreeing.setdefault(length, []).append(file)
        if not agreeing:
            return None
        best = agreeing[max(agreeing)]
        require_one_place(f"{video} ({place})", best, self._searched)
        return best[0]


def _parts(path: Path) -> tuple[str, ...]:
    """The folders of a path and its name without the suffix, in one Unicode form."""
    parts = [one_form(part) for part in path.parts if part not in (path.anchor, "..")]
    return (*parts[:-1], without_video_suffix(parts[-1])) if parts else ()
