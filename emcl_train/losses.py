"""The contrastive loss of a batch of pairs."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from emcl_train.distributed import max_over_processes, rank_and_world, sum_over_processes


def symmetric_info_nce(similarity: Float[Tensor, "A B"], logit_scale: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Mean of the text→video and the video→text cross entropy over the pairs of all processes.

    Args: similarity: this process's texts with the videos of all processes, in the order of ranks. Video rank·A + a is
        the right one for text a: the diagonal, where there is one process.
    Returns: the loss over all B pairs, the same bits in every process. For its gradient see distributed.py.
    Raises: ValueError where the texts of all processes are not as many as the videos.
    """
    (texts, videos), (rank, world) = similarity.shape, rank_and_world()
    if texts * world != videos:
        raise ValueError(
            f"symmetric_info_nce got similarities of shape {[texts, videos]} in each of {world} processes; expected "
            f"as many texts over all processes as videos; pass pairs"
        )
    logits = logit_scale * similarity
    if world == 1:
        target = torch.arange(texts, device=logits.device)
        return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.mT, target)) / 2
    right = logits.diagonal(rank * texts)  # [A]
    # A column's softmax is over the texts of all processes; its greatest logit first, or exp overflows.
    greatest = max_over_processes(logits.amax(0))  # [B]
    columns = greatest + sum_over_processes((logits - greatest).exp().sum(0)).log()
    own = columns[rank * texts : (rank + 1) * texts]
    # The small differences are added up, not the large terms: those would cancel with an error of 1e-6.
    return sum_over_processes((logits.logsumexp(1) - right).sum() + (own - right).sum()) / (2 * videos)
