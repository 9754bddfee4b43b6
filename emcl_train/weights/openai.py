"""CLIP's weights under OpenAI's names and under those of transformers: the same numbers, in the same order."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# Of the pictures that CLIP was trained on, by channel.
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)

# transformers' name: OpenAI's name.
NAMES = {
    "logit_scale": "logit_scale",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
}
# The same, but OpenAI multiplies by the matrix itself where transformers' linear layers hold its transpose.
TRANSPOSED = {"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"}
# Towers of layers, and the names inside a layer.
TOWERS = {
    "text_model.encoder.layers": "transformer.resblocks",
    "vision_model.encoder.layers": "visual.transformer.resblocks",
}
LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
# Queries, keys and values are three matrices there and the thirds of one here.
PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
# What decides a tower's outputs and is in no shape.
UNSEEN = ("num_attention_heads", "hidden_act", "layer_norm_eps")
# What the archives hold besides weights: sizes, and a mask that the text tower makes anew.
NO_WEIGHTS = re.compile(r"input_resolution|context_length|vocab_size|(.*\.)?attn_mask")


def is_openai(state: Mapping[str, Tensor]) -> bool:
    return "visual.conv1.weight" in state or "visual.layer1.0.conv1.weight" in state


def clip_to_openai(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A CLIPModel's state_dict under OpenAI's names. Every key is taken or raises a KeyError."""
    result = {}
    for name, value in state.items():
        if name in NAMES:
            result[NAMES[name]] = value
        elif name in TRANSPOSED:
            result[TRANSPOSED[name]] = value.mT.contiguous()
        else:
            tower, index, rest = _split(name, TOWERS)
            result |= layer_to_openai({rest: value}, state, f"{tower}.{index}", f"{TOWERS[tower]}.{index}")
    return result


def layer_to_openai(
    part: Mapping[str, Tensor], state: Mapping[str, Tensor], ours: str, theirs: str
) -> dict[str, Tensor]:
    """Entries of one layer renamed; each third of a projection stands for all three, taken from `state`."""
    result = {}
    for name, value in part.items():
        base, kind = name.rsplit(".", 1)
        if base in PROJECTIONS:
            thirds = [state[f"{ours}.{projection}.{kind}"] for projection in PROJECTIONS]
            result[f"{theirs}.attn.in_proj_{kind}"] = torch.cat(thirds)
        else:
            result[f"{theirs}.{LAYER[base]}.{kind}"] = value
    return result


def clip_from_openai(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `clip_to_openai`, for exactly the keys that it gives."""
    names = {theirs: ours for ours, theirs in NAMES.items()}
    transposed = {theirs: ours for ours, theirs in TRANSPOSED.items()}
    towers = {theirs: ours for ours, theirs in TOWERS.items()}
    result = {}
    for name, value in state.items():
        if name in names:
            result[names[name]] = value
        elif name in transposed:
            result[transposed[name]] = value.mT.contiguous()
        else:
            tower, index, rest = _split(name, towers)
            result |= layer_from_openai({rest: value}, f"{towers[tower]}.{index}")
    return result


def layer_from_openai(part: Mapping[str, Tensor], ours: str) -> dict[str, Tensor]:
    """Entries of one layer renamed, under the prefix `ours`."""
    names = {theirs: name for name, theirs in LAYER.items()}
    result = {}
    for name, value in part.items():
        if name.startswith("attn.in_proj_"):
            kind = name.removeprefix("attn.in_proj_")
            for projection, third in zip(PROJECTIONS, value.chunk(3), strict=True):
                result[f"{ours}.{projection}.{kind}"] = third.contiguous()
        else:
            base, kind = name.rsplit(".", 1)
            result[f"{ours}.{names[base]}.{kind}"] = value
    return result


def unseen_in(clip_config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What no shape shows of each tower, out of a whole configuration of CLIP."""
    return {tower: {name: clip_config[tower][name] for name in UNSEEN} for tower in ("text_config", "vision_config")}


def follows_openai(clip_config: Mapping[str, Any]) -> bool:
    """Whether towers are those that a file with OpenAI's names is taken for: quick_gelu, 64 channels a head."""
    towers = (clip_config["text_config"], clip_config["vision_config"])
    return all({name: tower[name] for name in UNSEEN} == openai_rule(tower["hidden_size"]) for tower in towers)


def openai_rule(width: int, heads: int | None = None) -> dict[str, Any]:
    """What no shape shows of a tower of this width, in OpenAI's models."""
    return dict(zip(UNSEEN, (heads or max(1, width // 64), "quick_gelu", 1e-5), strict=True))


def openai_clip_config(
    state: Mapping[str, Tensor],
    *,
    heads: int | None,
    eos_token_id: int,
    pad_token_id: int,
    unseen: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Arguments of transformers' CLIPConfig for weights under OpenAI's names: every size is in the shapes.

    Args:
        state: the weights.
        heads: of both towers' attention. None: OpenAI's rule, one for every 64 channels.
        eos_token_id: of the tokenizer.
        pad_token_id: of the tokenizer.
        unseen: what no shape shows, see `unseen_in`; without it, OpenAI's rule.
    """
    conv = state["visual.conv1.weight"]  # [width of the tower, 3, patch, patch]
    positions = state["visual.positional_embedding"]  # [1 + patches of an image, width of the tower]
    patch = conv.shape[-1]
    width = state["text_projection"].shape[1]

    text = _tower_config("transformer", state, state["ln_final.weight"].shape[0], heads) | {
        "vocab_size": state["token_embedding.weight"].shape[0],
        "max_position_embeddings": state["positional_embedding"].shape[0],
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
        "bos_token_id": None,
    }
    vision = _tower_config("visual.transformer", state, conv.shape[0], heads) | {
        "patch_size": patch,
        "image_size": patch * round((positions.shape[0] - 1) ** 0.5),
    }

    unseen = unseen or {"text_config": {}, "vision_config": {}}
    return {
        "text_config": text | {"projection_dim": width} | dict(unseen["text_config"]),
        "vision_config": vision | {"projection_dim": width} | dict(unseen["vision_config"]),
        "projection_dim": width,
    }


def _tower_config(tower: str, state: Mapping[str, Tensor], width: int, heads: int | None) -> dict[str, Any]:
    layers = {name.removeprefix(f"{tower}.resblocks.").split(".")[0] for name in state if name.startswith(f"{tower}.")}
    return {
        "hidden_size": width,
        "intermediate_size": state[f"{tower}.resblocks.0.mlp.c_fc.bias"].shape[0],
        "num_hidden_layers": len(layers),
        **openai_rule(width, heads),
    }


def _split(name: str, towers: Mapping[str, str]) -> tuple[str, str, str]:
    """Tower, index of the layer, and the name inside it."""
    for tower in towers:
        if name.startswith(f"{tower}."):
            index, _, rest = name.removeprefix(f"{tower}.").partition(".")
            return tower, index, rest
    raise KeyError(name)
