"""Refining embeddings that exist already: one linear map, two offsets and a bank, fitted without training or pairs.

docs/refine.md says what it does to retrieval and why; docs/math.md (F) has the equations.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from emcl_kernels import checks
from emcl_kernels.refine import affine, arrays, few_rows, files
from emcl_kernels.refine.bank import OTHER, Bank, Banks, Search, on_grid
from emcl_kernels.refine.diagnosis import Diagnosis, diagnose
from emcl_kernels.refine.maps import KINDS, Fitted, Map, change_of, map_of
from emcl_kernels.refine.moments import sum_over_processes
from emcl_kernels.refine.seen import SIDES, RowsSeen

This = TypeVar("This", bound="Refiner")


class Refiner:
    """Refine text and video (or image) embeddings of one joint space for retrieval.

        refined = unit(x) · matrix − offset of the side

    The map is fitted to the moments of both sides' rows. It does not matter which rows are pairs, and both sides count
    alike, whatever their sizes. Compare refined rows by cosine.

    With a bank, which holds queries that are known beforehand, rows have one more number, and are compared by **inner
    product**, never by cosine: queries are (unit(refined), 1), items of the gallery (unit(refined), −bank_weight · r).
    r is the mean of the item's `num_neighbors` largest cosines with the bank (CSLS; NNN has other settings).

    Args:
        map: "whitening" (the default), "em" (EMCL's map), "mean" or "none", with the settings of that kind; or one of
            `Whitening`, `EM`, `Mean` and `Unchanged` of `emcl_kernels.refine`, with settings of your own.
        normalize: whether every row is brought to length one first, in fitting and refining alike. Retrieval by cosine
            does not depend on the lengths.
        num_neighbors: k, how many queries of the bank count for an item.
        bank_weight: α, what an item's nearness to the bank counts beside a cosine.

    Raises:
        ValueError: there is no such map, or a setting is out of its range.

    Examples:
        >>> refiner = Refiner().fit(train_text, train_video)
        >>> text, video = refiner.transform_text(test_text), refiner.transform_video(test_video)
        >>> similarity = torch.nn.functional.normalize(text, dim=-1) @ torch.nn.functional.normalize(video, dim=-1).T

        >>> refiner = Refiner().fit(text, video, text_bank=captions_of_other_videos)
        >>> similarity = refiner.transform_text(query) @ refiner.transform_video(gallery).T
    """

    MAPS: ClassVar[Mapping[str, type[Any]]] = KINDS
    """Kinds of maps by their names; the fields of each are its settings."""

    _seen: RowsSeen
    _map: Fitted | None
    _banks: Banks
    _of_rows: dict[str, affine.AffineMap]
    _loaded: bool

    def __init__(
        self,
        map: str | Map = "whitening",
        *,
        normalize: bool = True,
        num_neighbors: int = 10,
        bank_weight: float = 0.5,
    ) -> None:
        if not checks.is_count(num_neighbors):
            raise ValueError(f"num_neighbors is {num_neighbors}; expected at least 1, a whole number")
        checks.number(bank_weight, "bank_weight")

        self.map: Map = map_of(map)
        self.normalize = normalize
        self.num_neighbors = num_neighbors
        self.bank_weight = bank_weight
        self._forget()

    # ---- fitting -----------------------------------------------------------------------------------------------------

    def fit(
        self: This,
        text: Any,
        video: Any,
        *,
        text_bank: Any = None,
        video_bank: Any = None,
        add_up: Callable[[Tensor], Tensor] | None = None,
    ) -> This:
        """Fit to these rows and forget all others.

        Args:
            text: `[N, D]`, a torch tensor or a numpy array, also a memory-mapped one, in float16, bfloat16, float32 or
                float64. Each row is read once, in chunks.
            video: `[M, D]`, likewise; the number of rows may differ.
            text_bank: `[B, D]`, texts that are known beforehand and answer to none of the videos to be found; see
                `set_bank`.
            video_bank: `[B, D]`, likewise of videos.
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
            self._seen.add_up(add_up, refused)
            self._map = None

        self.set_bank(text_bank, video_bank)
        return self

    def set_bank(
        self: This,
        text_bank: Any = None,
        video_bank: Any = None,
        *,
        search_text: Search | None = None,
        search_video: Search | None = None,
    ) -> This:
        """Replace the banks. The map stays as it is, so only the last number of a gallery's rows changes.

        Args:
            text_bank: `[B, D]`, raw like the rows of `fit`, at least `num_neighbors` of them: it corrects videos as the
                gallery. None: no bank of texts.
            video_bank: `[B, D]`: it corrects texts as the gallery. None: no bank of videos.
            search_text: finds the k largest inner products of rows `[n, D]` with `bank("text")`, as an array `[n, k]`
                in float32, for instance in an index: `lambda rows, k: index.search(rows, k)[0]`. None: every row is
                compared with the whole bank, in blocks.
            search_video: the same for `bank("video")`.

        Returns:
            The refiner itself.

        Raises:
            ValueError: a bank has another shape than `[B, D]`, too few rows, or holds NaN or infinite values; or
                nothing was fitted.
            TypeError: a bank is no array of floats.
        """
        self._fitted()
        given = {"text": (text_bank, search_text), "video": (video_bank, search_video)}

        # All are read before any is replaced.
        banks = {}
        for side, (rows, search) in given.items():
            if rows is not None:
                banks[side] = Bank(self._bank_rows(rows, side), self.num_neighbors, search)
            elif search is not None:
                raise ValueError(f"search_{side} was given without {side}_bank; pass the rows that the index holds")
        self._banks = Banks(banks, self.bank_weight)
        return self

    def bank(self, side: str) -> Float[Tensor, "B D"] | None:
        """Rows of a bank as they are compared: refined, of length one, float32; to put into an index of your own.

        Args:
            side: "text" or "video".

        Returns:
            `[B, D]`, or None if there is no such bank.

        Raises:
            ValueError: there is no such side.
        """
        self._require_side(side)
        return self._banks.rows().get(side)

    def partial_fit(self: This, text: Any = None, video: Any = None) -> This:
        """Add rows to those seen before. How they are split, and their order, change the map by rounding only.

        Args:
            text: `[N, D]` as in `fit`, or None if there are no texts this time.
            video: `[M, D]` as in `fit`, or None if there are no videos this time.

        Returns:
            The refiner itself.

        Raises:
            ValueError: an array has another shape than those before it, or holds NaN or infinite values; the map was
                loaded, and has no moments to add to; or there is a bank, which was refined by the map as it is.
            TypeError: a side is no array of floats.
            NotImplementedError: torch.func asks for a derivative to a side, or it carries a tangent.

        Examples:
            >>> refiner = Refiner()
            >>> for text, video in batches:
            ...     refiner.partial_fit(text, video)
        """
        checks.no_transform_to(type(self).__name__, "fit it to constants", text=text, video=video)
        if (refusal := self._refusal("add rows to")) is not None:
            raise refusal

        self._seen.add(text, video)
        self._map = None
        return self

    def all_reduce(self: This, add_up: Callable[[Tensor], Tensor] | None = None) -> This:
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
        # Each process must know before it waits for the others.
        self._seen.add_up(add_up or sum_over_processes, self._refusal("add up"))
        self._map = None
        return self

    # ---- refining ----------------------------------------------------------------------------------------------------

    def transform_text(self, x: Any, out: Any = None, *, role: str | None = None, query_side: str | None = None) -> Any:
        """Refined texts. A row alone gives the same bits as in a batch (docs/design/a-row-alone.md).

        Args:
            x: `[*, D]`, a torch tensor or a numpy array in float16, bfloat16, float32 or float64.
            out: an array of floats to write to, of the shape of the result, such as a memory-mapped file. None: a new
                one.
            role: with a bank, whether these texts are queries or the gallery that is searched. None: the gallery if
                there is a bank of videos alone, queries otherwise. Without a bank both are refined alike.
            query_side: of a gallery, which queries search it, by whose bank it is corrected: "text" for texts that lie
                in one gallery with videos, and are searched by texts. None: the other side's, "video".

        Returns:
            `out`, or an array of the kind and dtype of `x`. There is no gradient. Without a bank it is `[*, D]`, and
            rows are no longer of length one; with one `[*, D + 1]`: length one, and the last number.

        Raises:
            ValueError: `x` is of another width or holds NaN or infinite values, `out` has another shape, nothing was
                fitted, or texts are the gallery and there is no bank of the queries that search them.
            TypeError: `x` or `out` is no array of floats.
            NotImplementedError: torch.func asks for a derivative to `x`, or it carries a tangent.

        Examples:
            One gallery of texts and videos, which texts search:

            >>> refiner.set_bank(text_bank=known_queries)
            >>> videos = refiner.transform_video(video)
            >>> texts = refiner.transform_text(documents, role="gallery", query_side="text")
            >>> scores = refiner.transform_text(query) @ torch.cat([videos, texts]).T
        """
        return self._transform(x, "text", out, role, query_side)

    def transform_video(
        self, x: Any, out: Any = None, *, role: str | None = None, query_side: str | None = None
    ) -> Any:
        """Refined videos; see `transform_text`.

        Args:
            x: `[*, D]`, as for `transform_text`.
            out: an array of floats to write to, of the shape of the result. None: a new one.
            role: with a bank, whether these videos are queries, as in a search by example, or the gallery. None: the
                gallery if there is a bank of texts, queries otherwise.
            query_side: of a gallery, which queries search it; "video" for videos that videos search. None: "text".

        Returns:
            `out`, or an array of the kind and dtype of `x`, `[*, D]`, or `[*, D + 1]` with a bank.
        """
        return self._transform(x, "video", out, role, query_side)

    def scores(self, query: Any, gallery: Any, *, query_side: str = "text") -> Float[Tensor, "Q G"]:
        """How well each item of the gallery answers each query, for those who search without an index.

        Args:
            query: `[Q, D]`, raw, as for `transform_text`.
            gallery: `[G, D]`, of the other side.
            query_side: "text", or "video" to search texts.

        Returns:
            `[Q, G]` in float32: cosines of refined rows; with a bank, less what the bank takes from each item.

        Raises:
            ValueError: as for `transform_text`; or there is a bank, but not the one that corrects this gallery.
        """
        queries, items = self.compared(query, gallery, query_side=query_side)
        return queries @ items.T

    def compared(self, query: Any, gallery: Any, *, query_side: str = "text") -> tuple[Tensor, Tensor]:
        """Refined queries and items whose inner products are the scores: what goes into an index.

        Args:
            query: as for `scores`.
            gallery: as for `scores`.
            query_side: as for `scores`.

        Returns:
            `[Q, D]` and `[G, D]` of length one, or `[Q, D + 1]` and `[G, D + 1]` with a bank; float32 tensors.

        Raises:
            ValueError: as for `scores`.
        """
        self._require_side(query_side)
        rows = []
        for side, x, role in ((query_side, query, "query"), (OTHER[query_side], gallery, "gallery")):
            arrays.require(x, role, ndim=2)
            device = x.device if isinstance(x, Tensor) else None
            refined = torch.empty(len(x), x.shape[1] + bool(self._banks), dtype=torch.float32, device=device)
            self._transform(x, side, refined, role)
            rows.append(refined if self._banks else nn.functional.normalize(refined, dim=-1))
        return rows[0], rows[1]

    def serves(self, gallery: str) -> bool:
        """Whether a side can be the gallery: with banks, only one that is corrected by the other side's.

        Args:
            gallery: "text" or "video".

        Returns:
            Whether `scores` and `transform_*` take it as the gallery.
        """
        self._require_side(gallery)
        return self._banks.serve(gallery)

    def diagnose(self, text: Any, video: Any, *, max_rows: int = 10_000) -> Diagnosis:
        """Hubs among these rows before and after refining, and whether there are reasons not to refine.

        Args:
            text: `[N, D]`, raw: those of `fit`, or others.
            video: `[M, D]`, raw.
            max_rows: of a side with more, so many rows are looked at, evenly spaced.

        Returns:
            What was found; its `warnings` are sentences.

        Raises:
            ValueError: a side has another shape, or fewer than two rows; or nothing was fitted.
        """
        return diagnose(self, text, video, rows_seen=None if self._loaded else self._seen.fewest, max_rows=max_rows)

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
        change = self._change()
        return torch.eye(len(change), dtype=change.dtype) + change

    @property
    def offset_text(self) -> Float[Tensor, " D"]:
        """A share of the mean of all texts, float64; what is subtracted after the linear map."""
        return self._fitted()["offset_text"]

    @property
    def offset_video(self) -> Float[Tensor, " D"]:
        """A share of the mean of all videos, float64; what is subtracted after the linear map."""
        return self._fitted()["offset_video"]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the map by their names in its file, float64."""
        return dict(self._fitted())

    # ---- taking it elsewhere -----------------------------------------------------------------------------------------

    def to_linear(self, side: str) -> nn.Linear:
        """The map of one side as a float32 layer with bias, for a model, or to be folded into a projection.

        With `normalize`, the layer brings its input to length one first. Its weight and bias are those of the map of
        rows of length one: after something that normalises already, use a plain nn.Linear with them.

        With a bank, the layer is for queries: it brings what it gives to length one and appends the number 1. Items of
        a gallery need the bank itself, so they go through `transform_text` or `transform_video`.

        Args:
            side: "text" or "video".

        Returns:
            A layer from `[*, D]` to `[*, D]`, or to `[*, D + 1]` with a bank.

        Raises:
            ValueError: there is no such side, or nothing was fitted.

        Examples:
            >>> refine_text = refiner.to_linear("text")
            >>> text = refine_text(text_encoder(tokens))
        """
        weight = self.matrix.T
        bias = -self._offset(side)
        layer_type = affine.UnitLinear if self.normalize else nn.Linear
        if self._banks:
            layer_type = affine.UnitQueryLinear if self.normalize else affine.QueryLinear
        layer = layer_type(len(bias), len(bias))
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        return layer

    def to_onnx(self, path: str | Path, side: str) -> None:
        """Write the map of one side as an ONNX model: `features` [N, D] in, `refined` [N, D] out, float32.

        With `normalize`, the model normalises rows itself. With a bank, it is for queries, as `to_linear` is: `refined`
        is [N, D + 1].

        Args:
            path: file to write.
            side: "text" or "video".

        Raises:
            ValueError: there is no such side, or nothing was fitted.
            ImportError: the package onnx is missing; `pip install emcl[onnx]`.
        """
        files.write_onnx(
            Path(path), self.matrix, -self._offset(side), normalize=self.normalize, query=bool(self._banks)
        )

    def save(self, path: str | Path, *, notes: Mapping[str, str] | None = None) -> None:
        """Write the map, its settings and its banks as a safetensors file, whole or not at all.

        Args:
            path: file to write; its folder is made if it does not exist.
            notes: texts for the metadata of the file, by name, which `load` leaves alone.

        Raises:
            ValueError: nothing was fitted.
        """
        files.save(Path(path), self.map, self._fitted(), self._banks.rows(), self._of_all_maps(), notes or {})

    @classmethod
    def load(cls: type[This], path: str | Path) -> This:
        """A refiner from a file that `save` wrote, of this version or of one that had the map "em" alone.

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
            >>> refined = Refiner.load("refiner.safetensors").transform_text(text)
        """
        saved = files.load(Path(path))
        refiner = cls._of_map(saved.map, path, saved.settings)
        refiner._map = saved.fitted
        banks = {side: Bank(rows, refiner.num_neighbors) for side, rows in saved.banks.items()}
        refiner._banks = Banks(banks, refiner.bank_weight)
        refiner._of_rows = {}
        refiner._loaded = True
        return refiner

    def __repr__(self) -> str:
        settings = {"map": self.map, **self._of_all_maps()}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in settings.items())})"

    # ---- inside ------------------------------------------------------------------------------------------------------

    @classmethod
    def _of_map(cls: type[This], map: Map, path: str | Path, settings: Mapping[str, Any]) -> This:
        """A refiner with a map that was read from a file."""
        return cls(map, **settings)

    def _forget(self) -> None:
        self._seen = RowsSeen(normalize=self.normalize)
        self._map = None
        self._banks = Banks({}, self.bank_weight)
        self._loaded = False

    def _of_all_maps(self) -> dict[str, Any]:
        """Settings besides those of the map."""
        return {name: getattr(self, name) for name in ("normalize", "num_neighbors", "bank_weight")}

    def _require_side(self, side: str) -> None:
        if side not in SIDES:
            raise ValueError(f'side is "{side}"; expected "text" or "video"')

    def _refusal(self, to: str) -> ValueError | None:
        """Why no rows can be added to those seen; None if they can."""
        if self._loaded:
            return ValueError(
                f"a loaded map has no moments to {to}; call fit, or start from a new {type(self).__name__}"
            )
        if self._banks:
            return ValueError(
                "there is a bank, which was refined by the map as it is; call set_bank() to take it out, add the rows, "
                "and set it again"
            )
        return None

    def _offset(self, side: str) -> Tensor:
        self._require_side(side)
        return self._fitted()[f"offset_{side}"]

    def _change(self) -> Float[Tensor, "D D"]:
        fitted = self._fitted()
        return change_of(fitted, len(fitted["offset_text"]))

    def _transform(self, x: Any, side: str, out: Any, role: str | None, query_side: str | None = None) -> Any:
        checks.no_transform_to(type(self).__name__, f'call the layer of to_linear("{side}")', **{side: x})
        arrays.require(x, side, width=len(self._offset(side)), width_of="the fitted map")
        role = self._banks.role_of(side, role, query_side)

        # With a bank, rows have one more number.
        shape = (*x.shape[:-1], x.shape[-1] + bool(self._banks))
        if out is None:
            out = arrays.empty_like(x, shape)
        else:
            arrays.require(out, "out")  # integers would cut refined rows to zeros
        if tuple(out.shape) != shape:
            raise ValueError(
                f"out has shape {list(out.shape)} but {side} has shape {list(x.shape)}; pass {list(shape)}"
            )

        flat = arrays.flat(x)
        flat_out = arrays.flat(out)
        precise = x.dtype.itemsize == 8
        map_of_rows = self._map_of(side)
        if (role == "query" or not self._banks) and self._few_transformed(map_of_rows, flat, flat_out, precise):
            return out
        for start, part in arrays.chunks(flat, side):
            refined = map_of_rows(part, precise=precise, normalize=self.normalize)
            arrays.put(flat_out, start, self._banks.with_last_number(refined, side, role, query_side))
        return out

    @np.errstate(all="ignore")  # as torch, which warns of none
    def _few_transformed(self, map_of_rows: affine.AffineMap, x: Any, out: Any, precise: bool) -> bool:
        """Write a few refined rows, of which none needs a bank, if numpy can read and write them; whether it could."""
        rows, found = arrays.few(x), arrays.few(out)
        if rows is None or found is None:
            return False
        numbers = rows.astype(np.float64)
        if not few_rows.finite(numbers):
            return False  # an error, or numbers whose squares are infinite
        refined = map_of_rows.of_few(numbers, precise=precise, normalize=self.normalize)

        if self._banks:
            found[:, :-1], found[:, -1] = few_rows.unit(refined), 1
        else:
            found[...] = refined
        return True

    def _bank_rows(self, rows: Any, side: str) -> Float[Tensor, "B D"]:
        """Rows of a bank as they are compared.

        Raises:
            ValueError: they are of another shape, too few, or not finite.
        """
        name = f"{side}_bank"
        arrays.require(rows, name, width=len(self._offset(side)), width_of="the fitted map", ndim=2)
        if len(rows) < self.num_neighbors:
            raise ValueError(
                f"{name} has {len(rows)} rows, fewer than num_neighbors = {self.num_neighbors}; pass more, or make the "
                "refiner with fewer neighbours"
            )

        map_of_rows = self._map_of(side)
        found = torch.empty(len(rows), rows.shape[1], dtype=torch.float32)
        for start, part in arrays.chunks(rows, name):
            refined = map_of_rows(part, precise=False, normalize=self.normalize)
            found[start : start + len(part)] = on_grid(refined).cpu()
        return found

    def _map_of(self, side: str) -> affine.AffineMap:
        """The map of one side's rows, made once."""
        offset = self._offset(side)
        if side not in self._of_rows:
            self._of_rows[side] = affine.AffineMap(self._change(), -offset)
        return self._of_rows[side]

    def _fitted(self) -> Fitted:
        """The map of all rows seen, fitted when it is asked for the first time."""
        if self._map is None:
            if not self._seen.any:
                name = type(self).__name__
                raise ValueError(f"this {name} is not fitted; call fit(text, video), or {name}.load(path)")
            self._map = self.map.fit(*self._seen.both())
            self._of_rows = {}
        return self._map
