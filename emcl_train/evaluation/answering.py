"""Video question answering from a run folder to accuracies: each video is encoded once, for all of its questions."""

from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from emcl_train.config import PlaceConfig, RunConfig, check_config
from emcl_train.data.annotations import Annotations, Split
from emcl_train.data.datasets.msrvttqa import questions_of
from emcl_train.data.loader import caption_loader, clip_loader, prepare
from emcl_train.data.text import load_tokenizer
from emcl_train.device import device as device_of_command
from emcl_train.evaluation.answers import Accuracies, accuracies, top_answers
from emcl_train.evaluation.provenance import frames_of
from emcl_train.models.features import on_device
from emcl_train.models.question_answering import AnswerModel, build_answer_model
from emcl_train.recipes import SMOKE_TEST, is_smoke_test
from emcl_train.runs.clip_config import read_clip_config
from emcl_train.runs.contents import ANSWERS, CONFIG, RESULTS, load_config
from emcl_train.runs.files import write_json_atomic
from emcl_train.runs.finished import epoch_of_weights
from emcl_train.runs.lock import making, writing
from emcl_train.runs.origin import ORIGIN, origin_of_run
from emcl_train.runs.places import EVALUATIONS
from emcl_train.runs.records import selection_of
from emcl_train.runs.state import read_weights
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
    """Accuracies of a split, and the logits that they are of."""
    logits = answer_logits(model, asked.split, tokenizer, config, device)
    return accuracies(logits, asked.labels, left_out=asked.left_out), logits


def evaluate_answers(
    run_dir: Path,
    *,
    place: PlaceConfig | None = None,
    split: Literal["val", "test"] = "test",
    out: Path | None = None,
    ends_training: bool = False,
) -> tuple[dict[str, Any], Path]:
    """Answer the questions of a split with the weights of a run folder.

    Args:
        run_dir: the folder.
        place: where the data set lies by now, in place of what the run says.
        split: which split. Figures of "val" go into a folder of their own inside the run's.
        out: the folder to write, which must not exist.
        ends_training: whether a training that ends asks, which has the run's folder already.

    Returns:
        What results.json holds; the folder that it lies in.

    Raises:
        UserError: the folder lacks a file, or the weights are not those of the configuration.
    """
    own = load_config(run_dir)
    config = replace(own, data=replace(own.data, **vars(place or PlaceConfig.of_run(own.data))))
    check_config(config)
    lock = making(out) if out is not None else nullcontext() if ends_training else writing(run_dir, deep=True)
    with lock:
        annotations = prepare(config)
        asked = answered_split(annotations, split, config)
        _, names = labels_and_names(config)
        tokenizer = load_tokenizer(config, run_dir)
        model = build_answer_model(config, tokenizer, len(names), clip_config=read_clip_config(run_dir))
        weights = read_weights(run_dir)
        put_weights(model, weights, run_dir)

        device = device_of_command()
        figures, logits = measured(model.to(device), asked, tokenizer, config, device)
        folder = out or (run_dir if split == "test" else run_dir / EVALUATIONS / split)
        folder.mkdir(parents=True, exist_ok=True)
        results = {
            "task": TASK,
            "recipe": config.recipe,
            "protocol": {"layout": config.data.layout},
            "split": split,
            "answers": len(names),
            "figures": asdict(figures),
            "accuracies": dict(figures.lines()),
            "emcl": asdict(config.emcl),
            "selection": selection_of(run_dir, up_to=epoch_of_weights(run_dir)),
            **frames_of(config),
            "left_out": dict(annotations.left_out),
            "notes": [*([SMOKE_TEST] if is_smoke_test(own) else []), *annotations.notes],
            ORIGIN: origin_of_run(run_dir, weights),
        }
        if folder != run_dir:
            write_json_atomic(folder / CONFIG, asdict(config))
        write_json_atomic(folder / ANSWERS, given_answers(asked, logits, names))
        write_json_atomic(folder / RESULTS, results)
    return results, folder


def labels_and_names(config: RunConfig) -> tuple[dict[str, int], list[str]]:
    """The class of each answer, and the answers in the order of their classes."""
    from emcl_train.data.question_answering import LABELS_FILE, read_labels

    labels = read_labels(config.data.root / LABELS_FILE)
    return labels, sorted(labels, key=labels.__getitem__)


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
