"""Checkpoints of training programs: weights beside objects of the program's own classes, none of which is built.

A checkpoint such as `{state_dict, epoch, config, optimizer}`, whose configuration is an object of a class, cannot be
read with `weights_only=True`, and to read it otherwise is to run what it holds. Here its pickle is read with a few
allowed names. Whatever else it asks for becomes a `NotBuilt`, which takes everything and does nothing.

Both forms of `torch.save` are read: the zip archive, and that of torch before 1.6 (2020), in which pickles stand one
after the other and the numbers behind them. Of a file, only the weights' numbers are brought to memory.
"""

import io
import pickle
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from emcl_train.errors import UserError
from emcl_train.reading.archives import require_unpacked_size
from emcl_train.reading.pickles import ASK, CALL, KEYS, PLAIN, BoundedUnpickler
from emcl_train.reading.plain_files import require_regular
from emcl_train.runs.torch_file import Bounded, what_it_is
from emcl_train.weights.files import STORAGES, read_state, tensors_by

WEIGHTS = "state_dict"
"""Key of the weights in a checkpoint; without it, all of the file has to be weights."""
MAGIC = 0x1950A86A20F9469CFC6C
"""First pickle of a file of torch before 1.6; the second is the version."""
VERSION = 1001


def read_training_file(path: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint of a training program, on the CPU, by the names that they have there.

    Names are without what wrappers put before them ("module."). Half precision is brought to float32. Safetensors are
    read as everywhere.

    Raises:
        UserError: there is no such file, it is damaged, or it holds no weights.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file; pass a checkpoint: a file of torch.save, or .safetensors")
    if path.suffix == ".safetensors":
        return read_state(path)

    def read() -> dict[str, Tensor]:
        require_regular(path)
        require_unpacked_size(path)
        with ExitStack() as opened:
            content, numbers = _opened(path, opened)
            return {name: tensor.built(numbers) for name, tensor in _weights(content).items()}

    return tensors_by(read, path, "a checkpoint")


class NotBuilt:
    """Stands for an object of a class that is not on the list. What would fill it is thrown away."""

    def append(self, value: Any) -> None:
        """Nothing."""

    extend = add = append

    def __setitem__(self, key: Any, value: Any) -> None:
        """Nothing."""


@dataclass(frozen=True)
class _Storage:
    """Where the numbers of some tensors stand in the file."""

    key: str
    dtype: torch.dtype
    count: int


Numbers = Callable[[_Storage], Tensor]
"""Reads a storage, as a vector."""


@dataclass(frozen=True)
class _Tensor:
    """A tensor of which no number has been read yet."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def built(self, numbers: Numbers) -> Tensor:
        return numbers(self.storage).as_strided(self.size, self.stride, self.offset)


@dataclass(frozen=True)
class _Function:
    """What may be called: by a pickle that has it from its name, with the arguments that stand there."""

    build: Callable[[tuple[Any, ...]], Any]


def _dict_of(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    if arguments:
        raise pickle.UnpicklingError("it makes a dict of values that are no entries of it")
    return {}


def _tensor_of(arguments: tuple[Any, ...]) -> _Tensor:
    storage, offset, size, stride = arguments[:4]
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("it makes a tensor of what is no storage")
    return _Tensor(storage, offset, size, stride)


FUNCTIONS = {
    ("collections", "OrderedDict"): _Function(_dict_of),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor_of),
    ("torch._utils", "_rebuild_parameter"): _Function(lambda arguments: arguments[0]),
}


class _Reader(BoundedUnpickler):
    """Builds plain values and tensors without numbers. No name of a pickle leads to a call of anything else."""

    allowed: tuple[bytes, ...] = (*PLAIN, *ASK, *CALL, pickle.NEWOBJ_EX, pickle.BUILD)
    keys = (*KEYS, NotBuilt)

    def __init__(self, data: bytes | BinaryIO) -> None:
        super().__init__(data, encoding="latin1")
        self.storages: dict[str, _Storage] = {}
        own: dict[bytes, Callable[[_Reader], None]] = {
            pickle.REDUCE: _Reader._called,
            pickle.NEWOBJ: _Reader._called,
            pickle.NEWOBJ_EX: _Reader._called_with_names,
            pickle.BUILD: _Reader._left_alone,
        }
        for code, step in own.items():
            self.dispatch[code[0]] = step  # type: ignore[assignment]

    def _called(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        self.stack[-1] = function.build(arguments) if isinstance(function, _Function) else NotBuilt()

    def _called_with_names(self) -> None:
        self.stack.pop()
        self._called()

    def _left_alone(self) -> None:
        """Attributes, such as the versions of modules that a state_dict has."""
        self.stack.pop()

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        return FUNCTIONS.get((module, name)) or NotBuilt()

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] != "storage":
            return NotBuilt()  # torch before 1.6 kept the source of modules that were saved whole
        _, dtype, key, _, count, *view = pid
        if not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise pickle.UnpicklingError("it has numbers of a kind that is not known")
        if any(part is not None for part in view):
            raise pickle.UnpicklingError(f"its numbers {key!r} are a part of others, as torch before 0.4 wrote them")
        return self.storages.setdefault(key, _Storage(key, dtype, count))


def _weights(content: Any) -> dict[str, _Tensor]:
    """The state_dict of a checkpoint, or the whole of what is nothing else."""
    state = content
    if isinstance(content, dict) and isinstance(content.get(WEIGHTS), dict):
        state = content[WEIGHTS]
    if not isinstance(state, dict) or not state:
        raise ValueError(f"it holds no named tensors; expected them under {WEIGHTS!r}, or nothing else")

    others = [name for name, value in state.items() if not isinstance(value, _Tensor) or not isinstance(name, str)]
    if others:
        raise ValueError(f"{others[0]!r} is no tensor; expected tensors alone, under {WEIGHTS!r} or in the file")
    return state


def _opened(path: Path, opened: ExitStack) -> tuple[Any, Numbers]:
    """What a file holds, and a reader of its numbers that works as long as the file is open."""
    if not zipfile.is_zipfile(path):
        return _with_numbers_behind(path, opened.enter_context(Bounded(io.FileIO(path))))

    archive = opened.enter_context(zipfile.ZipFile(path))
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(pickles) != 1 or any(name.endswith("/constants.pkl") for name in archive.namelist()):
        raise ValueError("its archive is not of torch.save")
    folder = pickles[0].rpartition("/")[0]
    order = f"{folder}/byteorder"
    if order in archive.namelist() and archive.read(order) != b"little":
        raise ValueError("its numbers have the highest byte first; save it again on another machine")

    def read(storage: _Storage) -> bytes:
        return archive.read(f"{folder}/data/{storage.key}")

    return _Reader(archive.read(pickles[0])).load(), _once(read)


def _with_numbers_behind(path: Path, file: Bounded) -> tuple[Any, Numbers]:
    """A file of torch before 1.6: magic number, version, machine, content, keys, and the numbers of each key."""
    try:
        magic = _Reader(file).load()
    except Exception as error:  # whatever the bytes of another file lead to
        raise ValueError(what_it_is(path, str(error))) from error
    if magic != MAGIC or _Reader(file).load() != VERSION:
        raise ValueError(what_it_is(path, ""))
    machine = _Reader(file).load()
    if not isinstance(machine, dict) or not machine.get("little_endian", True):
        raise ValueError("its numbers have the highest byte first; save it again on another machine")

    reader = _Reader(file)
    content = reader.load()
    places: dict[str, int] = {}
    for key in _Reader(file).load():
        storage = reader.storages.get(key) if isinstance(key, str) else None
        if storage is None or int.from_bytes(file.read(8), "little") != storage.count:
            raise ValueError("its numbers are not as many as its tensors need; it is damaged")
        places[key] = file.tell()
        file.seek(storage.count * storage.dtype.itemsize, io.SEEK_CUR)

    def read(storage: _Storage) -> bytes:
        file.seek(places[storage.key])
        return file.read(storage.count * storage.dtype.itemsize)

    return content, _once(read)


def _once(read: Callable[[_Storage], bytes]) -> Numbers:
    """Each storage as a vector, read when it is first asked for."""
    found: dict[str, Tensor] = {}

    def numbers(storage: _Storage) -> Tensor:
        if storage.key not in found:
            data = bytearray(read(storage))
            found[storage.key] = (
                torch.frombuffer(data, dtype=storage.dtype, count=storage.count)
                if storage.count
                else torch.empty(0, dtype=storage.dtype)
            )
        return found[storage.key]

    return numbers
