"""Files of a run that are damaged: one line that names the file, in place of a traceback or of other figures."""

import os

import pytest
from fake_run import make_run

from emcl_train.errors import UserError
from emcl_train.report import write_report

DAMAGE = {
    "results.json": [
        ('"rows": [', '"rows": 5, "x": ['),
        ('"R@1"', '"R@2"'),
        ('"text_to_video"', '"text_to_vide0"'),
        ('"queries": 40', '"queries": "40"'),
        ('"queries": 40', '"queries": 0'),
        ('"gallery": 40', '"gallery": null'),
        ('"selection": "', '"selection": ["'),
        ('"notes": [', '"notes": [7, '),
        ('"left_out": {', '"left_out": {"a": 7, '),
        ('"R@1": ', '"R@1": 9e'),
        ('"R@1": ', '"R@1": -'),
        ('"split": "test"', '"split": 3'),
    ],
    "queries.json": [
        ('"captions": [', '"captions": [7, '),
        ('"captions": [', '"captions": ["one more", '),
        ('"video_ids"', '"video_idz"'),
    ],
    "metrics.jsonl": [
        ('"loss"', '"lost"'),
        ('"step": 1,', '"step": "1",'),
        ('"kind": "validation", "step": 10, "epoch": 1', '"kind": "validation", "step": 10, "epoch": "1"'),
        ('"R@5"', '"R@6"'),
        ('"kind": "train"', '"kind": 5'),
    ],
    "config.json": [
        ('"mode": "train"', '"mode": "trail"'),
        ('"num_frames": 4', '"num_frames": "4"'),
        ('"seed"', '"sead"'),
    ],
    "environment.json": [("{", "[{")],
}


@pytest.mark.parametrize(
    ("name", "before", "after"), [(name, *pair) for name, pairs in DAMAGE.items() for pair in pairs]
)
def test_a_file_with_other_values_is_one_line_that_names_it(tmp_path, name, before, after):
    """A flipped byte may leave good JSON."""
    make_run(tmp_path)
    text = (tmp_path / name).read_text()
    damaged = text.replace(before, after, 1)
    if damaged == text:
        damaged = text.replace(before.replace(" ", ""), after, 1)
    assert damaged != text
    (tmp_path / name).write_text(damaged)
    with pytest.raises(UserError, match=name):
        write_report(tmp_path)


@pytest.mark.parametrize("name", [*DAMAGE, "embeddings.safetensors"])
@pytest.mark.parametrize("damage", ["empty", "half", "null", "binary", "folder", "pipe"])
def test_a_damaged_file_is_one_line_that_names_it(tmp_path, name, damage):
    make_run(tmp_path)
    path = tmp_path / name
    data = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "pipe":
        if name.endswith((".jsonl", ".safetensors")):
            return
        os.mkfifo(path)
    else:
        path.write_bytes(
            {"empty": b"", "half": data[: len(data) // 2], "null": b"null", "binary": bytes(range(256))}[damage]
        )
    if name == "metrics.jsonl" and damage == "empty":
        write_report(tmp_path)  # a run without a step
        return
    with pytest.raises(UserError, match=name):
        write_report(tmp_path)
