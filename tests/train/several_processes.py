"""What every process of a run does in the tests, one or several: a step of each kind, and a whole run.

As a script: `torchrun --nproc-per-node 2 several_processes.py ROOT OUT`.
"""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from tiny_run import tiny_run
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from emcl_train.config import EMCLConfig, RunConfig
from emcl_train.evaluation.encode import _Encoding
from emcl_train.processes import leave
from emcl_train.training import trainer
from emcl_train.training.losses import symmetric_info_nce

# Tokens are many rows: at the others' temperature rounding alone would move the gradient by 2e-5.
MANY_ROWS = {"temperature": 0.2}
CASES: dict[str, dict[str, Any]] = {
    "identity": {},
    "linear": {"gradient": "linear"},
    "full": {"gradient": "full"},
    "relative": {"scale": "relative", "residual_weight": -1.0},
    "relative-full": {"scale": "relative", "residual_weight": -1.0, "gradient": "full"},
    "off": {"mode": "off"},
    "mean": {"head": "mean"},
    "sigmoid": {"head": "mean", "loss": "sigmoid"},
    "mean-full": {"head": "mean", "gradient": "full", "scale": "relative", "residual_weight": -1.0},
    "wti": {"head": "wti"},
    "wti-full": {"head": "wti", "gradient": "full", "scale": "relative", "residual_weight": -0.5, **MANY_ROWS},
    "wti-off": {"head": "wti", "mode": "off"},
}


def step_config(root: Path, out: Path, case: str, **train: object) -> RunConfig:
    """One step of eight pairs. The softmax of the E-step is far from uniform, and the reconstruction from small."""
    config = tiny_run(root, out / case, max_steps=1, **train)
    config.emcl = EMCLConfig(num_bases=4, num_iters=3, temperature=0.02, residual_weight=-20.0, init="normal")
    config.train.decorrelation_weight, config.train.decorrelation_off_diagonal = 0.1, 0.5
    for name, value in CASES[case].items():
        section = {"head": config.model, "loss": config.train}.get(name, config.emcl)
        setattr(section, name, value)
    return config


STORED_SCALE = 4.605170249938965
"""CLIP's logit scale in OpenAI's weights: float32(ln 100), whose exp is above 100."""


def at_scale(value: float) -> Callable[[trainer.Run], None]:
    """Let a run start with this logit scale."""

    def change(run: trainer.Run) -> None:
        torch.nn.init.constant_(run.model.towers.clip.logit_scale, float(value))

    return change


class Exchanges(TorchDispatchMode):
    """Name and shape of what this process puts into each collective."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, list[int]]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d":
            given = args[1] if "gather_" in str(function) or "scatter_" in str(function) else args[0]
            while isinstance(given, list):
                given = given[0]
            self.seen.append((function._opname, list(given.shape)))
        return function(*args, **(kwargs or {}))


def one_step(config: RunConfig, change=lambda run: None, *, frozen: bool = False) -> dict[str, Any]:
    """Loss, gradients of all parameters before they are clipped, maintained bases, and what was exchanged.

    Args:
        config: of the run.
        change: changes the run before its step.
        frozen: some parameters have no gradient, and are left out.
    """
    accelerator = trainer.start_processes(config)
    if accelerator.is_main_process:
        trainer.open_run_folder(config)
    accelerator.wait_for_everyone()
    trainer.seed_everything(config.train.seed, accelerator.device)
    run = trainer.Run(config, accelerator, Console(file=io.StringIO()))
    change(run)
    run.wrapped.train()
    gradients = {}

    def keep_gradients(*_):
        learning = [(name, value) for name, value in run.model.named_parameters() if value.requires_grad or not frozen]
        gradients.update({name: value.grad.clone() for name, value in learning})

    accelerator.clip_grad_norm_ = keep_gradients
    batch = next(iter(run.loader(epoch=0)))
    with Exchanges() as exchanges:
        loss = run.training_step(batch)
    return {
        "loss": loss,
        "gradients": gradients,
        "bases": run.model.emcl.bases.clone(),
        "logit_scale": run.model.logit_scale.item(),
        "exchanges": exchanges.seen,
        "pairs": batch["index"],
    }


def spread_loss(rank: int, world: int) -> tuple[float, Tensor]:
    """The loss of 6 pairs with logits up to thousands, and its gradient to this process's similarities."""
    similarity = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = similarity[rank * 6 // world : (rank + 1) * 6 // world].requires_grad_()
    loss = symmetric_info_nce(rows, torch.tensor(1000.0, dtype=torch.float64))
    loss.backward()
    return loss.item(), rows.grad


def whole_run_config(root: Path, out: Path) -> RunConfig:
    """With the optimizer of the recipes."""
    return tiny_run(root, out / "run", optimizer="bertadam", frozen="conv1")


def whole_run(root: Path, out: Path, batch_size: int = 8) -> None:
    """With so many clips and captions at a time in validations and in the evaluation."""
    trainer.write_report = lambda out: out  # its plots take longer than all the rest
    config = whole_run_config(root, out)
    config.eval.batch_size = batch_size
    trainer.train(config, Console(file=io.StringIO()))


def main(root: Path, out: Path) -> None:
    found = {case: one_step(step_config(root, out, case)) for case in CASES}
    found["chunks"] = one_step(step_config(root, out / "chunks", "full", chunks=2))
    found["scale"] = one_step(step_config(root, out / "scale", "identity", lr=10.0), at_scale(STORED_SCALE))
    found["wti-chunks"] = one_step(step_config(root, out / "chunks", "wti-full", chunks=2))
    rank, world = dist.get_rank(), dist.get_world_size()
    found["loss"] = spread_loss(rank, world)
    backend = dist.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
    found["patience"] = backend.options._timeout.total_seconds()

    # What this process encodes of each validation.
    found["validated"] = []
    real = _Encoding.parts

    def parts(encoding: _Encoding, clips: range, captions: range) -> Any:
        if encoding.split.name == "val":
            found["validated"].append([len(clips), captions.start, captions.stop])
        return real(encoding, clips, captions)

    _Encoding.parts = parts
    whole_run(root, out, batch_size=3)
    torch.save(found, out / f"process{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    leave()
