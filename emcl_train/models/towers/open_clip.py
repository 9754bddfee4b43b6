"""OpenCLIP's models, built by its own library: PE-Core, SigLIP in its form, those with vision towers of timm.

What is described is kept in OpenCLIP's own words. A feature is what its `encode_text` and `encode_image` give, not
normalised; captions have as many tokens as the model takes, as it was trained.
"""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from emcl_train.errors import UserError
from emcl_train.extras import require_packages
from emcl_train.flags import flag
from emcl_train.models.features import widened
from emcl_train.models.towers.interface import Towers, normalised
from emcl_train.reading.tower_fields import FIELDS, OPEN_CLIP
from emcl_train.runs.clip_config import numbers_in, sized_towers
from emcl_train.runs.open_clip_library import built, library
from emcl_train.weights.files import read_state
from emcl_train.weights.hub import CLIP_WAY_OUT, not_loaded, optional_file, require_place
from emcl_train.weights.keys import require_keys
from emcl_train.weights.prepared import description_of, pictures_of

MASKED = -1e9
"""In place of minus infinity in a mask."""
SAID_BY = "the configuration of the towers (clip_config.json)"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
"""Names that OpenCLIP gives its files, as it looks for them."""
OF_TEXT = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
"""Beginnings of the text tower's names; where it is kept apart, "text." stands before them."""
PATCHES = ("visual.conv1.", *(f"visual.trunk.{name}." for name in ("patch_embed", "stem", "conv1")))
BEFORE_LAYERS = ("class_embedding", "positional_embedding", "ln_pre.", *(
    f"trunk.{name}" for name in ("cls_token", "reg_token", "pos_embed", "norm_pre.")
))  # fmt: skip


class OpenCLIPTowers(Towers):
    """Captions and frames to one space, not normalised."""

    inputs = {  # noqa: RUF012 (a constant, as the base class has it)
        "conv1": PATCHES,
        "clip4clip": (
            *PATCHES,
            *(f"visual.{name}" for name in BEFORE_LAYERS),
            *(f"{text}{name}" for text in ("", "text.") for name in ("token_embedding.", "positional_embedding")),
        ),
    }

    def __init__(self, model: Any, towers: Mapping[str, Any]) -> None:
        """`towers`: the description of the model."""
        super().__init__()
        self.model = model
        self.width: int = towers["projection_dim"]
        self._towers = deepcopy(dict(towers))
        self._mean = tuple(towers["pictures"]["mean"])
        self._std = tuple(towers["pictures"]["std"])
        # A causal mask is no weight, but lies with them, where training looks for what is not finite. Features stay the
        # same to the bit: e to the power of either is 0.
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.masked_fill_(buffer.isneginf(), MASKED)
        self.parts = ("visual", "text" if hasattr(model, "text") else "transformer")  # type: ignore[misc]
        if model.logit_bias is not None:  # trained by the sigmoid loss, whose factor is not held
            self.largest_scale = None  # type: ignore[misc]

    @classmethod
    def of_description(cls, towers: Mapping[str, Any]) -> "OpenCLIPTowers":
        return cls(built(towers["model_cfg"], SAID_BY), towers)

    @classmethod
    def described_folder(cls, name: str) -> dict[str, Any]:
        """The description of the towers in a folder or hub entry, its pictures included; no weight is read.

        Raises:
            UserError: it cannot be had, is damaged, not built here, or larger than its weights; or OpenCLIP is not
                installed.
        """
        require_place(name, "model.clip", CLIP_WAY_OUT)
        require_packages("openclip")
        content, file = description_of(name, OPEN_CLIP)
        folder = Path(name).expanduser()
        weights = numbers_in(*(folder / file for file in WEIGHTS)) if folder.is_dir() else None
        towers = sized_towers(content | {"model_type": OPEN_CLIP}, str(file), weights=weights)
        return towers | {"pictures": pictures_of(name, OPEN_CLIP).as_json()}

    @classmethod
    def of_folder(cls, name: str, *, goes_on: bool = False) -> "OpenCLIPTowers":
        """Towers with the weights of a folder or hub entry, each of them accounted for.

        Args:
            name: the folder, or the hub name.
            goes_on: whether a run goes on, which has found it good already.

        Raises:
            UserError: it cannot be read, or its weights are not those of the model.
        """
        towers = cls.described_folder(name)
        file = _file_of_weights(name)
        state = read_state(file, goes_on=goes_on)
        model = built(towers["model_cfg"], name)
        state = _under_its_names(model, state, str(file))
        require_keys(
            state,
            {key: value.shape for key, value in model.state_dict().items()},
            source=f"model.clip {file}",
            way_out="Bring the weights and the open_clip_config.json of one and the same model",
        )
        model.load_state_dict(state)
        found = cls(model.float(), towers)
        found.require_features(name)
        return found

    def require_features(self, name: str) -> None:
        """Raise a UserError where a picture of the size that is described has no feature, or one of another width."""
        size = FIELDS[OPEN_CLIP].image_size(self._towers)
        was = self.training
        self.eval()
        try:
            with torch.no_grad():
                shape = tuple(self.model.encode_image(torch.zeros(1, 3, size, size)).shape)
        except (AssertionError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"model.clip is {name}, whose vision tower does not take pictures of {size} pixels, as is described: "
                f"{reason}; bring the open_clip_config.json that belongs to these weights"
            ) from error
        finally:
            self.train(was)
        if shape != (1, self.width):
            raise UserError(
                f"model.clip is {name}, whose vision tower gives {list(shape)} for a picture, expected "
                f"{[1, self.width]}; bring the open_clip_config.json that belongs to these weights"
            )

    def description(self) -> dict[str, Any]:
        return deepcopy(self._towers)

    def train(self, mode: bool = True) -> "OpenCLIPTowers":
        """As of any module, but that means and deviations of batches stay those of the checkpoint."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def recompute_layers(self) -> None:
        """As of any towers; OpenCLIP says no word where a vision tower of its own cannot."""
        visual = self.model.visual
        try:
            if hasattr(visual, "trunk"):
                visual.trunk.set_grad_checkpointing(True)
            elif not hasattr(visual, "transformer"):
                raise AttributeError(f"{type(visual).__name__} has no layers of a transformer")
            self.model.set_grad_checkpointing(True)
        except (AssertionError, AttributeError, TypeError) as error:
            tower = FIELDS[OPEN_CLIP].in_words(self._towers)
            raise UserError(
                f"train.gradient_checkpointing is True, and the layers of {tower} cannot be computed again ({error}); "
                f"leave out {flag('train.gradient_checkpointing')}, and pass {flag('train.chunks')}, which takes less "
                f"memory with every model"
            ) from error

    def first_weights(self, frozen: str) -> tuple[str, ...]:
        first = super().first_weights(frozen)
        names = [name for name, _ in self.named_parameters()]
        if first and not any(name.startswith(first[: len(PATCHES)]) for name in names):
            tower = FIELDS[OPEN_CLIP].in_words(self._towers)
            raise UserError(
                f"train.frozen is {frozen}, and it is not known which weights of {tower} see the pixels first; pass "
                f"{flag('train.frozen')} none"
            )
        return first

    def encode_text(
        self, input_ids: Int64[Tensor, "A L"], attention_mask: Int64[Tensor, "A L"], *, tokens: bool = False
    ) -> tuple[Float[Tensor, "A D"], Float[Tensor, "A L D"] | None]:
        """Features of captions, padding included, as the model was trained; see `Towers.encode_text`."""
        if not tokens:
            return widened(self.model.encode_text(input_ids)), None
        found = self.model.forward_intermediates(
            text=input_ids, text_indices=1, normalize=False, normalize_intermediates=True, text_output_fmt="NLC"
        )
        (last,) = found["text_intermediates"]
        projection = getattr(self.model, "text", self.model).text_projection
        if isinstance(projection, nn.Linear):
            last = projection(last)
        elif projection is not None:
            last = last @ projection
        return widened(found["text_features"]), widened(last)

    def encode_frames(self, frames: UInt8[Tensor, "B F 3 S S"]) -> Float[Tensor, "B F D"]:
        pixels = normalised(frames, self._mean, self._std, next(self.model.visual.parameters()))
        return widened(self.model.encode_image(pixels)).unflatten(0, frames.shape[:2])


def _file_of_weights(name: str) -> Path:
    """The file with the weights, of the names that OpenCLIP gives it.

    Raises:
        UserError: there is none, or it cannot be had.
    """
    for file in WEIGHTS:
        try:
            path = optional_file(name, file)
        except (OSError, ValueError) as error:
            raise UserError(
                f"model.clip is {name}, which cannot be had: {not_loaded(name, error)}; {CLIP_WAY_OUT}"
            ) from error
        if path is not None:
            return path
    raise UserError(f"model.clip is {name}, which has no weights of OpenCLIP: none of {', '.join(WEIGHTS)}; bring them")


def _under_its_names(model: nn.Module, state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Weights under the names and in the shapes of a model, where older or others' files have them otherwise.

    Raises:
        UserError: they are others', and OpenCLIP cannot bring them to its names.
    """
    try:
        found = dict(library().convert.convert_state_dict(model, dict(state)))  # of Apple's MobileCLIP
    except (AssertionError, KeyError, RuntimeError) as error:
        raise UserError(
            f"the weights in {source} have names of another program, which OpenCLIP does not bring to its own "
            f"({error}); save the model by OpenCLIP"
        ) from error
    if hasattr(model, "text") and "positional_embedding" in found:
        found = {f"text.{name}" if name.startswith(OF_TEXT) else name: value for name, value in found.items()}
    for name in ("logit_scale", "logit_bias"):
        if name in found and found[name].numel() == 1:
            found[name] = found[name].reshape(())
    return found
