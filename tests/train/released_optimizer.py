"""The peers' optimizer and schedule once more, weight by weight, from their definitions; nothing of the package."""

import math

import torch

LR, COEF_LR, DECAY, WARMUP, BETA1, BETA2, EPS, MAX_NORM = 1e-4, 1e-3, 0.2, 0.1, 0.9, 0.98, 1e-6, 1.0


def share(step, total, warmup=WARMUP):
    """A rise from 0 in proportion to the step, and a cosine of the share of all steps that are done."""
    done = step / total
    return done / warmup if done < warmup else 0.5 * (1.0 + math.cos(math.pi * done))


def clipped(gradient, limit=MAX_NORM):
    norm = gradient.norm()
    return gradient * min(1.0, limit / (float(norm) + 1e-6))


class ReleasedOptimizer:
    """Over named weights: rates by whether a name is CLIP's, decay by whether it has "bias" in it."""

    def __init__(self, weights, total, *, of_clip, lr=LR, clip_lr=LR * COEF_LR, decay=DECAY):
        self.weights, self.total, self.of_clip = weights, total, of_clip
        self.lr, self.clip_lr, self.decay = lr, clip_lr, decay
        self.m = {name: torch.zeros_like(value) for name, value in weights.items()}
        self.v = {name: torch.zeros_like(value) for name, value in weights.items()}
        self.step_count = 0

    @torch.no_grad()
    def step(self, gradients, *, clip_together=True):
        """One update by these gradients, which are clipped together first as in the training loop."""
        if clip_together:
            norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
            factor = min(1.0, MAX_NORM / (float(norm) + 1e-6))
            gradients = {name: gradient * factor for name, gradient in gradients.items()}

        for name, gradient in gradients.items():
            weight = self.weights[name]
            g = clipped(gradient)
            self.m[name] = BETA1 * self.m[name] + (1 - BETA1) * g
            self.v[name] = BETA2 * self.v[name] + (1 - BETA2) * g * g
            update = self.m[name] / (self.v[name].sqrt() + EPS)
            if "bias" not in name:
                update = update + self.decay * weight
            peak = self.clip_lr if self.of_clip(name) else self.lr
            weight -= peak * share(self.step_count, self.total) * update
        self.step_count += 1
