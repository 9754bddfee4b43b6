"""Errors that a user can act on."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A problem with the input, not with the program; the message says what was wrong and the way out.

    The command line prints the message without a traceback (unless ``--debug``) and exits with 1.
    """

    of_all_processes = False
    """Whether each of several processes raises it, so that the first one alone says it."""
    told = False
    """Whether the other processes know of it, and end as well."""


class NotFinite(UserError):
    """Numbers that a model gives are NaN or infinite."""


def is_about_numbers(error: ValueError) -> bool:
    """Whether mathematics refused NaN or infinite numbers, and no shape or setting."""
    return "NaN" in str(error) or "not finite" in str(error)


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, what caused it, what caused that, and so on; each once, since causes may go round in a circle."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


@contextmanager
def of_input(source: object) -> Iterator[None]:
    """Blame an input for what the mathematics inside the block refuses.

    Mathematics raises a ValueError that names its argument. Only the caller knows where the argument came from.

    Args:
        source: what was read, such as the folder of a run.

    Raises:
        UserError: the block raised a ValueError; the message begins with the source. It is `NotFinite` if numbers were
            refused because they are.
    """
    try:
        yield
    except ValueError as error:
        kind = NotFinite if is_about_numbers(error) else UserError
        raise kind(f"{source}: {error}") from error
