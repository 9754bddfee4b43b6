"""Files that annotations name outside the folders of their data set: by absolute paths, by "..", or through links."""

import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from emcl_train.config import DataConfig
from emcl_train.data.clips import Annotations, Clip
from emcl_train.data.layouts import video_folder
from emcl_train.errors import UserError
from emcl_train.flags import flag

SHOWN = 5
"""Files that an error names."""


def clips_of(annotations: Annotations) -> Iterable[Clip]:
    """Every clip that annotations name, those in no list too."""
    splits = (annotations.train, annotations.val, annotations.test)
    return chain(*(split.clips for split in splits), annotations.unlisted)


def outside(clips: Iterable[Clip], config: DataConfig) -> list[Path]:
    """The files of clips that lie neither in `data.root` nor in `data.videos`, wherever their names lead, once each.

    Args:
        clips: the clips; whether their files are there does not matter.
        config: names the folders. They may be links themselves: the user named them.
    """
    return outside_paths((clip.path for clip in clips), config)


def outside_paths(paths: Iterable[Path], config: DataConfig) -> list[Path]:
    """The same of files of any kind that a data set has."""
    homes = {os.path.realpath(folder) for folder in (config.root, video_folder(config))}
    every = dict.fromkeys(paths)
    return [path for path in every if not any(_is_in(os.path.realpath(path), home) for home in homes)]


def _is_in(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder


def require_inside(clips: Iterable[Clip], config: DataConfig) -> None:
    """Raise a UserError that names the first files of clips which lie elsewhere."""
    require_paths_inside((clip.path for clip in clips), config)


def require_paths_inside(paths: Iterable[Path], config: DataConfig) -> None:
    """The same of files of any kind that a data set has."""
    found = outside_paths(paths, config)
    if found:
        named = ", ".join(map(str, found[:SHOWN])) + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")
        raise UserError(
            f"the annotations in {config.root} name {len(found)} files outside of it: {named}; copy them into it, or "
            f"pass {flag('data.outside_root')} allow if they are meant"
        )
