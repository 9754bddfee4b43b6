"""Small models of every family with random weights, in the layout in which `save_pretrained` writes real ones."""

import json
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from tiny_run import tiny_run
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.models.chinese_clip.image_processing_pil_chinese_clip import ChineseCLIPImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

from emcl_train.weights.settling import settled

WORDS = [
    "a",
    "red",
    "blue",
    "green",
    "circle",
    "square",
    "triangle",
    "moves",
    "left",
    "right",
    "up",
    "down",
    "to",
    "the",
    "and",
    "then",
    "slowly",
    "fast",
    "stays",
]
LETTERS = "abcdefghijklmnopqrstuvwxyz.,!?'"
SIZE = 24
LAYERS = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = LAYERS | {"image_size": SIZE, "patch_size": 8}
FAMILIES = ("siglip", "siglip-2", "metaclip_2", "altclip", "chinese_clip", "xclip")
CROPPED = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
SQUASHED = {"size": {"height": SIZE, "width": SIZE}}


def config_of(
    folder, root, out, *, mode="train", head="text-conditioned", temporal="transformer", from_features=None, **train
):
    """A run of three steps on small towers."""
    config = tiny_run(root, out, **({"max_steps": 3, "epochs": 1, "save_every": 1, "tracker": "none"} | train))
    model = replace(config.model, clip=str(folder), head=head, temporal=temporal)
    config = replace(config, model=model, emcl=replace(config.emcl, mode=mode), from_features=from_features)
    return settled(replace(config, data=replace(config.data, cache_frames=False)), said=())


def write_towers(family: str, folder: Path) -> Path:
    """A small model of a family: its weights, its processor of pictures, its tokenizer."""
    tokenizer, length = tokenizer_of(family)
    tokenizer.save_pretrained(folder)
    if family in CLASSES:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": CLASSES[family]}))
    processor_of(family).save_pretrained(folder)

    torch.manual_seed(0)
    model = model_of(family, len(tokenizer), length, tokenizer)
    for parameter in model.parameters():  # those that begin as zeros would hide mistakes
        if parameter.dim() > 0:
            torch.nn.init.normal_(parameter, std=0.2)
    if hasattr(model, "logit_bias"):
        with torch.no_grad():
            model.logit_scale.fill_(2.3)
            model.logit_bias.fill_(-10.0)
    model.save_pretrained(folder)
    return folder


CLASSES = {"siglip": "SiglipTokenizer", "siglip-2": "GemmaTokenizer"}


def model_of(family: str, vocab: int, length: int, tokenizer: PreTrainedTokenizerFast):
    """The model, with the weights that its class draws."""
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    ids["eos_token_id"] = tokenizer.eos_token_id
    text = LAYERS | ids | {"vocab_size": vocab, "max_position_embeddings": length}
    if family.startswith("siglip"):
        config = transformers.SiglipConfig(text_config=text, vision_config=VISION)
        return transformers.SiglipModel(config)
    if family == "metaclip_2":
        both = {"text_config": text, "vision_config": VISION, "projection_dim": 20}
        return transformers.MetaClip2Model(transformers.MetaClip2Config(**both))
    if family == "altclip":
        both = {"text_config": text | {"project_dim": 12}, "vision_config": VISION, "projection_dim": 20}
        return transformers.AltCLIPModel(transformers.AltCLIPConfig(**both))
    if family == "chinese_clip":
        both = {"text_config": text, "vision_config": VISION, "projection_dim": 20}
        return transformers.ChineseCLIPModel(transformers.ChineseCLIPConfig(**both))
    mit = {f"mit_{name}": value for name, value in LAYERS.items()} | {"mit_hidden_size": 20, "num_frames": 3}
    vision = VISION | mit
    both = {"text_config": text, "vision_config": vision, "projection_dim": 20, "prompt_num_attention_heads": 2}
    return transformers.XCLIPModel(transformers.XCLIPConfig(**both))


def processor_of(family: str):
    """What prepares pictures, by Pillow, with settings as published models of the family have them."""
    if family == "siglip":
        return SiglipImageProcessorPil(**SQUASHED, resample=3)
    if family == "siglip-2":
        return SiglipImageProcessorPil(**SQUASHED, resample=2)
    if family == "chinese_clip":
        return ChineseCLIPImageProcessorPil(**SQUASHED, do_center_crop=False)
    if family == "xclip":
        return VideoMAEImageProcessorPil(**CROPPED)
    return CLIPImageProcessorPil(**CROPPED)


def tokenizer_of(family: str) -> tuple[PreTrainedTokenizerFast, int]:
    """A tokenizer in the format of the family, and the positions of its text tower."""
    if family == "siglip":
        return unigram(), 16
    if family == "siglip-2":
        return gemma(), 64
    if family == "chinese_clip":
        return bert(), 40
    if family == "xclip":
        return byte_pairs(), 20
    return roberta(), 20 if family == "metaclip_2" else 24


def unigram() -> PreTrainedTokenizerFast:
    """SentencePiece's model of pieces, as T5's and SigLIP's: captions end in </s>, and are padded with it."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("▁", -3.0)]
    pieces += [(f"▁{word}", -2.0 - 0.01 * i) for i, word in enumerate(WORDS)]
    pieces += [(letter, -8.0) for letter in LETTERS]
    made = Tokenizer(models.Unigram(pieces, unk_id=2))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return fast(made, 16, eos_token="</s>", pad_token="</s>", unk_token="<unk>")


def gemma() -> PreTrainedTokenizerFast:
    """Gemma's byte pairs with bytes to fall back on, as SigLIP 2 has them: captions end in <eos>."""
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    names += list(LETTERS)
    merges = []
    for word in WORDS:
        for end in range(2, len(word) + 1):
            if word[:end] not in names:
                names.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    made = Tokenizer(
        models.BPE(
            {name: i for i, name in enumerate(names)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    of_tokens = {"eos_token": "<eos>", "pad_token": "<pad>", "bos_token": "<bos>", "unk_token": "<unk>"}
    return fast(made, 64, padding_side="right", **of_tokens)


def bert() -> PreTrainedTokenizerFast:
    """WordPiece, as Chinese CLIP's BERT has it."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    made = Tokenizer(models.WordPiece({name: i for i, name in enumerate(dict.fromkeys(names))}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    of_tokens = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    return fast(made, 512, bos_token="[CLS]", eos_token="[SEP]", **of_tokens)


def roberta() -> PreTrainedTokenizerFast:
    """XLM-RoBERTa's pieces, as MetaCLIP 2 and AltCLIP have them: <s> before a caption and </s> behind."""
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("▁", -3.0)]
    pieces += [(f"▁{word}", -2.0 - 0.01 * i) for i, word in enumerate(WORDS)]
    pieces += [(letter, -8.0) for letter in LETTERS]
    made = Tokenizer(models.Unigram(pieces, unk_id=3))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    of_tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return fast(made, 20, **of_tokens)


def byte_pairs() -> PreTrainedTokenizerFast:
    """CLIP's kind of byte pairs, as X-CLIP has them, without merges."""
    names = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    ids = {name: i for i, name in enumerate(names)}
    made = Tokenizer(models.BPE(ids, [], unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    start, end = ids["<|startoftext|>"], ids["<|endoftext|>"]
    made.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>", special_tokens=[("<|startoftext|>", start), ("<|endoftext|>", end)]
    )
    of_tokens = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    return fast(made, 20, unk_token="<|endoftext|>", **of_tokens)


def fast(tokenizer: Tokenizer, length: int, **settings) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=length, **settings)
