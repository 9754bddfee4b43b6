"""Libraries in object stores: what LanceDB says of a store that does not answer, in a sentence with a way out."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from emcl_train.errors import UserError
from emcl_train.terminal import in_a_line

OF_STORE = re.compile(r"LanceError|connect to namespace|object store|lance_io")
"""What stands in errors of LanceDB that are about where a library lies."""
REASONS = (
    (r"<Code>(\w+)</Code>", "the store says {}"),
    (r"CredentialsNotLoaded|load signing credential", "there are no credentials"),
    (r"BadScheme", "the endpoint begins with http:// and AWS_ALLOW_HTTP is not true"),
    (r"dns error|lookup address", "its host is not known"),
    (r'message: "([^"\\]+)"', "{}"),
    (r"status: (\d+)", "the store answers with the status {}"),
    (r"HTTP error: ([^,\n]+)", "{}"),
)
"""The part of such an error that a reader can use, and how it is said. The first that is there is taken."""
LONGEST = 200
"""Letters of an error that is none of these."""
SETTINGS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT",
    "gs": "GOOGLE_SERVICE_ACCOUNT",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    "abfss": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
"""Names in the environment, by the first letters of an address."""


def is_address(place: str | Path) -> bool:
    """Whether a library lies in an object store, and not in a folder of this machine."""
    return "://" in str(place)


@contextmanager
def reaching(place: str | Path) -> Iterator[None]:
    """Say in a sentence what keeps LanceDB from an object store.

    Args:
        place: of the library. Errors about a folder pass as they are.

    Raises:
        UserError: the store does not answer, or refuses.
    """
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        if not is_address(place) or not OF_STORE.search(str(error)):
            raise
        scheme = str(place).partition("://")[0].partition("+")[0]
        named = f", such as {SETTINGS[scheme]}" if scheme in SETTINGS else ""
        raise UserError(
            f"{place} cannot be reached: {reason_of(str(error))}; check the address, and what LanceDB takes from the "
            f"environment{named}"
        ) from error


def reason_of(said: str) -> str:
    """What a reader can use of an error of LanceDB, which may have pages."""
    for pattern, sentence in REASONS:
        if found := re.search(pattern, said):
            return sentence.format(*found.groups())
    first = in_a_line(said.split("\n")[0]).removeprefix("Invalid input, ")
    return first if len(first) <= LONGEST else first[:LONGEST] + "…"
