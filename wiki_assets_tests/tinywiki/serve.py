"""Serve tinywiki's dumps on this machine, for a test or for a command.

    python -m wiki_assets_tests.tinywiki.serve -- COMMAND...

runs COMMAND with ``WIKI_ASSETS_MIRROR`` set to the server's address and exits with its code. Without a
command it serves until Ctrl-C. The server answers like the real one where a downloader cares: sizes, dates,
entity tags, ranges.
"""

import io
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from email.utils import formatdate
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

DUMPS = Path(__file__).parent / "dumps"


class DumpsHandler(SimpleHTTPRequestHandler):
    """Sends files, whole or a range of them; a folder is its ``index.html``."""

    protocol_version = "HTTP/1.1"

    def send_head(self) -> BinaryIO | None:
        """Send status and headers; return the bytes to send after them."""
        path = Path(self.translate_path(self.path))
        as_folder = self.path.split("?")[0].endswith("/")
        if path.is_dir() and not as_folder:
            return super().send_head()  # the standard library redirects to the address with a slash
        if as_folder:
            path /= "index.html"
        try:
            file = path.open("rb")
        except (OSError, ValueError):  # ValueError: a zero byte in the name
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        with file:
            status = os.fstat(file.fileno())
            return self.send_piece(file, status.st_size, status.st_mtime, self.guess_type(path))

    def send_piece(self, file: BinaryIO, size: int, mtime: float, content_type: str) -> BinaryIO:
        """Send the headers for the asked part of an open file; return that part."""
        etag, modified = f'"{int(mtime):x}-{size:x}"', formatdate(mtime, usegmt=True)
        wanted = self.headers.get("Range", "")
        if self.headers.get("If-Range", etag) not in (etag, modified):
            wanted = ""  # the client holds the beginning of another version
        span = parse_range(wanted, size)
        start, stop = span or (0, size)
        if span is None:
            self.send_response(HTTPStatus.OK)
        elif start < stop:
            self.send_response(HTTPStatus.PARTIAL_CONTENT)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        else:
            self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            self.send_header("Content-Range", f"bytes */{size}")
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", etag)
        self.send_header("Last-Modified", modified)
        self.end_headers()
        file.seek(start)
        return io.BytesIO(file.read(stop - start))

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""


class DumpsServer(ThreadingHTTPServer):
    """A server that does not complain about clients which hang up."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report errors of ours only."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """Understand a ``Range`` header.

    Args:
        header: The value of the header; empty when there is none.
        size: The size of the file.

    Returns:
        Start and stop, equal when the file has no such bytes; None when the whole file should be sent, which
        is the case for several ranges at once and for anything malformed.
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if not match or match[0] == "bytes=-":
        return None
    if not match[1]:
        start, stop = max(size - int(match[2]), 0), size
    else:
        start, stop = int(match[1]), min(int(match[2]) + 1, size) if match[2] else size
        if match[2] and int(match[2]) < start:
            return None
    return (start, stop) if start < stop else (0, 0)


@contextmanager
def serving(folder: Path = DUMPS) -> Iterator[str]:
    """Serve a folder at a free port while the block runs.

    Args:
        folder: The folder that stands for the root of the server.

    Yields:
        The address, without a slash at the end.
    """
    with DumpsServer(("127.0.0.1", 0), partial(DumpsHandler, directory=str(folder))) as server:
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.05), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def main(arguments: Sequence[str]) -> int:
    """Run a command beside the server, or only the server; return the exit code."""
    command = list(arguments[1:] if arguments[:1] == ["--"] else arguments)
    with serving() as address:
        try:
            if command:
                environment = os.environ | {"WIKI_ASSETS_MIRROR": address}
                code = subprocess.run(command, env=environment, check=False).returncode
                return code if code >= 0 else 128 - code  # ended by a signal: as a shell says it
            print(f"{address}  (Ctrl-C ends)", flush=True)
            threading.Event().wait()
        except OSError as error:
            print(f"serve: {error}", file=sys.stderr)
            return 127
        except KeyboardInterrupt:
            return 130 if command else 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
