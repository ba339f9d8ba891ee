"""Fetch one dump file so that what lies in place is exactly what the server published.

A later process goes on where this one was killed. Bytes of two editions of a file are never joined: a resume asks
with If-Range, and the reply must carry the validators that the first reply carried. A file is in place only after
every byte of it was unpacked and its checksums held.

Source: RFC 9110 §13.1.5 (If-Range), §14 (Range), §8.8 (validators).
"""

import errno
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import IO, cast

import httpx
import msgspec
from upath import UPath

from wiki_assets.compression import decoded_chunks, require_magic
from wiki_assets.errors import BadRequest, CorruptDump, SourceUnavailable, TransientSource, WikiAssetsError
from wiki_assets.files import whole_file
from wiki_assets.ranges import Range, Restart, Survey, find_restarts, packed_restarts
from wiki_assets.resources.partial import Note, PartialFile, partial_path
from wiki_assets.resources.session import Session, http_date

Progress = Callable[[int], object]
MAX_RATIO, RATIO_FLOOR_BYTES = 200, 64 << 20  # dumps unpack to 5 to 10 times their size; bzip2 allows a million
RANGE_BYTES, RANGES = 64 << 20, 128  # of text a range, at least; ranges of a file, about, so that a task is worth it
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}")  # with what we add to it, no longer than a name may be
_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+)")


@dataclass(frozen=True)
class RemoteFile:
    """A dump file as the server lists it. `size_bytes` is None where the listing does not say."""

    name: str
    url: str
    size_bytes: int | None = None


class FetchedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A dump file in place: unpacked to its end once, and this is what was found.

    `lines` counts newlines in the unpacked text; `fetched_at` is ISO 8601 in UTC. `ranges` are the parts that many can
    read at once, none where one reads all; `restarts` is the SHA-256 of the restart points beside it, if there are any.
    """

    name: str
    url: str
    size_bytes: int
    sha256: str
    etag: str | None
    last_modified: str | None
    decoded_bytes: int
    lines: int
    fetched_at: str
    ranges: list[Range] = []
    restarts: str = ""


class _Measured:
    """A file to read from, hashed and counted as it is read."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source, self._sha256, self.size_bytes = source, hashlib.sha256(), 0

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self._sha256.update(data)
        self.size_bytes += len(data)
        return data

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()


def fetch_file(
    session: Session,
    file: RemoteFile,
    folder: UPath | Path,
    *,
    on_progress: Progress | None = None,
    recorded: FetchedFile | None = None,
    on_fetched: Callable[[FetchedFile], object] | None = None,
    slots: AbstractContextManager[object] | None = None,
) -> FetchedFile:
    """Download a dump file to `<folder>/<name>`, going on from what an earlier process left.

    Args:
        folder: where it shall lie. Into an object store the file goes in one upload, after it was checked here.
        on_progress: told the bytes that arrived (also those found from before), and their negative when they
            had to be forgotten: what it is told adds up to the file's size.
        recorded: what was found when this file was fetched before; other bytes are refused.
        on_fetched: told of the file when it is whole, checked and durable, and just before it is in place: whoever
            writes that down fetches no byte again, whenever he is killed.
        slots: entered while a connection is in use, not while the file is being checked.

    Raises:
        SourceUnavailable: if the server has no such file, refuses, or keeps failing.
        CorruptDump: if the bytes are not a whole dump file, after two more tries, or not those recorded.
        StoreLocked: if another process is downloading this file.
        WikiAssetsError: if there is no space left. What arrived stays, to go on from.
    """
    if not _NAME.fullmatch(file.name):
        raise BadRequest(
            f"{file.name!r:.80}: expected a plain file name, such as simplewiki_content-20260823-00000.json.bz2"
        )
    path = partial_path(folder, file.name)
    try:
        with PartialFile.opened(path, file.url, on_progress or (lambda n: None)) as partial:

            def attempt() -> FetchedFile:
                with slots or nullcontext():
                    _receive(session, file, partial)
                try:
                    return _check(session, file, partial, folder)
                except CorruptDump:
                    partial.clear()
                    raise

            fetched = session.retry(attempt, file.name)
            if recorded and fetched.sha256 != recorded.sha256:
                partial.clear()
                raise CorruptDump(
                    f"{file.name}: the server now has other bytes (SHA-256 {fetched.sha256[:12]}…) than those recorded "
                    f"({recorded.sha256[:12]}…): delete this snapshot's raw folder to take the new edition"
                )
            if on_fetched is not None:
                partial.sync()
                on_fetched(fetched)
            partial.put_in_place(folder / file.name)
            return fetched
    except OSError as error:
        if error.errno not in _FULL:
            raise
        have = path.stat().st_size if path.exists() else 0
        raise WikiAssetsError(
            f"{path}: no space left after {have:,} of {file.size_bytes or 0:,} bytes ({error.strerror}); they stay. "
            "Free some space, then run again: it goes on from there"
        ) from error


def _receive(session: Session, file: RemoteFile, partial: PartialFile) -> None:
    """One request: on return the partial file is as long as the server says the file is."""
    note = partial.note
    resume = note is not None and note.validator is not None and partial.size > 0
    headers = {"Range": f"bytes={partial.size}-", "If-Range": note.validator or ""} if note and resume else None
    with session.open(file.url, headers, expected=(200, 206, 416) if resume else (200,)) as reply:
        begin, total = _content_range(reply)
        if note and reply.status_code == 416 and total == partial.size == note.size_bytes:
            return
        if reply.status_code == 416 or (note and reply.status_code == 206 and not _continues(reply, partial, note)):
            have = partial.size
            partial.clear()
            raise TransientSource(
                f"{file.url}: asked to go on from byte {have:,}, it answered {reply.status_code} from byte {begin} of "
                f"{total}, or for another edition; starting over"
            )
        chunks = session.chunks(reply)
        if reply.status_code == 200:
            first = next(chunks, b"")
            require_magic(first, file.name)  # before `begin`: a web page costs nothing that arrived
            note = _note_of(reply, file)
            partial.begin(note)
            chunks = chain((first,), chunks)
        expected = cast(Note, note).size_bytes
        for chunk in chunks:
            if partial.size + len(chunk) > expected:
                partial.clear()
                raise CorruptDump(f"{file.name}: more than the {expected:,} bytes announced arrived: refetch it")
            partial.append(chunk)
    if partial.size != expected:
        raise TransientSource(f"{file.url}: the body ended after {partial.size:,} of {expected:,} bytes")


def _check(session: Session, file: RemoteFile, partial: PartialFile, folder: UPath | Path) -> FetchedFile:
    """Unpack what arrived from its first byte to its last, and say what it is; restart points go into `folder`."""
    decoded_bytes = lines = 0
    survey = Survey(max(RANGE_BYTES, partial.size * 5 // RANGES))  # a dump unpacks to about 5 times its size
    with partial.path.open("rb") as raw:
        source = _Measured(raw)
        for chunk in decoded_chunks(cast(IO[bytes], source), file.name, on_stream=survey.stream):
            session.check_stopped()
            survey.feed(chunk)
            decoded_bytes += len(chunk)
            lines += chunk.count(b"\n")
            if decoded_bytes > MAX_RATIO * partial.size + RATIO_FLOOR_BYTES:
                raise CorruptDump(
                    f"{file.name}: unpacks to over {MAX_RATIO} times its size; expected 5 to 10 times: refetch it"
                )
    if file.size_bytes not in (None, source.size_bytes):
        raise CorruptDump(f"{file.name}: {source.size_bytes:,} bytes; the listing says {file.size_bytes:,}: refetch it")
    ranges = survey.ranges() if file.name.endswith(".gz") or survey.streams > 1 else []
    points = find_restarts(partial.path, ranges, session.check_stopped) if ranges and survey.streams == 1 else []
    return FetchedFile(
        name=file.name,
        url=file.url,
        size_bytes=source.size_bytes,
        sha256=source.sha256,
        etag=partial.note.etag if partial.note else None,
        last_modified=partial.note.last_modified if partial.note else None,
        decoded_bytes=decoded_bytes,
        lines=lines,
        fetched_at=datetime.now(UTC).isoformat(timespec="seconds"),
        ranges=ranges,
        restarts=_kept(restarts_path(folder, file.name), points) if points else "",
    )


def _kept(path: UPath | Path, points: Sequence[Restart]) -> str:
    """Keep restart points beside the file; their SHA-256."""
    with whole_file(path) as out:
        out.write(packed_restarts(points))
    return out.record.sha256


def restarts_path(folder: UPath | Path, name: str) -> UPath | Path:
    """Where the restart points of a file lie."""
    return folder / f"{name}.restarts"


def _note_of(reply: httpx.Response, file: RemoteFile) -> Note:
    """What a reply with the whole file says about it.

    Raises:
        CorruptDump: if its length is not the listing's.
        SourceUnavailable: if neither gives a length: a cut could not be told from the end.
    """
    announced = reply.headers.get("content-length", "")
    size_bytes = int(announced) if announced.isdecimal() else file.size_bytes
    if size_bytes is None:
        raise SourceUnavailable(f"{file.url}: neither the reply nor the listing gives a length; use a server that does")
    if file.size_bytes not in (None, size_bytes):
        raise CorruptDump(
            f"{file.name}: the server offers {size_bytes:,} bytes, the listing {file.size_bytes:,}: run again later"
        )
    return Note(
        url=file.url,
        etag=reply.headers.get("etag"),
        last_modified=reply.headers.get("last-modified"),
        validator=_strong_validator(reply.headers),
        size_bytes=size_bytes,
    )


def _strong_validator(headers: Mapping[str, str]) -> str | None:
    """What If-Range may say: a strong ETag, or a date well before the reply, since when nothing changed."""
    etag, modified, now = headers.get("etag", ""), headers.get("last-modified", ""), http_date(headers.get("date", ""))
    if etag:
        return etag if re.fullmatch(r'"[^"]*"', etag) else None
    when = http_date(modified)
    return modified if when and now and (now - when).total_seconds() >= 60 else None


def _content_range(reply: httpx.Response) -> tuple[int | None, int | None]:
    """The first byte and the total length that a 206 or 416 reply names."""
    match = _RANGE.fullmatch(reply.headers.get("content-range", ""))
    if match is None:
        return None, None
    return int(match[1]) if match[1] else None, int(match[3])


def _continues(reply: httpx.Response, partial: PartialFile, note: Note) -> bool:
    """Whether a 206 reply goes on where the partial file ends, in the same edition.

    A reply to If-Range must repeat the ETag; it may leave out Last-Modified.
    """
    same_etag = reply.headers.get("etag") == note.etag
    same_date = reply.headers.get("last-modified", note.last_modified) == note.last_modified
    return same_etag and same_date and _content_range(reply) == (partial.size, note.size_bytes)
