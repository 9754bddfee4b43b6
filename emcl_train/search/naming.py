"""The video that a list means: by its path, or by as much of the path's end as tells it apart."""

import os
from collections.abc import Iterable
from pathlib import Path, PurePath

from emcl_train.data.annotation_files import without_video_suffix
from emcl_train.data.names import one_form
from emcl_train.errors import UserError


class VideosByName:
    """Finds indexed videos by what people call them.

    Args:
        videos: path and content of each indexed file; copies have the same content, and are one video.
    """

    def __init__(self, videos: Iterable[tuple[Path, str]]) -> None:
        self._content: dict[str, str] = {}
        self._by_end: dict[str, list[tuple[tuple[str, ...], str]]] = {}
        for path, content in videos:
            whole = one_form(os.path.normpath(path))
            self._content[whole] = content
            parts = PurePath(whole).parts
            for name in {parts[-1], without_video_suffix(parts[-1])}:
                self._by_end.setdefault(name, []).append((parts, content))

    @property
    def number_of_videos(self) -> int:
        """Different ones."""
        return len(set(self._content.values()))

    def find(self, name: str, place: str, folder: Path) -> str | None:
        """The content of the video that a name means.

        Args:
            name: a path from anywhere, from the folder of the list, or its last parts; with or without the suffix.
            place: of the name, for errors.
            folder: of the list.

        Returns:
            None: the library does not have it.

        Raises:
            UserError: it may mean several videos.
        """
        name = one_form(os.path.normpath(name))
        for whole in (os.path.abspath(name), os.path.abspath(folder / name), os.path.realpath(folder / name)):
            if one_form(whole) in self._content:
                return self._content[one_form(whole)]

        *above, last = PurePath(name).parts or ("",)
        found = {
            content: parts
            for parts, content in self._by_end.get(last, [])
            if list(parts[:-1][len(parts) - 1 - len(above) :]) == above
        }
        if len(found) > 1:
            several = " or ".join(str(PurePath(*parts)) for parts in list(found.values())[:2])
            raise UserError(f"{place}: {name} may be {several}; write more of its path")
        return next(iter(found), None)
