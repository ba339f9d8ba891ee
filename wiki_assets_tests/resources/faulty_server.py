"""A small dump server over a dictionary that can be told to fail, request by request."""

import hashlib
import html
import select
import socket
import struct
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
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
    trickle_s: float = 0  # between single bytes of the body
    trickle_headers_s: float = 0  # between single bytes of the headers
    stall_after: int | None = None  # send so many bytes of the body, then nothing until the client hangs up
    chunked: int = 0  # send the body in chunks of so many bytes, without its length
    no_last_chunk: bool = False  # and leave out the mark that ends it


class FaultyServer:
    """Serves `files` (path -> bytes) with listings like nginx's; `faults[path]` is used up a reply at a time."""

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self.files = dict(files or {})
        self.etags: dict[str, str] = {}
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.requests: list[tuple[str, dict[str, str], float]] = []
        self.replies: list[tuple[str, int, float]] = []  # path, status, and when it was sent
        self.sent: Counter[str] = Counter()  # bytes of bodies, by path
        self.on_request: Callable[[int, str], object] = lambda number, path: None  # before the reply is thought of
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
        return self.etags.get(path, f'"{hashlib.sha256(self.files[path]).hexdigest()[:16]}"')

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


_LENGTHS = {"Content-Length", "Transfer-Encoding"}


def _chunks(body: bytes, size: int, announced: int) -> bytes:
    """A body in chunks; if it is cut, so is its last chunk."""
    framed = b"".join(
        b"%x\r\n%s\r\n" % (min(size, announced - n), body[n : n + size]) for n in range(0, len(body), size)
    )
    return framed if len(body) == announced else framed.removesuffix(b"\r\n")


class _Server(ThreadingHTTPServer):
    faulty: FaultyServer
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each reply waits 40 ms between headers and body

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
            faulty.on_request(len(faulty.requests), path)
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
        if fault.chunked:
            headers.pop("Content-Length", None)
            headers["Transfer-Encoding"] = "chunked"
        self.send_response_only(fault.status or status)
        for name, value in headers.items():
            self.send_header(name, value)
        if fault.trickle_headers_s and not self._trickle(b"".join(self._take_headers()), fault.trickle_headers_s):
            return
        with faulty.lock:
            faulty.replies.append((path, fault.status or status, time.monotonic()))
        self.end_headers()
        cut = min(len(body) if n is None else n for n in (fault.drop_after, fault.stall_after, len(body)))
        if fault.trickle_s:
            self._trickle(body[:cut], fault.trickle_s)
        else:
            self.wfile.write(_chunks(body[:cut], fault.chunked, len(body)) if fault.chunked else body[:cut])
            if fault.chunked and cut == len(body) and not fault.no_last_chunk:
                self.wfile.write(b"0\r\n\r\n")
        with faulty.lock:
            faulty.sent[path] += cut
        while fault.stall_after is not None and not faulty.ended.is_set():
            if select.select([self.connection], [], [], 0.02)[0]:
                break  # the client sends nothing now, so it has hung up
        wrong_length = "Content-Length" in headers and int(headers["Content-Length"]) != len(body)
        if cut < len(body) or wrong_length or fault.no_last_chunk or not headers.keys() & _LENGTHS:
            self.close_connection = True
            if fault.reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

    def _take_headers(self) -> list[bytes]:
        """The headers that wait to be sent."""
        waiting, self._headers_buffer = self._headers_buffer, []
        return waiting

    def _trickle(self, data: bytes, every_s: float) -> bool:
        """Send a byte at a time; False if the test ended before the data did."""
        for n in range(len(data)):
            self.wfile.write(data[n : n + 1])
            if self.faulty.ended.wait(every_s):
                return False
        return True

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
