"""Bad input to EMRefiner: one clear error each."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from emcl_kernels import EMRefiner
from emcl_kernels.testing import clustered_rows

torch.manual_seed(0)
text, video = clustered_rows(41, 24), clustered_rows(63, 24)
fitted = EMRefiner(num_bases=5).fit(text, video)


def spoiled(value: float) -> torch.Tensor:
    bad = text.clone()
    bad[3, 1] = value
    return bad


def fit(*sides: object, **settings: object) -> Callable[[], object]:
    return lambda: EMRefiner(**{"num_bases": 5} | settings).fit(*sides)


def loaded(tmp: str) -> EMRefiner:
    fitted.save(f"{tmp}/map")
    return EMRefiner.load(f"{tmp}/map")


BAD: list[tuple[str, Callable[[], object], type[Exception], str]] = [
    ("NaN", fit(spoiled(float("nan")), video), ValueError, "text holds NaN or infinite .* first in row 3; leave such"),
    ("infinity", fit(text, spoiled(float("inf")).numpy()), ValueError, "video holds NaN or infinite .* in row 3"),
    ("NaN in a query", lambda: fitted.transform_text(spoiled(float("nan"))), ValueError, "text holds NaN"),
    ("different widths", fit(text, video[:, :20]), ValueError,
     r"video has shape \[63, 20\] but text is 24 wide; both must come from one joint space"),
    ("another width later", lambda: EMRefiner().partial_fit(text).partial_fit(video=video[:, :20]), ValueError,
     r"video has shape \[63, 20\] but text seen before is 24 wide"),
    ("a query of another width", lambda: fitted.transform_video(video[:, :20]), ValueError,
     r"video has shape \[63, 20\] but the fitted map is 24 wide"),
    ("one row", fit(text[:1], video), ValueError, "text has 1 row; a mean and its spread need at least two"),
    ("one side only", lambda: EMRefiner(num_bases=5).partial_fit(text).matrix, ValueError, "video has 0 rows; a mean"),
    ("rows that are one row", fit(text, video[:1].repeat(5, 1)), ValueError,
     "video has 5 rows that are all the same but for their lengths; there is nothing to tell them apart by"),
    ("rows of one direction", fit(text, torch.arange(1, 6)[:, None].double() * video[:1]), ValueError, "all the same"),
    ("rows of zeros", fit(0 * text, video), ValueError, "text has 41 rows that are all the same, namely zero"),
    ("channels of zeros", fit(*(torch.nn.functional.pad(x[:, :4], (0, 20)) for x in (text, video))), ValueError,
     "num_bases is 5 but only 4 of 24 channels are not zero in every row; .* pass num_bases of at most 4"),
    ("one dimension", fit(text[0], video), ValueError, r"text has shape \[24\]; expected \[N, D\]"),
    ("three dimensions", fit(text[None], video), ValueError, r"text has shape \[1, 41, 24\]; expected \[N, D\]"),
    ("integers", fit(text.long(), video), TypeError, "text is torch.int64; .* pass text.float()"),
    ("numpy integers", fit(text, video.long().numpy()), TypeError, r"video is int64; .*video.astype\('float32'\)"),
    ("a list", fit([[1.0, 2.0]], video), TypeError, r"text is a list; .* pass np.asarray\(text\)"),
    ("a file name", fit("rows.npy", video), TypeError, "text is a str; expected a torch tensor or a numpy array"),
    ("not fitted", lambda: EMRefiner().transform_text(text), ValueError,
     r"this EMRefiner is not fitted; call fit\(text, video\), or EMRefiner.load\(path\)"),
    ("no rows to add up", lambda: EMRefiner().all_reduce(lambda v: v), ValueError,
     "none of 1 processes has seen rows; pass rows of each side"),
    ("no processes", lambda: EMRefiner(num_bases=5).partial_fit(text, video).all_reduce(), ValueError,
     "call torch.distributed.init_process_group first, or pass add_up"),
    ("no bases", lambda: EMRefiner(num_bases=0), ValueError, "num_bases is 0; expected at least 1"),
    ("no starts", lambda: EMRefiner(num_starts=0), ValueError, "num_starts is 0; expected at least 1"),
    ("no iterations", lambda: EMRefiner(num_iters=0), ValueError, "num_iters is 0; EM needs"),
    ("temperature", lambda: EMRefiner(temperature=0.0), ValueError, "temperature is 0.0; expected a number above 0"),
    ("weight", lambda: EMRefiner(weight=float("nan")), ValueError, "weight is nan; expected a finite number"),
    ("a side", lambda: fitted.to_linear("audio"), ValueError, 'side is "audio"; expected "text" or "video"'),
    ("out of another shape", lambda: fitted.transform_text(text, out=np.empty((3, 24))), ValueError,
     r"out has shape \[3, 24\] but text has shape \[41, 24\]"),
    ("out of integers", lambda: fitted.transform_text(text, out=torch.zeros(41, 24, dtype=torch.int64)), TypeError,
     "out is torch.int64; expected float32"),
    ("out of numpy integers", lambda: fitted.transform_video(video, out=np.zeros((63, 24), dtype=np.int32)), TypeError,
     "out is int32; expected float16, float32 or float64"),
    ("out of a list", lambda: fitted.transform_text(text, out=[]), TypeError, "out is a list; expected a torch tensor"),
    ("rows that lie apart", lambda: fitted.transform_text(torch.zeros(24, 2, 3).permute(1, 2, 0)), ValueError,
     r"an array of shape \[2, 3, 24\] is not contiguous; pass its .contiguous\(\)"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input_has_one_clear_error(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_loaded_map_takes_no_more_rows(tmp_path):
    with pytest.raises(ValueError, match="a loaded map has no moments to add rows to; call fit, or start from a new"):
        loaded(str(tmp_path)).partial_fit(text)


def test_nothing_is_kept_of_rows_that_were_refused():
    stream = EMRefiner(num_bases=5).partial_fit(text, video)
    with pytest.raises(ValueError, match="NaN"):
        stream.partial_fit(text[:20], spoiled(float("nan")))
    assert torch.equal(stream.matrix, fitted.matrix)
