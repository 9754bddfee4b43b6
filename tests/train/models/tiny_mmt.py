"""A small MMT with random weights, inputs for it, and the same weights and inputs for the oracle."""

from dataclasses import replace

import numpy as np
import torch

from emcl_train.experts.mmt import BertSizes, EMSizes, Expert, MMTSizes
from emcl_train.models.experts.bert import build_bert
from emcl_train.models.experts.em import ExpertEM
from emcl_train.models.experts.mmt import MultiModalTransformer
from emcl_train.models.experts.retrieval import MixtureModel
from emcl_train.weights.mmt import mmt_to_authors

SIZES = MMTSizes(
    {"ocr": Expert(6, 7), "s3d": Expert(9, 1, 1.0), "vggish": Expert(5, 2, 1.0)},
    width=16,
    layers=2,
    heads=4,
    inner_width=24,
    max_positions=8,
    token_types=10,
    steps=5,
    words=9,
    dropout=0.0,
    bert=BertSizes(vocab_size=50, width=24, layers=2, heads=2, inner_width=32, max_positions=40, dropout=0.0),
)
TOKEN_TYPES = {name: expert.token_type for name, expert in SIZES.experts.items()}
EM = EMSizes(num_bases=5, num_iters=4, temperature=0.5, residual_weight=3.0, momentum=0.9)
STEPS, WORDS = SIZES.steps, SIZES.words


def tiny_model(*, seed=0, training=False, sizes=SIZES, **options):
    """In float64, with no weight that is zero or one by convention."""
    torch.manual_seed(seed)
    model = MultiModalTransformer(sizes, build_bert(sizes.bert), **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    return model.double().train(training)


def tiny_mixture(*, seed=0, training=False, gated_video=True):
    """MMT + EMCL as training and evaluation run it."""
    system = tiny_model(seed=seed, gated_video=gated_video)
    return MixtureModel(system, ExpertEM(len(SIZES.names), EM)).double().train(training)


def batch_of(videos, tokens):
    """One batch of both sides, as a loader gives it."""
    by_name = {f"{kind}/{name}": value for kind, by in videos.items() for name, value in by.items()}
    return by_name | tokens


def keep_missing_not(sizes=SIZES):
    return replace(sizes, keep_missing=False)


def video_batch(videos=6, *, missing=True, seed=1):
    """Steps that begin at the front, and what is missing as zeros; the first expert of the second video is missing."""
    generator = torch.Generator().manual_seed(seed)
    features, present, positions, maxpool = {}, {}, {}, {}
    for name, expert in SIZES.experts.items():
        count = torch.randint(1, STEPS + 1, (videos, 1), generator=generator)
        if missing:
            count[torch.rand(videos, 1, generator=generator) < 0.3] = 0
            count[1 % videos] *= name != "ocr"
        there = torch.arange(STEPS) < count
        values = torch.randn(videos, STEPS, expert.width, generator=generator, dtype=torch.float64)
        features[name] = values * there[..., None]
        present[name] = there
        times = 2.5 + 2 * torch.arange(STEPS, dtype=torch.float64)
        positions[name] = torch.where(there & (expert.seconds is not None), times, 1.0)
        maxpool[name] = torch.where(count > 0, values.masked_fill(~there[..., None], -9.0).amax(1), 0.0)
    return {"features": features, "present": present, "positions": positions, "maxpool": maxpool}


def text_batch(captions=6, *, seed=2):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, SIZES.bert.vocab_size, (captions, WORDS), generator=generator)
    mask = (torch.arange(WORDS) < torch.randint(2, WORDS + 1, (captions, 1), generator=generator)).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def as_oracle(batch):
    """Inputs under the names that the oracle has them by."""
    names = {
        "features": "features", "present": "features_ind", "positions": "features_t", "maxpool": "features_maxpool",
    }  # fmt: skip
    return {
        theirs: {expert: value.numpy().astype(float) for expert, value in batch[ours].items()}
        for ours, theirs in names.items()
    }


def release_state(model):
    """Weights as arrays under their authors' names."""
    return {name: value.detach().numpy().copy() for name, value in mmt_to_authors(model.state_dict()).items()}


def max_margin(similarity, margin=0.05):
    right = similarity.diagonal()
    terms = (margin - right[:, None] + similarity).relu() + (margin - right[None, :] + similarity).relu()
    n = len(similarity)
    return (terms * (1 - torch.eye(n, dtype=similarity.dtype))).sum() / (2 * n * (n - 1))


def agrees(found, expected, atol=1e-10):
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=atol)
