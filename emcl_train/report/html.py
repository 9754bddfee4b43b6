"""report.html: one page that needs no other file, light or dark as the reader has it.

This module gathers what the page says; `pages.py` and `templates/report.html` make the page of it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from markupsafe import Markup

from emcl_train.evaluation.bootstrap import signed
from emcl_train.evaluation.table import CHANCE
from emcl_train.kinds import HEADS, SYSTEMS
from emcl_train.report import plots
from emcl_train.report.films import Media
from emcl_train.report.notes import BY_RANK, chance_of, columns_of, sentences, standard_error
from emcl_train.report.pages import Drawing, Page, Quoted, embedded, render
from emcl_train.report.paths import Paths
from emcl_train.report.published import Metrics, published_rows
from emcl_train.report.queries import clips_that_matter, data_of
from emcl_train.report.retrievals import Retrieval, Strip, best_and_worst, media_of, strips
from emcl_train.report.settings import settings_and_environment
from emcl_train.runs.folder import Run

PAGE = 14_500_000
"""Letters of a page at most, unless the texts of its queries alone are more."""
MEDIA = 11_000_000
"""Of these, pictures and films at most."""
REST = 1_500_000
"""What plots, cards and tables take at most, beside queries, pictures and films."""


@dataclass(frozen=True)
class Tile:
    """A number in large type at the top of the page."""

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class ResultRow:
    """A row of the table of results. A metric that is absent leaves its cell empty."""

    name: str
    text_to_video: Metrics
    video_to_text: Metrics
    kind: str = ""
    """"second": set back under the row above it, in a softer colour."""
    from_memory: tuple[str, ...] = ()
    """The directions whose figures are marked `m`."""


@dataclass(frozen=True)
class Modalities:
    """The features before and after EMCL, one panel each, and what they show."""

    panels: list[Drawing]
    caption: str


@dataclass(frozen=True)
class ShownClip:
    """A clip in a card: its frames, or why there are none."""

    number: int
    name: str
    role: str
    similarity: float
    jpeg: Markup | None
    reason: str


@dataclass(frozen=True)
class Card:
    """A caption with its right clip and the clip that competes with it."""

    caption: str
    rank: float
    right: ShownClip
    other: ShownClip


@dataclass(frozen=True)
class CardGroup:
    """Cards under one heading."""

    title: str
    subtitle: str
    cards: list[Card]


def page(run: Run, *, share: bool = False, notices: Sequence[str] = (), reload: int | None = None) -> Page:
    """The whole page.

    Args:
        run: a finished run, as `load_run` reads it.
        share: leave out what leads to the last part of absolute paths.
        notices: what a reader must know before all else.
        reload: seconds after which the open page reads itself again; None: it does not.

    Returns:
        HTML that needs no other file. Text from the run and its data set is escaped, and isolated from the direction of
        the text around it.
    """
    retrievals, shown_clips, no_frames = _retrievals(run)
    settings, left_out = settings_and_environment(run.config, run.environment)
    listed = data_of(run)
    media = Media()
    about_media = ""
    if not no_frames:
        room = max(0, min(MEDIA, PAGE - len(str(embedded(listed))) - REST))
        media, about_media = media_of(run, clips_that_matter(run, shown_clips), room)

    values: dict[str, Any] = {
        "name": run.path.resolve().name,
        "config": run.config,
        "results": run.results,
        "facts": _facts(run),
        "origin": origin_of(run),
        "tiles": _tiles(run),
        "columns": columns_of(run.results),
        "rows": _rows(run),
        "notes": sentences(run.results),
        "training": plots.training(run),
        "steps": plots.steps(run),
        "similarities": plots.similarities(run),
        "modalities": _modalities(run),
        "retrievals": retrievals,
        "no_frames": no_frames,
        "about_media": about_media,
        "settings": settings,
        "left_out": left_out,
    }
    data = {
        "queries": listed,
        "media": {
            "pictures": {str(clip): Markup(text) for clip, text in media.pictures.items()},
            "films": {str(clip): Markup(text) for clip, text in media.films.items()},
            "reasons": {str(clip): text for clip, text in media.reasons.items()},
        },
    }
    paths = Paths(asdict(run.config), run.environment, run.results, str(run.path.absolute()), leave_out=share)
    return render(
        "report.html", values, paths,
        share=share, scripts=("plots.js", "queries.js"), data=data, notices=notices, reload=reload,
    )  # fmt: skip


def _facts(run: Run) -> list[str]:
    """The run in a few words each."""
    config = run.config
    if config.model.system == "clip":
        model = [
            "CLIP with random weights" if config.model.clip == "random" else config.model.clip,
            f"head: {HEADS[config.model.head].about or config.model.head}",
            f"temporal: {config.model.temporal}",
        ]
        seen = [f"{config.data.num_frames} frames of {config.data.image_size}²"]
    else:
        system = SYSTEMS[config.model.system]
        model = [f"{system.label}: {system.about}"]
        if config.model.system == "mmt":
            text = "a small BERT with random weights" if config.experts.text == "random" else config.experts.text
            model.append(f"text: {text}")
        seen = [f"experts: {', '.join(experts)}"] if (experts := run.results.get("experts")) else []
    emcl = {"train": "EMCL in training and evaluation", "inference": "EMCL in evaluation only", "off": "no EMCL"}
    return [
        f"{config.data.layout} ({config.data.root})",
        *model,
        emcl[run.emcl.mode],
        *seen,
        f"batch {config.train.batch_size}",
        f"seed {config.train.seed}",
    ]


def origin_of(run: Run) -> dict[str, str]:
    """How the run came about, as far as its record says."""
    record = run.environment
    packages = record.get("packages")
    packages = packages if isinstance(packages, dict) else {}
    code = [f"emcl {packages['emcl']}"] if packages.get("emcl") else []
    code += [f"commit {record['commit']}"] if record.get("commit") else []
    code += [f"torch {packages['torch']}"] if packages.get("torch") else []
    hardware = [str(record[name]) for name in ("device", "processor") if record.get(name)]
    hardware = [name for name in hardware if name != "cpu" or len(hardware) == 1]
    if isinstance(record.get("processes"), int) and record["processes"] > 1:
        hardware.append(f"{record['processes']} processes")
    known = {
        "command": str(record.get("command") or ""),
        "started": str(record.get("started") or ""),
        "code": ", ".join(code),
        "hardware": ", ".join(hardware),
    }
    return {name: value for name, value in known.items() if value}


def _tiles(run: Run) -> list[Tile]:
    """The main figures, and what EMCL adds if the run was evaluated without it too."""
    main = run.results["rows"][0]
    gallery = run.results["gallery"]
    recall = main["text_to_video"]["R@1"]
    tiles = [
        Tile(
            "text→video R@1",
            f"{recall:.1f}",
            f"± {standard_error(run.results):.1f} · chance {100 / gallery:.1f}",
        ),
        Tile("video→text R@1", f"{main['video_to_text']['R@1']:.1f}", "by best similarity"),
        Tile("text→video median rank", f"{main['text_to_video']['MdR']:g}", f"of {gallery} clips"),
    ]

    rows = {row["name"]: row for row in run.results["rows"]}
    off = rows.get("EMCL off (same weights)")
    if off:
        effect = signed(recall - off["text_to_video"]["R@1"]).replace("-", "−")
        tiles.append(Tile("EMCL, text→video R@1", effect, "points over the same weights off"))

    return tiles


def _rows(run: Run) -> list[ResultRow]:
    """The run's own rows, each with that by best rank below it, and then the published ones."""
    rows = []
    for row in [*run.results["rows"], chance_of(run.results)]:
        kind = "second" if row["name"] == CHANCE else ""
        rows.append(ResultRow(row["name"], row["text_to_video"], row["video_to_text"], kind))
        by_rank = row.get("video_to_text_by_rank")
        if by_rank:
            rows.append(ResultRow(BY_RANK, {}, by_rank, "second"))

    for other in published_rows(run.results):
        remembered = other.from_memory
        name = f"published: {other.name}"
        rows.append(ResultRow(name, other.text_to_video, other.video_to_text, "second", remembered))
        if other.video_to_text_by_rank:
            rows.append(ResultRow(BY_RANK, {}, other.video_to_text_by_rank, "second", remembered))

    return rows


def _modalities(run: Run) -> Modalities | None:
    """Both modalities before and after EMCL; None if the run has EMCL nowhere."""
    drawn = plots.modalities(run)
    if drawn is None:
        return None

    panels, sentence = drawn
    config = run.emcl
    caption = (
        "Captions and clips in two dimensions; thin lines join right pairs. Each clip's frames are pooled for its own "
        f"caption. “After” is the run's EMCL layer (K = {config.num_bases}, {config.num_iters} iterations, weight "
        f"{config.residual_weight:g}) over these captions and pooled clips together, so it is fitted on fewer rows "
        "than in the evaluation, where EM sees every caption with every clip. Rows are scaled to length one; both "
        f"panels have the axes of a PCA of the features before. {sentence}"
    )
    return Modalities([Drawing(panel.svg, "", panel.data) for panel in panels], caption)


def _retrievals(run: Run) -> tuple[list[CardGroup], list[int], str]:
    """Cards of the best and the worst retrievals, their clips, and why no clip has frames, if so."""
    best, worst = best_and_worst(run)
    clips = [clip for retrieval in best + worst for clip in (retrieval.right, retrieval.other)]
    pictures, problem = strips(run, set(clips))

    groups = [
        CardGroup(
            "Best retrievals",
            "rank 1 with the largest lead over the runner-up",
            [_card(run, retrieval, pictures, "runner-up") for retrieval in best],
        ),
        CardGroup(
            "Worst retrievals",
            "the largest ranks",
            [_card(run, retrieval, pictures, "at rank 1 instead") for retrieval in worst],
        ),
    ]
    return [group for group in groups if group.cards], list(dict.fromkeys(clips)), problem


def _card(run: Run, retrieval: Retrieval, pictures: dict[int, Strip], rival: str) -> Card:
    right = _shown(run, retrieval.right, "right clip", retrieval.right_similarity, pictures)
    other = _shown(run, retrieval.other, rival, retrieval.other_similarity, pictures)
    return Card(Quoted(retrieval.caption), retrieval.rank, right, other)


def _shown(run: Run, clip: int, role: str, similarity: float, pictures: dict[int, Strip]) -> ShownClip:
    # Without any picture the section says why once, so a clip by itself gives no reason.
    strip = pictures.get(clip, Strip(None))
    jpeg = None if strip.jpeg is None else Markup(strip.jpeg)  # base64, whose slashes begin no paths
    return ShownClip(clip, run.video_ids[clip], role, similarity, jpeg, strip.reason)
