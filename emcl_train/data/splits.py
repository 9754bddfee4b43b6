"""`Annotations`, `Clip` and `Split` under the name of their module up to version 0.1; they are those of clips.py."""

from emcl_train.data.clips import Annotations, Clip, Split

__all__ = ["Annotations", "Clip", "Split"]
