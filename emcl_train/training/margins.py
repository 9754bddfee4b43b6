"""Losses with a margin: every right similarity is to exceed others by it. Those of CE, MMT, MMT + EMCL and JSFusion.

Each takes the similarities of this process's texts [A] with the videos of all processes [B], video rank·A + a the right
one for text a, as `symmetric_info_nce` does, and gives the loss over all B pairs, the same in every process.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from emcl_train.errors import UserError
from emcl_train.flags import flag
from emcl_train.models.features import widened
from emcl_train.processes import gather_rows

NEVER = -1e8
"""What MMT + EMCL puts in the place of similarities that are not to count as others."""


def max_margin(similarity: Float[Tensor, "A B"], *, margin: float) -> Float[Tensor, ""]:
    """Mean of max(0, margin − s_ii + s_ij) and max(0, margin − s_ii + s_ji) over the places beside the diagonal.

    The loss of CE and of MMT.

    Args:
        similarity: texts × videos.
        margin: by which the right pair is to exceed each other one.

    Raises:
        ValueError: the texts of all processes are not as many as the videos.
        UserError: there is one pair, and no other one to exceed.

    Examples:
        >>> max_margin(torch.tensor([[0.5, 0.2], [0.4, 0.9]]), margin=0.2)  # 0.1 in a row, and 0 three times
        tensor(0.0250)
    """
    square = _whole(similarity, "max-margin")
    pairs = len(square)
    right = square.diagonal()

    # By rows a text's right video, by columns a video's right text.
    of_texts = (margin - right[:, None] + square).relu()
    of_videos = (margin - right[None, :] + square).relu()

    others = ~torch.eye(pairs, dtype=torch.bool, device=square.device)
    return ((of_texts + of_videos) * others).sum() / (2 * pairs * (pairs - 1))


def top_k_margin(similarity: Float[Tensor, "A B"], *, margin: float, top_k: int) -> Float[Tensor, ""]:
    """Mean of max(0, margin − s_ii + s) over the k largest other similarities of each row, then of each column.

    The loss of MMT + EMCL. As released, a similarity of exactly 0 is no other one, nor is the right one: both count as
    −10⁸. With k as large as the batch the right one is the last of the k, and adds 0.

    Args:
        similarity: texts × videos.
        margin: by which the right pair is to exceed each other one.
        top_k: how many others of each row and column count.

    Raises:
        ValueError: the texts of all processes are not as many as the videos.
        UserError: there is one pair, or fewer pairs than `top_k`.

    Examples:
        >>> top_k_margin(torch.tensor([[0.5, 0.2], [0.4, 0.9]]), margin=0.2, top_k=1)
        tensor(0.0250)
    """
    square = _whole(similarity, "top-k-margin")
    pairs = len(square)
    if not 1 <= top_k <= pairs:
        raise UserError(
            f"train.top_k is {top_k}, expected 1 to {pairs}, the pairs of a batch; "
            f"pass {flag('train.top_k')} {pairs} or less"
        )
    right = square.diagonal()

    # In float32: 10⁸ is more than float16 holds.
    right_ones = torch.eye(pairs, dtype=torch.bool, device=square.device)
    others = square.masked_fill(right_ones | (square == 0), NEVER)

    of_texts = (margin - right[:, None] + others.topk(top_k, dim=1).values).relu()
    of_videos = (margin - right[:, None] + others.mT.topk(top_k, dim=1).values).relu()
    return torch.cat([of_texts, of_videos]).mean()


def pair_margin(scores: Float[Tensor, "A B"], *, margin: float) -> Float[Tensor, ""]:
    """Mean of max(0, margin − s_vv + s_av) over all captions a and videos v, the right pairs among them.

    The loss of JSFusion: of each video with all captions, never the other way. The right pairs add margin / B.

    Args:
        scores: captions × videos.
        margin: by which a video's right caption is to exceed each other one.

    Raises:
        ValueError: the captions of all processes are not as many as the videos.
        UserError: there is one pair, and no other one to exceed.

    Examples:
        >>> pair_margin(torch.tensor([[0.5, 0.2], [0.4, 0.9]]), margin=0.2)  # columns (0.2, 0.1) and (0, 0.2)
        tensor(0.1250)
    """
    square = _whole(scores, "pair-margin")
    return (margin - square.diagonal()[None, :] + square).relu().mean()


def _whole(similarity: Float[Tensor, "A B"], loss: str) -> Float[Tensor, "B B"]:
    """The rows of all processes, in 32 bits at least. There are two pairs or more."""
    square = gather_rows(widened(similarity))
    texts, videos = square.shape
    if texts != videos:
        raise ValueError(
            f"{loss} got similarities of shape {[texts, videos]} over all processes; expected as many texts as videos; "
            f"pass pairs"
        )
    if texts < 2:
        raise UserError(
            f"the loss {loss} got a batch of one pair, and a pair learns from the others of its batch; "
            f"pass {flag('train.batch_size')} 2 or more, and as many training videos"
        )
    return square
