"""Video question answering from a run folder to accuracies: each video is encoded once, for all of its questions."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from emcl_train.config import PlaceConfig, RunConfig, check_config
from emcl_train.data.annotations import Annotations, Split
from emcl_train.data.cache import say_what_is_not_followed
from emcl_train.data.datasets.msrvttqa import questions_of
from emcl_train.data.loader import caption_loader, clip_loader, prepare
from emcl_train.data.question_answering import LABELS_FILE, read_labels
from emcl_train.data.text import load_tokenizer
from emcl_train.device import device as device_of_command
from emcl_train.errors import NotFinite
from emcl_train.evaluation.answers import Accuracies, accuracies, top_answers
from emcl_train.evaluation.provenance import frames_of, warn_of_frames
from emcl_train.models.features import on_device
from emcl_train.models.question_answering import AnswerModel, build_answer_model
from emcl_train.recipes import SMOKE_TEST, is_smoke_test
from emcl_train.runs.asked import Asked, keep, locked, say_if_of_no_end, selected_weights
from emcl_train.runs.clip_config import read_clip_config
from emcl_train.runs.contents import load_config
from emcl_train.runs.evaluations import AnsweredQuestions
from emcl_train.runs.files import require_no_link
from emcl_train.runs.lock import require_new
from emcl_train.runs.origin import ORIGIN
from emcl_train.runs.places import EVALUATIONS
from emcl_train.weights.keys import put_weights

TASK = "video question answering"
"""What results.json is of."""


@dataclass(frozen=True)
class AnsweredSplit:
    """The questions of a split about videos that can be decoded."""

    split: Split
    """Questions stand for captions."""
    labels: Tensor
    """[questions]"""
    left_out: int
    """Questions beside them, whose answer is not listed."""


def answered_split(annotations: Annotations, name: str, config: RunConfig) -> AnsweredSplit:
    """The questions of a split with their labels."""
    split: Split = getattr(annotations, name)
    questions = questions_of(config.data)[0][name]
    labels = torch.tensor(questions.labels_in(split), dtype=torch.int64)
    return AnsweredSplit(split, labels, questions.asked_in(split) - len(labels))


@torch.no_grad()
def answer_logits(
    model: AnswerModel, split: Split, tokenizer: Any, config: RunConfig, device: torch.device | str
) -> Tensor:
    """A number for each answer to each question of a split, on the CPU."""
    model.eval()
    size = config.eval.batch_size
    videos = [model.encode_video(on_device(batch, device)) for batch in clip_loader(split, config.data, size)]
    frames = torch.cat([frames for frames, _ in videos])
    masks = torch.cat([mask for _, mask in videos])

    found = []
    clip_of = torch.tensor(split.caption_clip)
    for batch in caption_loader(split, tokenizer, config.data, size):
        clips = clip_of[batch.pop("index")].to(device)
        question = model.encode_question(on_device(batch, device))
        found.append(model.answer((frames[clips], masks[clips]), question).logits.cpu())
    return torch.cat(found)


def measured(
    model: AnswerModel, asked: AnsweredSplit, tokenizer: Any, config: RunConfig, device: torch.device | str
) -> tuple[Accuracies, Tensor]:
    """Accuracies of a split, and the logits that they are of.

    Raises:
        NotFinite: logits are NaN or infinite.
    """
    logits = answer_logits(model, asked.split, tokenizer, config, device)
    if not bool(logits.isfinite().all()):
        raise NotFinite(f"the split {asked.split.name}: logits of answers are not finite; the weights are damaged")
    return accuracies(logits, asked.labels, left_out=asked.left_out), logits


def evaluate_answers(
    run_dir: Path,
    *,
    place: PlaceConfig | None = None,
    split: Literal["val", "test"] = "test",
    batch_size: int | None = None,
    out: Path | None = None,
    ends_training: bool = False,
) -> tuple[dict[str, Any], Path]:
    """Answer the questions of a split with the weights of a run folder.

    Args:
        run_dir: the folder.
        place: where the data set lies by now, in place of what the run says.
        split: which split. Figures of "val" go into a folder of their own inside the run's.
        batch_size: questions at a time, in place of what the run says.
        out: the folder to write, which must not exist.
        ends_training: the run's folder is for these figures; what lies there moves aside.

    Returns:
        What results.json holds; the folder that it lies in.

    Raises:
        UserError: the folder lacks a file, or the weights are not those of the configuration.
    """
    if out is not None:
        require_new(out)
    own = load_config(run_dir)
    config = replace(own, data=replace(own.data, **vars(place or PlaceConfig.of_run(own.data))))
    config = replace(config, eval=replace(own.eval, batch_size=batch_size or own.eval.batch_size))
    check_config(config)
    require_no_link(run_dir, EVALUATIONS)

    with locked(run_dir, out, ends_training=ends_training):
        selected = selected_weights(run_dir, ends_training=ends_training)
        asked = Asked(run_dir, own, config, selected, split)
        answered = _answered(asked)
        folder = keep(asked, answered, out=out, ends_training=ends_training)

    say_if_of_no_end(asked, folder)
    return answered.results, folder


def _answered(asked: Asked) -> AnsweredQuestions:
    """What the selected weights of a run answer."""
    run_dir = asked.run_dir
    config = asked.config
    warn_of_frames(run_dir, config)
    say_what_is_not_followed(asked.own.data, config.data)

    # The questions and the model.
    annotations = prepare(config)
    questions = answered_split(annotations, asked.split, config)
    names = answer_names(config)
    tokenizer = load_tokenizer(config, run_dir)
    model = build_answer_model(config, tokenizer, len(names), clip_config=read_clip_config(run_dir))
    put_weights(model, asked.selected.weights, run_dir)

    device = device_of_command()
    figures, logits = measured(model.to(device), questions, tokenizer, config, device)
    smoke = [SMOKE_TEST] if is_smoke_test(asked.own) else []
    results = {
        "task": TASK,
        "recipe": config.recipe,
        "protocol": {"layout": config.data.layout},
        "split": asked.split,
        "answers": len(names),
        "figures": asdict(figures),
        "accuracies": dict(figures.lines()),
        "emcl": asdict(config.emcl),
        "selection": asked.selected.selection,
        **frames_of(config),
        "left_out": dict(annotations.left_out),
        "notes": [*smoke, *annotations.notes, *asked.selected.notes],
        ORIGIN: asked.selected.origin,
    }
    return AnsweredQuestions(results, given_answers(questions, logits, names))


def answer_names(config: RunConfig) -> list[str]:
    """The answers in the order of their classes."""
    labels = read_labels(config.data.root / LABELS_FILE)
    return sorted(labels, key=labels.__getitem__)


def given_answers(asked: AnsweredSplit, logits: Tensor, names: list[str]) -> list[dict[str, Any]]:
    """A row for each kept question."""
    split = asked.split
    best = top_answers(logits).tolist()
    return [
        {
            "video_id": split.clips[clip].video_id,
            "question": text,
            "answer": names[label],
            "given": [names[place] for place in given],
        }
        for text, clip, label, given in zip(
            split.captions, split.caption_clip, asked.labels.tolist(), best, strict=True
        )
    ]
