"""The application: one page, a JSON API, pictures and films of one library, and nothing else of this machine.

No path of a request reaches the disk. A request names a moment by its id; the library says which file that is, and
whether it still lies in the folder that was indexed. The page's own files are read when the application is built.
"""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from anyio import CapacityLimiter
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from emcl_kernels import __version__
from emcl_train.data.opening import Identity, identity_of
from emcl_train.data.passing import PassingError
from emcl_train.data.timeline import VideoError
from emcl_train.errors import UserError
from emcl_train.search.server import showing
from emcl_train.search.server.contract import Moment, Searchable
from emcl_train.search.server.converting import PastTheEnd, Written, write_part
from emcl_train.search.server.guarding import Guard, names_of
from emcl_train.search.server.lines import Line
from emcl_train.search.server.media import ASKED_AGAIN, CANNOT, FileAnswer, Opened, is_known, open_regular, require_same
from emcl_train.search.server.openapi import document
from emcl_train.search.server.parts import Part, Parts, key_of
from emcl_train.search.server.playing import Plan, part_of, plan_of
from emcl_train.search.server.questions import PARAMETERS, asked
from emcl_train.search.server.refusing import Refused, answer, said
from emcl_train.search.server.tracks import Limits, TooMuch, Unwritable
from emcl_train.search.state import BecameAnother
from emcl_train.terminal import tell

PAGE = Path(__file__).resolve().parent / "page"
PAGES = {
    "/": ("index.html", "text/html"),
    "/api": ("api.html", "text/html"),
    "/page/page.css": ("page.css", "text/css"),
    **{f"/page/{name}.js": (f"{name}.js", "text/javascript") for name in ("page", "player", "results", "words")},
    "/page/api.js": ("api.js", "text/javascript"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""The page's own files, by their addresses."""

SEARCHES = 1
"""Searches at once: an encoder takes all cores for one text."""
SEARCHES_WAITING = 64
LOOKS = 8
"""Look-ups and reads of files at once."""
LOOKS_WAITING = 512

UNCUT = "from here it cannot be copied, and was encoded"
"""Why a part is encoded although browsers play what is in its film."""

Handler = Callable[[Request], Awaitable[ASGIApp]]


class Source(NamedTuple):
    """A moment and how its file is played."""

    moment: Moment
    path: Path
    plan: Plan
    known_by: Identity
    """What the file was known by when the library gave it."""


class Server(Starlette):
    """The application, with its guard before all else: before its own handler of errors, too."""

    names: frozenset[str] = frozenset()
    parts: Parts | None = None

    def end_soon(self) -> None:
        """Let go of what takes long: whoever waits for it gets a sentence."""
        if self.parts is not None:
            self.parts.stop()

    def build_middleware_stack(self) -> ASGIApp:
        return Guard(super().build_middleware_stack(), self.names)


def build_app(library: Searchable, *, host: str = "127.0.0.1", port: int, cache_dir: Path, cache_bytes: int) -> Server:
    """The application that serves a library.

    Args:
        library: a `Library`, or anything of its shape.
        host: name or address that the server is bound to. Requests that name another one in `Host` get no answer.
        port: of its socket.
        cache_dir: folder for parts of films that a browser cannot play as they are; it is created.
        cache_bytes: that they may take there.

    Raises:
        UserError: the folder cannot be used.

    Example:
        >>> app = build_app(Library("library"), port=8765, cache_dir=Path("cache"), cache_bytes=1 << 30)
        >>> uvicorn.run(app, host="127.0.0.1", port=8765)
    """
    desk = Desk(library, Parts(cache_dir, cache_bytes))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            desk.parts.stop()

    routes = [Route(address, _page(*page), methods=["GET"]) for address, page in PAGES.items()]
    routes += [Route(address, _asking(address, handler), methods=["GET"]) for address, handler in desk.handlers.items()]
    app = Server(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={Refused: _refused, HTTPException: _no_such_address, Exception: _failed},
    )
    app.router.redirect_slashes = False
    app.names = names_of(host, port)
    app.parts = desk.parts
    return app


class Desk:
    """Answers the questions to a library, each kind in a line of its own."""

    def __init__(self, library: Searchable, parts: Parts) -> None:
        self.library = library
        self.parts = parts
        self._searching = Line("searching", SEARCHES, SEARCHES_WAITING)
        self._looking = Line("looking at moments", LOOKS, LOOKS_WAITING)
        self._reading = CapacityLimiter(LOOKS)
        self.handlers: dict[str, Callable[[Request, dict[str, Any]], Awaitable[ASGIApp]]] = {
            "/api/library": self.about,
            "/api/search": self.search,
            "/api/like": self.like,
            "/api/neighbours": self.neighbours,
            "/api/playing": self.playing,
            "/api/openapi.json": self.openapi,
            "/thumbnail/{id}": self.thumbnail,
            "/media/{id}": self.media,
        }

    async def about(self, request: Request, _: dict[str, Any]) -> ASGIApp:
        return answer(await self._looking.run(request, self.library.steadily, showing.about, self.library))

    async def openapi(self, _: Request, __: dict[str, Any]) -> ASGIApp:
        return answer(document(showing.text_of(self.library.name), __version__))

    async def search(self, request: Request, given: dict[str, Any]) -> ASGIApp:
        return answer(await self._searching.run(request, self.library.steadily, self._search, given))

    def _search(self, given: dict[str, Any]) -> dict[str, Any]:
        refine = self._refine(given["refine"])
        cutoff = showing.score_of(self.library.cutoff(refine=refine))
        minimum = cutoff if given["min"] == "auto" else given["min"]
        if given["min"] == "auto" and cutoff is None:
            raise Refused(400, "min is auto, and this library knows no cut-off; give a number, or leave it out")
        found = self.library.search(given["q"], given["k"], refine=refine, minimum=minimum)
        repeated = {"query": given["q"], "refined": refine, "minimum": showing.number(minimum)}
        return showing.results(self.library, found, cutoff=cutoff, asked=repeated)

    async def like(self, request: Request, given: dict[str, Any]) -> ASGIApp:
        return answer(await self._searching.run(request, self.library.steadily, self._like, given))

    def _like(self, given: dict[str, Any]) -> dict[str, Any]:
        refine = self._refine(given["refine"])
        of = self._moment(given["id"])
        found = self.library.like_moment(given["id"], given["k"], refine=refine)
        shown = showing.shown_moment(of, showing.roots_of(self.library))
        # The cut-off is of words and films; between films all scores are higher.
        return showing.results(self.library, found, asked={"of": shown, "refined": refine})

    async def neighbours(self, request: Request, given: dict[str, Any]) -> ASGIApp:
        return answer(await self._looking.run(request, self.library.steadily, self._neighbours, given))

    def _neighbours(self, given: dict[str, Any]) -> dict[str, Any]:
        of = self._moment(given["id"])
        found = self.library.neighbours(given["id"], given["around"])
        shown = showing.shown_moment(of, showing.roots_of(self.library))
        return showing.results(self.library, found, asked={"of": shown})

    async def thumbnail(self, request: Request, given: dict[str, Any]) -> ASGIApp:
        picture = await self._looking.run(request, self.library.thumbnail, given["id"])
        if picture is None:
            raise Refused(404, "there is no such moment in this library, or it has no picture")
        # A moment's id stays when its file is indexed in another way, and its picture does not.
        headers = {"cache-control": ASKED_AGAIN, "etag": f'"{hashlib.sha256(picture).hexdigest()[:32]}"'}
        if is_known(request.headers, headers["etag"]):
            return Response(status_code=304, headers=headers)
        return Response(picture, media_type="image/webp", headers=headers)

    async def playing(self, request: Request, given: dict[str, Any]) -> ASGIApp:
        source, part = await self._prepared(request, given["id"], given["part"])
        plan = source.plan
        shown = showing.shown_moment(source.moment, showing.roots_of(self.library))
        return answer(
            {
                "moment": shown,
                "media": f"{shown['media']}?part={given['part']}" if part is not None else shown["media"],
                "type": f"video/{plan.kind if part is None else part.kind}",
                "way": plan.way if part is None else part.way,
                "why": plan.why if part is None or part.way == plan.way else f"{plan.why}; {UNCUT}",
                "begin": plan.zero if part is None else part.begin,
                "end": None if part is None else part.end,
                "more": part is not None and part.more,
                "muted": part is not None and part.muted,
            }
        )

    async def media(self, request: Request, given: dict[str, Any]) -> ASGIApp:
        source, part = await self._prepared(request, given["id"], given["part"])
        kind = source.plan.kind if part is None else part.kind
        opened = await self._looking.run(request, _opened, source, part)
        return FileAnswer(opened, f"video/{kind}", self._reading)

    async def _prepared(self, request: Request, moment_id: str, number: int) -> tuple[Source, Part | None]:
        """A moment's file, and the part of it that is made for a browser; None if the file is sent as it is."""
        source = await self._looking.run(request, self.library.steadily, self._source, moment_id)
        if source.plan.way == "as it is":
            if number:
                raise Refused(404, "this film is sent as it is; it has no further parts")
            return source, None

        moment = source.moment
        span = part_of(moment.start, moment.end, number)
        key = key_of(moment.content, *source.known_by, source.plan, span)

        def make(target: Path, limits: Limits) -> Written:
            # Others may have been converted first: meanwhile another file may lie there, or a folder be a link.
            require_same(source.path, source.known_by)
            written = write_part(source.path, source.plan, span, target, limits)
            require_same(source.path, source.known_by)
            return written

        return source, await self.parts.get(request, key, make)

    def _source(self, moment_id: str) -> Source:
        moment = self._moment(moment_id)
        path = self.library.file_of(moment_id)
        if path is None:
            raise Refused(404, CANNOT)
        known_by = identity_of(path)
        require_same(path, known_by)
        return Source(moment, path, plan_of(path), known_by)

    def _moment(self, moment_id: str) -> Moment:
        moment = self.library.moment(moment_id)
        if moment is None:
            raise Refused(404, "there is no such moment in this library; it may have been indexed again since")
        return moment

    def _refine(self, refine: bool | None) -> bool:
        if refine and not self.library.refines:
            raise Refused(400, "refine is 1, and this library has no refined vectors; `emcl-train index` makes them")
        return self.library.refines if refine is None else refine


def _opened(source: Source, part: Part | None) -> Opened:
    if part is None:
        return open_regular(source.path, known_by=source.known_by)
    return open_regular(part.path, f'"{part.key}"')


def _asking(address: str, handler: Callable[[Request, dict[str, Any]], Awaitable[ASGIApp]]) -> Handler:
    """The handler of an address: reads the parameters, and turns what films do not give into sentences."""

    async def handle(request: Request) -> ASGIApp:
        try:
            return await handler(request, asked(request, PARAMETERS[address]))
        except PastTheEnd as error:
            raise Refused(404, "the film ends before this part") from error
        except VideoError as error:
            raise Refused(404, f"{_named(error)}: {error.reason}") from error
        except PassingError as error:
            raise Refused(503, f"{_named(error)} cannot be read now: {error.reason}") from error
        except BecameAnother as error:
            tell(f"error: {error}")
            raise Refused(
                503, "the library is gone or became another one; the terminal of the server says why"
            ) from error
        except UserError as error:  # of the library: it names folders
            tell(f"error: {error}")
            raise Refused(500, "the library could not answer; the terminal of the server says why") from error
        except TooMuch as error:
            raise Refused(503, f"the film cannot be shown: {error}") from error
        except Unwritable as error:
            tell(f"error: no part of a film can be kept in the cache: {error}; free some space there")
            raise Refused(503, "the film cannot be converted: the disk of the server takes nothing more") from error

    return handle


def _named(error: VideoError | PassingError) -> str:
    return showing.text_of(error.path.name)


def _page(name: str, media_type: str) -> Handler:
    content = (PAGE / name).read_bytes()
    headers = {"cache-control": "no-cache"}

    async def page(_: Request) -> ASGIApp:
        return Response(content, media_type=media_type, headers=headers)

    return page


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return said(error)


async def _no_such_address(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    nothing = "there is nothing at this address; /api lists what there is"
    return said(Refused(error.status_code, nothing if error.status_code == 404 else error.detail))


async def _failed(_: Request, error: Exception) -> Response:
    """What nobody expected is told in the terminal alone: it may name paths."""
    return said(Refused(500, "the server failed; its terminal says why"))
