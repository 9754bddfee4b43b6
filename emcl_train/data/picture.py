"""From a decoded frame to the picture that is watched, and to the square of it that the model sees."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import torch
from av.video.frame import VideoFrame
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from emcl_train.config import Resize
from emcl_train.data.converting import converted

Display = Literal["watched", "rotated"]

LONGEST = 4
"""A picture that is longer than this many times its short side is cropped to that before it is scaled."""


@dataclass(frozen=True)
class Picture:
    """A frame as it is meant to be seen: its pixels, and the size on a screen of square pixels."""

    pixels: UInt8[np.ndarray, "H W 3"]
    height: int
    width: int


def picture_of(frame: VideoFrame, aspect: Fraction | None = None, display: Display = "watched") -> Picture:
    """A frame as a player shows it.

    Args:
        frame: as it is stored: phones lay it on its side, front cameras mirror it, DVDs press it together.
        aspect: width of a stored pixel over its height. None: it is square.
        display: "watched": turned, mirrored, and of the shape that its pixels give it. "rotated": turned alone, as runs
            were made before.
    """
    stored = converted(frame, format="rgb24").to_ndarray()
    if display == "rotated":
        turned = np.rot90(stored, round(frame.rotation / 90))
        return Picture(turned, *turned.shape[:2])

    height, width = stored.shape[:2]
    if aspect:
        width = max(1, round(width * aspect))

    matrix = _display_matrix(frame)
    if matrix is None:
        turns = round(frame.rotation / 90)
        sideways = turns % 2 == 1
        pixels = np.rot90(stored, turns)
    else:
        # The first two rows say where a step to the right and a step down lead.
        (right_x, right_y), (down_x, down_y) = matrix[:2, :2]
        sideways = bool(abs(right_y) + abs(down_x) > abs(right_x) + abs(down_y))
        pixels = stored.transpose(1, 0, 2) if sideways else stored
        if (down_x if sideways else right_x) < 0:
            pixels = pixels[:, ::-1]
        if (right_y if sideways else down_y) < 0:
            pixels = pixels[::-1]
    return Picture(pixels, width, height) if sideways else Picture(pixels, height, width)


def _display_matrix(frame: VideoFrame) -> np.ndarray | None:
    """The display matrix of a frame, [3, 3] in fixed point; None: there is none, or it cannot be read."""
    found: Any
    try:
        found = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # beside it lies something that PyAV has no name for
        return None
    if found is None:
        return None
    return np.frombuffer(bytes(found), dtype=np.int32)[:9].reshape(3, 3).astype(np.int64)


def square(picture: Picture, size: int, resize: Resize = "clip") -> UInt8[Tensor, "3 S S"]:
    """A picture with its short side scaled to `size` pixels, cropped at the centre; or all of it pressed together.

    Args:
        picture: as it is watched.
        size: height and width of the square in pixels.
        resize: "clip": as CLIP's own preprocessing (Pillow's bicubic filter, the sizes and offsets of torchvision's
            Resize and CenterCrop). "clip-bilinear": likewise, by the bilinear filter. "crop-bicubic", "crop-bilinear":
            by that filter of Pillow, the offset rounded down, as the image processors of transformers crop.
            "squash-bicubic", "squash-bilinear": both sides scaled to `size`, without a crop. "rounded": as runs were
            made before: torch's bicubic filter, the long side rounded, the offset rounded down.
    """
    if resize == "rounded":
        return _rounded_square(picture, size)
    if resize in ("clip", "clip-bilinear"):
        of_clip = Image.Resampling.BICUBIC if resize == "clip" else Image.Resampling.BILINEAR
        return _cropped_square(picture, size, of_clip, lambda excess: round(excess / 2))

    how, _, name = resize.partition("-")
    resample = Image.Resampling[name.upper()]
    if how == "crop":
        return _cropped_square(picture, size, resample, lambda excess: excess // 2)
    pressed = Image.fromarray(np.ascontiguousarray(picture.pixels)).resize((size, size), resample=resample)
    return torch.from_numpy(np.asarray(pressed).copy()).permute(2, 0, 1)


def _cropped_square(
    picture: Picture, size: int, resample: Image.Resampling, offset: Callable[[int], int]
) -> UInt8[Tensor, "3 S S"]:
    """The long side is rounded down, and what is more than `size` of it is cut off behind an offset.

    That of CLIP's weights is half of it, rounded to the nearest even number.
    """
    height, width = picture.pixels.shape[:2]
    short = min(picture.height, picture.width)
    rows = _Side(height, int(size * picture.height / short), size, offset)
    columns = _Side(width, int(size * picture.width / short), size, offset)

    # What lies far outside the crop is cut off unscaled.
    near = Image.fromarray(np.ascontiguousarray(picture.pixels[rows.near, columns.near]))
    scaled = near.resize(
        (columns.scaled, rows.scaled),
        resample=resample,
        box=(columns.begin, rows.begin, columns.end, rows.end),
    )
    cropped = np.asarray(scaled)[rows.crop, columns.crop]
    return torch.from_numpy(cropped.copy()).permute(2, 0, 1)


class _Side:
    """How one side of a picture is scaled and cropped.

    Scaling begins and ends at `begin` and `end` of the part `near` of the side, and gives `scaled` pixels, of which
    `crop` is kept.
    """

    def __init__(self, length: int, whole: int, size: int, offset: Callable[[int], int]) -> None:
        """A side of `length` pixels that would be `whole` pixels long after scaling, of which `size` are kept."""
        first = offset(whole - size)

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


def _rounded_square(picture: Picture, size: int) -> UInt8[Tensor, "3 S S"]:
    pixels = torch.from_numpy(picture.pixels.copy()).permute(2, 0, 1).float()  # [3, H, W]
    scale = size / min(picture.height, picture.width)

    # Rounding must not leave a side shorter than the crop.
    scaled = (max(size, round(picture.height * scale)), max(size, round(picture.width * scale)))
    pixels = interpolate(pixels[None], size=scaled, mode="bicubic", antialias=True, align_corners=False)[0]
    top = (scaled[0] - size) // 2
    left = (scaled[1] - size) // 2
    pixels = pixels[:, top : top + size, left : left + size]
    return pixels.clamp(0, 255).round().to(torch.uint8)
