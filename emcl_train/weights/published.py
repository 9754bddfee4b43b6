"""A published run as an entry of the hub: which entries are one, and which of their files are fetched."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from emcl_train.errors import UserError
from emcl_train.runs.checksums import CHECKSUMS
from emcl_train.runs.contents import (
    CLIP_CONFIG,
    CONFIG,
    ENVIRONMENT,
    FINISHED,
    METRICS,
    RESULTS,
    TOKENIZER,
    WEIGHTS,
    is_config_of_run,
)
from emcl_train.weights.hub import HUB, OF_OPENAI, RESNETS, hub_options, is_place, not_loaded

FILES = (CONFIG, CLIP_CONFIG, TOKENIZER, WEIGHTS, CHECKSUMS, FINISHED, RESULTS, METRICS, ENVIRONMENT)
"""What is read of a published run. Nothing else of an entry is fetched."""
OPTIONS = ("revision", "token", "cache_dir", "force_download", "local_files_only")
"""Of huggingface_hub's downloads, those that a user may set."""


def require_options(options: Collection[str]) -> None:
    """Raise a TypeError where a name is none of `OPTIONS`."""
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise TypeError(f"there is no option {unknown[0]!r}; of the hub there are {', '.join(OPTIONS)}")


def published_on_hub(name: str, **options: Any) -> Path | None:
    """The folder of a published run on the hub, which is fetched.

    Args:
        name: as a user gave it, with `hf://` before it or without.
        options: of `OPTIONS`, as huggingface_hub takes them.

    Returns:
        The folder in the hub's cache; None where the name is that of something else, such as a CLIP, or where the hub
        gives nothing, which whoever looks for a CLIP there says.

    Raises:
        TypeError: there is no such option.
        UserError: it is a published run, and its files cannot be had.
    """
    require_options(options)
    plain = name.removeprefix(HUB).rstrip("/")
    if is_place(plain) or plain in (*OF_OPENAI, *RESNETS, "random"):
        return None

    from huggingface_hub import hf_hub_download, snapshot_download

    options = options if options.get("local_files_only") else {**options, **hub_options(plain)}
    try:
        config = Path(hf_hub_download(plain, CONFIG, **options))
    except (OSError, ValueError):
        return None
    if not is_config_of_run(config):
        return None
    try:
        return Path(snapshot_download(plain, allow_patterns=list(FILES), **options))
    except (OSError, ValueError) as error:
        reason = not_loaded(plain, error)
        raise UserError(f"{name} is a published run, whose files cannot be had ({reason}); try again") from error
