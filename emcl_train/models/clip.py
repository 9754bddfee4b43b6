"""Two towers: from a hub name, a local folder, OpenAI's archive, or a small CLIP with random weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from emcl_train.config import ModelConfig
from emcl_train.errors import UserError
from emcl_train.flags import flag
from emcl_train.kinds import TOWERS, class_of
from emcl_train.models.clip_file import (
    Vocabulary,
    archive_config,
    archived_clip,
    configuration_of,
    look_at_file,
    openai_sizes,
)
from emcl_train.models.clip_folder import clip_config_in, pretrained_clip, require_clip
from emcl_train.models.interface import TrainedModel
from emcl_train.models.towers import CLIPTowers, Towers
from emcl_train.reading.tower_fields import FIELDS
from emcl_train.runs.clip_config import build_clip, family_in, towers_of_fields
from emcl_train.runs.contents import CONFIG, TOKENIZER
from emcl_train.weights.elsewhere import require_built_here
from emcl_train.weights.files import clip_config_beside, read_state
from emcl_train.weights.hub import require_places
from emcl_train.weights.prepared import family_of
from emcl_train.weights.release import OTHER_TOWERS, towers_in


class TowersModel(TrainedModel):
    """A model on towers, or on what lies in files in place of them: it learns their logit scale."""

    towers: Towers

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """The towers' factor from cosine to logits."""
        return self.towers.logit_scale

    def hold_logit_scale(self) -> None:
        """Bring the factor back to its limit, if the towers have one."""
        self.towers.hold_logit_scale()

    def first_weights(self, frozen: str) -> tuple[str, ...]:
        return tuple(f"towers.{name}" for name in self.towers.first_weights(frozen))


def build_towers(
    config: ModelConfig,
    vocabulary: Vocabulary,
    *,
    image_size: int,
    max_words: int,
    clip_config: Mapping[str, Any] | None = None,
    sizes: Mapping[str, Tensor] | None = None,
    recorded: Mapping[str, Any] | None = None,
) -> Towers:
    """The towers that `config.clip` names, checked against the data they will see.

    Args:
        config: says which.
        vocabulary: of the tokenizer.
        image_size: height and width of the frames in pixels.
        max_words: tokens of a caption at most.
        clip_config: description of the towers (`runs/clip_config.py`): build these, with random weights, instead;
            nothing is read.
        sizes: CLIP's weights under OpenAI's names: build towers of their sizes, with random weights, instead.
        recorded: for what no shape shows, the configuration that was saved with `sizes`, or with which a run began;
            without it, that of `config.clip`.

    Raises:
        UserError: the checkpoint cannot be read, is of no family that is built here, or does not fit the data.
    """
    # Built from what is known: nothing to compare with the data.
    if clip_config is not None:
        said_by = "the configuration of the towers (clip_config.json)"
        described = towers_of_fields(clip_config, said_by)
        towers: Towers = class_of(TOWERS[family_in(described)]).of_description(described)
        _require_data(described, vocabulary, image_size, max_words, said_by)
        return towers
    if sizes is None and config.clip == "random":
        return CLIPTowers(random_clip(config, vocabulary, image_size=image_size, max_words=max_words))

    # Built from a checkpoint.
    goes_on = recorded is not None
    source = f"model.init_from {config.init_from}" if sizes is not None else config.clip
    if sizes is not None:
        recorded = recorded or configuration_of(config.clip)
        towers = CLIPTowers(build_clip(archive_config(config, sizes, vocabulary, source, recorded)))
    elif Path(config.clip).expanduser().is_file():
        towers = CLIPTowers(archived_clip(config, vocabulary, recorded))
    elif (family := family_of(config.clip)) != "clip":
        towers = class_of(TOWERS[family]).of_folder(config.clip, goes_on=goes_on)
    else:
        towers = CLIPTowers(pretrained_clip(config.clip, goes_on=goes_on))

    _require_data(towers.description(), vocabulary, image_size, max_words, source)
    return towers


def _require_data(
    towers: Mapping[str, Any], vocabulary: Vocabulary, image_size: int, max_words: int, source: str
) -> None:
    """Raise a UserError where towers do not take the frames, the captions and the token ids of a run."""
    require_inputs(towers, image_size=image_size, max_words=max_words, source=source)
    family = family_in(towers)
    known = towers["text_config"]["vocab_size"] if family == "clip" else FIELDS[family].vocabulary(towers)
    if vocabulary.size > known:
        raise UserError(
            f"the tokenizer has {vocabulary.size} tokens but the text tower of {source} knows {known}; tokenizer and "
            f"weights must come from the same checkpoint"
        )


def require_inputs(towers: Mapping[str, Any], *, image_size: int, max_words: int, source: str) -> None:
    """Raise a UserError where described towers do not take frames of this size, or captions of so many tokens."""
    family = family_in(towers)
    expected_size = image_size_of(towers)
    longest = longest_of(towers)
    if image_size != expected_size:
        raise UserError(
            f"data.image_size is {image_size} but the vision tower of {source} takes {expected_size}; "
            f"pass {flag('data.image_size')} {expected_size}"
        )
    if max_words > longest:
        raise UserError(
            f"data.max_words is {max_words} but the text tower of {source} takes at most {longest} tokens; "
            f"pass {flag('data.max_words')} {longest} or less"
        )
    if TOWERS[family].full_length and max_words != longest:
        raise UserError(
            f"data.max_words is {max_words} but the text tower of {source} was trained on captions of {longest} "
            f"tokens, padding included; pass {flag('data.max_words')} {longest}"
        )


def image_size_of(towers: Mapping[str, Any]) -> int:
    """Height and width of the pictures that described towers see."""
    family = family_in(towers)
    return int(towers["vision_config"]["image_size"]) if family == "clip" else FIELDS[family].image_size(towers)


def longest_of(towers: Mapping[str, Any]) -> int:
    """Tokens of a caption that described towers take at most."""
    family = family_in(towers)
    if family == "clip":
        return int(towers["text_config"]["max_position_embeddings"])
    return FIELDS[family].longest(towers)


def look_at_clip(config: ModelConfig, *, goes_on: bool = False) -> dict[str, Any] | None:
    """Look at what `config.clip` and `config.init_from` name, before anything that takes time.

    Args:
        config: of the model.
        goes_on: whether a run goes on, which has found `init_from` good already.

    Returns:
        The description of the towers (`runs/clip_config.py`), of CLIP's their sizes; None where `config` itself says
        them, or where a run goes on.

    Raises:
        UserError: there is no such thing, a file is damaged or holds no CLIP, or a folder is of another model.
    """
    require_places(config)
    if config.init_from is not None:
        # The towers come from there, and `clip` only names the tokenizer.
        if goes_on:
            return None
        state = read_state(config.init_from.expanduser())
        require_built_here(state, config.init_from)
        if (described := described_with(config, state)) is not None:
            return described
        towers = towers_in(state)
        source = f"model.init_from {config.init_from}"
        return openai_sizes(towers, source, heads=None, eos_token_id=0, pad_token_id=0) if towers else None

    path = Path(config.clip).expanduser()
    if path.is_file():
        return look_at_file(path, goes_on=goes_on)
    if config.clip == "random":
        return None
    if (family := family_of(config.clip)) != "clip":
        found: dict[str, Any] = class_of(TOWERS[family]).described_folder(config.clip)
        return found
    require_clip(config.clip, goes_on=goes_on)
    return dict(clip_config_in(config.clip).to_dict())


def described_with(config: ModelConfig, state: Mapping[str, Tensor], *, goes_on: bool = False) -> dict[str, Any] | None:
    """The description of towers that are not CLIP's, which `config.init_from` holds; None if they are CLIP's.

    Args:
        config: names the file.
        state: what it holds.
        goes_on: whether a run goes on, which has a tokenizer and settings of its own.

    Raises:
        UserError: beside the file it is not said what they are, or how their captions and pictures are prepared; or
            captions are to be prepared otherwise.
    """
    path = config.init_from
    if path is None or not any(name.startswith(OTHER_TOWERS) for name in state):
        return None
    described = clip_config_beside(path.expanduser())
    if described is None or family_in(described) == "clip":
        raise UserError(
            f"model.init_from is {path}, whose towers are not CLIP's, and nothing beside it describes them; bring the "
            f"clip_config.json of its run along"
        )
    if goes_on:
        return described

    label = TOWERS[family_in(described)].label
    if lacking := [name for name in (CONFIG, TOKENIZER) if not (path.expanduser().parent / name).is_file()]:
        raise UserError(
            f"model.init_from is {path}, whose towers are {label}'s, and beside it there is no "
            f"{' and no '.join(lacking)}, which say how their pictures and captions are prepared; bring them along "
            f"from the folder of its run"
        )
    if config.tokenizer is not None:
        raise UserError(
            f"model.tokenizer is {config.tokenizer}, and {label}'s towers in model.init_from {path} know the tokens of "
            f"the {TOKENIZER} beside them alone; leave out {flag('model.tokenizer')}"
        )
    return described


def require_random_sizes(config: ModelConfig, *, image_size: int) -> None:
    """Raise a UserError where heads do not divide the width of a random CLIP, or patches the image."""
    size = config.random_clip
    if size.width % size.heads:
        raise UserError(
            f"model.random_clip.width is {size.width}, which model.random_clip.heads = {size.heads} does not divide; "
            f"choose a width that is a multiple of the heads"
        )
    patch_size = size.patch_of(image_size)
    if image_size % patch_size:
        raise UserError(
            f"data.image_size is {image_size}, which model.random_clip.patch_size = {patch_size} does not divide; "
            f"choose an image size that is a multiple of the patch size"
        )


def random_clip(config: ModelConfig, vocabulary: Vocabulary, *, image_size: int, max_words: int) -> CLIPModel:
    """A CLIP of `config.random_clip`'s size with freshly drawn weights.

    Raises:
        UserError: heads do not divide the width, or patches the image.
    """
    require_random_sizes(config, image_size=image_size)
    size = config.random_clip

    # Both towers are of one size.
    tower = {
        "hidden_size": size.width,
        "intermediate_size": 4 * size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "projection_dim": size.width,
    }
    text = {
        "vocab_size": vocabulary.size,
        "max_position_embeddings": max_words,
        "eos_token_id": vocabulary.eos_token_id,
        "pad_token_id": vocabulary.pad_token_id,
        "bos_token_id": None,
    }
    vision = {"image_size": image_size, "patch_size": size.patch_of(image_size)}
    return build_clip(CLIPConfig(text_config=tower | text, vision_config=tower | vision, projection_dim=size.width))
