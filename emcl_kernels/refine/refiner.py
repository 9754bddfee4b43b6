"""EMCL on embeddings that exist already: one linear map and two offsets, fitted to moments, without training.

docs/refine.md says what it does to retrieval and why; docs/math.md (F) has the equations.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from emcl_kernels import checks
from emcl_kernels.em import Moments
from emcl_kernels.refine import affine, arrays, files
from emcl_kernels.refine.moments import (
    agreed_width,
    gram_without_mean,
    mean,
    moments_of,
    nothing,
    require_spread,
    sum_over_processes,
    unpack_whole,
)
from emcl_kernels.refine.signed import signed_map

SIDES = ("text", "video")


class EMRefiner:
    """Refine text and video embeddings of one joint space for cosine retrieval.

        refined = unit(x) · matrix − offset of the side

    `matrix` is EMCL's map I + weight · reconstruction, fitted by EM to the channels of both sides and their negatives.
    `offset_text` and `offset_video` are a share of each side's mean. A negative weight takes out of each row some of
    what the rows have in common. It does not matter which rows are pairs, and both sides count alike, whatever their
    sizes.

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

    Raises:
        ValueError: an argument is out of its range.

    Examples:
        >>> refiner = EMRefiner().fit(train_text, train_video)
        >>> text, video = refiner.transform_text(test_text), refiner.transform_video(test_video)
        >>> similarity = torch.nn.functional.normalize(text, dim=-1) @ torch.nn.functional.normalize(video, dim=-1).T
    """

    _local: dict[str, Moments | None]
    _shared: dict[str, Moments | None]
    _map: dict[str, Tensor] | None
    _of_rows: dict[str, affine.AffineMap]
    _loaded: bool

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
    ) -> None:
        for name, count in {"num_bases": num_bases, "num_starts": num_starts}.items():
            if not checks.is_count(count):
                raise ValueError(f"{name} is {count}; expected at least 1, a whole number")
        checks.iteration(num_iters, temperature, eps)
        finite = {"weight": weight, "mean_share": mean_share, "fit_mean_share": fit_mean_share, "eps": eps}
        for name, value in finite.items():
            if not -1e6 < value < 1e6:
                raise ValueError(f"{name} is {value}; expected a finite number")

        self.num_bases = num_bases
        self.num_starts = num_starts
        self.num_iters = num_iters
        self.temperature = temperature
        self.weight = weight
        self.mean_share = mean_share
        self.fit_mean_share = fit_mean_share
        self.seed = seed
        self.normalize = normalize
        self.eps = eps
        self._forget()

    # ---- fitting -----------------------------------------------------------------------------------------------------

    def fit(self, text: Any, video: Any, *, add_up: Callable[[Tensor], Tensor] | None = None) -> "EMRefiner":
        """Fit to these rows and forget all others.

        Args:
            text: `[N, D]`, a torch tensor or a numpy array, also a memory-mapped one, in float16, bfloat16, float32 or
                float64. Each row is read once, in chunks.
            video: `[M, D]`, likewise; the number of rows may differ.
            add_up: sums one float64 vector over processes, each of which has rows of its own; see `all_reduce`. A
                process without rows of a side passes None for it.

        Returns:
            The refiner itself.

        Raises:
            ValueError: a side has another shape, holds NaN or infinite values, has fewer than two rows, or only rows
                that are all the same; or num_bases is larger than D. With add_up, in every process if the rows of one
                were refused.
            TypeError: a side is no array of such floats.
        """
        self._forget()

        # A process whose rows are refused must tell the others, which would wait for its sum for ever.
        refused = None
        try:
            self.partial_fit(text, video)
        except Exception as error:
            if add_up is None:
                raise
            refused = error
        if add_up is not None:
            self._add_up(add_up, refused)

        self._fitted()
        return self

    def partial_fit(self, text: Any = None, video: Any = None) -> "EMRefiner":
        """Add rows to those seen before. How they are split, and their order, change the map by rounding only.

        Args:
            text: `[N, D]` as in `fit`, or None if there are no texts this time.
            video: `[M, D]` as in `fit`, or None if there are no videos this time.

        Returns:
            The refiner itself.

        Raises:
            ValueError: an array has another shape than those before it, or holds NaN or infinite values; or the map was
                loaded, and has no moments to add to.
            TypeError: a side is no array of floats.
            NotImplementedError: torch.func asks for a derivative to a side, or it carries a tangent.

        Examples:
            >>> refiner = EMRefiner()
            >>> for text, video in batches:
            ...     refiner.partial_fit(text, video)
        """
        checks.no_transform_to("EMRefiner", "fit it to constants", text=text, video=video)
        if self._loaded:
            raise ValueError("a loaded map has no moments to add rows to; call fit, or start from a new EMRefiner")

        width, width_of = self._width
        for x, name in ((text, "text"), (video, "video")):
            if x is not None:
                arrays.require(x, name, width=width, width_of=width_of, ndim=2)
                if width is None:
                    width = x.shape[-1]
                    width_of = name

        # All rows are read before any are counted, so that a refused array leaves the moments as they were.
        found = {
            side: moments_of(x, side, normalize=self.normalize) if x is not None else None
            for x, side in ((text, "text"), (video, "video"))
        }
        self._local = {side: _together(self._local[side], found[side]) for side in SIDES}
        self._map = None
        return self

    def all_reduce(self, add_up: Callable[[Tensor], Tensor] | None = None) -> "EMRefiner":
        """Put together what several processes have seen. Every process calls it, and then has the same map.

        Rows that were added up before are not added up again, so it can be called after every batch. A process without
        rows takes part like the others.

        Args:
            add_up: sums one vector in float64 over the processes; None: with torch.distributed. It is called twice:
                with 5 numbers, by which the processes agree on D, and with 2·(D² + D + 1).

        Returns:
            The refiner itself.

        Raises:
            ValueError: no process has seen rows, their widths differ, or one holds a loaded map. It is raised in every
                process.
        """
        loaded = (
            ValueError("a loaded map has no moments to add up; start from a new EMRefiner") if self._loaded else None
        )
        self._add_up(add_up or sum_over_processes, loaded)
        return self

    # ---- refining ----------------------------------------------------------------------------------------------------

    def transform_text(self, x: Any, out: Any = None) -> Any:
        """Refined texts. A row alone gives the same bits as in a batch (docs/design/a-row-alone.md).

        Args:
            x: `[*, D]`, a torch tensor or a numpy array in float16, bfloat16, float32 or float64.
            out: an array of floats of the shape of `x` to write to, such as a memory-mapped file. None: a new one.

        Returns:
            `out`, or an array of the kind, shape and dtype of `x`. There is no gradient. Rows are no longer of length
            one.

        Raises:
            ValueError: `x` is of another width or holds NaN or infinite values, `out` has another shape, or nothing was
                fitted.
            TypeError: `x` or `out` is no array of floats.
            NotImplementedError: torch.func asks for a derivative to `x`, or it carries a tangent.
        """
        return self._transform(x, "text", out)

    def transform_video(self, x: Any, out: Any = None) -> Any:
        """Refined videos; see `transform_text`.

        Args:
            x: `[*, D]`, as for `transform_text`.
            out: an array of floats of the shape of `x` to write to. None: a new one.

        Returns:
            `out`, or an array of the kind, shape and dtype of `x`.
        """
        return self._transform(x, "video", out)

    def fit_transform(self, text: Any, video: Any) -> tuple[Any, Any]:
        """Call `fit`, then refine both sides.

        Args:
            text: `[N, D]`, as for `fit`.
            video: `[M, D]`, as for `fit`.

        Returns:
            The refined texts and videos, in the shapes and dtypes that came in.
        """
        self.fit(text, video)
        return self.transform_text(text), self.transform_video(video)

    @property
    def matrix(self) -> Float[Tensor, "D D"]:
        """The linear map, float64: rows are multiplied by it from the left. It is symmetric."""
        left, right = self.factors
        return torch.eye(len(left), dtype=left.dtype) + left @ right.T

    @property
    def factors(self) -> tuple[Float[Tensor, "D R"], Float[Tensor, "D R"]]:
        """Left and right `[D, R]` with matrix = I + left·rightᵀ, float64; R is K columns for each start."""
        fitted = self._fitted()
        return fitted["left"], fitted["right"]

    @property
    def offset_text(self) -> Float[Tensor, " D"]:
        """mean_share of the mean of all texts, float64; what is subtracted after the linear map."""
        return self._fitted()["offset_text"]

    @property
    def offset_video(self) -> Float[Tensor, " D"]:
        """mean_share of the mean of all videos, float64; what is subtracted after the linear map."""
        return self._fitted()["offset_video"]

    # ---- taking it elsewhere -----------------------------------------------------------------------------------------

    def to_linear(self, side: str) -> nn.Linear:
        """The map of one side as a float32 layer with bias, for a model, or to be folded into a projection.

        With `normalize`, the layer brings its input to length one first. Its weight and bias are those of the map of
        rows of length one: after something that normalises already, use a plain nn.Linear with them.

        Args:
            side: "text" or "video".

        Returns:
            A layer from `[*, D]` to `[*, D]`.

        Raises:
            ValueError: there is no such side, or nothing was fitted.

        Examples:
            >>> refine_text = refiner.to_linear("text")
            >>> text = refine_text(text_encoder(tokens))
        """
        weight = self.matrix.T
        bias = -self._offset(side)
        layer_type = affine.UnitLinear if self.normalize else nn.Linear
        layer = layer_type(len(bias), len(bias))
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        return layer

    def to_onnx(self, path: str | Path, side: str) -> None:
        """Write the map of one side as an ONNX model: `features` [N, D] in, `refined` [N, D] out, float32.

        With `normalize`, the model normalises rows itself.

        Args:
            path: file to write.
            side: "text" or "video".

        Raises:
            ValueError: there is no such side, or nothing was fitted.
            ImportError: the package onnx is missing; `pip install emcl[onnx]`.
        """
        files.write_onnx(Path(path), self.matrix, -self._offset(side), normalize=self.normalize)

    def save(self, path: str | Path, *, notes: Mapping[str, str] | None = None) -> None:
        """Write the map and its settings as a safetensors file, whole or not at all.

        Args:
            path: file to write; its folder is made if it does not exist.
            notes: texts for the metadata of the file, by name, which `load` leaves alone.

        Raises:
            ValueError: nothing was fitted.
        """
        files.save(Path(path), self._fitted(), self._settings(), notes or {})

    @classmethod
    def load(cls, path: str | Path) -> "EMRefiner":
        """A refiner from a file that `save` wrote.

        It refines to the same bits. It has no moments, so `partial_fit` cannot add rows to it.

        Args:
            path: the file.

        Returns:
            A fitted refiner.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no map of a refiner.

        Examples:
            >>> refiner.save("refiner.safetensors")
            >>> refined = EMRefiner.load("refiner.safetensors").transform_text(text)
        """
        fitted, settings = files.load(Path(path), expected=EMRefiner(num_bases=1)._settings().keys())
        refiner = cls(**settings)
        refiner._map = fitted
        refiner._of_rows = {}
        refiner._loaded = True
        return refiner

    def __repr__(self) -> str:
        return f"EMRefiner({', '.join(f'{name}={value!r}' for name, value in self._settings().items())})"

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._local = dict.fromkeys(SIDES)
        self._shared = dict.fromkeys(SIDES)
        self._map = None
        self._loaded = False

    def _add_up(self, add_up: Callable[[Tensor], Tensor], refused: Exception | None) -> None:
        """Move what this process has seen, summed over processes, to what all have seen."""
        width = agreed_width(self._width[0], refused, add_up)

        # Both sides in one vector: one sum over processes.
        packed = [(self._local[side] or nothing(width)).pack() for side in SIDES]
        summed = add_up(torch.cat(packed)).cpu()
        for side, part in zip(SIDES, summed.chunk(len(SIDES)), strict=True):
            of_all = unpack_whole(part, width)
            self._shared[side] = _together(self._shared[side], of_all if of_all.num_rows else None)
            self._local[side] = None
        self._map = None

    def _settings(self) -> dict[str, Any]:
        of_map = ("num_bases", "num_starts", "num_iters", "temperature", "weight", "mean_share", "fit_mean_share")
        return {name: getattr(self, name) for name in (*of_map, "seed", "normalize", "eps")}

    @property
    def _width(self) -> tuple[int | None, str]:
        """D, and the side that it is known from."""
        for side in SIDES:
            for moments in (self._local[side], self._shared[side]):
                if moments is not None:
                    return moments.gram.shape[-1], f"{side} seen before"
        return None, ""

    def _offset(self, side: str) -> Tensor:
        if side not in SIDES:
            raise ValueError(f'side is "{side}"; expected "text" or "video"')
        return self._fitted()[f"offset_{side}"]

    def _transform(self, x: Any, side: str, out: Any) -> Any:
        checks.no_transform_to("EMRefiner", f'call the layer of to_linear("{side}")', **{side: x})
        arrays.require(x, side, width=len(self._offset(side)), width_of="the fitted map")
        if out is None:
            out = arrays.empty_like(x)
        else:
            arrays.require(out, "out")  # integers would cut refined rows to zeros
        if tuple(out.shape) != tuple(x.shape):
            raise ValueError(f"out has shape {list(out.shape)} but {side} has shape {list(x.shape)}; pass the same")

        flat = arrays.flat(x)
        flat_out = arrays.flat(out)
        precise = str(x.dtype).endswith("float64")
        map_of_rows = self._map_of(side)
        for start, part in arrays.chunks(flat, side):
            rows = affine.unit(part) if self.normalize else part
            arrays.put(flat_out, start, map_of_rows(rows, precise=precise))
        return out

    def _map_of(self, side: str) -> affine.AffineMap:
        """The map of one side's rows, made once."""
        offset = self._offset(side)
        if side not in self._of_rows:
            left, right = self.factors
            self._of_rows[side] = affine.AffineMap(left @ right.T, -offset)
        return self._of_rows[side]

    def _fitted(self) -> dict[str, Tensor]:
        """The map of all rows seen, fitted when it is asked for the first time."""
        if self._map is None:
            text = _together(self._local["text"], self._shared["text"])
            video = _together(self._local["video"], self._shared["video"])
            if text is None and video is None:
                raise ValueError("this EMRefiner is not fitted; call fit(text, video), or EMRefiner.load(path)")
            self._map = self._fit_map(require_spread(text, "text"), require_spread(video, "video"))
            self._of_rows = {}
        return self._map

    def _fit_map(self, text: Moments, video: Moments) -> dict[str, Tensor]:
        # Means over rows, so that the side with more rows does not count more.
        left, right = signed_map(
            gram_without_mean(text, self.fit_mean_share) + gram_without_mean(video, self.fit_mean_share),  # (FG)
            num_bases=self.num_bases,
            num_starts=self.num_starts,
            num_iters=self.num_iters,
            temperature=self.temperature,
            seed=self.seed,
            eps=self.eps,
        )
        return {
            "left": self.weight * left,
            "right": right,
            "offset_text": self.mean_share * mean(text),  # (FO)
            "offset_video": self.mean_share * mean(video),
        }


def _together(some: Moments | None, others: Moments | None) -> Moments | None:
    """Moments of all rows of one side; None if there are no rows."""
    if some is None or others is None:
        return some or others
    return some + others
