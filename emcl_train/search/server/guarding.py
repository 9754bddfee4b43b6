"""Stands before the whole application: who may ask it, and which headers every answer has.

A page of another site can have its visitor's browser ask any address, this one too. It may not read the answers, since
no CORS header is ever sent. Three things would still reach us: a name of its own that it lets point to 127.0.0.1 (the
`Host` header tells), pictures and films of ours inside its page (`Cross-Origin-Resource-Policy`), and requests that
cost us work (`Sec-Fetch-Site` tells).
"""

from ipaddress import ip_address

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from emcl_train.search.server.refusing import Refused, said

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), display-capture=()",
}
"""Of every answer, errors too."""
METHODS = ("GET", "HEAD")
OWN_SITE = ("same-origin", "none")
"""What browsers say in `Sec-Fetch-Site` of a request of our own page, and of an address that somebody typed."""


def names_of(host: str, port: int) -> frozenset[str]:
    """What the `Host` header may say, in small letters.

    Args:
        host: name or address that the server is bound to.
        port: the port of its socket.
    """
    names = {"127.0.0.1", "localhost", "[::1]", in_brackets(host).lower()}
    return frozenset({f"{name}:{port}" for name in names} | (names if port == 80 else set()))


def in_brackets(host: str) -> str:
    """A host as it stands in an address: IPv6 in brackets."""
    try:
        return f"[{host}]" if ip_address(host).version == 6 else host
    except ValueError:  # a name
        return host


class Guard:
    """The application behind its guard."""

    def __init__(self, app: ASGIApp, names: frozenset[str]) -> None:
        """A guard.

        Args:
            app: what answers those who may ask.
            names: what the `Host` header may say.
        """
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a web socket: we have none
            await send({"type": "websocket.close", "code": 1008})
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                kept = [pair for pair in message.get("headers", []) if pair[0].decode("latin-1").lower() not in HEADERS]
                message = {**message, "headers": [*kept, *own]}
            await send(message)

        refusal = self._refusal(scope)
        await (self._app if refusal is None else said(refusal))(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> Refused | None:
        """Why a request gets no answer; None if it gets one."""
        given: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            given.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))

        hosts = given.get("host", [])
        if len(hosts) != 1 or hosts[0].strip().lower() not in self._names:
            return Refused(421, "the Host header names another server; open the address that `serve` has printed")

        if scope["method"] not in METHODS:
            sentence = f"method {scope['method'][:20]!r} is not answered here; this server only reads: GET or HEAD"
            return Refused(405, sentence, {"allow": ", ".join(METHODS)})

        origins = given.get("origin", [])
        if any(origin.lower() not in {f"http://{name}" for name in self._names} for origin in origins):
            return Refused(403, "this was asked by a page of another origin, which gets no answer here")

        # A link to us may stand anywhere; a picture, a film or a script of ours may not.
        sites = given.get("sec-fetch-site", [])
        follows_a_link = given.get("sec-fetch-mode") == ["navigate"] and given.get("sec-fetch-dest") == ["document"]
        if any(site not in OWN_SITE for site in sites) and not follows_a_link:
            return Refused(403, "this was asked by a page of another site, which gets no answer here")
        return None
