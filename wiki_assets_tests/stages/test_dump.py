"""A line that cannot be read costs only itself, whatever it is."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wiki_assets.stages import dump
from wiki_assets.stages.dump import Document, DumpReader
from wiki_assets_tests.stages.dump_lines import BOM, CLASSES, action, document, pair, raw


def read(data: bytes, sizes: list[int] | None = None) -> tuple[list[Document], DumpReader]:
    """Read a decoded file, in chunks of these sizes over and over."""
    reader, chunks, start = DumpReader(), [], 0
    while sizes and start < len(data):
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(data[start : start + size])
        start += size
    return list(reader.documents(chunks or [data])), reader


def ids(documents: list[Document]) -> list[int | None]:
    return [document.page_id for document in documents]


GOOD = b"".join(map(pair, range(1, 6))), b"".join(map(pair, range(101, 106)))
GOOD_IDS = [*range(1, 6), *range(101, 106)]
classes = pytest.mark.parametrize(("bad", "reasons", "is_read"), CLASSES.values(), ids=CLASSES)


@classes
def test_a_bad_line_costs_only_itself(bad, reasons, is_read):
    documents, reader = read(GOOD[0] + bad + GOOD[1])
    assert [page_id for page_id in ids(documents) if page_id != 50] == GOOD_IDS
    assert reader.quarantined == reasons
    assert (50 in ids(documents)) == is_read


@classes
def test_a_bad_line_costs_only_itself_at_the_beginning_and_at_the_end(bad, reasons, is_read):
    documents, reader = read(bad + GOOD[0] + bad)
    assert [page_id for page_id in ids(documents) if page_id != 50] == GOOD_IDS[:5]
    assert reader.quarantined == Counter(reasons) + Counter(reasons)


@classes
def test_a_bad_line_is_counted_and_shown_where_it_stands(bad, reasons, is_read):
    documents, reader = read(GOOD[0] + bad + GOOD[1])
    assert reader.n_documents == len(documents)
    assert reader.bytes_read == len(GOOD[0] + bad + GOOD[1])
    assert Counter(line.reason for line in reader.bad_lines) == reader.quarantined
    first, last = GOOD[0].count(b"\n") + 1, (GOOD[0] + bad).count(b"\n")
    assert all(first <= line.line <= last for line in reader.bad_lines)
    assert all(len(line.start) <= 300 and len(line.detail) <= 200 for line in reader.bad_lines)


@classes
def test_bad_lines_read_alike_however_they_arrive(bad, reasons, is_read):
    data = GOOD[0] + bad + GOOD[1]
    whole, reader = read(data)
    for size in (1, 7, 1_000) if len(data) < 10_000 else (50_001,):
        pieces, again = read(data, [size])
        assert (pieces, again.bad_lines) == (whole, reader.bad_lines)


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_file_that_ends_after_an_action_says_so(end):
    documents, reader = read(GOOD[0] + action(50) + end)
    assert ids(documents) == GOOD_IDS[:5]
    assert [(line.reason, line.line) for line in reader.bad_lines] == [("no_document", 11)]


def test_a_file_may_end_without_a_newline():
    documents, reader = read(GOOD[0].rstrip(b"\n"))
    assert ids(documents) == GOOD_IDS[:5]
    assert not reader.quarantined


@pytest.mark.parametrize("data", [b"", b"\n", b"\r\n\r\n"])
def test_an_empty_file_holds_nothing(data):
    assert read(data)[0] == []


def test_of_a_key_written_twice_the_last_counts():
    [found], _ = read(action(50) + b"\n" + raw(50, "title", b'"Last"'))
    assert found.title == "Last"


@pytest.mark.parametrize("text", [None, "", " "])
def test_a_page_without_text_is_a_document(text):
    [found], reader = read(pair(50, text=text))
    assert found.text == text
    assert not reader.quarantined


def test_a_field_that_we_can_do_without_is_dropped_alone():
    [found], _ = read(pair(50, category="Animals", incoming_links=3, timestamp="2026-08-23T00:00:00Z"))
    assert (found.category, found.incoming_links, found.timestamp) == (None, 3, "2026-08-23T00:00:00Z")


@pytest.mark.parametrize("written", [50, "50"])
@pytest.mark.parametrize("kind", [None, "page", "_doc"])
def test_every_form_of_action_line_gives_its_page_id(written, kind):
    for own in (None, 50):
        [found], reader = read(action(written, kind) + b"\n" + document(own) + b"\n")
        assert found.page_id == 50
        assert not reader.quarantined


@pytest.mark.parametrize(
    "written", ["", "fifty", " 50", "-50", "5e1", "50.0", "٥٠", "²", "9" * 19, "9" * 20, "9" * 5_000, None]
)
def test_an_action_line_with_no_page_id_gives_none(written):
    documents, reader = read(action(written) + b"\n" + document(None) + b"\n" + GOOD[0])
    assert ids(documents) == GOOD_IDS[:5]
    assert reader.quarantined == {"not_a_page": 1}


@pytest.mark.parametrize(
    "target", [{"title": "Llama", "namespace": 0}, {"title": "Llama"}, {}, None, "Llama", {"title": 5}, {"title": None}]
)
def test_a_redirect_is_one_wherever_it_points(target):
    [found], _ = read(pair(50, page_type="redirect", redirect_target=target))
    assert found.is_redirect


# Long lines


@pytest.mark.parametrize("place", ["between", "first", "last", "last, without newline"])
@pytest.mark.parametrize("sizes", [None, [1], [100], [999], [1_000], [1_001], [5_000]], ids=str)
def test_a_line_over_the_limit_costs_only_itself(monkeypatch, place, sizes):
    monkeypatch.setattr(dump, "MAX_LINE_BYTES", 1_000)
    long = pair(50, text="x" * 3_000)
    before, after = {"between": GOOD, "first": (b"", GOOD[0])}.get(place, (GOOD[0], b""))
    data = before + long + after
    documents, reader = read(data.removesuffix(b"\n") if "without" in place else data, sizes)
    assert ids(documents) == (GOOD_IDS if place == "between" else GOOD_IDS[:5])
    assert reader.quarantined == {"too_long": 1}


def test_a_line_just_within_the_limit_is_read(monkeypatch):
    data = pair(50, text="x" * 3_000)
    monkeypatch.setattr(dump, "MAX_LINE_BYTES", len(data) - len(action(50)) - 2)
    assert ids(read(data, [100])[0]) == [50]
    monkeypatch.setattr(dump, "MAX_LINE_BYTES", dump.MAX_LINE_BYTES - 1)
    assert ids(read(data, [100])[0]) == []


# Whatever arrives

BAD = b"".join(bad for bad, _, _ in CLASSES.values() if len(bad) < 2_000)
junk_lines = (
    st.binary(max_size=40)
    | st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | st.sampled_from(BAD.split(b"\n"))
    | st.recursive(st.none() | st.integers() | st.text(), lambda v: st.dictionaries(st.text(), v)).map(
        lambda v: json.dumps(v).encode()
    )
)


@given(sizes=st.lists(st.integers(1, 5_000), min_size=1, max_size=20))
def test_chunk_boundaries_never_matter(sizes):
    data = GOOD[0] + BAD + GOOD[1]
    whole, reader = read(data)
    pieces, again = read(data, sizes)
    assert pieces == whole
    assert again == reader


@given(
    junk=st.lists(st.lists(junk_lines.map(lambda line: line.replace(b"\n", b"")), max_size=3), min_size=11, max_size=11)
)
def test_junk_between_pages_loses_none_of_them(junk):
    pairs = [pair(page_id) for page_id in range(1001, 1011)]
    woven = b"".join(
        b"".join(line + b"\n" for line in lines) + good for lines, good in zip(junk, [*pairs, b""], strict=True)
    )
    documents, reader = read(woven)
    assert [page_id for page_id in ids(documents) if page_id in range(1001, 1011)] == list(range(1001, 1011))
    assert reader.n_documents == len(documents)
    assert reader.quarantined.total() == len(reader.bad_lines)
    lines = [line.removeprefix(BOM).rstrip(b"\r") for line in woven.split(b"\n")]
    n_lines, n_actions = sum(map(bool, lines)), sum(line.replace(b" ", b"").startswith(b'{"index"') for line in lines)
    assert n_lines - n_actions <= len(documents) + len(reader.bad_lines) <= n_lines


@given(
    junk=st.lists(
        st.tuples(st.integers(0, 20), st.text(min_size=1).filter(lambda text: "\n" not in text and "\r" not in text))
    )
)
def test_each_junk_line_is_counted_once_even_between_an_action_and_its_document(junk):
    lines = b"".join(map(pair, range(1001, 1011))).split(b"\n")
    for place, text in sorted(junk, reverse=True):
        lines.insert(place, b"#" + text.encode("utf-8", "surrogatepass"))
    documents, reader = read(b"\n".join(lines))
    assert ids(documents) == list(range(1001, 1011))
    assert reader.quarantined.total() == len(junk)


@given(data=st.binary(max_size=500), sizes=st.lists(st.integers(1, 100), min_size=1, max_size=5))
def test_no_bytes_make_the_reader_fail(data, sizes):
    _, reader = read(data, sizes)
    assert reader.bytes_read == len(data)
