"""From a model and a split to embeddings, similarities and rows of metrics; from a run folder to its results."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float, Int64
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPConfig

from emcl_train.config import EMCLConfig, EvalConfig, PlaceConfig, RunConfig, check_config
from emcl_train.data.annotations import Split
from emcl_train.data.features import TOWERS, read_features
from emcl_train.data.loader import caption_loader, clip_loader, prepare
from emcl_train.data.provenance import changes, provenance
from emcl_train.data.text import load_tokenizer
from emcl_train.errors import UserError
from emcl_train.evaluation.table import Bank, Row, Similarities, rows_of
from emcl_train.flags import flag
from emcl_train.models import CLIPTowers, RetrievalModel, TextFeatures, VideoFeatures, build_model, on_device
from emcl_train.runs.evaluations import RESULTS, Evaluation, place_for, run_of, set_aside, what_differs
from emcl_train.runs.files import (
    CLIP_CONFIG,
    METRICS,
    WEIGHTS,
    load_config,
    load_environment,
    one_at_a_time,
    require_free,
    write_json_atomic,
)
from emcl_train.runs.state import hash_of_tensors
from emcl_train.weights.release import CLIP

LOGIT_SCALE = f"{CLIP}logit_scale"
Step = TypeVar("Step")

# What a table says of the split that an epoch was selected on.
SELECTED_BY = {"val": "validation", "test": "TEST SET (which makes the figures too high)"}


@dataclass(frozen=True)
class Embeddings:
    """What the towers make of a split, on the CPU: Q captions and G clips."""

    text: TextFeatures
    video: VideoFeatures
    caption_clip: Int64[Tensor, "Q"]

    def tensors(self) -> dict[str, Tensor]:
        """As embeddings.safetensors names them."""
        text = self.text.tensors()
        text["text"] = text.pop("caption")
        return {**text, **self.video.tensors(), "caption_clip": self.caption_clip}


@torch.no_grad()
def embed_split(
    model: RetrievalModel, split: Split, tokenizer: Any, config: RunConfig, device: torch.device | str = "cpu"
) -> Embeddings:
    """Encode every clip and every caption of a split, in float32 whatever the training precision was.

    Raises: UserError where a tower gives NaN or infinity, naming the tower and the first input it happened on.
    """
    was_training = model.training
    model.eval()
    try:
        video = _encode_clips(model, split, config, device)
        text = _encode_captions(model, split, tokenizer, config, device)
    finally:
        model.train(was_training)
    return Embeddings(text, video, torch.tensor(split.caption_clip))


@torch.no_grad()
def similarities(model: RetrievalModel, embeddings: Embeddings, config: RunConfig) -> Similarities:
    """All captions against all clips, with EMCL (unless the run has it nowhere) and without."""
    inputs = embeddings.text, embeddings.video
    on = None if config.emcl.mode == "off" else _similarity(model, *inputs, config, emcl=True)
    return Similarities(on, _similarity(model, *inputs, config, emcl=False))


@torch.no_grad()
def compare_bank(model: RetrievalModel, embeddings: Embeddings, bank: Embeddings, config: RunConfig) -> Bank:
    """Training captions against the clips of a split, and its captions against training clips, as the run compares."""
    emcl = config.emcl.mode != "off"
    return Bank(
        _similarity(model, bank.text, embeddings.video, config, emcl=emcl),
        _similarity(model, embeddings.text, bank.video, config, emcl=emcl),
    )


def bank_of(train: Split, size: int) -> Split:
    """A bank of training queries: the first caption of each of `size` clips, spread evenly, or of all of them."""
    number = min(size, len(train.clips))
    chosen = {index * len(train.clips) // number: index for index in range(number)}
    first: dict[int, int] = {}
    for caption, clip in enumerate(train.caption_clip):
        first.setdefault(clip, caption)
    return train.of_pairs("query bank", [(clip, first[clip]) for clip in chosen])


def evaluate(model: RetrievalModel, embeddings: Embeddings, config: RunConfig) -> list[Row]:
    """The rows of the table; the first is the one that the run is judged by."""
    return rows_of(similarities(model, embeddings, config), embeddings.caption_clip, config)


def evaluate_split(
    model: RetrievalModel,
    split: Split,
    tokenizer: Any,
    config: RunConfig,
    *,
    notes: Iterable[str] = (),
    left_out: dict[str, str] | None = None,
    selection: str,
    bank: Split | None = None,
    device: torch.device | str = "cpu",
) -> Evaluation:
    """Evaluate a split.

    Args: notes: sentences about the annotations. left_out: reason for each clip that is not in the split.
        selection: how the weights were chosen, such as "validation R@1: epoch 3". bank: training queries for QB-Norm.
    """
    embeddings = embed_split(model, split, tokenizer, config, device)
    scores = similarities(model, embeddings, config)
    compared = None
    if bank is not None:
        compared = compare_bank(model, embeddings, embed_split(model, bank, tokenizer, config, device), config)
    results = {
        "recipe": config.recipe,
        "protocol": {name: getattr(config.data, name) for name in ("layout", "msrvtt_split", "test_captions")},
        "rows": [asdict(row) for row in rows_of(scores, embeddings.caption_clip, config, compared)],
        "split": split.name,
        "queries": len(split.captions),
        "gallery": len(split.clips),
        "em_block": config.eval.em_block,
        "emcl": asdict(config.emcl),
        "selection": selection,
        **frames_of(config),
        "left_out": dict(left_out or {}),
        "notes": list(notes),
    }
    tensors = embeddings.tensors() | {"similarity_off": scores.emcl_off}
    if scores.emcl_on is not None:
        tensors |= {"similarity_on": scores.emcl_on, "bases": model.emcl.bases}
    queries = {"video_ids": [clip.video_id for clip in split.clips], "captions": list(split.captions)}
    return Evaluation(results, queries, tensors)


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
) -> tuple[dict[str, Any], Path]:
    """Evaluate the selected weights of a run folder again.

    Results of the run's own settings go into its folder, others into one of their own inside it. Where other figures
    lie there already, they stay, and these go beside them.

    Args: eval_config, place, emcl: settings in place of those the run has. from_features: a folder of features, in
        place of the videos or of the folder that the run was trained from. split: which split. out: the folder to
        write, which must not exist. ends_training: the run's folder is for these figures; what lies there moves aside.
    Returns: what results.json holds; the folder that it lies in.
    Raises: UserError where the folder lacks a file, or the weights are not those of the configuration.
    """
    if out is not None:
        require_free(out)
    config = load_config(run_dir)
    own = replace(config)
    if eval_config is not None:
        config.eval = eval_config
    trained_with = config.emcl
    config.emcl = emcl or trained_with
    if place is not None:
        config.data = replace(config.data, **vars(place))
    check_config(config)
    config.from_features = from_features or config.from_features
    state = read_weights(run_dir)
    _warn_of_frames(run_dir, config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    annotations = prepare(config)
    tokenizer = load_tokenizer(config, run_dir)
    model = build_model(config, tokenizer, clip_config=read_clip_config(run_dir))
    notes = [*annotations.notes, *_start_bases(model, state, config, trained_with)]
    if config.from_features is not None:
        model.store_towers()
        state = _of_features(state, config, run_dir)
    if trained_with.mode == "train" and config.emcl.mode == "inference":
        notes.append(
            "The weights were trained with EMCL as a layer; at inference it runs with the settings given here."
        )
    put_weights(model, state, run_dir)
    evaluation = evaluate_split(
        model.to(device),
        getattr(annotations, split),
        tokenizer,
        config,
        notes=notes,
        left_out=annotations.left_out,
        selection=selection_of(run_dir),
        bank=bank_of(annotations.train, config.eval.query_bank) if config.eval.query_bank else None,
        device=device,
    )
    with one_at_a_time(run_dir):
        out = _claim(evaluation, run_dir, out, own, config, split, from_features, ends_training)
        evaluation.write(run_dir, out, config)
    return evaluation.results, out


def _claim(
    evaluation: Evaluation,
    run_dir: Path,
    out: Path | None,
    own: RunConfig,
    config: RunConfig,
    split: str,
    from_features: Path | None,
    ends_training: bool,
) -> Path:
    """The folder for an evaluation's files."""
    if out is not None:
        require_free(out)  # again: another process may have been quicker
    elif ends_training:
        out = run_dir
        if (moved := set_aside(run_dir, evaluation.results)) is not None:
            Console(stderr=True).print(
                f"figures of an earlier evaluation are now in {escape(str(moved))}", soft_wrap=True
            )
    else:
        again = "again" if from_features is None else f"from-features-{from_features.resolve().name}"
        out, other = place_for(evaluation.results, run_dir, what_differs(own, config, split), again)
        if other is not None:
            Console(stderr=True).print(
                f"[yellow]warning:[/yellow] the figures are not those in {escape(str(other / RESULTS))}, which stays "
                f"as it is; these are in {escape(str(out))}",
                soft_wrap=True,
            )
    return out


def read_weights(run_dir: Path) -> dict[str, Tensor]:
    """The weights that training selected.

    Raises: UserError where they are not there yet, or damaged.
    """
    path = run_dir / WEIGHTS
    if not path.is_file() and (run := run_of(run_dir)):
        raise UserError(f"{run_dir} holds the results of an evaluation, and no weights; pass the run itself, {run}")
    if not path.is_file():
        raise UserError(
            f"{run_dir} has no {WEIGHTS} yet, which holds the weights of the best epoch; let the training run finish "
            "an epoch, or go on with it by `emcl-train train RECIPE --resume`"
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error}); copy it again, or train again") from error


def read_clip_config(run_dir: Path) -> dict[str, Any] | None:
    """Configuration of a run's towers; None in folders of versions that did not write it."""
    path = run_dir / CLIP_CONFIG
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise UserError(
            f"{path} cannot be read as JSON ({error}); copy it again from the run, or train anew"
        ) from error


def keep_clip_config(run_dir: Path, clip_config: dict[str, Any]) -> None:
    """Write the configuration of a run's towers where there is none yet; it stays what the run was started with.

    Raises: UserError where the run goes on with towers of another one.
    """
    saved = read_clip_config(run_dir)
    if saved is None:
        write_json_atomic(run_dir / CLIP_CONFIG, clip_config)
        return
    then, now = _as_json(CLIPConfig.from_dict(saved).to_dict()), _as_json(clip_config)
    if different := _differing(then, now):
        raise UserError(
            f"the towers of {run_dir} are no longer those that it was started with: {'; '.join(different[:5])}; bring "
            f"back the checkpoint that model.clip named then, or start a new run with another {flag('out')}"
        )


def _as_json(value: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps(value, default=str)))


def _differing(saved: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Settings of towers that differ, but for those that only say which version of transformers wrote them."""
    found = []
    for name, value in now.items():
        before = saved.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            found += _differing(before, value, f"{prefix}{name}.")
        elif value != before and name not in ("transformers_version", "_name_or_path"):
            found.append(f"{prefix}{name} was {before}, now {value}")
    return found


def clip_config_of(model: RetrievalModel, config: RunConfig) -> dict[str, Any]:
    """Configuration of a model's towers, or of those that its features are of."""
    if config.from_features is not None:
        return dict(read_features(config.from_features)["clip_config"])
    assert isinstance(model.towers, CLIPTowers)
    return dict(model.towers.clip.config.to_dict())


def frames_of(config: RunConfig) -> dict[str, Any]:
    """How frames were taken from files: here and now, or when the features of a run were made."""
    if config.from_features is not None:
        record = read_features(config.from_features)
        return {**record["frames"], "features": record["weights"]}
    return provenance(config.data)


def model_on_features(config: RunConfig, tokenizer: Any) -> RetrievalModel:
    """The model that a run on features starts with: its weights are those it would have beside its towers."""
    folder = Path(config.from_features or "")
    towers = load_file(folder / TOWERS)
    model = build_model(config, tokenizer, read_features(folder)["clip_config"], towers)
    model.store_towers()
    return model


def _of_features(state: dict[str, Tensor], config: RunConfig, run_dir: Path) -> dict[str, Tensor]:
    """Weights of a run without its towers, which must be those that made the features.

    Raises: UserError where they are others.
    """
    made_by = read_features(Path(config.from_features or ""))["weights"]
    towers = {name: value for name, value in state.items() if name.startswith(CLIP) and name != LOGIT_SCALE}
    if towers and hash_of_towers(state) != made_by:
        raise UserError(
            f"the features in {config.from_features} are of towers with weights {made_by}, and {run_dir} has "
            f"{hash_of_towers(state)}; embed with the towers of the run: emcl-train embed {run_dir} --out DIR"
        )
    if not towers:
        require_features_of(run_dir, made_by, config.from_features)
    return {name: value for name, value in state.items() if name not in towers}


def require_features_of(run_dir: Path, made_by: str, folder: Path | None) -> None:
    """Raise a UserError unless a run without towers was started on those with this fingerprint, found in `folder`."""
    own = load_environment(run_dir).get("features")
    if own != made_by:
        raise UserError(
            f"the features in {folder} are of towers with weights {made_by}, and {run_dir} has {own}; bring the folder "
            f"back that the run was started on, or embed again as then, with the same model.clip or run"
        )


def hash_of_towers(state: Mapping[str, Tensor]) -> str:
    """Fingerprint of the towers in a model's weights; the logit scale, which no feature depends on, left out."""
    return hash_of_tensors({name: v for name, v in state.items() if name.startswith(CLIP) and name != LOGIT_SCALE})


def _start_bases(
    model: RetrievalModel, state: dict[str, Tensor], config: RunConfig, trained_with: EMCLConfig
) -> list[str]:
    """Put a fresh start of the bases into weights whose own are of another number or kind. Returns notes on that."""
    asked = (config.emcl.num_bases, config.emcl.init)
    if asked == (trained_with.num_bases, trained_with.init):
        return []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        model.emcl.reset_parameters()
    state["emcl.bases"] = model.emcl.bases.clone()
    return [f"EM starts from {asked[0]} fresh bases ({asked[1]}, seed {config.train.seed}), not from those of the run."]


def put_weights(model: nn.Module, state: dict[str, Tensor], run_dir: Path) -> None:
    """Load weights into a model that must have exactly their keys and shapes.

    Raises: UserError naming the keys that are missing, unknown, or of another shape.
    """
    expected = model.state_dict()
    shapes = [
        f"{key} is {list(state[key].shape)}, expected {list(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    missing = [f"{key} is missing" for key in expected if key not in state]
    unknown = [f"{key} is not part of the model" for key in state if key not in expected]
    problems = shapes + missing + unknown
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(
            f"the weights in {run_dir / WEIGHTS} do not fit the model of the config.json beside them: "
            f"{'; '.join(problems[:5])}{more}. Use the weights and the configuration of one and the same run"
        )
    model.load_state_dict(state)


def selection_of(run_dir: Path) -> str:
    """How the weights of a run were chosen, from its metrics.jsonl: the first epoch with the best text→video R@1."""
    path = run_dir / METRICS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    validations = [record for record in map(json.loads, lines) if record["kind"] == "validation"]
    if not validations:
        return f"an unknown rule: {METRICS} has no validation"
    best = max(validations, key=lambda record: record["text_to_video"]["R@1"])
    return f"{SELECTED_BY[best.get('split', 'val')]} text→video R@1: epoch {best['epoch']}"


def _encode_clips(model: RetrievalModel, split: Split, config: RunConfig, device: torch.device | str) -> VideoFeatures:
    parts = []
    loader = clip_loader(split, config.data, batch_size=config.eval.batch_size)
    for batch in _progress(loader, f"Encode {split.name}: clips"):
        part = model.encode_video(on_device(batch, device)).to("cpu")
        names = [split.clips[i].video_id for i in batch["index"].tolist()]
        _require_finite(part.frames.masked_fill(~part.frame_mask[..., None], 0.0), "video", "clip", names)
        parts.append(part)
    return VideoFeatures.cat(parts)


def _encode_captions(
    model: RetrievalModel, split: Split, tokenizer: Any, config: RunConfig, device: torch.device | str
) -> TextFeatures:
    parts = []
    loader = caption_loader(split, tokenizer, config.data, batch_size=config.eval.batch_size)
    for batch in _progress(loader, f"Encode {split.name}: captions"):
        part = model.encode_text(on_device(batch, device)).to("cpu")
        _require_finite(part.caption, "text", "caption", [split.captions[i] for i in batch["index"].tolist()])
        parts.append(part)
    return TextFeatures.cat(parts)


def _similarity(
    model: RetrievalModel, text: TextFeatures, video: VideoFeatures, config: RunConfig, *, emcl: bool
) -> Float[Tensor, "Q G"]:
    device = next(model.parameters()).device
    em_block = config.eval.em_block if emcl else None
    stream = model.similarity_stream(text.to(device), video.to(device), emcl=emcl, em_block=em_block)
    similarity, start = torch.empty(len(text), len(video)), 0
    for rows in _progress(stream, f"Similarity {'with' if emcl else 'without'} EMCL"):
        similarity[start : start + len(rows)] = rows
        start += len(rows)
    return similarity


def _progress(steps: Iterable[Step], description: str) -> Iterable[Step]:
    return track(steps, description=description, console=Console(stderr=True), transient=True)


def _require_finite(features: Tensor, tower: str, unit: str, names: list[str]) -> None:
    broken = [name for name, item in zip(names, features, strict=True) if not torch.isfinite(item).all()]
    if broken:
        raise UserError(
            f"the {tower} tower gave NaN or infinity for {len(broken)} of {len(names)} {unit}s of a batch, first for "
            f"{broken[0]!r}; the weights have diverged: train again with a lower train.lr, or with train.precision no"
        )


def _warn_of_frames(run_dir: Path, config: RunConfig) -> None:
    """Say where frames come out otherwise than in training."""
    for change in changes(load_environment(run_dir), frames_of(config)):
        Console(stderr=True).print(
            f"[yellow]warning:[/yellow] {run_dir} was trained on other frames: {escape(change)}; the figures may "
            f"differ from the run's own",
            soft_wrap=True,
        )
