"""Files of this machine and of object stores alike: listed, and fetched into a file that a decoder can open."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from emcl_train.data.passing import PassingError
from emcl_train.errors import UserError
from emcl_train.extras import sentence_on
from emcl_train.search.reaching import SETTINGS, is_address
from emcl_train.terminal import in_a_line

STORES = ("s3",)
"""How an address begins. Others that fsspec knows would fetch pages of the web, or run one inside another."""


def store_of(place: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it.

    Raises:
        UserError: the address is of no store that is read, or the packages that read it are not installed.
    """
    scheme, _, path = place.partition("://")
    if scheme not in STORES:
        raise UserError(
            f"the corpus is {place}, expected a folder or file of this machine, or an object store's address "
            f"({', '.join(STORES)})"
        )
    with reaching_store(place):
        return _s3(os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or ""), path.strip("/")


@cache
def _s3(endpoint: str) -> Any:
    """S3, or the store of one's own at an endpoint, as fsspec reads it by Arrow's client."""
    try:
        from fsspec.implementations.arrow import ArrowFSWrapper
        from pyarrow.fs import S3FileSystem
    except ImportError as error:
        raise UserError(sentence_on(["fsspec", "pyarrow"], "train")) from error
    settings: dict[str, Any] = {"region": os.environ["AWS_REGION"]} if "AWS_REGION" in os.environ else {}
    if endpoint:
        parts = urlsplit(endpoint if "//" in endpoint else f"https://{endpoint}")
        settings |= {"endpoint_override": parts.netloc, "scheme": parts.scheme}
    return ArrowFSWrapper(S3FileSystem(**settings))


@contextmanager
def reaching_store(place: str) -> Iterator[None]:
    """Say in a sentence what keeps us from an object store.

    Raises:
        UserError: the store does not answer, or refuses.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{place} cannot be reached: {_said(error)}; check the address, and what is in the environment, such as "
            f"{SETTINGS['s3']}"
        ) from error


def _said(error: OSError) -> str:
    return in_a_line(str(error).split("\n")[0]) or type(error).__name__


def files_below(place: str) -> list[str]:
    """Every object below an address, by its path relative to it; an object itself as "".

    Raises:
        UserError: the store does not answer, or has nothing there.
    """
    system, root = store_of(place)
    with reaching_store(place):
        try:
            if system.info(root)["type"] == "file":
                return [""]
            # Left to itself, fsspec lists as empty what it may not look into.
            found = system.find(root, on_error="raise")
        except FileNotFoundError:
            found = []
    if not found:
        raise UserError(f"there is nothing at {place}; pass the address of videos, of a table or of .tar files")
    return sorted(path.removeprefix(root).lstrip("/") for path in found)


@contextmanager
def fetched(path: str, scratch: Path) -> Iterator[Path]:
    """A file of this machine with what is at a path or an address; that of an address is there inside the block.

    Args:
        path: it.
        scratch: a folder to put files into.

    Raises:
        PassingError: the store did not give it.
        FileNotFoundError: the store does not have it.
    """
    if not is_address(path):
        yield Path(path)
        return
    system, inside = store_of(path)
    with scratch_file(scratch, Path(inside).suffix) as local:
        try:
            system.get_file(inside, str(local))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise PassingError(Path(path), f"the store says: {_said(error)}", error.errno) from error
        yield local


@contextmanager
def scratch_file(folder: Path, suffix: str) -> Iterator[Path]:
    """A path in a folder for a file that goes with the block. Names of strangers are no names of files here.

    Args:
        folder: it.
        suffix: of the stranger's name.
    """
    suffix = suffix.lower() if suffix.isascii() and len(suffix) < 10 else ""
    path = folder / f"{secrets.token_hex(8)}{suffix}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def joined(place: str, name: str) -> str:
    """The path of a name below a folder or an address."""
    return f"{place.rstrip('/')}/{name}" if is_address(place) else str(Path(place) / name)
