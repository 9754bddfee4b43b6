"""Figures from papers, to stand beside a run's own of the same protocol, ViT-B/32 unless named."""

from dataclasses import dataclass, field
from typing import Any

Metrics = dict[str, float]


@dataclass(frozen=True)
class Published:
    """One row of a paper's table. Metrics that it does not give are absent."""

    name: str
    text_to_video: Metrics
    video_to_text: Metrics = field(default_factory=dict)


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


def _row(name: str, text_to_video: str, video_to_text: str = "", *, third: str = "R@10") -> Published:
    """From "R@1/R@5/R@10/MdR/MnR", as papers write it; trailing ones may be left out."""
    names = ("R@1", "R@5", third, "MdR", "MnR")

    def read(text: str) -> Metrics:
        return {key: float(value) for key, value in zip(names, text.split("/"), strict=False) if value}

    return Published(name, read(text_to_video), read(video_to_text))


def _activitynet(name: str, text_to_video: str) -> Published:
    return _row(name, text_to_video, third="R@50")


MSRVTT_1KA = Protocol(
    "MSR-VTT 1k-A",
    # The rows are of models trained on the 9k list.
    {"layout": "msrvtt", "msrvtt_split": "9k", "test_captions": "one"},
    1000,
    (
        _row("JSFusion", "10.2/31.2/43.2/13"),
        _row("CE (GPT-1 text)", "20.9/48.8/62.4/6/28.2", "20.6/50.3/64.0/5.3/25.1"),
        _row("MMT (BERT-Base)", "24.6/54.0/67.1/4/26.7"),
        _row("CLIP4Clip seqTransf", "44.5/71.4/81.6/2/15.3", "42.7/70.9/80.6/2/11.6"),
        _row("CLIP2Video", "45.6/72.6/81.7/2/14.6", "43.5/72.3/82.1/2/10.2"),
        _row("DRL (WTI + CDCR)", "47.6/73.4/83.3/2/12.8", "45.1/72.9/83.5/2/9.2"),
        _row("EMCL-Net", "46.8/73.1/83.1/2/12.8", "46.5/73.5/83.5/2/8.8"),
        _row("EMCL-Net + inverted softmax", "51.6/78.1/85.3/1"),
    ),
)
ACTIVITYNET = Protocol(
    "ActivityNet val_1, paragraphs",
    {"layout": "activitynet"},
    4917,
    (
        _activitynet("CE", "18.2/47.7/91.4/6"),
        _activitynet("MMT", "22.7/54.2/93.2/5"),
        _activitynet("CLIP4Clip", "40.5/72.4/98.1/2"),
        _activitynet("EMCL-Net", "41.2/72.7/98.1/2"),
        _activitynet("EMCL-Net + inverted softmax", "50.6/78.7/98.1/1"),
    ),
)
LSMDC = Protocol(
    "LSMDC",
    {"layout": "lsmdc"},
    1000,
    (
        _row("JSFusion", "9.1/21.2/34.1/36"),
        _row("CE", "11.2/26.9/34.8/25.3"),
        _row("MMT", "13.2/29.2/38.8/21"),
        _row("CLIP4Clip", "22.6/41.0/49.1/11"),
        _row("EMCL-Net", "23.9/42.4/50.9/10"),
        _row("EMCL-Net + inverted softmax", "25.9/46.4/53.7/8"),
    ),
)
MSVD = Protocol(
    "MSVD",
    {"layout": "msvd", "test_captions": "all"},
    670,
    (_row("EMCL-Net", "42.1/71.3/81.1/2/17.6", "54.3/81.3/88.1/1/5.6"),),
)
DIDEMO = Protocol(
    "DiDeMo, paragraphs",
    {"layout": "didemo"},
    1004,
    (_row("EMCL-Net", "46.8/74.3/83.1/2/12.3", "45.0/73.2/82.7/2/9.0"),),
)

PROTOCOLS = (MSRVTT_1KA, ACTIVITYNET, LSMDC, MSVD, DIDEMO)


def protocol_of(results: dict[str, Any]) -> Protocol | None:
    """The protocol that was evaluated, whatever the recipe is called; None where papers have no rows for it."""
    found = results.get("protocol", {})
    matching = (protocol for protocol in PROTOCOLS if protocol.asked.items() <= found.items())
    return next(matching, None) if results["split"] == "test" else None


def published_rows(results: dict[str, Any]) -> tuple[Published, ...]:
    """The rows of the protocol that a run was evaluated by."""
    protocol = protocol_of(results)
    return protocol.rows if protocol else ()


def published_sentences(results: dict[str, Any]) -> list[str]:
    """What must be said where published rows stand in a table."""
    protocol = protocol_of(results)
    if protocol is None:
        return []
    lines = [
        f"Rows marked published are from the papers, on {protocol.split}, with CLIP ViT-B/32 where CLIP is used; they "
        "were not computed here, and papers often select the epoch on the test split."
    ]
    gallery = results["gallery"]
    # The literature has DiDeMo with 1003 and with 1004 clips.
    if abs(gallery - protocol.gallery) > (1 if protocol is DIDEMO else 0):
        lines.append(
            f"This run's gallery has {gallery} clips, that of the published rows {protocol.gallery}: the figures "
            "cannot be compared."
        )
    if results["queries"] != gallery and protocol is not MSVD:
        lines.append(f"This run has {results['queries']} queries, the published rows one for each clip.")
    return lines
