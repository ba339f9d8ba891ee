"""What must hold of a download, however the server fails or lies: tests ask it of the build, and of broken ones.

Each check is one trial: it takes dice and an empty folder, fails with an AssertionError, and returns counts to add up.
"""

import gzip
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpcore

from wiki_assets.errors import SourceUnavailable, StoreLocked, TransientSource, WikiAssetsError
from wiki_assets.resources.download import FetchedFile
from wiki_assets_tests.chaos.source import (
    N_TRIES,
    NAME,
    PATH,
    SNAPSHOT,
    SUCCESS,
    begin_of,
    dump_text,
    flipped,
    mirror_of,
    numbered,
    only_the_file,
    outcome,
    packed,
    remote,
    sha256,
    stored,
    streams,
)
from wiki_assets_tests.resources.faulty_server import Fault, FaultyServer

GZ_PATH = "/other/x.json.gz"


# D1


def drops_end_in_the_same_bytes(dice: random.Random, folder: Path) -> Counter[str]:
    """Whatever cuts a download, and how often: it ends with the same bytes, and asks for none twice."""
    blob = packed(dice)
    kinds = dice.choices(["drop", "reset", "stall", "503"], [5, 5, 1, 1], k=dice.randint(1, N_TRIES - 1))
    faults = {
        "drop": lambda: Fault(drop_after=dice.randrange(len(blob))),
        "reset": lambda: Fault(drop_after=dice.randrange(len(blob)), reset=True),
        "stall": lambda: Fault(stall_after=dice.randrange(len(blob))),
        "503": lambda: Fault(status=503, body=b"<html>"),
    }
    told: list[int] = []
    with FaultyServer({PATH: blob}) as server:
        server.faults[PATH] = [faults[kind]() for kind in kinds]
        mirror = mirror_of(server, read_timeout_s=0.15)
        end = outcome(lambda: mirror.fetch(remote(server, len(blob)), folder, told.append))
        begins = [begin_of(headers) for headers in server.asked(PATH)]
    assert isinstance(end, FetchedFile) and end.sha256 == sha256(blob), f"{kinds}: {end}"
    assert only_the_file(folder, NAME, blob), kinds
    assert sum(told) == len(blob) and min(told) > 0, f"{kinds}: what had arrived was forgotten"
    assert begins == sorted(begins), f"{kinds}: bytes were asked for twice: {begins}"
    return Counter({"SHA equal": 1, "cuts": len(kinds), "bytes": len(blob), "bytes sent": server.sent[PATH]})


def trickles_are_dropped(dice: random.Random, folder: Path) -> Counter[str]:
    """A reply that trickles, in its headers too, is dropped long before its end, and the next goes on from there."""
    blob = packed(dice, 3)
    kind = dice.choice(["body", "headers"])
    with FaultyServer({PATH: blob}) as server:
        server.faults[PATH] = [Fault(trickle_s=0.002) if kind == "body" else Fault(trickle_headers_s=0.008)]
        end = outcome(lambda: mirror_of(server, stall_s=0.2).fetch(remote(server), folder))
        begins = [begin_of(headers) for headers in server.asked(PATH)]
    assert isinstance(end, FetchedFile) and end.sha256 == sha256(blob), end
    assert len(begins) == 2, f"{kind}: the trickle was drunk to its end"
    assert (begins[1] > 0) == (kind == "body"), "what came was not kept"
    return Counter({"trickles dropped": 1})


def one_download_at_a_time(dice: random.Random, folder: Path) -> Counter[str]:
    """Of two that download one file, one is told of the other, and nothing is mixed."""
    blob = packed(dice)
    inside, go_on = threading.Event(), threading.Event()
    ends: list[object] = []

    def hold(n_bytes: int) -> None:
        inside.set()
        assert go_on.wait(30)

    def download(on_progress: Callable[[int], object]) -> None:
        try:
            ends.append(outcome(lambda: mirror_of(server).fetch(remote(server), folder, on_progress)))
        except AssertionError as error:
            ends.append(error)

    with FaultyServer({PATH: blob}) as server:
        first = threading.Thread(target=download, args=(hold,))
        first.start()
        assert inside.wait(30)
        download(lambda n_bytes: None)
        go_on.set()
        first.join(30)
    second, *others = ends
    assert isinstance(second, StoreLocked), f"the second was not stopped: {second!r:.200}"
    assert [end.sha256 for end in others if isinstance(end, FetchedFile)] == [sha256(blob)], others
    assert only_the_file(folder, NAME, blob)
    return Counter({"second writers refused": 1})


# D2


class _Counting(httpcore.NetworkStream):
    """A connection that is counted while it is open."""

    def __init__(self, inner: httpcore.NetworkStream, counts: "OpenConnections", port: int) -> None:
        self._inner, self._counts, self._port, self._open = inner, counts, port, True
        counts.add(port, 1)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, timeout)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, timeout)

    def close(self) -> None:
        self._inner.close()
        if self._open:
            self._open = False
            self._counts.add(self._port, -1)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class OpenConnections:
    """How many connections this process has open at once, by port. A server's own count comes late."""

    def __init__(self) -> None:
        self._lock, self._now = threading.Lock(), Counter[int]()
        self.most: Counter[int] = Counter()

    def add(self, port: int, n: int) -> None:
        with self._lock:
            self._now[port] += n
            self.most[port] = max(self.most[port], self._now[port])

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count every connection that is made in the block."""
        connect = httpcore.SyncBackend.connect_tcp

        def counting(backend: httpcore.SyncBackend, host: str, port: int, *more: Any, **named: Any) -> Any:
            return _Counting(connect(backend, host, port, *more, **named), self, port)

        httpcore.SyncBackend.connect_tcp = counting  # type: ignore[method-assign]
        try:
            yield
        finally:
            httpcore.SyncBackend.connect_tcp = connect  # type: ignore[method-assign]


connections = OpenConnections()


def no_request_before_its_time(dice: random.Random, folder: Path) -> Counter[str]:
    """A busy server is asked again when it said, in whatever form it said so, and at once where it said nothing."""
    blob = packed(dice, 3)
    waits: list[float] = []  # seconds from the reply, or a moment on the clock
    faults: list[Fault] = []
    for _ in range(dice.randint(1, 2)):
        kind = dice.choice(["seconds", "date", "absent", "negative", "nonsense", "past date"])
        until = time.time() + dice.uniform(1, 2)
        value = {
            "seconds": "1",
            "date": formatdate(until, usegmt=True),
            "absent": None,
            "negative": "-5",
            "nonsense": dice.choice(["soon", "1e9", "²", "0x10"]),
            "past date": "Sun, 06 Nov 1994 08:49:37 GMT",
        }[kind]
        faults.append(Fault(status=dice.choice([429, 503]), headers={"Retry-After": value}, body=b"busy"))
        waits.append({"seconds": 1.0, "date": float(int(until))}.get(kind, 0.0))
    with FaultyServer({PATH: blob}) as server:
        server.faults[PATH] = list(faults)
        end = outcome(lambda: mirror_of(server).fetch(remote(server), folder))
        moments = [when for _, _, when in server.requests]
    assert isinstance(end, FetchedFile) and end.sha256 == sha256(blob), end
    assert len(moments) == len(faults) + 1, "another number of requests than of replies"
    offset = time.time() - time.monotonic()
    for wait, (_, _, replied), asked in zip(waits, server.replies, moments[1:], strict=False):
        allowed = wait - offset if wait > 1e6 else replied + wait
        assert asked >= allowed, f"asked {allowed - asked:.3f} s too early"
    return Counter({"requests": len(moments), "waits obeyed": sum(wait > 0 for wait in waits), "early requests": 0})


def the_longest_wait_holds_for_all(dice: random.Random, folder: Path) -> Counter[str]:
    """What one connection is told, all obey, also those that wait for a shorter time already; two at once, no more.

    To be called while connections are `counted`.
    """
    files = {numbered(n): packed(dice, 2) for n in range(4)}
    short, long = sorted(files)[:2]
    with FaultyServer(files | {SUCCESS: b""}) as server:
        server.faults[short] = [Fault(status=429, headers={"Retry-After": "1"}, body=b"", after=long)]
        server.faults[long] = [
            Fault(status=503, headers={"Retry-After": "2"}, body=b"", after=short, delay_s=dice.uniform(0.2, 0.8))
        ]
        end = outcome(lambda: mirror_of(server).fetch_all(SNAPSHOT, folder))
    assert isinstance(end, list), end
    told = next(when for path, status, when in server.replies if path == long and status == 503)
    early = [path for path, _, when in server.requests if told < when < told + 2]
    assert not early, f"{early} asked for before the time the server had named"
    most = connections.most[int(server.url.rpartition(":")[2])]
    assert 0 < most <= 2, f"{most} connections at once"
    return Counter({"waits shared": 1, "early requests": 0})


def a_hopeless_server_is_given_up(dice: random.Random, folder: Path) -> Counter[str]:
    """Ten years, a storm that does not pass, waits that add up: a line of error, and no request more than allowed."""
    kind = dice.choice(["ten years", "date in ten years", "storm", "cut short", "waits add up"])
    tries = dice.randint(2, N_TRIES)
    later = formatdate(time.time() + 10 * 365 * 86400, usegmt=True)
    fault, most, says = {
        "ten years": (Fault(status=503, headers={"Retry-After": str(10 * 365 * 86400)}), 1, "busy until 20"),
        "date in ten years": (Fault(status=429, headers={"Retry-After": later}), 1, "busy until 20"),
        "storm": (Fault(status=dice.choice([500, 502, 503, 504, 429, 408])), tries, "still failing"),
        "cut short": (Fault(drop_after=0), tries, "still failing"),
        "waits add up": (Fault(status=503, headers={"Retry-After": "2"}), 1, "busy until 20"),
    }[kind]
    with FaultyServer({PATH: packed(dice, 2)}) as server:
        server.faults[PATH] = [fault] * 3 * N_TRIES
        mirror = mirror_of(server, max_attempts=tries, max_wait_s=1.5 if kind == "waits add up" else 3600)
        end = outcome(lambda: mirror.fetch(remote(server), folder))
        asked = len(server.requests)
    assert isinstance(end, SourceUnavailable) and not isinstance(end, TransientSource), f"{kind}: {end!r:.200}"
    assert says in str(end) and "\n" not in str(end), f"{kind}: {end}"
    assert asked == most, f"{kind}: {asked} requests, {most} allowed"
    return Counter({"given up": 1, "requests beyond the budget": 0})


# D3

_HARMLESS = {"in chunks", "no length", "identity"}


def lies_about_a_file_are_not_believed(
    dice: random.Random, folder: Path, lie: str | None = None, listed: bool | None = None
) -> Counter[str]:
    """Lengths, encodings and web pages: what lies in place is the file, or nothing does."""
    parts = streams(dice, dump_text(dice, 40))
    blob = b"".join(parts)
    edges = [sum(map(len, parts[:n])) for n in range(1, len(parts))]
    listed = dice.random() < 0.5 if listed is None else listed
    cut = dice.choice([n for n in range(1, len(blob)) if n not in edges])
    edge = dice.choice(edges)
    page = b"<!DOCTYPE html><html>busy</html>"
    lies = {
        "too long": Fault(headers={"Content-Length": str(len(blob) + dice.randint(1, 99))}),
        "too short": Fault(headers={"Content-Length": str(len(blob) - dice.randint(1, 99))}),
        "no length": Fault(headers={"Content-Length": None}),
        "no length, cut": Fault(headers={"Content-Length": None}, drop_after=cut),
        "no length, cut between streams": Fault(headers={"Content-Length": None}, drop_after=edge),
        "in chunks": Fault(chunked=dice.randint(1, 4000)),
        "in chunks, cut": Fault(chunked=dice.randint(1, 4000), drop_after=dice.choice([cut, edge])),
        "in chunks, without the last": Fault(chunked=dice.randint(1, 4000), no_last_chunk=True),
        "identity": Fault(headers={"Content-Encoding": "identity"}),
        "gzip": Fault(headers={"Content-Encoding": "gzip"}, body=gzip.compress(blob)),
        "said to be gzip": Fault(headers={"Content-Encoding": dice.choice(["gzip", "br", "x-gzip", "identity, gzip"])}),
        "a web page": Fault(body=page, chunked=dice.choice([0, 7])),
        "nothing": Fault(body=b""),
        "cut, and its length too": Fault(body=blob[: edge if listed else cut]),
        "twice": Fault(body=blob + blob, headers={"Content-Length": dice.choice([None, str(len(blob))])}),
        "more": Fault(body=blob + dice.randbytes(9)),
        "a part nobody asked for": Fault(status=206),
        "damaged": Fault(body=flipped(dice, blob, len(parts[0]) + 4, len(blob) - 4)),
    }
    lie = lie or dice.choice(sorted(lies))
    for_ever = dice.random() < 0.7
    with FaultyServer({PATH: blob}) as server:
        server.faults[PATH] = [lies[lie]] * (99 if for_ever else 1)
        end = outcome(lambda: mirror_of(server).fetch(remote(server, len(blob) if listed else None), folder))
    files = sorted(path.name for path in folder.iterdir())
    accepted = NAME in files
    assert not accepted or (folder / NAME).read_bytes() == blob, f"{lie}, listed {listed}: wrong bytes were accepted"
    assert accepted != isinstance(end, WikiAssetsError), f"{lie}: {files} in place after {end!r:.200}"
    if for_ever and lie in _HARMLESS and listed:
        assert accepted, f"{lie}: the right bytes were refused: {end!r:.200}"
    return Counter({"lies": 1, "right bytes": accepted, "refused": not accepted, "accepted bad": 0})


# D4


def editions_are_never_joined(
    dice: random.Random, folder: Path, changes: str | None = None, lie: str | None = None
) -> Counter[str]:
    """A resume that the server gets wrong, or for which it has other bytes: the file is wholly what is offered now.

    One thing cannot be told: other bytes under the same ETag, date and length, whose streams begin at the same places,
    after a cut at just such a place.
    """
    path = dice.choice([PATH, GZ_PATH])
    text, other_text = dump_text(dice, 30), dump_text(dice, 30)
    other_text = (other_text * 2)[: len(text)]
    blob, other = (stored(text), stored(other_text)) if path == GZ_PATH else (packed(dice), packed(dice))
    have, total = dice.randrange(20, len(blob) - 20), len(blob)
    wrong_total: dict[str, str | None] = {"Content-Range": f"bytes {have}-{total - 1}/{total + 1}"}
    lies = {
        "honest": Fault(),
        "ignores Range": Fault(ignore_range=True),
        "ignores If-Range": Fault(ignore_if_range=True),
        "begins elsewhere": Fault(shift_range=dice.choice([-1, 1]) * dice.randint(1, 9), ignore_if_range=True),
        "another total": Fault(headers=wrong_total, ignore_if_range=True),
        "no range": Fault(headers={"Content-Range": None}, ignore_if_range=True),
        "416": Fault(status=416, headers={"Content-Range": f"bytes */{total}"}, ignore_if_range=True),
        "page": Fault(status=200, body=b"<html>", ignore_range=True),
    }
    changes = changes or dice.choice(["nothing", "other ETag", "same ETag", "same ETag and date"])
    lie = lie or dice.choice(sorted(lies))
    with FaultyServer({path: blob}) as server:
        if changes.startswith("same"):
            server.etags[path] = '"same"'
        server.faults[path] = [Fault(drop_after=have)]
        half = outcome(lambda: mirror_of(server, max_attempts=1).fetch(remote(server, path=path), folder))
        assert isinstance(half, SourceUnavailable), "a file cut in two was taken for whole"
        if changes != "nothing":
            server.files[path] = other
        right = server.files[path]
        dated: dict[str, str | None] = (
            {"Last-Modified": "Mon, 24 Aug 2026 12:00:00 GMT"} if changes in ("other ETag", "same ETag") else {}
        )
        server.faults[path] = [
            replace(lies[lie], headers=lies[lie].headers | dated),
            *[Fault(headers={**dated})] * N_TRIES,
        ]
        server.requests.clear()
        size_bytes = dice.choice([None, len(right)])
        end = outcome(lambda: mirror_of(server).fetch(remote(server, size_bytes, path), folder))
        asked = server.asked(path)
    assert isinstance(end, FetchedFile), f"{changes}, {lie}: {end}"
    in_place = (folder / Path(path).name).read_bytes()
    joined = in_place not in (blob, other)
    assert not joined, f"{changes}, {lie}: two editions were joined at byte {have}"
    assert in_place == right and end.sha256 == sha256(right), f"{changes}, {lie}: an edition that is gone"
    assert asked[0].get("if-range"), "a resume without If-Range"
    if (changes, lie) == ("nothing", "honest"):
        assert begin_of(asked[0]) == have and len(asked) == 1, "what had arrived was fetched again"
    return Counter({"resumes": 1, "spliced": joined})
