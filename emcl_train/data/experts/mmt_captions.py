"""Captions of MMT's clips, word by word, and what is kept of them: they lie in one file a clip, slow to open."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from emcl_train.config import DataConfig
from emcl_train.data.cache import cache_folder, only_remembered, place_of
from emcl_train.data.opening import fingerprint
from emcl_train.runs.files import json_if_whole, write_text_atomic

NAME = "checked-v1-captions.json"
BETWEEN = "\n"
"""What stands between words that are kept. Captions with such a word are read from their file each time."""


@dataclass(frozen=True)
class TimedCaption:
    """A caption word by word."""

    words: tuple[str, ...]
    times: Float32[np.ndarray, "words 2"]
    """Seconds at which each word starts and ends; zeros where the file does not say."""

    @property
    def text(self) -> str:
        return " ".join(self.words)


class KeptCaptions:
    """Captions by clip, in the cache folder; an entry holds for one size and time of the clip's file."""

    def __init__(self, config: DataConfig) -> None:
        self._config = config
        folder = cache_folder(config)
        content = None if folder is None else json_if_whole(folder / NAME)
        self._entries: dict[str, Any] = content if isinstance(content, dict) else {}
        self._are_new = False

    def knows(self, video_id: str, path: Path) -> bool:
        """Whether the captions of a clip are kept as its file is now."""
        entry = self._entries.get(video_id)
        return isinstance(entry, dict) and entry.get("file") is not None and entry["file"] == fingerprint(path)

    def read(self, video_id: str, path: Path) -> list[TimedCaption] | None:
        """The captions of a clip; None if they are not kept."""
        return _captions_of(self._entries[video_id]) if self.knows(video_id, path) else None

    def add(self, video_id: str, file: list[int] | None, captions: Sequence[TimedCaption]) -> None:
        """Keep the captions of a clip.

        Args:
            video_id: the clip.
            file: the fingerprint of its file before it was read; None if there was none.
            captions: all of them.
        """
        if file is None or any(BETWEEN in word or not word for caption in captions for word in caption.words):
            return
        entry: dict[str, Any] = {"file": file, "captions": [BETWEEN.join(caption.words) for caption in captions]}
        if any(caption.times.any() for caption in captions):
            entry["times"] = [caption.times.ravel().tolist() for caption in captions]
        self._entries[video_id] = entry
        self._are_new = True

    def save(self) -> None:
        """Write what is kept, if there is something new and that can be done."""
        if not self._are_new:
            return
        with only_remembered("captions of clips"):
            write_text_atomic(place_of(NAME, self._config), json.dumps(self._entries, ensure_ascii=False))
            self._are_new = False


def _captions_of(entry: dict[str, Any]) -> list[TimedCaption] | None:
    """The captions of an entry; None if it is not as we write it: the file may be a stranger's."""
    texts, times = entry.get("captions"), entry.get("times")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return None
    if times is not None and (not isinstance(times, list) or len(times) != len(texts)):
        return None
    found = []
    for number, text in enumerate(texts):
        words = tuple(text.split(BETWEEN)) if text else ()
        of_words = np.zeros((len(words), 2), np.float32)
        if times is not None:
            try:
                of_words[:] = np.asarray(times[number], np.float32).reshape(-1, 2)
            except (TypeError, ValueError):
                return None
        found.append(TimedCaption(words, of_words))
    return found
