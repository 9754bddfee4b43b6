"""What is taken from `open_clip_config.json`, OpenCLIP's description of a model, which may be anybody's.

Each known setting has a kind and a bound. A setting that is not known and is not as if it were not there would make
another model: it is refused by its name. The same holds for how captions are tokenized.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from emcl_train.reading.clip_fields import (
    DEEPEST,
    MOST_HEADS,
    MOST_TOKENS,
    WIDEST,
    Kind,
)
from emcl_train.reading.values import LARGEST, arguments, between, number, one_of, positive, side, switch, whole

wide = partial(whole, largest=WIDEST)
share = partial(between, least=0.0, largest=1.0)
WIDEST_MLP = 1000.0

# What is no weight, but memory: a mask of tokens by tokens, layers behind a trunk, what a picture becomes on its way.
# The 144 models of OpenCLIP's own list have 77 tokens, 512 pixels and 1536 numbers at most.
MOST_POSITIONS = 1024
LARGEST_PICTURE = 1024
MOST_FEATURES = 8192

OF_TIMM = re.compile(r"[a-z0-9_]{1,100}(\.[a-z0-9_]{1,100})?")
"""A name in timm's own list. Names with a schema, such as "hf_hub:", lead elsewhere."""
NAME = re.compile(r"[\w.-]{1,100}(/[\w.-]{1,100})?")


def _timm_name(value: Any, name: str) -> str:
    if not isinstance(value, str) or not OF_TIMM.fullmatch(value):
        raise ValueError(f"{name} is {str(value)[:60]!r}, expected a name of timm's own list, without a schema")
    return value


def _layers(value: Any, name: str) -> int | list[int]:
    """How many layers a transformer has; of a ResNet, how many blocks each of its four parts has."""
    if not isinstance(value, list):
        return whole(value, name, largest=DEEPEST)
    if len(value) != 4:
        raise ValueError(f"{name} is {str(value)[:60]}, expected one number, or the four of a ResNet")
    return [whole(one, name, largest=DEEPEST) for one in value]


def _named(known: Mapping[str, Kind], value: Any, name: str) -> dict[str, Any]:
    """Arguments of a function, of which some are known."""
    given = arguments(value, name)
    if others := sorted(given.keys() - known.keys()):
        raise ValueError(f"{name}.{others[0]} is not built here")
    return {key: known[key](one, f"{name}.{key}") for key, one in given.items()}


def _size(value: Any, name: str) -> float | None:
    """At which layer scale begins: null where there is none."""
    return None if value is None else number(value, name)


def _may_be_null(known: tuple[str, ...], value: Any, name: str) -> str | None:
    return None if value is None else one_of(value, name, known)


OF_TRANSFORMER: dict[str, Kind] = {
    "width": wide,
    "mlp_ratio": partial(positive, largest=WIDEST_MLP),
    "ls_init_value": _size,
    "final_ln_after_pool": switch,
    "act_kwargs": partial(_named, {"approximate": partial(one_of, known=("none", "tanh"))}),
    "norm_kwargs": partial(_named, {"eps": partial(positive, largest=1.0)}),
    "block_type": partial(_may_be_null, ("default", "custom")),
    **dict.fromkeys(("qk_norm", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"), switch),
}
OF_VISION: dict[str, Kind] = OF_TRANSFORMER | {
    "layers": _layers,
    "head_width": wide,
    "patch_size": partial(side, largest=LARGEST_PICTURE),
    "patch_dropout": partial(between, least=0.0, largest=0.99),
    "no_ln_pre": switch,
    "pos_embed_type": partial(one_of, known=("learnable",)),
    "pool_type": partial(one_of, known=("tok", "avg")),
}
OF_TRUNK: dict[str, Kind] = {
    "timm_model_name": _timm_name,
    "timm_pool": partial(_may_be_null, ("", "avg", "max", "avgmax", "token", "map", "abs_attn", "rot_attn")),
    "timm_proj": partial(_may_be_null, ("", "linear", "mlp", "none")),
    "timm_proj_bias": switch,
    "timm_drop": share,
    "timm_drop_path": lambda value, name: None if value is None else share(value, name),
    "patch_dropout": OF_VISION["patch_dropout"],
}
"""Of a vision tower that is timm's."""
OF_TEXT: dict[str, Kind] = OF_TRANSFORMER | {
    "context_length": partial(whole, largest=MOST_POSITIONS),
    "vocab_size": partial(whole, largest=MOST_TOKENS),
    "layers": partial(whole, largest=DEEPEST),
    "heads": partial(whole, largest=MOST_HEADS),
    "no_causal_mask": switch,
    "pad_id": partial(between, least=0.0, largest=float(LARGEST)),
    "eos_id": partial(between, least=0.0, largest=float(LARGEST)),
    "pool_type": partial(one_of, known=("argmax", "eos", "first", "last")),
    "proj_type": partial(one_of, known=("linear", "none")),
    "proj_bias": switch,
}

# What OpenCLIP takes where the file does not say.
USUAL_TRANSFORMER: dict[str, Any] = {
    "mlp_ratio": 4.0, "ls_init_value": None, "final_ln_after_pool": False, "act_kwargs": {}, "norm_kwargs": {},
    "block_type": None, "qk_norm": False, "scale_heads": False, "scale_attn_inner": False, "scale_attn": False,
    "scale_fc": False,
}  # fmt: skip
USUAL_VISION = USUAL_TRANSFORMER | {
    "layers": 12, "width": 768, "head_width": 64, "patch_size": 16, "patch_dropout": 0.0, "no_ln_pre": False,
    "pos_embed_type": "learnable", "pool_type": "tok",
}  # fmt: skip
USUAL_TRUNK = {
    "timm_pool": "avg", "timm_proj": "linear", "timm_proj_bias": False, "timm_drop": 0.0, "timm_drop_path": None,
    "patch_dropout": 0.0,
}  # fmt: skip
USUAL_TEXT = USUAL_TRANSFORMER | {
    "context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12, "no_causal_mask": False,
    "pad_id": 0, "eos_id": 2, "pool_type": "argmax", "proj_type": "linear", "proj_bias": False,
}  # fmt: skip
NULL_IS_A_VALUE = ("timm_pool", "timm_proj")
"""Of these null is not what is taken where nothing is said."""

# Settings of training, or of what else a model may give out: they change no feature. With a trunk of timm, what would
# size a transformer of OpenCLIP's own has no effect either.
WITHOUT_EFFECT = {
    "": {"init_logit_scale", "nonscalar_logit_scale", "cast_dtype", "output_dict"},
    "vision_cfg": {"output_tokens", "timm_model_pretrained", "attn_pooler_queries", "attn_pooler_heads"},
    "text_cfg": {
        "output_tokens", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type", "hf_tokenizer_name",
        "tokenizer_mode", "tokenizer_kwargs",
    },
}  # fmt: skip
ELSEWHERE = {
    "multimodal_cfg": "a CoCa, which has a decoder beside its towers",
    "text_cfg.hf_model_name": "a text tower of transformers, whose configuration is another entry of the hub",
    "text_cfg.embed_cls": "the text tower of a CoCa",
}
"""What is asked for most of what is not built here."""
BESIDE = ("preprocess_cfg", "model_type", "projection_dim", "pictures")
"""What stands beside a model in a description."""
CLEANING = {"lower": "clip", "canonicalize": "canonicalize", "whitespace": "whitespace"}
"""OpenCLIP's names of how captions are cleaned, and values of `data.clean_captions`."""


@dataclass(frozen=True)
class Words:
    """How captions become tokens."""

    cleaning: str
    """As `data.clean_captions`."""
    tokenizer: str | None
    """The hub's name of its tokenizer; None: CLIP's own byte pairs."""
    without_end: bool = False
    """Whether the token that ends a caption is taken for padding."""


def words_of(content: Mapping[str, Any]) -> Words:
    """What OpenCLIP's description says of captions.

    Raises:
        ValueError: they are tokenized in a way that is not built here.
    """
    text = _section(_model(content), "text_cfg")
    name = text.get("hf_tokenizer_name") or None
    if name is not None and (not isinstance(name, str) or not NAME.fullmatch(name)):
        raise ValueError(f"text_cfg.hf_tokenizer_name is {str(name)[:60]!r}, expected a name of the hub")
    if text.get("tokenizer_mode") not in (None, "", "default"):
        raise ValueError(f"text_cfg.tokenizer_mode is {str(text['tokenizer_mode'])[:60]!r}, which is not built here")

    kinds: dict[str, Kind] = {"clean": partial(one_of, known=CLEANING), "strip_sep_token": switch}
    given = arguments(text.get("tokenizer_kwargs"), "text_cfg.tokenizer_kwargs")
    given = {key: value for key, value in given.items() if key in kinds or value}
    found = _named(kinds, given, "text_cfg.tokenizer_kwargs")
    without_end = found.get("strip_sep_token", False)
    if without_end and name is None:
        raise ValueError("text_cfg.tokenizer_kwargs.strip_sep_token is said without text_cfg.hf_tokenizer_name")
    return Words(CLEANING[found.get("clean", "lower" if name is None else "whitespace")], name, without_end)


class OpenCLIPFields:
    """The settings of OpenCLIP's models, in place of `Fields`: in the words of its description, with `model_cfg`."""

    config: str | None = None
    """No class of transformers fills in what is not said: `known` does."""

    def known(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """`model_cfg` with all settings that the towers are built of.

        Raises:
            ValueError: one is of a wrong kind, out of bounds, or not built here; it is named.
        """
        model = _model(content)
        sections = {tower: _section(model, tower) for tower in ("vision_cfg", "text_cfg")}
        for name, what in ELSEWHERE.items():
            section, _, last = name.rpartition(".")
            if (sections[section] if section else model).get(last):
                raise ValueError(f"it has {name}, {what}; this is not built here")
        if "embed_dim" not in model:
            raise ValueError("it has no embed_dim")

        vision = sections["vision_cfg"]
        size = side(vision.get("image_size", 224), "vision_cfg.image_size", largest=LARGEST_PICTURE)
        if vision.get("timm_model_name"):
            tower = _filled(vision, OF_TRUNK, USUAL_TRUNK, "vision_cfg", OF_VISION.keys() - USUAL_TRANSFORMER.keys())
        else:
            tower = _filled(vision, OF_VISION, USUAL_VISION, "vision_cfg", OF_TRUNK.keys())
        kinds: dict[str, Kind] = {"custom_text": switch, "quick_gelu": switch, "init_logit_bias": number}
        others = {name: value for name, value in model.items() if name not in ("embed_dim", "vision_cfg", "text_cfg")}
        usual = {"custom_text": False, "quick_gelu": False, "init_logit_bias": None}
        found = _filled(others, kinds, usual, "")
        found |= {
            "embed_dim": whole(model["embed_dim"], "embed_dim", largest=MOST_FEATURES),
            "vision_cfg": tower | {"image_size": size},
        }
        text = _filled(sections["text_cfg"], OF_TEXT, USUAL_TEXT, "text_cfg")
        text |= {name: int(text[name]) for name in ("pad_id", "eos_id")}
        return {"model_cfg": found | {"text_cfg": text}}

    def width(self, towers: Mapping[str, Any]) -> int:
        """Of the features."""
        model = towers["model_cfg"]
        text = model["text_cfg"]
        if text["proj_type"] == "none" and text["width"] != model["embed_dim"]:
            raise ValueError(
                f"text_cfg.width is {text['width']}, expected embed_dim, {model['embed_dim']}: it has no projection"
            )
        return int(model["embed_dim"])

    def positions(self, content: Mapping[str, Any]) -> int:
        """Tokens that every caption is cut or padded to, from a description as a file has it."""
        return self.longest(self.known(content))

    def longest(self, towers: Mapping[str, Any]) -> int:
        return int(towers["model_cfg"]["text_cfg"]["context_length"])

    def frames(self, content: Mapping[str, Any]) -> int | None:
        """Any number: each is seen for itself."""
        return None

    def image_size(self, towers: Mapping[str, Any]) -> int:
        return int(towers["model_cfg"]["vision_cfg"]["image_size"])

    def vocabulary(self, towers: Mapping[str, Any]) -> int:
        return int(towers["model_cfg"]["text_cfg"]["vocab_size"])

    def loss(self, content: Mapping[str, Any]) -> str | None:
        """What the model was trained with: with a bias of the logits, the sigmoid loss."""
        model = content.get("model_cfg", content)
        bias = model.get("init_logit_bias") if isinstance(model, dict) else None
        return None if bias is None else "sigmoid"

    def require_fitting(self, towers: Mapping[str, Any]) -> None:
        """Raise a ValueError where settings of a whole description do not fit each other."""
        vision, text = towers["model_cfg"]["vision_cfg"], towers["model_cfg"]["text_cfg"]
        if text["width"] % text["heads"]:
            raise ValueError(f"text_cfg.heads is {text['heads']}, which does not divide text_cfg.width {text['width']}")
        if "layers" not in vision or isinstance(vision["layers"], list):
            return
        if vision["width"] % vision["head_width"]:
            raise ValueError(
                f"vision_cfg.head_width is {vision['head_width']}, which does not divide vision_cfg.width "
                f"{vision['width']}"
            )
        if vision["patch_size"] > vision["image_size"]:
            raise ValueError(
                f"vision_cfg.patch_size is {vision['patch_size']}, larger than its image_size {vision['image_size']}"
            )

    def numbers(self, towers: Mapping[str, Any]) -> int:
        """How many weights the towers have, biases left out; those of timm's trunk, which timm knows, as well."""
        model = towers["model_cfg"]
        text = model["text_cfg"]
        total = text["width"] * (text["vocab_size"] + text["context_length"] + model["embed_dim"]) + _layers_of(text)
        vision = model["vision_cfg"]
        if "layers" not in vision:
            return int(total)
        width, size = vision["width"], vision["image_size"]
        if isinstance(vision["layers"], list):
            blocks = sum(17 * count * (width << part) ** 2 for part, count in enumerate(vision["layers"]))
            pooled = 32 * width * ((size // 32) ** 2 + 3 * 32 * width + model["embed_dim"])
            return int(total + blocks + pooled)
        patch = vision["patch_size"]
        embedded = width * (3 * patch**2 + (size // patch) ** 2 + model["embed_dim"])
        return int(total + _layers_of(vision) + embedded)

    def trunk(self, towers: Mapping[str, Any]) -> str | None:
        """timm's name of the vision tower; None where it is OpenCLIP's own."""
        name: str | None = towers["model_cfg"]["vision_cfg"].get("timm_model_name")
        return name

    def in_words(self, towers: Mapping[str, Any]) -> str:
        """The vision tower, for a table."""
        vision = towers["model_cfg"]["vision_cfg"]
        if (trunk := self.trunk(towers)) is not None:
            return f"{trunk} of timm"
        if isinstance(vision["layers"], list):
            return f"a ResNet of width {vision['width']}"
        return f"{vision['layers']} layers of width {vision['width']} on patches of {vision['patch_size']} pixels"


def _model(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a file that describes the model: in old files, all of it."""
    if "model_cfg" in content:
        return _object(content["model_cfg"], "model_cfg")
    return {name: value for name, value in content.items() if name not in BESIDE}


def _section(model: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if name not in model:
        raise ValueError(f"it has no {name}")
    return _object(model[name], name)


def _object(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {str(value)[:60]!r}, expected an object")
    return value


def _filled(
    content: Mapping[str, Any],
    kinds: Mapping[str, Callable[[Any, str], Any]],
    usual: Mapping[str, Any],
    section: str,
    beside: Any = (),
) -> dict[str, Any]:
    """Settings of these kinds, and what is taken where nothing is said; `beside`: names that have no effect here."""
    prefix = f"{section}." if section else ""
    found = dict(usual)
    for name, value in content.items():
        if name in kinds:
            if value is not None or name in NULL_IS_A_VALUE:
                found[name] = kinds[name](value, f"{prefix}{name}")
        elif value and name != "image_size" and name not in WITHOUT_EFFECT[section] and name not in beside:
            raise ValueError(f"{prefix}{name} is {str(value)[:60]!r}, which is not built here")
    return found


def _layers_of(tower: Mapping[str, Any]) -> int:
    width = tower["width"]
    return int(tower["layers"] * (4 * width**2 + 2 * width * int(width * tower["mlp_ratio"])))
