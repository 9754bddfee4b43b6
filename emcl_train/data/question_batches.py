"""Batches of questions with their videos for training: one shuffle of all of them, as released."""

from collections.abc import Sequence

import torch
from torch.utils.data import DataLoader

from emcl_train.config import DataConfig
from emcl_train.data.clips import Clip, Split
from emcl_train.data.loader import ClipDataset, Item, clip_batches, shuffled_captions
from emcl_train.data.tokens import Tokenizer, encoded_captions


class QuestionDataset(ClipDataset):
    """An item is a question with the frames of its video and its label."""

    def __init__(
        self, split: Split, labels: Sequence[int], tokenizer: Tokenizer, config: DataConfig, seed: tuple[int, int]
    ) -> None:
        super().__init__(
            split,
            config,
            captions=encoded_captions(tokenizer, split),
            pairs=(range(len(split.captions)), split.caption_clip),
            augment=seed if config.augment == "randaugment" else None,
            draw=seed,
        )
        if len(labels) != len(split.captions):
            raise ValueError(f"{len(labels)} labels came with {len(split.captions)} questions; expected one for each")
        self.labels = labels

    def _item(self, clip: Clip, index: int) -> Item:
        return super()._item(clip, index) | {"label": torch.tensor(self.labels[index])}


def question_loader(
    split: Split,
    labels: Sequence[int],
    tokenizer: Tokenizer,
    config: DataConfig,
    batch_size: int,
    seed: int,
    epoch: int,
    *,
    start_batch: int = 0,
    rank: int = 0,
    world: int = 1,
) -> DataLoader:
    """One epoch of a split's questions in whole batches, from batch `start_batch` on.

    A batch has frames, frame_mask, input_ids, attention_mask, label, and in `index` the numbers of the videos. Order
    depends on seed and epoch alone. Questions of one video may share a batch. Each of `world` processes decodes its own
    part of a batch.
    """
    batches = shuffled_captions(split, batch_size, seed, epoch)
    own = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
    dataset = QuestionDataset(split, labels, tokenizer, config, (seed, epoch))
    return clip_batches(dataset, config, batch_sampler=[batch[own] for batch in batches[start_batch:]])
