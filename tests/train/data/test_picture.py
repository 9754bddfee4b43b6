"""The square that the model sees: CLIP's own, to the pixel of its definition, whatever the shape of the picture."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_videos import write_video

from emcl_train.config import DataConfig
from emcl_train.data import picture
from emcl_train.data.clips import Clip
from emcl_train.data.picture import Picture, Resize
from emcl_train.data.video import VIDEO_SAMPLER_VERSION, FrameRequest, decode_clip, decode_frames, sampler_version


def square(image: np.ndarray, size: int, resize: Resize = "clip") -> torch.Tensor:
    return picture.square(Picture(image, *image.shape[:2]), size, resize)


# Heights and widths of videos as people have them, and ones between which roundings differ.
SIZES = [
    (240, 320), (320, 240), (360, 640), (480, 854), (720, 1280), (144, 176), (176, 144), (288, 352), (576, 720),
    (272, 480), (268, 640), (360, 636), (406, 720), (240, 426), (225, 300), (233, 311), (224, 224), (225, 224),
    (300, 224), (1080, 1920), (1920, 1080), (768, 1024), (97, 31), (31, 97), (7, 9), (1, 1),
]  # fmt: skip
EXTREME = [(2, 500), (500, 2), (1, 50), (3, 301), (40, 900), (900, 40), (1300, 300), (300, 1300), (64, 5000)]


def by_definition(image: np.ndarray, size: int) -> np.ndarray:
    """CLIP's Resize(size, bicubic) and CenterCrop(size) of a Pillow image, as torchvision defines them."""
    height, width = image.shape[:2]
    short = min(height, width)
    long = max(height, width)
    long_after = int(size * long / short)
    new_width, new_height = (size, long_after) if width <= height else (long_after, size)
    resized = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BICUBIC)

    top = round((new_height - size) / 2.0)
    left = round((new_width - size) / 2.0)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def natural(height: int, width: int) -> np.ndarray:
    """Edges, slopes and noise in each colour, as pictures have them."""
    y = np.linspace(0, 1, height)[:, None]
    x = np.linspace(0, 1, width)[None]
    waves = [np.sin((12 + 3 * c) * x + 7 * y) + np.sign(np.sin(40 * y * (c + 1) - 9 * x)) for c in range(3)]
    noise = np.random.default_rng(0).normal(0, 20, (height, width, 3))
    return (128 + 50 * np.stack(waves, axis=2) + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [224, 48])
@pytest.mark.parametrize("shape", SIZES + EXTREME, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def test_pixels_are_those_of_clips_definition(shape: tuple[int, int], size: int) -> None:
    if shape in EXTREME and size == 224:
        size = 30  # the definition scales all of a picture
    image = natural(*shape)
    found = square(image, size).permute(1, 2, 0).numpy()
    expected = by_definition(image, size)
    assert found.shape == (size, size, 3)
    assert np.abs(found.astype(int) - expected).mean() <= 0.2
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("seed", range(4))
def test_pixels_of_random_shapes_are_those_of_clips_definition(seed: int) -> None:
    draw = np.random.default_rng(seed)
    for _ in range(10):
        height, width = draw.integers(1, 700, 2).tolist()
        size = int(draw.choice([16, 48, 98, 224]))
        if size**2 * max(height / width, width / height) > 1e6:
            continue
        image = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
        difference = square(image, size).permute(1, 2, 0).numpy().astype(int) - by_definition(image, size)
        assert np.abs(difference).mean() <= 0.02, (height, width, size)


@pytest.mark.parametrize("shape", [(2, 8000), (8000, 2), (1, 3000), (100, 20000), (20000, 100)])
def test_extreme_shapes_are_cropped_before_they_are_scaled(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    made = []
    real = Image.Image.resize

    def counted(self: Image.Image, size: tuple[int, int], *rest: object, **settings: object) -> Image.Image:
        taken.append(self.width * self.height)
        made.append(size[0] * size[1])
        return real(self, size, *rest, **settings)

    monkeypatch.setattr(Image.Image, "resize", counted)
    assert square(np.zeros((*shape, 3), np.uint8), 224).shape == (3, 224, 224)
    assert sum(made) <= 4 * 224**2
    assert sum(taken) <= 5 * min(shape) ** 2 + 2 * min(shape)


def test_a_film_of_an_extreme_shape_is_decoded(tmp_path) -> None:
    path = write_video(tmp_path / "a.mkv", [3], size=(640, 2), codec="ffv1")
    frames, mask = decode_frames(FrameRequest(path, 1, 64))
    assert mask.all()
    assert frames.shape == (1, 3, 64, 64)


def test_the_centre_of_an_extreme_shape_is_what_is_kept() -> None:
    image = np.zeros((4, 1000, 3), np.uint8)
    image[:, 498:502] = 255
    assert square(image, 32).float().mean() > 240
    assert square(image.transpose(1, 0, 2), 32).float().mean() > 240


def test_the_resize_of_runs_made_before_is_there_by_its_name() -> None:
    # 5×3 pixels to 4 at the short side: the long side is 6.67 pixels, of which CLIP keeps 6, and before there were 7.
    image = natural(3, 5)
    before = square(image, 4, "rounded")
    whole = torch.nn.functional.interpolate(
        torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float(), (4, 7), mode="bicubic", antialias=True
    )[0]
    torch.testing.assert_close(before, whole[:, :, 1:5].clamp(0, 255).round().to(torch.uint8), rtol=0, atol=0)
    assert not torch.equal(before, square(image, 4))


def test_a_configuration_says_which_resize_it_gets(tmp_path) -> None:
    path = write_video(tmp_path / "a.mp4", [1, 2], size=(62, 46), noise=True)
    frames = {}
    for resize in ("clip", "rounded"):
        config = DataConfig(num_frames=1, image_size=32, resize=resize, display="rotated")
        frames[resize] = decode_clip(Clip("a", path), config)[0]
        assert torch.equal(frames[resize], decode_frames(FrameRequest(path, 1, 32, resize=resize))[0])
    assert not torch.equal(frames["clip"], frames["rounded"])


def test_the_old_resize_is_version_one_of_the_sampler() -> None:
    assert sampler_version(DataConfig(resize="rounded", display="rotated")) == 1
    assert sampler_version(DataConfig(resize="rounded")) == VIDEO_SAMPLER_VERSION
    assert sampler_version(DataConfig()) == VIDEO_SAMPLER_VERSION == 2
