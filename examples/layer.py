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


def batch() -> tuple[Tensor, Tensor]:
    """Captions [64, 48] and clips [64, 96]; row i of both shows the same."""
    shown = torch.randn(PAIRS, 24)
    return torch.cat([shown, torch.randn(PAIRS, 24)], 1), torch.cat([shown.flip(1), torch.randn(PAIRS, 72)], 1)


def main() -> float:
    """Train, and return R@1 of a new batch."""
    torch.manual_seed(0)
    text_tower, video_tower = nn.Linear(48, 128), nn.Linear(96, 128)
    logit_scale = nn.Parameter(torch.tensor(3.0))
    # Its start is a buffer: save the layer's state_dict with the towers'. EMCL() alone has the settings of the release.
    layer = EMCL(num_bases=16, scale="relative", residual_weight=-0.1)
    parameters = [*text_tower.parameters(), *video_tower.parameters(), logit_scale]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    pair = torch.arange(PAIRS)

    def similarity(captions: Tensor, clips: Tensor) -> Tensor:
        text = normalize(text_tower(captions), dim=-1)
        video = normalize(video_tower(clips), dim=-1)
        text, video = layer(text, video)  # one EM over the rows of both
        return logit_scale.exp() * normalize(text, dim=-1) @ normalize(video, dim=-1).T

    for step in range(60):
        logits = similarity(*batch())
        loss = (cross_entropy(logits, pair) + cross_entropy(logits.T, pair)) / 2  # symmetric InfoNCE

        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    layer.eval()  # the start stays as training left it
    with torch.no_grad():
        recall = 100 * (similarity(*batch()).argmax(1) == pair).float().mean().item()
    print(f"R@1 of {PAIRS} new pairs: {recall:.1f} (chance is {100 / PAIRS:.1f})")
    return recall


if __name__ == "__main__":
    main()
