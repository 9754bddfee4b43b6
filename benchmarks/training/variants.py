"""The rows of the training table: what each changes in one and the same short run."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.training.layers import (
    ChannelEMCL,
    LinearLayer,
    PCALayer,
    RowLayer,
    SparseAutoencoderLayer,
    TransformerLayer,
)
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

WIDTH, BASES = 64, 32


@dataclass(frozen=True)
class Variant:
    """One row."""

    name: str
    emcl: dict[str, Any] = field(default_factory=dict)
    """Settings of EMCL that differ from the release's."""
    layer: Callable[[], RowLayer] | None = None
    """Makes what stands in the place of `EMCL`."""


def run_config(variant: Variant, *, seed: int, out: Path, data: Path) -> RunConfig:
    """The run: 480 steps of 64 pairs of the bundled video set, from random weights, in about a minute on one core."""
    return RunConfig(
        recipe="training-table",
        out=out,
        data=DataConfig(
            layout="shapes",
            root=data,
            num_frames=4,
            image_size=36,
            max_words=20,
            cache_frames=True,
            workers=0,
            shapes=ShapesConfig(train_clips=1000, val_clips=128, test_clips=512, size=48),
        ),
        model=ModelConfig(
            clip="random", random_clip=RandomClipConfig(WIDTH, layers=2, heads=4, patch_size=12), temporal="mean"
        ),
        emcl=replace(EMCLConfig(num_bases=BASES), **variant.emcl),
        train=TrainConfig(epochs=32, batch_size=64, lr=2e-3, weight_decay=0.1, seed=seed, save_every=10_000),
        eval=EvalConfig(),
    )


def channels(*, weight: float, relative: bool, temperature: float = 1.0) -> Callable[[], RowLayer]:
    """EMCL with carried responsibilities, otherwise as released."""
    return lambda: ChannelEMCL(
        WIDTH,
        num_bases=BASES,
        num_iters=9,
        temperature=temperature,
        residual_weight=weight,
        momentum=0.9,
        relative=relative,
    )


PLUS = {"scale": "relative", "residual_weight": 0.15}
MORE = {"scale": "relative", "residual_weight": 0.5}
MINUS = {"scale": "relative", "residual_weight": -0.15}

BASELINE = "no EMCL"
VARIANTS = (
    Variant(BASELINE, {"mode": "off"}),
    Variant("EMCL as released"),
    Variant("released, init normal", {"init": "normal"}),
    Variant("released, init channels", layer=channels(weight=3.0, relative=False)),
    Variant("released, gradient linear", {"gradient": "linear"}),
    Variant("released, gradient full", {"gradient": "full"}),
    Variant("relative +0.15", PLUS),
    Variant("relative +0.5", MORE),
    Variant("relative −0.15", MINUS),
    Variant("relative −0.15, init normal", MINUS | {"init": "normal"}),
    Variant("relative −0.15, init channels", layer=channels(weight=-0.15, relative=True)),
    Variant(
        "relative −0.15, init channels, temperature 0.1", layer=channels(weight=-0.15, relative=True, temperature=0.1)
    ),
    Variant("relative −0.15, gradient linear", MINUS | {"gradient": "linear"}),
    Variant("relative −0.15, gradient full", MINUS | {"gradient": "full"}),
    Variant("PCA", layer=lambda: PCALayer(BASES, weight=1.0)),
    Variant("fully connected layer", layer=lambda: LinearLayer(WIDTH)),
    Variant("transformer layer", layer=lambda: TransformerLayer(WIDTH, heads=4)),
    Variant("sparse autoencoder", layer=lambda: SparseAutoencoderLayer(WIDTH, active=BASES)),
)

AFTERWARDS = {
    "no EMCL; EMCL at inference as released": {"num_bases": 7, "num_iters": 10, "temperature": 0.1, "weight": 4.0},
    "no EMCL; at inference, relative −0.15": {"num_bases": 7, "num_iters": 10, "temperature": 0.1, "weight": -0.15},
    "no EMCL; at inference, relative +0.15": {"num_bases": 7, "num_iters": 10, "temperature": 0.1, "weight": 0.15},
}
"""EMCL as a module without training, on the weights of the baseline's runs."""
