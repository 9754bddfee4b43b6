"""Which clips there are, which captions belong to them, and which split they are in, for every layout of files."""

from collections.abc import Callable

from emcl_train.config import DataConfig
from emcl_train.data.datasets import activitynet, didemo, jsonl, lsmdc, msrvtt, msvd, vatex
from emcl_train.data.lists import Lists, assemble
from emcl_train.data.shapes import render_shapes
from emcl_train.data.splits import Annotations, Clip, Split

__all__ = ["Annotations", "Clip", "Split", "load_annotations"]

LAYOUTS: dict[str, Callable[[DataConfig], Lists]] = {
    "msrvtt": msrvtt.read,
    "shapes": msrvtt.read,
    "activitynet": activitynet.read,
    "lsmdc": lsmdc.read,
    "msvd": msvd.read,
    "didemo": didemo.read,
    "vatex": vatex.read,
    "jsonl": jsonl.read,
}


def load_annotations(config: DataConfig) -> Annotations:
    """Read the splits of a data set; layout "shapes" is rendered first where it is absent.

    Raises: UserError for a missing folder, file or column, a file that cannot be read, and captions that are missing.
    """
    if config.layout == "shapes":
        render_shapes(config.root, config.shapes)
    return assemble(LAYOUTS[config.layout](config), config)
