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
from emcl_train.reading.picture_fields import NotBuilt, Pictures, pictures_of_open_clip, pictures_of_processor
from emcl_train.reading.plain_files import LARGEST_DESCRIPTION
from emcl_train.reading.tower_fields import FIELDS, OPEN_CLIP
from emcl_train.runs.contents import CLIP_CONFIG
from emcl_train.runs.files import json_if_whole, read_json
from emcl_train.weights.hub import (
    CLIP_WAY_OUT,
    OPEN_CLIP_CONFIG,
    TRANSFORMERS_CONFIG,
    file_of,
    is_place,
    not_loaded,
    optional_file,
)

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

    Models of OpenCLIP have a description of their own. A folder with that of a plain CLIP is one of "clip": the reader
    of its files needs no other library.

    Raises:
        UserError: the hub does not say whether there is one.
    """
    path = Path(name).expanduser()
    if is_place(name):
        if path.is_file():
            return "clip"
        family = _family_in(path / TRANSFORMERS_CONFIG)
        if family is None and (path / OPEN_CLIP_CONFIG).is_file() and not _is_plain_clip(path / OPEN_CLIP_CONFIG):
            return OPEN_CLIP
        return family or "clip"
    return "clip" if name == "random" or name.startswith(OF_OPENAI) else _family_on_hub(name)


@cache
def _family_on_hub(name: str) -> str:
    """The hub is asked once, so that a name has one family however the hub answers later."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        file = optional_file(name, TRANSFORMERS_CONFIG)
        family = None if file is None else _family_in(file)
        if family is None and optional_file(name, OPEN_CLIP_CONFIG) is not None:
            return OPEN_CLIP
    except (ValueError, RepositoryNotFoundError):
        return "clip"  # there is no such name, which the reader of CLIPs says
    except OSError as error:
        raise UserError(
            f"model.clip is {name}, which cannot be had: {not_loaded(name, error)}; {CLIP_WAY_OUT}"
        ) from error
    return family or "clip"


def _is_plain_clip(file: Path) -> bool:
    """Whether OpenCLIP's description is one of a CLIP that is built here without its library."""
    from emcl_train.weights.open_clip import open_clip_config

    try:
        return open_clip_config(file) is not None
    except UserError:
        return False


def _family_in(file: Path) -> str | None:
    """The family that a `config.json` names; None: there is none, or it is of no model that is known here."""
    try:
        content = read_json(file, "", keys=(), largest=LARGEST_DESCRIPTION)
    except (OSError, ValueError, UserError):
        return "clip" if file.is_file() else None  # one that is damaged: the reader of CLIPs says so
    family = content.get("model_type")
    return family if isinstance(family, str) and family in {"clip", *FIELDS} - {OPEN_CLIP} else None


def family_of_model(model: ModelConfig) -> str:
    """The family of the towers that a configuration begins with: those of `init_from`, or else of `clip`."""
    if model.init_from is None:
        return family_of(model.clip)
    beside = json_if_whole(model.init_from.expanduser().parent / CLIP_CONFIG)
    family = beside.get("model_type") if isinstance(beside, dict) else None
    return family if isinstance(family, str) and family in FIELDS else "clip"


def description_of(name: str, family: str) -> tuple[dict[str, Any], Path]:
    """The description of the model in a folder or hub entry, and the file that it stands in.

    Args:
        name: the folder or hub name.
        family: of the model.

    Raises:
        UserError: it cannot be had, or is damaged.
    """
    try:
        file = file_of(name, OPEN_CLIP_CONFIG if family == OPEN_CLIP else TRANSFORMERS_CONFIG)
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.clip is {name}, which cannot be had: {not_loaded(name, error)}; {CLIP_WAY_OUT}"
        ) from error
    return dict(read_json(file, CLIP_WAY_OUT, what="a configuration", keys=(), largest=LARGEST_DESCRIPTION)), file


def pictures_of(name: str, family: str) -> Pictures:
    """What a model's own files say of its pictures.

    Args:
        name: the folder or hub name.
        family: of the model.

    Raises:
        UserError: they say nothing, are damaged, or prepare pictures in a way that is not built here.
    """
    of_open_clip = family == OPEN_CLIP
    content, file = (description_of(name, OPEN_CLIP)[0], OPEN_CLIP_CONFIG) if of_open_clip else _processor(name)
    try:
        if of_open_clip:
            fields = FIELDS[OPEN_CLIP]
            return pictures_of_open_clip(content.get("preprocess_cfg"), fields.image_size(fields.known(content)))
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
