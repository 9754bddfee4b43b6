"""BERT, the text side of MMT: from a hub name, a folder in the layout of transformers, or small with random weights.

Of a configuration, known settings are taken; transformers gets these and reads the weights, as for CLIP's folders.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel

from emcl_train.errors import UserError
from emcl_train.experts.mmt import BertSizes
from emcl_train.models.clip_folder import broken_file, files_of_weights, require_weights_alone
from emcl_train.reading.clip_fields import (
    ACTIVATIONS,
    ALWAYS,
    DEEPEST,
    MOST_HEADS,
    MOST_NUMBERS,
    MOST_POSITIONS,
    MOST_TOKENS,
    WIDEST,
    Kind,
)
from emcl_train.reading.plain_files import LARGEST_DESCRIPTION
from emcl_train.reading.values import between, one_of, positive, token_id, whole
from emcl_train.runs.clip_config import ATTENTION, numbers_in, without_warnings
from emcl_train.runs.files import read_json
from emcl_train.weights.hub import (
    BERT_WAY_OUT,
    TRANSFORMERS_CONFIG,
    file_of,
    hub_options,
    not_loaded,
    optional_file,
    require_place,
)

SETTING = "experts.text"
KNOWN: dict[str, Kind] = {
    "vocab_size": partial(whole, largest=MOST_TOKENS),
    "hidden_size": partial(whole, largest=WIDEST),
    "num_hidden_layers": partial(whole, largest=DEEPEST),
    "num_attention_heads": partial(whole, largest=MOST_HEADS),
    "intermediate_size": partial(whole, largest=16 * WIDEST),
    "hidden_act": partial(one_of, known=ACTIVATIONS),
    "hidden_dropout_prob": partial(between, least=0.0, largest=1.0),
    "attention_probs_dropout_prob": partial(between, least=0.0, largest=1.0),
    "max_position_embeddings": partial(whole, largest=MOST_POSITIONS),
    "type_vocab_size": partial(whole, largest=MOST_TOKENS),
    "initializer_range": partial(between, least=0.0, largest=1e3),
    "layer_norm_eps": partial(positive, largest=1.0),
    "pad_token_id": token_id,
}
"""Settings of a BERT that are taken from a configuration, each of its kind and within its bound."""
VOCABULARIES = ("vocab.txt", "tokenizer.json")
"""Files of which a BERT's tokenizer is made."""
OF_PRETRAINING = ("cls.", "bert.pooler.")
"""Beginnings of weights beside the encoder: heads that BERT was trained with, of which nothing is asked here."""


def build_bert(sizes: BertSizes) -> BertModel:
    """A BERT of these sizes with freshly drawn weights.

    Raises:
        ValueError: heads do not divide the width.
    """
    if sizes.width % sizes.heads:
        raise ValueError(f"BERT is {sizes.width} wide, which {sizes.heads} heads do not divide")
    config = BertConfig(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.inner_width,
        max_position_embeddings=sizes.max_positions,
        hidden_dropout_prob=sizes.dropout,
        attention_probs_dropout_prob=sizes.dropout,
    )
    return _built(config)


def bert_of_config(content: Mapping[str, Any], said_by: str, *, weights: int | None = None) -> BertModel:
    """A BERT of known settings in a configuration, with freshly drawn weights; what a run recorded of its own.

    Args:
        content: of a configuration in transformers' format.
        said_by: names it in errors.
        weights: numbers in the file of weights that it belongs to, at most; None where there is no file to ask.

    Raises:
        UserError: a setting is of a wrong kind, out of bounds, or larger than the weights.
    """
    return _built(_config(content, said_by, weights=weights))


def look_at_bert(name: str) -> int:
    """Look at the configuration and the vocabulary of a BERT, which are fetched if need be; its weights are not.

    Args:
        name: of the hub, or a folder.

    Returns:
        How many tokens of a caption it reads at most.

    Raises:
        UserError: there is no such thing, it is of another model, or has no vocabulary.
    """
    config = bert_config_in(name)
    try:
        known = [file for file in VOCABULARIES if optional_file(name, file) is not None]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{SETTING} is {name}, whose vocabulary cannot be had: {not_loaded(name, error)}; {BERT_WAY_OUT}"
        ) from error
    if not known:
        raise UserError(f"{SETTING} is {name}, which has no vocabulary ({' or '.join(VOCABULARIES)}); {BERT_WAY_OUT}")
    return int(config.max_position_embeddings)


def bert_config_in(name: str) -> BertConfig:
    """The configuration of a BERT by its hub name, or in a folder.

    Raises:
        UserError: there is no such thing, or it is of another model.
    """
    require_place(name, SETTING, BERT_WAY_OUT)
    path = Path(name).expanduser()
    try:
        file = file_of(name, TRANSFORMERS_CONFIG)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{SETTING} is {name}, which cannot be had: {not_loaded(name, error)}; {BERT_WAY_OUT}"
        ) from error

    content = read_json(file, BERT_WAY_OUT, what="a configuration", keys=(), largest=LARGEST_DESCRIPTION)
    if (model_type := content.get("model_type")) != "bert":
        raise UserError(
            f"{SETTING} is {name}, a checkpoint of type {str(model_type)[:60]!r} instead of 'bert'; {BERT_WAY_OUT}"
        )
    return _config(content, str(file), weights=numbers_in(*files_of_weights(path)))


def load_bert(name: str) -> BertModel:
    """BERT with trained weights; every weight must be there.

    Without a network, or without an answer of the hub, earlier downloads serve.

    Args:
        name: of the hub, or a folder in the layout of `save_pretrained`.

    Raises:
        UserError: there is no such thing, it is of another model, or its weights do not fit its configuration.
    """
    config = bert_config_in(name)
    path = Path(name).expanduser()
    require_weights_alone(name, SETTING, BERT_WAY_OUT)

    # What is missing, or too much, is named below. Transformers would draw it, or leave it out, with a warning.
    options: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True, **hub_options(name)}
    chosen: dict[str, Any] = {"config": config, "attn_implementation": ATTENTION, "dtype": torch.float32}
    folder = str(path) if path.is_dir() else name
    try:
        with without_warnings():
            loaded: Any = BertModel.from_pretrained(folder, trust_remote_code=False, **chosen, **options)
        bert, loading = loaded
    except MemoryError:
        raise
    except Exception as error:  # readers raise whatever damaged bytes lead to
        reason = broken_file(path) or not_loaded(name, error)
        raise UserError(f"{SETTING} is {name}, which could not be loaded: {reason}; {BERT_WAY_OUT}") from error

    _require_all(name, loading)
    return bert.float()


def _require_all(name: str, loading: Mapping[str, Any]) -> None:
    """Raise a UserError where weights were left out, or drawn; the pooler is not read, and may be either."""
    absent = sorted(map(str, loading["missing_keys"])) + sorted(str(key[0]) for key in loading["mismatched_keys"])
    absent = [key for key in absent if not key.removeprefix("bert.").startswith("pooler.")]
    if absent:
        raise UserError(
            f"{SETTING} is {name}, which lacks {len(absent)} of BERT's weights, or has them in another shape "
            f"(first: {absent[0]}); {BERT_WAY_OUT}"
        )
    others = [
        key
        for key in sorted(map(str, loading["unexpected_keys"]))
        if not key.startswith(OF_PRETRAINING) and not key.endswith(".position_ids")
    ]
    if others:
        raise UserError(
            f"{SETTING} is {name}, which has {len(others)} weights that BERT has not (first: {others[0]}); without "
            f"them it would be another model; {BERT_WAY_OUT}"
        )


def _config(content: Mapping[str, Any], said_by: str, *, weights: int | None) -> BertConfig:
    """Of known settings alone; as large as its weights allow."""
    try:
        known = {name: kind(content[name], name) for name, kind in KNOWN.items() if content.get(name) is not None}
        config = BertConfig(**known)
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(
                f"hidden_size is {config.hidden_size}, which num_attention_heads = {config.num_attention_heads} does "
                f"not divide"
            )
        if config.pad_token_id is not None and config.pad_token_id >= config.vocab_size:
            raise ValueError(
                f"pad_token_id is {config.pad_token_id}, expected less than vocab_size, {config.vocab_size}"
            )
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{said_by} does not describe a BERT: {reason}; {BERT_WAY_OUT}") from error

    width = config.hidden_size
    asked = config.num_hidden_layers * (4 * width * width + 2 * width * config.intermediate_size)
    asked += width * (config.vocab_size + config.max_position_embeddings + config.type_vocab_size)
    most = MOST_NUMBERS if weights is None else weights + ALWAYS
    if asked > most:
        raise UserError(
            f"{said_by} describes a BERT of {asked} weights, and its files, if they are whole, hold at most {most}; "
            f"{BERT_WAY_OUT}"
        )
    return config


def _built(config: BertConfig) -> BertModel:
    config._attn_implementation = ATTENTION
    return BertModel(config)
