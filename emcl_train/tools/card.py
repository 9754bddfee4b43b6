"""The card of a published run, README.md: what the hub reads of it, and what a reader must know."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from emcl_train.config import RunConfig
from emcl_train.kinds import HEADS, TEMPORALS, line_of
from emcl_train.recipes import SMOKE_TEST, is_smoke_test
from emcl_train.report.notes import BY_RANK, chance_of, columns_of, sentences
from emcl_train.report.published import protocol_of
from emcl_train.weights.hub import is_place

CARD = "README.md"
WAYS = {"text_to_video": "text→video", "video_to_text": "video→text"}
TYPES = {"MdR": "median_rank", "MnR": "mean_rank"}
"""Kinds of metrics as the hub's cards have them; recalls are `recall_at_1` and the like."""
DATA_SETS = {
    "shapes": "shapes: moving coloured shapes, rendered by emcl-train",
    "csv": "own videos (csv)",
    "jsonl": "own videos (jsonl)",
}
"""What there is to say of a layout that no paper has figures on."""


def card_of(
    config: RunConfig,
    results: Mapping[str, Any] | None,
    *,
    name: str,
    licence: str,
    base_model: str | None,
    trained: bool = True,
) -> str:
    """The text of the card.

    Args:
        config: of the run, without places of a machine.
        results: what results.json holds, without paths; None: there are no figures.
        name: by which the examples load it.
        licence: of the weights, as the hub names it.
        base_model: see `base_model_of`.
        trained: whether a run trained the weights; else they are those of the base model.
    """
    title = line_of(config.model.head, config.model.temporal, config.emcl.mode)
    data = ModelCardData(
        library_name="emcl",
        license=licence,
        pipeline_tag="feature-extraction",
        tags=["text-video-retrieval", "emcl", config.recipe],
        base_model=base_model,
        model_name=name.rpartition("/")[2],
        eval_results=None if results is None else _eval_results(results),
    )
    parts = [f"---\n{data.to_yaml()}\n---", f"# {name.rpartition('/')[2]}"]
    parts.append(_about(config, results, title) if trained else _untrained(config))
    parts += [] if results is None else ["## Figures", _table(results), _below(results)]
    parts += [
        "## Use",
        _use(config, results, name),
        "## How it was made",
        _made(config),
        "## Licence",
        _licence(licence),
    ]
    return "\n\n".join(parts) + "\n"


def base_model_of(config: RunConfig) -> str | None:
    """The entry of the hub that training started from; None if it was a file, another run, or random numbers.

    Args:
        config: as the run was trained: a folder's name alone looks like an entry's.
    """
    clip = config.model.clip
    of_hub = "/" in clip and not is_place(clip)  # towers have an organisation before their names
    return clip if of_hub and config.model.init_from is None else None


def data_set_of(results: Mapping[str, Any]) -> str:
    """The data set and its split into training and test, as papers call it."""
    if (protocol := protocol_of(results)) is not None:
        return protocol.split
    layout = str((results.get("protocol") or {}).get("layout"))
    return DATA_SETS.get(layout, layout)


def _eval_results(results: Mapping[str, Any]) -> list[EvalResult]:
    """The line that the run is judged by, in both directions; re-ranked figures never stand for it."""
    row = results["rows"][0]
    layout = str((results.get("protocol") or {}).get("layout"))
    return [
        EvalResult(
            task_type=f"{way.replace('_', '-')}-retrieval",
            task_name=f"{label} retrieval",
            dataset_type=layout,
            dataset_name=data_set_of(results),
            dataset_split=results["split"],
            dataset_args={"captions": results["queries"], "clips": results["gallery"]},
            metric_type=TYPES.get(key, key.replace("R@", "recall_at_")),
            metric_name=key,
            metric_value=round(row[way][key], 4),
        )
        for way, label in WAYS.items()
        for key in columns_of(dict(results))
    ]


def _about(config: RunConfig, results: Mapping[str, Any] | None, title: str) -> str:
    what = f"Text-video retrieval: {title}, trained by the recipe `{config.recipe}` of emcl-train"
    what += "." if results is None else f", measured on {data_set_of(results)}."
    if is_smoke_test(config):
        return f"**{SMOKE_TEST}** {what}"
    if config.model.clip == "random" and config.model.init_from is None:
        return f"{what} The towers started from random numbers: they know what this data set shows, and nothing else."
    return what


def _untrained(config: RunConfig) -> str:
    return (
        f"Text-video retrieval: the towers of `{config.model.clip}` as they are, with the mean of unit frames. Nothing "
        f"was trained."
    )


def _table(results: Mapping[str, Any]) -> str:
    """All lines of the run's table, and chance."""
    columns = columns_of(dict(results))
    heads = [f"{label} {key}" if key == columns[0] else key for label in WAYS.values() for key in columns]
    lines = [["", *heads], ["---"] * (1 + len(heads))]
    for row in [*results["rows"], chance_of(dict(results))]:
        lines.append([row["name"], *(f"{row[way][key]:.1f}" for way in WAYS for key in columns)])
        if by_rank := row.get("video_to_text_by_rank"):
            lines.append([BY_RANK, *[""] * len(columns), *(f"{by_rank[key]:.1f}" for key in columns)])
    return "\n".join(f"| {' | '.join(map(_plain, line))} |" for line in lines)


def _below(results: Mapping[str, Any]) -> str:
    return "\n".join(f"- {_plain(sentence)}" for sentence in sentences(dict(results)))


def _use(config: RunConfig, results: Mapping[str, Any] | None, name: str) -> str:
    compared = "its own head" + (" and EMCL" if config.emcl.mode != "off" else "")
    lines = [
        f"With emcl and its extra `train` installed. Loading runs no code of this repository. `similarity` of rows is "
        f"their cosine, of features what the figures are of: {compared}, over all texts and videos that it is given.",
        "",
        "```python",
        "import emcl_train",
        "",
        f'model = emcl_train.load("{name}")',
        'rows = model.encode_text(["a red circle moves left"]), model.encode_video(["holiday.mp4"])',
        'text = model.text_features(["a red circle moves left"])',
        'video = model.video_features(["holiday.mp4", "party.mp4"])',
        "model.similarity(text, video)",
        "```",
        "",
        "```sh",
        f"emcl-train index films --out library --model {name}   # search your own videos with it",
    ]
    if results is not None:
        folder = name.rpartition("/")[2]
        lines.append(f"emcl-train eval {folder} --data.root DIR --out figures   # the table above, of a folder here")
    return "\n".join([*lines, "```"])


def _made(config: RunConfig) -> str:
    data, model, emcl = config.data, config.model, config.emcl
    head = HEADS[model.head]
    start = {"random": "random weights"}.get(model.clip, f"`{model.clip}`")
    start = start if model.init_from is None else f"the weights in `{model.init_from}`"
    lines = [
        f"Towers: from {start}.",
        f"Frames: {data.num_frames} of {data.image_size} × {data.image_size} pixels, {data.frame_sampling}. Captions: "
        f"at most {data.max_words} tokens.",
        f"Similarity: {head.about or head.label.format(temporal=TEMPORALS[model.temporal].label)}, frames related by "
        f"{model.temporal}.",
    ]
    if emcl.mode == "off":
        lines.append("EMCL: off.")
    else:
        where = {"train": "in training and evaluation", "inference": "in evaluation only"}[emcl.mode]
        lines.append(
            f"EMCL: {where}, K = {emcl.num_bases}, T = {emcl.num_iters}, temperature {emcl.temperature:g}, weight "
            f"{emcl.residual_weight:g}, scale {emcl.scale}."
        )
    return "\n".join(f"- {line}" for line in [*lines, "All settings are in `config.json`."])


def _licence(licence: str) -> str:
    if licence == "unknown":
        return "None was named. Weights follow from a base model and a data set, whose terms may bind them."
    return f"`{licence}`, as whoever published this has named it."


def _plain(text: str) -> str:
    """A text in one cell or line of Markdown: what a caption or a file name holds makes no markup."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
