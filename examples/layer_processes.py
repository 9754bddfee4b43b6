"""EMCL in several processes, under DistributedDataParallel: one step whose loss and gradients are those of one process.

    torchrun --nproc-per-node 2 examples/layer_processes.py

Two ways to run one EM over the rows of all: gather the rows and call the layer, or add up their moments and map only
the rows of this process. Both are exact, for every gradient= of the layer.
"""

import sys
from typing import Any

import torch
import torch.distributed as dist

# DistributedDataParallel imports this. It keeps the group that there is when it is imported, and that one's threads, of
# which one may abort the process at its end. So it is imported before there is a group.
import torch.distributed.nn.functional
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.nn.parallel import DistributedDataParallel

from emcl_kernels import EMCL

PAIRS = 32


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.text, self.video = nn.Linear(48, 64), nn.Linear(96, 64)

    def forward(self, captions: Tensor, clips: Tensor) -> tuple[Tensor, Tensor]:
        return normalize(self.text(captions), dim=-1), normalize(self.video(clips), dim=-1)


def gathered(own: Tensor) -> Tensor:
    """Rows of all processes. The gradient goes to our own alone: the other processes see to theirs."""
    rows = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, own.detach().contiguous())
    rows[dist.get_rank()] = own
    return torch.cat(rows)


class Sum(torch.autograd.Function):
    """The sum over processes. The loss of each depends on it, so backward sums as well."""

    @staticmethod
    def forward(ctx: Any, vector: Tensor) -> Tensor:
        total = vector.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *d_total: Tensor) -> Tensor:
        return Sum.forward(ctx, d_total[0])


def step(towers: nn.Module, layer: EMCL, captions: Tensor, clips: Tensor, *, by_moments: bool) -> Tensor:
    """One forward and backward pass; returns the loss over the pairs of all processes."""
    text, video = towers(captions, clips)
    if by_moments:
        text, video = layer(text, video, add_up=Sum.apply)
        text, video = gathered(text), gathered(video)
    else:
        text, video = layer(gathered(text), gathered(video))

    logits = 20 * normalize(text, dim=-1) @ normalize(video, dim=-1).T
    pair = torch.arange(len(logits))
    loss = (cross_entropy(logits, pair) + cross_entropy(logits.T, pair)) / 2

    # Each process has the gradient through its own rows. DistributedDataParallel takes the mean over processes where
    # the sum is meant, hence the factor.
    (loss * dist.get_world_size()).backward()
    return loss.detach()


def main(gradient: Any = "identity", out: str | None = None) -> None:
    """gradient: of the layer. out: a file for what the first process finds by both ways."""
    dist.init_process_group("gloo")
    compare(gradient, out)
    dist.destroy_process_group()


def compare(gradient: Any, out: str | None) -> None:
    """A step by both ways."""
    rank, world = dist.get_rank(), dist.get_world_size()

    # Every process has the same towers and the same start: DistributedDataParallel sees to the first, a seed or
    # dist.broadcast(layer.bases, 0) to the second. The layer stays outside of what is wrapped.
    torch.manual_seed(0)
    towers = DistributedDataParallel(Towers())
    captions, clips = torch.randn(PAIRS, 48), torch.randn(PAIRS, 96)
    own = slice(rank * PAIRS // world, (rank + 1) * PAIRS // world)

    found = {}
    for way in ("gathered", "by moments"):
        torch.manual_seed(1)
        layer = EMCL(num_bases=8, scale="relative", residual_weight=-0.5, init="normal", gradient=gradient)
        towers.zero_grad()
        loss = step(towers, layer, captions[own], clips[own], by_moments=way == "by moments")
        found[way] = [loss, layer.bases, *[p.grad.clone() for p in towers.parameters() if p.grad is not None]]
        if rank == 0:
            print(f"{way}: loss {loss.item():.6f} over {world} processes")

    if rank == 0 and out is not None:
        torch.save(found, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
