"""EM inside a mixture of experts, as the EMCL release has it in MMT: each expert by itself, over texts and videos.

A batch has M problems of EM, which one call of the op takes together. What stands here besides is what the release does
with them, and the ways around its leak in evaluation: there a text's embedding depends on whether its own video lies in
the same batch. One map a expert, fitted once, treats each row as if it were alone.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from emcl_kernels import Moments, em_fit, em_project, em_reconstruct
from emcl_train.experts.mmt import EMSizes
from emcl_train.models.experts.mixture import ExpertText, ExpertVideo, unit
from emcl_train.models.features import widened

EPS = 1e-6
"""Added to the sums and lengths that are divided by, as released."""


class ExpertMaps(NamedTuple):
    """What EM found for each expert: x ↦ unit(x + weight · (x·(responsibilities·scale))·responsibilitiesᵀ)."""

    responsibilities: Float[Tensor, "M D K"]
    """Each column sums to one over the channels."""
    scale: Float[Tensor, "M K"]
    """One number a basis."""
    residual_weight: float
    """Of the reconstruction."""

    def __call__(self, rows: Float[Tensor, "N M D"]) -> Float[Tensor, "N M D"]:
        """Map rows, each by itself; they are of length one afterwards. The reconstruction is a constant to autograd."""
        if not len(rows):
            return widened(rows)
        x = by_expert(widened(rows))
        fixed = x.detach()
        mapped = em_reconstruct(fixed, self.responsibilities, self.scale, weight=self.residual_weight)
        return unit((x + (mapped - fixed)).transpose(0, 1))


class ExpertEM(nn.Module):
    """EM over the texts and videos of a batch, for each of M experts; rows are of length one afterwards.

    The start is one number a basis and expert, drawn from a normal distribution and divided by its length over the
    experts: bases differ in sign and in size. Backward goes past EM: the reconstruction is a constant.

    The release keeps the start (its `mu`) outside of the module, so none of its checkpoints has one. Here it is a
    buffer, `bases` `[M, K]`: it is saved, moves with the model, and is the same in all processes.

    Args:
        num_experts: number of experts M.
        sizes: how EM runs.

    Examples:
        >>> em = ExpertEM(7, EMSizes())
        >>> text, video = em(torch.randn(32, 7, 512), torch.randn(32, 7, 512))
    """

    bases: Tensor

    def __init__(self, num_experts: int, sizes: EMSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.register_buffer("bases", torch.empty(num_experts, sizes.num_bases))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the start anew."""
        with torch.no_grad():
            self.bases.normal_(std=(2 / self.sizes.num_bases) ** 0.5)
            self.bases.div_(EPS + self.bases.norm(dim=0, keepdim=True))

    def forward(
        self, text: Float[Tensor, "A M D"], video: Float[Tensor, "V M D"]
    ) -> tuple[Float[Tensor, "A M D"], Float[Tensor, "V M D"]]:
        """One EM an expert over all rows; in training mode the start moves towards what it found.

        Args:
            text: rows of the captions, of any length.
            video: rows of the videos.

        Returns:
            The rows, of length one.
        """
        # The release's order: videos before texts.
        x = by_expert(torch.cat([widened(video), widened(text)]))  # [M, V + A, D]
        y, mean_bases = em_project(x, self.bases.clone(), **self._iteration(), residual_weight=self._weight)
        self._move(mean_bases)
        after = unit(y.transpose(0, 1))
        return after[len(video) :], after[: len(video)]

    def in_blocks(
        self, text: Float[Tensor, "A M D"], video: Float[Tensor, "V M D"], block: int
    ) -> tuple[Float[Tensor, "A M D"], Float[Tensor, "V M D"]]:
        """EM inside each block of so many matching pairs, as the release evaluates; the start stays as it is.

        So the result depends on the order of the pairs and on the size of blocks, and each text is embedded together
        with its own video, which a search could not do.

        Args:
            text: rows of the captions, one a video.
            video: rows of the videos, in the same order.
            block: pairs in a block; the last one has what is left.

        Raises:
            ValueError: texts and videos are not equally many, or block < 1.
        """
        if len(text) != len(video):
            raise ValueError(
                f"there are {len(text)} texts and {len(video)} videos; EM inside blocks is over matching pairs, one "
                f"caption a video. Use one EM over everything, or a fitted map"
            )
        if block < 1:
            raise ValueError(f"block is {block}; expected at least 1 pair")

        # All whole blocks in one call, then what is left.
        whole = len(text) - len(text) % block
        parts = [self._blocks(text[:whole], video[:whole], block)] if whole else []
        if whole < len(text):
            parts.append(self._blocks(text[whole:], video[whole:], len(text) - whole))
        if not parts:
            return text, video
        texts, videos = zip(*parts, strict=True)
        return torch.cat(texts), torch.cat(videos)

    def moments(self, rows: Float[Tensor, "N M D"]) -> Moments:
        """What `fit` needs of rows. The moments of chunks and of both sides add up.

        Args:
            rows: of texts or videos, as they come before EM.
        """
        return Moments.of(by_expert(widened(rows.detach())))

    def fit(self, moments: Moments, *, rows_of_batch: int | None = None) -> ExpertMaps:
        """One map an expert, from the start as it is now; which pairs belong together plays no part.

        EM's reconstruction shrinks with the square root of the number of rows, and its softmax hardens with it. A map
        that is fitted to many rows does little to each.

        Args:
            moments: of the texts and videos to fit to, such as those of the training set.
            rows_of_batch: fit as if the rows were so many, spread like those that are there: 64 is a batch of 32 pairs,
                as in training. None: as many as they are.

        Raises:
            ValueError: there are no rows, or rows_of_batch < 1.

        Examples:
            >>> maps = em.fit(em.moments(train_text) + em.moments(train_video), rows_of_batch=64)
            >>> text, video = maps(test_text), maps(test_video)
        """
        num_rows = float(moments.num_rows)
        if num_rows < 1 or (rows_of_batch is not None and rows_of_batch < 1):
            raise ValueError(
                f"there are {num_rows:g} rows to fit to, and rows_of_batch is {rows_of_batch}; expected at least 1"
            )
        if rows_of_batch is not None:
            share = rows_of_batch / num_rows
            moments = Moments(moments.gram * share, moments.colsum * share, rows_of_batch)

        # By the Gram form (docs/math.md, G0 and GE to GM).
        gram, colsum = moments.gram.detach(), moments.colsum.detach()
        logits = colsum.unsqueeze(-1) * self.bases.to(colsum.dtype).unsqueeze(1)  # (G0) [M, D, K]
        return ExpertMaps(*em_fit(gram, logits, **self._iteration()), self._weight)

    def refined(
        self,
        text: ExpertText,
        video: ExpertVideo,
        *,
        em_block: int | None = None,
    ) -> tuple[ExpertText, ExpertVideo]:
        """Texts and videos after EM: over all rows, or inside blocks of matching pairs; see `forward`, `in_blocks`."""
        if em_block is None:
            rows, videos = self(text.embeddings, video.embeddings)
        else:
            rows, videos = self.in_blocks(text.embeddings, video.embeddings, em_block)
        return ExpertText(rows, text.weights), ExpertVideo(videos, video.available)

    def extra_repr(self) -> str:
        return f"num_experts={len(self.bases)}, {self.sizes}"

    def _blocks(self, text: Tensor, video: Tensor, block: int) -> tuple[Tensor, Tensor]:
        """Blocks that are all of one size."""
        # [blocks, rows of a block, M, D] to problems [M, blocks, rows of a block, D]
        both = torch.cat([widened(side).unflatten(0, (-1, block)) for side in (video, text)], dim=1)
        x = both.permute(2, 0, 1, 3).contiguous()
        start = self.bases.unsqueeze(1).expand(-1, x.shape[1], -1).contiguous()

        y, _ = em_project(x, start, **self._iteration(), residual_weight=self._weight)
        after = unit(y.permute(1, 2, 0, 3))  # [blocks, rows of a block, M, D]
        return after[:, block:].flatten(0, 1), after[:, :block].flatten(0, 1)

    def _move(self, mean_bases: Tensor) -> None:
        """Move the start towards what EM found; as released, it is not brought to any length again."""
        if self.training:
            with torch.no_grad():
                self.bases.lerp_(mean_bases.to(self.bases.dtype), 1 - self.sizes.momentum)

    @property
    def _weight(self) -> float:
        return self.sizes.residual_weight

    def _iteration(self) -> dict[str, Any]:
        return {"num_iters": self.sizes.num_iters, "temperature": self.sizes.temperature, "eps": EPS}


def by_expert(rows: Float[Tensor, "N M D"]) -> Float[Tensor, "M N D"]:
    """A problem for each expert."""
    return rows.transpose(0, 1).contiguous()
