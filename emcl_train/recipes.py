"""Recipes: functions that return the whole configuration of a run. Flags override single settings."""

from collections.abc import Callable
from pathlib import Path

from emcl_train.config import DataConfig, EvalConfig, ModelConfig, RandomClipConfig, RunConfig, TrainConfig
from emcl_train.errors import UserError


def shapes() -> RunConfig:
    """The bundled video set, from random weights: minutes on two CPU cores, nothing to download."""
    return RunConfig(
        recipe="shapes",
        out=Path("runs/shapes"),
        data=DataConfig(
            layout="shapes", root=Path("data/shapes"), num_frames=6, image_size=48, max_words=20, cache_frames=True
        ),
        model=ModelConfig(
            clip="random",
            random_clip=RandomClipConfig(width=128, layers=2, heads=4, patch_size=12),
            temporal="transformer",
            temporal_layers=2,
        ),
        train=TrainConfig(epochs=24, batch_size=64, lr=1e-3, weight_decay=0.1),
    )


def msrvtt_9k() -> RunConfig:
    """EMCL-Net's recipe on MSR-VTT 1k-A: 9 000 training clips, 1 000 test pairs, CLIP ViT-B/32."""
    return RunConfig(
        recipe="msrvtt-9k",
        out=Path("runs/msrvtt-9k"),
        data=DataConfig(layout="msrvtt", root=Path("data/msrvtt"), train_captions="all"),
        train=TrainConfig(precision="no"),
        eval=EvalConfig(em_block=32),
    )


RECIPES: dict[str, Callable[[], RunConfig]] = {"shapes": shapes, "msrvtt-9k": msrvtt_9k}


def load_recipe(name: str) -> RunConfig:
    """The configuration of a recipe by its name.

    Raises: UserError with the known names.
    """
    if name not in RECIPES:
        raise UserError(f"there is no recipe {name!r}; known recipes: {', '.join(sorted(RECIPES))}")
    return RECIPES[name]()
