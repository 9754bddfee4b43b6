"""Real video files and their captions: reading annotations, decoding, batching, checking, and a set to render."""

from emcl_train.data.loader import prepare
from emcl_train.data.text import load_tokenizer

__all__ = ["load_tokenizer", "prepare"]
