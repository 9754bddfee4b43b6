"""The tokenizer of a checkpoint, from a folder or an entry of the hub: known files of it, and of these known fields.

`AutoTokenizer` follows what a folder's configurations say: to classes of its own, to code in the folder, to other
folders. So it is given a folder made here, of files that were read and tried before.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from emcl_train.reading.clip_fields import MOST_TOKENS
from emcl_train.reading.plain_files import LARGEST_DESCRIPTION, parse_json, read_regular
from emcl_train.reading.tokenizer_files import LARGEST, build, read_content
from emcl_train.reading.values import one_of, switch
from emcl_train.weights.hub import TRANSFORMERS_CONFIG, optional_file

TOKENIZER, SETTINGS, SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
VOCABULARY, MERGES, WORDS, ADDED = "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json"
OWN_CODE = "auto_map"
"""Where a configuration names code beside it."""

CLASSES = (
    "BertTokenizer", "CLIPTokenizer", "DistilBertTokenizer", "GPT2Tokenizer", "PreTrainedTokenizer", "RobertaTokenizer",
    "TokenizersBackend", "XLMRobertaTokenizer",
)  # fmt: skip
"""Classes of transformers that build a tokenizer of these files alone, without their ending "Fast"."""
KNOWN_CLASSES = frozenset(name + ending for name in CLASSES for ending in ("", "Fast"))
ANY_CLASS = "PreTrainedTokenizerFast"
"""Builds what a tokenizer.json says. It stands for every other class, which differs in what it would build itself."""
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
SWITCHES = ("add_prefix_space", "do_lower_case", "strip_accents", "tokenize_chinese_chars")
OF_TOKEN = ("lstrip", "rstrip", "normalized", "single_word", "special")


def load_from(name: str) -> Any:
    """The tokenizer that transformers builds of a folder or hub name.

    Args:
        name: of the hub, or the folder.

    Raises:
        OSError: there is no such thing, or it has no tokenizer.
        ValueError: a file is damaged, or asks for something else than a tokenizer of known files.
    """
    from transformers import AutoTokenizer

    with TemporaryDirectory(prefix="emcl-tokenizer-") as place:
        _put_known_files(name, Path(place))
        return AutoTokenizer.from_pretrained(place, trust_remote_code=False, local_files_only=True)


def _put_known_files(name: str, place: Path) -> None:
    settings = _described(name, SETTINGS)
    model = _described(name, TRANSFORMERS_CONFIG)
    for file, content in ((SETTINGS, settings), (TRANSFORMERS_CONFIG, model)):
        if OWN_CODE in content:
            raise ValueError(
                f"its {file} names code of its own ({OWN_CODE}), which is not run; put the tokenizer.json that its "
                f"program writes into a folder of its own"
            )
    known = _known_settings(_described(name, SPECIAL), f"{SPECIAL}: ") | _known_settings(settings, f"{SETTINGS}: ")

    tokenizer = optional_file(name, TOKENIZER)
    others = {
        file: path for file in (VOCABULARY, MERGES, WORDS, ADDED) if (path := optional_file(name, file)) is not None
    }
    if tokenizer is not None:
        content = read_content(tokenizer)
        build(content)
        (place / TOKENIZER).write_text(json.dumps(content), encoding="utf-8")
    elif WORDS not in others and not {VOCABULARY, MERGES} <= others.keys():
        raise FileNotFoundError(f"it has no {TOKENIZER}")
    for file, path in others.items():
        data = read_regular(path, LARGEST)
        REQUIRE.get(file, _require_lines)(data, file)
        (place / file).write_bytes(data)

    # Without a class, that of the model; all others are what their tokenizer.json says.
    of_class = known.get("tokenizer_class", "CLIPTokenizer" if model.get("model_type") == "clip" else ANY_CLASS)
    if of_class not in KNOWN_CLASSES and tokenizer is not None:
        of_class = ANY_CLASS
    known["tokenizer_class"] = one_of(of_class, f"{SETTINGS}: tokenizer_class", KNOWN_CLASSES)
    (place / SETTINGS).write_text(json.dumps(known), encoding="utf-8")


def _known_settings(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    """What is taken from a description of a tokenizer, each of its kind."""
    found: dict[str, Any] = {}
    if (of_class := content.get("tokenizer_class")) is not None:
        if not isinstance(of_class, str):
            raise ValueError(f"{source}tokenizer_class is {str(of_class)[:60]!r}, expected a text")
        found["tokenizer_class"] = of_class

    for name in SPECIAL_TOKENS:
        if content.get(name) is not None:
            found[name] = _token(content[name], f"{source}{name}")
    for name in SWITCHES:
        if content.get(name) is not None:
            found[name] = switch(content[name], f"{source}{name}")
    added = content.get("added_tokens_decoder")
    if added is not None:
        if not isinstance(added, dict):
            raise ValueError(f"{source}added_tokens_decoder is {str(added)[:60]!r}, expected an object")
        for number in added:
            if not (number.isascii() and number.isdigit() and len(number) <= 9 and int(number) < MOST_TOKENS):
                raise ValueError(f"{source}added_tokens_decoder has a token with the number {number[:30]!r}")
        found["added_tokens_decoder"] = {
            number: _with_its_cut(token, f"{source}added_tokens_decoder.{number}") for number, token in added.items()
        }
    return found


def _token(value: Any, name: str) -> Any:
    """A special token: its text, or the text with how it is cut out of captions."""
    if isinstance(value, str):
        return value
    return {"__type": "AddedToken", **_with_its_cut(value, name)}


def _with_its_cut(value: Any, name: str) -> dict[str, Any]:
    """The text of a token, and how it is cut out of captions: the arguments of an `AddedToken`."""
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise ValueError(f"{name} is {str(value)[:60]!r}, expected an object with its content")
    how = {key: switch(value[key], f"{name}.{key}") for key in OF_TOKEN if key in value}
    return {"content": value["content"], **how}


def _require_vocabulary(data: bytes, file: str) -> None:
    content = parse_json(data.decode("utf-8"))
    if not isinstance(content, dict) or not all(
        isinstance(number, int) and 0 <= number < MOST_TOKENS for number in content.values()
    ):
        raise ValueError(f"its {file} is no vocabulary: expected an object of words and their numbers")


def _require_lines(data: bytes, file: str) -> None:
    data.decode("utf-8")
    if data.count(b"\n") > MOST_TOKENS:
        raise ValueError(f"its {file} has more than {MOST_TOKENS} lines")


REQUIRE = {VOCABULARY: _require_vocabulary, ADDED: _require_vocabulary}
"""What has to be in a file; the others have lines of text."""


def _described(name: str, file: str) -> dict[str, Any]:
    """A description in JSON; {} if there is none."""
    path = optional_file(name, file)
    if path is None:
        return {}
    try:
        content = parse_json(read_regular(path, LARGEST_DESCRIPTION).decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"its {file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"its {file} holds a {type(content).__name__}, expected an object")
    return content
