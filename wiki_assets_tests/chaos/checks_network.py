"""What must hold of where a download may lead: tests ask it of the build, and of broken ones.

Each check is one trial: it takes dice and an empty folder, fails with an AssertionError, and returns counts to add up.
"""

import random
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import httpcore

from wiki_assets.errors import SourceUnavailable, WikiAssetsError
from wiki_assets.resources.session import Patience, Session
from wiki_assets_tests.chaos.source import PATH, mirror_of, outcome, packed, remote
from wiki_assets_tests.resources.faulty_server import Fault, FaultyServer

ROOT = "https://dumps.wikimedia.org"
PUBLIC = ["208.80.154.71", "198.35.26.96", "2620:0:861:3:208:80:154:71", "64:ff9b::d050:9a47"]
NOT_PUBLIC = [
    *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.7", "172.16.3.4", "172.31.255.255", "192.168.1.1", "100.64.0.1"),
    *("169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192", "198.18.0.1"),
    *("192.0.2.7", "203.0.113.9", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255"),
    *("::1", "::", "fe80::1", "fe80::1%1", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1", "100::1"),
    *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:208.80.154.71", "::127.0.0.1", "::208.80.154.71"),
    *("2002:a9fe:a9fe::1", "2002:7f00:1::1", "2001:0:53aa:64c:0:5efe:5601:5601"),
    *("64:ff9b::a9fe:a9fe", "64:ff9b::7f00:1", "64:ff9b::10.0.0.1", "64:ff9b:1::1"),
]
REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
_PROXIES = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


class Wire:
    """Instead of a network: names are looked up here, connections are noted, and every server says `reply`."""

    def __init__(self, names: dict[str, Sequence[list[str]]], reply: bytes = REPLY) -> None:
        self._names, self._reply = {name: list(answers) for name, answers in names.items()}, reply
        self.connected: list[str] = []
        self.greeted: list[str | None] = []
        self.refuses: set[str] = set()
        self.wrote = b""

    def getaddrinfo(self, host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        """Of several answers to a name each holds for one look-up, the last for the rest."""
        answers = self._names.get(host, [[host]])  # an address is its own answer
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        if not found:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [(socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in found]

    @contextmanager
    def instead_of_the_network(self) -> Iterator["Wire"]:
        def connect(backend: Any, host: str, port: int, *_: Any, **__: Any) -> httpcore.NetworkStream:
            address = self.getaddrinfo(host, port)[0][4][0]  # as the system does with a name
            self.connected.append(address)
            if address in self.refuses:
                raise httpcore.ConnectError("refused")
            return _Dummy(self, self._reply)

        with (
            mock.patch.object(socket, "getaddrinfo", self.getaddrinfo),
            mock.patch.object(httpcore.SyncBackend, "connect_tcp", connect),
            mock.patch.dict("os.environ", dict.fromkeys(_PROXIES, "")),
        ):
            yield self


class _Dummy(httpcore.MockStream):
    def __init__(self, wire: Wire, reply: bytes) -> None:
        super().__init__([reply])
        self._wire = wire

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._wire.wrote += buffer

    def start_tls(self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None) -> Any:
        self._wire.greeted.append(server_hostname)
        return self


def ask(url: str, root: str = ROOT, tries: int = 1) -> bytes | WikiAssetsError:
    """The body of a reply, or why there is none."""
    patience = Patience(connect_s=1, read_s=1, backoff_s=0, max_attempts=tries)
    with Session(root, "test", max_connections=1, patience=patience) as session:

        def attempt() -> bytes:
            with session.open(url) as reply:
                return b"".join(session.chunks(reply))

        return outcome(lambda: session.retry(attempt, "x"))


def redirect_to(target: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode()


def only_public_addresses_are_asked(dice: random.Random, folder: Path) -> Counter[str]:
    """A name that has one address, or more, that is not public is not asked at all, whatever else it has."""
    answers = [*dice.sample(PUBLIC, dice.randint(0, 2)), dice.choice(NOT_PUBLIC)]
    dice.shuffle(answers)
    by_redirect = dice.random() < 0.5
    first = PUBLIC[:1] if by_redirect else answers
    wire = Wire(
        {"dumps.wikimedia.org": [first], "inside.wikimedia.org": [answers]},
        redirect_to("https://inside.wikimedia.org/x") if by_redirect else REPLY,
    )
    with wire.instead_of_the_network():
        end = ask(f"{ROOT}/x", tries=3)
    assert isinstance(end, SourceUnavailable), f"{answers}: {end!r}"
    assert "expected a public address" in str(end) and "\n" not in str(end), end
    assert wire.connected == (PUBLIC[:1] if by_redirect else []), f"{answers}: connected to {wire.connected}"
    return Counter({"asked": 1, "blocked": 1})


def a_rebinding_name_reaches_nothing(dice: random.Random, folder: Path) -> Counter[str]:
    """A name that is public when it is checked, and leads inside when it is looked up again."""
    good, bad = dice.choice(PUBLIC), dice.choice(NOT_PUBLIC)
    busy = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    again = dice.random() < 0.5  # asked twice, so that the second look-up is ours
    wire = Wire({"dumps.wikimedia.org": [[good], [bad]]}, busy if again else REPLY)
    with wire.instead_of_the_network():
        end = ask(f"{ROOT}/x", tries=3)
    assert wire.connected == [good], f"connected to {wire.connected}"
    assert isinstance(end, SourceUnavailable) if again else end == b"ok", end
    return Counter({"asked": 1, "blocked": 1})


def this_machine_means_this_machine(dice: random.Random, folder: Path) -> Counter[str]:
    """A root on this machine is asked at loopback addresses only, though a hosts file says otherwise."""
    bad = dice.choice([address for address in NOT_PUBLIC + PUBLIC if not address.startswith(("127.", "::1", "::ffff"))])
    wire = Wire({"localhost": [dice.choice([[bad], ["127.0.0.1", bad], [bad, "::1"]])]})
    with wire.instead_of_the_network():
        end = ask("http://localhost:8000/x", "http://localhost:8000")
    assert isinstance(end, SourceUnavailable) and "expected an address of this machine" in str(end), end
    assert wire.connected == []
    return Counter({"asked": 1, "blocked": 1})


def the_name_stays_on_the_wire(dice: random.Random, folder: Path) -> Counter[str]:
    """A checked address is connected to; TLS and Host name the host; an address that refuses gives way to the next."""
    answers = dice.sample(PUBLIC, 3)
    wire = Wire({"dumps.wikimedia.org": [answers]})
    wire.refuses = set(answers[: dice.randint(0, 2)])
    with wire.instead_of_the_network():
        end = ask(f"{ROOT}/x")
    assert end == b"ok", end
    assert wire.connected == answers[: len(wire.refuses) + 1]
    assert wire.greeted == ["dumps.wikimedia.org"]
    assert b"\r\nHost: dumps.wikimedia.org\r\n" in wire.wrote
    return Counter({"let through": 1})


def a_name_without_addresses_is_asked_again(dice: random.Random, folder: Path) -> Counter[str]:
    """Names that cannot be looked up are tried again, and no more often than attempts are allowed."""
    tries, failures = dice.randint(2, 6), dice.randint(1, 8)
    wire = Wire({"dumps.wikimedia.org": [[]] * failures + [PUBLIC[:1]]})
    with wire.instead_of_the_network():
        end = ask(f"{ROOT}/x", tries=tries)
    if failures < tries:
        assert end == b"ok", end
    else:
        assert isinstance(end, SourceUnavailable) and f"still failing after {tries} attempts" in str(end), end
    assert wire.connected == PUBLIC[:1] * (failures < tries)
    return Counter({"look-ups that failed": min(failures, tries)})


ELSEWHERE = [
    *("http://127.0.0.1:{victim}/x", "http://localhost:{victim}/x", "http://[::1]:{victim}/x"),
    *("//127.0.0.1:{victim}/x", "http://127.1:{victim}/x", "http://2130706433:{victim}/x", "http://0:{victim}/x"),
    *("http://0x7f.0.0.1:{victim}/x", "http://127.0.0.1.:{victim}/x", "http://①②⑦.0.0.1:{victim}/x"),
    *("http://[::ffff:127.0.0.1]:{victim}/x", "http://127.0.0.1:{here}@127.0.0.1:{victim}/"),
    *("http://user@127.0.0.1:{here}/x", "http://user:pass@127.0.0.1:{here}/x", "ws://127.0.0.1:{here}/x"),
    *("https://127.0.0.1:{here}/x", "https://127.0.0.1:{victim}/x", "http://10.0.0.1/", "http://example.org/"),
    *("http://169.254.169.254/latest/meta-data/", "http://[fd00:ec2::254]/", "http://metadata.google.internal/"),
    *("https://example.org/", "//example.org/x", "https://dumps.wikimedia.org/", "file:///etc/passwd"),
    *("file://localhost/etc/passwd", "ftp://127.0.0.1:{here}/x", "gopher://127.0.0.1:{here}/x", "data:text/plain,x"),
    *("javascript:alert(1)", "unix:///var/run/docker.sock", "about:blank", "mailto:me@example.org"),
]


def redirects_lead_nowhere_else(dice: random.Random, folder: Path) -> Counter[str]:
    """After any number of redirects that are allowed, one that is not is not followed; nor is a loop, for long."""
    loop = dice.random() < 0.1
    hops = 0 if loop else dice.randint(0, 4)
    connected: list[tuple[str, int]] = []
    connect = httpcore.SyncBackend.connect_tcp

    def noting(backend: Any, host: str, port: int, *more: Any, **named: Any) -> Any:
        connected.append((host, port))
        return connect(backend, host, port, *more, **named)

    with FaultyServer({PATH: packed(dice, 2)}) as server, FaultyServer({"/x": b"secret"}) as victim:
        port = int(server.url.rpartition(":")[2])
        target = dice.choice(ELSEWHERE).format(here=port, victim=victim.url.rpartition(":")[2])
        same = dice.choice([PATH, server.url + PATH, f"//127.0.0.1:{port}{PATH}"])
        statuses = [301, 302, 303, 307, 308]
        server.faults[PATH] = [Fault(status=dice.choice(statuses), headers={"Location": same})] * (99 if loop else hops)
        server.faults[PATH].append(Fault(status=dice.choice(statuses), headers={"Location": target}))
        with mock.patch.object(httpcore.SyncBackend, "connect_tcp", noting):
            end = outcome(lambda: mirror_of(server, max_attempts=1).fetch(remote(server), folder))
        asked, reached = len(server.requests), len(victim.requests)
    assert isinstance(end, SourceUnavailable), f"{target}: {end!r}"
    assert not reached and set(connected) <= {("127.0.0.1", port)}, f"{target}: connected to {set(connected)}"
    assert asked == (6 if loop else hops + 1), f"{target} after {hops} hops: {asked} requests"
    assert list(folder.iterdir()) == []
    return Counter({"asked": 1, "blocked": 1})


def downgrades_are_refused(dice: random.Random, folder: Path) -> Counter[str]:
    """From https a redirect leads to https, the same port, and Wikimedia's own hosts, or nowhere."""
    target = dice.choice(
        [
            *("http://dumps.wikimedia.org/x", "http://dumps1.wikimedia.org/x", "https://dumps.wikimedia.org:8443/x"),
            *("https://evilwikimedia.org/x", "https://wikimedia.org.evil.org/x", "https://user@dumps.wikimedia.org/x"),
            *("https://dumps.wikimedia.org.:444/x", "https://127.0.0.1/x", "http://localhost/x", "file:///etc/passwd"),
            *("https://en.wikipedia.org/x", "https://[64:ff9b::a9fe:a9fe]/x", "https://dumps.wikimedia.org@evil.org/"),
        ]
    )
    wire = Wire({"dumps.wikimedia.org": [PUBLIC[:1]], "dumps1.wikimedia.org": [PUBLIC[:1]]}, redirect_to(target))
    with wire.instead_of_the_network():
        end = ask(f"{ROOT}/x")
    assert isinstance(end, SourceUnavailable), f"{target}: {end!r}"
    assert wire.connected == PUBLIC[:1], f"{target}: connected to {wire.connected}"
    return Counter({"asked": 1, "blocked": 1})


BLOCKING = (
    only_public_addresses_are_asked,
    a_rebinding_name_reaches_nothing,
    this_machine_means_this_machine,
    redirects_lead_nowhere_else,
    downgrades_are_refused,
)
