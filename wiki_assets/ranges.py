"""Ways into the middle of a packed dump file, so that many tasks can read one file.

A range is a stretch of whole lines of the unpacked file that begins with an action line. It is measured while the
strict reader unpacks the file once, from its first byte to its last, and its SHA-256 is kept: so it does not matter
how a task gets to a range. What it reads there is those very bytes, or an error.

Ways in: the beginning of a stream (bzip2) or member (gzip); within a gzip member, a restart point, which is the first
bit of a deflate block and the 32 KiB of text before it; else the beginning of the file, reading over what comes
before. Restart points only save time: they lie beside the file, and may be lost.

Source: RFC 1951 §2 (blocks; distances of at most 32 KiB), RFC 1952 §2.2 (members).
"""

import hashlib
import logging
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import msgspec

from wiki_assets.compression import DAMAGED, READ_BYTES, decoded_chunks, raw_inflater
from wiki_assets.errors import CorruptDump

logger = logging.getLogger(__name__)

WINDOW_BYTES = 32 << 10
_CUT = b'\n{"index"'  # between a line and the action line after it
_CHUNK_BYTES = 1 << 20


class Range(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of a dump file. All but `packed` count in the unpacked file.

    `packed` is where a stream begins in the file as it lies, and `begins` is the first byte of that stream's text;
    `start` is the range's own first byte, not before it. `line` lines come before the range.
    """

    start: int
    size_bytes: int
    line: int
    lines: int
    sha256: str
    packed: int
    begins: int


class Restart(msgspec.Struct, frozen=True, kw_only=True):
    """A deflate block in a gzip member: its first bit in the file, the first byte of its text, and the text before."""

    bit: int
    start: int
    window: bytes


class Survey:
    """Measures ranges, while a file is unpacked from its first byte to its last."""

    def __init__(self, range_bytes: int) -> None:
        """Args: range_bytes: of text, at least, for each range but the last."""
        self._range_bytes = max(range_bytes, 1)
        self._streams: list[tuple[int, int]] = []  # packed offset, first byte of text
        self._fed = 0
        self._held = b""  # the end of what was fed: a cut may go through it
        self._ranges: list[Range] = []
        self._begin_range(0, 0)

    def stream(self, packed: int) -> None:
        """A stream begins at this byte of the file; its text is fed next."""
        self._streams.append((packed, self._fed))

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of text."""
        self._fed += len(chunk)
        data, done = self._held + chunk, 0
        while (at := data.find(_CUT, done + max(0, self._range_bytes - self._size))) >= 0:
            self._take(data, done, at + 1)
            self._end_range()
            done = at + 1
        keep = max(done, len(data) - len(_CUT) + 1)
        self._take(data, done, keep)
        self._held = data[keep:]

    def ranges(self) -> list[Range]:
        """The file's ranges, once all of it was fed. Empty where there is one only, or no way in but the first."""
        self._take(self._held, 0, len(self._held))
        self._held = b""
        if self._size:
            self._end_range()
        return self._ranges if len(self._ranges) > 1 else []

    @property
    def streams(self) -> int:
        """How many streams the file has."""
        return len(self._streams)

    def _begin_range(self, start: int, line: int) -> None:
        self._start, self._line, self._size, self._lines, self._sha256 = start, line, 0, 0, hashlib.sha256()

    def _take(self, data: bytes, begin: int, end: int) -> None:
        self._sha256.update(memoryview(data)[begin:end])
        self._lines += data.count(b"\n", begin, end)
        self._size += end - begin

    def _end_range(self) -> None:
        packed, begins = self._streams[bisect_right(self._streams, self._start, key=lambda stream: stream[1]) - 1]
        self._ranges.append(
            Range(
                start=self._start,
                size_bytes=self._size,
                line=self._line,
                lines=self._lines,
                sha256=self._sha256.hexdigest(),
                packed=packed,
                begins=begins,
            )
        )
        self._begin_range(self._start + self._size, self._line + self._lines)


def range_chunks(source: IO[bytes], name: str, wanted: Range, restarts: Sequence[Restart] = ()) -> Iterator[bytes]:
    """Unpack one range of a file, by the shortest way in.

    Args:
        source: the packed file, which can be read from anywhere.
        name: the file's name, ending .bz2 or .gz.
        wanted: what to read.
        restarts: ways into the file, in order.

    Yields:
        The range's text, in order. What was yielded is good only once the iterator has ended.

    Raises:
        CorruptDump: if it is not, byte for byte, what was measured.
    """
    where = f"{name}: the {wanted.size_bytes:,} bytes of text from {wanted.start:,} on"
    before = bisect_right(restarts, wanted.start, key=lambda restart: restart.start)
    if before and restarts[before - 1].start > wanted.begins:
        at, chunks = restarts[before - 1].start, _inflated(source, where, restarts[before - 1])
    else:
        source.seek(wanted.packed)
        at, chunks = wanted.begins, decoded_chunks(source, name, _CHUNK_BYTES)
    sha256, size = hashlib.sha256(), 0
    for chunk in chunks:
        begin = max(0, wanted.start - at)
        piece = chunk[begin : begin + wanted.size_bytes - size]
        at += len(chunk)
        if piece:
            sha256.update(piece)
            size += len(piece)
            yield piece
        if size == wanted.size_bytes:
            break
    if size != wanted.size_bytes or sha256.hexdigest() != wanted.sha256:
        raise CorruptDump(f"{where} are not what was fetched ({size:,} found): delete the file, materialize raw_dump")


def _inflated(source: IO[bytes], where: str, restart: Restart) -> Iterator[bytes]:
    """The text of a gzip member from a restart point on, to the member's end."""
    first_byte, shift = divmod(restart.bit, 8)
    source.seek(first_byte)
    inflater = raw_inflater(restart.window)
    carry = source.read(1)
    try:
        while not inflater.eof and carry:
            data = carry + source.read(READ_BYTES)
            # a block may begin within a byte: everything moves down by so many bits, and the last byte waits
            moved = (int.from_bytes(data, "little") >> shift).to_bytes(len(data), "little")
            packed, carry = (moved[:-1], data[-1:]) if len(data) > 1 else (moved, b"")
            while packed and not inflater.eof:
                yield inflater.decompress(packed, _CHUNK_BYTES)
                packed = inflater.unconsumed_tail
    except DAMAGED as error:
        raise CorruptDump(f"{where}: damaged ({error}): delete the file, then materialize raw_dump") from None


def find_restarts(path: Path, ranges: Sequence[Range], check: Callable[[], object] = lambda: None) -> list[Restart]:
    """Restart points for the ranges of a gzip file of one member: for each the last one before it.

    Args:
        path: the file, whole and good.
        ranges: of the file.
        check: called now and then, to raise.

    Returns:
        Points in order; none where they cannot be found, which costs time, not text.
    """
    try:
        from rapidgzip import RapidgzipFile
    except ImportError:
        logger.warning("%s: no restart points, since rapidgzip is not installed: its ranges take longer", path.name)
        return []
    try:
        with RapidgzipFile(str(path), parallelization=1) as file:
            size = 0
            while chunk := file.read(_CHUNK_BYTES):
                check()
                size += len(chunk)
            blocks = sorted((start, bit) for bit, start in file.block_offsets().items())
            if size != ranges[-1].start + ranges[-1].size_bytes:
                raise ValueError(f"it unpacks to {size:,} bytes")
            wanted = {blocks[bisect_right(blocks, (range_.start, 1 << 62)) - 1] for range_ in ranges}
            found = []
            for start, bit in sorted(wanted):
                if start:
                    begin = max(0, start - WINDOW_BYTES)
                    file.seek(begin)
                    found.append(Restart(bit=bit, start=start, window=file.read(start - begin)))
            return found
    except (RuntimeError, ValueError, OSError) as error:  # the strict reader has found nothing wrong with the file
        logger.warning("%s: no restart points (%s): its ranges take longer", path.name, error)
        return []


def packed_restarts(restarts: Sequence[Restart]) -> bytes:
    """Restart points as they are kept beside a file."""
    return zlib.compress(msgspec.msgpack.encode(restarts))


def unpacked_restarts(data: bytes) -> list[Restart]:
    """Restart points as `packed_restarts` wrote them.

    Raises:
        ValueError: if it did not write this.
    """
    try:
        return msgspec.msgpack.decode(zlib.decompress(data), type=list[Restart])
    except (zlib.error, msgspec.DecodeError) as error:
        raise ValueError(f"no restart points: {error}") from None
