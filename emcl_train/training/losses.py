"""Losses of a batch of pairs: which one a run has, the contrastive one, and one that makes channels agree."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from emcl_train.config import TrainConfig
from emcl_train.processes import max_over_processes, rank_and_world, sum_over_processes
from emcl_train.training.margins import max_margin, pair_margin, top_k_margin

Loss = Callable[..., Tensor]
"""Takes similarities [A, B], the logit scale and, where the model has one, the bias."""


def loss_of(config: TrainConfig) -> Loss:
    """The loss that `train.loss` names, with its settings. Those with a margin have no use for the logit scale."""
    losses: dict[str, Loss] = {
        "info-nce": lambda similarity, logit_scale, *_: symmetric_info_nce(similarity, logit_scale),
        "sigmoid": _sigmoid,
        "max-margin": lambda similarity, *_: max_margin(similarity, margin=config.margin),
        "top-k-margin": lambda similarity, *_: top_k_margin(similarity, margin=config.margin, top_k=config.top_k),
        "pair-margin": lambda similarity, *_: pair_margin(similarity, margin=config.margin),
    }
    return losses[config.loss]


def symmetric_info_nce(similarity: Float[Tensor, "A B"], logit_scale: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Mean of the text→video and the video→text cross entropy over the pairs of all processes.

    Args:
        similarity: this process's texts with the videos of all processes, in the order of ranks. Video rank·A + a is
            the right one for text a: the diagonal, if there is one process.
        logit_scale: factor from similarity to logits.

    Returns:
        The loss over all B pairs, the same bits in every process. For its gradient see processes.py.

    Raises:
        ValueError: the texts of all processes are not as many as the videos.

    Examples:
        >>> symmetric_info_nce(torch.zeros(4, 4), torch.tensor(100.0))  # chance: log 4
        tensor(1.3863)
    """
    texts, videos = similarity.shape
    rank, world = rank_and_world()
    if texts * world != videos:
        raise ValueError(
            f"symmetric_info_nce got similarities of shape {[texts, videos]} in each of {world} processes; expected "
            f"as many texts over all processes as videos; pass pairs"
        )
    logits = logit_scale * similarity

    if world == 1:
        target = torch.arange(texts, device=logits.device)
        text_to_video = functional.cross_entropy(logits, target)
        video_to_text = functional.cross_entropy(logits.mT, target)
        return (text_to_video + video_to_text) / 2

    own = slice(rank * texts, (rank + 1) * texts)
    right = logits.diagonal(own.start)  # [A]

    # A video's softmax is over the texts of all processes; its greatest logit first, or exp overflows.
    greatest = max_over_processes(logits.amax(0))  # [B]
    of_all_videos = greatest + sum_over_processes((logits - greatest).exp().sum(0)).log()  # [B]
    of_videos = of_all_videos[own]

    # A text's softmax is over the videos, all of which are here.
    of_texts = logits.logsumexp(1)  # [A]

    # The small differences are added up, not the large terms: those would cancel with an error of 1e-6.
    differences = (of_texts - right).sum() + (of_videos - right).sum()
    return sum_over_processes(differences) / (2 * videos)


def sigmoid_loss(
    similarity: Float[Tensor, "A B"], logit_scale: Float[Tensor, ""], logit_bias: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """SigLIP's loss: whether each text belongs to each video is a question of its own.

    −log σ(±(scale · similarity + bias)), plus for the right pair and minus for all others, summed over the videos of a
    text and averaged over the texts of all processes.

    Args:
        similarity: as `symmetric_info_nce` takes it.
        logit_scale: factor from similarity to logits.
        logit_bias: added to them.

    Returns:
        The loss over all pairs, the same bits in every process. For its gradient see processes.py.

    Raises:
        ValueError: the texts of all processes are not as many as the videos.

    Examples:
        >>> sigmoid_loss(torch.zeros(4, 4), torch.tensor(10.0), torch.tensor(0.0))  # 4 questions a text, log 2 each
        tensor(2.7726)
    """
    texts, videos = similarity.shape
    rank, world = rank_and_world()
    if texts * world != videos:
        raise ValueError(
            f"sigmoid_loss got similarities of shape {[texts, videos]} in each of {world} processes; expected as many "
            f"texts over all processes as videos; pass pairs"
        )
    logits = logit_scale * similarity + logit_bias
    right = logits.diagonal(rank * texts)  # [A]

    # −log σ(−l) of all, and for the right ones −log σ(l) instead, which is less by l.
    own = functional.softplus(logits).sum() - right.sum()
    return sum_over_processes(own) / videos


def _sigmoid(similarity: Tensor, logit_scale: Tensor, logit_bias: Tensor | None = None) -> Tensor:
    if logit_bias is None:
        raise TypeError("the sigmoid loss needs a bias, and this model has none; build it with that loss")
    return sigmoid_loss(similarity, logit_scale, logit_bias)


def channel_decorrelation(
    pairs: Sequence[tuple[Tensor, Tensor, Tensor]],
    captions: int,
    *,
    off_diagonal: float,
) -> Float[Tensor, ""]:
    """DRL's regularisation: channel c of one modality correlates with channel c of the other, and with no other one.

    Both rows of a pair are standardised channel by channel over all rows there are, in every process; their products,
    weighted, make the correlation matrix C [D, D] of a caption on average, and C that of several lists of pairs.

    Args:
        pairs: lists of first rows [P, D], second rows [P, D], and their shares [P], which sum to one for each caption.
        captions: how many this process has.
        off_diagonal: weight of Σ C_cd² over c ≠ d, against Σ (C_cc − 1)².

    Returns:
        The loss over all processes, the same in each.
    """
    total_captions = captions * rank_and_world()[1]

    correlations = []
    for first, second, share in pairs:
        count = sum_over_processes(share.new_tensor(float(len(share))))
        one = _standardised(first, count)
        other = _standardised(second, count)
        correlations.append(sum_over_processes((one * share[:, None]).mT @ other) / total_captions)
    correlation = sum(correlations[1:], correlations[0]) / len(correlations)

    diagonal = correlation.diagonal()
    others = correlation.square().sum() - diagonal.square().sum()
    return (diagonal - 1).square().sum() + off_diagonal * others


def _standardised(rows: Float[Tensor, "P D"], count: Float[Tensor, ""]) -> Float[Tensor, "P D"]:
    """Rows with mean 0 and deviation 1 over all processes; a channel that is constant becomes 0."""
    centred = rows - sum_over_processes(rows.sum(0)) / count
    variance = sum_over_processes(centred.square().sum(0)) / (count - 1).clamp_min(1)
    return centred / variance.clamp_min(1e-24).sqrt()
