"""The command serve: a library's page, on this machine."""

import asyncio
import hashlib
import logging
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tyro.conf import Positional

from emcl_train.commands.entry import Entry, of_function, switches_of
from emcl_train.endings import say_if_ended
from emcl_train.errors import UserError
from emcl_train.extras import require_packages
from emcl_train.terminal import in_a_line, print_whole, tell

PORT = 8765
LOOPBACK = ("127.0.0.1", "localhost", "::1")
CONNECTIONS = 256
"""At most; whoever comes then is told to come again."""
LONGEST_REQUEST = 256 << 10
"""Bytes of a request's head, so that a query that is too long gets a sentence, and not only a status."""
IDLE = 5
"""Seconds that a connection may rest between two requests."""
FAREWELL = 2
"""Seconds for answers that are on their way when the server ends."""


def serve(
    library: Positional[str],
    *,
    port: int = PORT,
    host: str = "127.0.0.1",
    model: str | None = None,
    open: bool = False,
    cache: Path | None = None,
    cache_gb: float = 1.0,
) -> None:
    """Serve a library as a page on this machine: search as you type, and play moments at their second.

    Only this machine's browsers reach it, unless --host says otherwise. It asks no other host for anything, sends
    nothing but the library's thumbnails and films, and writes only into its cache. Ctrl-C ends it.

    Args:
        library: What `index` has made.
        port: Of this machine; 0: any that is free.
        host: Address to listen at. With another one than this machine's own, everybody who reaches it sees all videos.
        model: Where the model lies now, if it has moved.
        open: Open the page in the browser.
        cache: Folder for parts of videos that browsers cannot play as they are; None: in the user's cache folder.
        cache_gb: Gigabytes that they may take there; what was not watched for longest goes first.
    """
    _require_place(host, port)
    if not 0.064 <= cache_gb <= 1e6:
        raise UserError(f"--cache-gb is {cache_gb:g}, expected 0.064 or more gigabytes")
    require_packages("search")

    from emcl_train.search.library import Library

    _run(Library(library, model), host, port, cache, int(cache_gb * 1e9), query={} if open else None)


def open_page(library: Any, asked: dict[str, str]) -> None:
    """Serve a library on a free port, and open its page with a search.

    Args:
        library: a `Library`.
        asked: what is searched for, as the page's address has it, such as {"q": "a dog"}.
    """
    _run(library, "127.0.0.1", 0, None, 1 << 30, query=asked)


def _run(
    library: Any, host: str, port: int, cache: Path | None, cache_bytes: int, query: dict[str, str] | None
) -> None:
    """Serve until a signal ends it. `query`: of the page that is opened in the browser; None: none is."""
    say_if_ended(lambda: "the server has ended; the library is as it was")
    from emcl_train.data.cache_use import hold
    from emcl_train.search.server import build_app
    from emcl_train.search.server.guarding import in_brackets

    # What is wrong with the model is said now, and not to the first who searches.
    _ = library.encoder

    with listening(host, port) as listener:
        port = listener.getsockname()[1]
        place = cache or cache_of(library)
        app = build_app(library, host=host, port=port, cache_dir=place, cache_bytes=cache_bytes)
        if cache is None:
            with suppress(OSError):  # it only keeps `data cache --prune` from what is needed
                hold(place, os.fsencode(place_of(library)))
        address = f"http://{in_brackets(host)}:{port}/"
        said = f"{in_a_line(library.name)}: {len(library)} moments at {address} (Ctrl-C ends it)\n"
        print_whole(said, sys.stdout)  # a quiet one too: nobody knows the port else
        sys.stdout.flush()
        if host not in LOOPBACK:
            tell(f"warning: whoever reaches {address} can search and watch all of this library; there is no password")
        seen = None if query is None else address + (f"?{urlencode(query)}" if query else "")
        try:
            server_of(app, seen).run(sockets=[listener])
        finally:  # a hang-up ends it without a farewell, and threads that convert would go on
            app.end_soon()


def cache_of(library: Any) -> Path:
    """The cache of a library, in the user's cache folder.

    Raises:
        UserError: the user has none.
    """
    from emcl_train.data.cache import user_cache
    from emcl_train.data.cache_use import SERVED

    folder = user_cache()
    if folder is None:
        raise UserError("there is no cache folder: the user has no home; pass --cache with a folder")
    return folder / SERVED / hashlib.sha256(os.fsencode(place_of(library))).hexdigest()[:16]


def place_of(library: Any) -> str:
    """Where a library is, however it was named."""
    place = str(library.place)
    return place if "://" in place else str(Path(place).expanduser().resolve())


def listening(host: str, port: int) -> socket.socket:
    """A socket at this place, to which connections may come from now on.

    Raises:
        UserError: it is taken, or is no place of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=128)
    except (OSError, UnicodeError) as error:
        way_out = f"pass another --port, such as {port + 1 if port < 65535 else 0}, or 0 for any that is free"
        if isinstance(error, socket.gaierror | UnicodeError) or not port:
            way_out = "pass --host with an address of this machine"
        reason = error.strerror if isinstance(error, OSError) else "this is no name of a machine"
        raise UserError(f"nothing can be served at {host}, port {port}: {reason}; {way_out}") from error
    listener.setblocking(False)
    return listener


def server_of(app: Any, seen: str | None = None) -> Any:
    """The server of an application, which bounds connections, and the size of what they send.

    Args:
        app: of the page.
        seen: address that is opened in the browser once it is answered; None: none is.
    """
    import uvicorn

    from emcl_train.search.server.connecting import Hurried

    class Ending(uvicorn.Server):
        """Lets go of what takes long before it waits for answers that are on their way."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if seen is not None:
                # A browser in the terminal ends when it is left, which the server does not wait for.
                threading.Thread(target=_show, args=(seen, lambda: self.should_exit), daemon=True).start()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.end_soon()
            await super().shutdown(sockets)

    logging.getLogger("uvicorn.error").addFilter(_is_no_farewell)
    return Ending(
        uvicorn.Config(
            app,
            http=Hurried,
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=IDLE,
            timeout_graceful_shutdown=FAREWELL,
            h11_max_incomplete_event_size=LONGEST_REQUEST,
        )
    )


def _show(address: str, ends: Callable[[], bool]) -> None:
    """Open an address in the browser, or say that there is none. `ends`: whether the server, and all with it, ends."""
    try:
        is_shown = webbrowser.open(address)
    except webbrowser.Error:
        is_shown = False
    if not is_shown and not ends():
        tell(f"warning: no browser could be opened; open {address} in one")


def _is_no_farewell(record: logging.LogRecord) -> bool:
    """Whether a record is of something else than answers that were cut off when the server ended."""
    is_cut_off = record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not is_cut_off and not str(record.msg).startswith("Cancel %s running task(s)")


def _require_place(host: str, port: int) -> None:
    if not 0 <= port <= 65535:
        raise UserError(f"--port is {port}, expected 0 to 65535")
    if _is_every_address(host):
        raise UserError(
            f"--host is {host!r}, every address of this machine, and requests are answered under one name alone; pass "
            "the address or the name that others type, such as 192.168.1.5"
        )


def _is_every_address(host: str) -> bool:
    """Whether a host stands for all addresses, as 0.0.0.0 does, which is also written 0, and ::ffff:0.0.0.0."""
    try:
        address = ip_address(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError):
        return not host  # `listening` says what is wrong with all others
    return bool((getattr(address, "ipv4_mapped", None) or address).is_unspecified)


COMMANDS = {
    "serve": Entry(
        "LIBRARY",
        "a page on this machine to search a library and watch its moments",
        of_function("serve", serve),
        library=lambda arguments: "",
        switches=switches_of(serve),
    ),
}
