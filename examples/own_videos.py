"""From video files of your own to a table of retrieval: lists, a check of the files, training, evaluation.

    python examples/own_videos.py mine/

It renders a few clips into mine/, so that it runs in seconds, and trains a small CLIP with random weights on them. For
your videos leave `render` out, write the same two lists, and choose a real CLIP: `--model.clip
openai/clip-vit-base-patch32` in place of the flags in SMALL.
"""

import argparse
import json
from pathlib import Path

import av
import numpy as np

from emcl_train import cli

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 70, 220), "white": (235, 235, 235)}
DIRECTIONS = {"right": (1, 0), "down": (0, 1)}
SIZE = 64
# A model that trains in seconds on a CPU. Without these flags it is CLIP ViT-B/32.
SMALL = [
    *("--model.clip", "random", "--model.random-clip.width", "32", "--model.random-clip.layers", "1"),
    *("--model.random-clip.heads", "2", "--model.temporal-layers", "1", "--emcl.num-bases", "4"),
    *("--data.image-size", "32", "--data.workers", "0", "--train.batch-size", "4", "--train.max-steps", "4"),
]


def render(path: Path, colour: str, direction: str, start: int) -> None:
    """Two seconds of a square that moves."""
    dx, dy = DIRECTIONS[direction]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = SIZE
        stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for i in range(20):
            image = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
            left = start + 2 * i * dx
            top = start + 2 * i * dy
            image[top : top + 12, left : left + 12] = COLOURS[colour]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def write_data_set(root: Path) -> None:
    """Files in videos/, and train.jsonl and test.jsonl: one line a clip, with all its captions."""
    (root / "videos").mkdir(parents=True)
    for split, start in (("train", 2), ("test", 8)):
        lines = []
        for colour in COLOURS:
            for direction in DIRECTIONS:
                name = f"videos/{split}-{colour}-{direction}.mp4"
                render(root / name, colour, direction, start)
                captions = [f"a {colour} square moves {direction}", f"something {colour} goes {direction}"]
                lines.append(json.dumps({"video": name, "captions": captions}))
        (root / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def run(*command: str) -> None:
    """A command of emcl-train, as a shell would call it."""
    print(f"\n$ emcl-train {' '.join(command)}")
    if code := cli.main(list(command)):
        raise SystemExit(code)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder to make, for the clips and the run")
    root = parser.parse_args(arguments).root

    write_data_set(root)
    run("data", "doctor", "jsonl", str(root))
    run("train", "jsonl", "--data.root", str(root), "--out", str(root / "run"), *SMALL)
    run("eval", str(root / "run"))
    print(f"\nThe report is {root / 'run' / 'report.html'}")


if __name__ == "__main__":
    main()
