"""RandAugment: the same for all frames of a clip, another for each pair and epoch, and never for padding."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_videos import write_data_set

from emcl_train.config import DataConfig
from emcl_train.data import augment
from emcl_train.data.annotations import load_annotations
from emcl_train.data.augment import KINDS, draw_operations, rand_augment
from emcl_train.data.loader import clip_loader, training_loader
from emcl_train.data.text import word_tokenizer


def clip(frames: int = 3, size: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (frames, 3, size, size), dtype=torch.uint8)


def test_all_frames_of_a_clip_are_changed_alike_and_padding_is_not():
    one = clip(1)
    frames = one.expand(4, -1, -1, -1).clone()
    mask = torch.tensor([True, True, True, False])
    changed = rand_augment(frames, mask, np.random.default_rng(3))
    assert changed.dtype == torch.uint8
    assert not torch.equal(changed[0], frames[0])
    assert torch.equal(changed[0], changed[1])
    assert torch.equal(changed[0], changed[2])
    assert torch.equal(changed[3], frames[3])
    assert torch.equal(frames[0], one[0])  # what came in is as it was


def test_the_same_draw_gives_the_same_frames():
    frames, mask = clip(), torch.ones(3, dtype=torch.bool)
    results = [rand_augment(frames, mask, np.random.default_rng(seed)) for seed in (5, 5, *range(20))]
    assert torch.equal(results[0], results[1])
    assert len({tuple(result.flatten().tolist()) for result in results[2:]}) > 10


def test_half_of_four_operations_are_applied_on_average():
    random = np.random.default_rng(0)
    numbers = np.bincount([len(draw_operations(random)) for _ in range(4000)], minlength=5)
    assert len(numbers) == 5
    assert numbers / 4000 == pytest.approx([1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16], abs=0.03)


def values(kind, share: float = 0.7, sign: float = 1.0, *, grey: int = 100) -> np.ndarray:
    """What an operation makes of a picture of one grey value with a white spot in its middle."""
    picture = np.full((20, 20, 3), grey, dtype=np.uint8)
    picture[10, 10] = 255
    return np.array(kind(share, sign)(Image.fromarray(picture)))


def test_operations_do_what_their_magnitudes_say():
    assert values(augment._invert)[0, 0, 0] == 155
    assert values(augment._posterize, grey=100)[0, 0, 0] == 64  # 4 − ⌊0.7·4⌋ = 2 bits are left
    assert values(augment._solarize, grey=100)[0, 0, 0] == 155  # from 256 − ⌊0.7·256⌋ = 77 on
    assert values(augment._solarize, grey=70)[0, 0, 0] == 70
    assert values(augment._solarize_add, grey=100)[0, 0, 0] == 177  # plus 0.7·110 below 128
    assert values(augment._solarize_add, grey=130)[0, 0, 0] == 130
    assert values(augment.KINDS[9], grey=100)[0, 0, 0] == 163  # brightness · (1 + 0.9·0.7)
    assert values(augment.KINDS[9], sign=-1.0, grey=100)[0, 0, 0] == 37
    moved = values(augment._translate_x, share=1 / 1.8)  # 0.45·share·20 = 5 pixels
    assert moved[10, 5, 0] == 255
    assert values(augment._translate_y, share=1 / 1.8, sign=-1.0)[15, 10, 0] == 255
    assert values(augment._translate_x)[0, -1, 0] == 128  # what comes in is grey


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_every_operation_takes_the_smallest_and_the_largest_magnitude(kind, share):
    for sign in (1.0, -1.0):
        assert values(kind, share, sign).shape == (20, 20, 3)


@pytest.fixture
def config(tmp_path):
    root = write_data_set(tmp_path / "set")
    return DataConfig(root=root, num_frames=3, image_size=16, max_words=9, workers=0, augment="randaugment")


def training_frames(config, **arguments) -> torch.Tensor:
    split = load_annotations(config).train
    tokenizer = word_tokenizer(split.captions, config.max_words)
    settings = {"batch_size": 4, "seed": 0, "epoch": 0} | arguments
    loader = training_loader(split, tokenizer, config, **settings)
    return torch.cat([batch["frames"] for batch in loader])


def test_training_frames_are_augmented_by_seed_and_epoch_and_evaluation_frames_are_not(config):
    first = training_frames(config)
    assert torch.equal(training_frames(config), first)
    assert torch.equal(training_frames(config, start_batch=1), first[4:])
    config.workers = 1
    assert torch.equal(training_frames(config), first)
    config.workers, config.augment = 0, "none"
    assert not torch.equal(training_frames(config), first)
    split = load_annotations(config).train
    plain = torch.cat([batch["frames"] for batch in clip_loader(split, config, 4)])
    config.augment = "randaugment"
    assert torch.equal(torch.cat([batch["frames"] for batch in clip_loader(split, config, 4)]), plain)


def test_a_clip_is_augmented_anew_for_each_of_its_captions_and_in_each_epoch(config):
    config.train_captions = "all"

    def seen(epoch: int) -> set[tuple[int, ...]]:
        split = load_annotations(config).train
        tokenizer = word_tokenizer(split.captions, config.max_words)
        batches = list(training_loader(split, tokenizer, config, 4, 0, epoch))
        pairs = [(i, f) for batch in batches for i, f in zip(batch["index"].tolist(), batch["frames"], strict=True)]
        return {tuple(frames.flatten().tolist()) for index, frames in pairs if index == 3}

    first, second = seen(0), seen(1)
    assert len(first) > 1
    assert first != second
