"""The examples, and the Python of the pages, run as they stand."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from emcl_kernels import EMCL, Refiner, em_project, reference
from emcl_kernels.testing import assert_close, clustered_rows, distinct_init

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
PAGES = ("README.md", "docs/kernels.md", "docs/layer.md")

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="there is no checkout with examples")


def load(name: str) -> dict:
    return runpy.run_path(str(EXAMPLES / name), run_name="example")


def test_a_training_loop_with_the_layer_learns() -> None:
    assert load("layer.py")["main"]() > 80


def test_the_page_of_the_layer_has_the_loop_as_it_is_run() -> None:
    page = (ROOT / "docs" / "layer.md").read_text(encoding="utf-8")
    assert f"```python\n{(EXAMPLES / 'layer.py').read_text(encoding='utf-8')}```\n" in page


@pytest.mark.slow
def test_two_processes_have_the_loss_and_gradients_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By both ways of the example, without a gradient through EM and with one."""
    example = load("layer_processes.py")
    address = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    for name, value in address.items():
        monkeypatch.setenv(name, value)

    gradients = {}
    for gradient in ("identity", "full"):
        example["main"](gradient, str(tmp_path / "one.pt"))
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command = [*launcher, str(EXAMPLES / "layer_processes.py"), gradient, str(tmp_path / "two.pt")]
        environment = os.environ | {"PYTHONPATH": f"{ROOT / 'tests' / 'launched'}{os.pathsep}{ROOT}"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=ROOT, env=environment)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]

        one, two = torch.load(tmp_path / "one.pt"), torch.load(tmp_path / "two.pt")
        expected = one["gathered"]
        for found in (one["by moments"], two["gathered"], two["by moments"]):
            for value, other in zip(expected, found, strict=True):
                torch.testing.assert_close(other, value, rtol=1e-4, atol=1e-6 * float(value.abs().max()))
        gradients[gradient] = expected[2]

    # What is compared depends on EM: a gradient through it is another one.
    assert not torch.allclose(gradients["full"], gradients["identity"], rtol=1e-3)


def test_longer_rows_are_as_a_lower_temperature() -> None:
    """And what is added has the same size, as docs/layer.md says."""
    x, init = clustered_rows(40, 16), distinct_init(5)
    y, _ = em_project(10 * x, init)
    expected, _ = em_project(x, init, temperature=0.1)
    assert_close("what is added", y - 10 * x, expected - x, 1e-4)


def test_the_lengths_on_the_page_of_the_layer_are_measured(shared_data: Path) -> None:
    page = (ROOT / "docs" / "layer.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| `(EMCL\(.*?\))` \| of length (\d+) \| (.*?) \| (.*?) \|$", page, re.MULTILINE)
    assert len(lines) == 4

    embeddings = torch.from_numpy(np.load(shared_data / "embeddings" / "coco500_clip_vitb16.npy")).float()
    images, texts = embeddings[:, :128]
    for code, length, *written in lines:
        torch.manual_seed(0)
        layer = eval(code, {"EMCL": EMCL}).eval()
        given = (int(length) * texts, int(length) * images)
        for before, after, text in zip(given, layer(*given), written, strict=True):
            ratio = after.norm(dim=-1) / before.norm(dim=-1)
            least, most = map(float, text.split(" to "))
            assert least == pytest.approx(ratio.min().item(), abs=6e-4)
            assert most == pytest.approx(ratio.max().item(), abs=6e-4)

    said = re.search(r"(\d+) % of the\s+channels .* all bases \(none above 1.5 / K\); .* (\d+) %\.", page)
    assert said is not None
    for length, temperature, percent in ((1, 1.0, said[1]), (10, 1.0, said[2]), (1, 0.1, said[2])):
        torch.manual_seed(0)
        x = length * torch.cat([images, texts]).double()
        bases, _, _ = reference.em_loop(x, torch.randn(32).double(), num_iters=9, temperature=temperature)
        highest = torch.softmax(x.T @ bases / temperature, -1).amax(-1)
        assert round(100 * (highest < 1.5 / 32).double().mean().item()) == int(percent)


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

    refiner = Refiner.load(tmp_path / "out" / "map.safetensors")
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
