"""Which systems, towers, heads and temporal aggregations there are, each registered once: all else follows.

Nothing here needs torch, so that `--help` and a mistake are answered at once; `built_by` names the class.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

OF_A_HEAD = {"train": "{} + EMCL", "inference": "{}, EMCL at inference only", "off": "{}"}
"""The line of a table that a run is judged by, for each `emcl.mode`; {} is the label of its head."""
OF_EMCL_NET = {"train": "EMCL-Net", "inference": "EMCL at inference only", "off": "Trained without EMCL"}


@dataclass(frozen=True)
class Temporal:
    """A way to relate the frames of a clip to each other, a choice of `--model.temporal`."""

    label: str
    """As papers call it behind "CLIP4Clip"."""
    built_by: str
    """MODULE:CLASS, whose `of_config` builds it."""
    attends: bool = False
    """Whether it has attention of as many heads as the text tower, which must divide the width."""
    differences: bool = False
    """Whether it makes tokens of what changes between frames."""


@dataclass(frozen=True)
class Head:
    """A way to make one number of a caption's and a clip's features, a choice of `--model.head`."""

    label: str
    """As tables name it; {temporal} stands for the label of the aggregation."""
    built_by: str
    """MODULE:CLASS, whose `of_config` builds it."""
    about: str = ""
    """What it does, in a few words."""
    tokens: bool = False
    """Whether it compares the features of every token, and not of whole captions alone."""
    differences: bool = False
    """Whether it needs an aggregation that makes tokens of what changes between frames."""
    whole: bool = False
    """Whether a clip that is one feature is enough for it; else it weighs single frames."""
    decorrelates: bool = False
    """Whether its loss has the decorrelation of channels."""
    lines: Mapping[str, str] = field(default_factory=lambda: OF_A_HEAD)
    """Names of the line that a run is judged by, for each `emcl.mode`; {} is the label."""


@dataclass(frozen=True)
class TowerFamily:
    """Models of one kind with a tower for texts and one for pictures, known by `model_type` in their config.json."""

    label: str
    """As papers call it."""
    built_by: str
    """MODULE:CLASS, a `Towers`."""
    loss: str = "info-nce"
    """What it was trained with, a choice of `--train.loss`, where its files do not say."""
    per_frame: bool = True
    """Whether it sees each frame for itself; else it gives one feature a clip."""
    tokens: bool = True
    """Whether it gives the feature of every token, in the space of the captions'."""
    full_length: bool = False
    """Whether captions always have as many tokens as it takes: it was trained on their padding too."""
    adapters: bool = True
    """Whether its attention has linear maps to queries, keys and values, on which adapters (`train.lora`) stand."""
    cleaning: str = "none"
    """How captions are cleaned before they are tokenized, as `data.clean_captions`."""


@dataclass(frozen=True)
class System:
    """A way from files to similarities, a choice of `--model.system`."""

    label: str
    """As papers call it; that of "clip" is its head's."""
    about: str
    """What it compares, in a few words."""
    emcl: bool = True
    """Whether EMCL can act in it."""


SYSTEMS: dict[str, System] = {
    "clip": System("", "CLIP's towers"),
    "ce": System("CE", "collaborative experts"),
    "mmt": System("MMT", "multi-modal transformer"),
    "jsfusion": System("JSFusion", "joint sequence fusion", emcl=False),
}
TOWERS: dict[str, TowerFamily] = {
    "clip": TowerFamily("CLIP", "emcl_train.models.towers.clip:CLIPTowers", cleaning="clip"),
    "siglip": TowerFamily(
        "SigLIP", "emcl_train.models.towers.siglip:SigLIPTowers", loss="sigmoid", full_length=True, cleaning="lower"
    ),
    "metaclip_2": TowerFamily("MetaCLIP 2", "emcl_train.models.towers.metaclip2:MetaCLIP2Towers"),
    "altclip": TowerFamily("AltCLIP", "emcl_train.models.towers.altclip:AltCLIPTowers"),
    "chinese_clip": TowerFamily("Chinese CLIP", "emcl_train.models.towers.chinese_clip:ChineseCLIPTowers"),
    "open_clip": TowerFamily(
        "OpenCLIP",
        "emcl_train.models.towers.open_clip:OpenCLIPTowers",
        full_length=True,
        adapters=False,
        cleaning="clip",
    ),
    "xclip": TowerFamily("X-CLIP", "emcl_train.models.towers.xclip:XCLIPTowers", per_frame=False, cleaning="clip"),
}
TEMPORALS: dict[str, Temporal] = {
    "mean": Temporal("meanP", "emcl_train.models.temporal:MeanAggregation"),
    "lstm": Temporal("seqLSTM", "emcl_train.models.temporal:LSTMAggregation"),
    "transformer": Temporal("seqTransf", "emcl_train.models.temporal:TransformerAggregation", attends=True),
    "difference": Temporal("TDB", "emcl_train.models.clip2video:DifferenceAggregation", attends=True, differences=True),
    "difference-mlp": Temporal(
        "TDB (projection)",
        "emcl_train.models.clip2video:ProjectedDifferenceAggregation",
        attends=True,
        differences=True,
    ),
}
HEADS: dict[str, Head] = {
    "text-conditioned": Head(
        "EMCL-Net", "emcl_train.models.heads:TextConditionedHead", "text-conditioned pooling", lines=OF_EMCL_NET
    ),
    "mean": Head("CLIP4Clip {temporal}", "emcl_train.models.heads:MeanHead", "mean of frames", whole=True),
    "wti": Head(
        "WTI", "emcl_train.models.heads:TokenWiseHead", "token-wise interaction", tokens=True, decorrelates=True
    ),
    "aligned": Head(
        "CLIP2Video",
        "emcl_train.models.clip2video:AlignedHead",
        "the whole, and embeddings aligned to centres",
        tokens=True,
        differences=True,
    ),
}


def line_of(head: str, temporal: str, mode: str, system: str = "clip") -> str:
    """The name of the line that a run is judged by.

    Args:
        head: `model.head`.
        temporal: `model.temporal`.
        mode: `emcl.mode`.
        system: `model.system`; any but "clip" has no head.

    Examples:
        >>> line_of("mean", "lstm", "train")
        'CLIP4Clip seqLSTM + EMCL'
        >>> line_of("text-conditioned", "transformer", "train", "mmt")
        'MMT + EMCL'
    """
    if system != "clip":
        return OF_A_HEAD[mode].format(SYSTEMS[system].label)
    kind = HEADS[head]
    return kind.lines[mode].format(kind.label.format(temporal=TEMPORALS[temporal].label))


def class_of(kind: Temporal | Head | TowerFamily) -> Any:
    """The class that builds it."""
    module, _, name = kind.built_by.partition(":")
    return getattr(import_module(module), name)
