"""Train and evaluate video-text retrieval with EMCL on real video files. The command line is `emcl-train`.

`load` gives the towers of a run or of a CLIP, to encode with; `Library` searches what `emcl-train index` has made.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emcl_train.encoder import Encoder, load
    from emcl_train.search.library import Library

__all__ = ["Encoder", "Library", "load"]

_PLACES = {"Encoder": "emcl_train.encoder", "load": "emcl_train.encoder", "Library": "emcl_train.search.library"}
"""Modules of what is imported when it is asked for: torch and transformers take seconds, and commands do without."""


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)
