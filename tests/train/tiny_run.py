"""A run that takes a second: a few clips of a few pixels, and a model to match."""

from pathlib import Path

from emcl_train.config import (
    DataConfig,
    EMCLConfig,
    EvalConfig,
    ModelConfig,
    RandomClipConfig,
    RunConfig,
    ShapesConfig,
    TrainConfig,
)


def tiny_run(root: Path, out: Path, **train: object) -> RunConfig:
    """Four batches of eight clips an epoch, two epochs, a full state every third step."""
    shapes = ShapesConfig(train_clips=32, val_clips=8, test_clips=12, captions_per_clip=2, size=32, seconds=1.0, fps=4)
    return RunConfig(
        recipe="tiny",
        out=out,
        data=DataConfig("shapes", root, num_frames=3, image_size=16, max_words=24, cache_frames=True, shapes=shapes),
        model=ModelConfig("random", RandomClipConfig(16, layers=1, heads=2, patch_size=8), temporal_layers=1),
        emcl=EMCLConfig(num_bases=4),
        train=TrainConfig(**({"epochs": 2, "batch_size": 8, "lr": 1e-3, "save_every": 3} | train)),
        eval=EvalConfig(batch_size=8),
    )
