"""EMCL as a module: the op with its maintained initial bases."""

from collections.abc import Callable
from typing import Literal, get_args

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

    Args:
        num_bases: number of bases K, at most the width of the features.
        num_iters: E-steps and M-steps per call T.
        temperature: of the E-step's softmax.
        residual_weight: of the reconstruction that is added to the features.
        momentum: share of the old value when the maintained start of the bases is updated.
        init: "sign", ±1 as in the release (whose K bases are therefore two, with multiplicities), or "normal".
        scale: "release", or "relative", where the weight is multiplied by ‖x‖ / ‖reconstruction‖.
        gradient: "identity" as released, "linear", or "full"; see `emcl_kernels.em_project`.

    The maintained start is the buffer `bases`, `[K]`; it is in the state_dict, unlike in the release. Calls in training
    mode update it on its device, without waiting for it. So a call cannot be repeated: activation checkpointing, which
    runs its part of a model again inside backward, must leave the layer out in training mode. It is refused where that
    can be noticed, which is not so inside torch.compile: there the gradients would be wrong.
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
        for name, value in (("temperature", temperature), ("residual_weight", residual_weight), ("eps", eps)):
            checks.number(value, name)
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

    def forward(self, *features: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run EM over the rows of all features together.

        Args: features: one or several `[*, N_i, D]` that agree in all but the number of rows.
        Returns: as many, in the same shapes: one tensor for one, a tuple for several.
        Raises: ValueError where widths or leading dimensions disagree, or num_bases is larger than the width.
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
        self._check_width(features[0].shape[-1])
        x = features[0] if len(features) == 1 else torch.cat(features, dim=-2)
        y, mean_bases = em_project(x, self._start(), **self._settings()._asdict())
        self._update(mean_bases)
        return y if len(features) == 1 else y.split([feature.shape[-2] for feature in features], dim=-2)

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
            text, frames, frame_mask: `[A, D]`, `[B, F, D]`, `[B, F]`.
            add_up: returns the sum of one vector of D² + D + 1 numbers over processes that have texts of their own and
                all videos. EM then runs over the rows of all of them, and the maintained bases stay the same in each.
                With gradient="full" autograd goes through it, so it must be
                `torch.distributed.nn.functional.all_reduce`, whose backward sums as well, and not the plain
                `torch.distributed.all_reduce`; otherwise what it sums is a constant, and any sum will do.
        Returns: similarity `[A, B]`.
        """
        self._check_width(text.shape[-1])
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
    ) -> SimilarityStream:
        """Rows of `pooled_similarity`, chunk of texts after chunk in bounded memory; for inference, without gradient.

        Starts from the bases as they are now, and leaves them so in training mode too.

        Args: em_block, chunk: see `emcl_kernels.pooled_similarity_stream`.
        Returns: an iterable of tensors `[rows, B]` with a length; their concatenation is the similarity `[A, B]`.
        """
        self._check_width(text.shape[-1])
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
        )

    def fit(
        self, gram: Tensor, colsum: Tensor, num_rows: Tensor | int, *, update: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Fit to rows that are known by their moments, which add up over chunks, modalities and processes.

        Args:
            gram, colsum: `[*, D, D]`, `[*, D]`, from `emcl_kernels.em_moments`.
            num_rows: how many rows they sum: a number, or a tensor `[*]` with one for each problem.
            update: in training mode move the maintained bases, as `forward` does.
        Returns: responsibilities `[*, D, K]` and scale `[*, K]` for `transform`; with scale="relative" the latter has
            that factor in it. Constants to autograd unless gradient="full".
        Raises: ValueError where num_bases is larger than the width, or shapes disagree.
        """
        self._check_width(gram.shape[-1])
        moments = Moments(gram, colsum, _row_counts(num_rows, gram))
        if self.gradient != "full":
            moments = Moments(gram.detach(), colsum.detach(), moments.num_rows)

        logits = moments.colsum.unsqueeze(-1) * self._start().to(colsum.dtype)  # (G0)
        fitted, mean_bases = em.fit(moments, logits, self._settings())
        if update:
            self._update(mean_bases)
        return fitted.responsibilities, fitted.scale

    def transform(self, x: Tensor, responsibilities: Tensor, scale: Tensor) -> Tensor:
        """Apply what `fit` returned to rows `[*, N, D]`, which need not be the ones that were fitted."""
        return Map(responsibilities, scale).apply(x, weight=self.residual_weight, gradient=self.gradient)

    def extra_repr(self) -> str:
        names = ("num_bases", "num_iters", "temperature", "residual_weight", "momentum", "init", "scale", "gradient")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def _check_width(self, width: int) -> None:
        if self.num_bases > width:
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
        if not self.training:
            return
        with torch.no_grad():
            mean = mean_bases.detach().flatten(0, -2).mean(0) if mean_bases.dim() > 1 else mean_bases.detach()
            self.bases.lerp_(mean.to(self.bases.dtype), 1 - self.momentum)  # (I)


def _row_counts(num_rows: Tensor | int, gram: Tensor) -> Tensor | int:
    """A number, or one for each problem."""
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
