"""Token ids of the captions of a split: each caption is tokenized once a run, and kept in a few bytes a token."""

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from emcl_train.data.clips import Split

AT_ONCE = 1024
"""Captions that are tokenized at a time: what a tokenizer says of each takes a hundred times as much as its ids."""


@runtime_checkable
class Tokenizer(Protocol):
    """What is asked of a tokenizer."""

    def encode(self, captions: Sequence[str]) -> tuple[Int64[Tensor, "A L"], Int64[Tensor, "A L"]]: ...


class EncodedCaptions:
    """The captions of a split, each tokenized when it is asked for first.

    Captions that `encode` was called for are there for every process that is forked from this one.
    """

    def __init__(self, tokenizer: Tokenizer, captions: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._captions = captions
        self._known = np.zeros(len(captions), dtype=np.bool_)
        # [A, L], made when L is known. Rows that are not written yet take no memory.
        self._input_ids = np.zeros((len(captions), 0), dtype=np.int32)
        self._attention_mask = np.zeros((len(captions), 0), dtype=np.bool_)

    def __len__(self) -> int:
        return len(self._captions)

    def encode(self, numbers: Iterable[int]) -> None:
        """Tokenize those of these captions that are not yet."""
        asked = np.unique(np.fromiter(numbers, dtype=np.int64))
        lacking = asked[~self._known[asked]]
        for start in range(0, len(lacking), AT_ONCE):
            rows = lacking[start : start + AT_ONCE]
            input_ids, attention_mask = self._tokenizer.encode([self._captions[row] for row in rows])
            self._put(rows, input_ids.numpy(), attention_mask.numpy())

    def encode_together(self, rank: int, world: int, exchange: Callable[[Any], list[Any]]) -> None:
        """Tokenize all captions, each in one of several processes.

        Args:
            rank: number of this process.
            world: how many there are; all of them have to call this.
            exchange: gives the objects that the processes call it with, in the order of their ranks.
        """
        own = np.arange(rank, len(self), world)
        self.encode(own.tolist())
        for other, (input_ids, attention_mask) in enumerate(
            exchange((self._input_ids[own], self._attention_mask[own]))
        ):
            if other != rank and len(input_ids) > 0:
                self._put(np.arange(other, len(self), world), input_ids, attention_mask)

    def row(self, number: int) -> tuple[Int64[Tensor, "L"], Int64[Tensor, "L"]]:
        """Token ids of a caption, and 1 where they are not padding."""
        if not self._known[number]:
            self.encode([number])
        return (
            torch.from_numpy(self._input_ids[number].astype(np.int64)),
            torch.from_numpy(self._attention_mask[number].astype(np.int64)),
        )

    def _put(self, rows: np.ndarray, input_ids: np.ndarray, attention_mask: np.ndarray) -> None:
        if not self._known.any():
            shape = (len(self), input_ids.shape[1])
            self._input_ids = np.zeros(shape, dtype=np.int32)
            self._attention_mask = np.zeros(shape, dtype=np.bool_)
        self._input_ids[rows] = input_ids
        self._attention_mask[rows] = attention_mask
        self._known[rows] = True


_encoded: weakref.WeakKeyDictionary[Tokenizer, dict[int, EncodedCaptions]] = weakref.WeakKeyDictionary()


def encoded_captions(tokenizer: Tokenizer, split: Split) -> EncodedCaptions:
    """The captions of a split as a tokenizer has them: the same object whenever it is asked for, as long as both live.

    So every epoch, and every validation, finds what an earlier one has tokenized.
    """
    of_tokenizer = _encoded.setdefault(tokenizer, {})
    key = id(split)
    if key not in of_tokenizer:
        of_tokenizer[key] = EncodedCaptions(tokenizer, split.captions)
        # Another split may get the number of one that is gone.
        weakref.finalize(split, of_tokenizer.pop, key, None)
    return of_tokenizer[key]
