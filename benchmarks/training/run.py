"""Train every row of the table with every seed: python -m benchmarks.training.run; it goes on where it was stopped.

Each finished run is one line of results/runs.jsonl; benchmarks/training/table.py makes the table of them.
"""

import argparse
import json
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.training.variants import AFTERWARDS, BASELINE, VARIANTS, Variant, run_config
from emcl_kernels import EMCL
from emcl_train.config import RunConfig
from emcl_train.evaluation.encode import embed_split
from emcl_train.evaluation.similarities import similarities
from emcl_train.evaluation.table import Line, lines_of
from emcl_train.models import PairModel, RetrievalModel
from emcl_train.runs import files as run_files
from emcl_train.runs.state import read_weights
from emcl_train.training.start import environment, open_run_folder, seed_everything, start_processes
from emcl_train.training.trainer import Run
from emcl_train.weights.keys import put_weights

RESULTS = Path(__file__).parent / "results"


class VariantRun(Run):
    """A run in which something else may stand in EMCL's place."""

    variant: Variant

    def build_model(self) -> PairModel:
        model = super().build_model()
        assert isinstance(model, RetrievalModel)
        if self.variant.layer is not None:
            model.emcl = self.variant.layer()  # type: ignore[assignment]
        return model


def train_variant(variant: Variant, config: RunConfig) -> list[dict[str, Any]]:
    """One run, and its row of the table; for the baseline the rows of EMCL at inference as well."""
    start = time.perf_counter()
    accelerator = start_processes(config)
    open_run_folder(config)
    seed_everything(config.train.seed, accelerator.device)
    VariantRun.variant = variant
    run = VariantRun(config, accelerator, Console(quiet=True))
    run.fit()
    model = run.model
    assert isinstance(model, RetrievalModel)
    put_weights(model, read_weights(config.out), config.out)
    embeddings = embed_split(model, run.annotations.test, run.tokenizer, config, accelerator.device)

    def row(config: RunConfig) -> Line:
        return lines_of(similarities(model.eval(), embeddings, config), embeddings.caption_clip, config)[0]

    seconds, seed = round(time.perf_counter() - start, 1), config.train.seed
    rows = [
        asdict(row(config))
        | {"name": variant.name, "seed": seed, "seconds": seconds, "epoch": run.selection.best_epoch}
    ]
    if variant.name == BASELINE:
        for name, settings in AFTERWARDS.items():
            weight = settings["weight"]
            torch.manual_seed(seed)
            model.emcl = EMCL(
                num_bases=int(settings["num_bases"]),
                num_iters=int(settings["num_iters"]),
                temperature=settings["temperature"],
                residual_weight=weight,
                scale="release" if weight == 4.0 else "relative",
            )
            inference = replace(config, emcl=replace(config.emcl, mode="inference"))
            rows.append(asdict(row(inference)) | {"name": name, "seed": seed, "epoch": run.selection.best_epoch})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to this, exclusive")
    parser.add_argument("--only", help="rows whose name contains this")
    parser.add_argument("--data", type=Path, default=Path("data/shapes-small"), help="where the clips are rendered")
    parser.add_argument("--work", type=Path, default=Path("build/training"), help="where the runs are kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the work of a small step is too little to share; start two of these instead
    path = RESULTS / "runs.jsonl"
    done = (
        {(line["name"], line["seed"]) for line in map(json.loads, path.read_text().splitlines())}
        if path.exists()
        else set()
    )
    chosen = [variant for variant in VARIANTS if not arguments.only or arguments.only in variant.name]
    for seed in range(arguments.seeds):
        for number, variant in enumerate(chosen):
            if (variant.name, seed) in done:
                continue
            out = arguments.work / f"{VARIANTS.index(variant):02}-{seed}"
            shutil.rmtree(out, ignore_errors=True)
            config = run_config(variant, seed=seed, out=out, data=arguments.data)
            rows = train_variant(variant, config)
            for row in rows:
                run_files.append_line(path, row)
            first = rows[0]
            print(
                f"seed {seed}, {number + 1}/{len(chosen)} {variant.name}: "
                f"R@1 {first['text_to_video']['R@1']:.1f}, {first['seconds']:.0f} s",
                flush=True,
            )
    if not (RESULTS / "environment.json").exists():
        config = run_config(VARIANTS[0], seed=0, out=arguments.work, data=arguments.data)
        run_files.write_json_atomic(RESULTS / "environment.json", environment(config, torch.device("cpu")))


if __name__ == "__main__":
    main()
