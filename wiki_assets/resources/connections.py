"""Connections that lead only where they may, and end when they stall.

A host's name is looked up once; every address it has must be allowed, and the connection goes to one of those very
addresses. So a name that leads elsewhere a moment later, or a redirect to a name that leads inside, reaches nothing.
TLS and the Host header keep the name.

Source: IANA's registries of special-purpose addresses (RFC 6890); RFC 6052 for IPv4 behind NAT64.
"""

import socket
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from wiki_assets.errors import BadRequest, SourceUnavailable
from wiki_assets.settings import shown

Address = IPv4Address | IPv6Address
MIN_BYTES_PER_S = 1024  # slower than this for `stall_s` is a stalled connection
FAILED_LINE = (
    httpx.TransportError,
    httpcore.NetworkError,
    httpcore.TimeoutException,
    httpcore.ProtocolError,
    httpcore.ProxyError,
)
"""What a connection that failed raises: the next one may not."""

_PRIVATE_TO_CLOUDS = (  # public by their numbers, or to some releases of Python, but answered by the platform itself
    IPv4Network("192.0.0.0/24"),  # Oracle's metadata
    IPv4Network("168.63.129.16/32"),  # Azure's
)
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
_KEEP_ALIVE_S = 5.0
_ssl_context = cache(httpx.create_ssl_context)  # reads 140 certificates


def is_public(address: Address) -> bool:
    """Whether an address belongs to the open Internet: to no machine, link, private network, cloud or group."""
    if isinstance(address, IPv4Address):
        to_cloud = any(address in network for network in _PRIVATE_TO_CLOUDS)
        return address.is_global and not address.is_multicast and not to_cloud
    if address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    carries_another = address.ipv4_mapped or address.sixtofour or address.teredo
    return address in _GLOBAL_UNICAST and address.is_global and not carries_another


def is_loopback(host: str) -> bool:
    """Whether a URL's host is this machine by its very name."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def look_up(host: str, port: int, *, loopback: bool) -> list[str]:
    """The addresses of a host, each of them allowed, in the order in which to try them.

    Args:
        host: a name or an address.
        port: where the connection will go.
        loopback: allow this machine only, rather than public addresses only.

    Raises:
        SourceUnavailable: if one address, or more, is not allowed.
        httpcore.ConnectError: if the host has no address, or cannot be looked up now.
    """
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(ip_address(str(answer[4][0])) for answer in answers))
    except (OSError, ValueError, OverflowError) as error:  # ValueError: a label that IDNA does not allow, too
        raise httpcore.ConnectError(f"{host}: {error}") from error
    for address in addresses:
        if not (address.is_loopback if loopback else is_public(address)):
            expected = "an address of this machine" if loopback else "a public address, as the mirror has"
            raise SourceUnavailable(
                f"{host} has the address {address}; expected {expected}: not asked; check base_url and name servers, "
                "or reach a mirror within a private network over a tunnel that ends on this machine"
            )
    if not addresses:
        raise httpcore.ConnectError(f"{host}: no address")
    return [str(address) for address in addresses]


class Transport(httpx.BaseTransport):
    """Carries the requests of one `httpx.Client`, over HTTP/1.1.

    Args:
        host: of the session's root. What it is decides where every connection may lead: to this machine if it is
            this machine, to public addresses if not.
        max_connections: at once.
        stall_s: a connection slower than `MIN_BYTES_PER_S` for this long is dropped.

    A proxy that the environment names for https (HTTPS_PROXY, NO_PROXY) is used, except for this machine. The proxy
    looks names up, then, and decides which addresses may be reached.

    Raises:
        BadRequest: if the environment's proxy is none that can be used.
    """

    def __init__(self, host: str, *, max_connections: int, stall_s: float) -> None:
        loopback = is_loopback(host)
        proxies = {} if loopback or proxy_bypass(host) else getproxies()
        proxy = proxies.get("https") or proxies.get("all")
        options: dict[str, Any] = {
            "ssl_context": None if loopback else _ssl_context(),
            "max_connections": max_connections,
            "keepalive_expiry": _KEEP_ALIVE_S,
        }
        if proxy is None:
            backend = _Backend(lambda name, port: look_up(name, port, loopback=loopback), stall_s)
            self._pool = httpcore.ConnectionPool(network_backend=backend, **options)
            return
        try:
            via = httpx.Proxy(proxy if "://" in proxy else f"http://{proxy}")
            if via.url.scheme not in ("http", "https"):
                raise ValueError
        except (ValueError, httpx.InvalidURL):
            raise BadRequest(f"HTTPS_PROXY {shown(proxy)!r:.80}: expected http://HOST:PORT, or unset it") from None
        self._pool = httpcore.HTTPProxy(
            str(via.url),
            proxy_auth=via.raw_auth,
            network_backend=_Backend(lambda name, _port: [name], stall_s),
            **options,
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        reply = self._pool.handle_request(
            httpcore.Request(
                method=request.method,
                url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=request.headers.raw,
                content=b"",
                extensions=request.extensions,
            )
        )
        return httpx.Response(reply.status, headers=reply.headers, stream=_Body(reply), extensions=reply.extensions)

    def close(self) -> None:
        self._pool.close()


class _Body(httpx.SyncByteStream):
    """The body of a reply, as httpx wants to be given it."""

    def __init__(self, reply: httpcore.Response) -> None:
        self._reply = reply

    def __iter__(self) -> Iterator[bytes]:
        return self._reply.iter_stream()

    def close(self) -> None:
        self._reply.close()


class _Backend(httpcore.NetworkBackend):
    """Connects to the addresses that `look_up` gives for a host, the first that answers."""

    def __init__(self, look_up: Callable[[str, int], list[str]], stall_s: float) -> None:
        self._look_up, self._stall_s = look_up, stall_s
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        failed: Exception | None = None
        for address in self._look_up(host, port):
            try:
                stream = self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
                return _Stream(stream, self._stall_s)
            except (httpcore.NetworkError, httpcore.TimeoutException) as error:
                failed = error
        raise failed or httpcore.ConnectError(f"{host}: no address")


class _Stream(httpcore.NetworkStream):
    """A connection that is dropped if its replies trickle, in their headers or in their bodies."""

    def __init__(self, inner: httpcore.NetworkStream, stall_s: float) -> None:
        self._inner, self._stall_s = inner, stall_s
        self._waited_s, self._arrived = 0.0, 0

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        begin = time.monotonic()
        data = self._inner.read(max_bytes, timeout)
        self._waited_s += time.monotonic() - begin  # not what we took to use the bytes
        self._arrived += len(data)
        if self._waited_s > self._stall_s:
            if self._arrived < self._waited_s * MIN_BYTES_PER_S:
                raise httpcore.ReadTimeout(f"stalled: {self._arrived:,} bytes in {self._waited_s:,.0f} s")
            self._waited_s, self._arrived = 0.0, 0
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, timeout)
        self._waited_s, self._arrived = 0.0, 0  # a reply of its own

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> "_Stream":
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, timeout), self._stall_s)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
