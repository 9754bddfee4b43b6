"""Features of several processes in one loss: the gradient of each process is that of the loss over all pairs."""

import multiprocessing

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from emcl_train.distributed import gather_rows, slice_of_batch

WORLD = 2


def loss_of(rows: Tensor) -> Tensor:
    """Every row meets every other."""
    return (rows @ rows.mT).softmax(dim=1).square().sum()


def inputs() -> Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def worker(rank: int, address: str, results) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=WORLD)
    batch = slice_of_batch({"x": inputs(), "index": torch.arange(6)}, rank=rank, world=WORLD)
    rows = batch["x"].requires_grad_()
    weights = torch.linspace(0.5, 1.5, 6, dtype=torch.float64)[:, None]
    gathered = gather_rows(rows)
    mask = gather_rows(torch.tensor([rank == 0, True, False]))
    loss_of(gathered * weights).backward()
    results.put((rank, gathered.tolist(), mask.tolist(), rows.grad.tolist()))
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch was built without gloo")
def test_gathering_has_the_gradient_of_the_one_loss(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    address = f"file://{tmp_path}/rendezvous"
    processes = [context.Process(target=worker, args=(rank, address, results)) for rank in range(WORLD)]
    for process in processes:
        process.start()
    found = sorted(results.get(timeout=100) for _ in processes)
    for process in processes:
        process.join(timeout=20)
    whole = inputs().requires_grad_()
    loss_of(whole * torch.linspace(0.5, 1.5, 6, dtype=torch.float64)[:, None]).backward()
    for rank, gathered, mask, gradient in found:
        assert gathered == whole.tolist()
        assert mask == [True, True, False, False, True, False]
        # Summed over processes; DistributedDataParallel divides by their number.
        torch.testing.assert_close(torch.tensor(gradient).double() / WORLD, whole.grad[3 * rank : 3 * rank + 3])


def test_slices_are_disjoint_equal_and_leave_the_remainder_out():
    batch = {"index": torch.arange(7), "x": torch.randn(7, 2)}
    slices = [slice_of_batch(batch, rank=rank, world=3)["index"].tolist() for rank in range(3)]
    assert slices == [[0, 1], [2, 3], [4, 5]]


def test_one_process_gathers_nothing():
    rows = torch.randn(3, 2)
    assert gather_rows(rows) is rows
