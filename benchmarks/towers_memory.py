"""A training step on towers of real size in less memory: peak memory and time of each way, and of ways together.

    PYTHONPATH=. .venv-lora/bin/python benchmarks/towers_memory.py [--towers clip|siglip] [--turns 3] [--threads 2]
        [--pairs N] [--name NAME] [--reduced]

`make test-lora` makes .venv-lora, which has peft. The step is whole: towers, temporal transformer, EMCL, loss,
backward, the optimizer. In each turn every way makes one step on the same batch, in an order that changes from turn to
turn; the figure is the median over the turns of the ratio of a turn's two steps. Weights and pictures are random, on
which a step's time does not depend. The record goes to benchmarks/results, and is never edited. With --reduced, small
towers show whether all of it works, and no record is written.
"""

import argparse
import statistics
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from intervals import interval
from memory import high_water_kib
from record import RESULTS, Record, made_here, name_of, save
from timed_steps import measured, timed
from torch import Tensor

import emcl_kernels
from emcl_train.config import ModelConfig, RunConfig, TrainConfig
from emcl_train.extras import require_packages
from emcl_train.models import RetrievalModel
from emcl_train.models.retrieval import build_model
from emcl_train.runs.clip_config import towers_of_fields
from emcl_train.training.compiling import without_compiling
from emcl_train.training.losses import symmetric_info_nce
from emcl_train.training.memory import save_memory
from emcl_train.training.optim import build_optimizer
from emcl_train.training.start import installed_version

WORDS, FRAMES = 32, 12
RANK = 8
PAIRS = {"clip": 4, "siglip": 2}
"""Of a step, so that one takes ten seconds on two cores."""
TITLES = {"clip": "CLIP ViT-B/32", "siglip": "SigLIP base, patches of 16 pixels"}

PLAIN, AGAIN, HALF, COMPILED, LORA, BOTH = "plain", "checkpointing", "bf16", "compiled", "LoRA", "LoRA, checkpointing"
WAYS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    AGAIN: {"gradient_checkpointing": True},
    HALF: {"precision": "bf16"},
    COMPILED: {"compile_towers": True},
    LORA: {"lora": RANK},
    BOTH: {"lora": RANK, "gradient_checkpointing": True},
}
"""Settings of `train` by the name of a way."""

METHOD = (
    "Towers of real size, random weights, {frames} frames a clip, captions of {words} tokens, {pairs} pairs a step: "
    "the temporal transformer, EMCL-Net's head, EMCL, the contrastive loss, AdamW. “plain” trains all weights in "
    "float32; the others are that with --train.gradient-checkpointing, --train.precision bf16, --train.compile-towers, "
    "--train.lora {rank}, and the last with checkpointing. Medians of wall-clock time; IQR is the interquartile range. "
    "The ratios are of pairs: the median over turns of the ratio of a turn's two steps, and of its logarithm's mean "
    "the 95 % interval. Peak memory is the high-water mark of a process of its own that makes two steps; compiled, it "
    "has the compiler's memory too."
)


WITH_HALF = ("avx512_bf16", "amx_bf16", "bf16")
"""Flags of processors that have products in bf16, as Linux names them."""


def left_out() -> dict[str, str]:
    """Ways that are not measured here, and why."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set(WITH_HALF)
    if flags.isdisjoint(WITH_HALF):
        return {HALF: "this processor has no products in bf16, and a step takes minutes"}
    return {}


class Words:
    """What a model has to know of a tokenizer."""

    eos_token_id = 1
    pad_token_id = 1

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number


def described(towers: str, *, reduced: bool) -> dict[str, Any]:
    """The towers, as a run's folder describes them: the library's usual sizes are those of the base models."""
    kinds = {"clip": transformers.CLIPConfig, "siglip": transformers.SiglipConfig}
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = layers | {"image_size": 32, "patch_size": 16}
    small: dict[str, Any] = {"text_config": layers | {"vocab_size": 64, "projection_size": 32}, "vision_config": vision}
    if towers == "clip":
        small |= {"projection_dim": 32}
        del small["text_config"]["projection_size"]
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    small["text_config"] |= ids
    sizes = kinds[towers](**small) if reduced else kinds[towers]()
    mean = [0.5, 0.5, 0.5]
    pictures = {"image_size": sizes.vision_config.image_size, "resize": "squash-bicubic", "mean": mean, "std": mean}
    return towers_of_fields(sizes.to_dict() | {"pictures": pictures}, "the benchmark")


class Step:
    """The models that ways need, and one batch, of which any way makes a step.

    Ways that train all weights share one model, and so do those with adapters.
    """

    def __init__(self, towers: dict[str, Any], pairs: int, ways: list[str]) -> None:
        torch.manual_seed(0)
        self.models: dict[int, RetrievalModel] = {}
        self.optimizers: dict[int, torch.optim.Optimizer] = {}
        vocabulary = towers["text_config"]["vocab_size"]
        for rank in {WAYS[way].get("lora", 0) for way in ways}:
            config = RunConfig(train=TrainConfig(lora=rank), model=ModelConfig())
            config.data.num_frames = FRAMES
            config.data.max_words = words_of(towers)
            config.data.image_size = towers["vision_config"]["image_size"]
            model = build_model(config, Words(vocabulary), clip_config=towers)
            compiled = COMPILED in ways and rank == 0
            save_memory(model.towers, TrainConfig(lora=rank, compile_towers=compiled))
            self.models[rank] = model.train()
            self.optimizers[rank] = build_optimizer(model, config)

        words, size = config.data.max_words, config.data.image_size
        ids = torch.randint(2, vocabulary, (pairs, words))
        ids[:, -1] = Words.eos_token_id
        self.batch: dict[str, Tensor] = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "frames": torch.randint(0, 256, (pairs, FRAMES, 3, size, size), dtype=torch.uint8),
            "frame_mask": torch.ones(pairs, FRAMES, dtype=torch.bool),
        }

    def __call__(self, way: str) -> float:
        """A step. Returns: its loss."""
        settings = WAYS[way]
        rank = settings.get("lora", 0)
        model, optimizer = self.models[rank], self.optimizers[rank]
        if settings.get("gradient_checkpointing"):
            model.towers.recompute_layers()
        else:
            # Its hooks stay otherwise, one more at each time, and what was compiled is compiled again for them.
            model.towers.inner.activation_checkpointing_disable()
            model.towers.inner.disable_input_require_grads()

        of_half = torch.autocast("cpu", torch.bfloat16) if settings.get("precision") == "bf16" else nullcontext()
        as_written: AbstractContextManager[None] = nullcontext() if way == COMPILED else without_compiling()
        with as_written:
            with of_half:
                features = model(self.batch)
            similarity = model.similarity(features.text, features.video, emcl=True)
            loss = symmetric_info_nce(similarity, features.logit_scale)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()


def words_of(towers: dict[str, Any]) -> int:
    """Tokens of a caption: SigLIP's are always as long as the tower takes."""
    longest = int(towers["text_config"]["max_position_embeddings"])
    return longest if towers["model_type"] == "siglip" else min(WORDS, longest)


def peak_of(way: str, options: argparse.Namespace) -> float:
    """MiB of a process of its own, which makes two steps."""
    command = [sys.executable, __file__, "--peak", way, "--threads", str(options.threads), "--towers", options.towers]
    command += ["--pairs", str(options.pairs)] + ["--reduced"] * options.reduced
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path.cwd())
    return float(run.stdout.splitlines()[-1])


def record_of(seconds: dict[str, list[float]], peaks: dict[str, float], options: argparse.Namespace) -> Record:
    """What was measured, as records have it."""
    ways = measured(seconds, peaks)
    ways |= {way: {"failed": f"not measured: {reason}"} for way, reason in left_out().items() if way not in ways}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    made = made_here(
        f"A training step of {TITLES[options.towers]} in less memory",
        f"{options.threads} threads",
        "PYTHONPATH=. .venv-lora/bin/python benchmarks/towers_memory.py",
        versions | {"peft": installed_version("peft"), "emcl": emcl_kernels.__version__},
    )
    made["machine"]["instruction set"] = torch.backends.cpu.get_cpu_capability()
    words = words_of(described(options.towers, reduced=False))
    shape = f"{TITLES[options.towers]} step, {options.pairs} pairs of {FRAMES} frames"
    return made | {
        "method": METHOD.format(frames=FRAMES, words=words, pairs=options.pairs, rank=RANK),
        "targets": [row for way in seconds if way != PLAIN for row in rows_of(way, seconds, peaks)],
        "cases": [{"shape": shape, "dtype": "float32", "ways": ways}],
    }


def rows_of(way: str, seconds: dict[str, list[float]], peaks: dict[str, float]) -> list[Record]:
    """Time and memory of a way beside those of the plain one; nothing is judged."""
    ratios = [here / plain for here, plain in zip(seconds[way], seconds[PLAIN], strict=True)]
    _, low, high = interval(ratios)
    of_time = f"{statistics.median(ratios):.3f} [{low:.3f}, {high:.3f}]"
    unjudged = {"target": "none", "verdict": ""}
    return [
        {"case": f"time, {way} ÷ {PLAIN}", "measured": of_time} | unjudged,
        {"case": f"peak memory, {way} ÷ {PLAIN}", "measured": f"{peaks[way] / peaks[PLAIN]:.3f}"} | unjudged,
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--towers", choices=TITLES, default="clip")
    parser.add_argument("--turns", type=int, default=3, help="steps of each way")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, help="of a step; by default 4 for clip, 2 for siglip")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    parser.add_argument("--name", help="of the record's files; by default <date>-<processor>-towers-memory[-siglip]")
    parser.add_argument("--reduced", action="store_true", help="small towers, and no record")
    parser.add_argument("--peak", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.turns < 2:
        parser.error("a ratio with its spread needs at least two turns")
    options.pairs = options.pairs or (3 if options.reduced else PAIRS[options.towers])
    torch.set_num_threads(options.threads)
    require_packages("lora")
    towers = described(options.towers, reduced=options.reduced)

    if options.peak is not None:
        step = Step(towers, options.pairs, [options.peak])
        step(options.peak)
        step(options.peak)
        print(high_water_kib() / 1024)
        return 0

    kind = "towers-memory" + ("" if options.towers == "clip" else f"-{options.towers}")
    name = None if options.reduced else name_of(kind, options.name, options.out)
    if name is None and not options.reduced:
        return 1
    ways = [way for way in WAYS if way not in left_out()]
    peaks = {way: peak_of(way, options) for way in ways}
    record = record_of(timed(Step(towers, options.pairs, ways), ways, options.turns), peaks, options)
    for row in record["targets"]:
        print(f"{row['case']:<44} {row['measured']}")
    for way, peak in peaks.items():
        print(f"{way:<20} {peak:.0f} MiB")
    if name is not None:
        save(record, options.out, name)
        print(f"wrote {options.out / name}.json and .md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
