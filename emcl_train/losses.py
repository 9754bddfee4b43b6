"""The contrastive loss of a batch of pairs."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def symmetric_info_nce(similarity: Float[Tensor, "B B"], logit_scale: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Mean of the text→video and the video→text cross entropy; the right pairs stand on the diagonal."""
    logits = logit_scale * similarity
    target = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.mT, target)) / 2
