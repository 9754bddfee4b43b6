"""One small picture of a moment: not the first frame, which is often black, but one that shows something."""

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from emcl_train.data.picture import Picture

HEIGHT = 144
"""In pixels; less, where it would be more than twice as wide."""
QUALITY = 60
"""As WebP counts it."""
FLAT = 12.0
"""Standard deviation of brightness, of 255, below which a picture shows next to nothing: black, white, one colour."""


def thumbnail_of(pictures: Sequence[Picture]) -> bytes:
    """A WebP of the picture that is nearest to the middle, of those that show something.

    Args:
        pictures: of one moment, at least one, in their order.
    """
    small = [_small(picture) for picture in pictures]
    spread = [float(picture.mean(axis=2).std()) for picture in small]
    middle = (len(small) - 1) / 2
    lively = [place for place, value in enumerate(spread) if value >= FLAT]
    if lively:
        chosen = min(lively, key=lambda place: abs(place - middle))
    else:
        chosen = max(range(len(small)), key=spread.__getitem__)

    data = io.BytesIO()
    Image.fromarray(small[chosen]).save(data, "WEBP", quality=QUALITY, method=4)
    return data.getvalue()


def _small(picture: Picture) -> UInt8[np.ndarray, "h w 3"]:
    scale = min(1.0, HEIGHT / picture.height, 2 * HEIGHT / picture.width)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    image = Image.fromarray(np.ascontiguousarray(picture.pixels))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))
