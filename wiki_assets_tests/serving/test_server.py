"""The server at its socket: heads and bodies that are too long, too slow or no HTTP, and a crowd of them."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from wiki_assets.errors import BadRequest
from wiki_assets.serving.limits import Limits
from wiki_assets.serving.server import listen
from wiki_assets_tests.processes import wait_until
from wiki_assets_tests.serving.conftest import Running, serving_shelf

HASTY = Limits(rate=0, head_s=0.5, body_s=0.5, connections=300)


@pytest.fixture(scope="module")
def _hasty() -> Iterator[Running]:
    with serving_shelf(HASTY) as server:
        yield server


@pytest.fixture
def hasty(_hasty: Running) -> Running:
    """A server that waits half a second for what a client has to say."""
    _hasty.shelf.reset()
    return _hasty


def read_all(connection: socket.socket) -> bytes:
    """What the server says until it closes."""
    parts = []
    while True:
        try:
            part = connection.recv(65536)
        except ConnectionResetError:
            part = b""
        if not part:
            return b"".join(parts)
        parts.append(part)


def said(answer: bytes) -> tuple[int, dict[str, object]]:
    """Status and problem of an answer that ended its connection."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    return int(head.split()[1]), json.loads(body)


def test_a_head_that_does_not_end_is_given_up(hasty: Running) -> None:
    with hasty.connect() as connection:
        connection.sendall(b"GET /search?q=x HTTP/1.1\r\nHost: x\r\n")
        status, problem = said(read_all(connection))
    assert (status, problem["title"]) == (408, "Request timeout")


def test_a_connection_that_is_kept_gives_the_next_head_no_more_time(hasty: Running) -> None:
    with hasty.connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while b"alive" not in answer:  # head and body may come apart
            part = connection.recv(65536)
            assert part, f"closed after {answer!r}"
            answer += part
        connection.sendall(b"GET /he")
        assert said(read_all(connection))[0] == 408


def test_a_head_without_end_is_cut(hasty: Running) -> None:
    with hasty.connect() as connection:
        sent = 0
        try:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: ")
            while sent < 10 << 20:
                sent += connection.send(b"x" * 65536)
        except OSError:
            pass
        read_all(connection)
    assert sent < 10 << 20, "the server took it all"


def test_a_large_head_is_told_what_is_expected(hasty: Running) -> None:
    with hasty.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * (66 << 10))
        assert said(read_all(connection))[0] == 431


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"\0" * 100,
        b"GET /search?q=\0 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /search HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /search HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /search HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /search HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
    ],
)
def test_what_is_no_http_is_a_400(hasty: Running, data: bytes) -> None:
    with hasty.connect() as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        status, problem = said(read_all(connection))
    assert (status, problem["detail"]) == (400, "that is no HTTP request")
    assert httpx.get(f"{hasty.url}/healthz").status_code == 200


def test_a_body_that_stops_is_given_up(hasty: Running) -> None:
    with hasty.connect() as connection:
        connection.sendall(b"POST /search HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert said(read_all(connection))[0] == 408
    assert not hasty.shelf.asked


def test_ten_megabytes_are_refused_and_their_sender_reads_why(hasty: Running) -> None:
    for content in (b"x" * (10 << 20), iter([b"x" * (1 << 20)] * 10)):
        answer = httpx.post(f"{hasty.url}/search", content=content, timeout=30)
        assert answer.status_code == 413
        assert "expected at most 262,144" in answer.json()["detail"]
    with hasty.connect() as connection:
        connection.sendall(
            b"POST /search HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\nExpect: 100-continue\r\n\r\n"
        )
        assert said(read_all(connection))[0] == 413, "before it is sent"


def test_two_hundred_slow_clients_hold_up_nobody(hasty: Running) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(hasty.connect()) for _ in range(200)]
        for i, connection in enumerate(slow):
            connection.sendall(b"GET /search?q=" if i % 2 else b"POST /search HTTP/1.1\r\nContent-Length: 9\r\n\r\n{")
        assert httpx.get(f"{hasty.url}/search", params={"q": "lake"}, timeout=30).status_code == 200
        assert {said(read_all(connection))[0] for connection in slow} == {408}


def test_connections_beyond_the_bound_are_told_to_come_back() -> None:
    with serving_shelf(Limits(rate=0, connections=5)) as server, ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(server.connect())
        assert httpx.get(f"{server.url}/healthz", timeout=30).status_code == 503
        stack.close()
        wait_until(lambda: httpx.get(f"{server.url}/healthz").status_code == 200, within_s=30)


def test_requests_under_way_are_answered_before_the_end() -> None:
    answers: list[httpx.Response] = []
    with serving_shelf(Limits(rate=0)) as server:
        server.shelf.hold.clear()
        url = f"{server.url}/search?q=x&wiki=tinywiki"
        asking = threading.Thread(target=lambda: answers.append(httpx.get(url, timeout=30)))
        asking.start()
        wait_until(lambda: server.shelf.n_running, within_s=30)
        server.stop.set()
        server.shelf.hold.set()
        asking.join()
    assert answers[0].status_code == 200


def test_a_port_that_is_taken_is_one_line() -> None:
    with listen("127.0.0.1", 0) as sock:
        sock.listen()
        with pytest.raises(BadRequest, match="choose another port"):
            listen("127.0.0.1", sock.getsockname()[1])
    with pytest.raises(BadRequest, match="--host no.such.host.invalid"):
        listen("no.such.host.invalid", 0)
