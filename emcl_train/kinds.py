"""Which systems, heads and temporal aggregations there are, each registered once: choices, models and tables follow.

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
    decorrelates: bool = False
    """Whether its loss has the decorrelation of channels."""
    lines: Mapping[str, str] = field(default_factory=lambda: OF_A_HEAD)
    """Names of the line that a run is judged by, for each `emcl.mode`; {} is the label."""


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
    "mean": Head("CLIP4Clip {temporal}", "emcl_train.models.heads:MeanHead", "mean of frames"),
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


def class_of(kind: Temporal | Head) -> Any:
    """The class that builds it."""
    module, _, name = kind.built_by.partition(":")
    return getattr(import_module(module), name)
