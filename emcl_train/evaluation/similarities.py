"""Compare all captions with all clips, and with a bank of training pairs."""

import torch
from jaxtyping import Float
from torch import Tensor

from emcl_kernels import Moments, SimilarityStream
from emcl_train.config import RunConfig
from emcl_train.data.annotations import Split
from emcl_train.evaluation.encode import Embeddings, OwnEmbeddings, OwnRows
from emcl_train.evaluation.table import Bank, Similarities
from emcl_train.models import PairModel, RetrievalModel, TextFeatures, VideoFeatures
from emcl_train.models.features import ItemTensors
from emcl_train.processes import agreed, rank_and_world, rows_in_first, summed_if_agreed
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


@torch.no_grad()
def similarities_together(
    model: RetrievalModel, text: OwnRows, video: ItemTensors, config: RunConfig
) -> Similarities | None:
    """`similarities` by several processes: each compares captions of its own with all clips.

    EM's moments of all captions are summed; inside blocks, each process has whole blocks of captions.

    Args:
        model: with the same weights in each process.
        text: this process's captions.
        video: all clips.
        config: the run's.

    Returns:
        The same in the first process; None in the others.

    Raises:
        UserError: in every process, what one of them has met.
    """
    on = None if config.emcl.mode == "off" else _similarity_together(model, text, video, config, emcl=True)
    off = _similarity_together(model, text, video, config, emcl=False)
    return None if off is None else Similarities(on, off)


@torch.no_grad()
def compare_bank_together(
    model: RetrievalModel, own: OwnEmbeddings, video: ItemTensors, bank: OwnEmbeddings, config: RunConfig
) -> Bank | None:
    """`compare_bank` by several processes; None in all but the first one.

    Args:
        model: as of `similarities_together`.
        own: this process's part of the split.
        video: all clips of the split.
        bank: this process's part of the bank.
        config: the run's.
    """
    emcl = config.emcl.mode != "off"
    with_captions = _similarity_together(model, bank.text, video, config, emcl=emcl)
    with_clips = _similarity_together(model, own.text, bank.video.in_all(), config, emcl=emcl)
    return None if with_captions is None or with_clips is None else Bank(with_captions, with_clips)


def _similarity(
    model: PairModel, text: ItemTensors, video: ItemTensors, config: RunConfig, *, emcl: bool
) -> Float[Tensor, "Q G"]:
    device = next(model.parameters()).device
    em_block = config.eval.em_block if emcl else None
    stream = model.similarity_stream(text.to(device), video.to(device), emcl=emcl, em_block=em_block)
    return _rows_of(stream, len(text), len(video), emcl=emcl)


def _similarity_together(
    model: RetrievalModel, text: OwnRows, video: ItemTensors, config: RunConfig, *, emcl: bool
) -> Float[Tensor, "Q G"] | None:
    em_block = config.eval.em_block if emcl else None
    text = text if em_block is None else text.in_blocks(em_block)
    own = agreed(lambda: _own_rows(model, text.features, video, emcl=emcl, em_block=em_block))

    rows = rows_in_first({} if own is None else {"rows": own}, text.parts)
    return None if rows is None else rows["rows"]


def _own_rows(
    model: RetrievalModel, text: ItemTensors | None, video: ItemTensors, *, emcl: bool, em_block: int | None
) -> Float[Tensor, "A G"] | None:
    """The rows of this process's captions; None if it has none."""
    assert isinstance(video, VideoFeatures)
    one_em = emcl and em_block is None
    if text is None:
        if one_em:  # it adds nothing, and the others wait for that
            width = video.frames.shape[-1]
            nothing = video.frames.new_zeros(width, width, device=next(model.parameters()).device)
            Moments(nothing, nothing[0], 0).summed(summed_if_agreed)
        return None

    assert isinstance(text, TextFeatures)
    device = next(model.parameters()).device
    add_up = summed_if_agreed if one_em else None
    stream = model.similarity_stream(text.to(device), video.to(device), emcl=emcl, em_block=em_block, add_up=add_up)
    return _rows_of(stream, len(text), len(video), emcl=emcl)


def _rows_of(stream: SimilarityStream, texts: int, clips: int, *, emcl: bool) -> Float[Tensor, "A G"]:
    """All rows of a stream, which gives some at a time, in order; with a bar in the first process alone."""
    description = f"Similarity {'with' if emcl else 'without'} EMCL"
    steps = with_progress(stream, description) if rank_and_world()[0] == 0 else stream
    similarity = torch.empty(texts, clips)
    start = 0
    for part in steps:
        similarity[start : start + len(part)] = part
        start += len(part)
    return similarity
