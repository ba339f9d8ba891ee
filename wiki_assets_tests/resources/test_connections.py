"""Where a connection may lead, and through which proxy; what redirects and name servers do is in chaos/."""

import socket

import httpcore
import pytest

from wiki_assets.errors import BadRequest, SourceUnavailable
from wiki_assets.resources import connections
from wiki_assets.resources.connections import MIN_BYTES_PER_S, Transport, look_up
from wiki_assets.resources.session import Patience, Session
from wiki_assets_tests.resources.faulty_server import FaultyServer

ONCE = Patience(connect_s=5, read_s=5, max_attempts=1)


@pytest.fixture
def proxy(monkeypatch):
    """A proxy in the environment that refuses to connect; and no name server."""

    def no_names(host, *more, **named):
        if host == "127.0.0.1":
            return real(host, *more, **named)
        raise socket.gaierror(socket.EAI_NONAME, f"looked up {host}")

    real = socket.getaddrinfo
    with FaultyServer() as server:
        for name in ("https_proxy", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HTTPS_PROXY", server.url)
        monkeypatch.setattr(socket, "getaddrinfo", no_names)
        yield server


def ask(root: str) -> None:
    with Session(root, "test", max_connections=1, patience=ONCE) as session:
        session.listing(f"{root}/x/")


def test_a_proxy_of_the_environment_looks_names_up_itself(proxy):
    with pytest.raises(SourceUnavailable, match="ProxyError: 501"):
        ask("https://dumps.wikimedia.org")
    assert proxy.n_connections == 1


def test_hosts_that_need_no_proxy_are_looked_up(proxy, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "wikimedia.org")
    with pytest.raises(SourceUnavailable, match=r"ConnectError: .*looked up dumps\.wikimedia\.org"):
        ask("https://dumps.wikimedia.org")
    assert proxy.n_connections == 0


@pytest.mark.parametrize("value", ["socks5://127.0.0.1:1080", "http://[::1", "ftp://x"])
def test_a_proxy_that_cannot_be_used_is_a_bad_request(monkeypatch, value):
    monkeypatch.setenv("HTTPS_PROXY", value)
    with pytest.raises(BadRequest, match="HTTPS_PROXY .*expected http://HOST:PORT"):
        Transport("dumps.wikimedia.org", max_connections=1, stall_s=1)


@pytest.mark.parametrize("host", ["x" * 70 + ".wikimedia.org", "a..wikimedia.org", ""])
def test_a_name_that_no_name_server_takes_is_a_failed_connection(host):
    with pytest.raises(httpcore.ConnectError):
        look_up(host, 443, loopback=False)


class Clock:
    """Time as the test tells it."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize(("pause_s", "read_s"), [(10, 1), (0, 4)], ids=["a slow reader", "a slow server"])
def test_a_stall_is_time_spent_waiting_for_the_server(monkeypatch, pause_s, read_s):
    class Server(httpcore.MockStream):
        def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
            clock.now += read_s
            return bytes(2 * MIN_BYTES_PER_S)

    clock = Clock()
    monkeypatch.setattr(connections, "time", clock)
    stream, stalled = connections._Stream(Server([]), stall_s=5), False
    for _ in range(20):
        try:
            assert stream.read(1)
        except httpcore.ReadTimeout:
            stalled = True
        clock.now += pause_s
    assert stalled == (read_s == 4)
