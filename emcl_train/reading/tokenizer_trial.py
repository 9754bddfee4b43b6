"""A program of its own: tries a tokenizer of the `tokenizers` library, which for some files ends its process.

    python -I -S tokenizer_trial.py SYS_PATH... < tokenizer.json

It ends with 0 if the tokenizer can be built and used, with `REFUSED` and the reason on its output if the library says
no, and by a signal or otherwise if the library does not survive. It writes nothing and has bounded memory and time.
"""

import os
import sys

REFUSED = 3
SECONDS = 60
MEMORY = 1 << 31
"""Bytes beside what a file of its size may need."""
TIMES = 64
"""Bytes of memory for each byte of the file."""

TEXTS = (
    "",
    " ",
    "a photo of a dog, running on the beach; it's 2 o'clock!",
    "A MAN & a woman <b>sing</b> #song @stage 100% ... --- \"quoted\" 'single'",
    "caf\u00e9 cre\u0300me na\u00efve \u00fc\u00df \u0130\u0131 \ufb01ne \u2167 \u00bd",
    "\u7537\u4eba\u5728\u5531\u6b4c \ub178\ub798 \u30c0\u30f3\u30b9 \u0645\u0631\u062d\u0628\u0627",
    "\u05e9\u05dc\u05d5\u05dd \u0928\u092e\u0938\u094d\u0924\u0947",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \ufffd \u200b \ufeff \u202e \u2028",
    "\x00\x01\x07\x1b[31m\x7f\x80\x9f\t\r\n",
    "word " * 2000,
    "x" * 10000,
    "[UNK] [PAD] [CLS] [SEP] [MASK] <s> </s> <|startoftext|> <|endoftext|>",
)
"""Captions of many kinds: what a library does not survive shows with one of them."""


def limit(size: int) -> None:
    """Bound memory and time, write no file, leave no image of memory behind."""
    import resource

    for kind, most in (
        (resource.RLIMIT_AS, MEMORY + TIMES * size),
        (resource.RLIMIT_CPU, SECONDS + size // (1 << 20)),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (least, hard))


def main() -> int:
    """Try what comes in."""
    sys.path[:] = sys.argv[1:]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    content = sys.stdin.buffer.read().decode("utf-8", "surrogatepass")

    from tokenizers import Tokenizer

    limit(len(content))
    try:
        tokenizer = Tokenizer.from_str(content)
        for text in TEXTS:
            tokenizer.encode(text)
        tokenizer.encode_batch(list(TEXTS))
        tokenizer.get_vocab()
        Tokenizer.from_str(tokenizer.to_str())
    except BaseException as error:  # what Rust calls a panic is no Exception
        sys.stdout.write(" ".join(str(error).split())[:300] or type(error).__name__)
        return REFUSED
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
