"""What is not answered, and how that is said: a status, and a sentence in JSON."""

from typing import Any

from starlette.responses import JSONResponse


class Refused(Exception):
    """A request that gets no answer but a sentence. It names no path of this machine."""

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.headers = headers or {}


def said(refusal: Refused) -> JSONResponse:
    """The answer for a refusal."""
    headers = {"cache-control": "no-store", **refusal.headers}
    return JSONResponse({"error": refusal.sentence}, refusal.status, headers=headers)


def answer(value: Any) -> JSONResponse:
    """An answer of the API: it may change with the next `index`, so nobody keeps it."""
    return JSONResponse(value, headers={"cache-control": "no-store"})
