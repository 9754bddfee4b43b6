"""Questions about videos, as MSRVTT-QA distributes them: `{train,val,test}.jsonl` and `train_ans2label.json`.

    {"answer": "couch", "question": "what are three people sitting on?", "video_id": "video6513", "answer_type": "what"}

An answer is a class, one of those that are listed (1 500). A question of validation or test whose answer is not among
them is left out and counted, as released. In training it is an error: the release takes all of them to be known.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emcl_train.data.annotation_files import count, few, identifier, read_json, read_json_lines
from emcl_train.data.clips import Split
from emcl_train.data.names import can_be_a_file, one_form
from emcl_train.errors import UserError
from emcl_train.reading.shown import shortened

LABELS_FILE = "train_ans2label.json"
EXPECTED = '{"answer": "…", "question": "…", "video_id": "…", "answer_type": "…"}'
EXPECTED_LABELS = '{"answer": label, …} with labels 0, 1, 2, …, each once'


@dataclass(frozen=True)
class Question:
    """One line of a file."""

    text: str
    answer: str
    video_id: str
    kind: str
    """What it asks for: what, who, how, when, where; empty if the line does not say."""
    line: int


@dataclass(frozen=True)
class Questions:
    """The questions of one split."""

    name: str
    kept: tuple[Question, ...]
    """Those whose answer is a class."""
    left_out: tuple[Question, ...]
    """The others, which count as asked."""
    labels: tuple[int, ...]
    """Of the kept ones."""

    @property
    def asked(self) -> int:
        return len(self.kept) + len(self.left_out)

    def of_videos(self) -> dict[str, list[str]]:
        """The kept questions of each video, videos in the order in which they come first."""
        return {video_id: [self.kept[place].text for place in places] for video_id, places in self._places().items()}

    def labels_in(self, split: Split) -> tuple[int, ...]:
        """The label of each question of a split that was made of `of_videos`, some of whose videos may be gone."""
        places = self._places()
        return tuple(self.labels[place] for clip in split.clips for place in places[clip.video_id])

    def asked_in(self, split: Split) -> int:
        """All questions about the videos of a split that are there, and about those that have left-out ones alone."""
        gone = self._places().keys() - {clip.video_id for clip in split.clips}
        return self.asked - sum(question.video_id in gone for question in (*self.kept, *self.left_out))

    def _places(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for place, question in enumerate(self.kept):
            found.setdefault(question.video_id, []).append(place)
        return found

    def sentence(self) -> str:
        """How many were kept, for notes."""
        share = 100 * len(self.kept) / self.asked
        return (
            f"{self.name}: {count(self.asked, 'question')}, of which {len(self.kept)} ({share:.1f} %) have one of the "
            f"listed answers; {len(self.left_out)} are left out."
        )

    def kinds(self) -> Counter[str]:
        """How many questions ask for what."""
        return Counter(question.kind for question in (*self.kept, *self.left_out))


def read_labels(path: Path) -> dict[str, int]:
    """The class of each answer.

    Raises:
        UserError: they are not numbered from 0 on, each number once.
    """
    content: Any = read_json(path, "labels of answers")
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: expected {EXPECTED_LABELS}, got {shortened(content)}")
    for answer, label in content.items():
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(content):
            raise UserError(
                f"{path}: the label of {answer!r} is {shortened(label)}, expected a whole number from 0 to "
                f"{len(content) - 1}, the number of answers less one; correct it"
            )
    numbers = Counter(content.values())
    if repeated := [answer for answer, label in content.items() if numbers[label] > 1]:
        raise UserError(
            f"{path}: {few([repr(answer) for answer in repeated])} share a label; give each answer one of its own"
        )
    return content


def read_questions(path: Path) -> list[Question]:
    """The lines of one file.

    Raises:
        UserError: a line has no question, answer or video; it is named.
    """
    return [_question(f"{path}, line {number}", number, entry) for number, entry in read_json_lines(path, EXPECTED)]


def _question(place: str, line: int, entry: Mapping[str, Any]) -> Question:
    for key in ("question", "answer"):
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise UserError(f'{place} has no text under "{key}": {shortened(dict(entry))}; expected {EXPECTED}')
    video_id = identifier(entry.get("video_id"))
    if video_id is None or not can_be_a_file(video_id):
        raise UserError(f'{place} has no id under "video_id": {shortened(dict(entry))}; expected {EXPECTED}')
    kind = entry.get("answer_type", "")
    if not isinstance(kind, str):
        raise UserError(f'{place}: "answer_type" is {shortened(kind)}, expected a text such as "what"; correct it')
    return Question(entry["question"].strip(), entry["answer"], one_form(video_id), kind.strip(), line)


def read_split(root: Path, name: str, labels: Mapping[str, int]) -> Questions:
    """The questions of `{name}.jsonl` that have one of the listed answers, and the others.

    Raises:
        UserError: a line cannot be read; no question is kept; or, of "train", an answer is not listed.
    """
    path = root / f"{name}.jsonl"
    questions = read_questions(path)
    kept = tuple(question for question in questions if question.answer in labels)
    left_out = tuple(question for question in questions if question.answer not in labels)

    if name == "train" and left_out:
        first = left_out[0]
        raise UserError(
            f"{path}, line {first.line}: the answer {first.answer!r} is not in {LABELS_FILE}, and so it is with "
            f"{count(len(left_out), 'question')}; add it there, or take these lines off the file"
        )
    if not kept:
        raise UserError(
            f"{path}: none of its {count(len(questions), 'question')} has an answer that {LABELS_FILE} lists; "
            f"use files of one data set"
        )
    return Questions(name, kept, left_out, tuple(labels[question.answer] for question in kept))
