"""Questions from files as MSRVTT-QA distributes them: kept and left out, and each mistake by its line."""

import json

import pytest
import torch
from tiny_layouts import msrvtt_qa

from emcl_train.config import DataConfig
from emcl_train.data.annotations import load_annotations
from emcl_train.data.datasets.msrvttqa import questions_of
from emcl_train.data.question_answering import read_labels, read_questions, read_split
from emcl_train.data.question_batches import question_loader
from emcl_train.errors import UserError


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr("tiny_layouts.write_video", lambda path, *_, **__: path.write_bytes(b"clip"))
    msrvtt_qa(tmp_path / "set")
    return tmp_path / "set"


def config_of(root, **settings):
    return DataConfig(layout="msrvttqa", root=root, test_captions="all", train_captions="all", **settings)


def change(path, number, **values):
    lines = path.read_text().splitlines()
    entry = json.loads(lines[number])
    for key, value in values.items():
        if value is None:
            del entry[key]
        else:
            entry[key] = value
    lines[number] = json.dumps(entry)
    path.write_text("\n".join(lines) + "\n")


def test_questions_are_captions_of_their_videos_and_keep_their_labels(root):
    annotations = load_annotations(config_of(root))
    parts, num_answers = questions_of(config_of(root))
    assert num_answers == 4
    for name in ("train", "val", "test"):
        split, part = getattr(annotations, name), parts[name]
        labels = part.labels_in(split)
        by_hand = {(q.video_id, q.text): label for q, label in zip(part.kept, part.labels, strict=True)}
        assert len(labels) == len(split.captions) == len(part.kept)
        for text, clip, label in zip(split.captions, split.caption_clip, labels, strict=True):
            assert by_hand[split.clips[clip].video_id, text] == label
    assert (len(parts["test"].kept), len(parts["test"].left_out), parts["test"].asked) == (6, 2, 8)
    assert parts["test"].kinds() == {"what": 4, "who": 4}
    assert "test: 8 questions, of which 6 (75.0 %) have one of the listed answers; 2 are left out." in annotations.notes
    assert "train_ans2label.json lists 4 answers; MSRVTT-QA as released has 1500." in annotations.notes
    assert "test: 8 questions; MSRVTT-QA has 72821." in annotations.counts
    assert not any("Their ranks" in note for note in annotations.notes)


def test_videos_that_are_left_out_take_their_questions_along(root):
    split = load_annotations(config_of(root)).test
    part = questions_of(config_of(root))[0]["test"]
    gone = split.clips[1].video_id
    left = split.without({gone})
    kept = [label for q, label in zip(part.kept, part.labels, strict=True) if q.video_id != gone]
    assert sorted(part.labels_in(left)) == sorted(kept)
    assert part.asked_in(split) == 8
    assert part.asked_in(left) == sum(q.video_id != gone for q in (*part.kept, *part.left_out))


def test_an_answer_of_training_that_is_not_listed_is_an_error_by_its_line(root):
    change(root / "train.jsonl", 2, answer="a thing that nobody listed")
    with pytest.raises(
        UserError, match=r"train\.jsonl, line 3: the answer 'a thing that nobody listed' is not in train_ans"
    ):
        load_annotations(config_of(root))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"question": None}, 'has no text under "question"'),
        ({"question": " "}, 'has no text under "question"'),
        ({"answer": 3}, 'has no text under "answer"'),
        ({"video_id": None}, 'has no id under "video_id"'),
        ({"video_id": "a\0b"}, 'has no id under "video_id"'),
        ({"answer_type": 7}, '"answer_type" is 7'),
    ],
)
def test_a_mistake_is_named_by_its_line(root, values, said):
    change(root / "val.jsonl", 1, **values)
    with pytest.raises(UserError, match=rf"val\.jsonl, line 2.*{said}"):
        read_questions(root / "val.jsonl")


def test_a_line_that_is_no_json_and_files_of_two_data_sets(root):
    labels = read_labels(root / "train_ans2label.json")
    with pytest.raises(UserError, match=r"none of its .* has an answer that train_ans2label\.json lists"):
        read_split(root, "test", {"nothing": 0})
    path = root / "test.jsonl"
    path.write_text(path.read_text() + "{")
    with pytest.raises(UserError, match=r"test\.jsonl, line 9: it is not JSON"):
        read_split(root, "test", labels)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "expected {"),
        ({}, "expected {"),
        ({"a": 0, "b": 2}, "the label of 'b' is 2, expected a whole number from 0 to 1"),
        ({"a": 0, "b": "1"}, "the label of 'b' is \"1\""),
        ({"a": True}, "the label of 'a' is true"),
        ({"a": 0, "b": 0}, "'a', 'b' share a label"),
    ],
)
def test_labels_are_numbered_from_zero_on(root, content, said):
    (root / "train_ans2label.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=said):
        read_labels(root / "train_ans2label.json")


class Lengths:
    """Token ids that tell a question's length."""

    def encode(self, captions):
        ids = torch.tensor([[len(text), 1] for text in captions])
        return ids, torch.ones_like(ids)


def test_batches_are_one_shuffle_of_all_questions_with_their_labels(root, monkeypatch):
    def decoded(clip, config, **_):
        return torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([True, False])

    monkeypatch.setattr("emcl_train.data.loader.decode_clip", decoded)
    config = config_of(root, num_frames=2, image_size=8, workers=0)
    split = load_annotations(config).train
    labels = questions_of(config)[0]["train"].labels_in(split)

    def epoch(number, **settings):
        loader = question_loader(split, labels, Lengths(), config, 4, seed=3, epoch=number, **settings)
        return [(b["label"].tolist(), b["index"].tolist(), b["input_ids"][:, 0].tolist()) for b in loader]

    whole = epoch(0)
    assert len(whole) == len(split.captions) // 4
    seen = [(label, clip, length) for batch in whole for label, clip, length in zip(*batch, strict=True)]
    texts = list(zip(labels, split.caption_clip, map(len, split.captions), strict=True))
    assert sorted(seen) == sorted(texts)  # 16 questions are four batches
    assert epoch(0, start_batch=1) == whole[1:]
    assert epoch(1) != whole
    halves = [epoch(0, rank=rank, world=2) for rank in (0, 1)]
    assert [[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(*halves, strict=True)] == [
        list(b) for b in whole
    ]
    with pytest.raises(ValueError, match="labels came with"):
        question_loader(split, labels[1:], Lengths(), config, 4, seed=3, epoch=0)
