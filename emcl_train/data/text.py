"""Captions to token ids: by the tokenizer of a model, or of words counted in the training captions."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from jaxtyping import Int64
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from emcl_train.config import Cleaning, ModelConfig, RunConfig
from emcl_train.data.annotations import load_annotations
from emcl_train.data.cleaning import CLEAN, clean_caption
from emcl_train.data.open_clip_tokens import byte_pairs, ended_by_zero
from emcl_train.data.tokenizer_folder import load_from
from emcl_train.errors import UserError
from emcl_train.flags import flag
from emcl_train.kinds import TOWERS
from emcl_train.reading.open_clip_fields import words_of
from emcl_train.reading.shown import shortened
from emcl_train.reading.tokenizer_files import build, padded_length, read_content, require_survived
from emcl_train.reading.tower_fields import OPEN_CLIP
from emcl_train.runs.contents import STATE, TOKENIZER, WEIGHTS
from emcl_train.runs.files import write_text_atomic
from emcl_train.weights.hub import CLIP_WAY_OUT, OPEN_CLIP_CONFIG, not_loaded, optional_file, require_place
from emcl_train.weights.prepared import captions_of, description_of, family_of_model

OPENAI_TOKENIZER = "openai/clip-vit-base-patch32"
PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[BOS]", "[EOS]"


class CaptionTokenizer:
    """A tokenizer that cuts and pads every caption to one length, the tokens that begin and end it included.

    All it knows stands in one file in the format of the `tokenizers` library: the length and the padding as well. How
    captions are cleaned before does not: that is a setting of the run, `data.clean_captions`.

    Args:
        tokenizer: of the library; it pads to a fixed length.
        clean: as `data.clean_captions`.
        ends: how many tokens it gives an empty caption: start and end, or with 1 the end alone. None: either.
    """

    def __init__(self, tokenizer: Tokenizer, clean: Cleaning = "clip", *, ends: int | None = None) -> None:
        padding = tokenizer.padding
        if padding is None or not padding["length"]:
            raise ValueError("it does not pad to a fixed length")
        self._tokenizer = tokenizer
        self._clean = clean
        self._encoder = _without_clips_normalizer(tokenizer) if clean == "clip" else tokenizer
        self.max_words: int = padding["length"]
        self.pad_token_id: int = padding["pad_id"]
        empty = tokenizer.encode("")
        special = [i for i, real in zip(empty.ids, empty.attention_mask, strict=True) if real]
        if len(special) != ends if ends is not None else len(special) not in (1, 2):
            named = {1: "1: the end", 2: "2: start and end", None: "1 or 2: the end, or start and end"}[ends]
            raise ValueError(f"it gives an empty caption {len(special)} tokens, expected {named}")
        self.bos_token_id: int | None = special[0] if len(special) == 2 else None
        self.eos_token_id = special[-1]
        self._size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    def __len__(self) -> int:
        """Numbers of tokens, special ones included: one more than the largest, since some may have no token."""
        return self._size

    vocab_size = property(__len__)

    def encode(self, captions: Sequence[str]) -> tuple[Int64[Tensor, "A L"], Int64[Tensor, "A L"]]:
        """Token ids, padded to `max_words`, and 1 where they are not padding. Long captions keep their end token."""
        clean = CLEAN[self._clean]
        texts = [clean(caption) for caption in captions]
        try:
            encodings = self._encoder.encode_batch(texts)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of Rust, and of no class that could be imported
                raise
            raise UserError(
                f"the library tokenizers does not survive one of {len(texts)} captions ({error}); the first is "
                f"{shortened(texts[0])}; use another tokenizer, or remove the caption"
            ) from error
        shape = len(encodings), self.max_words
        input_ids = torch.tensor([e.ids for e in encodings], dtype=torch.int64).reshape(shape)
        attention_mask = torch.tensor([e.attention_mask for e in encodings], dtype=torch.int64).reshape(shape)
        return input_ids, attention_mask

    @property
    def backend(self) -> Tokenizer:
        """The tokenizer of the library."""
        return self._tokenizer

    def save(self, path: Path) -> None:
        write_text_atomic(path, self._tokenizer.to_str(pretty=True) + "\n")

    @classmethod
    def load(cls, path: Path, clean: Cleaning = "clip") -> "CaptionTokenizer":
        """Read what `save` wrote.

        Raises:
            UserError: it is something else.
        """
        try:
            content = read_content(path)
            length = padded_length(content)
            if length is None:
                raise ValueError("it does not pad to a fixed length")

            # How captions are cut and padded is ours to say; of the file, only to what length, with what and where.
            ours = Tokenizer(models.WordLevel())
            padding = content["padding"]
            ours.enable_truncation(length)
            side = {"Left": "left"}.get(padding.get("direction"), "right")
            pad = {"pad_id": padding.get("pad_id"), "pad_token": padding.get("pad_token")}
            ours.enable_padding(length=length, direction=side, **pad)
            kept = json.loads(ours.to_str())
            return cls(build(content | {name: kept[name] for name in ("truncation", "padding")}), clean)
        except MemoryError:
            raise
        except Exception as error:  # the library raises bare Exception for unknown fields
            raise UserError(
                f"{path} is not a tokenizer of a run ({error}); copy it again from the run, or train anew"
            ) from error


def _without_clips_normalizer(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer for captions that are clean already, if its normalizer is what transformers gives CLIP's.

    That composes letters and their accents once more, which CLIP does not: those that HTML hides stay apart there.
    """
    state = json.loads(tokenizer.to_str())
    steps = [step["type"] for step in (state["normalizer"] or {}).get("normalizers", ())]
    if steps != ["NFC", "Replace", "Lowercase"]:
        return tokenizer
    return Tokenizer.from_str(json.dumps(state | {"normalizer": None}))


def load_tokenizer(config: RunConfig, run_dir: Path | None = None) -> CaptionTokenizer:
    """The tokenizer of a run: from its folder if it is there, else as `config` says, and saved there.

    Raises:
        UserError: `model.tokenizer` or `model.clip` names none that can be read.
    """
    max_words = config.data.max_words
    clean = config.data.clean_captions
    if run_dir is not None and (run_dir / TOKENIZER).is_file():
        return _of_length(CaptionTokenizer.load(run_dir / TOKENIZER, clean), max_words, run_dir / TOKENIZER)

    # Weights that were trained with one have numbers of tokens by it, which no other one would give.
    if run_dir is not None and any((run_dir / name).is_file() for name in (WEIGHTS, STATE)):
        raise UserError(
            f"{run_dir} has no {TOKENIZER}, with which its weights were trained; copy it again from the run"
        )

    name = tokenizer_name(config.model)
    family = "clip" if config.from_features is not None else family_of_model(config.model)
    if config.from_features is not None:
        tokenizer = CaptionTokenizer.load(config.from_features / TOKENIZER, clean)
    elif (name is None or family != "clip") and (
        counted := _tokenizer_beside(config.model.init_from, max_words, clean)
    ):
        tokenizer = counted
    elif name is None:
        # A data set that is only encoded may have no training clips.
        annotations = load_annotations(config.data)
        tokenizer = word_tokenizer(annotations.train.captions or annotations.test.captions, max_words, clean)
    elif family == OPEN_CLIP:
        tokenizer = open_clip_tokenizer(config.model, max_words, clean)
    else:
        setting = "tokenizer" if name != config.model.clip else "clip"
        tokenizer = pretrained_tokenizer(name, max_words, setting=setting, clean=clean, family=family)
    first_process = not dist.is_initialized() or dist.get_rank() == 0
    if run_dir is not None and first_process:
        tokenizer.save(run_dir / TOKENIZER)
    return tokenizer


def _of_length(tokenizer: CaptionTokenizer, max_words: int, path: Path) -> CaptionTokenizer:
    """A run's tokenizer, or a UserError if it is of another run: its captions have another length."""
    if tokenizer.max_words != max_words:
        raise UserError(
            f"{path} gives captions of {tokenizer.max_words} tokens, and the run's data.max_words is {max_words}; copy "
            f"the file again from the run"
        )
    return tokenizer


def _tokenizer_beside(weights: Path | None, max_words: int, clean: Cleaning) -> CaptionTokenizer | None:
    """The tokenizer that another run's weights were trained with, from its folder: of counted words, or of its towers.

    Raises: UserError where it cuts captions to another length.
    """
    if weights is None or not (weights.parent / TOKENIZER).is_file():
        return None
    tokenizer = CaptionTokenizer.load(weights.parent / TOKENIZER, clean)
    if tokenizer.max_words != max_words:
        raise UserError(
            f"data.max_words is {max_words} but the run of model.init_from has {tokenizer.max_words}; pass "
            f"{flag('data.max_words')} {tokenizer.max_words}"
        )
    return tokenizer


def tokenizer_name(config: ModelConfig) -> str | None:
    """Hub name or folder of the tokenizer; None where words are counted."""
    if config.tokenizer is not None:
        return config.tokenizer
    if config.clip == "random":
        return None
    return OPENAI_TOKENIZER if Path(config.clip).expanduser().is_file() else config.clip


def word_tokenizer(captions: Sequence[str], max_words: int, clean: Cleaning = "clip") -> CaptionTokenizer:
    """One token for each word and each punctuation mark of the captions, whatever their case, by falling count."""
    texts = map(clean_caption, captions) if clean == "clip" else captions
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    splitter = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    counts = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    # Sorted by count, then by spelling: the same captions give the same ids in any order.
    words = sorted(counts, key=lambda word: (-counts[word], word))
    vocabulary = {word: i for i, word in enumerate([PAD, UNKNOWN, START, END, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, vocabulary[START]), (END, vocabulary[END])]
    )
    tokenizer.enable_truncation(max_words)
    tokenizer.enable_padding(length=max_words, pad_id=vocabulary[PAD], pad_token=PAD)
    return CaptionTokenizer(tokenizer, clean)


def open_clip_tokenizer(config: ModelConfig, max_words: int, clean: Cleaning) -> CaptionTokenizer:
    """The tokenizer that the description of a model of OpenCLIP names, or another one that is said in its place.

    Raises:
        UserError: the description is damaged, or there is no such tokenizer.
    """
    content, file = description_of(config.clip, OPEN_CLIP)
    try:
        words = words_of(content)
    except ValueError as error:
        raise UserError(f"{file} does not describe the captions of a model: {error}; {CLIP_WAY_OUT}") from error
    if words.tokenizer is None and config.tokenizer is None:
        return CaptionTokenizer(byte_pairs(max_words), clean, ends=2)

    # One with a name lies beside the weights.
    setting = "clip" if config.tokenizer is None else "tokenizer"
    if setting == "clip" and not any(
        optional_file(config.clip, name) for name in ("tokenizer.json", "vocab.json", "vocab.txt")
    ):
        raise UserError(
            f"model.clip is {config.clip}, which has no tokenizer.json, and its {OPEN_CLIP_CONFIG} names the tokenizer "
            f"{words.tokenizer}; pass {flag('model.tokenizer')} {words.tokenizer}, or a folder that holds it"
        )
    name = config.tokenizer or config.clip
    tokenizer = pretrained_tokenizer(name, max_words, setting=setting, clean=clean, family=OPEN_CLIP)
    if not words.without_end:
        return tokenizer
    if tokenizer.bos_token_id is None:
        raise UserError(
            f"model.{setting} is {name}, whose tokenizer has no token that begins a caption, and {file} says "
            f"strip_sep_token, of a BERT's; pass {flag('model.tokenizer')} {words.tokenizer}"
        )
    return CaptionTokenizer(ended_by_zero(tokenizer.backend, tokenizer.bos_token_id), clean, ends=2)


def pretrained_tokenizer(
    name: str, max_words: int, *, setting: str = "clip", clean: Cleaning = "clip", family: str = "clip"
) -> CaptionTokenizer:
    """The tokenizer of a checkpoint on the hub or in a folder.

    Args:
        name: of the checkpoint, or a folder.
        max_words: tokens of a caption, at most.
        setting: of `model`, which names it in errors.
        clean: as `data.clean_captions`.
        family: of the towers that it is for.

    Raises:
        UserError: there is no such checkpoint, or it cannot be reached.
    """
    label = TOWERS[family].label
    way_out = (
        f"pass {flag(f'model.{setting}')} with a hub name such as {OPENAI_TOKENIZER}, or with a folder that holds a "
        "tokenizer.json" + (', or with "random"' if setting == "clip" else "; without a network, a folder")
    )
    require_place(name, f"model.{setting}", way_out)
    name = str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
    try:
        pretrained = load_from(name)
    except MemoryError:
        raise
    except Exception as error:  # transformers and tokenizers raise whatever the files lead to
        reason = not_loaded(name, error)
        raise UserError(
            f"model.{setting} is {name!r}, of which no tokenizer can be loaded ({reason}); {way_out}"
        ) from error
    if not getattr(pretrained, "is_fast", False) or pretrained.pad_token_id is None:
        raise UserError(
            f"model.{setting} is {name!r}, whose tokenizer is not {label}'s: it has no tokenizer.json; {way_out}"
        )
    tokenizer = Tokenizer.from_str(pretrained.backend_tokenizer.to_str())
    tokenizer.enable_truncation(max_words)
    side = "right" if family == "clip" else captions_of(name, family, max_words).padding_side
    pad = {"pad_id": pretrained.pad_token_id, "pad_token": pretrained.pad_token}
    tokenizer.enable_padding(length=max_words, direction=side, **pad)
    try:
        require_survived(tokenizer.to_str())
        return CaptionTokenizer(tokenizer, clean, ends=2 if family == "clip" else None)
    except ValueError as error:
        raise UserError(f"model.{setting} is {name!r}, whose tokenizer is not {label}'s: {error}; {way_out}") from error
