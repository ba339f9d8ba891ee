"""Unpack dump files strictly: every byte is accounted for, or the file is refused.

Published files may be several streams (bzip2) or members (gzip) laid end to end. The readers of the standard
library forgive too much for us: `bz2.open` ends quietly at a damaged later stream.

Source: RFC 1952 for gzip; the bzip2 1.0.8 manual.
"""

import bz2
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, Protocol, cast

from wiki_assets.errors import BadRequest, CorruptDump

try:
    from isal import isal_zlib as _gzip
except ImportError:  # the same interface, about three times slower
    _gzip = zlib

READ_BYTES = 1 << 17
DAMAGED: tuple[type[Exception], ...] = (OSError, EOFError, ValueError, zlib.error, cast(type[Exception], _gzip.error))
_MAGIC = {".bz2": b"BZh", ".gz": b"\x1f\x8b"}


class _Stream(Protocol):
    """One stream being unpacked: the interface of `bz2.BZ2Decompressor`."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _GzipMember:
    """A gzip member, unpacked and checked against its own CRC and length."""

    def __init__(self) -> None:
        self._inner = _gzip.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


def decoded_chunks(
    source: IO[bytes], name: str, chunk_bytes: int = 1 << 20, on_stream: Callable[[int], object] = lambda offset: None
) -> Iterator[bytes]:
    """Unpack a dump file from its first byte to its last, in bounded memory.

    Args:
        source: the packed bytes, at their beginning; read to the end.
        name: the file's name, ending .bz2 or .gz: chooses the format and appears in errors.
        chunk_bytes: no chunk is longer, however small the input that unpacks to it.
        on_stream: told where each stream begins in the packed file, before its first chunk.

    Yields:
        The unpacked bytes, in order; never an empty chunk.

    Raises:
        BadRequest: if `name` ends otherwise.
        CorruptDump: naming file, stream and offset, if the file is empty, cut, damaged, or goes on after its
            last stream with anything but the zero padding that gzip allows.
    """
    magic = _magic(name)
    pending, number, offset = b"", 0, 0  # bytes read but not unpacked; streams begun; where `pending` starts
    while True:
        while len(pending) < len(magic) and (more := source.read(READ_BYTES)):
            pending += more
        if number and not pending:
            return
        if number and magic == _MAGIC[".gz"] and pending[0] == 0:
            return _require_padding(source, pending, name, offset)
        if number and not pending.startswith(magic):
            raise CorruptDump(
                f"{name}: {pending[:8]!r} at byte {offset:,}, after the end of stream {number}; "
                f"expected the end of the file or another stream ({magic!r}): refetch it"
            )
        require_magic(pending, name)
        number += 1
        on_stream(offset)
        stream: _Stream = bz2.BZ2Decompressor() if magic == _MAGIC[".bz2"] else _GzipMember()
        where = f"{name}: stream {number}, which begins at byte {offset:,},"
        offset += len(pending)
        while not stream.eof:
            at_end = False
            if not pending and stream.needs_input:
                pending = source.read(READ_BYTES)
                offset += len(pending)
                at_end = not pending
            try:
                chunk = stream.decompress(pending, chunk_bytes)
            except DAMAGED as error:
                raise CorruptDump(f"{where} is damaged before byte {offset:,} ({error}): refetch it") from None
            pending = b""
            if chunk:
                yield chunk
            elif at_end and not stream.eof:
                raise CorruptDump(f"{where} is cut: the file ends at byte {offset:,}: refetch it")
        pending = stream.unused_data
        offset -= len(pending)


def raw_inflater(window: bytes) -> Any:
    """What goes on unpacking a deflate stream at the first byte of a block.

    Args:
        window: the text before that block: 32 KiB, or less where there is less.

    Returns:
        A decompression object of `zlib`'s kind; its methods raise `DAMAGED`.
    """
    return _gzip.decompressobj(wbits=-15, zdict=window)


def gzip_packer() -> Any:
    """What packs bytes into one gzip member, fast: a compression object of `zlib`'s kind."""
    return _gzip.compressobj(1, zlib.DEFLATED, 31)


def require_magic(head: bytes, name: str) -> None:
    """Refuse a file that does not begin as its name says.

    Args:
        head: its first bytes; fewer than the format's mark will do, none will not.
        name: the file's name, ending .bz2 or .gz.

    Raises:
        CorruptDump: showing how it begins, and that it looks like HTML if it does.
    """
    magic = _magic(name)
    if not head:
        raise CorruptDump(f"{name}: stream 1 at byte 0: the file is empty; expected {magic!r}: refetch it")
    if not head.startswith(magic) and not magic.startswith(head):
        looks = "it looks like an HTML page" if head.lstrip().startswith(b"<") else "another format or a damaged file"
        raise CorruptDump(f"{name}: stream 1 at byte 0 begins {head[:16]!r} ({looks}); expected {magic!r}: refetch it")


def _magic(name: str) -> bytes:
    for suffix, magic in _MAGIC.items():
        if name.endswith(suffix):
            return magic
    raise BadRequest(f"{name}: expected a name that ends .bz2 or .gz")


def _require_padding(source: IO[bytes], pending: bytes, name: str, offset: int) -> None:
    """Read to the end, which must be zeros only."""
    while pending:
        if rest := pending.lstrip(b"\0"):
            at = offset + len(pending) - len(rest)
            raise CorruptDump(
                f"{name}: {rest[:8]!r} at byte {at:,}, after the padding of the last stream; expected the end: refetch"
            )
        offset += len(pending)
        pending = source.read(READ_BYTES)
