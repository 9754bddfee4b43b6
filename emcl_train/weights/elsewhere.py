"""Checkpoints of models that are not built here, told by the names of their weights.

Such a file also holds the two towers and often a temporal transformer. Loading these alone would give a model that
nobody trained, so it is refused, with the name of what it is.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from emcl_train.errors import UserError
from emcl_train.kinds import HEADS, TEMPORALS

SHOWN = 4
"""Weights of a model that an error names."""

OTHERS = {
    r"similarity_dense\.\d+\..*": "DRL's interaction mlp, layers over a caption's and a clip's features together",
    r"cross\..*|similarity_dense\..*": (
        "a cross encoder over a caption and a clip together, such as CLIP4Clip's tightTransf and DRL's interaction xti"
    ),
    r"(text|video)_weight_fc\.(weight|bias)": "DRL's token weights of one layer (wti_arch 1); those of two are built",
    r"(text|video)_weight_fc\.[4-9]\..*": "DRL's token weights of three layers (wti_arch 3); those of two are built",
    r"clip\.visual\.conv2\..*": "CLIP4Clip's patches over several frames (linear_patch 3d)",
}
"""What weights are of, by a pattern of their names; the first that fits counts."""

NEVER_TRAINED = "cross., similarity_dense."
"""Beginnings of names that some programs save without having used them."""


LEFT_OUT_BEFORE = re.compile(r"cross\..*|similarity_dense\..*")
"""What earlier versions left out of a checkpoint without a word."""


def as_runs_began(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint as earlier versions took it, for runs that they began and that go on."""
    return {name: value for name, value in state.items() if not LEFT_OUT_BEFORE.fullmatch(name)}


def require_built_here(names: Iterable[str], path: Path) -> None:
    """Raise a UserError where a checkpoint's similarity, or its tower, is not one that is built here.

    Args:
        names: of all its weights.
        path: named in the error.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        what = next((what for pattern, what in OTHERS.items() if re.fullmatch(pattern, name)), None)
        if what is not None:
            found.setdefault(what, []).append(name)
    if not found:
        return

    parts = []
    for what, weights in found.items():
        more = f" and {len(weights) - SHOWN} more" if len(weights) > SHOWN else ""
        parts.append(f"{', '.join(weights[:SHOWN])}{more}: {what}")
    raise UserError(
        f"model.init_from is {path}, a checkpoint of a model that is not built here. It has {'; '.join(parts)}. "
        f"Without these it would be another model. Heads that are built: {_heads()}. Evaluate the file by the "
        f"code that wrote it; or, if you know that its model was trained without them "
        f"({NEVER_TRAINED} are saved unused by some programs), save its other weights alone and pass those"
    )


def _heads() -> str:
    """Those that there are, and what tables call them."""
    temporals = ", ".join(temporal.label for temporal in TEMPORALS.values())
    return ", ".join(f"{name} ({head.label.format(temporal=temporals)})" for name, head in HEADS.items())
