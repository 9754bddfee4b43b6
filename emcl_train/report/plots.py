"""The figures of a report, as SVG that takes its ink from the page and so fits light and dark alike."""

import io
import math
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.nn.functional import normalize

from emcl_kernels import EMCL
from emcl_train.report.ranks import text_ranks, video_ranks
from emcl_train.runs.folder import Run

TEXT, VIDEO, THIRD = "#2a7fd4", "#e0662e", "#2f9e6e"
INK = "#010203"  # stands for currentColor while matplotlib draws
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
HEAT_MAP_CLIPS = 96  # more, and a cell of the diagonal is smaller than a pixel
POINTS, LINES = 300, 60


def loss_curve(run: Run) -> str:
    """Training loss of every step, and its running mean."""
    records = run.of_kind("train")
    steps = [record["step"] for record in records]
    losses = [record["loss"] for record in records]
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(5.2, 3.2)
        window = max(1, len(losses) // 40)
        if window > 1:
            axes.plot(steps, losses, color=TEXT, linewidth=0.8, alpha=0.4, label="each step")
        label = f"mean of {window} steps" if window > 1 else "each step"
        axes.plot(steps[window - 1 :], _running_mean(losses, window), color=TEXT, linewidth=1.8, label=label)
        axes.set(xlabel="step", ylabel="training loss", ylim=(0, None))
        axes.legend()
        return _svg(figure, "loss")


def recall_curve(run: Run) -> str:
    """R@1, R@5 and R@10 on the validation split after every epoch."""
    records = run.of_kind("validation")
    epochs = [record["epoch"] for record in records]
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(5.2, 3.2)
        marker = "o" if len(epochs) < 30 else None
        for metric, colour in (("R@1", TEXT), ("R@5", VIDEO), ("R@10", THIRD)):
            for direction, dash, arrow in (("text_to_video", "-", "T→V"), ("video_to_text", ":", "V→T")):
                values = [record[direction][metric] for record in records]
                axes.plot(
                    epochs, values, dash, color=colour, marker=marker, markersize=2.5, linewidth=1.5,
                    label=f"{arrow} {metric}",
                )  # fmt: skip
        axes.set(xlabel="epoch", ylabel="validation recall in %", ylim=(0, 100))
        if len(set(epochs)) == 1:  # else the axis of a single epoch shows fractions of it
            axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(ncols=3, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), columnspacing=1.0)
        return _svg(figure, "recall")


def heat_map(run: Run) -> tuple[str, str]:
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
        figure, axes = _figure(5.2, 4.3)
        image = axes.imshow(similarity.numpy(), vmin=low, vmax=high, cmap="viridis", interpolation="nearest")
        axes.set(xlabel="clip", ylabel="caption")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[:].set_visible(False)
        figure.colorbar(image, ax=axes, label="cosine similarity", fraction=0.046, pad=0.03).outline.set_visible(False)
        sentence = f"Right pairs have a mean similarity of {own.mean().item():.3f}"
        if others.numel():
            sentence += f", all others of {others.mean().item():.3f}"
        everything = len(clips) == run.similarity.shape[1]
        which = "all clips" if everything else f"{len(clips)} clips spread evenly over the {run.similarity.shape[1]}"
        return _svg(figure, "heat"), f"{sentence} (shown: {which}, each with its first caption)."


def rank_histogram(run: Run) -> str:
    """How many queries have the right item at which rank, in both directions."""
    both = (("text→video", TEXT, text_ranks(run)), ("video→text", VIDEO, video_ranks(run)))
    edges = rank_bins(run.similarity.shape[1])
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(5.2, 4.3)
        for offset, (name, colour, values) in zip((-0.2, 0.2), both, strict=True):
            counts = torch.bucketize(values, torch.tensor(edges, dtype=torch.float64)).bincount(minlength=len(edges))
            shares = (100.0 * counts / counts.sum()).tolist()
            axes.bar([i + offset for i in range(len(edges))], shares, 0.38, color=colour, label=name)
        lower = [1, *(edge + 1 for edge in edges[:-1])]
        labels = [str(high) if low == high else f"{low}–{high}" for low, high in zip(lower, edges, strict=True)]
        axes.set_xticks(range(len(edges)), labels, rotation=35, ha="right", rotation_mode="anchor")
        axes.set(xlabel="rank of the right item", ylabel="queries in %")
        axes.legend()
        return _svg(figure, "ranks")


def rank_bins(gallery: int) -> list[int]:
    """Upper edges 1, 2, 5, 10, 20, 50, … up to the size of the gallery, which is the last."""
    edges = [mantissa * 10**power for power in range(9) for mantissa in (1, 2, 5)]
    return [edge for edge in edges if edge < gallery] + [gallery]


def modalities(run: Run) -> tuple[str, str] | None:
    """Captions and clips in two dimensions before and after EMCL, and a sentence; None where the run has no EMCL."""
    if "bases" not in run.tensors:
        return None
    text, video = _paired_rows(run)
    after_text, after_video = _emcl(run)(text, video)
    before = normalize(text, dim=1), normalize(video, dim=1)
    after = normalize(after_text, dim=1), normalize(after_video, dim=1)
    mean, axes_of_pca, shares = _principal_axes(torch.cat(before))
    panels = [[(rows - mean) @ axes_of_pca for rows in pair] for pair in (before, after)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.6, 4.8), layout="constrained")
        shown: Sequence[Any] = figure.subplots(1, 2, sharex=True, sharey=True)
        for panel, (t, v), title in zip(shown, panels, ("before EMCL", "after EMCL"), strict=True):
            for i in range(0, len(t), max(1, math.ceil(len(t) / LINES))):
                panel.plot([t[i, 0], v[i, 0]], [t[i, 1], v[i, 1]], color=INK, linewidth=0.5, alpha=0.35, zorder=1)
            panel.scatter(*t.T.numpy(), s=14, color=TEXT, alpha=0.75, linewidths=0, label="captions", zorder=2)
            panel.scatter(
                *v.T.numpy(), s=16, color=VIDEO, alpha=0.75, linewidths=0, marker="^", label="clips", zorder=2
            )
            panel.set(xlabel=f"first component ({100 * shares[0]:.0f} % of the variance before)")
            panel.set_title(title, loc="left", pad=-10)  # inside: with equal aspects the layout leaves no room above
            panel.set_aspect("equal")
        shown[0].set_ylabel(f"second component ({100 * shares[1]:.0f} %)")
        shown[1].legend(loc="upper right")
        svg = _svg(figure, "modalities")
    return svg, f"Before: {_relation(*before)}. After: {_relation(*after)}."


def _paired_rows(run: Run) -> tuple[Float[Tensor, "P D"], Float[Tensor, "P D"]]:
    """The first caption of each of some clips, and these clips' frames as the head pools them, or their mean."""
    tensors = run.tensors
    clips = _evenly(run.similarity.shape[1], POINTS)
    captions = _first_captions(run, clips)
    text, frames, mask = tensors["text"][captions], tensors["frames"][clips], tensors["frame_mask"][clips]
    if run.config.model.head != "text-conditioned":
        frames = normalize(frames, dim=-1) * mask[..., None]
        return normalize(text, dim=-1), normalize(frames.sum(1), dim=-1)
    logits = torch.einsum("pd,pfd->pf", text, frames) / run.config.model.pooling_temperature
    weights = torch.softmax(logits, dim=1) * mask
    return text, torch.einsum("pf,pfd->pd", weights, frames)


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


def _running_mean(values: list[float], window: int) -> list[float]:
    return [sum(values[end - window : end]) / window for end in range(window, len(values) + 1)]


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element whose ids are its own on the page."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):  # without a salt the ids differ from run to run
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
