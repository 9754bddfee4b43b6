"""OpenCLIP's tokenizers in the format of the library `tokenizers`, in which a run keeps its own."""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from emcl_train.runs.open_clip_library import library

WORDS = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""What CLIP merges bytes within."""


def byte_pairs(length: int) -> Tokenizer:
    """CLIP's byte pairs, whose merges come with OpenCLIP, padded with zeros as OpenCLIP pads.

    Args:
        length: tokens of every caption, those that begin and end it included.

    Raises:
        UserError: OpenCLIP is not installed.
    """
    own = library().SimpleTokenizer()
    made = Tokenizer(models.BPE(own.encoder, list(own.bpe_ranks), end_of_word_suffix="</w>"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    start, end = own.decoder[own.sot_token_id], own.decoder[own.eot_token_id]
    made.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in (start, end)])
    made.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, own.sot_token_id), (end, own.eot_token_id)]
    )
    made.enable_truncation(length)
    made.enable_padding(length=length, pad_id=0, pad_token=own.decoder[0])
    return made


def ended_by_zero(tokenizer: Tokenizer, start_id: int) -> Tokenizer:
    """The same tokenizer with the token 0 in the place of the one that ends a caption, as CLIPA was trained.

    Args:
        tokenizer: begins captions with one token and ends them with one.
        start_id: of the first.
    """
    start, zero = tokenizer.id_to_token(start_id), tokenizer.id_to_token(0)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {zero}", special_tokens=[(start, start_id), (zero, 0)]
    )
    return tokenizer
