"""Script for test_on_gpu.py: a step of two processes on one GPU against the same step of one process.

torchrun --nproc-per-node 2 ddp_step.py BACKEND DEVICE. They talk through gloo, since NCCL takes one process a GPU.
"""

import copy
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from emcl_kernels import EMCL, use_backend
from emcl_kernels.testing import assert_close, clustered_rows
from emcl_train.processes import leave, sum_over_processes

PAIRS = 12


class Towers(nn.Module):
    def __init__(self, gradient: str) -> None:
        super().__init__()
        self.text, self.video = nn.Linear(24, 16), nn.Linear(24, 16)
        self.emcl = EMCL(num_bases=5, init="normal", gradient=gradient)  # type: ignore[arg-type]

    def forward(
        self, text: Tensor, frames: Tensor, mask: Tensor, add_up: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        return 10 * self.emcl.pooled_similarity(self.text(text), self.video(frames), mask, add_up=add_up)


def main(device: str) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    compare(device)
    leave()
    if rank == 0:  # one writes: the lines of two may mix. torchrun's exit code speaks for the other
        print("equal")


def compare(device: str) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    text, frames = (clustered_rows(*shape, 24).float().to(device) for shape in ((PAIRS,), (PAIRS, 3)))
    mask, target = torch.ones(PAIRS, 3, device=device).bool(), torch.arange(PAIRS, device=device)
    own = slice(rank * PAIRS // world, (rank + 1) * PAIRS // world)
    for gradient in ("identity", "linear", "full"):
        alone = Towers(gradient).to(device)
        together = copy.deepcopy(alone)
        wrapped = DistributedDataParallel(together)

        expected = nn.functional.cross_entropy(alone(text, frames, mask), target)
        expected.backward()
        similarity = wrapped(text[own], frames, mask, sum_over_processes)
        loss = nn.functional.cross_entropy(similarity, target[own], reduction="sum") / PAIRS
        loss.backward()  # each process has its part of the loss, and DDP takes the mean over processes

        assert_close("loss", sum_over_processes(loss.detach()), expected, 1e-5)
        for (name, p), q in zip(alone.named_parameters(), together.parameters(), strict=True):
            assert p.grad is not None
            assert q.grad is not None
            assert_close(f"{gradient} {name}", world * q.grad, p.grad, 1e-4)
        assert_close("bases", together.emcl.bases, alone.emcl.bases, 1e-5)


if __name__ == "__main__":
    torch.manual_seed(0)
    with use_backend(sys.argv[1]):  # type: ignore[arg-type]
        main(sys.argv[2])
