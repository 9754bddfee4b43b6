"""EMCL as a module: the op with its maintained initial bases."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from emcl_kernels import checks, em
from emcl_kernels.em import Gradient, Map, Moments, Settings
from emcl_kernels.ops import pooled
from emcl_kernels.ops.project import em_project
from emcl_kernels.ops.snapshot import op as snapshot
from emcl_kernels.stream import SimilarityStream, pooled_similarity_stream

Init = Literal["sign", "normal"]
Scale = Literal["release", "relative"]


class EMCL(nn.Module):
    """Expectation-Maximization Contrastive Learning as a layer.

    The start of EM is a buffer, `bases` `[K]`, which calls in training mode move towards what EM found. It is in the
    state_dict, unlike in the release.

    Because each call in training mode moves the start, a call cannot be repeated. Activation checkpointing runs its
    part of a model again inside backward, so it must leave this layer out in training mode. The layer raises an error
    if it is called inside backward. Inside torch.compile it cannot notice, and the gradients would be wrong.

    Rows need not have length one. They have other lengths afterwards, so normalise them before a cosine
    (`torch.nn.functional.normalize`). To EM, rows that are c times as long are like a temperature that is c times as
    low; what is added does not grow with them, except with scale="relative". docs/layer.md has measured lengths, a
    training loop, and several processes.

    Features and bases may be in float32, bfloat16, float16 and float64, also in different ones. EM runs in float32, or
    in float64 if one of the features is in it, under autocast too. Each result has the dtype of its feature. Leave the
    layer itself in float32: bases in bfloat16 lose moves that are smaller than their rounding.

    A state_dict may have the start as the release names and shapes it: `mu` `[1, K]`.

    Args:
        num_bases: number of bases K, at most the width of the features.
        num_iters: number of E-steps and M-steps in a call.
        temperature: of the E-step's softmax.
        residual_weight: of the reconstruction that is added to the features.
        momentum: share of the old value when the start is updated, from 0 to 1.
        init: how the start is drawn: "sign", ±1 as in the release (so that there are only two different bases, each
            many times), or "normal".
        scale: "release", or "relative", which multiplies the weight by ‖x‖ / ‖reconstruction‖.
        gradient: "identity" as released, "linear", or "full"; see `emcl_kernels.em_project`.
        eps: added to the sums and lengths that are divided by.

    Raises:
        ValueError: an argument is out of its range.

    Examples:
        >>> layer = EMCL(num_bases=32)
        >>> text, video = torch.randn(128, 512), torch.randn(128, 512)
        >>> text, video = layer(text, video)
        >>> text.shape
        torch.Size([128, 512])
    """

    bases: Tensor

    def __init__(
        self,
        num_bases: int = 32,
        num_iters: int = 9,
        temperature: float = 1.0,
        residual_weight: float = 3.0,
        momentum: float = 0.9,
        init: Init = "sign",
        scale: Scale = "release",
        gradient: Gradient = "identity",
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        checks.count(num_bases, "num_bases")
        checks.count(num_iters, "num_iters")
        checks.number(temperature, "temperature")
        checks.number(residual_weight, "residual_weight")
        checks.number(momentum, "momentum")
        checks.number(eps, "eps")
        checks.iteration(num_iters, temperature, eps)
        checks.gradient(gradient)
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum is {momentum}; expected a number from 0 to 1")
        if init not in get_args(Init):
            raise ValueError(f'init is "{init}"; expected one of {", ".join(get_args(Init))}')
        if scale not in get_args(Scale):
            raise ValueError(f'scale is "{scale}"; expected one of {", ".join(get_args(Scale))}')

        self.num_bases = num_bases
        self.num_iters = num_iters
        self.temperature = temperature
        self.residual_weight = residual_weight
        self.momentum = momentum
        self.init = init
        self.scale = scale
        self.gradient = gradient
        self.eps = eps

        self.register_buffer("bases", torch.empty(num_bases))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the start of the bases anew."""
        with torch.no_grad():
            self.bases.normal_()
            if self.init == "sign":
                self.bases.copy_(torch.where(self.bases < 0, -1.0, 1.0))

    def forward(
        self, *features: Tensor, add_up: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """Run EM over the rows of all features together.

        Args:
            *features: one or several tensors `[*, N_i, D]` that agree in all but the number of rows, in float32,
                bfloat16, float16 or float64; they may differ in dtype, and their rows may have any length.
            add_up: for several processes, each of which has rows of its own, `[N_i, D]`; see `pooled_similarity`.

        Returns:
            One tensor if one was given, else a tuple of as many, each in the shape and dtype of its input.

        Raises:
            ValueError: there are no features, widths or leading dimensions disagree, or num_bases is larger than the
                width; or features have leading dimensions with add_up. On the CPU also if the features hold NaN or
                infinite values.
            TypeError: a feature is no tensor of floats, or add_up returned no tensor of the shape that it was given.
            RuntimeError: the layer is in training mode and called inside backward, or under torch.func with bases that
                are none of the transformed function's arguments.
        """
        if not features:
            raise ValueError("EMCL got no features; pass one or several tensors of shape [*, N, D]")

        for i, feature in enumerate(features):
            checks.rows(feature, f"features[{i}]")
            if feature.shape[:-2] != features[0].shape[:-2] or feature.shape[-1] != features[0].shape[-1]:
                raise ValueError(
                    f"features[{i}] has shape {list(feature.shape)} but features[0] has shape "
                    f"{list(features[0].shape)}; expected the same but for the number of rows"
                )
        if self.num_bases > features[0].shape[-1]:
            self._refuse_width(features[0].shape[-1])

        # One EM over the rows of all, which are taken apart again afterwards.
        x = features[0] if len(features) == 1 else _one_below_the_other(features)
        if add_up is None:
            y, mean_bases = em_project(x, self._start(), **self._settings()._asdict())
            self._update(mean_bases)
        else:
            y = self._forward_over_processes(x, add_up)

        if len(features) == 1:
            return y
        parts = y.split([feature.shape[-2] for feature in features], dim=-2)
        return tuple([part.to(feature.dtype) for part, feature in zip(parts, features, strict=True)])

    def _forward_over_processes(self, x: Tensor, add_up: Callable[[Tensor], Tensor]) -> Tensor:
        """EM over the rows of all processes, from the sum of their moments; then a map of our own rows."""
        if x.dim() != 2:
            raise ValueError(
                f"features have {x.dim()} dimensions; with add_up expected [N, D], one problem over all processes. "
                "Call the layer once for each problem"
            )
        rows = x if self.gradient == "full" else x.detach()
        gram, colsum, num_rows = Moments.of(rows).summed(add_up)
        assert isinstance(num_rows, Tensor)  # as `summed` gives it
        responsibilities, scale = self.fit(gram, colsum, num_rows)
        return self.transform(x, responsibilities, scale)

    def pooled_similarity(
        self,
        text: Tensor,
        frames: Tensor,
        frame_mask: Tensor,
        *,
        pooling_temperature: float = 3.0,
        add_up: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """EMCL-Net's similarity with this layer's bases; see `emcl_kernels.pooled_similarity`.

        Args:
            text: text features `[A, D]` in float32, bfloat16, float16 or float64.
            frames: frame features `[B, F, D]` in the same dtype; under autocast the wider of two serves.
            frame_mask: `[B, F]`, bool, or numbers that multiply the weights. On the CPU, what is not finite in a frame
                whose mask is zero counts as zero.
            pooling_temperature: of the softmax over frames.
            add_up: for several processes, each of which has texts of its own and all videos. It is given one vector of
                D² + D + 1 numbers and returns the sum of it over the processes. EM then runs over the rows of all of
                them, and the start stays the same in each. `torch.distributed.all_reduce` returns None and changes its
                argument, which is to be returned. With gradient="full" autograd goes through the sum, so pass a
                function whose backward sums as well: `Sum.apply` in examples/layer_processes.py. With the other
                gradients the sum is a constant.

        Returns:
            similarity `[A, B]` in the dtype of `text`.

        Raises:
            ValueError: shapes disagree, or num_bases is larger than the width. On the CPU also if the features hold NaN
                or infinite values.
            TypeError: an input is no tensor of floats, text and frames differ in dtype, or add_up returned no tensor of
                the shape that it was given.
            RuntimeError: the layer is in training mode and called inside backward, or under torch.func with bases that
                are none of the transformed function's arguments.

        Examples:
            >>> layer = EMCL(num_bases=32)
            >>> text, frames = torch.randn(64, 512), torch.randn(64, 12, 512)
            >>> layer.pooled_similarity(text, frames, torch.ones(64, 12).bool()).shape
            torch.Size([64, 64])
        """
        if self.num_bases > text.shape[-1]:
            self._refuse_width(text.shape[-1])
        inputs = (text, frames, frame_mask, self._start(), pooling_temperature, *self._settings())
        if add_up is None:
            similarity, mean_bases = pooled.composed.call(*inputs)
        else:
            similarity, mean_bases = pooled.similarity_over(*inputs, add_up=add_up)
        self._update(mean_bases)
        return similarity

    def pooled_similarity_stream(
        self,
        text: Tensor,
        frames: Tensor,
        frame_mask: Tensor,
        *,
        em_block: int | None = None,
        chunk: int | None = None,
        pooling_temperature: float = 3.0,
        add_up: Callable[[Tensor], Tensor] | None = None,
    ) -> SimilarityStream:
        """Rows of `pooled_similarity`, one chunk of texts after another, in bounded memory; for inference.

        There is no gradient. EM starts from the bases as they are now; they are not moved, in training mode either.

        Args:
            text: text features `[A, D]`.
            frames: frame features `[B, F, D]` in the dtype of `text`.
            frame_mask: `[B, F]`, bool, or numbers that multiply the weights. On the CPU, what is not finite in a frame
                whose mask is zero counts as zero.
            em_block: see `emcl_kernels.pooled_similarity_stream`.
            chunk: see `emcl_kernels.pooled_similarity_stream`.
            pooling_temperature: of the softmax over frames.
            add_up: see `emcl_kernels.pooled_similarity_stream`.

        Returns:
            An iterable of tensors `[rows, B]` with a length; their concatenation is the similarity `[A, B]`.

        Raises:
            ValueError: shapes disagree, num_bases is larger than the width, em_block or chunk is below 1, or add_up is
                given with em_block.
            TypeError: an input is no tensor of floats, text and frames differ in dtype, or add_up returned no tensor of
                the shape that it was given.
        """
        if self.num_bases > text.shape[-1]:
            self._refuse_width(text.shape[-1])
        return pooled_similarity_stream(
            text,
            frames,
            frame_mask,
            self.bases.clone(),
            em_block=em_block,
            chunk=chunk,
            pooling_temperature=pooling_temperature,
            num_iters=self.num_iters,
            temperature=self.temperature,
            residual_weight=self.residual_weight,
            eps=self.eps,
            relative=self.scale == "relative",
            add_up=add_up,
        )

    def fit(
        self, gram: Tensor, colsum: Tensor, num_rows: Tensor | int, *, update: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Fit to rows that are known by their moments, which add up over chunks, modalities and processes.

        Args:
            gram: xᵀx `[*, D, D]`, from `emcl_kernels.em_moments`; float32 or float64.
            colsum: xᵀ1 `[*, D]`, in the same dtype.
            num_rows: how many rows they sum: a number, or a tensor `[*]` with one for each problem.
            update: whether to move the start in training mode, as `forward` does.

        Returns:
            responsibilities `[*, D, K]` and scale `[*, K]` for `transform`. With scale="relative" the second has that
            factor in it. Both are constants to autograd unless gradient="full".

        Raises:
            ValueError: num_bases is larger than the width, or shapes disagree.
            TypeError: gram is not in float32 or float64.

        Examples:
            >>> layer = EMCL(num_bases=32)
            >>> chunks = torch.randn(10, 1000, 512)
            >>> total = sum((Moments.of(chunk) for chunk in chunks[1:]), Moments.of(chunks[0]))
            >>> fitted = layer.fit(*total)
            >>> y = layer.transform(chunks[0], *fitted)
        """
        if self.num_bases > gram.shape[-1]:
            self._refuse_width(gram.shape[-1])
        moments = Moments(gram, colsum, _row_counts(num_rows, gram))
        if self.gradient != "full":
            moments = Moments(gram.detach(), colsum.detach(), moments.num_rows)

        logits = moments.colsum.unsqueeze(-1) * self._start().to(colsum.dtype)  # (G0)
        fitted, mean_bases = em.fit(moments, logits, self._settings())
        if update:
            self._update(mean_bases)
        return fitted.responsibilities, fitted.scale

    def transform(self, x: Tensor, responsibilities: Tensor, scale: Tensor) -> Tensor:
        """Apply what `fit` returned to rows, which need not be the ones that were fitted.

        Args:
            x: rows `[*, N, D]`.
            responsibilities: `[*, D, K]`, from `fit`.
            scale: `[*, K]`, from `fit`.

        Returns:
            A tensor like `x`.

        Raises:
            ValueError: shapes disagree.
            TypeError: responsibilities or scale have not the dtype that `fit` gives for `x`.
        """
        return Map(responsibilities, scale).apply(x, weight=self.residual_weight, gradient=self.gradient)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the start of the release, too, which is called `mu` and has a row, `[1, K]`; it serves all rows."""
        ours = f"{prefix}bases"
        if ours not in state_dict and f"{prefix}mu" in state_dict:
            state_dict[ours] = state_dict.pop(f"{prefix}mu")
        start = state_dict.get(ours)
        if isinstance(start, Tensor) and start.dim() == 2 and start.shape[0] == 1:
            state_dict[ours] = start[0]
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        names = ("num_bases", "num_iters", "temperature", "residual_weight", "momentum", "init", "scale", "gradient")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def _refuse_width(self, width: int) -> None:
        raise ValueError(
            f"num_bases is {self.num_bases} but the features are {width} wide; EM clusters the channels, "
            f"so pass num_bases of at most {width}"
        )

    def _settings(self) -> Settings:
        return Settings(
            self.num_iters,
            self.temperature,
            self.residual_weight,
            self.eps,
            self.gradient,
            self.scale == "relative",
        )

    def _start(self) -> Tensor:
        """The start of this call. Backward may need it after the buffer has moved on."""
        if not self.training:
            return self.bases
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() >= 0:
            raise RuntimeError(
                "EMCL in training mode is called inside backward, as activation checkpointing does to run a part of "
                "the model again; its bases have moved since, so the gradients would be wrong. Leave the layer out of "
                "what is checkpointed, or call layer.eval()"
            )
        return snapshot.call(self.bases)

    def _update(self, mean_bases: Tensor) -> None:
        """Move the start towards what EM found: the mean over the rows, and over the problems."""
        if not self.training:
            return

        with torch.no_grad():
            mean = mean_bases.detach().flatten(0, -2).mean(0) if mean_bases.dim() > 1 else mean_bases.detach()
            mean = mean.to(self.bases.dtype)
            if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
                self.bases.lerp_(mean, 1 - self.momentum)  # (I)
            else:
                self._update_in_a_transform(mean)

    def _update_in_a_transform(self, mean: Tensor) -> None:
        """The same under torch.func, where a buffer can be moved only if it came in as an argument."""
        moved = self.bases.lerp(mean, 1 - self.momentum)  # (I)
        try:
            self.bases.copy_(moved)
        except RuntimeError as error:
            raise RuntimeError(
                "EMCL in training mode moves its bases, but a function under torch.func (grad, vjp, vmap, ...) may "
                "only change its arguments; call layer.eval(), or torch.func.functional_call(layer, {'bases': "
                "bases}, inputs) with bases among the arguments of the transformed function, under vmap one [K] for "
                "each index"
            ) from error


def _one_below_the_other(features: tuple[Tensor, ...]) -> Tensor:
    """The rows of all, in the widest of their dtypes."""
    device = features[0].device.type
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return torch.cat(features, dim=-2)
    # Autocast's rule for `cat` raises an error for a narrow dtype that is not its own.
    with torch.autocast(device, enabled=False):
        return torch.cat(features, dim=-2)


def _row_counts(num_rows: Tensor | int, gram: Tensor) -> Tensor | int:
    """How many rows were summed: a number, or a tensor with one for each problem."""
    if not isinstance(num_rows, Tensor):
        checks.count(num_rows, "num_rows")
        return num_rows

    if num_rows.numel() == 1:
        return num_rows.reshape(())
    if num_rows.shape != gram.shape[:-2]:
        raise ValueError(
            f"num_rows has shape {list(num_rows.shape)} but gram has shape {list(gram.shape)}; expected one number, or "
            f"one for each problem, {list(gram.shape[:-2])}"
        )
    return num_rows
