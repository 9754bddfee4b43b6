"""What is measured on a GPU: em_project, em_fit and the pooled similarities, and the list of all cases."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch_way
from cases import ITERS
from gpu_case import WEIGHT, Case, Wrap, bindings, clustered, start
from gpu_step import StepRun
from gpu_targets import Target
from torch import Tensor
from ways import (
    in_blocks,
    ours,
    ours_in_blocks,
    ours_without_em,
    project_forward,
    project_step,
    release,
    training_step,
)

from emcl_kernels import em_fit, em_project, reference
from emcl_kernels.ops.pooled import KEPT_PRODUCTS
from emcl_kernels.testing import relative_error


@dataclass
class ProjectRun(Case):
    """em_project of one or many problems; `full`: forward and backward through every iteration.

    The release takes many problems one after the other, as in its evaluation.
    """

    rows: int = 0
    width: int = 512
    bases: int = 32
    problems: int = 1
    full: bool = False

    def __post_init__(self) -> None:
        if self.problems > 1:
            self.baselines = ("loop", "batched", "loop compiled", "torch compiled")

    @property
    def shape(self) -> str:
        many = f" × {self.problems}" if self.problems > 1 else ""
        return f"em_project [{self.rows}, {self.width}]{many} " + (
            "forward + backward full" if self.full else "forward"
        )

    def inputs(self, device: str) -> tuple[Tensor, ...]:
        leading = (self.problems,) if self.problems > 1 else ()
        x = clustered(*leading, self.rows, self.width, device=device, dtype=self.dtype)
        return x, start(self.bases, device, self.dtype)

    def run(self, kind: str, inputs: tuple[Tensor, ...], wrap: Wrap) -> Callable[[], Any]:
        if kind == "torch":
            return (torch_way.project_step if self.full else torch_way.project)(wrap, *inputs)
        function = em_project if kind == "ours" else wrap(reference.em_project_loop)
        if kind == "loop" and self.problems > 1:
            function = one_problem_after_the_other(function)
        return (project_step if self.full else project_forward)(function, *inputs)

    def errors(self, kind: str, inputs: tuple[Tensor, ...], outputs: Any) -> dict[str, float]:
        """Of the reconstruction, in some rows of some problems; and with `full` of d_x, all of it, less d_y."""
        x, init = inputs
        if self.full:
            y, d_x, _ = project_step(reference.em_project_loop, x.double(), init.double())()
            return {
                "y": relative_error(outputs[0].double() - x, y - x),
                "d_x": relative_error(outputs[1].double() - 1, d_x - 1),
            }
        few = slice(None) if self.problems == 1 else slice(None, None, max(1, self.problems // 8))
        gram, colsum = moments64(x[few])
        logits = reference.start_logits(x[few], colsum, init.double())
        fitted = reference.em_fit(gram, logits, num_iters=ITERS, temperature=1.0)
        some = x[few][..., -4096:, :].double()
        truth = reference.em_reconstruct(some, *fitted, weight=WEIGHT) - some
        return {"y": relative_error(outputs[0][few][..., -4096:, :].double() - some, truth)}

    def cost(self, kind: str) -> dict[str, float] | None:
        if self.full or (model := bindings()) is None:
            return None
        form = "loop" if kind in ("loop", "batched") else "gram"
        cost = model.plan(self.rows, self.width, self.bases, ITERS, self.type_name)[form]
        return {name: self.problems * value for name, value in cost.items()}

    def least_bytes(self) -> float | None:
        return None if self.full else 3.0 * self.problems * self.rows * self.width * self.dtype.itemsize


def one_problem_after_the_other(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: Tensor, init: Tensor) -> tuple[Tensor, ...]:
        results = [function(problem, init) for problem in x]
        return tuple(torch.stack(parts) for parts in zip(*results, strict=True))

    return run


def moments64(x: Tensor) -> tuple[Tensor, Tensor]:
    """reference.em_moments in float64, in pieces."""
    width = x.shape[-1]
    gram = torch.zeros(*x.shape[:-2], width, width, device=x.device, dtype=torch.float64)
    colsum = torch.zeros(*x.shape[:-2], width, device=x.device, dtype=torch.float64)
    for part in x.split(1 << 17, dim=-2):
        part_gram, part_colsum = reference.em_moments(part.double())
        gram += part_gram
        colsum += part_colsum
    return gram, colsum


@dataclass
class FitRun(Case):
    """em_fit alone, on the Gram matrix of some rows. "loop" is the same Gram form in plain torch."""

    rows: int = 2048
    width: int = 512
    bases: int = 32

    @property
    def shape(self) -> str:
        return f"em_fit D={self.width} K={self.bases}, {ITERS} iterations"

    def inputs(self, device: str) -> tuple[Tensor, ...]:
        gram, colsum = moments64(clustered(self.rows, self.width, device=device, dtype=torch.float32))
        logits = colsum.unsqueeze(-1) * start(self.bases, device, torch.float64)
        return gram.float(), logits.float()

    def run(self, kind: str, inputs: tuple[Tensor, ...], wrap: Wrap) -> Callable[[], Any]:
        if kind == "torch":
            return torch_way.fit(wrap, *inputs)
        function = em_fit if kind == "ours" else wrap(reference.em_fit)

        def run() -> object:
            with torch.no_grad():
                return function(*inputs, num_iters=ITERS, temperature=1.0)

        return run

    def errors(self, kind: str, inputs: tuple[Tensor, ...], outputs: Any) -> dict[str, float]:
        gram, logits = (tensor.double() for tensor in inputs)
        truth = reference.em_fit(gram, logits, num_iters=ITERS, temperature=1.0)
        names = ("responsibilities", "scale")
        return {name: relative_error(a, b) for name, a, b in zip(names, outputs, truth, strict=True)}

    def cost(self, kind: str) -> dict[str, float] | None:
        """(GM) of csrc/plan.h."""
        square = float(self.width**2)
        return {"flops": 2 * square * self.bases * ITERS, "bytes": 4 * square * ITERS}


@dataclass
class PooledRun(Case):
    """pooled_similarity of as many texts as videos, forward and backward, with EMCL and without it."""

    pairs: int = 0
    frames: int = 12
    width: int = 512
    bases: int = 32

    def __post_init__(self) -> None:
        self.kinds = ("ours", "EMCL off")

    @property
    def shape(self) -> str:
        return f"pooled_similarity A=B={self.pairs} F={self.frames} D={self.width} forward + backward"

    def inputs(self, device: str) -> tuple[Tensor, ...]:
        return pooled_inputs(self.pairs, self.frames, self.width, self.bases, device, self.dtype)

    def run(self, kind: str, inputs: tuple[Tensor, ...], wrap: Wrap) -> Callable[[], Any]:
        if kind == "torch":
            return torch_way.training_step(wrap, *inputs)
        function = {"loop": release, "ours": ours, "EMCL off": ours_without_em}[kind]
        return training_step(wrap(function) if kind == "loop" else function, inputs)

    def errors(self, kind: str, inputs: tuple[Tensor, ...], outputs: Any) -> dict[str, float]:
        """Of the first pairs' similarity and gradients, which EM over all rows goes into.

        The loss is the sum over pairs, so with the map a constant a pair's gradient is its own.
        """
        some = min(self.pairs, 128)
        text, frames, mask, _ = inputs
        fitted = None if kind == "EMCL off" else self.fitted64(inputs)
        t, f = (tensor[:some].double().requires_grad_() for tensor in (text, frames))
        weights = reference.frame_weights(t, f, mask[:some], pooling_temperature=3.0)
        pooled = torch.einsum("abf,bfd->abd", weights, f)
        x, y = t, pooled
        if fitted is not None:  # gradient "identity": the reconstruction is a constant
            x, y = (
                z + (reference.em_reconstruct(z, *fitted, weight=WEIGHT) - z).detach()
                for z in (t, pooled.flatten(0, 1))
            )
        similarity = torch.einsum("ad,abd->ab", reference.unit(x), reference.unit(y).view_as(pooled))
        truth = (similarity, *torch.autograd.grad(similarity.diagonal().sum(), (t, f)))
        actual = (outputs[0][:some, :some], outputs[1][:some], outputs[2][:some])
        names = ("similarity", "d_text", "d_frames")
        return {name: relative_error(a, b) for name, a, b in zip(names, actual, truth, strict=True)}

    def fitted64(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """The map that EM over all rows fits, from F×F weights per video (docs/math.md, PG)."""
        text, frames, mask, init = inputs
        t = text.double()
        gram, colsum = reference.em_moments(t)
        for f, m in zip(frames.double().split(256), mask.split(256), strict=True):
            weights = reference.frame_weights(t, f, m, pooling_temperature=3.0)
            squares = torch.einsum("abf,abg->bfg", weights, weights)
            gram += torch.einsum("bfd,bfg,bge->de", f, squares, f)
            colsum += torch.einsum("abf,bfd->d", weights, f)
        return reference.em_fit(gram, colsum.unsqueeze(-1) * init.double(), num_iters=ITERS, temperature=1.0)

    def cost(self, kind: str) -> dict[str, float] | None:
        if kind == "loop" or (model := bindings()) is None:
            return None
        bases = 0 if kind == "EMCL off" else self.bases
        kept = self.pairs * self.pairs * self.frames <= KEPT_PRODUCTS
        parts = model.pooled_cost(self.pairs, self.pairs, self.frames, self.width, bases, ITERS, self.type_name, kept)
        return {name: sum(part[name] for part in parts.values()) for name in ("flops", "bytes")}


def pooled_inputs(
    pairs: int, frames: int, width: int, bases: int, device: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """text, frames, frame_mask, init."""
    text = clustered(pairs, width, device=device, dtype=dtype, seed=1)
    clips = clustered(pairs, frames, width, device=device, dtype=dtype, seed=2)
    return text, clips, torch.ones(pairs, frames, dtype=torch.bool, device=device), start(bases, device, dtype)


@dataclass
class BlocksRun(Case):
    """pooled_similarity_blocks: the release's evaluation, one EM in each block of texts and videos."""

    pairs: int = 0
    frames: int = 12
    width: int = 512
    bases: int = 32
    em_block: int = 32

    @property
    def shape(self) -> str:
        return f"pooled_similarity_blocks {self.pairs} × {self.pairs} F={self.frames} em_block={self.em_block}"

    def inputs(self, device: str) -> tuple[Tensor, ...]:
        return pooled_inputs(self.pairs, self.frames, self.width, self.bases, device, self.dtype)

    def run(self, kind: str, inputs: tuple[Tensor, ...], wrap: Wrap) -> Callable[[], Any]:
        one_block = None if kind == "ours" else wrap(release if kind == "loop" else torch_way.block)
        text, frames, mask, init = inputs

        def run() -> tuple[Tensor]:
            with torch.no_grad():
                if one_block is not None:
                    return (in_blocks(one_block, text, frames, mask, init, self.em_block),)
                return (ours_in_blocks(text, frames, mask, init, self.em_block),)

        return run

    def errors(self, kind: str, inputs: tuple[Tensor, ...], outputs: Any) -> dict[str, float]:
        """Of the first and the last blocks of texts with the last blocks of videos, which are smaller."""
        text, frames, mask, init = inputs
        videos = slice(-(self.pairs % self.em_block) - self.em_block, None)
        errors = {}
        for name, texts in (("first", slice(self.em_block)), ("last", videos)):
            parts = (text[texts].double(), frames[videos].double(), mask[videos], init.double())
            errors[name] = relative_error(outputs[0][texts, videos], in_blocks(release, *parts, self.em_block))
        return errors

    def cost(self, kind: str) -> dict[str, float] | None:
        if kind == "loop" or (model := bindings()) is None:
            return None
        whole, rest = divmod(self.pairs, self.em_block)
        total = {"flops": 0.0, "bytes": 0.0}
        for texts, t in ((self.em_block, whole), (rest, 1)):
            for videos, v in ((self.em_block, whole), (rest, 1)):
                if texts and videos:
                    block = model.pooled_cost(
                        texts, videos, self.frames, self.width, self.bases, ITERS, self.type_name
                    )["forward"]
                    total = {name: total[name] + t * v * block[name] for name in total}
        return total


# The bounds are for an H200; those of whole steps come last, for which transformers has to be there. Cases with bounds
# come first: time may run out.
CASES: tuple[Case, ...] = (
    ProjectRun("project-16512", targets=(Target("eager", 6), Target("compiled", 4)), rows=16512),
    ProjectRun("project-1056x1024", targets=(Target("eager", 50), Target("limit", 4)), rows=1056, problems=1024),
    ProjectRun("project-1M-bf16", dtype=torch.bfloat16, targets=(Target("limit", 2),), rows=1 << 20),
    FitRun("fit-512", targets=(Target("µs", 40),), flush=False, copies=10, seconds=3),
    PooledRun("pooled-1024", targets=(Target("eager", 20), Target("EMCL off", 1.3)), pairs=1024),
    PooledRun(
        "pooled-8192-bf16",
        dtype=torch.bfloat16,
        targets=(Target("ms", 30, otherwise=Target("ms", 55, gb=4)),),
        pairs=8192,
        captured=False,
        seconds=15,
    ),
    *(ProjectRun(f"project-{rows}", rows=rows, seconds=3) for rows in (256, 1056, 2000, 65536)),
    *(ProjectRun(f"project-{rows}-full", rows=rows, full=True, seconds=4) for rows in (256, 1056, 2000, 65536)),
    BlocksRun("blocks-1000", pairs=1000, seconds=20),
    StepRun("step-head-128", whole=False, seconds=10),
    StepRun("step-whole-128", targets=(Target("EMCL off", 1.01),), captured=False, seconds=30),
)
