"""pooled_similarity on random problems: any shape, mask and setting, on the C++ kernels."""

import pytest
import torch
from compare import Function, Problem, compare
from torch import Tensor

from emcl_kernels import pooled_similarity, reference
from emcl_kernels.testing import clustered_rows, distinct_init

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")


@st.composite
def problems(draw: object) -> tuple[Problem, dict[str, float | int | str]]:
    """Clustered texts and frames of any shape, masks of all kinds, and settings of EM."""

    def one_of(strategy: object) -> int:
        return draw(strategy)  # type: ignore[operator, no-any-return]

    texts, videos, frames = one_of(st.integers(1, 60)), one_of(st.integers(1, 14)), one_of(st.integers(1, 17))
    width = one_of(st.integers(2, 70))
    bases = one_of(st.integers(1, min(width, 40)))
    torch.manual_seed(one_of(st.integers(0, 2**31)))
    mask = {
        "none": torch.ones(videos, frames, dtype=torch.bool),
        "bool": torch.rand(videos, frames) < 0.6,
        "numbers": torch.rand(videos, frames, dtype=torch.float64),
    }[one_of(st.sampled_from(["none", "bool", "numbers"]))]
    settings = {
        "num_iters": one_of(st.integers(1, 9)),
        "temperature": one_of(st.floats(0.5, 2)),
        "pooling_temperature": one_of(st.floats(0.5, 5)),
        "residual_weight": one_of(st.sampled_from([3.0, -1.0, 0.0])),
        "gradient": one_of(st.sampled_from(["identity", "linear", "full"])),
    }
    tensors = {
        "text": 3 * clustered_rows(texts, width),
        "frames": 3 * clustered_rows(videos, frames, width),
        "mask": mask,
        "init": distinct_init(bases),
    }
    dtype = one_of(st.sampled_from([torch.float64, torch.float32]))
    length = max(texts, videos * frames, width)
    steps = settings["num_iters"]
    return Problem(tensors, dtype, ("text", "frames"), ("text", "frames"), length=length, steps=steps), settings


# Without shrinking: a failing problem is small enough to be read, and its settings are in the message.
@hypothesis.settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(problems())
@pytest.mark.slow
def test_random_problems(problem: tuple[Problem, dict[str, object]]) -> None:
    given, settings = problem

    def run(function: object) -> Function:
        def call(text: Tensor, frames: Tensor, mask: Tensor, init: Tensor) -> dict[str, Tensor]:
            similarity, mean_bases = function(text, frames, mask, init, **settings)  # type: ignore[operator]
            return {"similarity": similarity, "mean_bases": mean_bases}

        return call

    ours, formula = run(pooled_similarity), run(reference.pooled_similarity_materialized)
    compare("native", "cpu", given, ours, formula, may_be_useless=True)
