"""A file of weights to named tensors, by reading alone: nothing that a checkpoint holds is executed.

Safetensors hold no code. Files of `torch.save` are read with `weights_only=True`. TorchScript archives, such as
OpenAI's `ViT-B-32.pt`, are not handed to the TorchScript interpreter: their pickle, which lists modules and tensors, is
read with a few allowed names, and the tensors' bytes are taken from the archive.
"""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from emcl_train.errors import UserError
from emcl_train.reading.archives import most_bytes, require_unpacked_size
from emcl_train.reading.pickles import ASK, CALL, PLAIN, BoundedUnpickler, Visits
from emcl_train.reading.plain_files import parse_json
from emcl_train.reading.shown import shortened
from emcl_train.runs.clip_config import numbers_in, read_clip_config, towers_of_fields
from emcl_train.runs.torch_file import load_torch_file
from emcl_train.weights.wrapped import unwrapped

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def read_state(path: Path, *, goes_on: bool = False) -> dict[str, Tensor]:
    """Named tensors of a checkpoint, on the CPU, with half precision brought to float32.

    Args:
        path: the checkpoint.
        goes_on: whether a run goes on, which has chosen among several weights in it as earlier versions did.

    Raises:
        UserError: there is no such file, it is damaged, it would need code to be run, or it holds no tensors, or
            those of several models.
    """
    if not path.is_file():
        raise UserError(
            f"{path} is no file; pass a checkpoint: .safetensors, a file of torch.save, or OpenAI's archive"
        )

    def read() -> Any:
        if path.suffix == ".safetensors":
            return load_file(path)
        if _is_torchscript(path):
            require_unpacked_size(path)
            return _read_torchscript(path)
        return load_torch_file(path)

    return tensors_by(read, path, "weights", goes_on=goes_on)


def tensors_by(read: Callable[[], Any], path: Path, what: str, *, goes_on: bool = False) -> dict[str, Tensor]:
    """What a reader makes of a file: weights without their wrappers, half precision brought to float32.

    Args:
        read: reads the file.
        path: of the file.
        what: it should be, such as "weights".
        goes_on: as `read_state` takes it.

    Raises:
        UserError: whatever the reader raises; the tensors are more than the file can hold.
    """
    try:
        state = unwrapped(read(), path, goes_on=goes_on)
        require_bounded(state, path)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # readers raise whatever the damaged bytes lead to
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"{path} cannot be read as {what}: {reason}. Only tensors are read, never code: if the file is whole, "
            f"save its state_dict alone, by torch.save or as safetensors"
        ) from error

    return {name: as_read(value) for name, value in state.items()}


def require_bounded(state: Mapping[str, Tensor], path: Path) -> None:
    """Raise a ValueError where tensors come to far more numbers than their file could hold.

    A tensor may stand for one number repeated 10¹² times, without taking any memory yet.
    """
    taken = sum(value.numel() * value.element_size() for value in state.values())
    if taken > most_bytes(path):
        raise ValueError(f"its tensors come to {taken} bytes, and the file has {path.stat().st_size}")


def as_read(value: Tensor) -> Tensor:
    """A tensor of its own memory, with half precision brought to float32."""
    return (value.float() if value.is_floating_point() else value).contiguous()


def clip_config_beside(path: Path) -> dict[str, Any] | None:
    """CLIP's configuration in a safetensors file's metadata, or in a run's `clip_config.json` beside it, or None.

    Raises:
        UserError: there is one that cannot be read, or describes other towers than a CLIP's.
    """
    if path.suffix == ".safetensors" and path.is_file():
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
            recorded = parse_json(metadata["clip_config"]) if "clip_config" in metadata else None
            if not isinstance(recorded, (dict, type(None))):
                raise ValueError(f"it is {shortened(recorded)}, expected an object")
        except (ValueError, TypeError, OSError, SafetensorError) as error:
            raise UserError(f"CLIP's configuration in {path} cannot be read: {error}; copy it again") from error
        if recorded is not None:
            return towers_of_fields(recorded, f"what was recorded with {path}", weights=numbers_in(path))

    return read_clip_config(path.parent, path)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


class _Module:
    """A module of the archive: its attributes by name."""

    attributes: dict[str, Any]


def _plain(value: Any) -> Any:
    return value


def _empty(*arguments: Any) -> "OrderedDict[str, Any]":
    """A dict as torch writes it, empty at first. One made of values would have keys that nothing has looked at."""
    if arguments:
        raise pickle.UnpicklingError("it makes a dict of values that are no entries of it")
    return OrderedDict()


class _Reader(BoundedUnpickler):
    """Builds modules, containers and tensors; refuses every other name."""

    allowed: tuple[bytes, ...] = PLAIN + ASK + CALL

    def __init__(self, archive: zipfile.ZipFile, folder: str, data: bytes) -> None:
        super().__init__(data)
        self._archive = archive
        self._folder = folder
        self._storages: dict[str, Tensor] = {}
        self.dispatch[pickle.BUILD[0]] = _Reader._fill  # type: ignore[assignment]

    def _fill(self) -> None:
        """Give a module its attributes; nothing else has any that a file could set."""
        state = self.stack.pop()
        module = self.stack[-1]
        if not isinstance(module, _Module) or not isinstance(state, dict):
            raise pickle.UnpicklingError("it sets attributes of what is no module")
        module.attributes = state

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        allowed: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): _empty,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        }
        if module == "torch" and name in STORAGES:
            return name
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return _plain
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which weights do not need")
        return allowed[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        _, storage, key, _, count = pid
        name = f"{self._folder}/data/{key}"
        if name not in self._storages:
            data = bytearray(self._archive.read(name))
            dtype = STORAGES[storage]
            self._storages[name] = (
                torch.frombuffer(data, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)
            )
        return self._storages[name]


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        data = archive.read(name)
        root = _Reader(archive, name.rsplit("/", 1)[0], data).load()
    return dict(_tensors(root, "", Visits(len(data))))


def _tensors(module: Any, prefix: str, visits: Visits) -> Iterator[tuple[str, Tensor]]:
    for name, value in visits.each(iter(getattr(module, "attributes", {}).items())):
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.", visits)
