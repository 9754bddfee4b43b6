"""Small models of OpenCLIP with random weights, in the layout in which it writes its own."""

import json
from pathlib import Path

import open_clip
import timm
import torch
from safetensors.torch import save_file
from small_towers import bert, gemma
from timm.models.eva import _create_eva
from timm.models.vision_transformer import _create_vision_transformer

SIZE = 24
TEXT = {"context_length": 16, "width": 16, "heads": 2, "layers": 2}
TINY = {"img_size": SIZE, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
ROPE = {"use_rot_pos_emb": True, "ref_feat_shape": (3, 3), "rope_grid_offset": 1.0, "rope_grid_indexing": "xy"}


@timm.models.register_model
def vit_tiny_siglip_test(pretrained=False, **kwargs):
    """As timm's towers of SigLIP, which pool by attention and have no class token."""
    return _create_vision_transformer(
        "vit_tiny_siglip_test", False, **TINY, class_token=False, **{"global_pool": "map", **kwargs}
    )


@timm.models.register_model
def vit_tiny_pe_test(pretrained=False, **kwargs):
    """As timm's towers of PE-Core: turned positions, a norm before the layers, attention as the pool."""
    parts = ROPE | {"attn_type": "rope", "use_pre_transformer_norm": True}
    return _create_eva("vit_tiny_pe_test", False, **TINY, **parts, **{"global_pool": "map", **kwargs})


KINDS = {
    # What transformers' CLIP has not: layer scale, another pool and its norm behind it, no norm before the layers.
    "clip": {
        "embed_dim": 20,
        "custom_text": True,
        "vision_cfg": {
            "image_size": SIZE, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8, "ls_init_value": 0.1,
            "pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True,
        },
        "text_cfg": TEXT | {"qk_norm": False, "pool_type": "argmax"},
    },
    "siglip": {
        "embed_dim": 16,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": SIZE, "timm_model_name": "vit_tiny_siglip_test", "timm_model_pretrained": True,
            "timm_pool": "map", "timm_proj": "none",
        },
        "text_cfg": TEXT | {
            "vocab_size": 400, "hf_tokenizer_name": "some/where", "tokenizer_kwargs": {"clean": "canonicalize"},
            "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6},
            "act_kwargs": {"approximate": "tanh"},
        },
    },
    "pe": {
        "embed_dim": 20,
        "custom_text": True,
        "vision_cfg": {
            "image_size": SIZE, "timm_model_name": "vit_tiny_pe_test", "timm_model_pretrained": False,
            "timm_pool": "map", "timm_proj": None,
        },
        "text_cfg": TEXT,
    },
    # Both towers in one, as old files have it, with a BERT's tokenizer whose ending token is taken for padding (CLIPA).
    "clipa": {
        "embed_dim": 20,
        "vision_cfg": {
            "image_size": SIZE, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8, "no_ln_pre": True,
            "pool_type": "avg",
        },
        "text_cfg": TEXT | {
            "vocab_size": 200, "hf_tokenizer_name": "some/bert", "tokenizer_kwargs": {"strip_sep_token": True},
            "no_causal_mask": True, "pool_type": "last",
        },
    },
}  # fmt: skip
PICTURES = {
    "clip": {"interpolation": "bilinear"},
    "siglip": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"},
    "pe": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"},
    "clipa": {"size": SIZE, "mode": "RGB", "resize_mode": "shortest", "interpolation": "bicubic"},
}
TOKENIZERS = {"siglip": gemma, "clipa": bert}


def write_open_clip(kind: str, folder: Path) -> Path:
    """A small model of a kind: its description, its weights, and its tokenizer if it has one of its own."""
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": KINDS[kind], "preprocess_cfg": PICTURES[kind]})
    )
    if kind in TOKENIZERS:
        TOKENIZERS[kind]().save_pretrained(folder)

    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
    for parameter in model.parameters():  # those that begin as zeros would hide mistakes
        if parameter.dim() > 0:
            torch.nn.init.normal_(parameter, std=0.2)
    if kind == "siglip":
        with torch.no_grad():
            model.logit_scale.fill_(5.0)
    if kind == "clipa":
        torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    else:
        save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder
