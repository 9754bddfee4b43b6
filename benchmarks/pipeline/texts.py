"""Captions to token ids: byte pairs as CLIP's, of a vocabulary that is made from the captions themselves."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from emcl_train.data.text import CaptionTokenizer
from emcl_train.data.tokens import AT_ONCE

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = 32
KEYS = ("caption", "sentence", "text")


def captions_of(file: Path) -> list[str]:
    """The captions of a file of JSON lines, in a field `caption`, `sentence` or `text`: a string or a list of them."""
    found: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        row: dict[str, Any] = json.loads(line)
        value = next(row[key] for key in KEYS if key in row)
        found += [value] if isinstance(value, str) else value
    return found


def byte_pairs(captions: Sequence[str], size: int = 8000) -> CaptionTokenizer:
    """A tokenizer that does what CLIP's does, with fewer tokens."""
    tokenizer = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=END))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    splitters = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(), bytes_of_words]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splitters)
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[START, END], end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    places = [(token, tokenizer.token_to_id(token)) for token in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=places)
    tokenizer.enable_truncation(WORDS)
    tokenizer.enable_padding(length=WORDS, pad_id=places[1][1], pad_token=END)
    return CaptionTokenizer(tokenizer)


def ways(captions: Sequence[str]) -> dict[str, Callable[[], object]]:
    """All captions as a run tokenizes them, and one after the other, as a data set does that tokenizes in its items."""
    tokenizer = byte_pairs(captions)

    def together() -> object:
        return [tokenizer.encode(captions[start : start + AT_ONCE]) for start in range(0, len(captions), AT_ONCE)]

    return {"ours": together, "one at a time": lambda: [tokenizer.encode([caption]) for caption in captions]}
