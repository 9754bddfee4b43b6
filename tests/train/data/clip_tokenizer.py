"""CLIP's tokenizer, written from its definition; `clip_captions.json` has captions of many kinds and the ids it gives.

    python tests/train/data/clip_tokenizer.py bpe_simple_vocab_16e6.txt.gz

writes the ids of the captions in that file again from CLIP's own vocabulary (1.4 MB; the wheel of open-clip-torch has
it), and of the vocabulary the tokens and merges that these captions come to. A merge that no step of them takes changes
nothing for them, so the ids are those of the whole vocabulary.
"""

import gzip
import html
import itertools
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import ftfy
import regex

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)
FIXTURE = Path(__file__).with_name("clip_captions.json")


def letters_of_bytes() -> dict[int, str]:
    """A printable letter for each byte: its own where that is printable, else one from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


class ClipTokenizer:
    """Byte pair encoding of cleaned, lower-case words, whose last letter carries the mark "</w>"."""

    def __init__(self, tokens: dict[str, int], merges: Iterable[tuple[str, str]]) -> None:
        self.tokens = tokens
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.letters = letters_of_bytes()
        self.taken: set[tuple[str, str]] = set()

    def clean(self, text: str) -> str:
        text = ftfy.fix_text(text)
        text = html.unescape(html.unescape(text)).strip()
        return regex.sub(r"\s+", " ", text).strip().lower()

    def encode(self, text: str) -> list[int]:
        ids = [self.tokens[START]]
        for word in WORDS.findall(self.clean(text)):
            letters = word if word in (START, END) else "".join(self.letters[byte] for byte in word.encode())
            ids += [self.tokens[part] for part in self.parts(letters)]
        return [*ids, self.tokens[END]]

    def parts(self, word: str) -> list[str]:
        if word in (START, END):
            return [word]
        parts = [*word[:-1], word[-1] + "</w>"]
        while True:
            pairs = {pair for pair in itertools.pairwise(parts) if pair in self.ranks}
            if not pairs:
                return parts
            first = min(pairs, key=lambda pair: self.ranks[pair])
            self.taken.add(first)

            # Everywhere in the word at once, from the left.
            merged: list[str] = []
            at = 0
            while at < len(parts):
                if tuple(parts[at : at + 2]) == first:
                    merged.append("".join(first))
                    at += 2
                else:
                    merged.append(parts[at])
                    at += 1
            parts = merged


def whole_vocabulary(path: Path) -> ClipTokenizer:
    """From the file that CLIP was released with: the letters, with and without their mark, then what merges make."""
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    letters = list(letters_of_bytes().values())
    names = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    return ClipTokenizer({name: i for i, name in enumerate(names)}, merges)  # type: ignore[arg-type]


def part_of_vocabulary() -> ClipTokenizer:
    """What `clip_captions.json` holds of it."""
    content = json.loads(FIXTURE.read_text())
    return ClipTokenizer(content["tokens"], [tuple(pair) for pair in content["merges"]])


def write_fixture(vocabulary: Path) -> None:
    tokenizer = whole_vocabulary(vocabulary)
    captions = [[caption, tokenizer.encode(caption)] for caption, _ in json.loads(FIXTURE.read_text())["captions"]]

    # All letters, so that every text can be encoded, and of the merges those that were taken, in their order.
    merges = sorted(tokenizer.taken, key=lambda pair: tokenizer.ranks[pair])
    letters = list(letters_of_bytes().values())
    names = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    content = {
        "source": "A part of the vocabulary of OpenAI's CLIP, bpe_simple_vocab_16e6.txt.gz, and ids that it gives. "
        "Copyright (c) 2021 OpenAI, MIT License",
        "tokens": {name: tokenizer.tokens[name] for name in names},
        "merges": merges,
        "captions": captions,
    }
    FIXTURE.write_text(json.dumps(content, separators=(",", ":")).replace("],[", "],\n[") + "\n")


if __name__ == "__main__":
    write_fixture(Path(sys.argv[1]))
