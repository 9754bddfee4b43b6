"""Captions as a model's own tokenizer cleans them before it looks for words."""

import html
import re
import string
from collections.abc import Callable

from emcl_train.config import Cleaning

SPACES = re.compile(r"\s+")
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def clean_caption(text: str) -> str:
    """Mend a caption, undo its HTML, and write it in lower case with single spaces, as OpenAI's `clip.tokenize` does.

    ftfy undoes wrongly decoded UTF-8, ligatures, full width and curly quotes, and takes out control characters. HTML is
    undone twice, since captions from the web are often escaped twice.

    Args:
        text: a caption as it stands in the annotations.

    Returns:
        What CLIP's byte pair encoding sees.
    """
    return mended(text).lower()


def mended(text: str) -> str:
    """A caption mended, without HTML, with single spaces, in its own case."""
    # Nothing to mend in printable ASCII without HTML, and ftfy is most of the time that tokenizing takes.
    if not (text.isascii() and text.isprintable() and "&" not in text):
        import ftfy  # its tables take a tenth of a second

        text = ftfy.fix_text(text)
    text = html.unescape(html.unescape(text)).strip()
    return SPACES.sub(" ", text).strip()


def canonical(text: str) -> str:
    """A caption mended, in lower case, without ASCII's punctuation, an underscore being a space, as OpenCLIP's."""
    return without_punctuation(mended(text).replace("_", " "))


def without_punctuation(text: str) -> str:
    """A caption in lower case, without ASCII's punctuation, and with single spaces, as SigLIP was trained."""
    return SPACES.sub(" ", text.lower().translate(WITHOUT_PUNCTUATION)).strip()


CLEAN: dict[Cleaning, Callable[[str], str]] = {
    "clip": clean_caption,
    "lower": str.lower,
    "siglip": without_punctuation,
    "canonicalize": canonical,
    "whitespace": mended,
    "none": str,
}
"""By the value of `data.clean_captions`."""
