"""RandAugment on the frames of a clip: the release's four operations a clip, the same ones on all of its frames.

Magnitudes run from 0 to 10. Each of four operations, drawn with replacement, is applied with a chance of one half, with
a magnitude around 7 (deviation 0.5) that makes its effect the stronger the larger it is.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

OPERATIONS = 4
CHANCE = 0.5
MAGNITUDE = 7.0
DEVIATION = 0.5
MOST = 10.0
GREY = (128, 128, 128)
"""What comes in from outside the picture."""

Operation = Callable[[Image.Image], Image.Image]
Draw = np.random.Generator


def rand_augment(frames: UInt8[Tensor, "F 3 S S"], mask: Bool[Tensor, "F"], random: Draw) -> UInt8[Tensor, "F 3 S S"]:
    """Change the frames of a clip, all alike.

    Args:
        frames: uint8 frames of S × S pixels.
        mask: False on padding, which stays as it is.
        random: draws the operations, so that its seed decides them.

    Returns:
        The changed frames; `frames` itself if no operation was drawn.
    """
    operations = draw_operations(random)
    if not operations:
        return frames

    changed = frames.clone()
    for index in mask.nonzero().flatten().tolist():
        image = Image.fromarray(frames[index].permute(1, 2, 0).contiguous().numpy())
        for operation in operations:
            image = operation(image)
        changed[index] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return changed


def draw_operations(random: Draw) -> list[Operation]:
    """What happens to every frame of a clip, in this order."""
    drawn = []
    for kind in random.integers(len(KINDS), size=OPERATIONS):
        if random.random() < CHANCE:
            magnitude = float(np.clip(random.normal(MAGNITUDE, DEVIATION), 0, MOST))
            sign = 1.0 if random.random() < 0.5 else -1.0
            drawn.append(KINDS[kind](magnitude / MOST, sign))
    return drawn


# Each takes the magnitude as a share of the largest, and a sign, which it uses where its effect has a direction.


def _auto_contrast(share: float, sign: float) -> Operation:
    return ImageOps.autocontrast


def _equalize(share: float, sign: float) -> Operation:
    return ImageOps.equalize


def _invert(share: float, sign: float) -> Operation:
    return ImageOps.invert


def _posterize(share: float, sign: float) -> Operation:
    return lambda image: ImageOps.posterize(image, max(1, 4 - int(share * 4)))


def _solarize(share: float, sign: float) -> Operation:
    return lambda image: ImageOps.solarize(image, 256 - int(share * 256))


def _solarize_add(share: float, sign: float) -> Operation:
    added = int(share * 110)
    of_channel = [min(255, value + added) if value < 128 else value for value in range(256)]
    return lambda image: image.point(of_channel * 3)


def _enhance(enhancer: type) -> Callable[[float, float], Operation]:
    """An operation that makes more or less of what a class of Pillow enhances."""

    def kind(share: float, sign: float) -> Operation:
        return lambda image: enhancer(image).enhance(1.0 + sign * 0.9 * share)

    return kind


def _rotate(share: float, sign: float) -> Operation:
    return lambda image: image.rotate(sign * 30.0 * share, resample=Image.Resampling.BICUBIC, fillcolor=GREY)


def _shear_x(share: float, sign: float) -> Operation:
    return _affine(lambda size: (1, sign * 0.3 * share, 0, 0, 1, 0))


def _shear_y(share: float, sign: float) -> Operation:
    return _affine(lambda size: (1, 0, 0, sign * 0.3 * share, 1, 0))


def _translate_x(share: float, sign: float) -> Operation:
    return _affine(lambda size: (1, 0, sign * 0.45 * share * size[0], 0, 1, 0))


def _translate_y(share: float, sign: float) -> Operation:
    return _affine(lambda size: (1, 0, 0, 0, 1, sign * 0.45 * share * size[1]))


def _affine(coefficients: Callable[[tuple[int, int]], tuple[float, ...]]) -> Operation:
    """An affine map of the picture, whose six coefficients depend on its size."""

    def apply(image: Image.Image) -> Image.Image:
        return image.transform(
            image.size,
            Image.Transform.AFFINE,
            coefficients(image.size),
            resample=Image.Resampling.BICUBIC,
            fillcolor=GREY,
        )

    return apply


KINDS: tuple[Callable[[float, float], Operation], ...] = (
    _auto_contrast,
    _equalize,
    _invert,
    _rotate,
    _posterize,
    _solarize,
    _solarize_add,
    _enhance(ImageEnhance.Color),
    _enhance(ImageEnhance.Contrast),
    _enhance(ImageEnhance.Brightness),
    _enhance(ImageEnhance.Sharpness),
    _shear_x,
    _shear_y,
    _translate_x,
    _translate_y,
)
