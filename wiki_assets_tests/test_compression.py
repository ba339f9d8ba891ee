"""Dump files are unpacked whole, or refused with the place where they go wrong."""

import bz2
import gzip
import io
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wiki_assets import compression
from wiki_assets.compression import decoded_chunks
from wiki_assets.errors import BadRequest, CorruptDump

PACKERS = {"x.json.bz2": bz2.compress, "x.json.gz": gzip.compress}
names = pytest.mark.parametrize("name", PACKERS)
TEXT = b"".join(b'{"index":{"_id":%d}}\n{"page_id":%d,"text":"line %d"}\n' % (n, n, n * n) for n in range(2000))


class Dribble(io.BytesIO):
    """A source that hands out `step` bytes a read, as a pipe may."""

    def __init__(self, data: bytes, step: int) -> None:
        super().__init__(data)
        self.step = step

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(self.step)


def unpack(data: bytes, name: str, chunk_bytes: int = 1 << 20) -> bytes:
    return b"".join(decoded_chunks(io.BytesIO(data), name, chunk_bytes))


@names
@settings(max_examples=60, deadline=None)
@given(
    streams=st.lists(st.binary(max_size=300), min_size=1, max_size=5),
    step=st.integers(1, 400),
    chunk_bytes=st.integers(1, 400),
)
def test_streams_end_to_end_unpack_to_their_texts_end_to_end(name, streams, step, chunk_bytes):
    packed = b"".join(map(PACKERS[name], streams))
    chunks = list(decoded_chunks(Dribble(packed, step), name, chunk_bytes))
    assert b"".join(chunks) == b"".join(streams)
    assert all(0 < len(chunk) <= chunk_bytes for chunk in chunks)


@names
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_file_cut_anywhere_but_between_streams_is_refused(name, data):
    one, two = PACKERS[name](TEXT[:3000]), PACKERS[name](TEXT[3000:5000])
    cut = data.draw(st.integers(0, len(one + two) - 1).filter(lambda n: n != len(one)))
    with pytest.raises(CorruptDump, match=r"x\.json.*(stream|byte)"):
        unpack((one + two)[:cut], name)


@names
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_changed_bit_never_changes_the_text_unnoticed(name, data):
    packed = bytearray(PACKERS[name](TEXT[:3000]) + PACKERS[name](TEXT[3000:5000]))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        text = unpack(bytes(packed), name)
    except CorruptDump:
        return
    assert text == TEXT[:5000]  # a bit that carries nothing, such as the date in a gzip header


@names
def test_damage_in_a_later_stream_names_that_stream_and_where_it_begins(name):
    one, two = PACKERS[name](TEXT), bytearray(PACKERS[name](TEXT))
    two[len(two) // 2] ^= 0xFF
    with pytest.raises(CorruptDump, match=rf"x\.json.*: stream 2, which begins at byte {len(one):,}, is damaged"):
        unpack(one + bytes(two), name)


@names
def test_a_cut_in_a_later_stream_says_where_the_file_ends(name):
    one = PACKERS[name](TEXT)
    packed = one + one[:-3]
    with pytest.raises(
        CorruptDump, match=rf"stream 2, which begins at byte {len(one):,}, is cut: .* ends at byte {len(packed):,}"
    ):
        unpack(packed, name)


@names
@pytest.mark.parametrize("garbage", [b"x", b"B", b"\x1f", b"<html>", b"\0\0x", b"PK\x03\x04" * 99])
def test_garbage_after_the_last_stream_is_refused(name, garbage):
    packed = PACKERS[name](TEXT)
    with pytest.raises(CorruptDump, match="after|is cut"):
        unpack(packed + garbage, name)


def test_zero_padding_ends_a_gzip_file_but_not_a_bzip2_file():
    padding = bytes(3 * compression.READ_BYTES)
    assert unpack(gzip.compress(TEXT) + padding, "x.gz") == TEXT
    with pytest.raises(CorruptDump, match=r"b'x' at byte .* after the padding"):
        unpack(gzip.compress(TEXT) + padding + b"x", "x.gz")
    with pytest.raises(CorruptDump, match="after the end of stream 1"):
        unpack(bz2.compress(TEXT) + b"\0", "x.bz2")


@names
def test_an_empty_file_is_refused(name):
    with pytest.raises(CorruptDump, match="empty"):
        unpack(b"", name)


@names
def test_a_web_page_is_recognised(name):
    with pytest.raises(CorruptDump, match="looks like an HTML page"):
        unpack(b"\n<!DOCTYPE html><html>busy</html>", name)


def test_another_kind_of_file_is_a_bad_request():
    with pytest.raises(BadRequest, match="ends .bz2 or .gz"):
        unpack(b"", "x.zip")


@pytest.mark.parametrize("name", ["x.bz2", "x.gz"])
def test_a_bomb_is_unpacked_a_chunk_at_a_time(name):
    if name == "x.bz2":
        bomb = bz2.compress(bytes(24 << 20))
    else:
        packer = zlib.compressobj(9, wbits=31)
        bomb = packer.compress(bytes(24 << 20)) + packer.flush()
    tracemalloc.start()
    size = sum(len(chunk) for chunk in decoded_chunks(io.BytesIO(bomb), name, 1 << 16))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size == 24 << 20
    assert peak < 12 << 20  # bzip2 itself holds about 4 MB


def test_without_isal_gzip_is_read_as_strictly(monkeypatch):
    monkeypatch.setattr(compression, "_gzip", zlib)
    packed = gzip.compress(TEXT)
    assert unpack(packed + packed, "x.gz", chunk_bytes=100) == TEXT + TEXT
    with pytest.raises(CorruptDump, match="is cut"):
        unpack(packed[:-1], "x.gz")
    with pytest.raises(CorruptDump, match="is damaged"):
        unpack(packed[:-8] + bytes(8), "x.gz")
