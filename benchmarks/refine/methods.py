"""Ways to change embeddings before they are compared: each takes texts and videos [N, D] of length one, and a seed."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from emcl_kernels import EMCL, EMRefiner

Sides = tuple[Tensor, Tensor]
Method = Callable[[Tensor, Tensor, int], Sides]

SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SHRINKAGES = (0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.98, 0.99)
DEFAULT = EMRefiner()
OF_MAP = ("num_bases", "num_starts", "num_iters", "temperature", "weight", "mean_share", "fit_mean_share")


def centred(text: Tensor, video: Tensor, seed: int = 0, *, share: float) -> Sides:
    return text - share * text.mean(0), video - share * video.mean(0)


def unchanged(text: Tensor, video: Tensor, seed: int) -> Sides:
    return text, video


def without_top(text: Tensor, video: Tensor, seed: int, *, count: int, taken: float, share: float) -> Sides:
    """A part of the leading principal directions of both sides together taken out, after a share of the means."""
    text, video = centred(text, video, share=share)
    top = torch.linalg.eigh(text.T @ text / len(text) + video.T @ video / len(video)).eigenvectors[:, -count:]
    return text - taken * (text @ top) @ top.T, video - taken * (video @ top) @ top.T


def whitened(text: Tensor, video: Tensor, seed: int, *, shrinkage: float, share: float) -> Sides:
    """By the second moments of both sides together, shrunk towards a multiple of the identity."""
    text, video = centred(text, video, share=share)
    values, directions = torch.linalg.eigh(text.T @ text / len(text) + video.T @ video / len(video))
    values = (1 - shrinkage) * values + shrinkage * values.mean()
    root = (directions * values.rsqrt()) @ directions.T
    return text @ root, video @ root


def release(text: Tensor, video: Tensor, seed: int, **settings: Any) -> Sides:
    """EMCL over all rows as the release has it, from its ±1 start."""
    torch.manual_seed(seed)
    text, video = EMCL(**settings).double().eval()(text, video)
    return text, video


def refined(text: Tensor, video: Tensor, seed: int, **settings: Any) -> Sides:
    refiner = EMRefiner(seed=seed, **settings)
    return refiner.fit_transform(text, video)


def varied(name: str, factor: float) -> dict[str, Any]:
    """One setting of the default times a factor."""
    value = getattr(DEFAULT, name) * factor
    return {name: max(1, round(value)) if isinstance(getattr(DEFAULT, name), int) else value}


def methods() -> dict[str, dict[str, tuple[Method, int]]]:
    """Group → name → method and number of seeds that it depends on."""
    baselines: dict[str, dict[str, tuple[Method, int]]] = {
        "no refinement": {"no refinement": (unchanged, 1)},
        "centring": {f"{share:.1f} of each side's mean": (partial(centred, share=share), 1) for share in SHARES},
        "top directions": {
            f"{taken:.0%} of the top {count} after {share:.1f} of the means": (
                partial(without_top, count=count, taken=taken, share=share), 1,
            )
            for share in (0.0, 0.5, 1.0) for count in (1, 2, 4) for taken in (0.25, 0.5, 1.0)
        },
        "shrinkage whitening": {
            f"shrinkage {shrinkage} after {share:.1f} of the means": (
                partial(whitened, shrinkage=shrinkage, share=share), 1,
            )
            for share in (0.0, 0.5, 1.0) for shrinkage in SHRINKAGES
        },
        "EMCL as released": {
            "at inference (K = 7, 10 iterations, 0.1, weight 4)": (
                partial(release, num_bases=7, num_iters=10, temperature=0.1, residual_weight=4.0), 10,
            ),
            "as in training (K = 32, 9 iterations, 1, weight 3)": (partial(release), 10),
        },
    }  # fmt: skip
    ours: dict[str, dict[str, tuple[Method, int]]] = {
        "EMRefiner": {
            "default": (refined, 10),
            "weight 0": (partial(refined, weight=0.0), 1),
            "weight turned round": (partial(refined, weight=-DEFAULT.weight), 10),
            "the released weight 4, relative": (partial(refined, weight=4.0), 10),
            "no share of the means": (partial(refined, mean_share=0.0), 10),
            "no share of the means, weight turned round": (
                partial(refined, mean_share=0.0, weight=-DEFAULT.weight),
                10,
            ),
            "EM sees the whole means": (partial(refined, fit_mean_share=0.0), 10),
            "EM sees no means": (partial(refined, fit_mean_share=1.0), 10),
            "one start": (partial(refined, num_starts=1), 10),
        },
        "EMRefiner, one setting halved or half as much again": {
            f"{name} {next(iter(varied(name, factor).values())):.3g}": (partial(refined, **varied(name, factor)), 10)
            for name in OF_MAP
            for factor in (0.5, 1.5)
        },
    }
    return baselines | ours
