"""Ask a dump server as it wants to be asked: by name, a few connections at a time, and later when it says later.

Source: Wikimedia's User-Agent policy and the limits of dumps.wikimedia.org; RFC 9110 for redirects and Retry-After.
"""

import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Self, TypeVar, cast

import httpx
import tenacity

from wiki_assets.errors import BadRequest, CorruptDump, SourceUnavailable, TransientSource, WikiAssetsError
from wiki_assets.resources.connections import FAILED_LINE, Transport, is_loopback
from wiki_assets.resources.listing import read_listing
from wiki_assets.settings import shown

MAX_REDIRECTS = 5
MAX_CORRUPT_RETRIES = 2  # a web page or damage instead of the file: a proxy's hiccup, or it is so
MAX_BACKOFF_S = 60.0
MAX_LISTING_BYTES = 16 << 20
T = TypeVar("T")


class NotThere(SourceUnavailable):
    """The server answered 404: nothing lies there."""


class Stopped(WikiAssetsError):
    """Another download of the same call failed, so this one ends where it is."""


class _Busy(TransientSource):
    """A reply that asks to come again, `retry_after_s` from now at the earliest."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait for a server, in seconds, and how often to try."""

    connect_s: float = 10
    read_s: float = 60
    stall_s: float = 120
    backoff_s: float = 1
    max_wait_s: float = 3600
    max_attempts: int = 8


def check_root(url: str) -> str:
    """Return a server's root URL, without a `/` at its end, if it may be asked: https, or http to this machine.

    Raises:
        BadRequest: if it is anything else.
    """
    try:
        root = httpx.URL(url)
    except httpx.InvalidURL:
        raise BadRequest(
            f"mirror {shown(url)!r:.200}: no URL; expected one such as https://dumps.wikimedia.org"
        ) from None
    if root.userinfo or root.query or root.fragment or not root.host or root.scheme not in ("http", "https"):
        raise BadRequest(f"mirror {shown(url)!r:.200}: expected https://HOST/PATH without user, query or fragment")
    if root.port is not None and not 0 < root.port < 65536:
        raise BadRequest(f"mirror {shown(url)!r:.200}: there is no port {root.port}; expected 1 to 65535")
    if root.scheme == "http" and not is_loopback(root.host):
        raise BadRequest(
            f"mirror {shown(url)!r:.200}: plain http is only for this machine (127.0.0.1, localhost); use https"
        )
    return url.rstrip("/")


class Session:
    """One HTTP client for one call on a mirror; threads may share it.

    It asks only `root`'s server (and, for a Wikimedia root, https hosts under wikimedia.org), redirects included; and
    these only at public addresses or, where the root is this machine, at this machine's.
    """

    def __init__(self, root: str, user_agent: str, *, max_connections: int, patience: Patience) -> None:
        self.root = httpx.URL(check_root(root))
        self.patience = patience
        self._user_agent = user_agent
        self._stop = threading.Event()
        self._not_before = 0.0  # on the monotonic clock; what one thread is told, all obey
        self._told = threading.Lock()
        self._client = httpx.Client(
            headers={"User-Agent": user_agent, "Accept-Encoding": "identity"},
            timeout=httpx.Timeout(patience.read_s, connect=patience.connect_s),
            transport=Transport(self.root.host, max_connections=max_connections, stall_s=patience.stall_s),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def stop(self) -> None:
        """End every wait and every download of this session soon, with `Stopped`."""
        self._stop.set()

    def check_stopped(self) -> None:
        """Raise `Stopped` once `stop` was called."""
        if self._stop.is_set():
            raise Stopped("stopped, because another file could not be fetched; what arrived is kept")

    def listing(self, url: str) -> dict[str, int | None]:
        """The names in a folder and their sizes, as `read_listing` gives them.

        Raises:
            NotThere: if there is no such folder.
            SourceUnavailable: if the server refuses, or keeps failing.
        """

        def attempt() -> dict[str, int | None]:
            page = bytearray()
            with self.open(url) as reply:
                for chunk in self.chunks(reply):
                    page += chunk
                    if len(page) > MAX_LISTING_BYTES:
                        raise SourceUnavailable(
                            f"{url}: over {MAX_LISTING_BYTES:,} bytes; expected a listing: check base_url"
                        )
            return read_listing(page.decode(errors="replace"), url)

        return self.retry(attempt, url)

    def retry(self, attempt: Callable[[], T], what: str) -> T:
        """Call `attempt` until it succeeds, with back-off, full jitter and the waits the server asks for.

        Args:
            attempt: raises TransientSource for what may pass, CorruptDump for bytes worth fetching once more.
            what: names the thing in the error.

        Raises:
            SourceUnavailable: after the last attempt, or when the server wants a longer wait than we have patience for.
            CorruptDump: if the bytes were wrong three times.
        """
        n_corrupt = 0
        jitter = tenacity.wait_random_exponential(multiplier=self.patience.backoff_s, max=MAX_BACKOFF_S)

        def may_pass(error: BaseException) -> bool:
            nonlocal n_corrupt
            n_corrupt += isinstance(error, CorruptDump)
            if isinstance(error, CorruptDump):
                return n_corrupt <= MAX_CORRUPT_RETRIES
            return isinstance(error, TransientSource)

        def wait_s(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            return max(jitter(state), error.retry_after_s if isinstance(error, _Busy) else 0.0)

        def out_of_patience(state: tenacity.RetryCallState) -> bool:
            too_long = state.idle_for + state.upcoming_sleep > self.patience.max_wait_s
            return too_long or state.attempt_number >= self.patience.max_attempts

        def give_up(state: tenacity.RetryCallState) -> T:
            error = state.outcome.exception() if state.outcome else None
            if isinstance(error, CorruptDump):
                raise error
            if state.attempt_number >= self.patience.max_attempts:
                problem = f"still failing after {state.attempt_number} attempts: last was: {error}"
                raise SourceUnavailable(f"{what}: {problem}. Run again later: what arrived is kept") from error
            until = datetime.now(UTC) + timedelta(seconds=state.upcoming_sleep)
            raise SourceUnavailable(
                f"{what}: busy until {until:%Y-%m-%d %H:%M} UTC ({error}); we wait {self.patience.max_wait_s:,.0f} s "
                "at most. Run again then: what arrived is kept"
            ) from error

        return tenacity.Retrying(
            retry=tenacity.retry_if_exception(may_pass),
            wait=wait_s,
            stop=out_of_patience,
            sleep=tenacity.sleep_using_event(self._stop),
            retry_error_callback=give_up,
        )(attempt)

    @contextmanager
    def open(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        expected: Collection[int] = (200,),
        encodings: Collection[str] = ("identity",),
    ) -> Iterator[httpx.Response]:
        """Ask once, following redirects that stay on the server.

        Args:
            url: what to ask for.
            headers: further ones.
            expected: statuses to yield.
            encodings: of the body, to yield.

        Yields:
            The reply, with one of the `expected` statuses and its body unread.

        Raises:
            TransientSource: if the server or the line failed, here or while the body is read.
            NotThere: if it answers 404 or 410.
            SourceUnavailable: if it refuses, leads elsewhere, or alters the bytes on the way.
        """
        target = httpx.URL(url)
        try:
            for _ in range(MAX_REDIRECTS + 1):
                self._require_ours(target, url)
                self._wait_until_welcome()
                with self._client.stream("GET", target, headers=headers) as reply:
                    if not reply.has_redirect_location:
                        self._require_status(reply, url, expected, encodings)
                        yield reply
                        return
                    target = cast(httpx.Request, reply.next_request).url
            raise SourceUnavailable(
                f"{url}: more than {MAX_REDIRECTS} redirects, the last to {shown(str(target))}: check base_url"
            )
        except httpx.InvalidURL as error:
            raise SourceUnavailable(f"{url}: leads to no URL ({error}): not followed; check base_url") from error
        except FAILED_LINE as error:
            raise TransientSource(f"{url}: {type(error).__name__}: {error or 'no details'}") from error

    def busy(self, message: str, reply: httpx.Response, *, at_least_s: float = 0) -> TransientSource:
        """The error for a reply that asks to come again later, by status or by text; every thread then waits."""
        wait_s = max(at_least_s, retry_after(reply.headers))
        if wait_s <= self.patience.max_wait_s:
            with self._told:
                self._not_before = max(self._not_before, time.monotonic() + wait_s)
        return _Busy(message, wait_s)

    def chunks(self, reply: httpx.Response) -> Iterator[bytes]:
        """The body as it arrives, undecoded.

        Raises:
            Stopped: once `stop` was called.
        """
        for chunk in reply.iter_raw():
            self.check_stopped()
            yield chunk

    def _wait_until_welcome(self) -> None:
        """Wait as long as the server has asked us to, also if it asks another thread for more meanwhile."""
        while (wait_s := self._not_before - time.monotonic()) > 0 and not self._stop.wait(wait_s):
            pass
        self.check_stopped()

    def _require_ours(self, target: httpx.URL, asked: str) -> None:
        """Refuse to ask any other server than the root's."""
        root = self.root
        same = (target.scheme, target.host, target.port) == (root.scheme, root.host, root.port)
        https = target.scheme == "https" and target.port is None
        wikimedia = all(f".{host}".endswith(".wikimedia.org") for host in (target.host, root.host))
        if target.userinfo or not (same or (https and (target.host == root.host or wikimedia))):
            raise SourceUnavailable(
                f"{asked}: leads to {shown(str(target))}, which is not on {root}: not followed; check base_url"
            )

    def _require_status(
        self, reply: httpx.Response, url: str, expected: Collection[int], encodings: Collection[str]
    ) -> None:
        status = reply.status_code
        if status in expected:
            if (encoding := reply.headers.get("content-encoding", "identity")) not in encodings:
                raise SourceUnavailable(
                    f"{url}: came with Content-Encoding {encoding!r}; expected none: look for a proxy between"
                )
            return
        if status in (404, 410):
            raise NotThere(f"{url}: not there ({status}): rotated out, or never published; name another snapshot")
        if status in (401, 403):
            raise SourceUnavailable(
                f"{url}: refused ({status}): set WIKI_ASSETS_CONTACT to your e-mail address or web page, as the "
                f"User-Agent policy of Wikimedia asks (sent: {self._user_agent})"
            )
        if status in (408, 425, 429) or status >= 500:
            raise self.busy(f"{url}: answered {status} {reply.reason_phrase}".rstrip(), reply)
        raise SourceUnavailable(f"{url}: answered {status}; expected {', '.join(map(str, expected))}: check base_url")


def retry_after(headers: Mapping[str, str]) -> float:
    """How many seconds a reply asks us to stay away: 0 where it says nothing that makes sense."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,12}", value):
        return min(float(value), 1e9)  # thirty years is as good as more, and is still a date
    when = http_date(value)
    now = http_date(headers.get("date", "")) or datetime.now(UTC)  # by the server's clock, since it set the date
    return max(0.0, (when - now).total_seconds()) if when else 0.0


def http_date(value: str) -> datetime | None:
    """A date as HTTP headers write it; None where it is none."""
    try:
        return parsedate_to_datetime(value).replace(tzinfo=UTC)  # HTTP dates are in GMT
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
