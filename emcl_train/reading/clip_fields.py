"""What is taken from a configuration of CLIP in transformers' format, which may be anybody's.

Each known setting has a kind and a bound; all others are left where they are. So nothing in a configuration chooses how
attention is computed, which would be a way to name a kernel that transformers fetches and runs, or which code builds
the model. How large the towers are is bounded by the weights that belong to them.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from emcl_train.reading.values import between, end_token, number, one_of, positive, side, token_id, whole

ACTIVATIONS = {
    "quick_gelu", "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_pytorch_tanh",
    "leaky_relu", "linear", "mish", "relu", "relu2", "relu6", "sigmoid", "silu", "swish", "tanh",
}  # fmt: skip
"""Names of transformers that stand for a function of torch; others import packages of their own."""

WIDEST = 1 << 16
DEEPEST = 1 << 10
MOST_HEADS = 1 << 12
MOST_POSITIONS = 1 << 16
MOST_TOKENS = 1 << 23
LARGEST_PICTURE = 1 << 13
MOST_NUMBERS = 1 << 34
"""Weights of towers of which no file of weights is there to compare with: some ten times the largest published ones."""
ALWAYS = 1 << 22
"""Weights that towers may have whatever their file holds: a file that is cut short is named by its reader."""

Kind = Callable[[Any, str], Any]

OF_TOWER: dict[str, Kind] = {
    "hidden_size": partial(whole, largest=WIDEST),
    "intermediate_size": partial(whole, largest=16 * WIDEST),
    "projection_dim": partial(whole, largest=WIDEST),
    "num_hidden_layers": partial(whole, largest=DEEPEST),
    "num_attention_heads": partial(whole, largest=MOST_HEADS),
    "hidden_act": partial(one_of, known=ACTIVATIONS),
    "layer_norm_eps": partial(positive, largest=1.0),
    "attention_dropout": partial(between, least=0.0, largest=1.0),
    "initializer_range": partial(between, least=0.0, largest=1e3),
    "initializer_factor": partial(between, least=0.0, largest=1e3),
}
OF_TEXT: dict[str, Kind] = OF_TOWER | {
    "vocab_size": partial(whole, largest=MOST_TOKENS),
    "max_position_embeddings": partial(whole, largest=MOST_POSITIONS),
    "pad_token_id": token_id,
    "bos_token_id": token_id,
    "eos_token_id": end_token,
}
OF_VISION: dict[str, Kind] = OF_TOWER | {
    "num_channels": partial(whole, largest=3),
    "image_size": partial(side, largest=LARGEST_PICTURE),
    "patch_size": partial(side, largest=LARGEST_PICTURE),
}
OF_MODEL: dict[str, Kind] = {
    "projection_dim": partial(whole, largest=WIDEST),
    "logit_scale_init_value": number,
    "initializer_factor": partial(between, least=0.0, largest=1e3),
}
TOWERS = {
    "text_config": OF_TEXT,
    "vision_config": OF_VISION,
    # Of early versions, whose values take the place of the others.
    "text_config_dict": OF_TEXT,
    "vision_config_dict": OF_VISION,
}


def known_fields(content: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of CLIP's towers in a configuration, each of its kind and within its bound.

    Args:
        content: of a file in transformers' format.

    Returns:
        A configuration with these alone, for `CLIPConfig.from_dict`.

    Raises:
        ValueError: a setting is of a wrong kind or out of bounds; it is named.
    """
    found = known_of(content, OF_MODEL, "")
    for tower, kinds in TOWERS.items():
        of_tower = content.get(tower)
        if of_tower is None:
            continue
        if not isinstance(of_tower, dict):
            raise ValueError(f"{tower} is {str(of_tower)[:60]!r}, expected an object")
        found[tower] = known_of(of_tower, kinds, f"{tower}.")
    return found


def known_of(content: Mapping[str, Any], kinds: Mapping[str, Kind], prefix: str) -> dict[str, Any]:
    """Settings of these kinds; `prefix` stands before their names in errors."""
    found = {}
    for name, kind in kinds.items():
        if name not in content:
            continue
        # Null is a token id that is not there; elsewhere it stands for the usual value.
        if content[name] is not None or kind in (token_id, end_token):
            found[name] = kind(content[name], f"{prefix}{name}")
    return found


def numbers_of(config: Mapping[str, Any]) -> int:
    """How many weights towers of a whole configuration have, biases left out: what it takes to build them.

    Args:
        config: with all sizes of both towers.
    """
    total = 0
    for tower in ("text_config", "vision_config"):
        of_tower = config[tower]
        width = of_tower["hidden_size"]
        layer = 4 * width * width + 2 * width * of_tower["intermediate_size"]
        total += of_tower["num_hidden_layers"] * layer + width * config["projection_dim"]

    text, vision = config["text_config"], config["vision_config"]
    total += text["hidden_size"] * (text["vocab_size"] + text["max_position_embeddings"])
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    total += vision["hidden_size"] * (vision["num_channels"] * vision["patch_size"] ** 2 + patches)
    return total
