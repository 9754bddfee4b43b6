"""Similarities to the lines of a table: the run's own, without EMCL, and re-ranked in ways that have a name."""

from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor

from emcl_train.config import RunConfig
from emcl_train.evaluation.metrics import (
    chance,
    chance_of_best_rank,
    text_to_video,
    video_to_text_best_rank,
    video_to_text_best_similarity,
)
from emcl_train.evaluation.rerank import inverted_softmax, qb_norm
from emcl_train.kinds import line_of

Metrics = dict[str, float]

CHANCE = "chance"


@dataclass(frozen=True)
class Similarities:
    """Cosine similarities of all captions with all clips."""

    emcl_on: Float[Tensor, "Q G"] | None
    """None if the run has EMCL nowhere."""
    emcl_off: Float[Tensor, "Q G"]

    @property
    def main(self) -> Float[Tensor, "Q G"]:
        """Those that the run is judged by."""
        return self.emcl_off if self.emcl_on is None else self.emcl_on


@dataclass(frozen=True)
class Bank:
    """Similarities of training queries: R captions with the clips of the split, R clips with its captions."""

    text_to_video: Float[Tensor, "R G"]
    video_to_text: Float[Tensor, "Q S"]


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    name: str
    text_to_video: Metrics
    video_to_text: Metrics
    """By best similarity: each clip's captions count as one gallery item."""
    video_to_text_by_rank: Metrics | None
    """By best rank among all captions; None if every clip has one caption, and the definitions are one."""
    note: str = ""


def lines_of(
    scores: Similarities, caption_clip: Int64[Tensor, "Q"], config: RunConfig, bank: Bank | None = None
) -> list[Line]:
    """Metrics of the run's similarity, of the same weights without EMCL, and of what re-ranking makes of it.

    Args:
        scores: of all captions with all clips.
        caption_clip: the clip of each caption.
        config: names the first line, and has the temperatures of re-ranking.
        bank: for the line with QB-Norm; None leaves it out.

    Returns:
        The lines; the first is the one that the run is judged by.

    Raises:
        ValueError: similarities are NaN, or are not those of these captions.
    """
    name = main_line(config)
    main = scores.main
    lines = [_line(name, main, main, caption_clip)]
    if scores.emcl_on is not None:
        lines.append(_line("EMCL off (same weights)", scores.emcl_off, scores.emcl_off, caption_clip))

    temperature = config.eval.inverted_softmax_temperature
    lines.append(
        _line(
            f"{name} + inverted softmax",
            inverted_softmax(main, temperature, axis=0),
            inverted_softmax(main, temperature, axis=1),
            caption_clip,
            note=f"sees all test queries at once; temperature {temperature:g}",
        )
    )

    if bank is not None:
        temperature = config.eval.qb_norm_temperature
        lines.append(
            _line(
                f"{name} + QB-Norm",
                qb_norm(main, bank.text_to_video, temperature=temperature),
                qb_norm(main.T, bank.video_to_text.T, temperature=temperature).T,
                caption_clip,
                note=f"with a bank of {len(bank.text_to_video)} training captions and as many clips; "
                f"temperature {temperature:g}",
            )
        )
    return lines


def chance_line(caption_clip: Int64[Tensor, "Q"], clips: int) -> Line:
    """What a model that knows nothing has.

    Args:
        caption_clip: the clip of each caption.
        clips: how many there are.
    """
    by_rank = chance_of_best_rank(caption_clip) if len(caption_clip) > clips else None
    return Line(CHANCE, chance(clips), chance(clips), by_rank)


def main_line(config: RunConfig) -> str:
    """The name of the line that a run is judged by."""
    return line_of(config.model.head, config.model.temporal, config.emcl.mode, config.model.system)


def _line(name: str, for_texts: Tensor, for_videos: Tensor, caption_clip: Tensor, note: str = "") -> Line:
    several = len(caption_clip) > for_videos.shape[1]
    return Line(
        name,
        text_to_video(for_texts, caption_clip),
        video_to_text_best_similarity(for_videos, caption_clip),
        video_to_text_best_rank(for_videos, caption_clip) if several else None,
        note,
    )
