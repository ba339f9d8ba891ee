"""One process that serves: uvicorn, with a bound on how long and how much a client takes to say what it wants."""

import asyncio
import logging
import resource
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from wiki_assets.errors import BadRequest
from wiki_assets.serving.limits import Limits, Refusal

logger = logging.getLogger(__name__)


def impatient_protocol(limits: Limits) -> type[HttpToolsProtocol]:
    """uvicorn's HTTP, which of itself waits for ever for the end of a request's head, however long it grows."""

    class Impatient(HttpToolsProtocol):
        _due: asyncio.TimerHandle | None = None
        _head_bytes = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._expect_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head_is_here()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._due is None and (self.cycle is None or self.cycle.response_complete):
                self._expect_head()  # the next request of a connection that is kept
            self._head_bytes += len(data)
            super().data_received(data)
            if self._due is not None and self._head_bytes > limits.head_bytes:
                self._drop(Refusal(431, f"a request's head of more than {limits.head_bytes:,} bytes"))

        def on_headers_complete(self) -> None:
            self._head_is_here()
            super().on_headers_complete()

        def send_400_response(self, msg: str) -> None:
            self._drop(Refusal(400, "that is no HTTP request"))

        def _expect_head(self) -> None:
            self._head_bytes = 0
            refusal = Refusal(408, f"the request's head did not arrive within {limits.head_s:g} s")
            self._due = self.loop.call_later(limits.head_s, self._drop, refusal)

        def _head_is_here(self) -> None:
            if self._due is not None:
                self._due.cancel()
                self._due = None

        def _drop(self, refusal: Refusal) -> None:
            self._head_is_here()
            if self.transport.is_closing():
                return
            head = [f"HTTP/1.1 {refusal.status} {refusal.title}".encode()]
            head += [name + b": " + value for name, value in (*refusal.headers, (b"connection", b"close"))]
            self.transport.write(b"\r\n".join(head) + b"\r\n\r\n" + refusal.body)
            self.transport.close()

    return Impatient


def listen(host: str, port: int) -> socket.socket:
    """A socket to serve at.

    Raises:
        BadRequest: if the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except (OSError, OverflowError) as error:
        sock.close()
        reason = getattr(error, "strerror", None) or error
        raise BadRequest(f"--host {host} --port {port}: {reason}: choose another port, or end what has it") from None
    return sock


def make_server(app: FastAPI, limits: Limits) -> uvicorn.Server:
    """A server for the application; `run(sockets=[…])` serves until SIGTERM or Ctrl-C, then answers what it has."""
    _allow_files(2 * limits.connections + 256)
    config = uvicorn.Config(
        app,
        http=impatient_protocol(limits),
        ws="none",
        lifespan="on",
        limit_concurrency=limits.connections,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=int(limits.request_s),
        backlog=1024,
        access_log=False,  # questions are nobody's business
        log_config=None,
        server_header=False,
        proxy_headers=False,  # the application decides whom it believes
    )
    return uvicorn.Server(config)


def _allow_files(count: int) -> None:
    """Connections are files, and a system may allow a process few of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
