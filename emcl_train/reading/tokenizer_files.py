"""Tokenizers that may come from anybody: looked at as JSON, tried in a process of their own, and only then built here.

The library `tokenizers` ends its process on some files (an allocation of 10¹² tokens, a normalizer that is cut short),
which nothing here could turn into an error. A trial takes a tenth of a second, once a process for each content.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from emcl_train.reading import tokenizer_trial
from emcl_train.reading.clip_fields import MOST_TOKENS
from emcl_train.reading.plain_files import parse_json, read_regular

LARGEST = 1 << 28
"""Bytes of a tokenizer.json; those of a vocabulary of a million words take a tenth of it."""
LONGEST = 1 << 13
"""Tokens of a caption: no text tower of CLIP's kind takes as many."""
PATIENCE = 4 * tokenizer_trial.SECONDS
"""Seconds after which a trial that does not end is ended: its own limit is of processor time."""

_tried: set[bytes] = set()
"""Fingerprints of what survived a trial of this process."""


def read_content(path: Path) -> dict[str, Any]:
    """A tokenizer.json as JSON; nothing of it is built.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON object, or larger than any tokenizer.
    """
    content = parse_json(read_regular(path, LARGEST).decode("utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, expected an object")
    return content


def padded_length(content: dict[str, Any]) -> int | None:
    """The fixed length that a tokenizer pads captions to; None if it does not.

    Raises:
        ValueError: it is no length of captions.
    """
    padding = content.get("padding")
    strategy = padding.get("strategy") if isinstance(padding, dict) else None
    if not isinstance(strategy, dict) or "Fixed" not in strategy:
        return None
    length = strategy["Fixed"]
    if isinstance(length, bool) or not isinstance(length, int) or not 1 <= length <= LONGEST:
        raise ValueError(f"it pads captions to {str(length)[:30]} tokens, expected 1 to {LONGEST}")
    return length


def build(content: dict[str, Any]) -> Tokenizer:
    """The tokenizer that a content describes, after a trial.

    Raises:
        ValueError: the library refuses it, or does not survive it.
        OSError: the trial could not be made.
    """
    text = json.dumps(content, ensure_ascii=False)
    require_survived(text)
    tokenizer = Tokenizer.from_str(text)
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= MOST_TOKENS:
        raise ValueError(f"it has a token with the number {largest}, expected less than {MOST_TOKENS}")
    return tokenizer


def require_survived(text: str) -> None:
    """Build a tokenizer in a process of its own and use it there, unless that was done with this text before.

    Raises:
        ValueError: the library refuses it, or does not survive it.
        OSError: the process could not be started.
    """
    data = text.encode("utf-8", "surrogatepass")
    key = hashlib.sha256(data).digest()
    if key in _tried:
        return

    # Without "" and other relative entries, which stand for the folder of the user, whoever filled it.
    places = [place for place in sys.path if os.path.isabs(place)]
    command = [sys.executable, "-I", "-S", tokenizer_trial.__file__, *places]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        raise ValueError(f"the library tokenizers did not come to an end with it in {PATIENCE} s") from None
    if done.returncode == tokenizer_trial.REFUSED:
        raise ValueError(done.stdout.decode("utf-8", "replace"))
    if done.returncode:
        raise ValueError(f"the library tokenizers does not survive it: {_how_it_ended(done)}")
    _tried.add(key)


def _how_it_ended(done: "subprocess.CompletedProcess[bytes]") -> str:
    lines = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    said = f" ({lines[-1].strip()[:200]})" if lines else ""
    if done.returncode < 0:
        return f"its process was ended by {signal.Signals(-done.returncode).name}{said}"
    return f"its process ended with {done.returncode}{said}"
