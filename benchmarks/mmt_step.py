"""A training step of MMT + EMCL with EMCL on and off: time in pairs of steps, and peak memory.

    PYTHONPATH=. python benchmarks/mmt_step.py [--turns 15] [--threads 2] [--name NAME] [--reduced]

The step is whole: both encoders, similarity, loss, backward, Adam. In each turn every way makes one step, in an order
that changes from turn to turn, on the same weights and inputs; the figure is the median over the turns of the ratio of
a turn's two steps. Weights are random and features are noise, on which a step's time does not depend. The record goes
to benchmarks/results, and is never edited. With --reduced, a small model shows whether all of it works, and no record
is written.
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

import torch
import transformers
from intervals import interval
from memory import high_water_kib
from record import RESULTS, Record, made_here, name_of, save
from timed_steps import measured, timed
from torch import Tensor

import emcl_kernels
from emcl_train.experts.choosing import em_sizes_of
from emcl_train.experts.mmt import MMTSizes, mmt_sizes, reduced
from emcl_train.models.experts.bert import build_bert
from emcl_train.models.experts.em import ExpertEM
from emcl_train.models.experts.mixture import GatedEmbedding
from emcl_train.models.experts.mmt import MultiModalTransformer
from emcl_train.models.experts.retrieval import MixtureModel
from emcl_train.recipes import in_mode, load_recipe
from emcl_train.training.margins import top_k_margin

PAIRS = 32
DATA_SET = "msrvtt"
MARGIN, TOP_K, RATE = 0.05, 1, 5e-5
MOST = 1.05
"""Times the step without EM that one with it may take; of memory likewise."""

ON, OFF, PLAIN = "ours", "EMCL off", "MMT"
WAYS = {
    ON: "MMT + EMCL as released",
    OFF: "the same model without EM: gated embeddings of the videos stay",
    PLAIN: "MMT: without EM and without those gates, whose weights then do not learn",
}

METHOD = (
    "float32, MSR-VTT's sizes, BERT's and the video transformer's weights random, all 30 steps of all experts there. "
    "“ours” is MMT + EMCL as released (K = 64, T = 5, seven problems of 64 rows × 512 channels); “EMCL off” is the "
    "same model and weights without EM; “MMT” has no gated embeddings of the videos either. A step is both encoders, "
    "similarity, loss (margin 0.05, k = 1), backward and Adam. Medians of wall-clock time; IQR is the interquartile "
    "range. A verdict is of pairs: the median over turns of the ratio of a turn's two steps, and of its logarithm's "
    "mean the 95 % interval. Peak memory is the high-water mark of a process of its own that makes two steps."
)


class Step:
    """One model, its optimizer and one batch, of which any way makes a step."""

    def __init__(self, sizes: MMTSizes, pairs: int) -> None:
        torch.manual_seed(0)
        config = in_mode(load_recipe(f"mmt-{DATA_SET}"), "train")
        self.system = MultiModalTransformer(sizes, build_bert(sizes.bert), gated_video=True)
        self.model = MixtureModel(self.system, ExpertEM(len(sizes.names), em_sizes_of(config))).train()
        learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(learning, lr=RATE)
        ids = torch.randint(1, sizes.bert.vocab_size, (pairs, sizes.words))
        self.batch = noise(sizes, pairs) | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def __call__(self, way: str) -> float:
        """A step. Returns: its loss."""
        self.become(way)
        features = self.model(self.batch)
        similarity = self.model.similarity(features.text, features.video, emcl=way == ON)
        loss = top_k_margin(similarity, margin=MARGIN, top_k=TOP_K)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def become(self, way: str) -> None:
        """The model with or without gates of the videos; texts without gates beside them are of length one."""
        self.system.gated_video = way != PLAIN
        for gate in self.system.text_gates.values():
            assert isinstance(gate, GatedEmbedding)
            gate.of_unit_length = way == PLAIN


def noise(sizes: MMTSizes, pairs: int) -> dict[str, Tensor]:
    """A batch of videos on which every expert has as many steps as fit, as a loader gives it."""
    widths = {name: expert.width for name, expert in sizes.experts.items()}
    features = {name: torch.randn(pairs, sizes.steps, width) for name, width in widths.items()}
    times = torch.arange(sizes.steps).expand(pairs, -1) + 2.5
    batch: dict[str, Tensor] = {}
    for name, values in features.items():
        batch[f"features/{name}"] = values
        batch[f"present/{name}"] = torch.ones(pairs, sizes.steps, dtype=torch.bool)
        batch[f"positions/{name}"] = times
        batch[f"maxpool/{name}"] = values.amax(1)
    return batch


def peak_of(way: str, options: argparse.Namespace) -> float:
    """Of a process of its own, which makes two steps."""
    command = [sys.executable, __file__, "--peak", way, "--threads", str(options.threads)]
    run = subprocess.run(
        command + ["--reduced"] * options.reduced, capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    return float(run.stdout.splitlines()[-1])


def record_of(seconds: dict[str, list[float]], peaks: dict[str, float], options: argparse.Namespace) -> Record:
    """What was measured, as records have it."""
    ways = measured(seconds, peaks)
    made = made_here(
        "A step of MMT + EMCL",
        f"{options.threads} threads",
        "PYTHONPATH=. python benchmarks/mmt_step.py",
        {"torch": torch.__version__, "transformers": transformers.__version__, "emcl": emcl_kernels.__version__},
    )
    made["machine"]["instruction set"] = torch.backends.cpu.get_cpu_capability()
    return made | {
        "method": METHOD,
        "targets": [target("time", paired(seconds, other), other) for other in (OFF, PLAIN)]
        + [target("peak memory", (peaks[ON] / peaks[other],), other) for other in (OFF, PLAIN)],
        "cases": [
            {"shape": f"MMT + EMCL step, {PAIRS} pairs, MSR-VTT's experts", "dtype": "float32", "ways": ways},
        ],
    }


def paired(seconds: dict[str, list[float]], other: str) -> tuple[float, float, float]:
    """Median of the ratios of the pairs, and the ends of the 95 % interval of their mean."""
    ratios = [on / off for on, off in zip(seconds[ON], seconds[other], strict=True)]
    _, low, high = interval(ratios)
    return statistics.median(ratios), low, high


def target(what: str, ratio: tuple[float, ...], other: str) -> Record:
    """A row of the record: only the first, with EM against without it, is judged."""
    spread = f" [{ratio[1]:.3f}, {ratio[2]:.3f}]" if len(ratio) > 1 else ""
    judged = other == OFF
    return {
        "case": f"{what}, ours ÷ {other}",
        "target": f"≤ {MOST}" if judged else "none",
        "measured": f"{ratio[0]:.3f}{spread}",
        "verdict": ("met" if ratio[0] <= MOST else "missed") if judged else "",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15, help="steps of each way")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    parser.add_argument("--name", help="of the record's files; by default <date>-<processor>-mmt-step")
    parser.add_argument("--reduced", action="store_true", help="a small model, and no record")
    parser.add_argument("--peak", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.turns < 2:
        parser.error("a ratio with its spread needs at least two turns")
    torch.set_num_threads(options.threads)
    sizes = mmt_sizes(DATA_SET)
    if options.reduced:
        sizes = reduced(sizes, width=128)

    recorded = not options.reduced and options.peak is None
    name = name_of("mmt-step", options.name, options.out) if recorded else None
    if name is None and recorded:
        return 1

    if options.peak is not None:
        step = Step(sizes, PAIRS)
        step(options.peak)
        step(options.peak)
        print(high_water_kib() / 1024)
        return 0

    peaks = {way: peak_of(way, options) for way in WAYS}
    record = record_of(timed(Step(sizes, PAIRS), list(WAYS), options.turns), peaks, options)
    for row in record["targets"]:
        print(f"{row['case']:<32} {row['measured']:<24} {row['target']:<8} {row['verdict']}")
    if name is not None:
        save(record, options.out, name)
        print(f"wrote {options.out / name}.json and .md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
