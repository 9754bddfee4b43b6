"""Refine embeddings that lie in two .npy files: texts [N, D] and videos (or images) [M, D], of any two-tower model.

    python examples/refine.py text.npy video.npy refined/

No pairs are needed. If row i of both files belongs together, R@1 before and after is printed. `emcl-train refine` does
the same with more formats and a table with intervals.
"""

import argparse
from pathlib import Path

import numpy as np

from emcl_kernels import Refiner


def recall_at_1(text: np.ndarray, video: np.ndarray) -> float:
    """Percent of texts whose own video is the most similar one by cosine."""
    text = text / np.linalg.norm(text, axis=1, keepdims=True)
    video = video / np.linalg.norm(video, axis=1, keepdims=True)
    return 100 * float(np.mean((text @ video.T).argmax(1) == np.arange(len(text))))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("video", type=Path)
    parser.add_argument("out", type=Path, help="folder for text.npy, video.npy and map.safetensors")
    options = parser.parse_args(arguments)

    # Mapped into memory: the files may be larger than it.
    text = np.load(options.text, mmap_mode="r")
    video = np.load(options.video, mmap_mode="r")

    refiner = Refiner().fit(text, video)
    refined_text = refiner.transform_text(text)
    refined_video = refiner.transform_video(video)

    options.out.mkdir(parents=True, exist_ok=True)
    np.save(options.out / "text.npy", refined_text)
    np.save(options.out / "video.npy", refined_video)
    refiner.save(options.out / "map.safetensors")  # for queries that come later: Refiner.load(...).transform_text
    print(f"wrote {options.out}")

    if len(text) == len(video):
        before = recall_at_1(np.asarray(text), np.asarray(video))
        after = recall_at_1(refined_text, refined_video)
        print(f"R@1 text to video, if row i belongs to row i: {before:.1f} before, {after:.1f} after")


if __name__ == "__main__":
    main()
