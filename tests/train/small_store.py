"""An object store of this process that speaks as much of S3 as LanceDB and Arrow ask for, over HTTP on this machine."""

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

TIME = "2026-01-01T00:00:00.000Z"


class Store(ThreadingHTTPServer):
    """One bucket, whose objects are in memory."""

    daemon_threads = True

    def __init__(self, bucket: str) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.bucket = bucket
        self.objects: dict[str, bytes] = {}
        self.lock = threading.Lock()
        self.refuses = False
        """Whether it lets nobody in."""

    @property
    def environment(self) -> dict[str, str]:
        """What LanceDB is told of it."""
        return {
            "AWS_ENDPOINT": f"http://127.0.0.1:{self.server_port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "name",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }


@contextmanager
def serving(bucket: str) -> Iterator[Store]:
    """A store that answers until the block has ended."""
    store = Store(bucket)
    thread = threading.Thread(target=store.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        store.shutdown()
        store.server_close()
        thread.join()


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Store

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _error(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    def _asked(self) -> tuple[str, dict[str, str], bytes] | None:
        """Key, parameters and body; None where the bucket is another one, which is said."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        if bucket != self.server.bucket:
            self._error(404, "NoSuchBucket")
            return None
        if self.server.refuses:
            self._error(403, "AccessDenied")
            return None
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        return key, query, body

    def do_GET(self) -> None:
        if (asked := self._asked()) is None:
            return
        key, query, _ = asked
        if "list-type" in query:
            self._list(query.get("prefix", ""), query.get("delimiter", ""))
            return
        with self.server.lock:
            data = self.server.objects.get(key)
        if data is None:
            self._error(404, "NoSuchKey")
            return

        headers = {"ETag": _tag(data), "Last_Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            self._answer(200, data, **headers)
            return
        first, last = wanted.groups()
        begin = int(first) if first else max(0, len(data) - int(last))
        end = min(int(last) + 1, len(data)) if first and last else len(data)
        self._answer(206, data[begin:end], Content_Range=f"bytes {begin}-{end - 1}/{len(data)}", **headers)

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        if (asked := self._asked()) is None:
            return
        key, _, body = asked
        with self.server.lock:
            if self.headers.get("If-None-Match") == "*" and key in self.server.objects:
                self._error(412, "PreconditionFailed")
                return
            self.server.objects[key] = body
        self._answer(200, ETag=_tag(body))

    def do_POST(self) -> None:
        if (asked := self._asked()) is None:
            return
        _, query, body = asked
        if "delete" not in query:
            self._error(501, "NotImplemented")
            return
        with self.server.lock:
            for key in re.findall(r"<Key>(.*?)</Key>", body.decode()):
                self.server.objects.pop(unescape(key), None)
        self._answer(200, b"<DeleteResult></DeleteResult>")

    def _list(self, prefix: str, delimiter: str) -> None:
        with self.server.lock:
            there = sorted((key, data) for key, data in self.server.objects.items() if key.startswith(prefix))
        folders = dict.fromkeys(
            prefix + rest.partition(delimiter)[0] + delimiter
            for rest in (key.removeprefix(prefix) for key, _ in there)
            if delimiter and delimiter in rest
        )
        files = [one for one in there if not (delimiter and delimiter in one[0].removeprefix(prefix))]
        lines = [
            f"<Contents><Key>{escape(key)}</Key><LastModified>{TIME}</LastModified><ETag>{_tag(data)}</ETag>"
            f"<Size>{len(data)}</Size></Contents>"
            for key, data in files
        ]
        lines += [f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in folders]
        said = f"<KeyCount>{len(lines)}</KeyCount><IsTruncated>false</IsTruncated>"
        body = f"<ListBucketResult>{said}{''.join(lines)}</ListBucketResult>"
        self._answer(200, body.encode(), Content_Type="application/xml")


def _tag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'
