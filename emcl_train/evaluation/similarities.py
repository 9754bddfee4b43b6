"""Compare all captions with all clips, and with a bank of training pairs."""

import torch
from jaxtyping import Float
from torch import Tensor

from emcl_train.config import RunConfig
from emcl_train.data.annotations import Split
from emcl_train.evaluation.encode import Embeddings
from emcl_train.evaluation.table import Bank, Similarities
from emcl_train.models import PairModel
from emcl_train.models.features import ItemTensors
from emcl_train.terminal import with_progress


@torch.no_grad()
def similarities(model: PairModel, embeddings: Embeddings, config: RunConfig) -> Similarities:
    """All captions against all clips, with EMCL (unless the run has it nowhere) and without."""
    text, video = embeddings.text, embeddings.video
    on = None if config.emcl.mode == "off" else _similarity(model, text, video, config, emcl=True)
    return Similarities(on, _similarity(model, text, video, config, emcl=False))


@torch.no_grad()
def compare_bank(model: PairModel, embeddings: Embeddings, bank: Embeddings, config: RunConfig) -> Bank:
    """Training captions against the clips of a split, and its captions against training clips, as the run compares."""
    emcl = config.emcl.mode != "off"
    return Bank(
        _similarity(model, bank.text, embeddings.video, config, emcl=emcl),
        _similarity(model, embeddings.text, bank.video, config, emcl=emcl),
    )


def bank_of(train: Split, size: int) -> Split:
    """A bank of training queries: the first caption of each of `size` clips, spread evenly, or of all of them."""
    number = min(size, len(train.clips))
    chosen = {index * len(train.clips) // number: index for index in range(number)}

    first: dict[int, int] = {}
    for caption, clip in enumerate(train.caption_clip):
        first.setdefault(clip, caption)
    return train.of_pairs("query bank", [(clip, first[clip]) for clip in chosen])


def _similarity(
    model: PairModel, text: ItemTensors, video: ItemTensors, config: RunConfig, *, emcl: bool
) -> Float[Tensor, "Q G"]:
    device = next(model.parameters()).device
    em_block = config.eval.em_block if emcl else None
    stream = model.similarity_stream(text.to(device), video.to(device), emcl=emcl, em_block=em_block)

    # The stream gives some rows at a time, in order.
    similarity = torch.empty(len(text), len(video))
    start = 0
    for part in with_progress(stream, f"Similarity {'with' if emcl else 'without'} EMCL"):
        similarity[start : start + len(part)] = part
        start += len(part)
    return similarity
