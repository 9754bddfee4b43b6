"""How a model's own files prepare pictures: `preprocessor_config.json` or OpenCLIP's description, by anybody.

What is taken is the square that the model sees, how pictures become it, and the mean and deviation of its pixels. What
is done otherwise than is built here is named.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from emcl_train.reading.clip_fields import LARGEST_PICTURE
from emcl_train.reading.values import arguments, between, one_of, switch, three, whole

FILTERS = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of the filters that are built here."""
SQUARES = ("crop-bicubic", "crop-bilinear", "squash-bicubic", "squash-bilinear", "clip-bilinear")
"""Values of `data.resize` that models' own files lead to: the short side scaled and the centre cropped, or all of a
picture pressed into the square. Those of OpenCLIP may lead to CLIP's own too."""
OF_OPEN_CLIP = {
    ("shortest", "bicubic"): "clip",
    ("shortest", "bilinear"): "clip-bilinear",
    ("squash", "bicubic"): "squash-bicubic",
    ("squash", "bilinear"): "squash-bilinear",
}
"""By OpenCLIP's `resize_mode` and `interpolation`; "random" is of training, and bicubic elsewhere."""
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""CLIP's, which OpenCLIP takes where its description does not say."""
IN_255 = 1 / 255

side = partial(whole, largest=LARGEST_PICTURE)


@dataclass(frozen=True)
class Pictures:
    """The pictures that a vision tower sees."""

    image_size: int
    """Height and width in pixels."""
    resize: str
    """As `data.resize`, one of `SQUARES`, or "clip"."""
    mean: tuple[float, ...]
    """Of each channel, where pixels go from 0 to 1."""
    std: tuple[float, ...]

    def as_json(self) -> dict[str, Any]:
        """As it is kept with a run."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def pictures_of_record(content: Any) -> Pictures:
    """What `Pictures.as_json` gave.

    Raises:
        ValueError: a value is of a wrong kind.
    """
    if not isinstance(content, dict):
        raise ValueError(f"pictures is {str(content)[:60]!r}, expected an object")
    return Pictures(
        side(content.get("image_size"), "pictures.image_size"),
        one_of(content.get("resize"), "pictures.resize", ("clip", *SQUARES)),
        _channels(content.get("mean"), "pictures.mean", least=-10.0),
        _channels(content.get("std"), "pictures.std", least=1e-6),
    )


def pictures_of_processor(content: Mapping[str, Any]) -> Pictures:
    """What a description of an image processor says, if pictures become squares as is built here.

    Args:
        content: of `preprocessor_config.json`, or of `image_processor` in `processor_config.json`.

    Raises:
        NotBuilt: it prepares pictures in another way.
        ValueError: a value is of a wrong kind, or one that is needed is not there.
    """
    # Processors that compute by torch write null for what is as usual.
    content = {name: value for name, value in content.items() if value is not None}
    if otherwise := list(_not_built(content)):
        raise NotBuilt(", ".join(otherwise))

    # The square, and whether pictures are cropped to it or pressed into it.
    height, width, shortest = _sizes(content.get("size"), "size")
    cropped = switch(content.get("do_center_crop", False), "do_center_crop")
    if shortest is not None:
        kept = _sizes(content.get("crop_size", shortest), "crop_size", square=True)[:2] if cropped else None
        if kept != (shortest, shortest):
            raise NotBuilt(f"size {content.get('size')}, crop_size {content.get('crop_size') if cropped else None}")
        kind, image_size = "crop", shortest
    else:
        kept = _sizes(content.get("crop_size", height), "crop_size", square=True)[:2] if cropped else (height, width)
        if height is None or height != width or kept != (height, width):
            raise NotBuilt(f"size {content.get('size')}, crop_size {content.get('crop_size') if cropped else None}")
        kind, image_size = "squash", height

    normalized = switch(content.get("do_normalize", True), "do_normalize")
    return Pictures(
        image_size,
        f"{kind}-{FILTERS[content['resample']]}",
        _channels(content.get("image_mean"), "image_mean", least=-10.0) if normalized else (0.0, 0.0, 0.0),
        _channels(content.get("image_std"), "image_std", least=1e-6) if normalized else (1.0, 1.0, 1.0),
    )


def pictures_of_open_clip(content: Any, image_size: int) -> Pictures:
    """What OpenCLIP's `preprocess_cfg` says. The size is that of the vision tower, as OpenCLIP has it.

    Args:
        content: of the description; null where it says nothing.
        image_size: of the vision tower.

    Raises:
        NotBuilt: pictures are prepared in another way.
        ValueError: a value is of a wrong kind.
    """
    given = {name: value for name, value in arguments(content, "preprocess_cfg").items() if value is not None}
    mode, filtered = given.get("resize_mode", "shortest"), given.get("interpolation", "bicubic")
    resize = OF_OPEN_CLIP.get((str(mode), "bicubic" if filtered == "random" else str(filtered)))
    if resize is None:
        raise NotBuilt(f"resize_mode {str(mode)[:30]}, interpolation {str(filtered)[:30]}")
    if given.get("mode", "RGB") != "RGB":
        raise NotBuilt(f"mode {str(given['mode'])[:30]}")

    def channels(name: str, usual: tuple[float, ...], least: float) -> tuple[float, ...]:
        value = given.get(name, list(usual))
        return _channels(value if isinstance(value, list) else [value] * 3, f"preprocess_cfg.{name}", least=least)

    return Pictures(image_size, resize, channels("mean", MEAN, -10.0), channels("std", STD, 1e-6))


class NotBuilt(ValueError):
    """Pictures are prepared in a way that is not built here; the text names what it has."""


def _not_built(content: Mapping[str, Any]) -> Iterator[str]:
    for name, expected in (("do_resize", True), ("do_rescale", True), ("rescale_offset", False), ("do_pad", False)):
        if switch(content.get(name, expected) or False, name) != expected:
            yield f"{name} {content[name]}"
    # Whatever else a processor does by a switch of its own.
    known = ("do_resize", "do_rescale", "do_pad", "do_center_crop", "do_normalize", "do_convert_rgb")
    for name, value in content.items():
        if name.startswith("do_") and name not in known and value:
            yield f"{name} {value}"

    factor = between(content.get("rescale_factor", IN_255), "rescale_factor", least=0.0, largest=1e6)
    if abs(factor - IN_255) > 1e-9:
        yield f"rescale_factor {factor:g}"
    resample = content.get("resample")
    if isinstance(resample, bool) or not isinstance(resample, int) or resample not in FILTERS:
        known_filters = ", ".join(f"{number} ({name})" for number, name in FILTERS.items())
        yield f"resample {str(resample)[:30]} (here: {known_filters})"


def _sizes(value: Any, name: str, *, square: bool = False) -> tuple[int | None, int | None, int | None]:
    """Height and width of a rectangle, or a shortest edge. One number is the latter, or with `square` a square."""
    if isinstance(value, dict):
        value = {key: one for key, one in value.items() if one is not None}
        others = sorted(set(map(str, value)) - {"height", "width", "shortest_edge"})
        if others:
            raise NotBuilt(f"{name} {others[0]}")
        shortest = value.get("shortest_edge")
        if shortest is not None:
            return None, None, side(shortest, f"{name}.shortest_edge")
        return side(value.get("height"), f"{name}.height"), side(value.get("width"), f"{name}.width"), None
    number = side(value, name)
    return (number, number, None) if square else (None, None, number)


def _channels(value: Any, name: str, *, least: float) -> tuple[float, ...]:
    return tuple(between(one, name, least=least, largest=10.0) for one in three(value, name))
