"""A bank of 100 000 queries against a million items, beside FAISS's exact search: `python -m benchmarks.refine.large`.

Writes results/large.json beside this file, after each piece of the items. Takes an hour and 5 GB of disk; never part of
CI. FAISS is not among the packages of this project: `pip install --target build/faiss faiss-cpu`, and
PYTHONPATH=build/faiss.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

import emcl_kernels
from emcl_kernels import EMRefiner, Refiner
from emcl_train.runs.code import processor

RESULTS = Path(__file__).resolve().parent / "results" / "large.json"
WIDTH = 512
PIECE = 1 << 15
NEIGHBORS = 10
THREADS = 2


def rows(path: Path, count: int, seed: int) -> np.ndarray:
    """A mapped file of rows with a falling spectrum and a mean of their own, as embeddings have them."""
    generator = np.random.default_rng(seed)
    spectrum = (1 + np.arange(WIDTH)) ** -0.5
    mean = 0.3 * generator.normal(size=WIDTH) * spectrum

    # Not through a mapping, whose pages would count as memory of this process.
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (count, WIDTH)})
        for start in range(0, count, PIECE):
            size = min(PIECE, count - start)
            file.write((generator.normal(size=(size, WIDTH)) * spectrum + mean).astype(np.float32).tobytes())
    return np.load(path, mmap_mode="r")


@contextmanager
def timed(into: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    into[name] = time.perf_counter() - start
    print(f"{name}: {into[name]:.1f} s, {peak_bytes() / 1e9:.2f} GB at most so far", flush=True)


def peak_bytes() -> int:
    """The most memory that this process has had."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def one_row_seconds(transform: Callable[[Any], Any]) -> list[float]:
    """Quartiles of the time of a row alone, of 2 000."""
    row = torch.randn(1, WIDTH)
    transform(row)
    found = []
    for _ in range(2000):
        start = time.perf_counter()
        transform(row)
        found.append(time.perf_counter() - start)
    return [float(value) for value in np.quantile(found, (0.25, 0.5, 0.75))]


def searcher(bank: np.ndarray, found: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray] | None:
    """FAISS's exact search in a bank: rows → mean of their largest inner products. None without FAISS.

    Notes its version in what was found.
    """
    try:
        import faiss
    except ImportError:
        print("without faiss: no comparison with it")
        return None
    faiss.omp_set_num_threads(THREADS)
    found["faiss"] = faiss.__version__
    index = faiss.IndexFlatIP(WIDTH)
    index.add(bank)
    return lambda rows: index.search(rows, NEIGHBORS)[0].mean(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--pieces", type=int, help="compare so many pieces of the items only")
    parser.add_argument("--without-faiss", action="store_true", help="whose index is memory of this process, too")
    arguments = parser.parse_args()

    torch.set_num_threads(THREADS)
    seconds: dict[str, float] = {}
    found: dict[str, Any] = {
        "environment": {
            "emcl": emcl_kernels.__version__,
            "torch": torch.__version__,
            "processor": processor(),
            "isa": torch.backends.cpu.get_cpu_capability(),
            "threads": THREADS,
        },
        "items": arguments.items,
        "bank": arguments.queries,
        "width": WIDTH,
        "seconds": seconds,
    }

    def write() -> None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        with timed(seconds, "made"):
            video = rows(Path(folder) / "video.npy", arguments.items, 0)
            text = rows(Path(folder) / "text.npy", arguments.queries, 1)

        # In turns, for the machine is not the same all the time.
        found["bytes_before"] = peak_bytes()
        for turn in range(3):
            for kind in (EMRefiner, Refiner):
                with timed(seconds, f"fit of {kind.__name__}, turn {turn}"):
                    refiner = kind().fit(text, video)
        found["bytes_after_fit"] = peak_bytes()
        found["one_row_quartiles"] = one_row_seconds(refiner.transform_text)

        with timed(seconds, "bank set"):
            refiner.set_bank(text)
        write()

        bank = refiner.bank("text")
        assert bank is not None
        search = None if arguments.without_faiss else searcher(bank.numpy(), found)
        pieces: list[list[float]] = []
        found["pieces"] = pieces  # rows, seconds of ours, seconds of FAISS's search of the same rows, refined
        worst = 0.0
        for first in list(range(0, arguments.items, PIECE))[: arguments.pieces]:
            part = video[first : first + PIECE]  # mapped, and handed back by the refiner when it is read
            start = time.perf_counter()
            refined = refiner.transform_video(part)
            pieces.append([len(part), time.perf_counter() - start])
            if search is not None:
                unit = np.ascontiguousarray(refined[:, :WIDTH])
                start = time.perf_counter()
                near = search(unit)
                pieces[-1].append(time.perf_counter() - start)
                worst = max(worst, float(np.abs(refined[:, WIDTH] + 0.5 * near).max()))
                found["largest_difference_from_faiss"] = worst
            found["bytes_after_bank"] = peak_bytes()
            print(pieces[-1], flush=True)
            write()


if __name__ == "__main__":
    main()
