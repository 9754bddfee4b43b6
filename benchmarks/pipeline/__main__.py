"""The speed of what surrounds the model: clips, captions, the rest of a training step, evaluation.

    python -m benchmarks.pipeline CLIPS [--captions FILE] [--turns 4] [--parts clips …] [--name NAME]

CLIPS is a folder of videos. In each turn every way does its work once, in an order that changes from turn to turn, and
a verdict is of the pairs of a turn. What is counted are seconds of the processor, of one thread: who else uses the
machine then matters little. Decoders that are not installed are left out, and the record says why (`make
bench-pipeline` has an environment with them). The record goes to benchmarks/results, and is never edited.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import torch

import emcl_kernels
from benchmarks.intervals import interval
from benchmarks.pipeline import clips, evaluation, steps, texts
from benchmarks.record import RESULTS, Record, made_here, name_of, save

Seconds = dict[str, list[float]]
PARTS = ("clips", "captions", "step", "evaluation")
FRAMES, SIZE = 12, 224
PAIRS = 2
PACKAGES = ("av", "pillow", "numpy", "tokenizers", "transformers", "decord", "opencv-python-headless", "torchcodec")

METHOD = (
    "Seconds are those of the processor, user and system, of one process with one thread (FFmpeg, OpenCV and torch "
    "are held to one). Medians over turns; IQR is the interquartile range. In a turn every way does its work once, one "
    "after the other, in an order that changes from turn to turn. A verdict is of pairs: the median over turns of the "
    "ratio of a turn's two times, and of its logarithm's mean the 95 % interval. "
    "Clips: all ways give the same frames of every clip, by their number in the order of display, which they are told "
    "and ours finds by their times. “scaled as ours” takes frames of full size and makes the squares by our own code "
    "(Pillow's bicubic filter, CLIP's sizes and crop), so pixels are equal up to each library's conversion to RGB; "
    "“its own scaling” gives other pixels, and the note says by how much. Ours is what a training run calls, which "
    "reads all packets of a file besides, to find out whether it is whole. "
    "Captions: byte pairs as CLIP's, 8 000 tokens made from these captions, 32 tokens a caption. "
    "Step: towers as large as those of ViT-B/32 (the text's is as wide as the image's), random weights, float32, EMCL "
    "on; decoding and tokenizing are not part of it. With more pairs the towers' share grows: the "
    "optimizer's time stays. "
    "Evaluation: random features of length one, 512 numbers wide, blocks of 32 and K = 32; similarity and the ranks of "
    "both directions. “eager” is the release's formula and its ranks by sorting."
)


def in_turns(ways: Mapping[str, Callable[[], float]], turns: int, first: bool = True) -> Seconds:
    """Seconds that each way says it took, in each turn; with `first` after one call of each that is not counted."""
    names = list(ways)
    if first:
        for name in names:
            ways[name]()
    seconds: Seconds = {name: [] for name in names}
    for turn in range(turns):
        places = [(turn + place) % len(names) for place in range(len(names))]
        for place in places:
            name = names[place]
            seconds[name].append(ways[name]())
        print(f"turn {turn + 1} of {turns}: " + ", ".join(f"{n} {s[-1]:.2f} s" for n, s in seconds.items()), flush=True)
    return seconds


def timed(work: Callable[[], object]) -> float:
    """Seconds of the processor that it takes."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def case(shape: str, dtype: str, seconds: Seconds, notes: Mapping[str, str], failed: Mapping[str, str]) -> Record:
    """A table of the record."""
    ways: Record = {}
    for name, values in seconds.items():
        low, _, high = statistics.quantiles(values, n=4)
        ways[name] = {
            "median_s": statistics.median(values),
            "iqr_s": high - low,
            "repeats": len(values),
            "note": notes.get(name, ""),
            "seconds": values,
        }
    for name, reason in failed.items():
        ways[name] = {"failed": f"not measured: {reason}"}
    return {"shape": shape, "dtype": dtype, "ways": ways}


def target(what: str, seconds: Seconds, ours: str, other: str, judged: bool) -> Record:
    """Ours against another way, of the pairs of a turn."""
    ratios = [a / b for a, b in zip(seconds[ours], seconds[other], strict=True)]
    _, low, high = interval(ratios)
    middle = statistics.median(ratios)
    return {
        "case": f"{what}, {ours} ÷ {other}",
        "target": "< 1" if judged else "none",
        "measured": f"{middle:.3f} [{low:.3f}, {high:.3f}]",
        "verdict": ("met" if middle < 1 else "missed") if judged else "",
    }


def measure_clips(options: argparse.Namespace) -> tuple[list[Record], list[Record]]:
    wanted, damaged = clips.wanted_of(options.clips, options.frames, options.size)
    ways, missing = clips.ways()
    apart = {name: clips.difference(way, wanted) for name, way in ways.items() if name != clips.OURS}
    seconds = in_turns(
        {name: lambda way=way: clips.processor_seconds(way, wanted) for name, way in ways.items()},  # type: ignore[misc]
        options.turns,
        first=False,  # the differences were a first call of each
    )
    notes = {name: f"{len(wanted) / statistics.median(values):.2f} clips a second" for name, values in seconds.items()}
    for name, levels in apart.items():
        notes[name] += f"; {levels:.2f} levels of 255 from ours on average"
    left = f"; left out as damaged: {', '.join(damaged)}" if damaged else ""
    shape = f"{len(wanted)} clips, {options.frames} frames, {options.size} pixels{left}"
    targets = [target("clips", seconds, clips.OURS, name, name.endswith("as ours")) for name in apart]
    return [case(shape, "uint8", seconds, notes, missing)], targets


def measure_captions(options: argparse.Namespace) -> tuple[list[Record], list[Record]]:
    if options.captions is None:
        return [], []
    captions = texts.captions_of(options.captions)
    ways = texts.ways(captions)
    seconds = in_turns({name: lambda way=way: timed(way) for name, way in ways.items()}, options.turns)  # type: ignore[misc]
    notes = {
        name: f"{len(captions) / statistics.median(values):.0f} captions a second" for name, values in seconds.items()
    }
    return [case(f"{len(captions)} captions", "text", seconds, notes, {})], []


def measure_step(options: argparse.Namespace) -> tuple[list[Record], list[Record]]:
    sizes = {"width": 64, "layers": 1} if options.reduced else {"width": 768, "layers": 12}
    config = steps.configuration(options.pairs, size=options.size, frames=options.frames, patch=32, **sizes)
    tokenizer = texts.byte_pairs(["a person does thing number 1"], 300)
    step = steps.Step(config, tokenizer)
    step()
    found = [step() for _ in range(options.turns)]
    seconds = {part: [one[part] for one in found] for part in steps.PARTS}
    whole = [sum(one.values()) for one in found]
    shares = {part: [one[part] / total for one, total in zip(found, whole, strict=True)] for part in steps.PARTS}
    notes = {part: f"{100 * statistics.median(values):.2f} % of the step" for part, values in shares.items()}
    shape = (
        f"training step of {options.pairs} pairs of {options.frames} frames, towers of {sizes['layers']} layers of "
        f"{sizes['width']}"
    )
    return [case(shape, "float32", seconds, notes, {})], []


def measure_evaluation(options: argparse.Namespace) -> tuple[list[Record], list[Record]]:
    cases, targets = [], []
    for gallery in evaluation.GALLERIES:
        if options.reduced:
            gallery = evaluation.Gallery(gallery.name, 70, 3, min(1, gallery.sampled))
        inputs = evaluation.features_of(gallery)
        found = [evaluation.timed(gallery, inputs, time.process_time) for _ in range(options.turns)]
        seconds = {name: [one[name] for one in found] for name in found[0]}
        name = f"evaluation of {gallery.name}, {gallery.items} × {gallery.items}"
        blocks = -(-gallery.items // evaluation.BLOCK)
        estimated = f"time of the similarity estimated from {gallery.sampled} of {blocks} blocks of texts"
        notes = dict.fromkeys(found[0], estimated) if gallery.sampled else {}
        cases.append(case(f"{name}, F={gallery.frames}", "float32", seconds, notes, {}))
        targets.append(target(name, seconds, "ours", "eager", True))
        print(f"{name}: " + ", ".join(f"{way} {statistics.median(values):.2f} s" for way, values in seconds.items()))
    return cases, targets


MEASURES = {
    "clips": measure_clips,
    "captions": measure_captions,
    "step": measure_step,
    "evaluation": measure_evaluation,
}


def record_of(cases: Sequence[Record], targets: Sequence[Record]) -> Record:
    """What was measured, as records have it."""
    made = made_here(
        "What surrounds the model",
        "one thread",
        "python -m benchmarks.pipeline",
        {"torch": torch.__version__, "emcl": emcl_kernels.__version__} | installed(),
    )
    made["machine"]["instruction set"] = torch.backends.cpu.get_cpu_capability()
    return made | {"method": METHOD, "targets": list(targets), "cases": list(cases)}


def installed() -> dict[str, str]:
    """Versions of the packages that are there."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pipeline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clips", type=Path, help="folder of videos")
    parser.add_argument("--captions", type=Path, help="JSON lines with captions; without it none are tokenized")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--frames", type=int, default=FRAMES)
    parser.add_argument("--size", type=int, default=SIZE)
    parser.add_argument("--pairs", type=int, default=PAIRS, help="of the training step")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    parser.add_argument("--name", help="of the record's files; by default <date>-<processor>-pipeline")
    parser.add_argument("--reduced", action="store_true", help="small models and galleries, and no record")
    options = parser.parse_args()
    if options.turns < 2:
        parser.error("a ratio with its spread needs at least two turns")
    if not options.clips.is_dir():
        parser.error(f"{options.clips} is no folder")
    torch.set_num_threads(1)

    name = None if options.reduced else name_of("pipeline", options.name, options.out)
    if name is None and not options.reduced:
        return 1

    cases: list[Record] = []
    targets: list[Record] = []
    for part in options.parts:
        of_part = MEASURES[part](options)
        cases += of_part[0]
        targets += of_part[1]
    for row in targets:
        print(f"{row['case']:<64} {row['measured']:<24} {row['target']:<5} {row['verdict']}")
    if name is not None:
        save(record_of(cases, targets), options.out, name)
        print(f"wrote {options.out / name}.json and .md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
