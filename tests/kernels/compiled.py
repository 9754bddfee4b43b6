"""Script for test_layer.py and test_func.py: compares a compiled layer or training step with itself in eager mode.

compiled.py CASES BACKEND DEVICE, in a process of its own: torch.compile does not see through the checks of types.
Cases have commas between them.
"""

import copy
import sys

import torch
from torch import Tensor, nn

from emcl_kernels import EMCL, em_project, pooled_similarity, use_backend
from emcl_kernels.testing import assert_close, clustered_rows

CASES, BACKEND, DEVICE = sys.argv[1:]
# To the compiler an op is one call, whatever its backend: code is generated for one of them, and the graphs of the
# others, which are made and split in the same way, are run as they are.
COMPILER = "inductor" if BACKEND == "native" or DEVICE == "cuda" else "aot_eager"
# In float32, which is all that the GPU backends have, a start that is wrong by one update hides in rounding.
NARROW = BACKEND in ("cuda", "triton")
DTYPE, OUTPUT, GRADIENT = (torch.float32, 1e-5, 1e-4) if NARROW else (torch.float64, 1e-9, 1e-7)


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
        target = torch.arange(len(t), device=t.device)
        return nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.mT, target)


def compare(gradient: str, pooled: bool) -> None:
    torch.manual_seed(0)
    eager = Step(gradient, pooled).to(DEVICE, DTYPE)
    eager.emcl.residual_weight = 30.0
    compiled_module = copy.deepcopy(eager)
    compiled = torch.compile(compiled_module, fullgraph=True, backend=COMPILER)
    text = clustered_rows(12, 24).to(DEVICE, DTYPE)
    video = clustered_rows(12, 3, 24).to(DEVICE, DTYPE)
    mask = torch.ones(12, 3, dtype=torch.bool, device=DEVICE)
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


def compare_layer() -> None:
    torch.manual_seed(0)
    layer = EMCL(num_bases=5, init="normal").to(DEVICE).eval()
    compiled = torch.compile(layer, fullgraph=True, backend=COMPILER)
    for count in (40, 57):
        x = clustered_rows(count, 16).float().to(DEVICE)
        with torch.no_grad():
            assert_close("layer", compiled(x), layer(x), 1e-6)


def compare_transforms() -> None:
    """torch.func.grad inside of what is compiled."""
    torch.manual_seed(0)
    init = torch.linspace(-1, 1, 5, device=DEVICE, dtype=DTYPE)
    mask = torch.ones(4, 3, dtype=torch.bool, device=DEVICE)
    frames = clustered_rows(4, 3, 16).to(DEVICE, DTYPE)
    rows = clustered_rows(12, 16).to(DEVICE, DTYPE)

    def project(x: Tensor) -> Tensor:
        return em_project(x, init)[0].cos().sum()

    def compare_texts(x: Tensor) -> Tensor:
        return pooled_similarity(x, frames, mask, init, gradient="full")[0].cos().sum()

    for function in (project, compare_texts):
        leaf = rows.clone().requires_grad_()
        (expected,) = torch.autograd.grad(function(leaf), leaf)
        found = torch.compile(torch.func.grad(function), fullgraph=True, backend=COMPILER)(rows)
        assert_close("gradient", found, expected, GRADIENT)


with use_backend(BACKEND):  # type: ignore[arg-type]
    for case in CASES.split(","):
        print(case, flush=True)
        if case == "layer":
            compare_layer()
        elif case == "transforms":
            compare_transforms()
        else:
            for each in ("full", "linear", "identity"):
                torch._dynamo.reset()
                compare(each, pooled=case == "pooled")
print("equal")
