"""What must hold of a download, however the server fails or lies: chaos tests ask it of the build, mutant tests of broken ones.

Each check is one trial: it takes dice and an empty folder, fails with an AssertionError, and returns counts to add up.
"""

import bz2
import gzip
import hashlib
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpcore
import msgspec

from wiki_assets.defs.raw import fetch_snapshot
from wiki_assets.errors import CorruptDump, SourceUnavailable, StoreLocked, TransientSource, WikiAssetsError
from wiki_assets.files import Manifest, read_manifest, verify_files
from wiki_assets.keys import Snapshot
from wiki_assets.resources.download import FetchedFile
from wiki_assets.resources.mirror import DumpMirror, RemoteFile
from wiki_assets.resources.store import Store
from wiki_assets_tests.chaos.downloader import Downloader
from wiki_assets_tests.resources.faulty_server import Fault, FaultyServer
from wiki_assets_tests.stages.dump_lines import pair

SNAPSHOT = Snapshot("xwiki", "20260823")
FOLDER = "/other/cirrus_search_index/20260823/index_name=xwiki_content/"
NAME = "xwiki_content-20260823-00000.json.bz2"
PATH = FOLDER + NAME
GZ_PATH = "/other/x.json.gz"
N_TRIES = 8


def dump_text(dice: random.Random, n_pages: int) -> bytes:
    """Some pages that do not pack well."""
    first = dice.randrange(1, 1 << 40)
    return b"".join(pair(first + n, text=dice.randbytes(dice.randint(20, 300)).hex()) for n in range(n_pages))


def streams(dice: random.Random, text: bytes, n: int = 5) -> list[bytes]:
    """A text packed by bzip2 as several streams, cut anywhere."""
    cuts = sorted(dice.sample(range(1, len(text)), n - 1))
    return [bz2.compress(text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def packed(dice: random.Random, n_pages: int = 60) -> bytes:
    return b"".join(streams(dice, dump_text(dice, n_pages)))


def stored(text: bytes) -> bytes:
    """As gzip without packing: other text of one length gives other bytes of one length."""
    return gzip.compress(text, 0, mtime=0)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def mirror_of(server: FaultyServer, **changes: Any) -> DumpMirror:
    return DumpMirror(base_url=server.url, **{"backoff_s": 0, "max_attempts": N_TRIES} | changes)


def remote(server: FaultyServer, size_bytes: int | None = None, path: str = PATH) -> RemoteFile:
    return RemoteFile(path.rpartition("/")[2], server.url + path.replace("=", "%3D"), size_bytes)


def begin_of(headers: dict[str, str]) -> int:
    """Where a request wants the file to begin."""
    return int(headers.get("range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))


def only_the_file(folder: Path, name: str, data: bytes) -> bool:
    return [path.name for path in folder.iterdir()] == [name] and (folder / name).read_bytes() == data


# D1


def drops_end_in_the_same_bytes(dice: random.Random, folder: Path) -> Counter[str]:
    """Whatever cuts a download, and how often: it ends with the same bytes, and asks for none twice."""
    blob = packed(dice)
    n_faults = dice.randint(1, N_TRIES - 1)
    kinds = dice.choices(["drop", "reset", "stall", "503"], [5, 5, 1, 1], k=n_faults)
    faults = {
        "drop": lambda: Fault(drop_after=dice.randrange(len(blob))),
        "reset": lambda: Fault(drop_after=dice.randrange(len(blob)), reset=True),
        "stall": lambda: Fault(stall_after=dice.randrange(len(blob))),
        "503": lambda: Fault(status=503, body=b"<html>"),
    }
    told: list[int] = []
    with FaultyServer({PATH: blob}) as server:
        server.faults[PATH] = [faults[kind]() for kind in kinds]
        fetched = mirror_of(server, read_timeout_s=0.15).fetch(remote(server, len(blob)), folder, told.append)
        begins = [begin_of(headers) for headers in server.asked(PATH)]
    assert fetched.sha256 == sha256(blob), f"{kinds}: other bytes"
    assert only_the_file(folder, NAME, blob), kinds
    assert sum(told) == len(blob) and min(told) > 0, f"{kinds}: what had arrived was forgotten"
    assert begins == sorted(begins), f"{kinds}: bytes were asked for twice: {begins}"
    return Counter({"SHA equal": 1, "cuts": n_faults, "size": len(blob), "sent": server.sent[PATH]})


def trickles_are_dropped(dice: random.Random, folder: Path) -> Counter[str]:
    """A reply that trickles, in its headers too, is dropped long before its end, and the next goes on from there."""
    blob = packed(dice, 3)
    kind = dice.choice(["body", "headers"])
    with FaultyServer({PATH: blob}) as server:
        server.faults[PATH] = [Fault(trickle_s=0.004) if kind == "body" else Fault(trickle_headers_s=0.008)]
        fetched = mirror_of(server, stall_s=0.2).fetch(remote(server), folder)
        begins = [begin_of(headers) for headers in server.asked(PATH)]
    assert fetched.sha256 == sha256(blob)
    assert len(begins) == 2, f"{kind}: the trickle was drunk to its end"
    assert (begins[1] > 0) == (kind == "body"), "what came was not kept"
    return Counter({"trickles dropped": 1})


def one_download_at_a_time(dice: random.Random, folder: Path) -> Counter[str]:
    """Of two processes that download one file, one is told of the other, and nothing is mixed."""
    blob = packed(dice)
    inside, go_on = threading.Event(), threading.Event()
    ends: list[FetchedFile | Exception] = []

    def hold(n_bytes: int) -> None:
        inside.set()
        assert go_on.wait(30)

    def download() -> None:
        try:
            ends.append(mirror_of(server).fetch(remote(server), folder, hold))
        except WikiAssetsError as error:
            ends.append(error)

    with FaultyServer({PATH: blob}) as server:
        first = threading.Thread(target=download)
        first.start()
        assert inside.wait(30)
        try:
            second: object = mirror_of(server).fetch(remote(server), folder)
        except Exception as error:
            second = error
        finally:
            go_on.set()
            first.join(30)
    assert isinstance(second, StoreLocked), f"the second was not stopped: {second!r:.200}"
    assert [end.sha256 for end in ends if isinstance(end, FetchedFile)] == [sha256(blob)]
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
    """How many connections this process has open at once, by port. The server's own count comes late."""

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
    waits: list[float] = []  # when each busy reply allows the next request, from when it was sent, or on the clock
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
        fetched = mirror_of(server).fetch(remote(server), folder)
        moments = [when for _, _, when in server.requests]
    assert fetched.sha256 == sha256(blob)
    assert len(moments) == len(faults) + 1, "another number of requests than of replies"
    offset = time.time() - time.monotonic()
    for wait, (_, _, replied), asked in zip(waits, server.replies, moments[1:], strict=False):
        allowed = wait - offset if wait > 1e6 else replied + wait
        assert asked >= allowed, f"asked {allowed - asked:.3f} s too early"
    return Counter({"waits obeyed": sum(wait > 0 for wait in waits), "requests": len(moments)})


def the_longest_wait_holds_for_all(dice: random.Random, folder: Path) -> Counter[str]:
    """What one connection is told, all obey, also those that wait for a shorter time already; two at once, no more.

    To be called while connections are `counted`.
    """
    files = {FOLDER + NAME.replace("-00000", f"-{n:05d}"): packed(dice, 2) for n in range(4)}
    short, long = sorted(files)[:2]
    with FaultyServer(files | {FOLDER + "_SUCCESS": b""}) as server:
        server.faults[short] = [Fault(status=429, headers={"Retry-After": "1"}, body=b"", after=long)]
        server.faults[long] = [
            Fault(status=503, headers={"Retry-After": "2"}, body=b"", after=short, delay_s=dice.uniform(0.2, 0.8))
        ]
        mirror_of(server).fetch_all(SNAPSHOT, folder)
    told = next(when for path, status, when in server.replies if path == long and status == 503)
    early = [path for path, _, when in server.requests if told < when < told + 2]
    assert not early, f"{early} asked for before the time the server had named"
    most = connections.most[int(server.url.rpartition(":")[2])]
    assert 0 < most <= 2, f"{most} connections at once"
    return Counter({"waits shared": 1})


def a_hopeless_server_is_given_up(dice: random.Random, folder: Path) -> Counter[str]:
    """Ten years, a storm that does not pass, waits that add up: an error of one line, and no more requests than allowed."""
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
    error: Exception | None = None
    with FaultyServer({PATH: packed(dice, 2)}) as server:
        server.faults[PATH] = [fault] * 3 * N_TRIES
        mirror = mirror_of(server, max_attempts=tries, max_wait_s=1.5 if kind == "waits add up" else 3600)
        try:
            mirror.fetch(remote(server), folder)
        except WikiAssetsError as refused:
            error = refused
        asked = len(server.requests)
    assert isinstance(error, SourceUnavailable) and not isinstance(error, TransientSource), f"{kind}: {error!r:.200}"
    assert says in str(error) and "\n" not in str(error), f"{kind}: {error}"
    assert asked == most, f"{kind}: {asked} requests, {most} allowed"
    return Counter({"given up": 1})


# D3

_HARMLESS = {"in chunks", "no length", "identity"}


def lies_about_a_file_are_not_believed(
    dice: random.Random, folder: Path, lie: str | None = None, listed: bool | None = None
) -> Counter[str]:
    """Lengths, encodings and web pages: what lies in place is the file, or nothing does."""
    parts = streams(dice, dump_text(dice, 40))
    blob = b"".join(parts)
    edges = {sum(map(len, parts[:n])) for n in range(len(parts) + 1)}
    listed = dice.random() < 0.5 if listed is None else listed
    cut = dice.choice([n for n in range(1, len(blob)) if n not in edges])
    at_edge = dice.choice(sorted(edges - {0, len(blob)}))
    page = b"<!DOCTYPE html><html>busy</html>"
    lies = {
        "too long": Fault(headers={"Content-Length": str(len(blob) + dice.randint(1, 99))}),
        "too short": Fault(headers={"Content-Length": str(len(blob) - dice.randint(1, 99))}),
        "no length": Fault(headers={"Content-Length": None}),
        "no length, cut": Fault(headers={"Content-Length": None}, drop_after=cut),
        "no length, cut between streams": Fault(headers={"Content-Length": None}, drop_after=at_edge),
        "in chunks": Fault(chunked=dice.randint(1, 4000)),
        "in chunks, cut": Fault(chunked=dice.randint(1, 4000), drop_after=dice.choice([cut, at_edge])),
        "in chunks, without the last": Fault(chunked=dice.randint(1, 4000), no_last_chunk=True),
        "identity": Fault(headers={"Content-Encoding": "identity"}),
        "gzip": Fault(headers={"Content-Encoding": "gzip"}, body=gzip.compress(blob)),
        "said to be gzip": Fault(headers={"Content-Encoding": dice.choice(["gzip", "br", "x-gzip", "identity, gzip"])}),
        "a web page": Fault(body=page, chunked=dice.choice([0, 7])),
        "nothing": Fault(body=b""),
        "cut, and its length too": Fault(body=blob[: at_edge if listed else cut]),
        "twice": Fault(body=blob + blob, headers={"Content-Length": dice.choice([None, str(len(blob))])}),
        "more": Fault(body=blob + dice.randbytes(9)),
        "a part nobody asked for": Fault(status=206),
        "damaged": Fault(body=_flipped(dice, blob, list(range(len(parts[0]) + 4, len(blob) - 4)))),
    }
    lie = lie or dice.choice(sorted(lies))
    for_ever = dice.random() < 0.7
    error: Exception | None = None
    with FaultyServer({PATH: blob}) as server:
        server.faults[PATH] = [lies[lie]] * (99 if for_ever else 1)
        try:
            mirror_of(server).fetch(remote(server, len(blob) if listed else None), folder)
        except WikiAssetsError as refused:
            error = refused
    files = sorted(path.name for path in folder.iterdir())
    accepted = NAME in files
    assert not accepted or (folder / NAME).read_bytes() == blob, f"{lie}, listed {listed}: wrong bytes were accepted"
    assert accepted == (error is None), f"{lie}: {files} in place after {error!r:.200}"
    if for_ever and lie in _HARMLESS and listed:
        assert accepted, f"{lie}: the right bytes were refused: {error!r:.200}"
    return Counter({"lies": 1, "right bytes": accepted, "refused": not accepted, "accepted bad": 0})


def _flipped(dice: random.Random, data: bytes, places: list[int]) -> bytes:
    """With one bit changed, at one of the places."""
    changed = bytearray(data)
    changed[dice.choice(places)] ^= 1 << dice.randrange(8)
    return bytes(changed)


# D4


def editions_are_never_joined(
    dice: random.Random, folder: Path, changes: str | None = None, lie: str | None = None
) -> Counter[str]:
    """A resume that the server gets wrong, or for which it has other bytes: the file is wholly what is offered now."""
    path = dice.choice([PATH, GZ_PATH])
    text, other_text = dump_text(dice, 30), dump_text(dice, 30)
    other_text = (other_text * 2)[: len(text)]
    blob, other = (stored(text), stored(other_text)) if path == GZ_PATH else (packed(dice), packed(dice))
    have = dice.randrange(20, len(blob) - 20)
    changes = changes or dice.choice(["nothing", "other ETag", "same ETag", "same ETag and date"])
    lie = lie or dice.choice(
        ["honest", "ignores Range", "ignores If-Range", "begins elsewhere", "another total", "no range", "416", "page"]
    )
    total = len(blob)
    lies = {
        "honest": Fault(),
        "ignores Range": Fault(ignore_range=True),
        "ignores If-Range": Fault(ignore_if_range=True),
        "begins elsewhere": Fault(shift_range=dice.choice([-1, 1]) * dice.randint(1, 9), ignore_if_range=True),
        "another total": Fault(
            headers={"Content-Range": f"bytes {have}-{total - 1}/{total + 1}"}, ignore_if_range=True
        ),
        "no range": Fault(headers={"Content-Range": None}, ignore_if_range=True),
        "416": Fault(status=416, headers={"Content-Range": f"bytes */{total}"}, ignore_if_range=True),
        "page": Fault(status=200, body=b"<html>", ignore_range=True),
    }
    with FaultyServer({path: blob}) as server:
        if changes.startswith("same"):
            server.etags[path] = '"same"'
        server.faults[path] = [Fault(drop_after=have)]
        try:
            mirror_of(server, max_attempts=1).fetch(remote(server, path=path), folder)
            raise AssertionError("a file cut in two was taken for whole")
        except SourceUnavailable:
            pass
        if changes != "nothing":
            server.files[path] = other
        right = server.files[path]
        date = "Mon, 24 Aug 2026 12:00:00 GMT" if changes in ("other ETag", "same ETag") else None
        first = lies[lie]
        if date:
            first = replace(first, headers=first.headers | {"Last-Modified": date})
        server.faults[path] = [first, *[Fault(headers={"Last-Modified": date} if date else {})] * 9]
        server.requests.clear()
        fetched = mirror_of(server).fetch(remote(server, dice.choice([None, len(right)]), path), folder)
        asked = server.asked(path)
    in_place = (folder / Path(path).name).read_bytes()
    joined = in_place not in (blob, other)
    assert not joined, f"{changes}, {lie}: two editions were joined at byte {have}"
    assert in_place == right and fetched.sha256 == sha256(right), f"{changes}, {lie}: an edition that is gone"
    assert asked[0].get("if-range"), "a resume without If-Range"
    if (changes, lie) == ("nothing", "honest"):
        assert begin_of(asked[0]) == have and len(asked) == 1, "what had arrived was fetched again"
    return Counter({"resumes": 1, "spliced": joined})


# D6, S2, D7


def snapshot_files(
    dice: random.Random, n_files: int, *, date: str = SNAPSHOT.date, done: bool = True
) -> dict[str, bytes]:
    folder = FOLDER.replace(SNAPSHOT.date, date)
    files = {
        f"{folder}xwiki_content-{date}-{n:05d}.json.bz2": packed(dice, dice.randint(2, 12)) for n in range(n_files)
    }
    return files | ({folder + "_SUCCESS": b""} if done else {})


def published(server: FaultyServer) -> dict[str, str]:
    """SHA-256 of the dump files that the server offers now, by name."""
    files = {path.rpartition("/")[2]: data for path, data in server.files.items() if path.startswith(FOLDER)}
    return {name: sha256(data) for name, data in files.items() if name != "_SUCCESS"}


def recorded(manifest: Manifest) -> dict[str, str]:
    return {name.rpartition("/")[2]: record.sha256 for name, record in manifest.files.items()}


EVENTS = {  # what happens meanwhile -> what the error may say
    "nothing": "",
    "never finished": "still being written: its folder has no _SUCCESS",
    "_SUCCESS goes": "still being written",
    "one more file": "list of its files changed",
    "a file goes": "not there|none numbered|changed",
    "the date goes": "not there|is not on",
    "an older one comes": "",
    "a newer one begins": "",
    "other bytes": "the listing|list of its files changed|the server now|ended after|more than the",
}


def no_part_is_taken_for_a_snapshot(dice: random.Random, folder: Path, event: str | None = None) -> Counter[str]:
    """Whatever is published, unpublished or changed meanwhile: a manifest lists the whole snapshot, or there is none."""
    event = event or dice.choice(sorted(EVENTS))
    files = snapshot_files(dice, dice.randint(2, 4))
    changed = dice.choice([path for path in sorted(files) if path.endswith(".bz2")])
    moment = dice.randint(1, len(files) + 4)
    store, error = Store(str(folder)), None

    def happen(number: int, path: str) -> None:
        if number != moment:
            return
        if event == "_SUCCESS goes":
            server.files.pop(FOLDER + "_SUCCESS", None)
        elif event == "one more file":
            server.files[FOLDER + NAME.replace("-00000", f"-{len(files) - 1:05d}")] = packed(dice, 3)
        elif event == "a file goes":
            server.files.pop(changed, None)
        elif event == "the date goes":
            server.files.clear()
        elif event == "an older one comes":
            server.files |= snapshot_files(dice, 2, date="20260816")
        elif event == "a newer one begins":
            server.files |= snapshot_files(dice, 2, date="20260830", done=False)
        elif event == "other bytes":
            server.files[changed] = packed(dice, dice.randint(2, 12))

    with FaultyServer(files) as server:
        server.on_request = happen
        if event == "never finished":
            del server.files[FOLDER + "_SUCCESS"]
        mirror = mirror_of(server, max_attempts=3)
        try:
            manifest = fetch_snapshot(SNAPSHOT, mirror, store, lambda text: None)
        except WikiAssetsError as refused:
            error, manifest = refused, None
        on_disk = read_manifest(store.raw(SNAPSHOT) / "manifest.json")
        assert on_disk == manifest, f"{event} at request {moment}: an error, and a manifest"
        if manifest is not None:
            offered = published(server)
            assert recorded(manifest) == offered, f"{event} at request {moment}: {len(manifest.files)} files ingested"
            assert FOLDER + "_SUCCESS" in server.files, "a snapshot without _SUCCESS"
            verify_files(store.wiki("xwiki"), manifest)
        else:
            assert EVENTS[event], f"{event} at request {moment}: {error!r}"
            assert re.search(EVENTS[event], str(error)), f"{event} at request {moment}: {error}"
        server.on_request = lambda number, path: None
        server.files = {path: data for path, data in server.files.items() if path.startswith(FOLDER)}
        server.files |= {path: data for path, data in files.items() if path not in server.files}
        recovered = 0
        try:
            again = fetch_snapshot(SNAPSHOT, mirror, store, lambda text: None)
            assert recorded(again) == (recorded(manifest) if manifest else published(server)), f"{event}: not whole"
            recovered = 1
        except CorruptDump as refused:
            assert event == "other bytes" and "the server now" in str(refused), f"{event}: {refused}"
    return Counter(
        {"snapshots": 1, "refused": error is not None, "partial ingested": 0, "whole after all": recovered, event: 1}
    )


def the_newest_whole_snapshot_is_the_latest(dice: random.Random, folder: Path) -> Counter[str]:
    """Dates come, are finished, and go: `latest` is the newest finished one at every moment, and never an older one."""
    dates = [f"202608{day:02d}" for day in range(1, 29)]
    with FaultyServer() as server:
        mirror = mirror_of(server)
        for step in range(6):
            for date in dice.sample(dates, dice.randint(1, 3)):
                mark = FOLDER.replace(SNAPSHOT.date, date) + "_SUCCESS"
                here = [path for path in server.files if f"/{date}/" in path]
                if not here:
                    server.files |= snapshot_files(dice, 1, date=date, done=dice.random() < 0.5)
                elif mark not in server.files:
                    server.files[mark] = b""
                elif dice.random() < 0.5:
                    for path in here:
                        del server.files[path]
            whole = sorted(path.split("/")[3] for path in server.files if path.endswith("_SUCCESS"))
            assert [snapshot.date for snapshot in mirror.snapshots("xwiki")] == whole, f"step {step}"
            try:
                assert mirror.latest("xwiki").date == max(whole, default=None), f"step {step}"
            except SourceUnavailable as error:
                assert not whole, f"step {step}: {error}"
    return Counter({"states": 6})


def what_was_fetched_stays_the_truth(dice: random.Random, folder: Path) -> Counter[str]:
    """A file that is lost comes back as the very bytes it was; others are refused, and nothing else is touched."""
    files = snapshot_files(dice, 3)
    store = Store(str(folder))
    raw = store.raw(SNAPSHOT)
    lost = dice.choice([path for path in sorted(files) if path.endswith(".bz2")])
    name = lost.rpartition("/")[2]
    with FaultyServer(files) as server:
        mirror = mirror_of(server, max_attempts=3)
        manifest = fetch_snapshot(SNAPSHOT, mirror, store, lambda text: None)
        (raw / name).unlink()
        before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in raw.iterdir()}
        if dice.random() < 0.5:
            server.files[lost] = packed(dice, dice.randint(2, 12))
        else:  # the same length: the header's level digit, which no checksum covers
            server.files[lost] = files[lost].replace(b"BZh9", b"BZh8", 1)
        server.requests.clear()
        try:
            fetch_snapshot(SNAPSHOT, mirror, store, lambda text: None)
            raise AssertionError("other bytes were taken for those recorded")
        except CorruptDump as error:
            assert name in str(error) and "the server now" in str(error), error
        after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in raw.iterdir()}
        assert after == before, "what was there was touched"
        server.files = files
        again = fetch_snapshot(SNAPSHOT, mirror, store, lambda text: None)
        asked = {path.rpartition("/")[2] for path, _, _ in server.requests if path.endswith(".bz2")}
    assert again.data_version == manifest.data_version
    assert asked <= {name}, f"{asked} were fetched again, {name} was lost"
    return Counter({"refused": 1, "others touched": 0})


# Kills


def a_killed_download_goes_on(
    dice: random.Random, folder: Path, downloader: Downloader, *, place: str = "", mutant: str = ""
) -> Counter[str]:
    """SIGKILL at any line of the download: the next process ends with the same bytes, and fetches no durable one again."""
    survey = downloader.survey
    store = Store(str(folder))
    raw = Path(str(store.raw(SNAPSHOT)))
    if not place and dice.random() < 0.5:
        death: dict[str, Any] = {"die_at": dice.randint(1, survey.n_lines)}
    else:
        place = place or dice.choice(sorted(survey.places))
        death = {"die_at_place": place, "hit": dice.randint(1, survey.places[place])}
    files = snapshot_files(dice, 3)
    with FaultyServer(files) as server:
        end = downloader.run(server.url, folder, mutant=mutant, **death)
        assert end["signal"] in (0, 9), end
        durable = _durable(raw)
        server.requests.clear()
        changed = dice.random() < 0.2 and end["signal"] == 9 and store.raw_manifest(SNAPSHOT) is None
        if changed:
            path = dice.choice([path for path in sorted(files) if path.endswith(".bz2")])
            server.files[path] = packed(dice)
            if path.rpartition("/")[2] in _noted(raw):
                server.files[path] = files[path]  # it is whole and recorded: D7 says what happens then
            else:
                durable.pop(path.rpartition("/")[2], None)
        end_again = downloader.run(server.url, folder, mutant=mutant)
        assert end_again["error"] is None, f"{death}: {end_again}"
        again = 0
        for path, headers, _ in server.requests:
            again += max(0, durable.get(path.rpartition("/")[2], 0) - begin_of(headers))
        offered = published(server)
    manifest = read_manifest(raw / "manifest.json")
    assert manifest is not None and recorded(manifest) == offered, f"{death}: other bytes"
    verify_files(store.wiki("xwiki"), manifest)
    assert again == 0, f"{death}: {again:,} durable bytes were fetched again"
    left = sorted(path.name for path in raw.iterdir())
    assert left == sorted(["manifest.json", *offered]), f"{death}: leftovers: {left}"
    return Counter({"kills": end["signal"] == 9, "SHA equal": 1, "fetched again": again, "edition changed": changed})


def _noted(raw: Path) -> dict[str, Any]:
    notes = raw / "fetched.json"
    return msgspec.json.decode(notes.read_bytes()) if notes.exists() else {}


def _durable(raw: Path) -> dict[str, int]:
    """How many bytes of each file a killed process left that the next one may use."""
    found: dict[str, int] = {}
    for path in raw.iterdir() if raw.is_dir() else ():
        if path.name.endswith(".json.bz2"):
            found[path.name] = path.stat().st_size
        elif path.name.endswith(".partial") and path.with_name(f"{path.name}.json").exists():
            found.setdefault(path.name.removesuffix(".partial"), path.stat().st_size)
    return found
