"""Bad input to the ops and the layer: one clear error each, with the argument, what came, and the way out."""

from collections.abc import Callable

import pytest
import torch

from emcl_kernels import EMCL, em_fit, em_moments, em_project, em_reconstruct, pooled_similarity, use_backend

x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
gram, logits = x.T @ x, torch.ones(4, 3)
text, frames, mask, init = x, torch.ones(2, 3, 4), torch.ones(2, 3).bool(), torch.ones(3)


def with_nan() -> torch.Tensor:
    bad = x.clone()
    bad[3, 1] = float("nan")
    return bad


def enter(name: str) -> None:
    with use_backend(name):  # type: ignore[arg-type]
        pass


op = torch.ops.emcl
BAD: list[tuple[str, Callable[[], object], type[Exception], str]] = [
    ("one dimension", lambda: op.em_moments(x[0]), ValueError, r"x has shape \[4\]; expected \[\*, N, D\]"),
    ("no rows", lambda: em_moments(x[:0]), ValueError, r"x has shape \[0, 4\]; EM needs at least one row"),
    ("integers", lambda: op.em_moments(x.long()), TypeError, r"x is torch.int64; .* pass x.float\(\)"),
    ("start of another size", lambda: op.em_project(x, torch.ones(5, 3), 9, 1.0, 3.0, 1e-6, "full"), ValueError,
     r"init has shape \[5, 3\] but x has shape \[8, 4\]; pass init of shape \[K\] or \[8, K\]"),
    ("start of another batch", lambda: em_project(x.expand(2, 8, 4), torch.ones(3, 5)), ValueError,
     r"pass init of shape \[K\], \[2, K\] or \[2, 8, K\]"),
    ("scalar start", lambda: op.em_project(x, torch.ones(()), 9, 1.0, 3.0, 1e-6, "identity"), ValueError,
     r"init has shape \[\]; expected \[K\]"),
    ("start on another device", lambda: op.em_project(x, torch.ones(3, device="meta"), 9, 1.0, 3.0, 1e-6, "identity"),
     ValueError, "init is on meta but x is on cpu"),
    ("zero iterations", lambda: em_project(x, init, num_iters=0), ValueError, "num_iters is 0; EM needs at least one"),
    ("temperature zero", lambda: em_fit(gram, logits, temperature=0.0), ValueError, "temperature is 0.0; expected"),
    ("unknown gradient", lambda: em_project(x, init, gradient="none"), Exception,  # the type check may speak first
     "gradient"),
    ("NaN", lambda: em_project(with_nan(), init), ValueError,
     "em_project: .* not finite, because the features or the start hold NaN"),
    ("NaN in frames", lambda: pooled_similarity(with_nan(), frames, mask, init), ValueError, "em_fit: .* not finite"),
    ("gram not square", lambda: op.em_fit(gram[:3], logits, 9, 1.0, 1e-6), ValueError, r"gram has shape \[3, 4\]"),
    ("logits of another width", lambda: op.em_fit(gram, logits[:3], 9, 1.0, 1e-6), ValueError,
     r"logits has shape \[3, 3\] but gram has shape \[4, 4\]; pass logits of shape \[4, K\]"),
    ("gram in half precision", lambda: em_fit(gram.half(), logits.half()), TypeError, "gram is torch.float16"),
    ("logits in another dtype", lambda: em_fit(gram, logits.double()), TypeError, r"pass logits.to\(gram.dtype\)"),
    ("map of another width", lambda: op.em_reconstruct(x, logits[:3], torch.ones(3), 1.0), ValueError,
     r"responsibilities has shape \[3, 3\] but x has shape \[8, 4\]; expected \[4, K\]"),
    ("map in half precision", lambda: em_reconstruct(x, logits.half(), torch.ones(3)), TypeError,
     r"responsibilities is torch.float16; expected torch.float32 .* pass"),
    ("scale of another size", lambda: op.em_reconstruct(x, logits, torch.ones(2), 1.0), ValueError,
     r"scale has shape \[2\] .* one value per basis"),
    ("frames of another width", lambda: op.pooled_similarity(
        text, frames[..., :3], mask, init, 3.0, 9, 1.0, 3.0, 1e-6, "identity"), ValueError,
     r"frames has shape \[2, 3, 3\] but text has shape \[8, 4\]; expected \[B, F, 4\]"),
    ("mask of another shape", lambda: op.pooled_similarity(
        text, frames, mask[:, :2], init, 3.0, 9, 1.0, 3.0, 1e-6, "identity"), ValueError,
     r"frame_mask has shape \[2, 2\]; expected \[2, 3\]"),
    ("text and frames in two dtypes", lambda: pooled_similarity(text, frames.double(), mask, init), TypeError,
     "frames is torch.float64 but text is torch.float32"),
    ("more bases than channels", lambda: EMCL(num_bases=32)(x), ValueError,
     "num_bases is 32 but the features are 4 wide; .* at most 4"),
    ("no features", lambda: EMCL()(), ValueError, "EMCL got no features"),
    ("features that disagree", lambda: EMCL(num_bases=2)(x, x[:, :3]), ValueError,
     r"features\[1\] has shape \[8, 3\] but features\[0\] has shape \[8, 4\]"),
    ("no bases", lambda: EMCL(num_bases=0), ValueError, "num_bases is 0"),
    ("momentum above one", lambda: EMCL(momentum=1.5), ValueError, "momentum is 1.5; expected a number from 0 to 1"),
    ("unknown start", lambda: EMCL(init="zeros"), Exception, "init"),  # type: ignore[arg-type]
    ("unknown backend", lambda: enter("metal"), Exception, "reference"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "error", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input_is_refused_with_the_way_out(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()
