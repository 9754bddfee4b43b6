"""The bundled set of moving shapes: rendered at first use, in the files of MSR-VTT."""

from emcl_train.config import DataConfig
from emcl_train.data.datasets import msrvtt
from emcl_train.data.shapes import is_rendered, render_shapes
from emcl_train.data.split_rules import SplitFiles


def make(config: DataConfig) -> None:
    """Render the clips and their annotations if they are not there.

    Raises:
        UserError: the folder holds something else, or other shapes.
    """
    render_shapes(config.root, config.shapes)


def is_made(config: DataConfig) -> bool:
    """Whether the whole set is there.

    Raises:
        UserError: the folder holds something else, or other shapes.
    """
    return is_rendered(config.root, config.shapes)


def read(config: DataConfig) -> SplitFiles:
    """As MSR-VTT; no paper counts these clips, so there is no protocol to compare with."""
    files = msrvtt.read(config)
    files.protocol = None
    return files
