"""CLIP from a file with OpenAI's names: sizes are in its shapes, and what no shape shows has to be said beside them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from emcl_train.config import ModelConfig
from emcl_train.errors import UserError
from emcl_train.processes import rank_and_world
from emcl_train.reading.plain_files import LARGEST_DESCRIPTION
from emcl_train.runs.clip_config import build_clip, clip_config_of_fields
from emcl_train.runs.files import json_if_whole, read_json
from emcl_train.weights.files import clip_config_beside, read_state
from emcl_train.weights.hub import OPEN_CLIP_CONFIG, TRANSFORMERS_CONFIG, file_of, not_loaded, require_place
from emcl_train.weights.keys import require_keys
from emcl_train.weights.open_clip import (
    is_custom_text,
    open_clip_config,
    other_tower,
    plain_names,
)
from emcl_train.weights.openai import (
    NO_WEIGHTS,
    clip_from_openai,
    clip_to_openai,
    openai_clip_config,
    unseen_in,
)
from emcl_train.weights.release import HINTS

OF_OPENAI = {"input_resolution", "context_length", "vocab_size"}
"""Numbers beside the weights that OpenAI's archives hold, and OpenCLIP's files do not."""
SIZES_OF_OPENAI = {(768, 12, 512, 12), (1024, 24, 768, 12)}
"""Width and layers of the vision tower, then of the text tower, of ViT-B and ViT-L."""
SMALL = 512
"""Towers less wide than this are nobody's published ones."""
SAY_SIZES = {
    "visual.conv1.weight": 1,
    "visual.positional_embedding": 1,
    "text_projection": 2,
    "ln_final.weight": 1,
    "token_embedding.weight": 1,
    "positional_embedding": 1,
    "transformer.resblocks.0.mlp.c_fc.bias": 1,
    "visual.transformer.resblocks.0.mlp.c_fc.bias": 1,
}
"""Weights that sizes are read from, with how many dimensions that takes at least."""
OF_TOWER = ("hidden_size", "intermediate_size", "num_hidden_layers")
SIZES = {
    "vision_config": (*OF_TOWER, "patch_size", "image_size"),
    "text_config": (*OF_TOWER, "max_position_embeddings", "vocab_size"),
}
"""What shapes show of each tower."""


@dataclass(frozen=True)
class Vocabulary:
    """What the text tower has to know of the tokenizer: how many tokens there are, and two of their ids."""

    size: int
    eos_token_id: int
    pad_token_id: int


def look_at_file(path: Path, *, goes_on: bool) -> dict[str, Any]:
    """Look at a file with OpenAI's names, before anything that takes time.

    Args:
        path: the file.
        goes_on: whether a run goes on, which has a record of its towers.

    Returns:
        The sizes of its towers, as arguments of transformers' CLIPConfig.

    Raises:
        UserError: it is damaged, holds no CLIP, or one that is not built here.
    """
    archive = read_archive(path, goes_on=goes_on)
    sizes = openai_sizes(archive.weights, str(path), heads=None, eos_token_id=0, pad_token_id=0)
    if not goes_on:
        archive.require_said()
    return sizes


def archived_clip(config: ModelConfig, vocabulary: Vocabulary, recorded: Mapping[str, Any] | None = None) -> CLIPModel:
    """Weights from a file with OpenAI's names, such as `ViT-B-32.pt`; every key must be known and there.

    Args:
        config: names the file.
        vocabulary: of the tokenizer.
        recorded: the configuration of the towers that a run began with, which goes on with these whatever is said now.
    """
    path = Path(config.clip).expanduser()
    archive = read_archive(path, goes_on=recorded is not None)
    if recorded is not None:
        archive = replace(archive, recorded=dict(recorded), said_by=f"the record of {path}")
    built = archive_config(config, archive.weights, vocabulary, str(path), archive.recorded)
    archive.require_said()
    archive.require_sizes(built)
    if archive.said_by is None and rank_and_world()[0] == 0:
        Console(stderr=True).print(
            f"[yellow]warning:[/yellow] {escape(str(path))} has OpenAI's names, and nothing says that its towers are "
            f"OpenAI's: they are taken for quick_gelu and heads of 64 channels. If OpenCLIP wrote it, put its "
            f"{OPEN_CLIP_CONFIG} beside it",
            soft_wrap=True,
        )

    clip = build_clip(built)
    expected = {name: value.shape for name, value in clip_to_openai(clip.state_dict()).items()}
    require_keys(archive.weights, expected, source=f"model.clip {path}", hints=HINTS)
    clip.load_state_dict(clip_from_openai(archive.weights))
    return clip


@dataclass(frozen=True)
class Archive:
    """A file with OpenAI's names, and what says how its towers compute."""

    path: Path
    weights: dict[str, Tensor]
    """Under OpenAI's names, without its other numbers."""
    recorded: dict[str, Any] | None
    """CLIP's configuration, in the format of transformers; None: OpenAI's rule."""
    said_by: str | None
    """What says so; None: nothing does."""
    custom_text: bool
    """Whether the names were those of OpenCLIP alone."""

    def require_said(self) -> None:
        """Raise a UserError where nothing says how the towers compute, and they cannot be OpenAI's."""
        if self.said_by is not None:
            return

        reasons = []
        if self.path.name.startswith("open_clip"):
            reasons.append("it has the name that OpenCLIP gives its files")
        if self.custom_text:
            reasons.append("its text tower has names of OpenCLIP (text.)")
        sizes = openai_sizes(self.weights, str(self.path), heads=None, eos_token_id=0, pad_token_id=0)
        vision = sizes["vision_config"]
        text = sizes["text_config"]
        found = [tower[name] for tower in (vision, text) for name in ("hidden_size", "num_hidden_layers")]
        if vision["hidden_size"] >= SMALL and tuple(found) not in SIZES_OF_OPENAI:
            reasons.append("a vision tower {} wide with {} layers and a text tower {} wide with {}".format(*found))
        if reasons:
            raise UserError(
                f"model.clip is {self.path}, whose towers are not OpenAI's ({'; '.join(reasons)}), and nothing beside "
                f"it says how they are activated and how wide their heads are; put OpenCLIP's {OPEN_CLIP_CONFIG} "
                f"beside it, or pass --model.clip a folder in the transformers layout"
            )

    def require_sizes(self, built: CLIPConfig) -> None:
        """Raise a UserError where what was recorded of the towers' sizes is not what the shapes show."""
        if self.recorded is None:
            return
        recorded = described_clip(self.recorded, self.said_by or str(self.path))
        differing = [
            f"{tower.removesuffix('_config')} {name} is {getattr(getattr(built, tower), name)} by the shapes, "
            f"{getattr(getattr(recorded, tower), name)} by the description"
            for tower, names in SIZES.items()
            for name in names
            if getattr(getattr(built, tower), name) != getattr(getattr(recorded, tower), name)
        ]
        if built.projection_dim != recorded.projection_dim:
            differing.append(
                f"both towers end in {built.projection_dim} channels by the shapes, {recorded.projection_dim} by the "
                f"description"
            )
        if differing:
            raise UserError(
                f"model.clip is {self.path}, which {self.said_by} does not describe: {'; '.join(differing)}; bring the "
                f"description that belongs to these weights, or put them into a folder of their own"
            )


def read_archive(path: Path, *, goes_on: bool = False) -> Archive:
    """A file with OpenAI's names and what is said of its towers, by itself or by a file beside it.

    Args:
        path: the file.
        goes_on: whether a run goes on, whose own record says what its towers are.

    Raises:
        UserError: it cannot be read, or what is said describes a model that is not built here.
    """
    state = read_state(path, goes_on=goes_on)
    weights = plain_names({name: value for name, value in state.items() if not NO_WEIGHTS.fullmatch(name)})
    recorded, said_by = (None, None) if goes_on else _said_of(path, state.keys() >= OF_OPENAI)
    return Archive(path, weights, recorded, said_by, custom_text=is_custom_text(state))


def _said_of(path: Path, of_openai: bool) -> tuple[dict[str, Any] | None, str | None]:
    """CLIP's configuration of a file, None for OpenAI's rule; and what says so, None if nothing does."""
    if recorded := clip_config_beside(path):
        described_clip(recorded, f"what was recorded with {path}")
        return recorded, "what was recorded with it"
    if of_openai:
        return None, "the file"
    if recorded := open_clip_config(path):
        return recorded, str(path.parent / OPEN_CLIP_CONFIG)

    beside = path.parent / TRANSFORMERS_CONFIG
    of_transformers = json_if_whole(beside)
    if isinstance(of_transformers, dict) and of_transformers.get("model_type") == "clip":
        described_clip(of_transformers, str(beside))
        return of_transformers, str(beside)
    return None, None


def described_clip(recorded: Mapping[str, Any], said_by: str) -> CLIPConfig:
    """The known settings of a configuration in the format of transformers, each of its kind.

    Raises:
        UserError: one is not.
    """
    return clip_config_of_fields(recorded, said_by)


def configuration_of(clip: str) -> dict[str, Any] | None:
    """CLIP's configuration behind `model.clip`; None if OpenAI's rule, or model.random_clip, says it all.

    Raises:
        UserError: it cannot be read.
    """
    path = Path(clip).expanduser()
    if path.is_file():
        archive = read_archive(path)
        archive.require_said()
        return archive.recorded
    if clip == "random" or (clip.startswith("openai/clip-vit-") and not path.is_dir()):
        return None

    way_out = (
        "its configuration says how many heads the towers of model.init_from have and how they are activated, which "
        "their weights do not; pass --model.clip the folder or name of the CLIP that they are of"
    )
    require_place(clip, "model.clip", way_out)
    try:
        path = file_of(clip, TRANSFORMERS_CONFIG)
    except (OSError, ValueError) as error:
        reason = not_loaded(clip, error)
        raise UserError(f"model.clip is {clip}, whose configuration could not be read: {reason}; {way_out}") from error
    content = read_json(path, way_out, what="the configuration of a CLIP", keys=(), largest=LARGEST_DESCRIPTION)
    return dict(described_clip(content, str(path)).to_dict())


def archive_config(
    config: ModelConfig,
    state: Mapping[str, Tensor],
    vocabulary: Vocabulary,
    source: str,
    recorded: Mapping[str, Any] | None,
) -> CLIPConfig:
    """Sizes of towers from OpenAI-named weights, what no shape shows from the configuration recorded with them.

    Without one, OpenAI's rule says it; with model.clip "random", model.random_clip says how many heads there are.
    """
    heads = config.random_clip.heads if config.clip == "random" else None
    special = {"eos_token_id": vocabulary.eos_token_id, "pad_token_id": vocabulary.pad_token_id}
    unseen = (
        None if recorded is None else unseen_in(described_clip(recorded, f"what says how {source} computes").to_dict())
    )
    return CLIPConfig(**openai_sizes(state, source, heads=heads, unseen=unseen, **special))


def openai_sizes(state: Mapping[str, Tensor], source: str, **arguments: Any) -> dict[str, Any]:
    """`openai_clip_config`, or a UserError if the weights are not those of a CLIP under OpenAI's names."""
    try:
        return openai_clip_config(state, **arguments)
    except IndexError as error:
        flat = ", ".join(name for name in SAY_SIZES if name in state and state[name].dim() < SAY_SIZES[name])
        raise UserError(
            f"{source} is no CLIP with OpenAI's names: {flat} has too few dimensions to say a size. Pass "
            f"OpenAI's archive, such as ViT-B-32.pt, or its state_dict, or a folder in the transformers layout"
        ) from error
    except KeyError as error:
        hint = f" {other}, which is not built here." if (other := other_tower(state)) else ""
        if "visual.layer1.0.conv1.weight" in state:
            hint = " It has a ResNet; only vision transformers are supported."
        if "clip.visual.conv1.weight" in state:
            hint = " It holds a whole retrieval model; pass it as --model.init-from."
        raise UserError(
            f"{source} is no CLIP with OpenAI's names: it has no {error.args[0]}.{hint} Pass OpenAI's archive, such "
            f"as ViT-B-32.pt, or its state_dict, or a folder in the transformers layout"
        ) from error
