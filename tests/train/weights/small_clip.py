"""A small random retrieval model, inputs for it, and OpenAI's CLIP as an archive that TorchScript wrote."""

import warnings
from pathlib import Path

import torch
from torch import nn

from emcl_train.config import DataConfig, EMCLConfig, ModelConfig, RandomClipConfig, RunConfig
from emcl_train.models import RetrievalModel, build_model

EOS, WORDS, FRAMES, VOCABULARY = 29, 7, 4, 30


class Tokenizer:
    eos_token_id, pad_token_id = EOS, 0

    def __len__(self) -> int:
        return VOCABULARY


def config(temporal="transformer", head="text-conditioned", **model: object) -> RunConfig:
    return RunConfig(
        data=DataConfig(num_frames=FRAMES, image_size=16, max_words=WORDS),
        model=ModelConfig(
            **{
                "clip": "random",
                "random_clip": RandomClipConfig(16, layers=2, heads=2, patch_size=8),
                "temporal": temporal,
                "temporal_layers": 2,
                "head": head,
                **model,
            }
        ),
        emcl=EMCLConfig(num_bases=5, num_iters=3, temperature=0.1, init="normal"),
    )


def random_model(run: RunConfig, seed: int = 0) -> RetrievalModel:
    """A model with no weight that is zero or one by convention."""
    torch.manual_seed(seed)
    model = build_model(run, Tokenizer())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def other_model(run: RunConfig) -> RetrievalModel:
    """What another process builds from the same configuration, with other random numbers."""
    torch.manual_seed(99)
    return build_model(run, Tokenizer()).eval()


@torch.no_grad()
def similarities(model: RetrievalModel, *, emcl: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, EOS, (5, WORDS), generator=generator)
    ids[:, 4], ids[:, 5:] = EOS, 0
    frames = torch.randint(0, 256, (3, FRAMES, 3, 16, 16), dtype=torch.uint8, generator=generator)
    mask = torch.tensor([[True] * 4, [True] * 2 + [False] * 2, [True] * 4])
    text = model.encode_text({"input_ids": ids, "attention_mask": (ids != 0).long()})
    video = model.encode_video({"frames": frames, "frame_mask": mask})
    return model.similarity(text, video, emcl=emcl)


class _Branch(nn.Module):
    """A module that holds what stands below a name, as the modules of OpenAI's CLIP do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def save_torchscript(state: dict[str, torch.Tensor], path: Path, *, traced: bool) -> None:
    """An archive whose modules, parameters and sizes have OpenAI's names, in half precision where that has it."""
    root = _Branch()
    for name in ("input_resolution", "context_length", "vocab_size"):
        root.register_buffer(name, torch.tensor(16))
    for name, value in state.items():
        *path_to, last = name.split(".")
        module = root
        for part in path_to:
            if part not in dict(module.named_children()):
                module.add_module(part, _Branch())
            module = module.get_submodule(part)
        module.register_parameter(last, nn.Parameter(value.half() if value.dim() > 1 else value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that these are deprecated; files of them are around
        script = torch.jit.trace(root, torch.ones(1)) if traced else torch.jit.script(root)
        torch.jit.save(script, path)
