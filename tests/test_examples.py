"""The examples, and the Python of the pages, run as they stand."""

import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from emcl_kernels import EMRefiner

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
PAGES = ("README.md", "docs/kernels.md")

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="there is no checkout with examples")


def load(name: str) -> dict:
    return runpy.run_path(str(EXAMPLES / name), run_name="example")


def test_a_training_loop_with_the_layer_learns() -> None:
    assert load("layer.py")["main"]() > 80


def test_two_files_are_refined(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(60, 12, generator=generator) @ torch.randn(12, 32, generator=generator)
    for name in ("text", "video"):
        offset = 4 * torch.randn(32, generator=generator)
        np.save(tmp_path / f"{name}.npy", (shared + offset + torch.randn(60, 32, generator=generator)).numpy())

    load("refine.py")["main"]([str(tmp_path / "text.npy"), str(tmp_path / "video.npy"), str(tmp_path / "out")])

    found = re.search(r"([\d.]+) before, ([\d.]+) after", capsys.readouterr().out)
    assert found is not None
    assert float(found[2]) > float(found[1])

    refiner = EMRefiner.load(tmp_path / "out" / "map.safetensors")
    expected = refiner.transform_text(np.load(tmp_path / "text.npy"))
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "text.npy"), expected)


@pytest.mark.slow
def test_own_videos_go_from_files_to_a_table(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("av")
    load("own_videos.py")["main"]([str(tmp_path / "mine")])
    assert "16 captions against 8 clips" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "mine" / "run" / "report.html").is_file()


def test_every_example_is_run_here() -> None:
    named = re.findall(r'load\("(\w+\.py)"\)', Path(__file__).read_text(encoding="utf-8"))
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(named)


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs(page: str) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})


def test_the_picture_of_the_readme_shows_committed_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    script = runpy.run_path(str(ROOT / "benchmarks" / "refine" / "picture.py"), run_name="picture")
    results = json.loads(script["RESULTS"].read_text(encoding="utf-8"))
    script["draw"](results, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000

    alternative = re.search(r"!\[R@1 before and after.*\]", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert alternative is not None
    for cell in ("MSR-VTT-100, VideoCLIP, text→video", "COCO-500, CLIP ViT-B/16, text→video"):
        before = results["groups"]["no refinement"]["no refinement"]["figures"][cell]["mean"]["R@1"]
        after = results["groups"]["EMRefiner"]["default"]["figures"][cell]["mean"]["R@1"]
        assert f"{before:.1f} to {after:.1f}" in alternative[0]
