"""What a client may ask for, and what it gets when that is too much.

Every request passes `Guard`, which bounds its bytes, its seconds and how often it comes; the blocking work behind
it runs in `Pool`, which refuses work rather than letting a queue grow. A refusal is a 4xx that says what is
expected, or, when the service itself is too busy, a 503 with `Retry-After`.
"""

import asyncio
import ipaddress
import logging
import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import msgspec

from wiki_assets.stages.index import MAX_K, MAX_QUERY_BYTES

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from wiki_assets.serving.metrics import Metrics

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """Bounds on one request, one client and the service. docs/serving.md lists them."""

    rate: float = 20.0  # requests a second of one client, in the long run; 0 = no limit
    burst: int = 100  # requests it may make at once after a pause
    clients: int = 10_000  # whose rate is remembered
    question_bytes: int = MAX_QUERY_BYTES
    passages: int = MAX_K
    texts: int = 64  # to embed at once
    article_chars: int = 1_000_000  # in one answer; the rest in the next
    url_bytes: int = 32 << 10  # a question of 8 KiB has 24 KiB when percent-encoded
    head_bytes: int = 64 << 10  # request line and headers
    body_bytes: int = 256 << 10
    ignored_bytes: int = 32 << 20  # of a larger body, read and dropped, so that its sender reads the answer
    head_s: float = 10.0  # to send request line and headers
    body_s: float = 10.0  # to send the body
    request_s: float = 20.0  # from the end of the body to the end of the answer
    connections: int = 1_000
    workers: int = 0  # searches at the same time; 0 = eight a CPU, for most of them are one batch
    waiting: int = 256  # searches that wait for a worker

    @property
    def threads(self) -> int:
        """Searches that run at the same time."""
        return self.workers or 8 * (os.cpu_count() or 1)


class Overloaded(Exception):
    """The service has as much to do as it takes on; the same request may succeed a moment later."""


class Pool:
    """Threads for blocking work, and a queue before them that refuses what would wait too long."""

    def __init__(self, limits: Limits, metrics: "Metrics | None" = None) -> None:
        self._threads = ThreadPoolExecutor(limits.threads, thread_name_prefix="search")
        self._free = asyncio.Semaphore(limits.threads)
        self._limit = limits.waiting
        self._metrics = metrics
        self.waiting = 0
        self.running = 0

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` in a thread. A caller that is cancelled while it waits costs nothing more; once its
        work runs, the work keeps its thread to the end.

        Raises:
            Overloaded: if too many wait already.
        """
        if self._free.locked() and self.waiting >= self._limit:
            raise Overloaded
        self._count(waiting=1)
        try:
            await self._free.acquire()
        finally:
            self._count(waiting=-1)
        self._count(running=1)
        work = asyncio.get_running_loop().run_in_executor(self._threads, partial(function, *args, **kwargs))
        work.add_done_callback(self._done)
        return await asyncio.shield(work)

    def _done(self, work: "asyncio.Future[Any]") -> None:
        self._count(running=-1)
        self._free.release()
        if not work.cancelled():
            work.exception()  # seen, even where its caller has gone

    def _count(self, *, waiting: int = 0, running: int = 0) -> None:
        self.waiting += waiting
        self.running += running
        if self._metrics:
            self._metrics.waiting.set(self.waiting)
            self._metrics.running.set(self.running)

    def close(self) -> None:
        """Let running work end; take on nothing more."""
        self._threads.shutdown(wait=True, cancel_futures=True)


class TokenBuckets:
    """How often each client may come: `rate` times a second in the long run, `burst` times at once."""

    def __init__(self, rate: float, burst: int, clients: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._most = rate, burst, clients
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when they were counted

    def __len__(self) -> int:
        return len(self._buckets)

    def wait(self, client: str) -> float:
        """Take a token: 0.0 if there was one, else the seconds until there is."""
        if self._rate <= 0:
            return 0.0
        now = self._clock()
        tokens, counted = self._buckets.pop(client, (float(self._burst), now))
        tokens = min(float(self._burst), tokens + (now - counted) * self._rate)
        missing = 0.0 if tokens >= 1 else (1 - tokens) / self._rate
        self._buckets[client] = (tokens if missing else tokens - 1, now)
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return missing


def client_of(scope: "Scope") -> str:
    """Whose bucket a request is taken from: an IPv4 address, or the /64 network that one IPv6 customer has."""
    host = (scope.get("client") or ("unknown", 0))[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.version == 6:
        return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))
    return host


_TITLES = {
    400: "Bad request",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    408: "Request timeout",
    413: "Request too large",
    414: "Address too long",
    415: "Unsupported media type",
    422: "Request not understood",
    429: "Too many requests",
    431: "Headers too large",
    500: "The service failed",
    503: "Busy or not ready",
}
PROBLEM_TYPE = "application/problem+json"


class Refusal(Exception):
    """An answer that is an error, as RFC 9457 writes it: what was found, what is expected, in one line."""

    def __init__(self, status: int, detail: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> bytes:
        """`application/problem+json`."""
        return msgspec.json.encode(
            {"type": "about:blank", "title": self.title, "status": self.status, "detail": self.detail}
        )

    @property
    def title(self) -> str:
        """The kind of error, the same for every request that gets it."""
        return _TITLES.get(self.status, "Error")

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Content type and length, and when to come back."""
        rows = [(b"content-type", PROBLEM_TYPE.encode()), (b"content-length", str(len(self.body)).encode())]
        if self.retry_after_s:
            rows.append((b"retry-after", str(max(1, math.ceil(self.retry_after_s))).encode()))
        return rows


class Guard:
    """ASGI middleware: nothing reaches the application that is too large, too slow or too often.

    Args:
        app: what it guards.
        limits: the bounds.
        metrics: counts requests and refusals.
        free: paths that are asked by machines of the house (probes, scrapers) and have no rate limit.
    """

    def __init__(self, app: "ASGIApp", *, limits: Limits, metrics: "Metrics", free: Iterable[str] = ()) -> None:
        self._app = app
        self._limits = limits
        self._metrics = metrics
        self._buckets = TokenBuckets(limits.rate, limits.burst, limits.clients)
        self._free = tuple(free)

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        answer = _Answer(send)
        try:
            self._check_head(scope)
            receive = await self._whole_body(scope, receive)
            async with asyncio.timeout(self._limits.request_s):
                await self._app(scope, receive, answer.send)
        except Refusal as refusal:
            await answer.refuse(refusal)
        except TimeoutError:
            self._metrics.refused.labels("timeout").inc()
            await answer.refuse(
                Refusal(503, f"no answer within {self._limits.request_s:g} s: try again later", retry_after_s=2)
            )
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"])
            await answer.refuse(Refusal(500, "the service failed; its log says why"))
        finally:
            self._metrics.observe(scope, answer.status, time.perf_counter() - began)

    def _check_head(self, scope: "Scope") -> None:
        path = scope["path"]
        if not path.startswith(self._free) and (wait := self._buckets.wait(client_of(scope))):
            self._metrics.refused.labels("rate").inc()
            raise Refusal(
                429,
                f"more than {self._limits.rate:g} requests a second from one client: wait {wait:.1f} s",
                retry_after_s=wait,
            )
        if (found := len(scope.get("raw_path") or path) + len(scope["query_string"])) > self._limits.url_bytes:
            self._metrics.refused.labels("size").inc()
            raise Refusal(414, f"an address of {found:,} bytes: expected at most {self._limits.url_bytes:,}")

    async def _whole_body(self, scope: "Scope", receive: "Receive") -> "Receive":
        """The body, read to its end within its bounds, as a `receive` that gives it in one piece."""
        headers = dict(scope["headers"])
        announced = headers.get(b"content-length", b"")
        if not announced and b"transfer-encoding" not in headers:
            return receive
        if announced.isdigit() and int(announced) > self._limits.body_bytes and b"expect" in headers:
            raise self._too_large(int(announced))  # the client waits to be told
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._limits.body_s):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return _once(message, receive)
                    size += len(message.get("body", b""))
                    more = message.get("more_body", False)
                    if size <= self._limits.body_bytes:
                        parts.append(message.get("body", b""))
                    elif size > self._limits.ignored_bytes or not more:
                        raise self._too_large(size)
        except TimeoutError:
            self._metrics.refused.labels("slow").inc()
            raise Refusal(408, f"the body did not arrive within {self._limits.body_s:g} s") from None
        return _once({"type": "http.request", "body": b"".join(parts), "more_body": False}, receive)

    def _too_large(self, found: int) -> Refusal:
        self._metrics.refused.labels("size").inc()
        return Refusal(413, f"a body of {found:,} bytes: expected at most {self._limits.body_bytes:,}")


def _once(message: "Message", receive: "Receive") -> "Receive":
    """A `receive` that gives one message, and then what the connection gives."""
    waiting: list[Message] = [message]

    async def replay() -> "Message":
        return waiting.pop() if waiting else await receive()

    return replay


class _Answer:
    """What was sent so far, so that an error does not follow half an answer."""

    def __init__(self, send: "Send") -> None:
        self._send = send
        self.status = 0  # none yet

    async def send(self, message: "Message") -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message["headers"], (b"x-content-type-options", b"nosniff")]}
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        if self.status:
            raise refusal  # too late to say so: the server drops the connection
        headers = [*refusal.headers, (b"connection", b"close")] if refusal.status in (408, 413) else refusal.headers
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": refusal.body})
