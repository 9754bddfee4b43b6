"""A real browser for the pages that the program writes: Chromium, driven by playwright (`make test-browser`)."""

import json
import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from opened import HOSTILE, Opened

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "train"))  # for its runs and videos


def browser_path() -> str:
    """Where the browser is.

    Raises:
        pytest.UsageError: there is none.
    """
    for name in (os.environ.get("EMCL_BROWSER", ""), "chromium", "chromium-browser", "google-chrome"):
        if name and (found := shutil.which(name)):
            return found
    raise pytest.UsageError("no chromium is installed; on Debian and Ubuntu: apt-get install chromium")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder of the tests, in place of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # Without its sandbox, which needs rights that containers do not give.
        opened = driver.chromium.launch(executable_path=browser_path(), args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def opened(browser) -> Iterator[object]:
    """Opens a page as somebody sees it. At its end it has logged no error and asked the network nothing."""
    contexts: list[Opened] = []

    def open_page(path: Path, **how: object) -> Opened:
        contexts.append(Opened(browser, path, **how))
        return contexts[-1]

    yield open_page
    for one in contexts:
        one.close()
    for one in contexts:
        assert one.errors == []
        assert one.requests == []


@pytest.fixture(scope="session")
def page_of_a_run(tmp_path_factory) -> Path:
    """report.html of a run whose clips are there, and some of whose captions are hostile."""
    from fake_run import make_run
    from tiny_videos import write_data_set

    from emcl_train.report import write_report

    folder = tmp_path_factory.mktemp("page")
    write_data_set(folder / "set", train=4, val=2, test=34)
    run = folder / "run"
    make_run(run, clips=34, captions_per_clip=2, root=folder / "set")

    # Names of the test clips, and captions in which words can be looked for.
    draw = random.Random(0)
    words = ["red", "green", "circle", "square", "grows", "turns", "slowly", "twice"]
    captions = [f"number-{n}-of-all {' '.join(draw.choices(words, k=6))}" for n in range(68)]
    captions[: len(HOSTILE)] = HOSTILE
    queries = {"video_ids": [f"video{n}" for n in range(6, 40)], "captions": captions}
    (run / "queries.json").write_text(json.dumps(queries))
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        if record["kind"] == "train":
            step = record["step"]
            record |= {"logit_scale": 10 + step / 60, "grad_norm": 2 / step + 0.1 * (step % 3), "seconds": 0.2}
            record |= {"clips_per_second": 600.0 - step, "memory_bytes": 10**9}
        else:
            record["clips"] = 34
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    origin = {"command": "emcl-train train msrvtt-9k --out runs/x", "started": "2026-01-02 03:04:05 UTC"}
    origin |= {"commit": "0123456789", "device": "cpu", "processor": "A Processor", "pairs_per_step": 64}
    (run / "environment.json").write_text(json.dumps(origin))
    return write_report(run)
