"""What a name given for a checkpoint means: a file or folder here, or an entry of the Hugging Face hub.

The hub is asked once whether it answers. transformers itself asks for each of several files, six times with pauses,
which without a network takes a minute before anything is said.
"""

import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from emcl_train.config import ModelConfig, RunConfig
from emcl_train.errors import UserError
from emcl_train.runs.contents import WEIGHTS, seed_folders

CLIP_WAY_OUT = (
    'pass --model.clip a CLIP hub name, a folder written by save_pretrained, an archive of OpenAI, or "random"'
)
BERT_WAY_OUT = (
    "pass --experts.text the hub name of a BERT, such as bert-base-cased, a folder written by save_pretrained, or "
    '"random"'
)
TRANSFORMERS_CONFIG = "config.json"
OPEN_CLIP_CONFIG = "open_clip_config.json"
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
OF_FILES = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".zip", ".pkl", ".safetensors", ".json", ".onnx")


OF_OPENAI = {
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-L/14@336px": "openai/clip-vit-large-patch14-336",
}
"""OpenAI's names of their models, and those of the hub."""
RESNETS = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64")
"""OpenAI's other models, whose vision tower is none that is built here."""
HUB = "hf://"


def plain_names(config: ModelConfig) -> ModelConfig:
    """The same settings with plain names: OpenAI's and `hf://` as the hub has them, a run's folder as its weights.

    Raises:
        UserError: a name can be none of a CLIP that is built here, or a folder is that of several runs.
    """
    clip = _plain_name(config.clip, "model.clip")
    if clip in RESNETS and not Path(clip).exists():
        raise UserError(
            f"model.clip is {clip}, OpenAI's CLIP with a ResNet; only those with a vision transformer are built here: "
            f"pass --model.clip {', '.join(OF_OPENAI)}, a hub name, a folder or a file"
        )
    if not Path(clip).exists():
        clip = OF_OPENAI.get(clip, clip)
    tokenizer = None if config.tokenizer is None else _plain_name(config.tokenizer, "model.tokenizer")
    return replace(config, clip=clip, tokenizer=tokenizer, init_from=_weights_in(config.init_from))


def _plain_name(name: str, setting: str) -> str:
    """A name of the hub without the `hf://` before it."""
    if not name.startswith(HUB):
        return name
    plain = name.removeprefix(HUB).rstrip("/")
    if not HUB_NAME.fullmatch(plain):
        raise UserError(
            f"{setting} is {name}, expected hf://ORGANISATION/NAME, without a branch or a file; download what is meant "
            f"into a folder (`hf download --help`), and pass that folder"
        )
    return plain


def _weights_in(path: Path | None) -> Path | None:
    """The file of weights that `model.init_from` means: of a run's folder, its best."""
    folder = None if path is None else path.expanduser()
    if folder is None or not folder.is_dir():
        return path
    if (folder / WEIGHTS).is_file():
        return folder / WEIGHTS
    if runs := seed_folders(folder):
        raise UserError(
            f"model.init_from is {path}, a folder of {len(runs)} runs with different seeds; pass one of them: "
            f"{', '.join(map(str, runs[:5]))}"
        )
    raise UserError(f"model.init_from is {path}, a folder without {WEIGHTS}; pass that of a run, or a file")


def is_place(name: str) -> bool:
    """Whether a name can only be that of a file or folder here, or is one."""
    path = Path(name).expanduser()
    return (
        path.exists()
        or name.startswith((".", "/", "~"))
        or path.suffix.lower() in OF_FILES
        or not HUB_NAME.fullmatch(name)
    )


def require_place(name: str, setting: str, way_out: str) -> None:
    """Raise a UserError where `name` can only be a file or folder here, and none is there."""
    path = Path(name).expanduser()
    if not is_place(name) or path.exists():
        return

    # Name the last folder on the way that exists, so that a slip in the path is seen.
    known = next(folder for folder in path.resolve().parents if folder.is_dir())
    there = known == path.resolve().parent
    where = f"{known} holds no {path.name}" if there else f"{known} is the last folder on the way that exists"
    raise UserError(f"{setting} is {name}, which is neither a file nor a folder: {where}; {way_out}")


def require_places(config: ModelConfig) -> None:
    """Raise a UserError where a setting names a file or folder that is not there; nothing is read."""
    tokenizer = "pass --model.tokenizer a hub name, or a folder that has one"
    if config.tokenizer is not None:
        require_place(config.tokenizer, "model.tokenizer", tokenizer)
    if config.clip != "random":
        require_place(config.clip, "model.clip", CLIP_WAY_OUT)
    if config.init_from is not None and not config.init_from.expanduser().is_file():
        raise UserError(f"model.init_from is {config.init_from}, where there is no file; pass a checkpoint")


def require_places_of(config: RunConfig) -> None:
    """`require_places` of a run, of whichever system."""
    if config.model.system == "clip":
        require_places(config.model)
        return
    found = replace(config.model, clip="random", tokenizer=None)
    if config.model.system == "jsfusion" and _is_of_tensorflow(found.init_from):
        found = replace(found, init_from=None)
    require_places(found)
    if config.model.system == "mmt" and config.experts.text != "random":
        require_place(config.experts.text, "experts.text", BERT_WAY_OUT)


def _is_of_tensorflow(path: Path | None) -> bool:
    """Whether a path is what all files of a checkpoint of TensorFlow begin with, and is no file itself."""
    return path is not None and (start := path.expanduser()).with_name(f"{start.name}.index").is_file()


def hub_options(name: str) -> dict[str, Any]:
    """Arguments for what asks the hub: files of earlier downloads alone where it does not answer."""
    return {} if is_place(name) or why_silent(name) is None else {"local_files_only": True}


def file_of(name: str, file: str) -> Path:
    """A file of a folder here, or of an entry of the hub, which is fetched.

    Raises:
        OSError: it is not there, or the hub does not give it.
        ValueError: the hub has no such names.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / file).is_file():
            raise FileNotFoundError(f"the folder holds no {file}")
        return folder / file

    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(name, file, **hub_options(name)))


def optional_file(name: str, file: str) -> Path | None:
    """A file that a checkpoint may lack, or None.

    Raises:
        OSError: whether it lacks it cannot be found out.
    """
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return file_of(name, file)
    except LocalEntryNotFoundError:
        # Of earlier downloads all that there were are here; otherwise the hub has failed to answer for this file.
        if not hub_options(name):
            raise
        return None
    except (EntryNotFoundError, FileNotFoundError):
        return None


def not_loaded(name: str, error: Exception) -> str:
    """Why `from_pretrained` failed, in a line."""
    if not is_place(name) and (silent := why_silent(name)) is not None:
        from huggingface_hub.constants import HF_HUB_CACHE

        return (
            f"there is no such folder here, no earlier download in {HF_HUB_CACHE}, and the hub does not answer "
            f"({silent})"
        )
    if isinstance(error, UnpicklingError):  # torch's words on it advise to run what the file holds
        return "its file of weights is damaged, or holds more than tensors"
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@cache
def why_silent(name: str) -> str | None:
    """Why the hub cannot be reached, or None if it answered (a 404 is an answer)."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"))
    except HfHubHTTPError:
        return None
    except Exception as error:  # of offline mode, or of the HTTP library that this version of the hub uses
        return str(error) or type(error).__name__
    return None
