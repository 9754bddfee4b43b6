"""A small CLIP with random weights, which takes small pictures, in a folder as transformers saves one."""

import json
from pathlib import Path

import torch
from hub_cache import CONTEXT, END, START, letters
from transformers import CLIPConfig, CLIPModel


def put_small_clip(folder: Path, width: int = 24, image_size: int = 32, seed: int = 0) -> Path:
    """Write a CLIP whose text tower spells words letter by letter."""
    folder.mkdir(parents=True)
    tokens = [*letters(), *(f"{letter}</w>" for letter in letters()), START, END]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    of_tokenizer = {"tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT, "pad_token": END}
    of_tokenizer |= {"bos_token": START, "eos_token": END, "unk_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(of_tokenizer))

    torch.manual_seed(seed)
    of_both = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 1, "num_attention_heads": 2}
    of_text = {"vocab_size": len(tokens), "bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1}
    config = CLIPConfig(
        text_config=of_both | of_text | {"max_position_embeddings": CONTEXT},
        vision_config=of_both | {"image_size": image_size, "patch_size": 16},
        projection_dim=width,
    )
    CLIPModel(config).save_pretrained(folder)
    return folder
