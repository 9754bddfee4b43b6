"""A training step in its parts: the towers, and what is none of theirs."""

import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from emcl_train.config import RunConfig
from emcl_train.models import build_pair_model
from emcl_train.recipes import load_recipe
from emcl_train.training.losses import loss_of

TOWERS = "towers"
PARTS = (TOWERS, "similarity, loss and their gradient", "optimizer")
RATE = 1e-6


def configuration(pairs: int, *, width: int, layers: int, patch: int, size: int, frames: int) -> RunConfig:
    """A run's on MSR-VTT, whose towers are both of this size, with random weights."""
    config = load_recipe("msrvtt-9k")
    config.model.clip = "random"
    small = config.model.random_clip
    small.width, small.layers, small.heads, small.patch_size = width, layers, max(1, width // 64), patch
    config.data.image_size, config.data.num_frames = size, frames
    config.train.batch_size = pairs
    return config


class Step:
    """One model, its optimizer and one batch."""

    def __init__(self, config: RunConfig, tokenizer: Any) -> None:
        torch.manual_seed(0)
        self.config = config
        self.model: Any = build_pair_model(config, tokenizer).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE)
        self.loss = loss_of(config.train)
        pairs, size = config.train.batch_size, config.data.image_size
        ids, mask = tokenizer.encode([f"a person does thing number {pair}" for pair in range(pairs)])
        self.batch = {
            "input_ids": ids,
            "attention_mask": mask,
            "frames": torch.randint(0, 256, (pairs, config.data.num_frames, 3, size, size), dtype=torch.uint8),
            "frame_mask": torch.ones(pairs, config.data.num_frames, dtype=torch.bool),
        }

    def __call__(self, clock: Callable[[], float] = time.process_time) -> dict[str, float]:
        """A step. Returns: seconds of each part."""
        begin = clock()
        features = self.model(self.batch)
        encoded = clock()

        # The features cut the graph in two: what is behind them, and the towers.
        text, text_pairs = cut(features.text)
        video, video_pairs = cut(features.video)
        scale = features.logit_scale
        similarities = self.model.similarities(text, video, emcl=True)
        loss = torch.stack([self.loss(similarity, scale) for similarity in similarities]).mean()
        pairs = [*text_pairs, *video_pairs]
        gradients = torch.autograd.grad(loss, [leaf for _, leaf in pairs], allow_unused=True, retain_graph=True)
        behind = clock()

        known = [(whole, grad) for (whole, _), grad in zip(pairs, gradients, strict=True) if grad is not None]
        torch.autograd.backward([whole for whole, _ in known], [grad for _, grad in known])
        back = clock()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        done = clock()
        return dict(zip(PARTS, (encoded - begin + back - behind, behind - encoded, done - back), strict=True))


def cut(features: Any) -> tuple[Any, list[tuple[Tensor, Tensor]]]:
    """The same features as leaves of a graph of their own; and each that has a gradient with its leaf."""
    pairs = []
    values = {}
    for field in fields(features):
        value = getattr(features, field.name)
        if isinstance(value, Tensor) and value.requires_grad:
            leaf = value.detach().requires_grad_()
            pairs.append((value, leaf))
            value = leaf
        values[field.name] = value
    return type(features)(**values), pairs
