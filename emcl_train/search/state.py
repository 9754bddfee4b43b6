"""A library as it is at one moment, and how a program that keeps it open follows what `emcl-train index` writes.

LanceDB keeps earlier versions of a table for those who read them. A state is one version of each table and what was
read of it, so that an answer is of one state from its first look-up to its last.
"""

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ParamSpec, TypeVar

from emcl_kernels import Refiner
from emcl_train.errors import UserError
from emcl_train.search.tables import ABOUT, FILES, INDEXED, MAP, MOMENTS, REFINED, REFINER, FileRow, Tables, files_in

P = ParamSpec("P")
T = TypeVar("T")

EVERY = 1.0
"""Seconds after which it is looked again whether a folder's tables have changed; it takes some milliseconds."""
EVERY_IN_A_STORE = 10.0
"""The same for an object store, which is asked over the network."""
TABLES = (ABOUT, FILES, MOMENTS, REFINED, REFINER)
"""Of a library."""


class BecameAnother(UserError):
    """The library is gone, or another one lies in its place."""


class State:
    """One version of each table. What is read of it is read once, whichever thread asks first."""

    def __init__(self, tables: Tables, earlier: "State | None" = None) -> None:
        """The state that there is now.

        Args:
            tables: of the library.
            earlier: what was read of the versions that are still the same is taken from it.

        Raises:
            UserError: the library is gone.
        """
        self._place = tables.place
        self._lock = threading.RLock()
        self._tables = {name: tables.open(name) for name in tables.names() if name in TABLES}
        if missing := [name for name in (ABOUT, FILES, MOMENTS) if name not in self._tables]:
            raise BecameAnother(f"{tables.place} holds no library any more: {missing[0]} is gone")
        self.about: dict[str, Any] = tables.about()
        self.versions = {"created": self.about.get("created")}
        self.versions |= {name: table.version for name, table in self._tables.items()}
        self._read: dict[str, Any] = {} if earlier is None else earlier.of_the_same(self)
        self._keep_a_pair(earlier)

    def of_the_same(self, later: "State") -> dict[str, Any]:
        """What was read of tables that are the same in a later state."""
        with self._lock:
            if self.versions["created"] != later.versions["created"]:
                return {}
            return {name: value for name, value in self._read.items() if self._is_of(name, later)}

    def _is_of(self, name: str, later: "State") -> bool:
        return self.versions.get(name) == later.versions.get(name)

    def _keep_a_pair(self, earlier: "State | None") -> None:
        """Of refined rows and their map, the latter is written last: until it is there, the earlier two stay."""
        if REFINED not in self._tables or REFINER not in self._tables:
            self.refines = False
            return
        made_by = (self._tables[REFINED].schema.metadata or {}).get(MAP.encode(), b"").decode()
        self.refines = made_by == self._map[1].get(MAP, "")
        if not self.refines and earlier is not None and earlier.refines:
            self._tables |= {name: earlier._tables[name] for name in (REFINED, REFINER)}
            self._read[REFINER] = earlier._map
            self.refines = True

    @property
    def moments(self) -> Any:
        """The table of moments."""
        return self._tables[MOMENTS]

    @property
    def refined(self) -> Any:
        """The table of refined rows, where there are any."""
        return self._tables[REFINED]

    @property
    def refiner(self) -> tuple[Refiner, dict[str, Any]]:
        """The map with its bank, and what is recorded beside it; where there are refined rows."""
        return self._map

    @property
    def _map(self) -> tuple[Refiner, dict[str, Any]]:
        return self._once(REFINER, lambda: _refiner_in(self._tables[REFINER]))

    @property
    def files(self) -> list[FileRow]:
        """All files."""
        return self._files[0]

    @property
    def paths(self) -> dict[str, list[FileRow]]:
        """Files that are indexed, by their content."""
        return self._files[1]

    @property
    def _files(self) -> tuple[list[FileRow], dict[str, list[FileRow]]]:
        return self._once(FILES, lambda: _files_in(self._tables[FILES]))

    def _once(self, name: str, read: Callable[[], T]) -> T:
        with self._lock:
            if name not in self._read:
                self._read[name] = read()
            value: T = self._read[name]
            return value


def _files_in(table: Any) -> tuple[list[FileRow], dict[str, list[FileRow]]]:
    rows = files_in(table)
    by_content: dict[str, list[FileRow]] = {}
    for row in rows:
        if row.status == INDEXED:
            by_content.setdefault(row.content, []).append(row)
    return rows, by_content


def _refiner_in(table: Any) -> tuple[Refiner, dict[str, Any]]:
    row = table.search().limit(1).to_list()[0]
    with TemporaryDirectory(prefix="emcl-library-") as folder:
        path = Path(folder) / "map.safetensors"
        path.write_bytes(row["map"])
        return Refiner.load(path), json.loads(row["json"])


class States:
    """The latest state of a library; within one call, one and the same."""

    def __init__(self, tables: Tables) -> None:
        """Open the library.

        Args:
            tables: of it.

        Raises:
            UserError: it is gone, or damaged.
        """
        self.every = EVERY if tables.is_folder else EVERY_IN_A_STORE
        """Seconds after which it is looked again."""
        self._tables = tables
        self._latest = State(tables)
        self._looked = time.monotonic()
        self._looking = threading.Lock()
        self._own = threading.local()

    @property
    def now(self) -> State:
        """That of the call at hand, or else the latest one."""
        held: State | None = getattr(self._own, "state", None)
        return self._latest_one() if held is None else held

    def steadily(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that sees one state, in this thread.

        LanceDB says by a RuntimeError that a version is gone, as where the library was removed and made anew. The
        function is then called once more, with the state that there is now.
        """
        if getattr(self._own, "state", None) is not None:
            return function(*args, **kwargs)
        with self._held() as state:
            try:
                return function(*args, **kwargs)
            except RuntimeError:
                if self._latest_one(at_once=True) is state:
                    raise
        with self._held():
            return function(*args, **kwargs)

    @contextmanager
    def _held(self) -> Iterator[State]:
        self._own.state = state = self._latest_one()
        try:
            yield state
        finally:
            self._own.state = None

    def _latest_one(self, *, at_once: bool = False) -> State:
        """The latest state. While one thread looks for it, the others go on with the one before.

        Raises:
            BecameAnother: the library is gone, or made by another model than the one that is loaded.
        """
        if not at_once and time.monotonic() - self._looked < self.every:
            return self._latest
        if not self._looking.acquire(blocking=at_once):
            return self._latest
        try:
            found = self._found()
            if found.versions != self._latest.versions:
                self._latest = found
            self._looked = time.monotonic()
            return self._latest
        except BecameAnother:
            self._looked = -math.inf  # whoever asks next is told too, or sees that it is there again
            raise
        finally:
            self._looking.release()

    def _found(self) -> State:
        try:
            found = State(self._tables, self._latest)
        except (ValueError, FileNotFoundError) as error:  # a table went away since the list of them was made
            raise BecameAnother(f"{self._tables.place} holds no library any more: {error}") from error
        before, after = self._latest.about["model"], found.about["model"]
        if before["fingerprint"] != after["fingerprint"]:
            raise BecameAnother(
                f"{self._tables.place} was made anew by {after['label']} with the fingerprint {after['fingerprint']}, "
                f"and was opened when it was one of {before['label']} with {before['fingerprint']}; open it again"
            )
        return found
