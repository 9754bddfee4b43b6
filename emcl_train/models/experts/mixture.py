"""What CE and MMT share: a text embedded once for each expert, and similarities added up with the text's weights.

M experts stand in the same order everywhere, that of their sorted names.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from emcl_train.models.features import ItemTensors


@dataclass(frozen=True)
class ExpertVideo(ItemTensors):
    """B videos, as each of M experts sees them."""

    embeddings: Float[Tensor, "B M D"]
    """One row a video and expert. What stands where the expert is missing is the model's affair."""
    available: Bool[Tensor, "B M"]
    """Which experts have something on the video."""


@dataclass(frozen=True)
class ExpertText(ItemTensors):
    """A captions, one embedding for each of the M experts that they are compared with."""

    embeddings: Float[Tensor, "A M D"]
    """One row a caption and expert."""
    weights: Float[Tensor, "A M"]
    """How much each expert counts for the caption; they sum to one."""


torch.export.register_dataclass(ExpertVideo, serialized_type_name="emcl_train.ExpertVideo")
torch.export.register_dataclass(ExpertText, serialized_type_name="emcl_train.ExpertText")


def unit(x: Float[Tensor, "*any"], dim: int = -1) -> Float[Tensor, "*any"]:
    """Rows of length one, x / max(‖x‖, 1e-12), as both releases have it. Zeros stay zeros."""
    return normalize(x, dim=dim)


class GatedEmbedding(nn.Module):
    """The gated embedding unit: y = embed(x), then y · σ(BN(gate(y))).

    Args:
        width_in: of x.
        width: of the embedding.
        unit: whether the result is brought to length one.
    """

    def __init__(self, width_in: int, width: int, *, unit: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(width_in, width)
        self.gate = nn.Linear(width, width)
        self.gate_norm = nn.BatchNorm1d(width)
        self.of_unit_length = unit

    def forward(self, x: Float[Tensor, "N In"]) -> Float[Tensor, "N D"]:
        y = self.embed(x)
        gated = y * torch.sigmoid(self.gate_norm(self.gate(y)))
        return unit(gated) if self.of_unit_length else gated


class OfExperts(nn.ModuleDict):
    """A module for each expert, under any name that a folder may have."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__({module_name(expert): module for expert, module in modules.items()})

    def __getitem__(self, expert: str) -> nn.Module:
        return super().__getitem__(module_name(expert))


def module_name(expert: str) -> str:
    """An expert's name as part of a weight's: where torch has no module of this name, a letter is %XX, as in addresses.

    Examples:
        >>> module_name("s3d"), module_name("clip.vit-b32"), module_name("type")
        ('s3d', 'clip%2Evit-b32', '%74ype')
    """
    name = expert.replace("%", "%25").replace(".", "%2E")
    return f"%{ord(name[0]):02X}{name[1:]}" if hasattr(nn.ModuleDict(), name) else name


def only_available(video: ExpertVideo) -> ExpertVideo:
    """The same videos with zeros for the experts that they lack.

    A mixture over the available experts is the same. EM takes no notice of rows of zeros, but that they count in the
    mean over rows that moves its start.
    """
    rows = video.embeddings.masked_fill(~video.available.unsqueeze(-1), 0.0)
    return ExpertVideo(rows, video.available)


def mixture_similarity(
    text: Float[Tensor, "A M D"],
    video: Float[Tensor, "V M D"],
    weights: Float[Tensor, "A M"],
    available: Bool[Tensor, "V M"] | None,
) -> Float[Tensor, "A V"]:
    """Σ_m ŵ_avm ⟨T_am, V_vm⟩, with ŵ_avm = w_am·avail_vm / Σ_m w_am·avail_vm.

    A video without any expert is of similarity 0 to every text: there is nothing to compare, and the quotient would be
    0 / 0. No specification says what then; it does not occur where one expert at least has everything.

    Args:
        text: embeddings of the captions.
        video: embeddings of the videos. Finite numbers also where an expert is missing, as 0 · NaN is NaN.
        weights: of the experts, for each caption.
        available: which experts each video has (CE); None: all count (MMT).
    """
    # The weight of an expert is a factor of the text, its availability one of the video: so one product does it all.
    weighted = text * weights.unsqueeze(-1)
    if available is None:
        total = weights.sum(1, keepdim=True)  # [A, 1]
        return weighted.flatten(1) @ video.flatten(1).mT / total

    there = available.to(video.dtype)
    total = weights @ there.mT  # [A, V]
    products = weighted.flatten(1) @ (video * there.unsqueeze(-1)).flatten(1).mT
    return products / total.masked_fill(total == 0, 1.0)
