"""A model of a few thousand weights and a split of coloured clips, for tests of the evaluation without a data set."""

from pathlib import Path

import pytest
import torch

from emcl_train.config import DataConfig, EMCLConfig, ModelConfig, RandomClipConfig, RunConfig
from emcl_train.data.annotations import Annotations, Clip, Split
from emcl_train.evaluation import encode, run
from emcl_train.models import RetrievalModel, build_model

CLIPS, FRAMES, SIZE, WORDS = 7, 3, 16, 6


class TinyTokenizer:
    """What models and loaders ask of a tokenizer."""

    eos_token_id, pad_token_id = 1, 0

    def __len__(self) -> int:
        return 24


def tiny_config(**emcl: object) -> RunConfig:
    return RunConfig(
        data=DataConfig(num_frames=FRAMES, image_size=SIZE, max_words=WORDS, root=Path("absent")),
        model=ModelConfig(clip="random", random_clip=RandomClipConfig(width=16, layers=1, heads=2), temporal="mean"),
        emcl=EMCLConfig(num_bases=4, **emcl),  # type: ignore[arg-type]
    )


def tiny_split(captions_per_clip: int = 1) -> Split:
    clips = tuple(Clip(f"video{i}", Path(f"video{i}.mp4")) for i in range(CLIPS))
    owner = tuple(clip for clip in range(CLIPS) for _ in range(captions_per_clip))
    return Split("test", clips, tuple(f"caption {i}" for i in range(len(owner))), owner)


def tiny_model(config: RunConfig) -> RetrievalModel:
    torch.manual_seed(0)
    return build_model(config, TinyTokenizer())


@pytest.fixture
def tiny_data(monkeypatch: pytest.MonkeyPatch) -> Split:
    """Make the evaluation read clips and captions that are drawn here. Returns: the split."""

    def clip_loader(split, config, *, batch_size, **_):
        generator = torch.Generator().manual_seed(1)
        frames = torch.randint(0, 256, (CLIPS, FRAMES, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
        mask = torch.ones(CLIPS, FRAMES, dtype=torch.bool)
        mask[2, 1:] = False
        own = torch.tensor([int(clip.video_id.removeprefix("video")) for clip in split.clips])
        for index in torch.arange(len(own)).split(batch_size):
            yield {"frames": frames[own[index]], "frame_mask": mask[own[index]], "index": index}

    def caption_loader(split, tokenizer, config, *, batch_size, **_):
        generator = torch.Generator().manual_seed(2)
        own = [int(caption.removeprefix("caption ")) for caption in split.captions]
        input_ids = torch.randint(2, len(tokenizer), (max(own) + 1, WORDS), generator=generator)[own]
        input_ids[:, -1] = tokenizer.eos_token_id
        for index in torch.arange(len(own)).split(batch_size):
            ones = torch.ones(len(index), WORDS, dtype=torch.int64)
            yield {"input_ids": input_ids[index], "attention_mask": ones, "index": index}

    split = tiny_split()
    monkeypatch.setattr(encode, "clip_loader", clip_loader)
    monkeypatch.setattr(encode, "caption_loader", caption_loader)
    monkeypatch.setattr(run, "texts_of", lambda *_: TinyTokenizer())
    monkeypatch.setattr(run, "prepare", lambda *_, **__: Annotations(split, split, split, ("a note",)))
    return split
