"""A whole training step of EMCL-Net at the size of its paper: CLIP ViT-B/32, 128 pairs, 12 frames, bfloat16 autocast.

The towers have random weights and the pixels are noise: a step's time does not depend on either. Needs transformers.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from gpu_case import Case, Wrap
from torch import Tensor
from torch.nn import functional as F

from emcl_kernels import EMCL, pooled_cosine_similarity, reference
from emcl_kernels.testing import relative_error

VOCABULARY = 49408
Similarity = Callable[[Tensor, Tensor], Tensor]


@dataclass
class StepRun(Case):
    """The whole step: towers, similarity, loss, backward, AdamW. Without `whole`, similarity, loss and backward alone.

    "loop" is the release's similarity, which makes [A, B, D]; "EMCL off" is the same similarity without EM.
    """

    pairs: int = 128
    frames: int = 12
    words: int = 32
    width: int = 512
    bases: int = 32
    whole: bool = True
    layers: int = 12
    hidden: int = 768
    side: int = 224
    patch: int = 32

    def __post_init__(self) -> None:
        self.kinds = ("ours", "EMCL off")
        self.baselines = ("loop",)

    @property
    def shape(self) -> str:
        part = "whole" if self.whole else "similarity, loss and backward of"
        return f"{part} training step, CLIP ViT-B/32, A=B={self.pairs} F={self.frames}"

    @property
    def type_name(self) -> str:
        return "bfloat16 autocast"

    def missing(self) -> str:
        return "" if importlib.util.find_spec("transformers") else "transformers is not installed"

    def inputs(self, device: str) -> tuple[Tensor, ...]:
        """ids and pixels; without `whole`, the features of both."""
        torch.manual_seed(0)
        ids = torch.randint(1, VOCABULARY - 1, (self.pairs, self.words), device=device)
        ids[:, -1] = VOCABULARY - 1  # the end of the text, whose feature is taken
        pixels = torch.randn(self.pairs * self.frames, 3, self.side, self.side, device=device)
        if self.whole:
            return ids, pixels
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            text, frames = self.features(ids, pixels)
        return text, frames

    def features(self, ids: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        clip, _ = self.model(pixels.device.type)
        text = clip.text_projection(clip.text_model(input_ids=ids).pooler_output)
        frames = clip.visual_projection(clip.vision_model(pixel_values=pixels).pooler_output)
        return text, frames.view(self.pairs, self.frames, -1)

    def model(self, device: str) -> tuple[Any, torch.optim.Optimizer]:
        return clip_and_optimizer(device, self.width, self.hidden, self.layers, self.side, self.patch)

    def run(self, kind: str, inputs: tuple[Tensor, ...], wrap: Wrap) -> Callable[[], Any]:
        device = inputs[0].device.type
        mask = torch.ones(self.pairs, self.frames, dtype=torch.bool, device=device)
        target = torch.arange(self.pairs, device=device)
        layer = EMCL(num_bases=self.bases).to(device).train()
        similarity = self.similarity(kind, layer, mask)

        def loss(text: Tensor, frames: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            start = layer.bases.clone()
            found = similarity(text, frames)
            logits = 100 * found.float()
            both = F.cross_entropy(logits, target) + F.cross_entropy(logits.mT, target)
            return both, (found.detach(), text.detach(), frames.detach(), start)

        def head() -> tuple[Tensor, ...]:
            text, frames = (features.detach().requires_grad_() for features in inputs)
            with torch.autocast(device, torch.bfloat16):
                value, outputs = loss(text, frames)
            torch.autograd.grad(value, (text, frames))
            return outputs

        def step() -> tuple[Tensor, ...]:
            _, optimizer = self.model(device)
            with torch.autocast(device, torch.bfloat16):
                value, outputs = loss(*self.features(*inputs))
            value.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return outputs

        return step if self.whole else head

    def similarity(self, kind: str, layer: EMCL, mask: Tensor) -> Similarity:
        if kind == "EMCL off":
            return lambda text, frames: pooled_cosine_similarity(text, frames, mask)
        if kind == "ours":
            return lambda text, frames: layer.pooled_similarity(text, frames, mask)

        def materialized(text: Tensor, frames: Tensor) -> Tensor:
            with torch.autocast(mask.device.type, enabled=False):
                found, mean_bases = reference.pooled_similarity_materialized(
                    text.float(), frames.float(), mask, layer.bases.clone()
                )
            with torch.no_grad():
                layer.bases.lerp_(mean_bases, 1 - layer.momentum)
            return found.to(text.dtype)

        return materialized

    def errors(self, kind: str, inputs: tuple[Tensor, ...], outputs: Any) -> dict[str, float]:
        """Of the similarity of the features that this step had."""
        found, text, frames, start = (tensor.double() for tensor in outputs)
        mask = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
        if kind == "EMCL off":
            truth = reference.pooled_cosine_similarity(text, frames, mask)
        else:
            truth, _ = reference.pooled_similarity_materialized(text, frames, mask, start)
        return {"similarity": relative_error(found, truth)}


@lru_cache(maxsize=1)
def clip_and_optimizer(
    device: str, width: int, hidden: int, layers: int, side: int, patch: int
) -> tuple[Any, torch.optim.Optimizer]:
    """One model for all ways: what they are compared by does not depend on its weights."""
    from transformers import CLIPConfig, CLIPModel

    heads = max(2, hidden // 64)
    towers = {"num_hidden_layers": layers, "intermediate_size": 4 * hidden, "hidden_size": hidden}
    text = towers | {"num_attention_heads": heads, "vocab_size": VOCABULARY, "eos_token_id": VOCABULARY - 1}
    if hidden == 768:  # CLIP's text tower is the narrower one
        text |= {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
    vision = towers | {"num_attention_heads": heads, "image_size": side, "patch_size": patch}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=width)
    clip: Any = CLIPModel(config)
    clip.to(device).train()
    return clip, torch.optim.AdamW(clip.parameters(), lr=1e-6, fused=device == "cuda")
