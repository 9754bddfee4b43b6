"""The figures of a run's report: its training, its similarities and ranks, and its features before and after EMCL."""

import math
from collections.abc import Sequence
from typing import TypeGuard

import matplotlib
import torch
from jaxtyping import Float
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.nn.functional import normalize

from emcl_kernels import EMCL
from emcl_train.kinds import HEADS
from emcl_train.report.drawing import (
    INK,
    STYLE,
    TEXT,
    VIDEO,
    Curve,
    Level,
    Numbers,
    Plot,
    as_svg,
    box_of,
    curves,
    figure,
    running_means,
)
from emcl_train.report.pages import Drawing, Quoted
from emcl_train.report.ranks import text_ranks, video_ranks
from emcl_train.runs.folder import Run
from emcl_train.runs.records import weights_sentence

HEAT_MAP_CLIPS = 96  # more, and a cell of the diagonal is smaller than a pixel
POINTS, LINES = 300, 60

GIB = 2**30
OF_A_STEP = (
    ("lr", "learning rate", 1.0, "Learning rate of what is not CLIP."),
    ("logit_scale", "logit scale", 1.0, "What similarities are multiplied by before the loss."),
    ("grad_norm", "gradient norm", 1.0, "Length of the gradient before it is clipped."),
    ("seconds", "step time in s", 1.0, "Seconds of a step, without the wait for its clips."),
    ("clips_per_second", "clips a second", 1.0, "Clips of a step by the time from the step before it, waits and all."),
    (
        "memory_bytes",
        "memory in GiB",
        1 / GIB,
        "The most memory so far, of the GPU if there is one.",
    ),
)
"""What may be drawn of every step: its name in a record, that of the axis, a factor, and a sentence."""
SMOOTH = ("lr", "logit_scale", "memory_bytes")
"""Of these, those that do not jump from step to step, so that they need no mean."""


OF_A_LOSS = {
    "info-nce": "Symmetric InfoNCE",
    "sigmoid": "Sigmoid loss",
    "max-margin": "The loss with a margin, of all pairs in both directions,",
    "top-k-margin": "The loss with a margin, of the most similar wrong pairs in both directions,",
    "pair-margin": "The loss with a margin, of each video with all captions,",
}


OF_ANSWERS = "Cross entropy of the answers, and half the contrastive loss of questions and videos,"


def training(run: Run) -> list[Drawing]:
    """Curves of what metrics.jsonl recorded: the loss, and recall on the split that chose the weights."""
    drawings = []
    answers = run.config.answers_questions
    if run.of_kind("train"):
        more = " and the decorrelation of channels" if _decorrelates(run) else ""
        what = OF_ANSWERS if answers else OF_A_LOSS[run.config.train.loss]
        caption = f"{what}{more} over each batch of training, against the optimiser's steps."
        drawings.append(_drawing(loss_curve(run), caption))

    validations = run.of_kind("validation")
    if validations:
        split = "test" if validations[0].get("split") == "test" else "validation"
        what = "Accuracy" if answers else "Recall"
        caption = f"{what} on the {split} split after each epoch. {weights_sentence(run.results['selection'])}"
        drawings.append(_drawing(accuracy_curve(run) if answers else recall_curve(run), caption))

    return drawings


def steps(run: Run) -> list[Drawing]:
    """A small curve of everything else that is known of each step."""
    drawings = []
    for key, label, factor, caption in OF_A_STEP:
        known = [(record["step"], record[key]) for record in run.of_kind("train") if _is_number(record.get(key))]
        if not known:
            continue
        x = [step for step, _ in known]
        y = [factor * value for _, value in known]
        lines = [Curve(label, x, y)] if key in SMOOTH else _with_mean(x, y)
        drawings.append(_drawing(curves(key, lines, xlabel="step", ylabel=label, size=(3.5, 2.3)), caption))
    return drawings


def similarities(run: Run) -> list[Drawing]:
    """The similarities as a picture, and the ranks that follow from them."""
    heat, sentence = heat_map(run)
    return [
        _drawing(
            heat,
            f"Captions × clips, right pairs on the diagonal: it should stand out from its row and column. {sentence}",
        ),
        _drawing(
            rank_histogram(run),
            f"Ranks of the right item for all {run.results['queries']} captions and {run.results['gallery']} clips. "
            "The first pair of bars is R@1; mass on the right are retrievals that went wrong altogether. The short "
            "lines are where chance would be.",
        ),
    ]


def loss_curve(run: Run) -> Plot:
    """Training loss of every step, and its running mean, over what guessing would lose."""
    records = run.of_kind("train")
    lines = _with_mean([record["step"] for record in records], [record["loss"] for record in records])
    pairs = run.environment.get("pairs_per_step")
    of_chance = run.config.train.loss == "info-nce" and not _decorrelates(run) and not run.config.answers_questions
    levels = [Level("chance", math.log(pairs))] if _is_number(pairs) and pairs > 1 and of_chance else []
    return curves("loss", lines, xlabel="step", ylabel="training loss", ylim=(0, None), levels=levels)


def recall_curve(run: Run) -> Plot:
    """R@1, R@5 and R@10 on the validation split after every epoch, in both directions."""
    records = run.of_kind("validation")
    epochs = [record["epoch"] for record in records]
    lines = [
        Curve(f"{arrow} {metric}", epochs, [record[way][metric] for record in records], style=number, dash=dash)
        for number, metric in enumerate(("R@1", "R@5", "R@10"))
        for dash, (way, arrow) in enumerate((("text_to_video", "T→V"), ("video_to_text", "V→T")))
    ]
    clips = records[-1].get("clips")
    levels = [Level("chance R@1", 100 / clips)] if _is_number(clips) and clips >= 1 else []
    split = "test" if records[0].get("split") == "test" else "validation"
    return curves("recall", lines, xlabel="epoch", ylabel=f"{split} recall in %", ylim=(0, 100), levels=levels)


def accuracy_curve(run: Run) -> Plot:
    """Right answers on the validation split after every epoch, among the first one and the first five."""
    records = run.of_kind("validation")
    epochs = [record["epoch"] for record in records]
    lines = [
        Curve(f"{name}, {of}", epochs, [record["accuracies"][key] for record in records], style=number, dash=dash)
        for number, (name, top) in enumerate((("top 1", "top1"), ("top 5", "top5")))
        for dash, (of, key) in enumerate((("kept", f"{top}_of_kept"), ("all", f"{top}_of_all")))
    ]
    split = "test" if records[0].get("split") == "test" else "validation"
    return curves("accuracy", lines, xlabel="epoch", ylabel=f"{split} accuracy in %", ylim=(0, 100))


def heat_map(run: Run) -> tuple[Plot, str]:
    """Similarities of evenly chosen clips with the first caption of each.

    Returns:
        The figure, and a sentence on what it shows.
    """
    similarity, clips = _one_caption_per_clip(run)
    own = similarity.diagonal()
    others = similarity[~torch.eye(len(clips), dtype=torch.bool)]

    # A few values far out would take the colours from all others.
    low, high = torch.quantile(similarity.flatten(), torch.tensor([0.01, 0.999])).tolist()
    with matplotlib.rc_context(STYLE):
        drawn, axes = figure(5.2, 4.3)
        image = axes.imshow(similarity.numpy(), vmin=low, vmax=high, cmap="viridis", interpolation="nearest")
        axes.set(xlabel="clip", ylabel="caption")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[:].set_visible(False)
        drawn.colorbar(image, ax=axes, label="cosine similarity", fraction=0.046, pad=0.03).outline.set_visible(False)
        svg = as_svg(drawn, "heat")
        box = box_of(drawn, axes)

    sentence = f"Right pairs have a mean similarity of {own.mean().item():.3f}"
    if others.numel():
        sentence += f", all others of {others.mean().item():.3f}"
    everything = len(clips) == run.similarity.shape[1]
    which = "all clips" if everything else f"{len(clips)} clips spread evenly over the {run.similarity.shape[1]}"
    values = [[round(value, 3) for value in row] for row in similarity.tolist()]
    plot = Plot(svg, {"kind": "matrix", "box": box, "rows": "caption", "columns": "clip", "values": values})
    return plot, f"{sentence} (shown: {which}, each with its first caption)."


def rank_histogram(run: Run) -> Plot:
    """How many queries have the right item at which rank, in both directions, and by chance."""
    gallery = run.similarity.shape[1]
    edges = rank_bins(gallery)
    lower = [1, *(edge + 1 for edge in edges[:-1])]
    labels = [str(high) if low == high else f"{low}–{high}" for low, high in zip(lower, edges, strict=True)]
    chance = [100 * (high - low + 1) / gallery for low, high in zip(lower, edges, strict=True)]
    places = list(range(len(edges)))
    series = []

    with matplotlib.rc_context(STYLE | {"hatch.linewidth": 0.7}):
        drawn, axes = figure(5.2, 4.3)
        both = (("text→video", TEXT, "", text_ranks(run)), ("video→text", VIDEO, "////", video_ranks(run)))
        for offset, (name, colour, hatch, values) in zip((-0.2, 0.2), both, strict=True):
            counts = torch.bucketize(values, torch.tensor(edges, dtype=torch.float64)).bincount(minlength=len(edges))
            shares = (100.0 * counts / counts.sum()).tolist()
            # Hatched bars are told from full ones without colour.
            axes.bar(
                [place + offset for place in places], shares, 0.38,
                color="none" if hatch else colour, edgecolor=colour, linewidth=0.8, hatch=hatch, label=name,
            )  # fmt: skip
            series.append({"name": name, "x": places, "y": [round(share, 2) for share in shares]})
        axes.hlines(
            chance, [place - 0.44 for place in places], [place + 0.44 for place in places],
            colors=INK, linewidth=1.1, linestyles=(0, (2, 1.5)), label="chance",
        )  # fmt: skip
        series.append({"name": "chance", "x": places, "y": [round(share, 2) for share in chance]})
        axes.set_xticks(places, labels, rotation=35, ha="right", rotation_mode="anchor")
        axes.set(xlabel="rank of the right item", ylabel="queries in %")
        axes.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), columnspacing=1.4)
        svg = as_svg(drawn, "ranks")
        limits = {"x": list(axes.get_xlim()), "y": list(axes.get_ylim())}
        data = {"kind": "bars", "box": box_of(drawn, axes), **limits, "xlabel": "rank", "labels": labels}

    return Plot(svg, data | {"series": series})


def rank_bins(gallery: int) -> list[int]:
    """Upper edges 1, 2, 5, 10, 20, 50, … up to the size of the gallery, which is the last."""
    edges = [mantissa * 10**power for power in range(9) for mantissa in (1, 2, 5)]
    return [edge for edge in edges if edge < gallery] + [gallery]


def modalities(run: Run) -> tuple[list[Plot], str] | None:
    """Captions and clips in two dimensions before and after EMCL, and a sentence; None where the run has no EMCL."""
    if "bases" not in run.tensors:
        return None
    text, video, captions, clips = _paired_rows(run)
    after_text, after_video = _emcl(run)(text, video)
    before = normalize(text, dim=1), normalize(video, dim=1)
    after = normalize(after_text, dim=1), normalize(after_video, dim=1)
    mean, axes_of_pca, shares = _principal_axes(torch.cat(before))
    panels = [[(rows - mean) @ axes_of_pca for rows in pair] for pair in (before, after)]

    # The same axes in both, so that they can be compared one above the other as well as side by side.
    every = torch.cat([rows for pair in panels for rows in pair])
    limits = [(axis.min().item(), axis.max().item()) for axis in every.T]
    limits = [(low - 0.06 * (high - low) - 1e-6, high + 0.06 * (high - low) + 1e-6) for low, high in limits]
    names: list[list[str]] = [[Quoted(run.captions[i]) for i in captions], [run.video_ids[i] for i in clips]]
    plots = [
        _panel(name, title, pair, limits, shares, names)
        for name, title, pair in zip(("before", "after"), ("before EMCL", "after EMCL"), panels, strict=True)
    ]
    return plots, f"Before: {_relation(*before)}. After: {_relation(*after)}."


def _panel(
    name: str,
    title: str,
    pair: Sequence[Float[Tensor, "P 2"]],
    limits: Sequence[tuple[float, float]],
    shares: Sequence[float],
    names: Sequence[Sequence[str]],
) -> Plot:
    """Captions and clips at one of the two times. The legend is the page's, outside."""
    t, v = pair
    with matplotlib.rc_context(STYLE):
        drawn, axes = figure(5.2, 4.6)
        for i in range(0, len(t), max(1, math.ceil(len(t) / LINES))):
            axes.plot([t[i, 0], v[i, 0]], [t[i, 1], v[i, 1]], color=INK, linewidth=0.5, alpha=0.35, zorder=1)
        axes.scatter(t[:, 0].numpy(), t[:, 1].numpy(), s=14, color=TEXT, alpha=0.8, linewidths=0, zorder=2)
        axes.scatter(v[:, 0].numpy(), v[:, 1].numpy(), s=18, color=VIDEO, alpha=0.8, linewidths=0, marker="^", zorder=2)
        axes.set(
            xlabel=f"first component ({100 * shares[0]:.0f} % of the variance before)",
            ylabel=f"second component ({100 * shares[1]:.0f} %)",
            xlim=limits[0],
            ylim=limits[1],
        )
        axes.set_title(title, loc="left")
        svg = as_svg(drawn, name)
        series = [
            {
                "name": role,
                "x": [round(value, 4) for value in rows[:, 0].tolist()],
                "y": [round(value, 4) for value in rows[:, 1].tolist()],
                "labels": list(labels),
            }
            for role, rows, labels in zip(("caption", "clip"), (t, v), names, strict=True)
        ]
        data = {"kind": "points", "box": box_of(drawn, axes), "x": list(axes.get_xlim()), "y": list(axes.get_ylim())}
    return Plot(svg, data | {"series": series})


def _paired_rows(run: Run) -> tuple[Float[Tensor, "P D"], Float[Tensor, "P D"], list[int], list[int]]:
    """The first caption of each of some clips, these clips' frames as the head pools them, or their mean, and both."""
    tensors = run.tensors
    clips = _evenly(run.similarity.shape[1], POINTS)
    captions = _first_captions(run, clips)
    text, frames, mask = tensors["text"][captions], tensors["frames"][clips], tensors["frame_mask"][clips]
    if run.config.model.head != "text-conditioned":
        frames = normalize(frames, dim=-1) * mask[..., None]
        return normalize(text, dim=-1), normalize(frames.sum(1), dim=-1), captions, clips
    logits = torch.einsum("pd,pfd->pf", text, frames) / run.config.model.pooling_temperature
    weights = torch.softmax(logits, dim=1) * mask
    return text, torch.einsum("pf,pfd->pd", weights, frames), captions, clips


def _emcl(run: Run) -> EMCL:
    """The run's EMCL layer with the maintained bases that it was evaluated with."""
    layer = EMCL(**run.emcl.of_layer())
    layer.load_state_dict({"bases": run.tensors["bases"]})
    return layer.eval()


def _relation(text: Float[Tensor, "P D"], video: Float[Tensor, "P D"]) -> str:
    cosine = (text * video).sum(dim=1).mean().item()
    gap = (text.mean(dim=0) - video.mean(dim=0)).norm().item()
    return f"mean cosine of right pairs {cosine:.3f}, distance between the modalities' means {gap:.3f}"


def _principal_axes(rows: Float[Tensor, "N D"]) -> tuple[Float[Tensor, "D"], Float[Tensor, "D 2"], list[float]]:
    mean = rows.mean(dim=0)
    _, lengths, directions = torch.linalg.svd(rows - mean, full_matrices=False)
    lengths = torch.cat([lengths, lengths.new_zeros(2)])
    directions = torch.cat([directions, directions.new_zeros(2, rows.shape[1])])
    shares = (lengths**2 / (lengths**2).sum().clamp_min(1e-12)).tolist()
    return mean, directions[:2].T, shares[:2]


def _one_caption_per_clip(run: Run) -> tuple[Float[Tensor, "P P"], list[int]]:
    clips = _evenly(run.similarity.shape[1], HEAT_MAP_CLIPS)
    return run.similarity[_first_captions(run, clips)][:, clips].float(), clips


def _first_captions(run: Run, clips: list[int]) -> list[int]:
    first: dict[int, int] = {}
    for caption, clip in enumerate(run.tensors["caption_clip"].tolist()):
        first.setdefault(clip, caption)
    return [first[clip] for clip in clips]


def _evenly(count: int, at_most: int) -> list[int]:
    return [i * count // min(count, at_most) for i in range(min(count, at_most))]


def _with_mean(x: Numbers, y: Numbers) -> list[Curve]:
    """Values of each step, and in front of them their running mean, if there are enough for one."""
    window = max(1, len(y) // 40)
    if window == 1:
        return [Curve("each step", x, y)]
    means = running_means(y, window)
    return [Curve("each step", x, y, faint=True), Curve(f"mean of {window} steps", x[window - 1 :], means)]


def _decorrelates(run: Run) -> bool:
    """Whether the loss has a part besides InfoNCE."""
    return HEADS[run.config.model.head].decorrelates and run.config.train.decorrelation_weight > 0


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _drawing(plot: Plot, caption: str) -> Drawing:
    return Drawing(plot.svg, caption, plot.data)
