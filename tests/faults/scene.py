"""What the parts start from: a small data set, runs on it, features and embeddings, made once; cases are copies of it.

All names are relative to the folder of a case, so that the bytes of two cases can be the same.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from safetensors.numpy import save_file
from server import ROOT, Outcome, Server, Stop
from trees import copy_of

SHAPES = ["--train-clips", "16", "--val-clips", "6", "--test-clips", "6", "--captions-per-clip", "2", "--size", "32",
          "--seconds", "1", "--fps", "4"]  # fmt: skip
OF_SHAPES = [f"--data.shapes.{word[2:]}" if word.startswith("--") else word for word in SHAPES]
SMALL = [
    "--data.root", "set", *OF_SHAPES, "--data.num-frames", "3", "--data.image-size", "16", "--data.max-words", "24",
    "--data.workers", "0", "--model.temporal", "mean", "--model.random-clip.width", "16",
    "--model.random-clip.layers", "1",
    "--model.random-clip.heads", "2", "--model.random-clip.patch-size", "8", "--emcl.num-bases", "4",
    "--eval.batch-size", "8", "--train.batch-size", "8", "--train.epochs", "2", "--train.save-every", "1",
    "--train.tracker", "none",
]  # fmt: skip
TRAIN = ["train", "shapes", *SMALL]
ROWS, WIDTH = 96, 48


class Scene:
    """A folder with everything; `case` gives a copy of some of it."""

    def __init__(self, server: Server) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="emcl-faults-"))
        self.template = self.folder / "template"
        self.template.mkdir()
        self._server = server
        self.known: dict[str, Any] = {}
        """What works do undisturbed; of `kills`."""

        self._run("data", "shapes", "set", *SHAPES)
        self._run(*TRAIN, "--out", "run")
        self._run(*TRAIN, "--out", "run2", "--train.seed", "1")
        self._run("embed", "run", "--out", "features")
        self._videos()
        self._embeddings()
        self._run("refine", "text.npy", "video.npy", "--out", "refined", "--paired", "--map", "em", "--weight", "-0.3")
        self._unfinished()
        self._weights()
        self._data_sets()

    def _run(self, *arguments: str, **asked: Any) -> Outcome:
        outcome = self._server.run(arguments, self.template, environment=environment_of(self.template), **asked)
        if outcome.code != 0:
            raise RuntimeError(f"{' '.join(arguments)} ended with {outcome.code}: {outcome.out}{outcome.err}")
        return outcome

    def _videos(self) -> None:
        """Videos to compress: five that are whole, one that is none, and annotations beside them."""
        inside = self.template / "videos" / "inside"
        inside.mkdir(parents=True)
        for n in range(3):
            copy_of(self.template / "set" / "videos" / f"video{n}.mp4", self.template / "videos" / f"clip{n}.mp4")
        for n in (3, 4):
            copy_of(self.template / "set" / "videos" / f"video{n}.mp4", inside / f"clip{n}.mp4")
        (inside / "broken.mp4").write_bytes(b"this is no video" * 20)
        (self.template / "videos" / "captions.csv").write_text("clip0,a red circle\n")

    def _embeddings(self) -> None:
        draw = np.random.default_rng(0)
        meaning = draw.standard_normal((ROWS, WIDTH))
        for name in ("text", "video"):
            rows = meaning + 0.8 * draw.standard_normal((ROWS, WIDTH)) + 0.5
            np.save(self.template / f"{name}.npy", rows.astype(np.float32))

        # The same in other formats.
        text = np.load(self.template / "text.npy")
        np.savez(self.template / "text.npz", text=text)
        save_file({"text": text}, self.template / "text.safetensors")
        column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(text.reshape(-1)), WIDTH)
        pyarrow.parquet.write_table(pyarrow.table({"text": column}), self.template / "text.parquet")
        (self.template / "pairs.txt").write_text("".join(f"{n}\n" for n in range(ROWS)))

    def _weights(self) -> None:
        """The run's weights as other programs write them."""
        self._run("export", "run", "model.bin", "--layout", "clip4clip")
        self._run("export", "run", "model.safetensors", "--layout", "emcl")
        self._run("export", "run", "clip", "--layout", "transformers")
        self._run("export", "run", "openai.safetensors", "--layout", "openai")

    def _data_sets(self) -> None:
        """A tiny data set in each layout; of `tiny_layouts`, which the tests of recipes use."""
        sys.path.append(str(ROOT / "tests" / "train"))
        from tiny_layouts import WRITERS

        for name in ("msrvtt-9k", "jsonl", "activitynet", "didemo", "vatex", "lsmdc", "msvd"):
            WRITERS[name](self.template / name.removesuffix("-9k"))

    def _unfinished(self) -> None:
        """A run that was stopped in the middle, whose state is there: what its folder held before its last epoch."""
        folder = self.folder / "stopped"
        folder.mkdir()
        for name in ("set", "cache"):
            copy_of(self.template / name, folder / name)
        asked: dict[str, Any] = {"environment": environment_of(folder)}
        whole = self._server.run([*TRAIN, "--out", "half"], folder, **asked)
        saved = [int(line[0]) for line in whole.log if line[1] == "rename" and line[3].endswith("latest.pt")]
        shutil.rmtree(folder / "half")
        stop = Stop("kill-after", saved[len(saved) // 2])
        self._server.run([*TRAIN, "--out", "half"], folder, stop=stop, **asked)
        copy_of(folder / "half", self.template / "half")
        shutil.rmtree(folder)

    def case(self, names: Iterable[str]) -> Path:
        """A new folder with these parts of the scene."""
        folder = Path(tempfile.mkdtemp(prefix="case-", dir=self.folder))
        (folder / "cache").mkdir()
        for name in names:
            copy_of(self.template / name, folder / name)
        return folder

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def environment_of(folder: Path) -> dict[str, str]:
    """The cache and the home of a case lie in its folder."""
    return {"XDG_CACHE_HOME": str(folder / "cache"), "HOME": str(folder)}


def run_in(server: Server, folder: Path, *arguments: str, **asked: Any) -> Outcome:
    """One command in the folder of a case."""
    return server.run(arguments, folder, environment=environment_of(folder), **asked)


if __name__ == "__main__":
    one = Server()
    print(Scene(one).folder)
    sys.exit(0)
