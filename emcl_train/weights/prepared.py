"""How a model's own folder, or its entry of the hub, prepares pictures and captions. Nothing here needs torch.

Of CLIP nothing is asked: its pictures and captions are the defaults, and what its folders say is compared with them in
`models/clip_folder.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from emcl_train.config import ModelConfig
from emcl_train.errors import UserError
from emcl_train.flags import flag
from emcl_train.kinds import TOWERS
from emcl_train.reading.picture_fields import NotBuilt, Pictures, pictures_of_processor
from emcl_train.reading.plain_files import LARGEST_DESCRIPTION
from emcl_train.reading.tower_fields import FIELDS
from emcl_train.runs.contents import CLIP_CONFIG
from emcl_train.runs.files import json_if_whole, read_json
from emcl_train.weights.hub import CLIP_WAY_OUT, TRANSFORMERS_CONFIG, is_place, not_loaded, optional_file

PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"
"""Where newer versions of transformers write what an image processor does, under `image_processor`."""
TOKENIZER_SETTINGS = "tokenizer_config.json"
PUNCTUATION_LEFT_OUT = ("SiglipTokenizer",)
"""Tokenizers whose class takes punctuation out of captions, which their files do not say."""
FILLED_FROM_THE_LEFT = ("GemmaTokenizer", "GemmaTokenizerFast", "Siglip2Tokenizer")
"""Tokenizers whose class pads on the left where their settings do not say otherwise."""
OF_OPENAI = "openai/clip-vit-"


@dataclass(frozen=True)
class Captions:
    """The captions that a text tower sees."""

    longest: int
    """Tokens that the tokenizer's own settings allow."""
    cleaning: str
    """As `data.clean_captions`."""
    padding_side: str
    """"right" or "left"."""


def family_of(name: str) -> str:
    """The `model_type` of a folder or hub name, if it is one of `TOWERS`; else, and where there is none, "clip".

    Raises:
        UserError: the hub does not say whether there is one.
    """
    path = Path(name).expanduser()
    if is_place(name):
        return "clip" if path.is_file() else _family_in(path / TRANSFORMERS_CONFIG)
    return "clip" if name == "random" or name.startswith(OF_OPENAI) else _family_on_hub(name)


@cache
def _family_on_hub(name: str) -> str:
    """The hub is asked once, so that a name has one family however the hub answers later."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        file = optional_file(name, TRANSFORMERS_CONFIG)
    except (ValueError, RepositoryNotFoundError):
        return "clip"  # there is no such name, which the reader of CLIPs says
    except OSError as error:
        raise UserError(
            f"model.clip is {name}, which cannot be had: {not_loaded(name, error)}; {CLIP_WAY_OUT}"
        ) from error
    return "clip" if file is None else _family_in(file)


def _family_in(file: Path) -> str:
    try:
        content = read_json(file, "", keys=(), largest=LARGEST_DESCRIPTION)
    except (OSError, ValueError, UserError):
        return "clip"  # a file that is damaged or not there: the reader of CLIPs says so
    family = content.get("model_type")
    return family if isinstance(family, str) and family in FIELDS else "clip"


def family_of_model(model: ModelConfig) -> str:
    """The family of the towers that a configuration begins with: those of `init_from`, or else of `clip`."""
    if model.init_from is None:
        return family_of(model.clip)
    beside = json_if_whole(model.init_from.expanduser().parent / CLIP_CONFIG)
    family = beside.get("model_type") if isinstance(beside, dict) else None
    return family if isinstance(family, str) and family in FIELDS else "clip"


def pictures_of(name: str) -> Pictures:
    """What a model's own files say of its pictures.

    Raises:
        UserError: they say nothing, are damaged, or prepare pictures in a way that is not built here.
    """
    content, file = _processor(name)
    try:
        return pictures_of_processor(content)
    except NotBuilt as error:
        raise UserError(
            f"model.clip is {name}, whose {file} prepares pictures in a way that is not built here: it has {error}; "
            f"{_way_out()}"
        ) from error
    except ValueError as error:
        raise UserError(f"{file} of {name} is damaged: {error}; {_way_out()}") from error


def captions_of(name: str, family: str, positions: int) -> Captions:
    """What a tokenizer's own settings say of captions.

    Args:
        name: the folder or hub name of the model, or of another tokenizer for it.
        family: of the model.
        positions: that its text tower has.

    Raises:
        UserError: they are damaged.
    """
    settings = _described(name, TOKENIZER_SETTINGS)
    of_class = settings.get("tokenizer_class")
    side = settings.get("padding_side", "left" if of_class in FILLED_FROM_THE_LEFT else "right")
    if side not in ("left", "right"):
        raise UserError(
            f"{TOKENIZER_SETTINGS} of {name} is damaged: padding_side is {str(side)[:30]!r}, expected left or right; "
            f"{_way_out()}"
        )

    # Settings that name no length have 10³⁰ there.
    longest = settings.get("model_max_length")
    said = isinstance(longest, int | float) and not isinstance(longest, bool) and 1 <= longest < positions
    cleaning = "siglip" if of_class in PUNCTUATION_LEFT_OUT else TOWERS[family].cleaning
    return Captions(int(longest) if said else positions, cleaning, side)  # type: ignore[arg-type]


def _processor(name: str) -> tuple[Mapping[str, Any], str]:
    """The description of the image processor, and the file that it stands in."""
    if content := _described(name, PREPROCESSOR):
        return content, PREPROCESSOR
    inside = _described(name, PROCESSOR).get("image_processor")
    if isinstance(inside, dict):
        return inside, PROCESSOR
    raise UserError(
        f"model.clip is {name}, which has no {PREPROCESSOR} that says how its pictures are prepared; bring its own, "
        f"which save_pretrained of its image processor writes; {_way_out()}"
    )


def _described(name: str, file: str) -> dict[str, Any]:
    """A description in JSON; {} if there is none."""
    try:
        path = optional_file(name, file)
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.clip is {name}, which cannot be had: {not_loaded(name, error)}; {_way_out()}"
        ) from error
    if path is None:
        return {}
    return dict(read_json(path, _way_out(), what="a description", keys=(), largest=LARGEST_DESCRIPTION))


def _way_out() -> str:
    return f"pass {flag('model.clip')} another model's folder or hub name"
