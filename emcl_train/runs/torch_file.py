"""A file of `torch.save`: read without running anything in it, and what it is where it cannot be read."""

import io
import os
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from emcl_train.reading.archives import require_unpacked_size
from emcl_train.reading.plain_files import require_regular

REFUSED = re.compile(r"GLOBAL (\S+) was not an allowed global")
BEGINNING = 16


class Bounded(io.BufferedReader):
    """A file that is not asked for more bytes than it has: memory for them would be taken first."""

    def read(self, size: int | None = -1) -> bytes:
        left = os.fstat(self.fileno()).st_size - self.tell()
        return super().read(-1 if size is None or size < 0 else min(size, max(0, left)))


def load_torch_file(path: Path) -> Any:
    """What `torch.save` wrote, on the CPU.

    Raises:
        ValueError: says what the file is instead. Torch's own message is not passed on: its advice is to run what the
            file holds.
        OSError: the file may be whole and could not be read.
        MemoryError: likewise.
    """
    require_regular(path)
    require_unpacked_size(path)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            with Bounded(io.FileIO(path)) as file:
                return torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # the reader raises whatever the damaged bytes lead to
        if "allocate memory" in str(error) or isinstance(error, torch.OutOfMemoryError):
            raise MemoryError(f"there is not enough memory to read {path}") from error
        raise ValueError(what_it_is(path, str(error))) from error


def what_it_is(path: Path, said: str) -> str:
    """Words about a file that torch cannot read, `said` being what it raised."""
    with path.open("rb") as file:
        beginning = file.read(BEGINNING)
    if not beginning:
        return "it is empty"
    if refused := REFUSED.search(said):
        return f"it holds {refused[1]} beside tensors, which could not be built without running code"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            saved = any(name.endswith("data.pkl") for name in archive.namelist())
        return "it is damaged: what it holds does not fit together" if saved else "it is a zip archive of other files"
    if beginning.startswith(b"PK"):
        return "it is cut short: the end of its archive is missing"
    if beginning.startswith(b"\x80"):
        return "it is a pickle, damaged or not of tensors"
    return f"it is no file of torch.save: it begins with {beginning!r}"
