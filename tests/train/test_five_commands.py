"""The README's way from a folder of videos to a table, refined vectors and a report, as it is written there."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hub_cache import put_clip

from emcl_train.config import DataConfig, ShapesConfig
from emcl_train.data.annotations import load_annotations
from emcl_train.data.shapes import render_shapes

ROOT = Path(__file__).resolve().parents[2]
CLIPS = {"train": 24, "val": 8, "test": 12}


def commands() -> list[str]:
    """The lines of the README's section, without their comments."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    section = page.split("## Your folder in five commands")[1].split("\n## ")[0]
    block = re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)[0]
    return [line.partition("  #")[0].strip() for line in block.splitlines() if line.strip()]


def own_folder(root: Path, rendered: Path) -> None:
    """The bundled clips as a user has videos: files in one folder, and a table beside them."""
    shapes = ShapesConfig(train_clips=CLIPS["train"], val_clips=CLIPS["val"], test_clips=CLIPS["test"])
    render_shapes(rendered, shapes)
    annotations = load_annotations(DataConfig(layout="shapes", root=rendered, shapes=shapes))

    root.mkdir()
    with (root / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["video", "caption", "split"])
        for split in CLIPS:
            of_split = getattr(annotations, split)
            for caption, clip in zip(of_split.captions, of_split.caption_clip, strict=True):
                table.writerow([of_split.clips[clip].path.name, caption, split])
            for clip in of_split.clips:
                shutil.copyfile(clip.path, root / clip.path.name)


@pytest.mark.slow
def test_the_five_commands_of_the_readme_run_as_written(tmp_path):
    own_folder(tmp_path / "my-videos", tmp_path / "rendered")
    put_clip(tmp_path / "hub")
    environment = os.environ | {
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "COLUMNS": "160",
    }

    said = []
    assert len(commands()) == 5
    for command in commands():
        program, *rest = command.split()
        assert program == "emcl-train"
        done = subprocess.run(
            [sys.executable, "-m", "emcl_train", *rest],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        said.append(done.stdout)

    # A table, refined vectors, and a report.
    _, _, of_refine, of_training, _ = said
    assert re.search(r"^ *before( +[\d.]+){10}", of_refine, re.MULTILINE)
    assert re.search(r"^ *after( +[\d.]+){10}", of_refine, re.MULTILINE)
    assert re.search(r"^ *EMCL-Net( +[\d.]+)+", of_training, re.MULTILINE)
    video = np.load(tmp_path / "refined" / "video.npy")
    assert video.shape == (CLIPS["test"], 32)
    assert len(np.load(tmp_path / "refined" / "text.npy")) >= CLIPS["test"]
    results = json.loads((tmp_path / "runs" / "mine" / "results.json").read_text())
    assert results["gallery"] == CLIPS["test"]
    page = (tmp_path / "runs" / "mine" / "report.html").read_text(encoding="utf-8")
    assert re.search(r'"films": ?\{"\d+": ?"', page)
