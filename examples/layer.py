"""EMCL in a training loop of your own: two towers, the layer, a contrastive loss.

    python examples/layer.py

The towers are linear and their data is made up, so that it runs in seconds. Put yours in their place: the layer takes
whatever rows [N, D] they give, and returns as many.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from emcl_kernels import EMCL

PAIRS = 64
WIDTH = 128
STEPS = 60


class Towers(nn.Module):
    """Captions and clips, encoded into one space, with EMCL behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.text = nn.Linear(48, WIDTH)
        self.video = nn.Linear(96, WIDTH)
        # Its start is a buffer, so it is saved with the model. "relative" keeps the share of the reconstruction the
        # same for every batch size; the default scale is that of the paper's code.
        self.emcl = EMCL(num_bases=16, scale="relative", residual_weight=-0.1)
        self.logit_scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, captions: Tensor, clips: Tensor) -> Tensor:
        text = normalize(self.text(captions), dim=-1)
        video = normalize(self.video(clips), dim=-1)

        # One EM over the rows of both.
        text, video = self.emcl(text, video)
        return self.logit_scale.exp() * normalize(text, dim=-1) @ normalize(video, dim=-1).T


def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pairs that show the same: two noisy views of one hidden vector."""
    hidden = torch.randn(PAIRS, 24, generator=generator)
    captions = torch.cat([hidden, torch.randn(PAIRS, 24, generator=generator)], dim=1)
    clips = torch.cat([hidden.flip(1), torch.randn(PAIRS, 72, generator=generator)], dim=1)
    return captions, clips


def recall_at_1(similarity: Tensor) -> float:
    """Percent of captions whose own clip is the most similar one."""
    return 100 * (similarity.argmax(1) == torch.arange(PAIRS)).float().mean().item()


def main() -> float:
    """Train, and return R@1 of a new batch."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = Towers()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    pair = torch.arange(PAIRS)

    for step in range(STEPS):
        similarity = model(*batch(generator))
        loss = (cross_entropy(similarity, pair) + cross_entropy(similarity.T, pair)) / 2

        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    # In evaluation the layer uses its start as training left it, and does not move it.
    model.eval()
    with torch.no_grad():
        recall = recall_at_1(model(*batch(generator)))
    print(f"R@1 of {PAIRS} new pairs: {recall:.1f} (chance is {100 / PAIRS:.1f})")
    return recall


if __name__ == "__main__":
    main()
