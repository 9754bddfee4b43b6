"""report.html: one page, no script, nothing loaded from elsewhere, light or dark as the reader has it."""

from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from typing import Any

from emcl_train.evaluation.bootstrap import signed
from emcl_train.report import plots
from emcl_train.report.published import Metrics, published_rows
from emcl_train.report.retrievals import Retrieval, Strip, best_and_worst, strips
from emcl_train.report.style import CSS
from emcl_train.report.table import BY_RANK, columns_of, sentences, standard_error
from emcl_train.runs.folder import Run


def page(run: Run) -> str:
    """The whole page as text."""
    sections = [
        _head(run),
        _tiles(run),
        _results(run),
        _training(run),
        _similarities(run),
        _modalities(run),
        _retrievals(run),
        _configuration(run),
    ]
    title = escape(f"{run.path.resolve().name} · {run.config.recipe}")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def _head(run: Run) -> str:
    config, results = run.config, run.results
    model = "CLIP with random weights" if config.model.clip == "random" else config.model.clip
    emcl = {"train": "EMCL in training and evaluation", "inference": "EMCL in evaluation only", "off": "no EMCL"}
    facts = [
        f"{config.data.layout} ({config.data.root})",
        model,
        f"temporal: {config.model.temporal}",
        emcl[run.emcl.mode],
        f"{config.data.num_frames} frames of {config.data.image_size}²",
        f"batch {config.train.batch_size}",
        f"seed {config.train.seed}",
    ]
    return (
        f"<header><h1>{escape(run.path.resolve().name)}</h1>"
        f"<p class=lead>Text–video retrieval, recipe <b>{escape(config.recipe)}</b>: {results['queries']} captions and "
        f"{results['gallery']} clips of the {escape(results['split'])} split.</p>"
        f"<p class=facts>{''.join(f'<span>{escape(fact)}</span>' for fact in facts)}</p></header>"
    )


def _tiles(run: Run) -> str:
    rows = {row["name"]: row for row in run.results["rows"]}
    main = run.results["rows"][0]
    error = standard_error(run.results)
    chance = 100 / run.results["gallery"]
    tiles = [
        (
            "text→video R@1",
            f"{main['text_to_video']['R@1']:.1f}",
            f"± {error:.1f} · chance {chance:.1f}",
        ),
        ("video→text R@1", f"{main['video_to_text']['R@1']:.1f}", "by best similarity"),
        ("text→video median rank", f"{main['text_to_video']['MdR']:g}", f"of {run.results['gallery']} clips"),
    ]
    off = rows.get("EMCL off (same weights)")
    if off:
        effect = main["text_to_video"]["R@1"] - off["text_to_video"]["R@1"]
        tiles.append(("EMCL, text→video R@1", signed(effect).replace("-", "−"), "points over the same weights off"))
    cells = (
        f"<div><span>{escape(name)}</span><strong>{escape(value)}</strong><small>{escape(note)}</small></div>"
        for name, value, note in tiles
    )
    return f"<section class=tiles>{''.join(cells)}</section>"


def _results(run: Run) -> str:
    columns = columns_of(run.results)
    heads = "".join(f"<th>{name}</th>" for name in columns)
    body = ""
    for row in run.results["rows"]:
        body += _row(columns, row["name"], row["text_to_video"], row["video_to_text"])
        by_rank = row.get("video_to_text_by_rank")
        if by_rank:
            body += _row(columns, BY_RANK, {}, by_rank, "second")
    for other in published_rows(run.results):
        body += _row(columns, f"published: {other.name}", other.text_to_video, other.video_to_text, "second")
    notes = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences(run.results))
    return (
        "<section><h2>Results</h2><div class=scroll><table class=results><thead>"
        f'<tr><td></td><th colspan="{len(columns)}" class=group>text → video</th>'
        f'<th colspan="{len(columns)}" class=group>video → text</th></tr>'
        f"<tr><td></td>{heads}{heads}</tr></thead><tbody>{body}</tbody></table></div>"
        f"<ul class=notes>{notes}<li>R@k: share of queries in % whose right item is among the first k. MdR, MnR: "
        "median and mean rank, 1 is best.</li></ul></section>"
    )


def _row(columns: Sequence[str], name: str, left: Metrics, right: Metrics, kind: str = "") -> str:
    cells = "".join(
        f"<td>{side[key]:.1f}</td>" if key in side else "<td></td>" for side in (left, right) for key in columns
    )
    return f'<tr class="{kind}"><th scope=row>{escape(name)}</th>{cells}</tr>'


def _training(run: Run) -> str:
    figures = ""
    if run.of_kind("train"):
        figures += _figure(
            plots.loss_curve(run), "Symmetric InfoNCE over each batch of training, against the optimiser's steps."
        )
    if run.of_kind("validation"):
        split = "test" if run.of_kind("validation")[0].get("split") == "test" else "validation"
        figures += _figure(
            plots.recall_curve(run),
            f"Recall on the {split} split, on which the weights were chosen: {run.results['selection']}.",
        )
    if not figures:
        figures = "<p>metrics.jsonl has no records: this run was not trained.</p>"
    return f"<section><h2>Training</h2><div class=pair>{figures}</div></section>"


def _similarities(run: Run) -> str:
    heat, sentence = plots.heat_map(run)
    figures = _figure(
        heat, f"Captions × clips, right pairs on the diagonal: it should stand out from its row and column. {sentence}"
    ) + _figure(
        plots.rank_histogram(run),
        f"Ranks of the right item for all {run.results['queries']} captions and {run.results['gallery']} clips. The "
        "first bar of each colour is R@1; mass on the right are retrievals that went wrong altogether.",
    )
    return f"<section><h2>Similarities and ranks</h2><div class=pair>{figures}</div></section>"


def _modalities(run: Run) -> str:
    drawn = plots.modalities(run)
    if drawn is None:
        absent = "This run has EMCL nowhere, so there is no before and after."
        return f"<section><h2>The two modalities</h2><p>{absent}</p></section>"
    svg, sentence = drawn
    config = run.emcl
    caption = (
        "Captions and clips in two dimensions; thin lines join right pairs. Each clip's frames are pooled for its own "
        f"caption. “After” is the run's EMCL layer (K = {config.num_bases}, {config.num_iters} iterations, weight "
        f"{config.residual_weight:g}) over these captions and pooled clips together, so it is fitted on fewer rows "
        "than in the evaluation, where EM sees every caption with every clip. Rows are scaled to length one; both "
        f"panels have the axes of a PCA of the features before. {sentence}"
    )
    return f"<section><h2>The two modalities before and after EMCL</h2>{_figure(svg, caption)}</section>"


def _retrievals(run: Run) -> str:
    best, worst = best_and_worst(run)
    clips = {clip for retrieval in best + worst for clip in (retrieval.right, retrieval.other)}
    pictures, problem = strips(run, clips)
    groups = [
        ("Best retrievals", "rank 1 with the largest lead over the runner-up", best, "runner-up"),
        ("Worst retrievals", "the largest ranks", worst, "at rank 1 instead"),
    ]
    parts = ""
    for title, subtitle, retrievals, rival in groups:
        if retrievals:
            cards = "".join(_card(run, retrieval, pictures, rival) for retrieval in retrievals)
            parts += f"<h3>{title} <small>{subtitle}</small></h3><div class=cards>{cards}</div>"
    if not parts:
        return ""
    note = f"<p class=absent>The clips are shown without frames: {escape(problem)}</p>" if problem else ""
    return f"<section><h2>Retrievals, text → video</h2>{note}{parts}</section>"


def _card(run: Run, retrieval: Retrieval, pictures: dict[int, Strip], rival: str) -> str:
    gallery = run.results["gallery"]
    return (
        f"<article><p class=query>“{escape(retrieval.caption)}”<span class=rank>rank {retrieval.rank:g} of {gallery}"
        "</span></p>"
        + _clip(run, retrieval.right, "right clip", retrieval.right_similarity, pictures.get(retrieval.right))
        + _clip(run, retrieval.other, rival, retrieval.other_similarity, pictures.get(retrieval.other))
        + "</article>"
    )


def _clip(run: Run, clip: int, role: str, similarity: float, strip: Strip | None) -> str:
    name = run.video_ids[clip]
    if strip is None:
        picture = ""
    elif strip.jpeg is None:
        picture = f"<p class=absent>no frames: {escape(strip.reason)}</p>"
    else:
        picture = f'<img alt="frames of {escape(name)}" src="data:image/jpeg;base64,{strip.jpeg}">'
    label = f"{escape(role)} <code>{escape(name)}</code> <span>similarity {similarity:.3f}</span>"
    return f"<div class=clip>{picture}<p>{label}</p></div>"


def _configuration(run: Run) -> str:
    groups = ""
    plain = {}
    for name, value in asdict(run.config).items():
        if isinstance(value, dict):
            groups += _settings(name, _flat(value))
        else:
            plain[name] = value
    groups = _settings("run", plain) + groups
    environment = _settings("environment", _flat(run.environment))
    return (
        "<section><h2>Configuration</h2><p>Everything the run was started with, and what it ran on.</p>"
        f"<div class=settings>{groups}{environment}</div></section>"
    )


def _settings(title: str, values: dict[str, Any]) -> str:
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape('—' if value is None else str(value))}</dd>"
        for name, value in values.items()
    )
    return f"<div><h3>{escape(title)}</h3><dl>{rows}</dl></div>"


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"
