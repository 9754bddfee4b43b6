"""Recipes: functions that return the whole configuration of a run. Flags override single settings.

A recipe is added by writing its function here: its name, with hyphens, is what users type, and its docstring is the
description in the help.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Literal, TypeVar

from emcl_train.config import (
    DataConfig,
    EMCLConfig,
    EvalConfig,
    ExpertsConfig,
    Layout,
    Mode,
    ModelConfig,
    RandomClipConfig,
    RunConfig,
    TrainConfig,
    expert_emcl,
    inference_emcl,
)
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


@recipe
def clip2video_msrvtt() -> RunConfig:
    """CLIP2Video on MSR-VTT 1k-A, EMCL at inference; its training settings are CLIP4Clip's, none were released."""
    return _clip2video("clip2video-msrvtt", "msrvtt", test_captions="one")


@recipe
def clip2video_msrvtt_full() -> RunConfig:
    """CLIP2Video on MSR-VTT's own split; its training settings are CLIP4Clip's, none were released."""
    return _clip2video("clip2video-msrvtt-full", "msrvtt", msrvtt_split="full")


@recipe
def clip2video_msvd() -> RunConfig:
    """CLIP2Video on MSVD; its training settings are CLIP4Clip's, none were released."""
    return _clip2video("clip2video-msvd", "msvd")


@recipe
def clip2video_vatex() -> RunConfig:
    """CLIP2Video on VATEX; its training settings are CLIP4Clip's, none were released."""
    return _clip2video("clip2video-vatex", "vatex")


@recipe
def msrvtt_qa() -> RunConfig:
    """EMCL's video question answering on MSRVTT-QA: CLIP ViT-B/16, 1 500 answers, EMCL in the training loss alone."""
    return RunConfig(
        recipe="msrvtt-qa",
        out=Path("runs/msrvtt-qa"),
        data=DataConfig(
            layout="msrvttqa",
            root=Path("data/msrvttqa"),
            frame_sampling="1fps",
            train_captions="all",
            test_captions="all",
        ),
        model=ModelConfig(clip="openai/clip-vit-base-patch16"),
        emcl=EMCLConfig(num_bases=16, num_iters=5, residual_weight=1.0),
        train=TrainConfig(batch_size=32, batches="any", optimizer="bertadam"),
    )


def _clip2video(
    name: str,
    layout: Layout,
    *,
    test_captions: Literal["one", "all"] = "all",
    msrvtt_split: Literal["9k", "full"] = "9k",
) -> RunConfig:
    """CLIP2Video's settings.

    Released are the model, how frames are sampled, and EMCL at inference in blocks of 64 × 64. No training code was:
    the optimizer, rates, epochs, batch, frozen weights, and that each caption is a pair are CLIP4Clip's, on which it
    stands.
    """
    return RunConfig(
        recipe=name,
        out=Path("runs") / name,
        data=DataConfig(
            layout=layout,
            root=Path("data") / layout,
            msrvtt_split=msrvtt_split,
            frame_sampling="2.5fps",
            train_captions="all",
            test_captions=test_captions,
        ),
        model=ModelConfig(temporal="difference", temporal_eps=1e-5, head="aligned"),
        emcl=inference_emcl(),
        train=TrainConfig(precision="no", optimizer="bertadam", frozen="clip4clip"),
        eval=EvalConfig(em_block=64),
    )


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


@recipe
def ce_msrvtt() -> RunConfig:
    """Collaborative experts on MSR-VTT 1k-A, from the authors' features; the last epoch is kept, as published."""
    config = _ce("ce-msrvtt", "msrvtt", margin=0.09381161988446174, max_words=37, batch_size=64, epochs=100, lr=0.1)
    config.train.keep = "last"
    return config


@recipe
def ce_msrvtt_full() -> RunConfig:
    """Collaborative experts on MSR-VTT's own split; each of a test clip's 20 captions is a query."""
    config = _ce(
        "ce-msrvtt-full", "msrvtt", margin=0.09381161988446174, max_words=37, batch_size=64, epochs=100, lr=0.1
    )
    config.data.msrvtt_split = "full"
    config.data.test_captions = "all"
    return config


@recipe
def ce_activitynet() -> RunConfig:
    """Collaborative experts on the paragraphs of ActivityNet Captions."""
    return _ce(
        "ce-activitynet", "activitynet", margin=0.060496613740311816, max_words=49, batch_size=32, epochs=150, lr=0.1
    )


@recipe
def ce_lsmdc() -> RunConfig:
    """Collaborative experts on LSMDC."""
    return _ce("ce-lsmdc", "lsmdc", margin=0.12132983763957966, max_words=36, batch_size=256, epochs=15, lr=0.01)


@recipe
def mmt_msrvtt() -> RunConfig:
    """The multi-modal transformer on MSR-VTT 1k-A; with --emcl.mode train, MMT + EMCL."""
    return _mmt("mmt-msrvtt", "msrvtt")


@recipe
def mmt_activitynet() -> RunConfig:
    """The multi-modal transformer on the paragraphs of ActivityNet Captions."""
    return _mmt("mmt-activitynet", "activitynet", max_words=100, lr_decay=0.9)


@recipe
def mmt_lsmdc() -> RunConfig:
    """The multi-modal transformer on LSMDC."""
    return _mmt("mmt-lsmdc", "lsmdc")


@recipe
def mmt_own() -> RunConfig:
    """The multi-modal transformer on features of your own: a folder for each expert, with a file for each clip."""
    return _mmt("mmt-own", "own")


@recipe
def jsfusion_msrvtt() -> RunConfig:
    """JSFusion on MSR-VTT 1k-A. EMCL cannot act in it."""
    return _jsfusion("jsfusion-msrvtt", "msrvtt")


@recipe
def jsfusion_lsmdc() -> RunConfig:
    """JSFusion on LSMDC. EMCL cannot act in it."""
    return _jsfusion("jsfusion-lsmdc", "lsmdc")


DataSetOfExperts = Literal["msrvtt", "activitynet", "lsmdc", "own"]
FOLDERS: dict[str, Path] = {
    "msrvtt": Path("data/MSRVTT"),
    "activitynet": Path("data/activity-net"),
    "lsmdc": Path("data/LSMDC"),
    "own": Path("data/own"),
}
"""Where the authors' archives unpack to."""


def _of_experts(
    name: str, system: str, sizes: DataSetOfExperts, train: TrainConfig, *, max_words: int, eval_batch: int
) -> RunConfig:
    """What the systems on experts have in common: a caption of a clip at a time, and no EMCL unasked."""
    return RunConfig(
        recipe=name,
        out=Path("runs") / name,
        data=DataConfig(
            layout="jsonl" if sizes == "own" else sizes,
            root=FOLDERS[sizes],
            max_words=max_words,
            clean_captions="none",
            train_captions="one",
            test_captions="one",
        ),
        model=ModelConfig(system=system),
        emcl=expert_emcl(sizes, "off"),
        train=replace(train, warmup=0.0),
        eval=EvalConfig(batch_size=eval_batch, query_bank=0),
        experts=ExpertsConfig(sizes=sizes),
    )


def _ce(
    name: str,
    sizes: DataSetOfExperts,
    *,
    margin: float,
    max_words: int,
    batch_size: int,
    epochs: int,
    lr: float,
) -> RunConfig:
    """The settings of CE's release, in which data sets differ by these.

    The epoch is chosen by the geometric mean of three recalls, as the authors do; on ActivityNet their validation list
    is that of the test.
    """
    train = TrainConfig(
        epochs=epochs,
        batch_size=batch_size,
        optimizer="ranger",
        lr=lr,
        lr_decay=0.95,
        weight_decay=1e-3,
        betas=(0.95, 0.999),
        loss="max-margin",
        margin=margin,
        max_grad_norm=None,
        save_every=STATES,
        select_by="geometric-mean",
    )
    return _of_experts(name, "ce", sizes, train, max_words=max_words, eval_batch=batch_size)


STATES = 1000
"""Steps between states of CE and MMT, which are 3 and 1.6 GB: a few epochs, and a few minutes."""
OF_MMT = 1000
"""Steps of what MMT's release calls an epoch; the rate falls after each."""


def _mmt(name: str, sizes: DataSetOfExperts, *, max_words: int = 30, lr_decay: float = 0.95) -> RunConfig:
    """The settings of MMT's release: 50 times 1 000 steps, each followed by a validation, whatever an epoch is here."""
    train = TrainConfig(
        epochs=100 * OF_MMT,  # one step each at least, with EMCL too
        max_steps=50 * OF_MMT,
        batch_size=32,
        optimizer="adam",
        lr=5e-5,
        lr_decay=lr_decay,
        lr_decay_steps=OF_MMT,
        weight_decay=0.0,
        betas=(0.9, 0.999),
        loss="max-margin",
        margin=0.05,
        max_grad_norm=None,
        save_every=STATES,
        validate_every=OF_MMT,
        keep="last",
    )
    return _of_experts(name, "mmt", sizes, train, max_words=max_words, eval_batch=32)


def _jsfusion(name: str, sizes: DataSetOfExperts) -> RunConfig:
    """The settings of JSFusion's release: a million steps of ten pairs at most."""
    train = TrainConfig(
        epochs=1_000_000,
        max_steps=1_000_000,
        batch_size=10,
        optimizer="adam",
        lr=1e-4,
        lr_decay=0.5,
        lr_decay_steps=100_000,
        weight_decay=0.0,
        betas=(0.9, 0.999),
        loss="pair-margin",
        margin=10.0,
        max_grad_norm=5.0,
        save_every=5_000,
        validate_every=5_000,
        keep="last",
    )
    config = _of_experts(name, "jsfusion", sizes, train, max_words=40, eval_batch=10)
    config.data.train_captions = "all"  # a row of its tables is a pair
    return config


def in_mode(config: RunConfig, mode: Mode) -> RunConfig:
    """A configuration with the settings that belong to another `emcl.mode` than its own.

    EMCL-Net has others for EMCL at inference only, and CLIP2Video, which has EMCL at inference alone, EMCL-Net's for
    training. MMT + EMCL is MMT with gated videos, EM of each expert, the loss of the hardest others, twice as many
    steps, and an evaluation in blocks of 32 matching pairs, all as released. EMCL in CE, or at inference only in
    either, is nobody's but ours: EM's map is fitted to all captions and videos, as if they were those of a batch.

    A setting that has another value than the recipe gives it in the old mode was somebody's choice, and stays; but for
    EMCL's own at inference, which are the paper's.

    Args:
        config: of a recipe, or of a run of it.
        mode: the other one; with the configuration's own, it is returned as it is.
    """
    if mode == config.emcl.mode:
        return config
    old = _released(config, config.emcl.mode)
    new = _released(config, mode)
    emcl = new.emcl if mode == "inference" else replace(_following(config.emcl, old.emcl, new.emcl), mode=mode)
    return replace(
        config,
        emcl=emcl,
        train=_following(config.train, old.train, new.train),
        experts=_following(config.experts, old.experts, new.experts),
        eval=_following(config.eval, old.eval, new.eval),
    )


def _released(config: RunConfig, mode: Mode) -> RunConfig:
    """What the recipe of a configuration has in a mode."""
    make = RECIPES.get(config.recipe)
    own = config if make is None else make()
    if mode == own.emcl.mode:
        return own
    system = config.model.system
    if system == "clip":
        if mode == "inference":
            return replace(own, emcl=inference_emcl())
        untrained = own.emcl.mode == "inference" and mode == "train"
        return replace(own, emcl=EMCLConfig() if untrained else replace(own.emcl, mode=mode))

    sizes = config.experts.sizes
    moded = replace(own, emcl=expert_emcl(sizes, mode))
    if system == "mmt" and mode == "train":
        hardest = 1 if sizes in ("msrvtt", "own") else 32
        moded.train = replace(own.train, loss="top-k-margin", top_k=hardest, max_steps=100 * OF_MMT)
        moded.experts = replace(own.experts, gated_video=True)
        moded.eval = replace(own.eval, em_block=32)
    return moded


Section = TypeVar("Section", EMCLConfig, TrainConfig, ExpertsConfig, EvalConfig)


def _following(now: Section, old: Section, new: Section) -> Section:
    """Settings of which those that are as in the old mode become as in the new one."""
    names = [name.name for name in fields(now) if getattr(old, name.name) != getattr(new, name.name)]
    return replace(now, **{name: getattr(new, name) for name in names if getattr(now, name) == getattr(old, name)})


SMOKE_TEST = "Random weights: a smoke test, its figures say nothing."


def is_smoke_test(config: RunConfig) -> bool:
    """Whether a run starts from random towers where its recipe has trained ones: it shows that all parts run.

    Towers of random weights learn next to nothing from the few clips and epochs of a recipe for trained ones.
    """
    if not _is_random(config) or config.model.init_from is not None:
        return False
    recipe = RECIPES.get(config.recipe)
    return recipe is not None and not _is_random(recipe())


def _is_random(config: RunConfig) -> bool:
    """Whether a network that could be a trained one has random weights."""
    if config.model.system == "clip":
        return config.model.clip == "random"
    return config.model.system == "mmt" and config.experts.text == "random"


def load_recipe(name: str) -> RunConfig:
    """The configuration of a recipe by its name.

    Raises:
        UserError: there is no such recipe; the message has the known names.
    """
    if name not in RECIPES:
        raise UserError(f"there is no recipe {name!r}; known recipes: {', '.join(sorted(RECIPES))}")
    return RECIPES[name]()


OF_CLIP = tuple(name for name, make in RECIPES.items() if make().model.system == "clip")
"""Recipes whose videos are seen by CLIP's towers; the others compare features of experts."""
KNOWN_RECIPES = ", ".join(sorted(RECIPES))
