"""Towers of transformers that are built of a description: what SigLIP's and others' have in common."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

import transformers
from jaxtyping import Float, UInt8
from torch import Tensor

from emcl_train.errors import UserError
from emcl_train.kinds import TOWERS as FAMILIES
from emcl_train.models.clip_folder import files_of_weights, loaded_whole, require_weights_alone
from emcl_train.models.features import widened
from emcl_train.models.towers.interface import Towers, normalised
from emcl_train.reading.plain_files import LARGEST_DESCRIPTION
from emcl_train.runs.clip_config import ATTENTION, config_of_towers, numbers_in, sized_towers
from emcl_train.runs.files import read_json
from emcl_train.weights.hub import CLIP_WAY_OUT, TRANSFORMERS_CONFIG, file_of, not_loaded, require_place
from emcl_train.weights.prepared import pictures_of

PATCHES = ("vision_model.embeddings.patch_embedding.",)


class DescribedTowers(Towers):
    """Towers around a model of transformers, with the pictures that its own files ask for.

    A family says which class it is, and how captions and frames go through it.
    """

    model_class: ClassVar[str]
    """Of transformers."""

    def __init__(self, model: Any, towers: Mapping[str, Any]) -> None:
        """`towers`: the description of the model."""
        super().__init__()
        self.model = model
        self.width: int = towers["projection_dim"]
        self._towers = deepcopy(dict(towers))
        self._mean = tuple(towers["pictures"]["mean"])
        self._std = tuple(towers["pictures"]["std"])

    @classmethod
    def of_description(cls, towers: Mapping[str, Any]) -> "DescribedTowers":
        config = config_of_towers(towers)
        made = getattr(transformers, cls.model_class)
        config._attn_implementation = ATTENTION
        return cls(made(config), towers)

    @classmethod
    def of_folder(cls, name: str, *, goes_on: bool = False) -> "DescribedTowers":
        """Towers with the weights of a folder or hub entry, each of them accounted for.

        Args:
            name: the folder, or the hub name.
            goes_on: whether a run goes on, which has found it good already.

        Raises:
            UserError: it cannot be read, or its weights are not those of the model.
        """
        towers = cls.described_folder(name)
        require_weights_alone(name, "model.clip", CLIP_WAY_OUT)
        folder = Path(name).expanduser()
        model = loaded_whole(
            getattr(transformers, cls.model_class),
            str(folder) if folder.is_dir() else name,
            name,
            FAMILIES[towers["model_type"]].label,
            CLIP_WAY_OUT,
            goes_on=goes_on,
            config=config_of_towers(towers),
            attn_implementation=ATTENTION,
        )
        return cls(model, towers)

    @classmethod
    def described_folder(cls, name: str) -> dict[str, Any]:
        """The description of the towers in a folder or hub entry, its pictures included; no weight is read.

        Raises:
            UserError: it cannot be had, is damaged, larger than its weights, or prepares pictures in a way that is not
                built here.
        """
        return _described_folder(name)

    def description(self) -> dict[str, Any]:
        return deepcopy(self._towers)

    def encode_frames(self, frames: UInt8[Tensor, "B F 3 S S"]) -> Float[Tensor, "B F D"]:
        pixels = normalised(frames, self._mean, self._std, next(self.model.vision_model.parameters()))
        return widened(self.pooled_pixels(pixels)).unflatten(0, frames.shape[:2])

    def pooled_pixels(self, pixels: Float[Tensor, "N 3 S S"]) -> Float[Tensor, "N D"]:
        """Features of normalised pictures."""
        raise NotImplementedError


def _described_folder(name: str) -> dict[str, Any]:
    require_place(name, "model.clip", CLIP_WAY_OUT)
    try:
        file = file_of(name, TRANSFORMERS_CONFIG)
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.clip is {name}, which cannot be had: {not_loaded(name, error)}; {CLIP_WAY_OUT}"
        ) from error
    content = read_json(file, CLIP_WAY_OUT, what="a configuration", keys=(), largest=LARGEST_DESCRIPTION)
    weights = numbers_in(*files_of_weights(Path(name).expanduser()))
    towers = sized_towers(content, str(file), weights=weights)

    pictures = pictures_of(name, towers["model_type"])
    expected = towers["vision_config"]["image_size"]
    if pictures.image_size != expected:
        raise UserError(
            f"model.clip is {name}, whose pictures are prepared at {pictures.image_size} pixels, and whose vision "
            f"tower has positions for {expected}; {CLIP_WAY_OUT}"
        )
    return towers | {"pictures": pictures.as_json()}
