"""Which clips there are, which captions belong to them, and which split they are in, for every data set."""

from emcl_train.config import DataConfig
from emcl_train.data.clips import Annotations, Clip, Split
from emcl_train.data.layouts import module_of
from emcl_train.data.outside import clips_of, require_inside
from emcl_train.data.split_rules import assemble
from emcl_train.errors import UserError
from emcl_train.flags import flag

__all__ = ["Annotations", "Clip", "Split", "load_annotations", "read_annotations", "require_made"]


def load_annotations(config: DataConfig) -> Annotations:
    """Read the splits of a data set, which is made first if it is one that can be.

    Args:
        config: `layout` names the module of `emcl_train.data.datasets` that reads the files in `root`.

    Returns:
        The training, validation and test split, and what a reader of results should know of them.

    Raises:
        UserError: a folder, file, column or caption is missing, or a file cannot be read.
    """
    make = getattr(module_of(config.layout), "make", None)
    if make is not None:
        make(config)
    return read_annotations(config)


def read_annotations(config: DataConfig) -> Annotations:
    """`load_annotations` of what is there already: nothing is made."""
    annotations = assemble(module_of(config.layout).read(config), config)
    if config.outside_root == "refuse":
        require_inside(clips_of(annotations), config)
    return annotations


def require_made(config: DataConfig) -> None:
    """Refuse a set that would have to be made, for a configuration that the user did not write.

    Raises:
        UserError: it is one that can be made, and is not there.
    """
    made = getattr(module_of(config.layout), "is_made", None)
    if made is not None and not made(config):
        raise UserError(
            f"the videos of the run are not in {config.root}, the folder that its configuration names, and nothing is "
            f"rendered there unasked; pass {flag('data.root')} with the folder that has them, or with one to render "
            f"them in"
        )
