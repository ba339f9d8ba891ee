"""Ranges of a packed dump file: read one by one they are the file, or an error, whatever the way in."""

import bz2
import gzip
import io
import itertools
import random
import zlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wiki_assets.compression import decoded_chunks
from wiki_assets.errors import CorruptDump
from wiki_assets.ranges import (
    Range,
    Restart,
    Survey,
    find_restarts,
    packed_restarts,
    range_chunks,
    unpacked_restarts,
)
from wiki_assets.stages.dump import DumpReader
from wiki_assets_tests.stages.dump_lines import pair


def survey_of(packed: bytes, name: str, range_bytes: int, chunk_bytes: int = 1 << 20) -> tuple[list[Range], int]:
    """The ranges of a packed file, and how many streams it has."""
    survey = Survey(range_bytes)
    for chunk in decoded_chunks(io.BytesIO(packed), name, chunk_bytes, survey.stream):
        survey.feed(chunk)
    return survey.ranges(), survey.streams


def read(packed: bytes, name: str, wanted: Range, restarts=()) -> bytes:
    return b"".join(range_chunks(io.BytesIO(packed), name, wanted, restarts))


LINES = st.one_of(
    st.integers(1, 40).map(lambda n: pair(n, text="x" * n)),
    st.sampled_from(
        [b"\n", b"\r\n", b'{"index"', b'{"index":{"_id":7}}\n', b'{"title":"no id"}\n', b"garbage\n", b'"\n{"inde']
    ),
    st.binary(max_size=12),
)


@settings(max_examples=200)
@example(b'{"index":{"_id":7}}\n{"index"', 1, 1, [], ("x.json.gz", gzip.compress))  # cut in the next action line
@given(
    st.lists(LINES, max_size=30).map(b"".join),
    st.integers(1, 200),
    st.integers(1, 64),
    st.lists(st.integers(0, 2_000), max_size=4),
    st.sampled_from([("x.json.gz", gzip.compress), ("x.json.bz2", bz2.compress)]),
)
def test_ranges_are_the_file_in_whole_lines_with_the_same_ledger(text, range_bytes, chunk_bytes, cuts, form):
    name, pack = form
    ends = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    packed = b"".join(pack(text[a:b]) for a, b in itertools.pairwise(ends))
    ranges, streams = survey_of(packed, name, range_bytes, chunk_bytes)
    assert streams == len(ends) - 1
    if not ranges:
        return
    parts = [read(packed, name, wanted) for wanted in ranges]
    assert b"".join(parts) == text
    assert all(part.startswith(b'{"index"') and len(part) >= range_bytes for part in parts[1:-1])
    whole, apart = DumpReader(), [DumpReader(lines_before=wanted.line) for wanted in ranges]
    documents = [d.page_id for d in whole.documents([text])]
    assert [d.page_id for reader, part in zip(apart, parts, strict=True) for d in reader.documents([part])] == documents
    bad = [line for reader in apart for line in reader.bad_lines]
    assert [(b.reason, b.line, b.start) for b in bad] == [(b.reason, b.line, b.start) for b in whole.bad_lines]
    assert sum(r.lines for r in ranges) == text.count(b"\n")


@pytest.fixture(scope="module")
def big() -> bytes:
    """Text of a dump that is worth several restart points: 24 MB, packed by gzip into one member."""
    dice = random.Random(1)
    words = [dice.randbytes(4).hex() for _ in range(2_000)]
    return b"".join(pair(n, text=" ".join(dice.choices(words, k=120))) for n in range(1, 20_001))


@pytest.fixture(scope="module")
def member(big) -> bytes:
    return gzip.compress(big, 6)


@pytest.fixture(scope="module")
def surveyed(member, tmp_path_factory) -> tuple[list[Range], list[Restart]]:
    path = tmp_path_factory.mktemp("member") / "x.json.gz"
    path.write_bytes(member)
    ranges, streams = survey_of(member, path.name, 3 << 20)
    assert streams == 1
    return ranges, find_restarts(path, ranges)


class Counted(io.BytesIO):
    """A file that counts what is read of it."""

    n_read = 0

    def read(self, size=-1):
        data = super().read(size)
        self.n_read += len(data)
        return data


def test_a_range_in_one_member_is_read_from_its_restart_point(member, surveyed, big):
    ranges, restarts = surveyed
    restarts = unpacked_restarts(packed_restarts(restarts))
    assert len(ranges) >= 7 and len(restarts) >= 3
    files = [Counted(member) for _ in ranges]
    parts = [
        b"".join(range_chunks(file, "x.json.gz", wanted, restarts)) for file, wanted in zip(files, ranges, strict=True)
    ]
    assert b"".join(parts) == big
    assert files[-1].n_read < len(member) / 2, "the last range reads over the first"


def test_without_restart_points_a_range_is_read_from_the_beginning(member, surveyed, big):
    wanted = surveyed[0][-1]
    assert read(member, "x.json.gz", wanted) == big[wanted.start :]


@pytest.mark.parametrize("entry", ["restart", "beginning"])
def test_a_changed_bit_in_a_range_is_an_error(member, surveyed, big, entry):
    ranges, restarts = surveyed
    dice, silent, found = random.Random(2), 0, 0
    for _ in range(12):
        at = dice.randrange(len(member) // 2, len(member) - 40)
        damaged = bytearray(member)
        damaged[at] ^= 1 << dice.randrange(8)
        for wanted in ranges[len(ranges) // 2 :]:
            try:
                data = read(bytes(damaged), "x.json.gz", wanted, restarts if entry == "restart" else ())
                silent += data != big[wanted.start : wanted.start + wanted.size_bytes]
            except CorruptDump:
                found += 1
    assert silent == 0
    assert found >= 12


def test_wrong_restart_points_give_no_wrong_text(member, surveyed):
    ranges, restarts = surveyed
    wrong = [
        Restart(bit=r.bit + 1, start=r.start, window=r.window) for r in restarts
    ], [
        Restart(bit=r.bit, start=r.start, window=r.window[::-1]) for r in restarts
    ], [Restart(bit=r.bit, start=r.start + 1, window=r.window) for r in restarts]  # fmt: skip
    for points in wrong:
        with pytest.raises(CorruptDump):
            read(member, "x.json.gz", ranges[-1], points)


def test_a_file_that_is_cut_is_an_error(member, surveyed):
    ranges, restarts = surveyed
    for points in ((), restarts):
        with pytest.raises(CorruptDump):
            read(member[: len(member) - 5_000], "x.json.gz", ranges[-1], points)


def test_what_no_index_can_be_made_of_has_no_restart_points(tmp_path, surveyed):
    path = tmp_path / "x.json.gz"
    path.write_bytes(b"no gzip at all" * 100)
    assert find_restarts(path, surveyed[0]) == []
    with pytest.raises(ValueError, match="no restart points"):
        unpacked_restarts(zlib.compress(b"\xff"))
