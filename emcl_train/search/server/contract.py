"""What the server asks of a library: any object of this shape can be served."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, ParamSpec, Protocol, TypeVar, runtime_checkable

P = ParamSpec("P")
T = TypeVar("T")


@runtime_checkable
class Moment(Protocol):
    """A moment of a file, as `Library` finds it; times in seconds from the file's first frame."""

    id: str
    path: Path
    start: float
    end: float
    score: float
    """NaN where nothing was compared."""
    content: str
    number: int
    also_at: tuple[Path, ...]


@runtime_checkable
class Cutoff(Protocol):
    """What unrelated queries score at most, 95 of 100 of them."""

    score: float


@runtime_checkable
class Searchable(Protocol):
    """A library. Calls come from several threads; those of `search` and `like_moment` one at a time."""

    @property
    def about(self) -> dict[str, Any]: ...

    @property
    def name(self) -> str: ...

    @property
    def refines(self) -> bool:
        """Whether there are refined vectors."""
        ...

    @property
    def damaged(self) -> Sequence[tuple[Path, str]]: ...

    def __len__(self) -> int: ...

    def steadily(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function to which the library stays as it is, whatever is written meanwhile."""
        ...

    def search(
        self, query: str, k: int = 10, *, refine: bool | None = None, minimum: float | Literal["auto"] | None = None
    ) -> Sequence[Moment]: ...

    def like_moment(self, moment_id: str, k: int = 10, *, refine: bool | None = None) -> Sequence[Moment]: ...

    def neighbours(self, moment_id: str, around: int = 2) -> Sequence[Moment]: ...

    def moment(self, moment_id: str) -> Moment | None: ...

    def thumbnail(self, moment_id: str) -> bytes | None: ...

    def file_of(self, moment_id: str) -> Path | None: ...

    def cutoff(self, *, refine: bool | None = None) -> Cutoff | None: ...
