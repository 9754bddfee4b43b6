"""From a model and a split to embeddings, similarities and rows of metrics; from a run folder to its results."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int64
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from emcl_kernels import SimilarityStream
from emcl_train.checkpoint import ENVIRONMENT, METRICS, WEIGHTS, load_config, save_tensors_atomic, write_json_atomic
from emcl_train.config import EvalConfig, RunConfig, check_config
from emcl_train.data.annotations import Split
from emcl_train.data.loader import caption_loader, clip_loader, prepare
from emcl_train.data.provenance import changes, provenance
from emcl_train.data.text import load_tokenizer
from emcl_train.errors import UserError
from emcl_train.metrics import text_to_video, video_to_text_best_rank, video_to_text_best_similarity
from emcl_train.models import RetrievalModel, build_model
from emcl_train.rerank import inverted_softmax

Metrics = dict[str, float]
Step = TypeVar("Step")

# The name of the row that a run is judged by, for each `emcl.mode`.
MAIN_ROW = {"train": "EMCL-Net", "inference": "EMCL at inference only", "off": "Trained without EMCL"}


# What a table says of the split that an epoch was selected on.
SELECTED_BY = {"val": "validation", "test": "TEST SET (which makes the figures too high)"}


@dataclass(frozen=True)
class Embeddings:
    """What the towers make of a split, on the CPU: Q captions and G clips."""

    text: Float[Tensor, "Q D"]
    frames: Float[Tensor, "G F D"]
    frame_mask: Bool[Tensor, "G F"]
    caption_clip: Int64[Tensor, "Q"]


@dataclass(frozen=True)
class Similarities:
    """Cosine similarities of all captions with all clips; `emcl_on` is None where the run has EMCL nowhere."""

    emcl_on: Float[Tensor, "Q G"] | None
    emcl_off: Float[Tensor, "Q G"]

    @property
    def main(self) -> Float[Tensor, "Q G"]:
        """Those that the run is judged by."""
        return self.emcl_off if self.emcl_on is None else self.emcl_on


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    text_to_video: Metrics
    video_to_text: Metrics
    """By best similarity: each clip's captions count as one gallery item."""
    video_to_text_by_rank: Metrics | None
    """By best rank among all captions; None where every clip has one caption, and the definitions are one."""
    note: str = ""


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
        frames, frame_mask = _encode_clips(model, split, config, device)
        text = _encode_captions(model, split, tokenizer, config, device)
    finally:
        model.train(was_training)
    return Embeddings(text, frames, frame_mask, torch.tensor(split.caption_clip))


@torch.no_grad()
def similarities(model: RetrievalModel, embeddings: Embeddings, config: RunConfig) -> Similarities:
    """All captions against all clips, with EMCL (unless the run has it nowhere) and without."""
    device = next(model.parameters()).device
    inputs = [t.to(device) for t in (embeddings.text, embeddings.frames, embeddings.frame_mask)]
    on = None
    if config.emcl.mode != "off":
        stream = model.similarity_stream(*inputs, emcl=True, em_block=config.eval.em_block)
        on = _gather(stream, embeddings, "Similarity with EMCL")
    stream = model.similarity_stream(*inputs, emcl=False)
    return Similarities(on, _gather(stream, embeddings, "Similarity without EMCL"))


def evaluate(model: RetrievalModel, embeddings: Embeddings, config: RunConfig) -> list[Row]:
    """The rows of the table; the first is the one that the run is judged by."""
    return rows_of(similarities(model, embeddings, config), embeddings.caption_clip, config)


def rows_of(scores: Similarities, caption_clip: Int64[Tensor, "Q"], config: RunConfig) -> list[Row]:
    """Metrics of the run's similarity, of the same weights without EMCL, and of the inverted softmax beside them."""
    temperature = config.eval.inverted_softmax_temperature
    name = MAIN_ROW[config.emcl.mode]
    rows = [_row(name, scores.main, scores.main, caption_clip)]
    if scores.emcl_on is not None:
        rows.append(_row("EMCL off (same weights)", scores.emcl_off, scores.emcl_off, caption_clip))
    rows.append(
        _row(
            f"{name} + inverted softmax",
            inverted_softmax(scores.main, temperature, axis=0),
            inverted_softmax(scores.main, temperature, axis=1),
            caption_clip,
            note=f"sees all test queries at once; temperature {temperature:g}",
        )
    )
    return rows


def evaluate_split(
    model: RetrievalModel,
    split: Split,
    tokenizer: Any,
    config: RunConfig,
    run_dir: Path,
    *,
    notes: Iterable[str] = (),
    left_out: dict[str, str] | None = None,
    selection: str,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Evaluate a split and write results.json, queries.json and embeddings.safetensors into the run folder.

    Args: notes: sentences about the annotations. left_out: reason for each clip that is not in the split.
        selection: how the weights were chosen, such as "validation R@1: epoch 3".
    Returns: what results.json holds.
    """
    embeddings = embed_split(model, split, tokenizer, config, device)
    scores = similarities(model, embeddings, config)
    results = {
        "recipe": config.recipe,
        "rows": [asdict(row) for row in rows_of(scores, embeddings.caption_clip, config)],
        "split": split.name,
        "queries": len(split.captions),
        "gallery": len(split.clips),
        "em_block": config.eval.em_block,
        "selection": selection,
        **provenance(config.data),
        "left_out": dict(left_out or {}),
        "notes": list(notes),
    }
    tensors = {name: getattr(embeddings, name) for name in ("text", "frames", "frame_mask", "caption_clip")}
    tensors["similarity_off"] = scores.emcl_off
    if scores.emcl_on is not None:
        tensors |= {"similarity_on": scores.emcl_on, "bases": model.emcl.bases}
    queries = {"video_ids": [clip.video_id for clip in split.clips], "captions": list(split.captions)}
    save_tensors_atomic(
        run_dir / "embeddings.safetensors",
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
    )
    write_json_atomic(run_dir / "queries.json", queries)
    write_json_atomic(run_dir / "results.json", results)  # last: where it stands, the others do too
    return results


def evaluate_run(
    run_dir: Path, eval_config: EvalConfig | None = None, *, split: Literal["val", "test"] = "test"
) -> dict[str, Any]:
    """Evaluate the selected weights of a run folder again, and write its results anew.

    Args: eval_config: settings in place of those the run has. split: which split.
    Returns: what results.json holds.
    Raises: UserError where the folder lacks a file, or the weights are not those of the configuration.
    """
    config = load_config(run_dir)
    if eval_config is not None:
        config.eval = eval_config
    check_config(config, command="eval")
    state = read_weights(run_dir)
    _warn_of_frames(run_dir, config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    annotations = prepare(config)
    tokenizer = load_tokenizer(config, run_dir)
    model = build_model(config, tokenizer)
    put_weights(model, state, run_dir)
    return evaluate_split(
        model.to(device),
        getattr(annotations, split),
        tokenizer,
        config,
        run_dir,
        notes=annotations.notes,
        left_out=annotations.left_out,
        selection=selection_of(run_dir),
        device=device,
    )


def read_weights(run_dir: Path) -> dict[str, Tensor]:
    """The weights that training selected.

    Raises: UserError where they are not there yet, or damaged.
    """
    path = run_dir / WEIGHTS
    if not path.is_file():
        raise UserError(
            f"{run_dir} has no {WEIGHTS} yet, which holds the weights of the best epoch; let the training run finish "
            "an epoch, or go on with it by --resume"
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error}); copy it again, or train again") from error


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


def _row(name: str, for_texts: Tensor, for_videos: Tensor, caption_clip: Tensor, note: str = "") -> Row:
    several = len(caption_clip) > for_videos.shape[1]
    return Row(
        name,
        text_to_video(for_texts, caption_clip),
        video_to_text_best_similarity(for_videos, caption_clip),
        video_to_text_best_rank(for_videos, caption_clip) if several else None,
        note,
    )


def _encode_clips(
    model: RetrievalModel, split: Split, config: RunConfig, device: torch.device | str
) -> tuple[Float[Tensor, "G F D"], Bool[Tensor, "G F"]]:
    frames, masks = [], []
    loader = clip_loader(split, config.data, batch_size=config.eval.batch_size)
    for batch in _progress(loader, f"Encode {split.name}: clips"):
        mask = batch["frame_mask"]
        features = model.encode_video(batch["frames"].to(device), mask.to(device)).float().cpu()
        names = [split.clips[i].video_id for i in batch["index"].tolist()]
        _require_finite(features.masked_fill(~mask[..., None], 0.0), "video", "clip", names)
        frames.append(features)
        masks.append(mask)
    return torch.cat(frames), torch.cat(masks)


def _encode_captions(
    model: RetrievalModel, split: Split, tokenizer: Any, config: RunConfig, device: torch.device | str
) -> Float[Tensor, "Q D"]:
    texts = []
    loader = caption_loader(split, tokenizer, config.data, batch_size=config.eval.batch_size)
    for batch in _progress(loader, f"Encode {split.name}: captions"):
        features = model.encode_text(batch["input_ids"].to(device), batch["attention_mask"].to(device))
        texts.append(features.float().cpu())
        _require_finite(texts[-1], "text", "caption", [split.captions[i] for i in batch["index"].tolist()])
    return torch.cat(texts)


def _gather(stream: SimilarityStream, embeddings: Embeddings, description: str) -> Float[Tensor, "Q G"]:
    similarity, start = torch.empty(len(embeddings.text), len(embeddings.frames)), 0
    for rows in _progress(stream, description):
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
            f"{broken[0]!r}; the weights have diverged: train with a lower --train.lr, or with --train.precision no"
        )


def _warn_of_frames(run_dir: Path, config: RunConfig) -> None:
    """Say where frames come out otherwise than in training."""
    path = run_dir / ENVIRONMENT
    then = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for change in changes(then, config.data):
        Console(stderr=True).print(
            f"[yellow]warning:[/yellow] {run_dir} was trained on other frames: {escape(change)}; the figures may "
            f"differ from the run's own",
            soft_wrap=True,
        )
