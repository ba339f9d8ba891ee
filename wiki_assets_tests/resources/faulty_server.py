"""A small dump server over a dictionary that can be told to fail, request by request."""

import html
import socket
import struct
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self, cast
from urllib.parse import quote, unquote

LAST_MODIFIED = "Sun, 23 Aug 2026 12:00:00 GMT"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What one reply does wrong. Without any, the reply is right."""

    status: int | None = None
    headers: dict[str, str | None] = field(default_factory=dict)  # None leaves the header out
    body: bytes | None = None  # instead of the file
    drop_after: int | None = None  # cut the connection after so many bytes of the body
    reset: bool = False  # and do so with RST
    ignore_range: bool = False
    ignore_if_range: bool = False
    shift_range: int = 0  # a 206 that begins elsewhere, and says so
    after: str | None = None  # not before this path was asked for
    delay_s: float = 0  # before the first byte
    trickle_s: float = 0  # between single bytes


class FaultyServer:
    """Serves `files` (path -> bytes) with listings like nginx's; `faults[path]` is used up a reply at a time."""

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self.files = dict(files or {})
        self.etags: dict[str, str] = {}
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.requests: list[tuple[str, dict[str, str], float]] = []
        self.open_now = self.most_open = self.n_connections = self.replies_now = self.most_replies = 0
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.faulty = self
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self._http.shutdown()
        self._http.server_close()

    def asked(self, path: str) -> list[dict[str, str]]:
        """Headers (lower-case names) of the requests for a path, in order."""
        return [headers for where, headers, _ in self.requests if unquote(where) == path]

    def etag(self, path: str) -> str:
        return self.etags.get(path, f'"{hash(self.files[path]) & 0xFFFFFFFF:x}"')

    def listing(self, folder: str) -> bytes | None:
        """An nginx page of the names below `folder`; None if there are none."""
        names = {path[len(folder) :].partition("/") for path in self.files if path.startswith(folder)}
        lines = [
            listing_line(name + slash, None if slash else len(self.files[folder + name]))
            for name, slash, _ in sorted({(name, slash, "") for name, slash, _ in names})
        ]
        return listing_page(lines).encode() if lines else None


def listing_line(name: str, size_bytes: int | None) -> str:
    link, shown = quote(name, safe="/"), html.escape(name)
    return f'<a href="{link}">{shown}</a>{"":20} 23-Aug-2026 12:00 {"-" if size_bytes is None else size_bytes:>19}\n'


def listing_page(lines: list[str]) -> str:
    head = '<html>\n<head><title>Index of /</title></head>\n<body>\n<h1>Index</h1><hr><pre><a href="../">../</a>\n'
    return f"{head}{''.join(lines)}</pre><hr></body>\n</html>\n"


class _Server(ThreadingHTTPServer):
    faulty: FaultyServer
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def faulty(self) -> FaultyServer:
        return cast(_Server, self.server).faulty

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def setup(self) -> None:
        super().setup()
        faulty = self.faulty
        with faulty.lock:
            faulty.n_connections += 1
            faulty.open_now += 1
            faulty.most_open = max(faulty.most_open, faulty.open_now)

    def finish(self) -> None:
        with self.faulty.lock:
            self.faulty.open_now -= 1
        super().finish()

    def do_GET(self) -> None:
        faulty, path = self.faulty, unquote(self.path)
        with faulty.lock:
            faulty.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, time.monotonic()))
            fault = faulty.faults[path].pop(0) if faulty.faults[path] else Fault()
        while fault.after and not faulty.asked(fault.after) and not faulty.ended.wait(0.01):
            pass
        if fault.delay_s:
            faulty.ended.wait(fault.delay_s)
        status, headers, body = self._right_answer(path, fault)
        if fault.body is not None:
            body = fault.body
            headers["Content-Length"] = str(len(body))
        for name, value in fault.headers.items():
            headers.pop(name, None)
            if value is not None:
                headers[name] = value
        self.send_response_only(fault.status or status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        cut = len(body) if fault.drop_after is None else min(fault.drop_after, len(body))
        if fault.trickle_s:
            for n in range(cut):
                self.wfile.write(body[n : n + 1])
                if faulty.ended.wait(fault.trickle_s):
                    break
        else:
            self.wfile.write(body[:cut])
        if cut < len(body) or "Content-Length" not in headers or int(headers["Content-Length"]) != len(body):
            self.close_connection = True
            if fault.reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

    def _right_answer(self, path: str, fault: Fault) -> tuple[int, dict[str, str], bytes]:
        faulty = self.faulty
        if path.endswith("/") and (page := faulty.listing(path)) is not None:
            return 200, {"Content-Type": "text/html", "Content-Length": str(len(page))}, page
        if path not in faulty.files:
            return 404, {"Content-Length": "0"}, b""
        body, etag = faulty.files[path], faulty.etag(path)
        headers = {"Date": formatdate(usegmt=True), "ETag": etag, "Last-Modified": LAST_MODIFIED}
        asked, condition = self.headers.get("Range"), self.headers.get("If-Range")
        fresh = fault.ignore_if_range or condition in (None, etag, LAST_MODIFIED)
        if asked is None or fault.ignore_range or not fresh:
            return 200, headers | {"Content-Length": str(len(body))}, body
        begin = int(asked.removeprefix("bytes=").removesuffix("-")) + fault.shift_range
        if begin >= len(body):
            return 416, {"Content-Range": f"bytes */{len(body)}", "Content-Length": "0"}, b""
        headers["Content-Range"] = f"bytes {begin}-{len(body) - 1}/{len(body)}"
        return 206, headers | {"Content-Length": str(len(body) - begin)}, body[begin:]
