"""Sizes of Collaborative Experts (Liu et al., BMVC 2019), as the authors' configurations have them.

Experts stand in the order of their sorted names everywhere: in batches, in embeddings, in the lists of checkpoints. All
three data sets are given the nine experts of MSR-VTT. For ActivityNet and LSMDC that is inferred: the specification
lists the files that differ, and no configuration of theirs was counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

MOST_CLUSTERS_REDUCED = 3


@dataclass(frozen=True)
class CEExpert:
    """One expert of a video."""

    width: int
    """Of one step."""
    max_steps: int = 1
    """Steps that are read, the first ones; zeros stand behind fewer. The model's batch norm sees these zeros."""
    clusters: int | None = None
    """Of NetVLAD, which makes one row of many steps; None: the expert is one row a video."""
    flaky: bool = False
    """Whether training knows that it may be missing. Any other expert counts as available then."""

    def __post_init__(self) -> None:
        if self.clusters is None and self.max_steps != 1:
            raise ValueError(f"an expert of {self.max_steps} steps has no clusters; say how many NetVLAD is to have")

    @property
    def pooled_width(self) -> int:
        """Of the row that stands for the expert before it is reduced."""
        return self.width * (self.clusters or 1)


@dataclass(frozen=True)
class CEText:
    """The text: features of every word that a frozen network made in advance."""

    width: int
    """Of a word."""
    max_words: int
    """Words that are read, the first ones; zeros stand behind fewer."""
    clusters: int
    """Of NetVLAD."""
    ghost_clusters: int
    """Further clusters, whose share of each word is dropped."""


@dataclass(frozen=True)
class CESizes:
    """All that the model is built from."""

    experts: Mapping[str, CEExpert]
    text: CEText
    width: int = 768
    """Of embeddings, `ce_shared_dim`."""

    def __post_init__(self) -> None:
        if not self.experts:
            raise ValueError("CE has no experts; name one at least")
        object.__setattr__(self, "experts", {name: self.experts[name] for name in sorted(self.experts)})

    @property
    def names(self) -> tuple[str, ...]:
        """Of the experts, in their order."""
        return tuple(self.experts)

    def reduced(self, width: int) -> "CESizes":
        """The same system, small, for trials: features stay as wide as files have them, all else shrinks.

        Args:
            width: of embeddings. NetVLAD has three clusters at most.
        """
        experts = {
            name: replace(expert, clusters=expert.clusters and min(expert.clusters, MOST_CLUSTERS_REDUCED))
            for name, expert in self.experts.items()
        }
        text = replace(self.text, clusters=min(self.text.clusters, MOST_CLUSTERS_REDUCED))
        return CESizes(experts, text, width)


def of_steps(width: int, max_steps: int, clusters: int) -> CEExpert:
    """An expert of many steps, all of which may be missing."""
    return CEExpert(width, max_steps, clusters, flaky=True)


OF_ONE_ROW = {
    "i3d.i3d.0": CEExpert(1024),
    "imagenet.resnext101_32x48d.0": CEExpert(2048),
    "imagenet.senet154.0": CEExpert(2048),
    "r2p1d.r2p1d-ig65m.0": CEExpert(512),
    "scene.densenet161.0": CEExpert(2208),
}
"""Experts that every video has, averaged over time."""

CE: dict[str, CESizes] = {
    "msrvtt": CESizes(
        experts={
            **OF_ONE_ROW,
            "face": CEExpert(512, flaky=True),
            "ocr": of_steps(300, max_steps=49, clusters=43),
            "audio": of_steps(128, max_steps=29, clusters=8),
            "speech": of_steps(300, max_steps=32, clusters=19),
        },
        text=CEText(768, max_words=37, clusters=28, ghost_clusters=1),
    ),
    "activitynet": CESizes(
        experts={
            **OF_ONE_ROW,
            "face": CEExpert(512, flaky=True),
            "ocr": of_steps(300, max_steps=6, clusters=44),
            "audio": of_steps(128, max_steps=4, clusters=6),
            "speech": of_steps(300, max_steps=29, clusters=100),
        },
        text=CEText(768, max_words=49, clusters=39, ghost_clusters=0),
    ),
    "lsmdc": CESizes(
        experts={
            **OF_ONE_ROW,
            "face": CEExpert(128, flaky=True),
            "ocr": of_steps(300, max_steps=6, clusters=30),
            "audio": of_steps(128, max_steps=11, clusters=3),
            "speech": of_steps(300, max_steps=35, clusters=5),
        },
        text=CEText(300, max_words=36, clusters=43, ghost_clusters=0),
    ),
}
"""The model by data set."""
