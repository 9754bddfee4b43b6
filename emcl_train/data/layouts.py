"""Layouts by their names: the modules of `emcl_train.data.datasets`, and what they say of themselves."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

from emcl_train.config import LAYOUTS, DataConfig
from emcl_train.errors import UserError


def module_of(layout: str) -> ModuleType:
    """The module that reads a layout.

    Raises:
        UserError: there is no such layout; the message has the known names.
    """
    if layout not in LAYOUTS:
        raise UserError(f"there is no layout {layout!r}; known layouts: {', '.join(LAYOUTS)}")
    return import_module(f"emcl_train.data.datasets.{layout}")


def video_folder(config: DataConfig) -> Path:
    """The folder that `data.videos` means. Without it: `videos` in the root; if rows name paths, the root itself."""
    if config.videos is not None:
        return config.root / config.videos
    return config.root if getattr(module_of(config.layout), "NAMES_PATHS", False) else config.root / "videos"
