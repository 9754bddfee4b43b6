"""Figures from papers and from the READMEs of releases, to stand beside a run's own of the same protocol.

Each says where it was read. CLIP is ViT-B/32 in all of them but the answers to questions. What no source gives is
absent here, and stays so in every table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Metrics = dict[str, float]

PLAIN = ("R@1", "R@5", "R@10", "MdR", "MnR")
WITH_50 = ("R@1", "R@5", "R@10", "R@50", "MdR", "MnR")
PARAGRAPHS = ("R@1", "R@5", "R@50", "MdR", "MnR")

EMCL_PAPER = "tables of the EMCL paper"
EMCL_RELEASE = "README of the EMCL release"
EMCL_EITHER = "paper or release of EMCL"
CE_RELEASE = "release of Collaborative Experts: mean of three seeds"
MMT_PAPER = "paper of MMT"
MMT_RELEASE = "README of MMT: the released checkpoint"
JSFUSION_RELEASE = "README of JSFusion: the released checkpoint"
CLIP2VIDEO_RELEASE = "README of CLIP2Video"
OWN_FILES = "tables of the EMCL paper, or public files of the system itself"

FROM_MEMORY = "from memory of the system's paper, not seen: check it before it is cited"
"""What the mark `m` at a figure means."""
WAYS = ("text_to_video", "video_to_text")


@dataclass(frozen=True)
class System:
    """What is measured, as published rows and runs are told by. Two are the same system if all of it agrees."""

    name: str
    emcl: str = "off"
    """Where EMCL is: "off", "train" or "inference", as `emcl.mode` has it."""
    rerank: str = ""
    """What the similarities went through before they were ranked; "": nothing."""

    @property
    def label(self) -> str:
        """As tables name it."""
        # Some have EMCL by their name.
        inside = {"off": "", "train": " + EMCL", "inference": " + EMCL at inference"}
        if self.name in (EMCL_NET, EMCL_QA):
            inside = {"off": ", trained without EMCL", "train": "", "inference": ", EMCL at inference only"}
        return self.name + inside[self.emcl] + (f" + {self.rerank}" if self.rerank else "")


EMCL_NET = "EMCL-Net"
EMCL_QA = "EMCL-QA"
INVERTED_SOFTMAX = "inverted softmax"

JSFUSION = System("JSFusion")
CE = System("CE")
MMT = System("MMT")
MMT_EMCL = System("MMT", "train")
CLIP4CLIP = System("CLIP4Clip")
"""Of a source that does not say which temporal aggregation it has."""
CLIP4CLIP_TRANSFORMER = System("CLIP4Clip seqTransf")
VARIANTS_OF_CLIP4CLIP = ("CLIP4Clip meanP", "CLIP4Clip seqLSTM", "CLIP4Clip seqTransf")
CLIP2VIDEO = System("CLIP2Video")
CLIP2VIDEO_EMCL = System("CLIP2Video", "inference")
DRL = System("DRL")
EMCL = System(EMCL_NET, "train")
EMCL_INVERTED = System(EMCL_NET, "train", INVERTED_SOFTMAX)


@dataclass(frozen=True)
class Published:
    """One row of a paper's or a README's table. Metrics that it does not give are absent."""

    system: System
    text_to_video: Metrics
    video_to_text: Metrics = field(default_factory=dict)
    """By best similarity where clips have several captions."""
    variant: str = ""
    """What tells it from other rows of the same system."""
    source: str = EMCL_PAPER
    """Where it was read."""
    from_memory: tuple[str, ...] = ()
    """The directions of `WAYS` whose figures were not read anywhere, but remembered."""
    deviation: tuple[float, float] | None = None
    """Of R@1 over three seeds, text→video and video→text."""
    video_to_text_by_rank: Metrics = field(default_factory=dict)
    """By best rank, of those who count so."""
    note: str = ""
    """A sentence that belongs under every table that has the row."""

    @property
    def name(self) -> str:
        return self.system.label + (f", {self.variant}" if self.variant else "")

    def cell(self, way: str, metric: str) -> str:
        """A figure as tables have it: marked `m` if it is from memory, a dash if there is none.

        Args:
            way: "text_to_video", "video_to_text" or "video_to_text_by_rank".
            metric: such as "R@1".
        """
        metrics: Metrics = getattr(self, way)
        remembered = way.removesuffix("_by_rank") in self.from_memory
        return f"{metrics[metric]:.1f}" + ("m" if remembered else "") if metric in metrics else "–"


@dataclass(frozen=True)
class Protocol:
    """A test split as the papers use it."""

    split: str
    """Its name."""
    asked: dict[str, str]
    """What a run's protocol, as results.json has it, must be."""
    gallery: int
    """Clips of its test split."""
    rows: tuple[Published, ...]
    several: bool = False
    """Whether a clip has several captions, each of which is a query."""
    note: str = ""
    """A sentence on what differs between sources."""


def _row(
    system: System,
    text_to_video: str,
    video_to_text: str = "",
    *,
    columns: tuple[str, ...] = PLAIN,
    by_rank: bool = False,
    **more: Any,
) -> Published:
    """From "R@1/R@5/R@10/MdR/MnR", as papers write it; what is left out is empty or, at the end, missing.

    Args:
        system: whose row it is.
        text_to_video: its figures.
        video_to_text: its figures.
        columns: which figures they are.
        by_rank: video→text takes the best rank of a clip's captions.
        **more: other fields of `Published`.
    """

    def read(text: str) -> Metrics:
        return {key: float(value) for key, value in zip(columns, text.split("/"), strict=False) if value}

    other = read(video_to_text)
    if by_rank:
        return Published(system, read(text_to_video), video_to_text_by_rank=other, **more)
    return Published(system, read(text_to_video), other, **more)


def _ce(text_to_video: str, video_to_text: str, *, by_rank: bool = False, **more: Any) -> Published:
    return _row(CE, text_to_video, video_to_text, columns=WITH_50, by_rank=by_rank, source=CE_RELEASE, **more)


MSRVTT_1KA = Protocol(
    "MSR-VTT 1k-A",
    # The rows are of models trained on the 9k list.
    {"layout": "msrvtt", "msrvtt_split": "9k", "test_captions": "one"},
    1000,
    (
        _row(JSFUSION, "10.2/31.2/43.2/13"),
        _ce(
            "20.9/48.8/62.4/89.1/6.0/28.2",
            "20.6/50.3/64.0/89.9/5.3/25.1",
            variant="GPT-1 text",
            deviation=(1.2, 0.6),
        ),
        _row(
            MMT,
            "24.6/54.0/67.1/4.0/26.7",
            "24.4/56.0/67.8/4.0/23.6",
            variant="BERT-Base",
            from_memory=("video_to_text",),
            note="MMT: the paper's code left [CLS] and [SEP] out of the text; the released checkpoints have them.",
        ),
        _row(
            MMT,
            "24.1/56.4/69.6/4.0/25.8",
            "25.9/58.1/69.3/4.0/22.9",
            variant="released checkpoint",
            source=MMT_RELEASE,
        ),
        _row(
            MMT,
            "26.6/57.1/69.6/4.0/24.0",
            "27.0/57.5/69.7/3.7/21.3",
            variant="HowTo100M",
            source=MMT_PAPER,
            from_memory=WAYS,
        ),
        _row(
            MMT,
            "25.8/57.2/69.3/4.0/22.4",
            "26.1/57.8/68.5/4.0/20.1",
            variant="HowTo100M, released checkpoint",
            source=MMT_RELEASE,
        ),
        _row(CLIP4CLIP_TRANSFORMER, "44.5/71.4/81.6/2/15.3", "42.7/70.9/80.6/2/11.6", source=OWN_FILES),
        _row(CLIP2VIDEO, "45.6/72.6/81.7/2/14.6", "43.5/72.3/82.1/2/10.2", source=CLIP2VIDEO_RELEASE),
        _row(
            CLIP2VIDEO_EMCL,
            "46.6/72.7",
            "44.0/72.3",
            source=EMCL_RELEASE,
            note="CLIP2Video + EMCL at inference: in blocks of 64 × 64, with random signs at the start of EM.",
        ),
        _row(DRL, "47.6/73.4/83.3/2/12.8", "45.1/72.9/83.5/2/9.2", variant="WTI + CDCR", source=OWN_FILES),
        _row(EMCL, "46.8/73.1/83.1/2/12.8", "46.5/73.5/83.5/2/8.8"),
        _row(EMCL, "47.0", variant="2 GPUs", source=EMCL_RELEASE),
        _row(EMCL, "48.2", variant="8 GPUs", source=EMCL_RELEASE),
        _row(EMCL_INVERTED, "51.6/78.1/85.3/1"),
    ),
)
MSRVTT_1KB = Protocol(
    "MSR-VTT 1k-B",
    {"layout": "msrvtt", "msrvtt_split": "1k-B"},
    1000,
    (_ce("18.2/46.0/60.7/86.6/7.0/35.3", "18.0/46.0/60.3/86.4/6.5/30.6", deviation=(0.7, 0.8)),),
)
MSRVTT_FULL = Protocol(
    "MSR-VTT full",
    {"layout": "msrvtt", "msrvtt_split": "full", "test_captions": "all"},
    2990,
    (
        _ce("10.0/29.0/41.2/71.4/16.0/86.8", "15.6/40.9/55.2/84.0/8.3/38.1", by_rank=True, deviation=(0.1, 0.3)),
        _row(CLIP2VIDEO, "29.8/55.5/66.2/4/45.5", "54.6/82.1/90.8/1/5.3", source=CLIP2VIDEO_RELEASE),
    ),
    several=True,
)
ACTIVITYNET = Protocol(
    "ActivityNet val_1, paragraphs",
    {"layout": "activitynet"},
    4917,
    (
        _ce("18.2/47.7/63.9/91.4/6.0/23.1", "17.7/46.6/62.8/90.9/6.0/24.4", deviation=(0.3, 0.6)),
        _row(
            MMT,
            "22.7/54.2/93.2/5.0/20.8",
            "22.9/54.8/93.1/4.3/21.2",
            columns=PARAGRAPHS,
            from_memory=("video_to_text",),
        ),
        _row(CLIP4CLIP, "40.5/72.4/98.1/2", columns=PARAGRAPHS),
        _row(EMCL, "41.2/72.7/98.1/2", columns=PARAGRAPHS),
        _row(EMCL_INVERTED, "50.6/78.7/98.1/1", columns=PARAGRAPHS),
    ),
)
LSMDC = Protocol(
    "LSMDC",
    {"layout": "lsmdc"},
    1000,
    (
        _row(JSFUSION, "9.1/21.2/34.1/36"),
        _row(
            JSFUSION,
            "9.3/24.7/34.8/29",
            variant="released checkpoint",
            source=JSFUSION_RELEASE,
            note="JSFusion, released checkpoint: its code ranks captions for a clip, as video→text does.",
        ),
        _ce("11.2/26.9/34.8/62.1/25.3/96.8", "11.7/25.8/34.4/61.4/28.0/97.6", deviation=(0.4, 0.5)),
        _row(MMT, "13.2/29.2/38.8/21.0/76.3", "12.1/29.3/37.9/22.5/77.1", from_memory=("video_to_text",)),
        _row(CLIP4CLIP, "22.6/41.0/49.1/11"),
        _row(EMCL, "23.9/42.4/50.9/10"),
        _row(EMCL_INVERTED, "25.9/46.4/53.7/8"),
    ),
)
MSVD = Protocol(
    "MSVD",
    {"layout": "msvd", "test_captions": "all"},
    670,
    (
        _ce("19.8/49.0/63.8/89.0/6.0/23.1", "23.9/50.2/59.6/82.3/5.6/41.2", by_rank=True),
        _row(CLIP2VIDEO, "47.0/76.8/85.9/2/9.6", "58.7/85.6/91.6/1/4.3", source=CLIP2VIDEO_RELEASE),
        _row(EMCL, "42.1/71.3/81.1/2/17.6", "54.3/81.3/88.1/1/5.6", source=EMCL_EITHER),
    ),
    several=True,
)
DIDEMO = Protocol(
    "DiDeMo, paragraphs",
    {"layout": "didemo"},
    1004,
    (
        _ce("16.1/41.1/54.4/82.7/8.3/43.7", "15.6/40.9/55.2/82.2/8.2/42.4"),
        _row(EMCL, "46.8/74.3/83.1/2/12.3", "45.0/73.2/82.7/2/9.0", source=EMCL_EITHER),
    ),
)
VATEX = Protocol(
    "VATEX",
    {"layout": "vatex", "test_captions": "all"},
    1500,
    (
        _row(
            CLIP2VIDEO,
            "61.2/90.9/95.6/1/3.4",
            "77.9/98.1/99.1/1/1.6",
            variant="HGR's split",
            source=CLIP2VIDEO_RELEASE,
        ),
        _row(
            CLIP2VIDEO,
            "57.3/90.0/95.5/1/3.6",
            "76.0/97.7/99.9/1/1.5",
            variant="random 1 500",
            source=CLIP2VIDEO_RELEASE,
        ),
    ),
    several=True,
    note="VATEX has several test lists of 1 500 clips; figures of different lists cannot be compared.",
)

PROTOCOLS = (MSRVTT_1KA, MSRVTT_1KB, MSRVTT_FULL, ACTIVITYNET, LSMDC, MSVD, DIDEMO, VATEX)


@dataclass(frozen=True)
class PublishedAccuracy:
    """A published figure of answers to questions, and what it is of."""

    system: System
    kept: float
    """In percent, over the questions whose answer is one of those that the model knows."""
    layout: str
    """Of the data set, as results.json has it under "protocol"."""
    split: str
    """What a table calls its test split."""
    asked: int
    """Questions of the test split; those that were not kept are among them."""
    towers: str
    source: str


MSRVTT_QA = PublishedAccuracy(
    System(EMCL_QA, "train"), 45.8, "msrvttqa", "MSRVTT-QA", 72821, "ViT-B/16", "leaderboard entries of the EMCL paper"
)


def published_accuracy_of(results: Mapping[str, Any]) -> PublishedAccuracy | None:
    """What was published of the questions that a run answered; None if these are others, or not all of them."""
    found = (results.get("protocol") or {}).get("layout")
    whole = results["split"] == "test" and results["figures"]["asked"] == MSRVTT_QA.asked
    return MSRVTT_QA if found == MSRVTT_QA.layout and whole else None


def protocol_of(results: Mapping[str, Any]) -> Protocol | None:
    """The protocol that was evaluated, whatever the recipe is called; None where papers have no rows for it."""
    found = results.get("protocol") or {}
    matching = (protocol for protocol in PROTOCOLS if protocol.asked.items() <= found.items())
    return next(matching, None) if results["split"] == "test" else None


def has_the_gallery(results: Mapping[str, Any], protocol: Protocol) -> bool:
    """Whether as many clips were ranked as in the published rows."""
    # The literature has DiDeMo with 1003 and with 1004 clips.
    return abs(int(results["gallery"]) - protocol.gallery) <= (1 if protocol is DIDEMO else 0)


def is_of(published: System, measured: System) -> bool:
    """Whether a run's system is that of a published row.

    Args:
        published: of the row, which may leave open which temporal aggregation a CLIP4Clip has.
        measured: of the run.
    """
    if published.name == CLIP4CLIP.name and measured.name in VARIANTS_OF_CLIP4CLIP:
        measured = replace(measured, name=CLIP4CLIP.name)
    return published == measured


def published_rows(results: Mapping[str, Any]) -> tuple[Published, ...]:
    """The rows of the protocol that a run was evaluated by."""
    protocol = protocol_of(results)
    return protocol.rows if protocol else ()


def published_sentences(results: Mapping[str, Any]) -> list[str]:
    """What must be said where published rows stand in a table."""
    protocol = protocol_of(results)
    if protocol is None:
        return []
    lines = [
        f"Rows marked published are from papers and READMEs, on {protocol.split}, with CLIP ViT-B/32 where CLIP is "
        "used; they were not computed here, and papers often select the epoch on the test split.",
        *remarks_on(protocol.rows, protocol.note),
    ]
    gallery = results["gallery"]
    if not has_the_gallery(results, protocol):
        lines.append(
            f"This run's gallery has {gallery} clips, that of the published rows {protocol.gallery}: the figures "
            "cannot be compared."
        )
    if results["queries"] != gallery and not protocol.several:
        lines.append(f"This run has {results['queries']} queries, the published rows one for each clip.")
    return lines


def remarks_on(rows: Sequence[Published], note: str = "") -> list[str]:
    """What marks, deviations and single rows have to say.

    Args:
        rows: those of a table.
        note: of their protocol.
    """
    lines = [note] if note else []
    if any(row.from_memory for row in rows):
        lines.append(f"m: {FROM_MEMORY}.")
    for row in rows:
        if row.deviation is not None:
            to_video, to_text = row.deviation
            lines.append(f"{row.name}: R@1 ± {to_video:g} text→video and ± {to_text:g} video→text over three seeds.")
    return [*lines, *dict.fromkeys(row.note for row in rows if row.note)]
