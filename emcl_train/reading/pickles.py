"""Pickles that may come from anybody: instructions on a list, names on a list, work that is linear in the file.

A pickle is a program of instructions. Those that are allowed here build plain values; of the names that it may ask for,
each reader has a list. It runs in Python's own interpreter of them, whose memory of earlier values is a dict: the one
in C makes room for as many as a number in the file says.
"""

import pickle
import reprlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from io import BytesIO
from mmap import mmap
from typing import Any, BinaryIO

PLAIN = (
    pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK, pickle.DUP,
    pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE,
    pickle.INT, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG, pickle.LONG1, pickle.FLOAT, pickle.BINFLOAT,
    pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.BINBYTES, pickle.SHORT_BINBYTES,
    pickle.UNICODE, pickle.BINUNICODE, pickle.SHORT_BINUNICODE,
    pickle.EMPTY_LIST, pickle.LIST, pickle.APPEND, pickle.APPENDS,
    pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3,
    pickle.EMPTY_DICT, pickle.DICT, pickle.SETITEM, pickle.SETITEMS,
    pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET,
    pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.GET, pickle.BINGET, pickle.LONG_BINGET,
)  # fmt: skip
"""Instructions that build plain values."""
ASK = (pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.PERSID, pickle.BINPERSID)
"""Instructions that ask for a name, or for something outside the file: the reader gives it, or refuses by its name."""
CALL = (pickle.REDUCE, pickle.NEWOBJ)
"""Instructions that call what the reader gave for a name."""


RUNS = (pickle.REDUCE, pickle.BUILD, pickle.OBJ, pickle.INST, pickle.NEWOBJ, pickle.NEWOBJ_EX)
"""Instructions that would run something."""
KEYED = (
    (pickle.SETITEM, -2, 2),
    (pickle.SETITEMS, 0, 2),
    (pickle.DICT, 0, 2),
    (pickle.ADDITEMS, 0, 1),
    (pickle.FROZENSET, 0, 1),
)
"""Instructions that put values under keys, and where these lie: the first of them, and the way to the next."""
KEYS = (str, bytes, int, float, type(None))


class BoundedUnpickler(pickle._Unpickler):  # type: ignore[name-defined, misc]
    """Reads plain values; what else it builds is said by `find_class` and `persistent_load`, which refuse all."""

    allowed: tuple[bytes, ...] = (*PLAIN, *ASK, pickle.INST)
    keys: tuple[type, ...] = KEYS
    stack: list[Any]

    def __init__(self, data: bytes | BinaryIO | mmap, *, encoding: str = "ASCII") -> None:
        """Read a pickle.

        Args:
            data: the pickle; or a file that stands where one begins, and gives no more than it has.
            encoding: of texts from Python 2.
        """
        self._file = BytesIO(data) if isinstance(data, bytes) else data
        super().__init__(self._file, encoding=encoding)
        # Of the instance, in place of what its class has for all instructions.
        known = super().dispatch
        steps: dict[int, Callable[[Any], None]] = {code[0]: known[code[0]] for code in self.allowed}
        steps |= {code[0]: self._with_plain_keys(steps[code[0]], first, step) for code, first, step in KEYED}
        steps |= {code: partial(_refuse, code) for code in range(256) if code not in steps}
        self.__dict__["dispatch"] = steps

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for the global {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError(f"it asks for the object {reprlib.repr(pid)} from outside the file")

    def _position(self) -> int:
        """Where the instruction stands that was read last."""
        frame = self._unframer.current_frame  # type: ignore[attr-defined]
        rest = len(frame.getvalue()) - frame.tell() if frame else 0
        return self._file.tell() - rest - 1

    @staticmethod
    def _with_plain_keys(known: Callable[[Any], None], first: int, step: int) -> Callable[[Any], None]:
        def put(unpickler: "BoundedUnpickler") -> None:
            # The hash of a tuple of a million tuples in each other would end the process.
            if not all(isinstance(key, unpickler.keys) for key in unpickler.stack[first::step]):
                raise pickle.UnpicklingError("it has a key that is neither a text nor a number")
            known(unpickler)

        return put


def _refuse(code: int, unpickler: BoundedUnpickler) -> None:
    what = "asks for" if bytes([code]) in RUNS else "has"
    raise pickle.UnpicklingError(f"it {what} {_name_of(code)} at byte {unpickler._position()}")


def _name_of(code: int) -> str:
    codes = {name: value for name, value in vars(pickle).items() if name.isupper() and isinstance(value, bytes)}
    names = {value[0]: name for name, value in codes.items() if len(value) == 1}
    return names.get(code, f"an instruction {code} that pickles do not have")


class Visits:
    """Counts the steps of a walk through values that refer to each other, so that it stays linear in the file.

    A file of a few hundred bytes can have 2⁴⁰ paths through 40 values, each of which refers twice to the one before.
    """

    def __init__(self, most: int) -> None:
        self._left = most

    def step(self) -> None:
        """One more; a ValueError if there were more of them than the file has bytes."""
        self._left -= 1
        if self._left < 0:
            raise ValueError("what it holds refers to itself so often that there are more values than bytes")

    def each(self, values: Iterable[Any]) -> Iterator[Any]:
        """The values, counted."""
        for value in values:
            self.step()
            yield value
