"""Recipes: functions that return the whole configuration of a run. Flags override single settings.

A recipe is added by writing its function here: its name, with hyphens, is what users type, and its docstring is the
description in the help.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from emcl_train.config import DataConfig, EvalConfig, Layout, ModelConfig, RandomClipConfig, RunConfig, TrainConfig
from emcl_train.errors import UserError

Recipe = Callable[[], RunConfig]

RECIPES: dict[str, Recipe] = {}
"""Every recipe by its name."""


def recipe(function: Recipe) -> Recipe:
    """Enter a function under its name, `msrvtt_9k` as "msrvtt-9k"."""
    RECIPES[function.__name__.replace("_", "-")] = function
    return function


@recipe
def shapes() -> RunConfig:
    """The bundled video set, from random weights: minutes on two CPU cores, nothing to download."""
    return RunConfig(
        recipe="shapes",
        out=Path("runs/shapes"),
        data=DataConfig(
            layout="shapes",
            root=Path("data/shapes"),
            num_frames=6,
            image_size=48,
            resize="rounded",
            display="rotated",
            max_words=20,
            cache_frames=True,
        ),
        model=ModelConfig(
            clip="random",
            random_clip=RandomClipConfig(width=128, layers=2, heads=4, patch_size=12),
            temporal="transformer",
            temporal_layers=2,
            temporal_eps=1e-5,
            lstm_padding="run-on",
        ),
        train=TrainConfig(epochs=24, batch_size=64, lr=1e-3, weight_decay=0.1),
    )


@recipe
def msrvtt_9k() -> RunConfig:
    """EMCL-Net's recipe on MSR-VTT 1k-A: 9 000 training clips, 1 000 test pairs, CLIP ViT-B/32."""
    return _emcl_net("msrvtt-9k", "msrvtt", test_captions="one")


@recipe
def msrvtt_7k() -> RunConfig:
    """The same test pairs as msrvtt-9k, trained on the list of 7 010 clips."""
    return _emcl_net("msrvtt-7k", "msrvtt", test_captions="one", msrvtt_split="7k")


@recipe
def msrvtt_full() -> RunConfig:
    """MSR-VTT's own split, 6 513 / 497 / 2 990 clips; each of a test clip's 20 captions is a query."""
    return _emcl_net("msrvtt-full", "msrvtt", msrvtt_split="full")


@recipe
def activitynet() -> RunConfig:
    """Paragraph retrieval on ActivityNet Captions: 10 009 training videos, the 4 917 of val_1 to test; 64 frames."""
    return _emcl_net("activitynet", "activitynet", num_frames=64, max_words=64, augment="none")


@recipe
def lsmdc() -> RunConfig:
    """LSMDC: 101 079 training sentences, 1 000 test pairs."""
    return _emcl_net("lsmdc", "lsmdc")


@recipe
def msvd() -> RunConfig:
    """MSVD: 1 200 / 100 / 670 clips with about 40 captions each, every one a query; 20 epochs."""
    return _emcl_net("msvd", "msvd", epochs=20)


@recipe
def didemo() -> RunConfig:
    """Paragraph retrieval on the seconds 0 to 31 of DiDeMo's videos; 64 frames."""
    return _emcl_net("didemo", "didemo", num_frames=64, max_words=64, augment="none")


@recipe
def vatex() -> RunConfig:
    """VATEX: 25 991 / 1 500 / 1 500 clips with ten English captions each, every one a query."""
    return _emcl_net("vatex", "vatex")


@recipe
def jsonl() -> RunConfig:
    """Your own videos: train.jsonl, test.jsonl and perhaps val.jsonl; a line has a "video" path and its "captions"."""
    return _emcl_net("jsonl", "jsonl")


@recipe
def csv() -> RunConfig:
    """Your own videos: train.csv and test.csv, or one file with a column split; columns video, caption, start, end."""
    return _emcl_net("csv", "csv")


def _emcl_net(
    name: str,
    layout: Layout,
    *,
    num_frames: int = 12,
    max_words: int = 32,
    augment: Literal["none", "randaugment"] = "randaugment",
    epochs: int = 5,
    test_captions: Literal["one", "all"] = "all",
    msrvtt_split: Literal["9k", "7k", "full"] = "9k",
) -> RunConfig:
    """EMCL-Net's settings, in which data sets differ by these alone."""
    return RunConfig(
        recipe=name,
        out=Path("runs") / name,
        data=DataConfig(
            layout=layout,
            root=Path("data") / layout,
            msrvtt_split=msrvtt_split,
            num_frames=num_frames,
            frame_sampling="1fps",
            augment=augment,
            max_words=max_words,
            train_captions="all",
            test_captions=test_captions,
        ),
        train=TrainConfig(epochs=epochs, precision="no", optimizer="bertadam", frozen="conv1"),
        eval=EvalConfig(em_block=32),
    )


SMOKE_TEST = "Random weights: a smoke test, its figures say nothing."


def is_smoke_test(config: RunConfig) -> bool:
    """Whether a run starts from random towers where its recipe has trained ones: it shows that all parts run.

    Towers of random weights learn next to nothing from the few clips and epochs of a recipe for trained ones.
    """
    if config.model.clip != "random" or config.model.init_from is not None:
        return False
    recipe = RECIPES.get(config.recipe)
    return recipe is not None and recipe().model.clip != "random"


def load_recipe(name: str) -> RunConfig:
    """The configuration of a recipe by its name.

    Raises:
        UserError: there is no such recipe; the message has the known names.
    """
    if name not in RECIPES:
        raise UserError(f"there is no recipe {name!r}; known recipes: {', '.join(sorted(RECIPES))}")
    return RECIPES[name]()


KNOWN_RECIPES = ", ".join(sorted(RECIPES))
