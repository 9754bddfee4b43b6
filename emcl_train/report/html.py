"""report.html: one page, no script, nothing loaded from elsewhere, light or dark as the reader has it.

This module gathers what the page says; `templates/report.html` and `templates/style.css` say how it looks.
"""

from dataclasses import asdict, dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Undefined
from markupsafe import Markup

from emcl_train.config import flattened
from emcl_train.evaluation.bootstrap import signed
from emcl_train.report import plots
from emcl_train.report.notes import BY_RANK, columns_of, sentences, standard_error
from emcl_train.report.paths import Paths
from emcl_train.report.published import Metrics, published_rows
from emcl_train.report.retrievals import Retrieval, Strip, best_and_worst, strips
from emcl_train.runs.folder import Run
from emcl_train.terminal import visible


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


@dataclass(frozen=True)
class Drawing:
    """A plot, and what it shows."""

    svg: Markup
    """Drawn by `plots`, with nothing in it that a data set says, so it is not escaped."""
    caption: str


@dataclass(frozen=True)
class ShownClip:
    """A clip in a card: its frames, or why there are none."""

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


@dataclass(frozen=True)
class Page:
    """The page, and what a reader elsewhere learns from it of the machine."""

    html: str
    paths: tuple[str, ...]
    """Absolute paths in it."""


class Quoted(str):
    """A text from a data set, in which a slash begins no path."""


def page(run: Run, *, share: bool = False) -> Page:
    """The whole page.

    Args:
        run: a finished run, as `load_run` reads it.
        share: leave out what leads to the last part of absolute paths.

    Returns:
        HTML that needs no other file. Text from the run and its data set is escaped, and isolated from the direction of
        the text around it.
    """
    retrievals, no_frames = _retrievals(run)
    values: dict[str, Any] = {
        "name": run.path.resolve().name,
        "config": run.config,
        "results": run.results,
        "facts": _facts(run),
        "tiles": _tiles(run),
        "columns": columns_of(run.results),
        "rows": _rows(run),
        "notes": sentences(run.results),
        "training": _training(run),
        "similarities": _similarities(run),
        "modalities": _modalities(run),
        "retrievals": retrievals,
        "no_frames": no_frames,
        "settings": _settings(run),
        "share": share,
    }

    # Which paths a page has is known when it is there, and is then said on it.
    paths = Paths(asdict(run.config), run.environment, run.results, str(run.path.absolute()), leave_out=share)
    template = _environment(paths).get_template("report.html")
    template.render(values, carried=[])
    carried = tuple(paths.found)
    html = template.render(values, carried=[] if share else carried)
    return Page(html, () if share else carried)


def _environment(paths: Paths) -> Environment:
    """Jinja with every value escaped; a name that the template uses and nobody gave is an error."""

    def shown(value: Any) -> Any:
        """A value of the run or its data set: with control characters visible, and paths as `paths` has them."""
        if isinstance(value, (Markup, Undefined, int, float)):
            return value
        text = visible(str(value))
        return text if isinstance(value, Quoted) else paths.shown(text)

    return Environment(
        loader=PackageLoader("emcl_train.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _facts(run: Run) -> list[str]:
    """The run in a few words each."""
    config = run.config
    model = "CLIP with random weights" if config.model.clip == "random" else config.model.clip
    emcl = {"train": "EMCL in training and evaluation", "inference": "EMCL in evaluation only", "off": "no EMCL"}
    return [
        f"{config.data.layout} ({config.data.root})",
        model,
        f"temporal: {config.model.temporal}",
        emcl[run.emcl.mode],
        f"{config.data.num_frames} frames of {config.data.image_size}²",
        f"batch {config.train.batch_size}",
        f"seed {config.train.seed}",
    ]


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
    for row in run.results["rows"]:
        rows.append(ResultRow(row["name"], row["text_to_video"], row["video_to_text"]))
        by_rank = row.get("video_to_text_by_rank")
        if by_rank:
            rows.append(ResultRow(BY_RANK, {}, by_rank, "second"))

    for other in published_rows(run.results):
        rows.append(ResultRow(f"published: {other.name}", other.text_to_video, other.video_to_text, "second"))

    return rows


def _training(run: Run) -> list[Drawing]:
    """Curves of what metrics.jsonl recorded."""
    drawings = []
    if run.of_kind("train"):
        caption = "Symmetric InfoNCE over each batch of training, against the optimiser's steps."
        drawings.append(Drawing(Markup(plots.loss_curve(run)), caption))

    validations = run.of_kind("validation")
    if validations:
        split = "test" if validations[0].get("split") == "test" else "validation"
        caption = f"Recall on the {split} split, on which the weights were chosen: {run.results['selection']}."
        drawings.append(Drawing(Markup(plots.recall_curve(run)), caption))

    return drawings


def _similarities(run: Run) -> list[Drawing]:
    """The similarities as a picture, and the ranks that follow from them."""
    heat, sentence = plots.heat_map(run)
    return [
        Drawing(
            Markup(heat),
            f"Captions × clips, right pairs on the diagonal: it should stand out from its row and column. {sentence}",
        ),
        Drawing(
            Markup(plots.rank_histogram(run)),
            f"Ranks of the right item for all {run.results['queries']} captions and {run.results['gallery']} clips. "
            "The first bar of each colour is R@1; mass on the right are retrievals that went wrong altogether.",
        ),
    ]


def _modalities(run: Run) -> Drawing | None:
    """Both modalities before and after EMCL; None if the run has EMCL nowhere."""
    drawn = plots.modalities(run)
    if drawn is None:
        return None

    svg, sentence = drawn
    config = run.emcl
    caption = (
        "Captions and clips in two dimensions; thin lines join right pairs. Each clip's frames are pooled for its own "
        f"caption. “After” is the run's EMCL layer (K = {config.num_bases}, {config.num_iters} iterations, weight "
        f"{config.residual_weight:g}) over these captions and pooled clips together, so it is fitted on fewer rows "
        "than in the evaluation, where EM sees every caption with every clip. Rows are scaled to length one; both "
        f"panels have the axes of a PCA of the features before. {sentence}"
    )
    return Drawing(Markup(svg), caption)


def _retrievals(run: Run) -> tuple[list[CardGroup], str]:
    """Cards of the best and the worst retrievals, and why no clip has frames, if so."""
    best, worst = best_and_worst(run)
    clips = {clip for retrieval in best + worst for clip in (retrieval.right, retrieval.other)}
    pictures, problem = strips(run, clips)

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
    return [group for group in groups if group.cards], problem


def _card(run: Run, retrieval: Retrieval, pictures: dict[int, Strip], rival: str) -> Card:
    right = _shown(run, retrieval.right, "right clip", retrieval.right_similarity, pictures)
    other = _shown(run, retrieval.other, rival, retrieval.other_similarity, pictures)
    return Card(Quoted(retrieval.caption), retrieval.rank, right, other)


def _shown(run: Run, clip: int, role: str, similarity: float, pictures: dict[int, Strip]) -> ShownClip:
    # Without any picture the section says why once, so a clip by itself gives no reason.
    strip = pictures.get(clip, Strip(None))
    jpeg = None if strip.jpeg is None else Markup(strip.jpeg)  # base64, whose slashes begin no paths
    return ShownClip(run.video_ids[clip], role, similarity, jpeg, strip.reason)


def _settings(run: Run) -> dict[str, dict[str, Any]]:
    """Every setting under the heading of its section, and the environment."""
    config = asdict(run.config)
    sections = {name: flattened(value) for name, value in config.items() if isinstance(value, dict)}
    plain = {name: value for name, value in config.items() if not isinstance(value, dict)}
    return {"run": plain, **sections, "environment": flattened(run.environment)}
