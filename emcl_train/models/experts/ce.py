"""Collaborative Experts (Liu et al., BMVC 2019): each expert's embedding is gated by what all of them say of it.

Traps, which all are the release's behaviour:

- Padding and missing experts are zeros, and batch norms see them: an embedding in training depends on the others in the
  batch, and on how many steps are padded to.
- The gating goes through the experts in the order of their sorted names, and each one sees the earlier ones gated.
- In training a batch norm of the gating is called once for each pair of experts, with one row a video.
- A batch of one video cannot be trained on, as batch norm then has nothing to compare.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn.functional import mish

from emcl_train.experts.ce import CESizes
from emcl_train.models.experts.mixture import ExpertText, ExpertVideo, GatedEmbedding, mixture_similarity, unit
from emcl_train.models.experts.netvlad import NetVLAD
from emcl_train.models.features import widened

EPS = 1e-11
"""Of the mean over pairs of experts, which may be over none."""


class PairNetwork(nn.Module):
    """What one expert's embedding says of another's: one network for all pairs, its last layer without activation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(2 * width, width)
        self.second_norm = nn.BatchNorm1d(width)
        self.second = nn.Linear(width, width)
        self.third_norm = nn.BatchNorm1d(width)
        self.third = nn.Linear(width, width)

    def forward(self, gated: Float[Tensor, "B D"], other: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        hidden = self.first(torch.cat([gated, other], dim=1))
        hidden = self.second(mish(self.second_norm(hidden)))
        return self.third(mish(self.third_norm(hidden)))


class PairGate(nn.Module):
    """Gates an embedding by the mean of what all experts say of it: unit(x · σ(BN(mean) + BN(own(x))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.own = nn.Linear(width, width)
        self.mean_norm = nn.BatchNorm1d(width)
        self.own_norm = nn.BatchNorm1d(width)

    def forward(self, x: Float[Tensor, "B D"], mean: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return unit(x * torch.sigmoid(self.mean_norm(mean) + self.own_norm(self.own(x))))


class CollaborativeGating(nn.Module):
    """The gates of M experts, and the network of pairs that they share.

    The gates are passed one after the other: expert i's gated embedding takes the place of the one before it, so expert
    i + 1 compares itself with it. Training keeps the hidden rows of all M² pairs, `[B, D]` each, for the backward pass.
    """

    def __init__(self, experts: int, width: int) -> None:
        super().__init__()
        self.pair = PairNetwork(width)
        self.gates = nn.ModuleList(PairGate(width) for _ in range(experts))

    def forward(self, embeddings: Float[Tensor, "B M D"], available: Bool[Tensor, "B M"]) -> Float[Tensor, "B M D"]:
        current = list(embeddings.unbind(1))
        there = available.to(embeddings.dtype)

        for i, gate in enumerate(self.gates):
            # Every expert, i itself included, in their order, which running statistics follow.
            pairs = torch.stack([self.pair(current[i], other) for other in current], dim=1)  # [B, M, D]

            both = there[:, i : i + 1] * there  # [B, M]
            mean = (pairs * both.unsqueeze(-1)).sum(1) / (both.sum(1, keepdim=True) + EPS)
            current[i] = gate(current[i], mean)
        return torch.stack(current, dim=1)


class CollaborativeExperts(nn.Module):
    """CE: videos by their experts, texts by an embedding for each of these.

    Args:
        sizes: of the data set, `emcl_train.experts.ce.CE`, or one's own.
    """

    def __init__(self, sizes: CESizes) -> None:
        super().__init__()
        self.sizes = sizes

        # Of a video. Names of experts have dots, which names of modules cannot have: they stand in their order.
        self.pooling = nn.ModuleList(
            nn.Identity() if expert.clusters is None else NetVLAD(expert.width, expert.clusters)
            for expert in sizes.experts.values()
        )
        self.reduction = nn.ModuleList(nn.Linear(expert.pooled_width, sizes.width) for expert in sizes.experts.values())
        self.gating = CollaborativeGating(len(sizes.experts), sizes.width)

        # Of a text.
        text = sizes.text
        self.text_pooling = NetVLAD(text.width, text.clusters, text.ghost_clusters)
        pooled_width = text.width * text.clusters
        self.text_embeddings = nn.ModuleList(
            GatedEmbedding(pooled_width, sizes.width, unit=True) for _ in sizes.experts
        )
        self.weights = nn.Linear(pooled_width, len(sizes.experts))

    def encode_video(
        self, experts: Mapping[str, Float[Tensor, "B ..."]], available: Mapping[str, Shaped[Tensor, " B"]]
    ) -> ExpertVideo:
        """Gated embeddings of videos.

        Args:
            experts: by name, `[B, D]`, or `[B, steps, D]` for one of many steps, with zeros behind the last. A missing
                one is NaN, or anything else: it counts as zeros.
            available: by name, which videos have it, as bool or 1 and 0. An expert that is not flaky is said to be
                available always in training, and then has to be there.

        Raises:
            ValueError: an expert is missing in the batch, is unknown, has another shape, or is NaN where it is said to
                be available.
        """
        self._require_experts(experts, available)
        there = torch.stack([available[name] for name in self.sizes.names], dim=1).bool()  # [B, M]
        values = [_zeros_if_missing(experts[name], there[:, i]) for i, name in enumerate(self.sizes.names)]
        self._require_numbers(values)

        pooled = [pool(value) for pool, value in zip(self.pooling, values, strict=True)]
        reduced = [unit(reduce(row)) for reduce, row in zip(self.reduction, pooled, strict=True)]
        return ExpertVideo(widened(self.gating(torch.stack(reduced, dim=1), there)), there)

    def encode_text(self, text: Float[Tensor, "A W In"]) -> ExpertText:
        """Embeddings of captions, one for each expert, and the experts' weights.

        Args:
            text: features of the words, with zeros behind the last. Several captions of a video are rows like others.
        """
        pooled = self.text_pooling(text)
        embeddings = torch.stack([embed(pooled) for embed in self.text_embeddings], dim=1)
        return ExpertText(widened(embeddings), torch.softmax(widened(self.weights(pooled)), dim=1))

    def similarity(self, text: ExpertText, video: ExpertVideo) -> Float[Tensor, "A V"]:
        """Each caption with each video, over the experts that the video has."""
        return mixture_similarity(text.embeddings, video.embeddings, text.weights, video.available)

    def _require_experts(self, experts: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> None:
        for what, given in (("experts", experts), ("available", available)):
            if set(given) != set(self.sizes.experts):
                raise ValueError(
                    f"{what} has {', '.join(sorted(given)) or 'nothing'}; this model has {', '.join(self.sizes.names)}"
                )
        for name, expert in self.sizes.experts.items():
            dimensions = 2 if expert.clusters is None else 3
            shape = list(experts[name].shape)
            if len(shape) != dimensions or shape[-1] != expert.width:
                expected = f"[B, {expert.width}]" if dimensions == 2 else f"[B, steps, {expert.width}]"
                raise ValueError(f"expert {name} is {shape}, expected {expected}; pass sizes that fit the features")

    def _require_numbers(self, values: list[Tensor]) -> None:
        # A sum is not finite if any number is not; all are looked at in one go, as each look waits for the device.
        found = torch.stack([~value.detach().sum().isfinite() for value in values])
        if found.is_meta or not found.any():
            return
        names = [name for name, value in zip(self.sizes.names, values, strict=True) if not value.isfinite().all()]
        if not names:
            return  # large numbers, whose sum alone is beyond what float32 holds
        raise ValueError(
            f"{', '.join(names)}: NaN or infinite in videos where the expert is said to be available; mark it as flaky "
            f"in the sizes, so that training knows where it is missing, or leave these videos out"
        )


def _zeros_if_missing(values: Tensor, available: Tensor) -> Tensor:
    """NaN · 0 is NaN, so that missing rows are replaced."""
    missing = ~available.reshape(-1, *[1] * (values.dim() - 1))
    return values.masked_fill(missing, 0.0)
