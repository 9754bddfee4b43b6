"""Captions as MMT reads them: words to one sentence, and that to BERT's word pieces in lower case."""

from collections.abc import Mapping, Sequence

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from emcl_train.data.text import CaptionTokenizer
from emcl_train.data.tokenizer_folder import load_from
from emcl_train.errors import UserError
from emcl_train.reading.tokenizer_files import require_survived
from emcl_train.weights.hub import BERT_WAY_OUT, not_loaded, require_place

PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
SENTENCE_ENDS = (".", "?", "!")
SETTING = "experts.text"


def sentence(words: Sequence[str], most: int) -> str:
    """The first words of a caption as one sentence: joined by blanks, with a full stop, the first letter large.

    Args:
        words: of the caption, or of several one after the other.
        most: how many are read.

    Examples:
        >>> sentence(["a", "dog", "Runs"], 30)
        'A dog runs.'
    """
    text = " ".join(words[:most]).strip()
    if not text.endswith(SENTENCE_ENDS):
        text += "."
    return text.capitalize()


def bert_tokenizer(name: str, max_words: int) -> CaptionTokenizer:
    """The word pieces of a BERT, of texts in lower case and without accents, as MMT cuts them also with a cased BERT.

    Args:
        name: of the hub, or a folder.
        max_words: tokens of a caption, [CLS] and [SEP] included: longer ones are cut before [SEP].

    Raises:
        UserError: there is no such thing, it has no vocabulary, or lacks one of BERT's special tokens.
    """
    require_place(name, SETTING, BERT_WAY_OUT)
    try:
        vocabulary = load_from(name).get_vocab()
    except MemoryError:
        raise
    except Exception as error:  # transformers and tokenizers raise whatever the files lead to
        reason = not_loaded(name, error)
        raise UserError(
            f"{SETTING} is {name!r}, of which no vocabulary can be loaded ({reason}); {BERT_WAY_OUT}"
        ) from error
    try:
        return word_pieces(vocabulary, max_words)
    except ValueError as error:
        raise UserError(f"{SETTING} is {name!r}, whose vocabulary is not BERT's: {error}; {BERT_WAY_OUT}") from error


def word_pieces(vocabulary: Mapping[str, int], max_words: int) -> CaptionTokenizer:
    """A tokenizer of word pieces in lower case.

    Args:
        vocabulary: the number of each piece; those inside words begin with ##.
        max_words: tokens of a caption, [CLS] and [SEP] included.

    Raises:
        ValueError: a special token is missing, or the library does not survive the vocabulary.
    """
    if missing := [token for token in (PAD, UNKNOWN, START, END) if token not in vocabulary]:
        raise ValueError(f"it lacks {', '.join(missing)}")

    tokenizer = Tokenizer(models.WordPiece(dict(vocabulary), unk_token=UNKNOWN, max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, vocabulary[START]), (END, vocabulary[END])]
    )
    tokenizer.enable_truncation(max_words)
    tokenizer.enable_padding(length=max_words, pad_id=vocabulary[PAD], pad_token=PAD)
    require_survived(tokenizer.to_str())
    return CaptionTokenizer(tokenizer, clean="none")
