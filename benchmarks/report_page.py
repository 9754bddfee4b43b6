"""A page of a run with 1 000 captions and 1 000 clips: how large it is, how long it takes to write, and to open.

    PYTHONPATH=.:build/browser-tools-1.65.2 python benchmarks/report_page.py [--clips N] [--videos FOLDER] [--out FILE]

The clips are rendered here, unless a folder of videos is named; fewer videos than clips are used again and again. What
the page says is random, and as long as captions are. `make test-browser` installs the driver of the browser.
"""

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import av
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "train"))

from fake_run import make_run  # noqa: E402

from emcl_train.report import write_report  # noqa: E402
from emcl_train.runs.code import commit, processor  # noqa: E402

DIFFERENT = 32
"""Videos that are rendered; clips beyond these have the same ones."""
LIMIT = 15_000_000
"""Bytes that a page of 1 000 clips may have."""
WORDS = ["a", "man", "woman", "dog", "is", "cooking", "playing", "running", "guitar", "talking", "in", "kitchen", "on"]
OPENED = """
() => {
  const [entry] = performance.getEntriesByType("navigation");
  return [entry.domContentLoadedEventEnd, entry.loadEventEnd];
}
"""


def render(path: Path, seed: int) -> None:
    """Five seconds of a photograph-like texture that moves, 320 × 240 at 25 frames a second."""
    draw = np.random.default_rng(seed)
    wide = np.zeros((400, 640, 3))
    for cells in (4, 16, 64):
        coarse = draw.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        wide += np.asarray(Image.fromarray(coarse).resize((640, 400), Image.Resampling.BICUBIC)) / 3
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "23", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for n in range(125):
            left, top = round(160 + 140 * np.sin(n / 40)), round(80 + 70 * np.cos(n / 30))
            window = wide[top : top + 240, left : left + 320] + draw.normal(0, 4, (240, 320, 1))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(window.clip(0, 255).astype(np.uint8)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def make_data_set(root: Path, clips: int, videos: list[Path]) -> None:
    """The MSR-VTT layout, whose test clips are these videos."""
    (root / "videos").mkdir(parents=True)
    names = [f"video{n}" for n in range(clips)]
    for n, name in enumerate(names):
        shutil.copyfile(videos[n % len(videos)], root / "videos" / f"{name}.mp4")
    listed = [{"video_id": name, "split": "test"} for name in names]
    sentences = [{"video_id": name, "caption": "a"} for name in names]
    (root / "MSRVTT_data.json").write_text(json.dumps({"videos": listed, "sentences": sentences}))
    (root / "MSRVTT_train.9k.csv").write_text("video_id\n" + "\n".join(names) + "\n")
    rows = [f"ret{n},{name},a" for n, name in enumerate(names)]
    (root / "MSRVTT_JSFUSION_test.csv").write_text("\n".join(["key,video_id,sentence", *rows]) + "\n")


def make_texts(run: Path) -> None:
    """Captions of five to sixteen words."""
    draw = random.Random(0)
    queries = json.loads((run / "queries.json").read_text())
    queries["captions"] = [" ".join(draw.choices(WORDS, k=draw.randint(5, 16))) for _ in queries["captions"]]
    (run / "queries.json").write_text(json.dumps(queries))


def opening_times(page: Path, clips: int, times: int = 5) -> dict[str, object]:
    """Seconds until the page is there, and until a search has its list, each the median of some."""
    from playwright.sync_api import sync_playwright

    whole, ready, searched = [], [], []
    with sync_playwright() as driver:
        path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for _ in range(times):
            tab = browser.new_page()
            tab.goto(page.as_uri())
            tab.locator("#list .item").first.wait_for()
            first, last = tab.evaluate(OPENED)
            ready.append(first / 1000)
            whole.append(last / 1000)
            start = time.perf_counter()
            tab.locator("#search").fill("guitar kitchen")
            tab.locator("#shown").filter(has_not_text=f"of {clips} found").wait_for()
            searched.append(time.perf_counter() - start)
            tab.close()
        version = browser.version
        browser.close()
    medians = {"ready_s": ready, "loaded_s": whole, "searched_s": searched}
    return {"browser": f"Chromium {version}"} | {
        name: round(statistics.median(all_), 3) for name, all_ in medians.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Size and opening time of a report's page")
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--videos", type=Path, help="a folder of videos, in place of rendered ones")
    parser.add_argument("--out", type=Path, help="write the record to this JSON file as well")
    parser.add_argument("--keep", type=Path, help="copy the page to this file")
    asked = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        os.environ["XDG_CACHE_HOME"] = str(place / "cache")
        videos = sorted(asked.videos.glob("*.mp4")) if asked.videos else []
        if asked.videos and not videos:
            parser.error(f"{asked.videos} holds no .mp4 file")
        for n in range(0 if videos else DIFFERENT):
            videos.append(place / f"rendered{n}.mp4")
            render(videos[-1], seed=n)
        make_data_set(place / "set", asked.clips, videos)
        make_run(place / "run", clips=asked.clips, root=place / "set")
        make_texts(place / "run")

        start, used = time.perf_counter(), time.process_time()
        page = write_report(place / "run")
        written, used = time.perf_counter() - start, time.process_time() - used
        text = page.read_text(encoding="utf-8")
        media = json.loads(text.partition('id="media">')[2].partition("</script>")[0])
        record = {
            "date": date.today().isoformat(),
            "commit": commit(),
            "processor": processor(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "clips": asked.clips,
            "videos": "named ones" if asked.videos else "rendered",
            "bytes": page.stat().st_size,
            "pictures": len(media["pictures"]),
            "films": len(media["films"]),
            "written_s": round(written, 1),
            "written_cpu_s": round(used, 1),
            "load": [round(one, 1) for one in os.getloadavg()],
            **opening_times(page, asked.clips),
        }
        if asked.keep:
            shutil.copyfile(page, asked.keep)
    print(json.dumps(record, indent=2))
    if asked.out:
        asked.out.write_text(json.dumps(record, indent=2) + "\n")
    if record["clips"] <= 1000 and int(str(record["bytes"])) >= LIMIT:
        print(f"the page has {record['bytes']} bytes, expected fewer than {LIMIT}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
