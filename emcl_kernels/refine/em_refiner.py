"""`Refiner` with EMCL's map, under its own name and with its settings as arguments."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from emcl_kernels.refine.maps import EM, Map
from emcl_kernels.refine.refiner import Refiner, This


class EMRefiner(Refiner):
    """Refine text and video embeddings by EMCL's map: `Refiner(EM(…))`.

        refined = unit(x) · matrix − offset of the side

    `matrix` is EMCL's map I + weight · reconstruction, fitted by EM to the channels of both sides and their negatives.
    `offset_text` and `offset_video` are a share of each side's mean. A negative weight takes out of each row some of
    what the rows have in common. docs/refine.md compares it with the other maps.

    Args:
        num_bases: number of bases K of one run of EM, at most the width of the embeddings.
        num_starts: runs of EM from different channels, whose maps are averaged. A single run depends on its draw.
        num_iters: E-steps and M-steps.
        temperature: of the E-step's softmax, in units of the root mean square length of the channels, so that neither
            the number of rows nor the width changes what it means.
        weight: of the reconstruction, in units of the rows' own size: -0.05 takes out 5 %.
        mean_share: share of each side's mean that is subtracted from its rows.
        fit_mean_share: share of each side's mean that is subtracted before EM. If nothing is, EM finds little else than
            the mean.
        seed: decides which channels the bases start from.
        normalize: whether every row is brought to length one first, in fitting and refining alike. Retrieval by cosine
            does not depend on the lengths.
        eps: added to the sums and lengths that are divided by.
        num_neighbors: of a bank, see `Refiner`.
        bank_weight: of a bank, see `Refiner`.

    Raises:
        ValueError: an argument is out of its range.

    Examples:
        >>> refiner = EMRefiner().fit(train_text, train_video)
        >>> text, video = refiner.transform_text(test_text), refiner.transform_video(test_video)
        >>> similarity = torch.nn.functional.normalize(text, dim=-1) @ torch.nn.functional.normalize(video, dim=-1).T
    """

    map: EM

    def __init__(
        self,
        num_bases: int = 32,
        num_starts: int = 4,
        num_iters: int = 5,
        temperature: float = 0.6,
        weight: float = -0.07,
        mean_share: float = 0.58,
        fit_mean_share: float = 0.7,
        seed: int = 0,
        normalize: bool = True,
        eps: float = 1e-6,
        num_neighbors: int = 10,
        bank_weight: float = 0.5,
    ) -> None:
        map = EM(num_bases, num_starts, num_iters, temperature, weight, mean_share, fit_mean_share, seed, eps)
        super().__init__(map, normalize=normalize, num_neighbors=num_neighbors, bank_weight=bank_weight)

    @property
    def factors(self) -> tuple[Float[Tensor, "D R"], Float[Tensor, "D R"]]:
        """Left and right `[D, R]` with matrix = I + left·rightᵀ, float64; R is K columns for each start."""
        fitted = self._fitted()
        return fitted["left"], fitted["right"]

    @classmethod
    def _of_map(cls: type[This], map: Map, path: str | Path, settings: Mapping[str, Any]) -> This:
        if not isinstance(map, EM):
            raise ValueError(f'{path} holds the map "{map.name}"; Refiner.load takes every map, EMRefiner EM\'s alone')
        return cls(**vars(map), **settings)

    def __repr__(self) -> str:
        settings = {**vars(self.map), **self._of_all_maps()}
        return f"EMRefiner({', '.join(f'{name}={value!r}' for name, value in settings.items())})"
