"""From a run folder, or a model and a split, to results."""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from emcl_train.config import EMCLConfig, EvalConfig, PlaceConfig, RunConfig, check_config
from emcl_train.data.annotations import Split, require_made
from emcl_train.data.cache import say_what_is_not_followed
from emcl_train.data.experts.inputs import ExpertClips
from emcl_train.data.experts.prepare import texts_of
from emcl_train.data.loader import prepare
from emcl_train.device import device as device_of_command
from emcl_train.errors import of_input
from emcl_train.evaluation.encode import Embeddings, embed_split, embed_split_together
from emcl_train.evaluation.on_features import without_towers
from emcl_train.evaluation.provenance import frames_of, warn_of_frames
from emcl_train.evaluation.similarities import (
    bank_of,
    compare_bank,
    compare_bank_together,
    similarities,
    similarities_together,
)
from emcl_train.evaluation.table import Bank, Line, Similarities, chance_line, lines_of
from emcl_train.models import PairModel, RetrievalModel, build_pair_model
from emcl_train.processes import agreed, rank_and_world
from emcl_train.recipes import SMOKE_TEST, is_smoke_test
from emcl_train.runs.asked import Asked, keep, locked, say_if_of_no_end, selected_weights
from emcl_train.runs.contents import load_config
from emcl_train.runs.evaluations import Evaluation
from emcl_train.runs.files import require_no_link
from emcl_train.runs.lock import require_new
from emcl_train.runs.origin import ORIGIN
from emcl_train.runs.places import EVALUATIONS
from emcl_train.weights.keys import put_weights

OF_THE_PROTOCOL = ("layout", "msrvtt_split", "test_captions")
"""Settings of the data that decide which table the figures belong in."""


def evaluate(model: PairModel, embeddings: Embeddings, config: RunConfig) -> list[Line]:
    """The lines of the table; the first is the one that the run is judged by.

    Raises:
        NotFinite: similarities are NaN, or EM refuses the features.
    """
    with of_input("the model"):
        scores = similarities(model, embeddings, config)
        return lines_of(scores, embeddings.caption_clip, config)


def evaluate_together(
    model: RetrievalModel, split: Split, tokenizer: Any, config: RunConfig, device: torch.device | str
) -> list[Line] | None:
    """The lines of a split's table by several processes: the like of `embed_split` and `evaluate`.

    Args:
        model: with the same weights in each process.
        split: the clips and captions.
        tokenizer: of the captions.
        config: the settings that are measured with.
        device: where the model is.

    Returns:
        The lines in the first process; None in the others.

    Raises:
        NotFinite: in every process, what one of them has met.
    """

    def lines() -> list[Line] | None:
        own = embed_split_together(model, split, tokenizer, config, device)
        with of_input("the model"):
            scores = similarities_together(model, own.text, own.video.in_all(), config)
            return None if scores is None else lines_of(scores, own.caption_clip, config)

    return agreed(lines)


def evaluate_split(
    model: PairModel,
    split: Split,
    tokenizer: Any,
    config: RunConfig,
    *,
    notes: Iterable[str] = (),
    left_out: dict[str, str] | None = None,
    selection: str,
    bank: Split | None = None,
    device: torch.device | str = "cpu",
    together: bool = False,
) -> Evaluation | None:
    """Evaluate a split.

    Args:
        model: with the weights that are measured.
        split: the clips and captions.
        tokenizer: of the captions.
        config: the settings that are measured with.
        notes: sentences about the annotations.
        left_out: reason for each clip that is not in the split.
        selection: how the weights were chosen, such as "validation R@1: epoch 3".
        bank: training queries for QB-Norm.
        device: where the model is.
        together: whether several processes do this, each with a part of the clips and captions. Systems on experts are
            encoded in parts, and compared by the first process.

    Returns:
        The evaluation; None in all processes but the first one.

    Raises:
        NotFinite: a tower gives NaN or infinity, or similarities are NaN.
    """
    splits = [split] if bank is None else [split, bank]
    compared = (_compared_together if together else _compared)(model, splits, tokenizer, config, device)
    if compared is None:
        return None
    embeddings, scores, with_bank = compared
    with of_input(f"the split {split.name}"):
        lines = lines_of(scores, embeddings.caption_clip, config, with_bank)

    results = {
        "recipe": config.recipe,
        "protocol": {name: getattr(config.data, name) for name in OF_THE_PROTOCOL},
        "rows": [asdict(line) for line in lines],
        "chance": asdict(chance_line(embeddings.caption_clip, len(split.clips))),
        "split": split.name,
        "queries": len(split.captions),
        "gallery": len(split.clips),
        "em_block": config.eval.em_block,
        **({} if config.model.system == "clip" else {"em_rows": config.rows_of_em, "experts": _experts_of(split)}),
        "emcl": asdict(config.emcl),
        "selection": selection,
        **frames_of(config),
        "left_out": dict(left_out or {}),
        "notes": list(notes),
    }

    tensors = embeddings.tensors() | {"similarity_off": scores.emcl_off}
    if scores.emcl_on is not None:
        assert model.emcl is not None
        bases = "bases" if isinstance(model, RetrievalModel) else "bases_of_experts"
        tensors |= {"similarity_on": scores.emcl_on, bases: model.emcl.bases}
    queries = {"video_ids": [clip.video_id for clip in split.clips], "captions": list(split.captions)}
    return Evaluation(results, queries, tensors)


Compared = tuple[Embeddings, Similarities, Bank | None]
"""Features and similarities of a split, and those with a bank."""


def _compared(
    model: PairModel, splits: list[Split], tokenizer: Any, config: RunConfig, device: torch.device | str
) -> Compared:
    """A split, and with it the bank if there is one."""
    embeddings, *banks = [embed_split(model, split, tokenizer, config, device) for split in splits]
    return _compared_embeddings(model, embeddings, banks, splits[0].name, config)


def _compared_together(
    model: PairModel, splits: list[Split], tokenizer: Any, config: RunConfig, device: torch.device | str
) -> Compared | None:
    """The same by several processes, in the first one; None in the others."""
    own, *banks = [embed_split_together(model, split, tokenizer, config, device) for split in splits]

    # Systems on experts compare in one process.
    if not isinstance(model, RetrievalModel):
        embeddings, *whole = [part.in_first() for part in (own, *banks)]
        there = [bank for bank in whole if bank is not None]
        return None if embeddings is None else _compared_embeddings(model, embeddings, there, splits[0].name, config)

    video = own.video.in_all()
    with of_input(f"the split {splits[0].name}"):
        found = similarities_together(model, own.text, video, config)
        with_bank = compare_bank_together(model, own, video, banks[0], config) if banks else None
    text = own.text.in_first()
    return None if found is None or text is None else (Embeddings(text, video, own.caption_clip), found, with_bank)


def _compared_embeddings(
    model: PairModel, embeddings: Embeddings, banks: list[Embeddings], name: str, config: RunConfig
) -> Compared:
    with of_input(f"the split {name}"):
        scores = similarities(model, embeddings, config)
        return embeddings, scores, compare_bank(model, embeddings, banks[0], config) if banks else None


def evaluate_run(
    run_dir: Path,
    eval_config: EvalConfig | None = None,
    *,
    place: PlaceConfig | None = None,
    emcl: EMCLConfig | None = None,
    from_features: Path | None = None,
    split: Literal["val", "test"] = "test",
    out: Path | None = None,
    ends_training: bool = False,
    render: bool = False,
) -> tuple[dict[str, Any], Path]:
    """Evaluate the selected weights of a run folder again.

    Results of the run's own settings go into its folder, others into one of their own inside it, and so do all of a run
    that is not finished. Where other figures lie there already, they stay, and these go beside them.

    Of several processes each takes a part of the clips and captions, and the first one does all else; at the end of a
    training it is alone.

    Args:
        run_dir: the folder.
        eval_config: settings in place of those the run has.
        place: where the data set lies by now, in place of what the run says.
        emcl: settings in place of those the run has.
        from_features: a folder of features, in place of the videos or of the folder that the run was trained from.
        split: which split.
        out: the folder to write, which must not exist.
        ends_training: the run's folder is for these figures; what lies there moves aside.
        render: render the bundled set in the data set's folder if it is not there, since the user named that folder.

    Returns:
        What results.json holds; the folder that it lies in. In all processes but the first one, {} and the run's.

    Raises:
        UserError: the folder lacks a file, or the weights are not those of the configuration.
    """
    together = rank_and_world()[1] > 1 and not ends_training
    first = not together or rank_and_world()[0] == 0
    if out is not None and first:
        require_new(out)
    own = load_config(run_dir)
    config = _asked_config(own, eval_config, place, emcl, from_features)
    require_no_link(run_dir, EVALUATIONS)

    with locked(run_dir, out, ends_training=ends_training) if first else nullcontext():
        selected = selected_weights(run_dir, ends_training=ends_training)
        asked = Asked(run_dir, own, config, selected, split, from_features)
        evaluation = _evaluated(asked, render, together)
        if evaluation is None:
            return {}, run_dir
        folder = keep(asked, evaluation, out=out, ends_training=ends_training)

    say_if_of_no_end(asked, folder)
    return evaluation.results, folder


def _evaluated(asked: Asked, render: bool, together: bool) -> Evaluation | None:
    """What the selected weights of a run give; None in all of several processes but the first one."""
    run_dir = asked.run_dir
    config = asked.config
    state = asked.selected.weights
    if not together or rank_and_world()[0] == 0:
        warn_of_frames(run_dir, config)
        say_what_is_not_followed(asked.own.data, config.data)
    if config.from_features is None and not render:
        require_made(config.data)
    annotations = prepare(config, together=together)
    tokenizer = texts_of(config, annotations, run_dir)

    model = build_pair_model(config, tokenizer, of_run=run_dir)
    smoke = [SMOKE_TEST] if is_smoke_test(asked.own) else []
    notes = [*smoke, *annotations.notes, *_start_bases(model, state, asked), *asked.selected.notes]
    if config.from_features is not None:
        assert isinstance(model, RetrievalModel)
        model.store_towers()
        state = without_towers(state, config, run_dir)
    put_weights(model, state, run_dir)
    if asked.own.emcl.mode == "train" and config.emcl.mode == "inference":
        notes.append(
            "The weights were trained with EMCL as a layer; at inference it runs with the settings given here."
        )

    device = device_of_command()
    evaluation = evaluate_split(
        model.to(device),
        getattr(annotations, asked.split),
        tokenizer,
        config,
        notes=notes,
        left_out=annotations.left_out,
        selection=asked.selected.selection,
        bank=bank_of(annotations.train, config.eval.query_bank) if config.eval.query_bank else None,
        device=device,
        together=together,
    )
    if evaluation is None:  # in a process that helps the first one
        return None
    return replace(evaluation, results=evaluation.results | {ORIGIN: asked.selected.origin})


def _asked_config(
    own: RunConfig,
    eval_config: EvalConfig | None,
    place: PlaceConfig | None,
    emcl: EMCLConfig | None,
    from_features: Path | None,
) -> RunConfig:
    config = replace(
        own,
        eval=eval_config or own.eval,
        emcl=emcl or own.emcl,
        data=replace(own.data, **vars(place or PlaceConfig.of_run(own.data))),
    )
    check_config(config)
    config.from_features = from_features or own.from_features
    return config


def _start_bases(model: PairModel, state: dict[str, Tensor], asked: Asked) -> list[str]:
    """Put a fresh start of the bases into weights whose own are of another number or kind. Returns notes on that."""
    emcl = asked.config.emcl
    seed = asked.config.train.seed
    if model.emcl is None or (emcl.num_bases, emcl.init) == (asked.own.emcl.num_bases, asked.own.emcl.init):
        return []

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.emcl.reset_parameters()
    state["emcl.bases"] = model.emcl.bases.clone()
    return [f"EM starts from {emcl.num_bases} fresh bases ({emcl.init}, seed {seed}), not from those of the run."]


def _experts_of(split: Split) -> list[str]:
    """The experts whose features a split has."""
    inputs = split.inputs if isinstance(split, ExpertClips) else None
    return [] if inputs is None else list(inputs.data.reader.experts)
