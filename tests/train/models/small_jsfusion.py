"""A JSFusion of small widths over 40 steps and 40 words, in float64, whose every weight counts."""

import torch

from emcl_train.experts.jsfusion import JSFusionSizes
from emcl_train.models.experts.jsfusion import JSFusion


def sizes(**settings):
    small = {
        "features": 6, "vocabulary": 11, "word_width": 5, "video_channels": 8, "width": 7, "recurrent": 3, "fused": 4,
        "last": 3, "dropout": 0.0,
    }  # fmt: skip
    return JSFusionSizes(**{**small, **settings})


def small_model(**settings):
    """Offsets, biases and running statistics are no zeros and ones, as after training."""
    torch.manual_seed(3)
    model = JSFusion(sizes(**settings)).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "offset")):
                parameter.normal_(std=0.3)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
            else:
                buffer.uniform_(0.05, 0.2)
    return model


def videos(lengths, *, features=6, steps=40):
    """Features at the end, and NaN where there is no step."""
    values = torch.randn(len(lengths), steps, features, dtype=torch.float64)
    mask = torch.arange(steps) >= steps - torch.tensor(lengths)[:, None]
    return values.masked_fill(~mask.unsqueeze(-1), float("nan")), mask


def captions(lengths, *, vocabulary=11, words=40):
    ids = torch.randint(1, vocabulary, (len(lengths), words))
    mask = torch.arange(words) < torch.tensor(lengths)[:, None]
    return ids * mask, mask
