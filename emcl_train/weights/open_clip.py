"""OpenCLIP's description of its weights, `open_clip_config.json`: what no shape shows, and what is not built here.

OpenCLIP saves its models under OpenAI's names. Of the same shapes they compute something else: plain GELU in place of
OpenAI's approximation, unless `quick_gelu` says otherwise, and heads of other widths than 64 channels.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from emcl_train.errors import UserError
from emcl_train.reading.values import arguments, positive, side, switch, three, whole
from emcl_train.runs.files import read_json
from emcl_train.weights.hub import OPEN_CLIP_CONFIG
from emcl_train.weights.openai import PIXEL_MEAN, PIXEL_STD

WAY_OUT = "bring the file that belongs to these weights, or pass another --model.clip"
ELSEWHERE = (
    "pass --model.clip the folder that holds it, which OpenCLIP's own library builds (the extra openclip), or a CLIP "
    "of OpenAI's or OpenCLIP's own vision transformer and causal text transformer"
)

# What OpenCLIP takes where the file does not say.
VISION = {"layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16, "image_size": 224}
TEXT = {"layers": 12, "width": 512, "heads": 8, "mlp_ratio": 4.0, "context_length": 77, "vocab_size": 49408}
READ = {"norm_kwargs", "act_kwargs"}
# GELU's argument, and transformers' name of what it gives.
ACTIVATIONS = {"none": "gelu", "tanh": "gelu_pytorch_tanh"}

WHOLE = {
    "vision_cfg": ("layers", "width", "head_width"),
    "text_cfg": ("layers", "width", "heads", "context_length", "vocab_size"),
}
SQUARE = ("patch_size", "image_size")
# An mlp's width by its tower's, and what is added to a variance, are never larger.
WIDEST_MLP = 1000.0
LARGEST_EPS = 1.0

# Of these, values that change nothing in a tower that is built here: they are of training, of other towers, or the
# tokens that are given out as well.
WITHOUT_EFFECT = {
    "patch_dropout",
    "output_tokens",
    "attn_pooler_queries",
    "attn_pooler_heads",
    "timm_model_pretrained",
    "timm_pool",
    "timm_proj",
    "timm_proj_bias",
    "timm_drop",
    "timm_drop_path",
    "hf_model_pretrained",
    "hf_proj_type",
    "hf_pooler_type",
    "pad_id",
    "eos_id",
}
# And these may have one value beside nothing.
PLAIN = {"pos_embed_type": "learnable", "block_type": "default", "proj_type": "linear", "tokenizer_mode": "default"}
POOLS = {"vision_cfg": "tok", "text_cfg": "argmax"}
# Of the whole model.
OF_MODEL = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
OF_MODEL_WITHOUT_EFFECT = {"custom_text", "init_logit_scale", "nonscalar_logit_scale", "cast_dtype", "output_dict"}

PICTURES = {"interpolation": "bicubic", "resize_mode": "shortest", "mode": "RGB"}


def open_clip_config(path: Path) -> dict[str, Any] | None:
    """The configuration of transformers that says the same as `open_clip_config.json` beside a file of weights.

    Args:
        path: the file of weights.

    Returns:
        The configuration, or None if there is no such file.

    Raises:
        UserError: it cannot be read, or its model is not one that is built here; what it has is named.
    """
    file = path.parent / OPEN_CLIP_CONFIG
    if not file.is_file():
        return None
    content = read_json(file, WAY_OUT, what="OpenCLIP's description of a model", keys=())
    model = content.get("model_cfg", content)
    try:
        require_built_here(model, content.get("preprocess_cfg"), file)
        return _as_transformers(model)
    except ValueError as error:
        raise UserError(f"{file} does not describe a model: {error}; {WAY_OUT}") from error


def plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's weights under OpenAI's names and in its shapes.

    Without `text.`, which stands before the text tower's names where both towers are kept apart (`custom_text`),
    and with a logit scale that has no dimension.
    """
    plain = dict(state)
    if is_custom_text(state):
        plain = {name.removeprefix("text."): value for name, value in state.items()}
    if "logit_scale" in plain and plain["logit_scale"].shape == (1,):
        plain["logit_scale"] = plain["logit_scale"].reshape(())
    return plain


def is_custom_text(names: Iterable[str]) -> bool:
    """Whether these are OpenCLIP's names of two towers that are kept apart, with a text tower of its own."""
    return any(name.startswith("text.transformer.resblocks.") for name in names)


def other_tower(state: Mapping[str, Tensor]) -> str | None:
    """What OpenCLIP has in place of its own transformers, told by names of weights."""
    if any(name.startswith("visual.trunk.") for name in state):
        return "It has a vision tower of timm"
    if any(name.startswith("text.transformer.") and ".resblocks." not in name for name in state):
        return "It has a text tower of transformers (hf_model_name)"
    return None


def require_built_here(model: Any, pictures: Any, file: Path) -> None:
    """Raise a UserError where a description has a part that would have to be built, or pictures made, otherwise.

    Raises:
        ValueError: a value is of a wrong kind.
    """
    if not isinstance(model, dict) or not all(isinstance(model.get(tower), dict) for tower in POOLS):
        raise UserError(f"{file} must describe a model, with vision_cfg and text_cfg; {WAY_OUT}")

    if not_built := list(_not_built(model)):
        raise UserError(f"{file} describes a model that is not built here: it has {', '.join(not_built)}; {ELSEWHERE}")
    if otherwise := list(prepared_otherwise(arguments(pictures, "preprocess_cfg"), model["vision_cfg"])):
        raise UserError(
            f"{file} prepares pictures otherwise than CLIP, as is done here: it has {', '.join(otherwise)}; {ELSEWHERE}"
        )


def _not_built(model: Mapping[str, Any]) -> Iterator[str]:
    """Settings of a model that nothing here reads, and that are not as if they were not there."""
    for name, value in model.items():
        if name not in OF_MODEL | OF_MODEL_WITHOUT_EFFECT and value:
            yield f"{name} {value}"

    for tower, sizes in (("vision_cfg", VISION), ("text_cfg", TEXT)):
        # A tower of another library: its name says all, and the rest is about it.
        of_tower: dict[str, Any] = model[tower]
        other = next((name for name in ("timm_model_name", "hf_model_name") if of_tower.get(name)), None)
        if other:
            yield f"{tower}.{other} {of_tower[other]}"
            continue

        if isinstance(of_tower.get("layers"), list):
            yield f"{tower}.layers {of_tower['layers']}, which is a ResNet"
        usual = PLAIN | {"pool_type": POOLS[tower]}
        for name, value in of_tower.items():
            if name == "pool_type" and not value:  # OpenCLIP then gives out all positions
                yield f"{tower}.{name} {value!r}"
            elif value and name not in sizes.keys() | READ | WITHOUT_EFFECT and value != usual.get(name):
                yield f"{tower}.{name} {value}"

        # Of the arguments of norms and activations, one each.
        for setting, known in (("norm_kwargs", "eps"), ("act_kwargs", "approximate")):
            given = arguments(of_tower.get(setting), f"{tower}.{setting}")
            if others := {name: value for name, value in given.items() if name != known}:
                yield f"{tower}.{setting} {others}"
        if switch(model.get("quick_gelu", False), "quick_gelu") and of_tower.get("act_kwargs"):
            yield f"quick_gelu with {tower}.act_kwargs {of_tower['act_kwargs']}"


def prepared_otherwise(pictures: Mapping[str, Any], vision: Mapping[str, Any] | None = None) -> Iterator[str]:
    """Settings of how pictures are prepared that are not CLIP's, under OpenCLIP's names.

    Args:
        pictures: the settings.
        vision: description of the tower that sees them, as far as it is known.

    Raises:
        ValueError: a value is of a wrong kind.
    """
    for name, expected in (("mean", PIXEL_MEAN), ("std", PIXEL_STD)):
        if pictures.get(name) is None:
            continue
        value = three(pictures[name], f"preprocess_cfg.{name}")
        if any(abs(one - other) >= 1e-3 for one, other in zip(value, expected, strict=True)):
            yield f"{name} {pictures[name]} (CLIP: {list(expected)})"
    for name, usual in PICTURES.items():
        if pictures.get(name) not in (None, usual):
            yield f"{name} {pictures[name]} (CLIP: {usual})"

    # The tower has positions for pictures of one size.
    if vision is None or pictures.get("size") is None:
        return
    expected_side = side(vision.get("image_size", VISION["image_size"]), "vision_cfg.image_size")
    size = pictures["size"]
    sides = size if isinstance(size, list) else [size]
    if any(whole(one, "preprocess_cfg.size") != expected_side for one in sides):
        yield f"size {size} (the model: {expected_side})"


def _as_transformers(model: Mapping[str, Any]) -> dict[str, Any]:
    """A description as transformers' configuration of CLIP.

    Raises:
        ValueError: a value is of a wrong kind, heads do not divide a width, or an activation is not known.
    """
    vision = _read(model, "vision_cfg", VISION)
    text = _read(model, "text_cfg", TEXT)
    if vision["width"] % vision["head_width"]:
        raise ValueError(
            f"vision_cfg.head_width {vision['head_width']} does not divide width {vision['width']}, as is expected"
        )
    if text["width"] % text["heads"]:
        raise ValueError(f"text_cfg.heads {text['heads']} do not divide width {text['width']}, as is expected")

    quick = switch(model.get("quick_gelu", False), "quick_gelu")
    if "embed_dim" not in model:
        raise ValueError("it has no embed_dim")
    of_vision = _tower(vision, vision["width"] // vision["head_width"], quick)
    of_text = _tower(text, text["heads"], quick)
    of_vision |= {"patch_size": vision["patch_size"], "image_size": vision["image_size"]}
    of_text |= {"max_position_embeddings": text["context_length"], "vocab_size": text["vocab_size"]}
    of_text |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}  # the tokenizer says these
    embed_dim = whole(model["embed_dim"], "embed_dim")
    return {"text_config": of_text, "vision_config": of_vision, "projection_dim": embed_dim}


def _read(model: Mapping[str, Any], section: str, usual: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a tower that are read here, each of its kind."""
    given = usual | model[section]
    read: dict[str, Any] = {name: whole(given[name], f"{section}.{name}") for name in WHOLE[section]}
    read |= {name: side(given[name], f"{section}.{name}") for name in SQUARE if name in usual}
    read["mlp_ratio"] = positive(given["mlp_ratio"], f"{section}.mlp_ratio", largest=WIDEST_MLP)

    norm = arguments(given.get("norm_kwargs"), f"{section}.norm_kwargs")
    read["eps"] = positive(norm.get("eps", 1e-5), f"{section}.norm_kwargs.eps", largest=LARGEST_EPS)
    approximate = arguments(given.get("act_kwargs"), f"{section}.act_kwargs").get("approximate", "none")
    if not isinstance(approximate, str) or approximate not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"{section}.act_kwargs.approximate is {approximate!r}, expected one of {known}")
    read["act"] = ACTIVATIONS[approximate]
    return read


def _tower(of_tower: Mapping[str, Any], heads: int, quick: bool) -> dict[str, Any]:
    return {
        "hidden_size": of_tower["width"],
        "intermediate_size": int(of_tower["width"] * of_tower["mlp_ratio"]),
        "num_hidden_layers": of_tower["layers"],
        "num_attention_heads": heads,
        "hidden_act": "quick_gelu" if quick else of_tower["act"],
        "layer_norm_eps": of_tower["eps"],
    }
