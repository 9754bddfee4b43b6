"""What is taken from the configurations of towers that are not CLIP's, by `model_type`; they may be anybody's.

As `clip_fields.py` has it for CLIP: each known setting has a kind and a bound, all others are left where they are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from emcl_train.reading.clip_fields import ACTIVATIONS, DEEPEST, MOST_HEADS, WIDEST, Kind, known_of
from emcl_train.reading.clip_fields import OF_MODEL as CLIPS_MODEL
from emcl_train.reading.clip_fields import OF_TEXT as CLIPS_TEXT
from emcl_train.reading.clip_fields import OF_VISION as CLIPS_VISION
from emcl_train.reading.open_clip_fields import OpenCLIPFields
from emcl_train.reading.values import between, number, one_of, switch, whole

wide = partial(whole, largest=WIDEST)
share = partial(between, least=0.0, largest=1.0)


def _without(kinds: Mapping[str, Kind], *names: str) -> dict[str, Kind]:
    return {name: kind for name, kind in kinds.items() if name not in names}


INITIAL = ("initializer_range", "initializer_factor")
TEXT = _without(CLIPS_TEXT, "projection_dim")
VISION = _without(CLIPS_VISION, "projection_dim")
BERT = _without(TEXT, "attention_dropout") | {
    "hidden_dropout_prob": share,
    "attention_probs_dropout_prob": share,
    "type_vocab_size": partial(whole, largest=WIDEST),
}
OF_CLIPS: dict[str, Kind] = {
    "num_frames": partial(whole, largest=WIDEST),
    "mit_hidden_size": wide,
    "mit_intermediate_size": partial(whole, largest=16 * WIDEST),
    "mit_num_hidden_layers": partial(whole, largest=DEEPEST),
    "mit_num_attention_heads": partial(whole, largest=MOST_HEADS),
    "drop_path_rate": share,
}
"""Of a vision tower whose frames look at each other."""
OF_PROMPTS: dict[str, Kind] = {
    "prompt_layers": partial(whole, largest=DEEPEST),
    "prompt_alpha": number,
    "prompt_hidden_act": partial(one_of, known=ACTIVATIONS),
    "prompt_num_attention_heads": partial(whole, largest=MOST_HEADS),
    "prompt_attention_dropout": share,
    "prompt_projection_dropout": share,
}
USUAL_FRAMES = 8
"""Of X-CLIP, where a file does not say."""
PROJECTED = CLIPS_MODEL
"""Of a model whose towers end in a projection of their own."""


OF_TEXT = ("text_config.hidden_size", "text_config.num_attention_heads")
OF_VISION = ("vision_config.hidden_size", "vision_config.num_attention_heads")
OF_FRAMES = ("vision_config.mit_hidden_size", "vision_config.mit_num_attention_heads")
PROMPTS = ("projection_dim", "prompt_num_attention_heads")


@dataclass(frozen=True)
class Fields:
    """The settings of one family."""

    config: str
    """Its class of transformers, which fills in what a file does not say."""
    text: Mapping[str, Kind]
    vision: Mapping[str, Kind]
    model: Mapping[str, Kind] = field(default_factory=lambda: PROJECTED)
    width: Callable[[Mapping[str, Any]], int] = lambda towers: int(towers["projection_dim"])
    """Of the features, from a configuration that says all."""
    longest: Callable[[Mapping[str, Any]], int] = lambda towers: int(towers["text_config"]["max_position_embeddings"])
    """Tokens of a caption at most, likewise."""
    usual_positions: int = 77
    """Of the text tower, where a file does not say."""
    more: Callable[[Mapping[str, Any]], int] = lambda towers: 0
    """Weights that the family has beside layers, projections and embeddings."""
    heads: Sequence[tuple[str, str]] = (OF_TEXT, OF_VISION)
    """Dotted names of a width and of the heads that divide it."""
    padded: bool = False
    """Whether the text tower has an embedding of padding, at `pad_token_id`."""

    def positions(self, content: Mapping[str, Any]) -> int:
        """Tokens of a caption at most, from a configuration as a file has it.

        Raises:
            ValueError: a setting is of a wrong kind or out of bounds.
        """
        known = self.known(content)
        known["text_config"].setdefault("max_position_embeddings", self.usual_positions)
        return self._longest(known)

    def frames(self, content: Mapping[str, Any]) -> int | None:
        """The frames that a clip must have, from a configuration as a file has it; None: any number.

        Raises:
            ValueError: as of `positions`.
        """
        if "num_frames" not in self.vision:
            return None
        return int(self.known(content)["vision_config"].get("num_frames", USUAL_FRAMES))

    def known(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """The known settings of a configuration.

        Raises:
            ValueError: one is of a wrong kind or out of bounds; it is named.
        """
        found = known_of(content, self.model, "")
        for tower, kinds in (("text_config", self.text), ("vision_config", self.vision)):
            of_tower = content.get(tower)
            if of_tower is not None and not isinstance(of_tower, dict):
                raise ValueError(f"{tower} is {str(of_tower)[:60]!r}, expected an object")
            found[tower] = known_of(of_tower or {}, kinds, f"{tower}.")
        if self.padded and found["text_config"].get("pad_token_id", 0) is None:
            del found["text_config"]["pad_token_id"]  # as the class has it
        return found

    def image_size(self, towers: Mapping[str, Any]) -> int:
        """Height and width of the pictures that described towers see."""
        return int(towers["vision_config"]["image_size"])

    def vocabulary(self, towers: Mapping[str, Any]) -> int:
        """How many tokens described towers know."""
        return int(towers["text_config"]["vocab_size"])

    def loss(self, content: Mapping[str, Any]) -> str | None:
        """What a configuration says of the loss that its model was trained with; None: nothing."""
        return None

    def trunk(self, towers: Mapping[str, Any]) -> str | None:
        """timm's name of the vision tower; None: it is none of timm's."""
        return None

    def in_words(self, towers: Mapping[str, Any]) -> str:
        """The vision tower, for a table."""
        vision = towers["vision_config"]
        width, layers, patch = vision["hidden_size"], vision["num_hidden_layers"], vision["patch_size"]
        return f"{layers} layers of width {width} on patches of {patch} pixels"

    def require_fitting(self, towers: Mapping[str, Any]) -> None:
        """Raise a ValueError where settings of a whole configuration do not fit each other."""

        def value(name: str) -> int:
            section, _, last = name.rpartition(".")
            return int((towers[section] if section else towers)[last])

        for width, heads in self.heads:
            if value(width) % value(heads):
                raise ValueError(f"{heads} is {value(heads)}, which does not divide {width}, {value(width)}")
        text = towers["text_config"]
        if self.padded and not 0 <= text["pad_token_id"] < text["vocab_size"]:
            raise ValueError(
                f"text_config.pad_token_id is {text['pad_token_id']}, expected a number below vocab_size, "
                f"{text['vocab_size']}"
            )
        self._longest(towers)

    def _longest(self, towers: Mapping[str, Any]) -> int:
        longest = self.longest(towers)
        if longest < 1:
            positions = towers["text_config"]["max_position_embeddings"]
            raise ValueError(f"text_config.max_position_embeddings is {positions}, which leaves none for a caption")
        return longest

    def numbers(self, towers: Mapping[str, Any]) -> int:
        """How many weights towers of a whole configuration have, biases left out."""
        width = self.width(towers)
        total = self.more(towers)
        for tower in ("text_config", "vision_config"):
            of_tower = towers[tower]
            hidden = of_tower["hidden_size"]
            total += of_tower["num_hidden_layers"] * (4 * hidden**2 + 2 * hidden * of_tower["intermediate_size"])
            total += hidden * width

        text, vision = towers["text_config"], towers["vision_config"]
        total += text["hidden_size"] * (text["vocab_size"] + text["max_position_embeddings"])
        patches = (vision["image_size"] // vision["patch_size"]) ** 2
        total += vision["hidden_size"] * (vision["num_channels"] * vision["patch_size"] ** 2 + patches)
        return int(total)


def _pooled(value: Any, name: str) -> bool:
    """SigLIP's vision tower without its pooling gives no feature of a picture."""
    if not switch(value, name):
        raise ValueError(f"{name} is {value!r}, expected true: without it the tower has no feature of a picture")
    return True


def _siglips_width(towers: Mapping[str, Any]) -> int:
    """Both towers end in the width of the vision tower."""
    text, vision = towers["text_config"]["projection_size"], towers["vision_config"]["hidden_size"]
    if text != vision:
        raise ValueError(f"text_config.projection_size is {text}, expected vision_config.hidden_size, {vision}")
    return int(vision)


def _xclips_width(towers: Mapping[str, Any]) -> int:
    """Features of frames go through the transformer over frames as they are."""
    over_frames, width = towers["vision_config"]["mit_hidden_size"], towers["projection_dim"]
    if over_frames != width:
        raise ValueError(f"vision_config.mit_hidden_size is {over_frames}, expected projection_dim, {width}")
    return int(width)


def _attention_pool(towers: Mapping[str, Any]) -> int:
    vision = towers["vision_config"]
    hidden = vision["hidden_size"]
    return int(4 * hidden**2 + 2 * hidden * vision["intermediate_size"])


def _of_clips(towers: Mapping[str, Any]) -> int:
    """X-CLIP's messages between frames, the transformer over frames, and its prompts."""
    vision, width = towers["vision_config"], towers["projection_dim"]
    messages = vision["num_hidden_layers"] * 5 * vision["hidden_size"] ** 2
    of_layer = 4 * vision["mit_hidden_size"] ** 2 + 2 * vision["mit_hidden_size"] * vision["mit_intermediate_size"]
    over_frames = vision["mit_num_hidden_layers"] * of_layer + vision["num_frames"] * vision["mit_hidden_size"]
    prompts = towers["prompt_layers"] * 12 * width**2 + vision["hidden_size"] * width
    return int(messages + over_frames + prompts)


OPEN_CLIP = "open_clip"
"""The family of OpenCLIP's models, which have no `config.json` that names one."""
FIELDS: dict[str, Fields | OpenCLIPFields] = {
    "siglip": Fields(
        "SiglipConfig",
        _without(TEXT, *INITIAL) | {"projection_size": wide},
        _without(VISION, *INITIAL) | {"vision_use_head": _pooled},
        {"initializer_factor": PROJECTED["initializer_factor"]},
        width=_siglips_width,
        usual_positions=64,
        more=_attention_pool,
    ),
    "metaclip_2": Fields("MetaClip2Config", CLIPS_TEXT, CLIPS_VISION),
    "altclip": Fields(
        "AltCLIPConfig",
        BERT | {"project_dim": wide},
        CLIPS_VISION,
        # Positions are counted from behind that of padding on.
        longest=lambda towers: (
            towers["text_config"]["max_position_embeddings"] - towers["text_config"].get("pad_token_id", 1) - 1
        ),
        usual_positions=514,
        more=lambda towers: (
            towers["text_config"]["project_dim"] * (towers["text_config"]["hidden_size"] + towers["projection_dim"])
        ),
        padded=True,
    ),
    "chinese_clip": Fields(
        "ChineseCLIPConfig",
        BERT,
        CLIPS_VISION,
        PROJECTED | {"initializer_range": PROJECTED["initializer_factor"]},
        usual_positions=512,
        padded=True,
    ),
    "xclip": Fields(
        "XCLIPConfig",
        TEXT,
        VISION | OF_CLIPS,
        PROJECTED | OF_PROMPTS,
        width=_xclips_width,
        more=_of_clips,
        heads=(OF_TEXT, OF_VISION, OF_FRAMES, PROMPTS),
    ),
    OPEN_CLIP: OpenCLIPFields(),
}
"""By `model_type`. CLIP's are in `clip_fields.py`."""
