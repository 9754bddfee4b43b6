"""A head is registered once: choices of the command line, models, tables and reports follow."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from emcl_train import kinds
from emcl_train.config import EMCLConfig, ModelConfig, RandomClipConfig, RunConfig
from emcl_train.evaluation.table import main_line
from emcl_train.kinds import HEADS, TEMPORALS, class_of
from emcl_train.models.clip import Vocabulary, build_towers
from emcl_train.models.heads import Head, build_head
from emcl_train.models.temporal import Aggregation

TOY = '''
"""A head by one registration, made known before anything else of the package is imported."""
import sys
from pathlib import Path

from emcl_train.kinds import HEADS, TEMPORALS, Head, Temporal

HEADS["toy"] = Head("Toy {temporal}", "toy:ToyHead")
TEMPORALS["backwards"] = Temporal("seqBackwards", "toy:Backwards")

from tiny_run import tiny_run
from emcl_train import cli
from emcl_train.config import RunConfig
from emcl_train.models.heads import MeanHead
from emcl_train.models.temporal import Aggregation


class ToyHead(MeanHead):
    pass


class Backwards(Aggregation):
    @classmethod
    def of_config(cls, config, clip, *, width, num_frames):
        return cls()

    def forward(self, frames, frame_mask):
        return frames.flip(1)


if __name__ == "__main__":
    root, out = map(Path, sys.argv[1:])
    sizes = tiny_run(root, out).data.shapes
    shapes = [f"--data.shapes.{name.replace('_', '-')}={value}" for name, value in vars(sizes).items()]
    clip = ["--model.random-clip.width=16", "--model.random-clip.layers=1", "--model.random-clip.heads=2"]
    clip.append("--model.random-clip.patch-size=8")
    code = cli.main(["train", "shapes", "--out", str(out), "--data.root", str(root), *shapes, *clip,
                     "--data.image-size=16", "--data.num-frames=3", "--emcl.num-bases=4", "--train.max-steps=1",
                     "--train.batch-size=8", "--train.tracker=none", "--model.head", "toy",
                     "--model.temporal", "backwards"])
    code = code or cli.main(["train", "shapes", "--model.head", "none-such"])
    sys.exit(code)
'''


def test_a_new_head_and_aggregation_are_one_registration_each(tmp_path):
    (tmp_path / "toy.py").write_text(TOY.replace('if __name__ == "__main__":', "def main():"))
    (tmp_path / "start.py").write_text("import toy\ntoy.main()\n")
    root = Path(__file__).resolve().parents[3]
    path = os.pathsep.join(map(str, (tmp_path, root, root / "tests" / "train")))
    done = subprocess.run(
        [sys.executable, str(tmp_path / "start.py"), str(tmp_path / "set"), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": path, "COLUMNS": "200"},
    )
    assert done.returncode == 2, done.stderr  # of the second command, whose head there is not
    assert "Toy seqBackwards + EMCL" in done.stdout
    assert "Toy seqBackwards + EMCL" in (tmp_path / "run" / "report.html").read_text()
    assert "Toy seqBackwards + EMCL" in (tmp_path / "run" / "results.json").read_text()
    said = done.stdout + done.stderr
    assert all(name in said for name in ("text-conditioned", "toy"))
    assert "WTI" not in said


@pytest.mark.parametrize(
    ("head", "temporal", "labels"),
    [
        ("text-conditioned", "lstm", ["EMCL-Net", "EMCL at inference only", "Trained without EMCL"]),
        ("mean", "mean", ["CLIP4Clip meanP + EMCL", "CLIP4Clip meanP, EMCL at inference only", "CLIP4Clip meanP"]),
        ("mean", "transformer", ["CLIP4Clip seqTransf + EMCL", None, "CLIP4Clip seqTransf"]),
        ("aligned", "difference", ["CLIP2Video + EMCL", "CLIP2Video, EMCL at inference only", "CLIP2Video"]),
        ("wti", "lstm", ["WTI + EMCL", "WTI, EMCL at inference only", "WTI"]),
    ],
)
def test_lines_are_named_for_what_was_built(head, temporal, labels):
    for mode, label in zip(("train", "inference", "off"), labels, strict=True):
        config = RunConfig(model=ModelConfig(head=head, temporal=temporal), emcl=EMCLConfig(mode=mode))
        assert label is None or main_line(config) == label


def small_towers():
    config = ModelConfig(clip="random", random_clip=RandomClipConfig(16, 1, 2, 8))
    return build_towers(config, Vocabulary(20, 1, 0), image_size=16, max_words=7)


def test_every_kind_is_a_class_that_is_built_from_the_settings():
    towers = small_towers()
    for name, kind in HEADS.items():
        made = build_head(ModelConfig(head=name), towers.clip, width=16)
        assert isinstance(made, class_of(kind))
        assert isinstance(made, Head)
        assert made.needs_tokens == kind.tokens
    assert all(issubclass(class_of(kind), Aggregation) for kind in TEMPORALS.values())
    labels = [kinds.line_of(head, temporal, "off") for head in HEADS for temporal in TEMPORALS]
    assert len(set(labels)) == 3 + len(TEMPORALS)


def test_a_registration_that_disagrees_with_the_class_is_refused(monkeypatch):
    monkeypatch.setitem(HEADS, "wti", kinds.Head("WTI", HEADS["wti"].built_by, tokens=False))
    with pytest.raises(TypeError, match="tokens=False of 'wti'"):
        build_head(ModelConfig(head="wti"), small_towers().clip, width=16)
