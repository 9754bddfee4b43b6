"""A CLIP with random weights and small sizes in the cache of the hub, under the name of a real one."""

import json
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel

COMMIT = "0" * 40
START, END = "<|startoftext|>", "<|endoftext|>"
CONTEXT = 77


def letters() -> list[str]:
    """The printable letters that stand for the 256 bytes in CLIP's vocabulary, in its order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [*map(chr, printable), *(chr(256 + n) for n in range(len(others)))]


def put_clip(cache: Path, name: str = "openai/clip-vit-base-patch32", width: int = 32) -> Path:
    """Write the files that transformers would have downloaded.

    Args:
        cache: the folder that HF_HOME names.
        name: of the model on the hub.
        width: of both towers and of the embedding. Frames are 224 pixels, as of the real one.

    Returns:
        The folder with the files.
    """
    model = cache / "hub" / f"models--{name.replace('/', '--')}"
    folder = model / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)

    # Words are spelled letter by letter: a vocabulary without merges.
    tokens = [*letters(), *(f"{letter}</w>" for letter in letters()), START, END]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    of_tokenizer = {"tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT, "pad_token": END}
    of_tokenizer |= {"bos_token": START, "eos_token": END, "unk_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(of_tokenizer))

    torch.manual_seed(0)
    of_both = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 1, "num_attention_heads": 2}
    of_text = {"vocab_size": len(tokens), "bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1}
    config = CLIPConfig(
        text_config=of_both | of_text | {"max_position_embeddings": CONTEXT},
        vision_config=of_both | {"image_size": 224, "patch_size": 32},
        projection_dim=width,
    )
    CLIPModel(config).save_pretrained(folder)
    return folder
