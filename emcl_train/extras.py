"""What a plain install leaves out: which package belongs to which extra, and the line that installs it.

Nothing but Python's own library is needed here: the line has to be said where nothing else is there.
"""

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

from emcl_train.errors import UserError

EXTRAS: dict[str, dict[str, str]] = {
    "": {"torch": "torch", "jaxtyping": "jaxtyping", "numpy": "numpy", "safetensors": "safetensors", "tyro": "tyro",
         "rich": "rich"},
    "train": {
        "pillow": "PIL", "transformers": "transformers", "tokenizers": "tokenizers", "ftfy": "ftfy",
        "accelerate": "accelerate", "av": "av", "matplotlib": "matplotlib", "jinja2": "jinja2",
        "tensorboard": "tensorboard", "pyarrow": "pyarrow", "pyyaml": "yaml",
    },
    "experts": {"h5py": "h5py"},
    "openclip": {"open_clip_torch": "open_clip", "timm": "timm"},
    "ray": {"ray": "ray"},
    "lora": {"peft": "peft"},
    "search": {
        "lancedb": "lancedb", "pyarrow": "pyarrow", "starlette": "starlette", "uvicorn": "uvicorn",
        "scenedetect-headless": "scenedetect", "faiss-cpu": "faiss",
    },
}  # fmt: skip
"""Packages of each extra by the names that pip has for them, with those that Python imports. "": of a plain install."""
ROOT = Path(__file__).resolve().parents[1]
"""The checkout, if the program runs from one."""
CHOSEN = ("tensorboard", "pyarrow", "pyyaml", "scenedetect-headless", "faiss-cpu", "starlette", "uvicorn")
"""Those that are needed only where a setting or a file asks for them."""

USED_BY_ALL = ("", "train")
"""Extras whose packages any command may want without a word; those of others are missing only where they are named."""


def require_packages(extra: str = "train") -> None:
    """Look for what a command needs before it does anything.

    Raises:
        UserError: packages are not installed; the message has the line that installs them.
    """
    missing = [name for name in missing_of(extra) if name not in CHOSEN]
    if missing:
        raise UserError(sentence_on(missing, extra))


def said_of_missing(error: BaseException) -> str | None:
    """The sentence on packages for want of which an import failed, with the way out; None if none is missing."""
    found = [one for one in raised_from(error) if isinstance(one, ImportError)]
    if not found:
        return None

    # The library that asks for a package may say it in its own words: what is not there is looked for.
    asked = {str(one.name).split(".")[0] for one in found}
    for extra, packages in EXTRAS.items():
        missing = missing_of(extra)
        named = [name for name in missing if packages[name] in asked]
        missing = named or [name for name in missing if extra in USED_BY_ALL and name not in CHOSEN]
        if missing:
            return sentence_on(missing, extra)
    return None


def raised_from(error: BaseException) -> list[BaseException]:
    """An error and what it was raised from in so many words: what else failed before may have had a way around it."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    return chain


def missing_of(extra: str) -> list[str]:
    """Packages of an extra that are not installed."""
    return [package for package, module in EXTRAS[extra].items() if not _is_there(module)]


def sentence_on(missing: list[str], extra: str) -> str:
    """What is missing, and how to install it."""
    several = len(missing) > 1
    listed = " and ".join([", ".join(missing[:-1]), missing[-1]] if several else missing)
    of_extra = f' of the extra "{extra}"' if extra else ""
    return f"{listed}{of_extra} {'are' if several else 'is'} not installed; install with `{install_line(extra)}`"


def install_line(extra: str) -> str:
    """What installs an extra in the way in which the program was installed: from its checkout, wheel or index."""
    brackets = f"[{extra}]" if extra else ""
    if (ROOT / "pyproject.toml").is_file():
        here = Path.cwd() == ROOT
        return f"pip install {shlex.quote(('.' if here else str(ROOT)) + brackets)}"

    # pip notes where it took a package from, unless that was an index.
    try:
        noted = json.loads(metadata.distribution("emcl").read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        noted = {}
    url = urlsplit(str(noted.get("url", "")) if isinstance(noted, dict) else "")
    source = Path(unquote(url.path))
    if url.scheme == "file" and source.exists():
        return f"pip install {shlex.quote(str(source) + brackets)}"
    if url.scheme in ("http", "https", "git+https", "git+ssh", "ssh"):
        vcs = str((noted.get("vcs_info") or {}).get("vcs", "")) if isinstance(noted.get("vcs_info"), dict) else ""
        return f"pip install {shlex.quote(f'emcl{brackets} @ ' + (f'{vcs}+' if vcs else '') + noted['url'])}"
    if url.scheme:  # from files that are gone by now
        return f"pip install {' '.join(EXTRAS[extra])}"
    return f"pip install {shlex.quote(f'emcl{brackets}')}"


@contextmanager
def or_ends_in_a_line() -> Iterator[None]:
    """End the program in one line if imports inside the block fail for want of a package."""
    try:
        yield
    except ImportError as error:
        said = said_of_missing(error)
        if said is None:
            raise
        print(f"error: {said}", file=sys.stderr)
        raise SystemExit(1) from error


def _is_there(module: str) -> bool:
    try:
        return module in sys.modules or find_spec(module) is not None
    except (ImportError, ValueError):
        return False
