"""From a decoded picture to the square that the model sees."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

Resize = Literal["clip", "rounded"]

LONGEST = 4
"""A picture that is longer than this many times its short side is cropped to that before it is scaled."""


def square(image: UInt8[np.ndarray, "H W 3"], size: int, resize: Resize = "clip") -> UInt8[Tensor, "3 S S"]:
    """A picture with its short side scaled to `size` pixels, cropped at the centre.

    Args:
        image: the picture, upright.
        size: height and width of the square in pixels.
        resize: "clip": as CLIP's own preprocessing (Pillow's bicubic filter, the sizes and offsets of torchvision's
            Resize and CenterCrop). "rounded": as runs were made before: torch's bicubic filter, the long side
            rounded, the offset rounded down.
    """
    square_of = {"clip": _square_of_clip, "rounded": _rounded_square}[resize]
    return square_of(image, size)


def _square_of_clip(image: UInt8[np.ndarray, "H W 3"], size: int) -> UInt8[Tensor, "3 S S"]:
    """The long side is rounded down, the offset to the nearest even number, as CLIP's weights have seen pictures."""
    height, width = image.shape[:2]
    rows = _Side(height, min(height, width), size)
    columns = _Side(width, min(height, width), size)

    # What lies far outside the crop is cut off unscaled.
    near = Image.fromarray(np.ascontiguousarray(image[rows.near, columns.near]))
    scaled = near.resize(
        (columns.scaled, rows.scaled),
        resample=Image.Resampling.BICUBIC,
        box=(columns.begin, rows.begin, columns.end, rows.end),
    )
    cropped = np.asarray(scaled)[rows.crop, columns.crop]
    return torch.from_numpy(cropped.copy()).permute(2, 0, 1)


class _Side:
    """How one side of a picture is scaled and cropped.

    Scaling begins and ends at `begin` and `end` of the part `near` of the side, and gives `scaled` pixels, of which
    `crop` is kept.
    """

    def __init__(self, length: int, short: int, size: int) -> None:
        whole = int(size * length / short)
        first = round((whole - size) / 2)

        # Up to LONGEST times its crop a side is scaled as a whole. Of a longer one the pixels to be scaled are chosen
        # on the grid of the whole, so that those in the crop come out alike.
        kept = min(whole, LONGEST * size)
        skipped = first - (kept - size) // 2 if kept < whole else 0
        begin = skipped * length / whole
        end = (skipped + kept) * length / whole

        # Pillow takes these as float32, which are exact enough only where they are small.
        self.near = slice(int(begin), min(length, int(end) + 1))
        self.begin = begin - self.near.start
        self.end = min(end - self.near.start, self.near.stop - self.near.start)
        self.scaled = kept
        self.crop = slice(first - skipped, first - skipped + size)


def _rounded_square(image: UInt8[np.ndarray, "H W 3"], size: int) -> UInt8[Tensor, "3 S S"]:
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).float()  # [3, H, W]
    height, width = pixels.shape[1:]
    scale = size / min(height, width)

    # Rounding must not leave a side shorter than the crop.
    scaled = (max(size, round(height * scale)), max(size, round(width * scale)))
    pixels = interpolate(pixels[None], size=scaled, mode="bicubic", antialias=True, align_corners=False)[0]
    top = (scaled[0] - size) // 2
    left = (scaled[1] - size) // 2
    pixels = pixels[:, top : top + size, left : left + size]
    return pixels.clamp(0, 255).round().to(torch.uint8)
