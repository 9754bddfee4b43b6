"""MSRVTT-QA: `{train,val,test}.jsonl` and `train_ans2label.json`; questions stand for captions."""

from emcl_train.config import DataConfig
from emcl_train.data.question_answering import LABELS_FILE, Questions, read_labels, read_split
from emcl_train.data.split_rules import Protocol, SplitFiles, check_root, clip_finder

# Questions that were asked. The release's val.jsonl was counted; the others are the data set's known sizes.
PROTOCOL = Protocol("MSRVTT-QA", train=(158581,), val=(12278,), test=(72821,), unit="question")
ANSWERS = 1500


def read(config: DataConfig) -> SplitFiles:
    """Videos of the three files, each with the questions that have one of the listed answers."""
    parts, num_answers = questions_of(config)
    notes = [part.sentence() for part in parts.values()]
    if num_answers != ANSWERS:
        notes.append(f"{LABELS_FILE} lists {num_answers} answers; MSRVTT-QA as released has {ANSWERS}.")
    return SplitFiles(
        train=parts["train"].of_videos(),
        val=parts["val"].of_videos(),
        test=parts["test"].of_videos(),
        clip=clip_finder(config),
        train_file=config.root / "train.jsonl",
        protocol=PROTOCOL,
        counted={name: part.asked for name, part in parts.items()},
        notes=notes,
        are_queries=False,
    )


def questions_of(config: DataConfig) -> tuple[dict[str, Questions], int]:
    """The questions of each split, and how many answers there are.

    Raises:
        UserError: a file is missing, or one of its lines cannot be read.
    """
    check_root(config, LABELS_FILE)
    labels = read_labels(config.root / LABELS_FILE)
    return {name: read_split(config.root, name, labels) for name in ("train", "val", "test")}, len(labels)
