"""From a data set of experts to the batches of a run: one place that knows what each system reads of it."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from emcl_train.config import DataConfig
from emcl_train.data.clips import Split
from emcl_train.data.experts.ce_inputs import ce_texts, ce_videos
from emcl_train.data.experts.jsfusion_inputs import jsfusion_texts, jsfusion_videos
from emcl_train.data.experts.mmt_inputs import mmt_videos
from emcl_train.data.experts.split import ExpertData, Query
from emcl_train.data.text import CaptionTokenizer
from emcl_train.errors import UserError
from emcl_train.experts.ce import CESizes
from emcl_train.experts.jsfusion import JSFusionSizes
from emcl_train.experts.mmt import MMTSizes

Item = dict[str, Tensor]
Draw = tuple[int, int]
"""Seed and epoch, from which a training batch draws."""
DISTINCT = 2**32
"""Seeds of numpy's old generator are smaller."""


class ExpertInputs:
    """What a run reads: a data set, the sizes that fit it, and what captions are cut by.

    It is also what the model is built from, see `models.experts.build.Texts`.
    """

    def __init__(self, data: ExpertData, sizes: CESizes | MMTSizes | JSFusionSizes) -> None:
        self.data = data
        self.sizes = sizes
        self.tokenizer: CaptionTokenizer | None = None
        """Of MMT; whoever opens the run brings it."""

    @property
    def vocabulary(self) -> int:
        """Numbers that a token of MMT may have; 0 for systems that read no tokens."""
        return 0 if self.tokenizer is None else len(self.tokenizer)

    @property
    def word_vectors(self) -> Tensor | None:
        """What JSFusion's word embeddings start from."""
        words = self.data.vocabulary
        return None if words is None else torch.from_numpy(words.matrix)

    def videos(self, ids: Sequence[str], draw: Draw | None) -> Item:
        """What experts say of some clips, by the names that the model knows.

        Args:
            ids: of the clips.
            draw: for training; None: for evaluation.

        Raises:
            UserError: features of a clip cannot be used.
        """
        reader = self.data.reader
        if isinstance(self.sizes, CESizes):
            experts = self.sizes.experts
            firm = [name for name, expert in experts.items() if not expert.flaky]
            steps = {name: expert.max_steps for name, expert in experts.items() if expert.clusters is not None}
            ce = ce_videos(ids, reader, max_steps=steps, always_available=[] if draw is None else firm)
            return _named(features=ce.experts, available=ce.available)

        if isinstance(self.sizes, MMTSizes):
            # Of the batch, whose clips follow from seed and epoch: a run that goes on draws the same.
            random = None
            if draw is not None:
                random = np.random.RandomState([draw[0] % DISTINCT, draw[1], *map(_number, ids)])
            mmt = mmt_videos(ids, reader, max_steps=self.sizes.steps, random=random)
            return _named(features=mmt.features, present=mmt.present, positions=mmt.times, maxpool=mmt.maxpool)

        jsfusion = jsfusion_videos(ids, reader, steps=self.sizes.steps)
        return {"features": jsfusion.features, "mask": jsfusion.mask}

    def texts(self, split: "ExpertClips", captions: Sequence[int]) -> Item:
        """Captions of a split by their numbers, as the model reads them.

        Raises:
            UserError: there are no features of a caption's words.
        """
        if isinstance(self.sizes, CESizes):
            assert self.data.words is not None
            asked = [(split.clips[split.queries[i].clip].video_id, split.queries[i].captions) for i in captions]
            found = ce_texts([[one] for one in asked], self.data.words, max_words=self.sizes.text.max_words)
            return {"text": found.words[:, 0]}

        texts = [split.captions[i] for i in captions]
        if isinstance(self.sizes, MMTSizes):
            assert self.tokenizer is not None
            input_ids, attention_mask = self.tokenizer.encode(texts)
            return {"input_ids": input_ids, "attention_mask": attention_mask}

        assert self.data.vocabulary is not None
        words = jsfusion_texts(texts, self.data.vocabulary, max_words=self.sizes.words)
        return {"word_ids": words.word_ids, "word_mask": words.mask}


@dataclass(frozen=True)
class ExpertClips(Split):
    """A split of clips whose features and captions lie in the files of a system."""

    queries: tuple[Query, ...] = ()
    """For each caption: its clip, and which of the clip's captions it is made of."""
    inputs: ExpertInputs | None = field(default=None, compare=False, repr=False)

    def of_pairs(self, name: str, pairs: Sequence[tuple[int, int]]) -> "ExpertClips":
        """See `Split.of_pairs`."""
        split = super().of_pairs(name, pairs)
        queries = tuple(Query(i, self.queries[caption].captions) for i, (_, caption) in enumerate(pairs))
        return ExpertClips(name, split.clips, split.captions, split.caption_clip, queries, self.inputs)


class ExpertBatches(Dataset):
    """Batches by the numbers of their clips and captions, or of one of both."""

    def __init__(self, split: ExpertClips, draw: Draw | None = None) -> None:
        assert split.inputs is not None
        self.split = split
        self.inputs = split.inputs
        self.draw = draw

    def __getitem__(self, batch: tuple[list[int] | None, list[int] | None]) -> Item | UserError:
        """A batch; or what is wrong with it, as a value, which reaches the main process without a traceback."""
        clips, captions = batch
        item: Item = {}
        try:
            if captions is not None:
                item |= self.inputs.texts(self.split, captions)
                item["index"] = torch.tensor(captions)
            if clips is not None:
                item |= self.inputs.videos([self.split.clips[i].video_id for i in clips], self.draw)
                item["index"] = torch.tensor(clips)
        except UserError as error:
            return error
        return item


class ExpertLoader(DataLoader):
    """A DataLoader that raises what its batches returned."""

    def __iter__(self) -> Iterator[Item]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, UserError):
                raise batch
            yield batch


def expert_loader(
    split: ExpertClips,
    config: DataConfig,
    *,
    clips: Sequence[list[int]] | None = None,
    captions: Sequence[list[int]] | None = None,
    draw: Draw | None = None,
) -> DataLoader:
    """Batches of these clips and these captions, one list of numbers each; or of one kind alone.

    Args:
        split: theirs.
        config: how many processes read them.
        clips: of each batch; None: captions alone.
        captions: of each batch; None: clips alone.
        draw: seed and epoch, for training.
    """
    length = len(clips if clips is not None else captions or ())
    none: list[None] = [None] * length
    batches = list(zip(clips or none, captions or none, strict=True))
    # With a generator of its own the loader draws nothing from the state that weights and dropout depend on.
    generator = torch.Generator().manual_seed(0)
    return ExpertLoader(
        ExpertBatches(split, draw),
        sampler=batches,  # type: ignore[arg-type]
        batch_size=None,
        num_workers=config.workers if length > 1 else 0,
        collate_fn=_unchanged,
        generator=generator,
        pin_memory=torch.cuda.is_available(),
    )


def _unchanged(batch: Any) -> Any:
    return batch


def _named(**kinds: dict[str, Tensor]) -> Item:
    """By kind and expert, such as "features/rgb"."""
    return {f"{kind}/{name}": value for kind, values in kinds.items() for name, value in values.items()}


def _number(video_id: str) -> int:
    """A number of 32 bits that is an id's, the same everywhere."""
    return zlib.crc32(video_id.encode("utf-8", "surrogateescape"))
