"""Script for test_compile.py: compares a compiled function with itself in eager mode."""

import copy
import os
import sys

import torch
from torch import Tensor, nn

from emcl_kernels import EMCL
from emcl_kernels.testing import assert_close, clustered_rows

# In float32, which is all that CUDA has, a start that is wrong by one update hides in rounding.
ON_CUDA = os.environ.get("EMCL_BACKEND") == "cuda"
DTYPE, OUTPUT, GRADIENT = (torch.float32, 1e-5, 1e-4) if ON_CUDA else (torch.float64, 1e-9, 1e-7)


class Step(nn.Module):
    """Two small towers, EMCL, and the contrastive loss."""

    def __init__(self, gradient: str, pooled: bool) -> None:
        super().__init__()
        self.text, self.video = nn.Linear(24, 16), nn.Linear(24, 16)
        self.emcl = EMCL(num_bases=5, init="normal", gradient=gradient)  # type: ignore[arg-type]
        self.pooled = pooled

    def forward(self, text: Tensor, video: Tensor, mask: Tensor) -> Tensor:
        t, v = self.text(text), self.video(video)
        if self.pooled:
            logits = 10 * self.emcl.pooled_similarity(t, v, mask)
        else:
            t, v = self.emcl(t, v.mean(1))
            logits = t @ v.mT
        target = torch.arange(len(t))
        return nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.mT, target)


def compare(gradient: str, pooled: bool) -> None:
    torch.manual_seed(0)
    eager = Step(gradient, pooled).to(DTYPE)
    eager.emcl.residual_weight = 30.0
    compiled_module = copy.deepcopy(eager)
    compiled = torch.compile(compiled_module, fullgraph=True)
    text, video = clustered_rows(12, 24).to(DTYPE), clustered_rows(12, 3, 24).to(DTYPE)
    mask = torch.ones(12, 3, dtype=torch.bool)
    for _ in range(2):
        a, b = eager(text, video, mask), compiled(text, video, mask)
        a.backward()
        b.backward()
        assert_close("loss", b, a, OUTPUT)
    for (name, p), q in zip(eager.named_parameters(), compiled_module.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert_close(name, q.grad, p.grad, GRADIENT)
    assert_close("bases", compiled_module.emcl.bases, eager.emcl.bases, OUTPUT)


if sys.argv[1] == "layer":
    layer = EMCL(num_bases=5, init="normal").eval()
    x = clustered_rows(40, 16).float()
    assert_close("layer", torch.compile(layer, fullgraph=True)(x), layer(x), 1e-6)
elif sys.argv[1] == "step":
    compare("full", pooled=False)
    compare("identity", pooled=False)
else:
    compare("full", pooled=True)
    compare("identity", pooled=True)
print("equal")
