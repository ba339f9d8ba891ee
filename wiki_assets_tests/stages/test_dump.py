"""A line that cannot be read costs only itself, whatever it is."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wiki_assets.stages import dump
from wiki_assets.stages.dump import Document, DumpReader


def action(page_id: int | str, kind: str | None = None) -> bytes:
    return json.dumps({"index": ({"_type": kind} if kind else {}) | {"_id": page_id}}, separators=(",", ":")).encode()


def document(page_id: int | None, **fields: object) -> bytes:
    given_id = {} if page_id is None else {"page_id": page_id}
    whole = (
        given_id | {"title": f"Page {page_id}", "namespace": 0, "text": f"Text of {page_id}.", "version": 7} | fields
    )
    return json.dumps(whole).encode()


def raw(page_id: int, name: str, value: bytes) -> bytes:
    """A document with one field written as it stands."""
    return document(page_id)[:-1] + b', "%s": %s}' % (name.encode(), value)


def pair(page_id: int, **fields: object) -> bytes:
    return action(page_id) + b"\n" + document(page_id, **fields) + b"\n"


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
ACTION = action(50) + b"\n"
DEEP = b"[" * 100_000 + b"]" * 100_000

# name -> (what stands between good pages, the reasons counted for it, whether page 50 is read nevertheless)
CLASSES: dict[str, tuple[bytes, dict[str, int], bool]] = {
    "garbage": (b"#### no JSON ####\n", {"bad_json": 1}, False),
    "binary garbage": (bytes(range(256)).replace(b"\n", b"") + b"\n", {"bad_text": 1}, False),
    "garbage between an action and its document": (ACTION + b"####\n" + document(50) + b"\n", {"bad_json": 1}, True),
    "a document cut in half": (ACTION + document(50)[:40] + b"\n", {"bad_json": 1}, False),
    "a cut action line": (b'{"index":{"_id":\n' + document(50) + b"\n", {"bad_json": 1}, True),
    "no index line": (document(50) + b"\n", {}, True),
    "neither index line nor page id": (document(None) + b"\n", {"no_action": 1}, False),
    "two actions": (action(49) + b"\n" + ACTION + document(50) + b"\n", {"no_document": 1}, True),
    "an action of another page": (action(49) + b"\n" + document(50) + b"\n", {"no_document": 1}, True),
    "a document written twice": (ACTION + (document(50) + b"\n") * 2, {}, True),
    "CRLF": (pair(50).replace(b"\n", b"\r\n"), {}, True),
    "blank lines": (b"\n\n" + ACTION + b"\r\n\n" + document(50) + b"\n\n", {}, True),
    "a byte order mark": (b"\xef\xbb\xbf" + pair(50), {"bad_json": 1}, True),
    "invalid UTF-8 in the text": (ACTION + raw(50, "text", b'"caf\xe9"') + b"\n", {"bad_text": 1}, False),
    "invalid UTF-8 in a field of no interest": (ACTION + raw(50, "source_text", b'"caf\xe9"') + b"\n", {}, True),
    "invalid UTF-8 in the action": (b'{"index":{"_id":"\xe9"}}\n' + document(50) + b"\n", {"bad_json": 1}, True),
    "a NUL byte": (ACTION + raw(50, "text", b'"a\0b"') + b"\n", {"bad_json": 1}, False),
    "an escaped NUL": (pair(50, text="a\0b"), {}, True),
    "NUL bytes as a line": (b"\0" * 512 + b"\n", {"bad_json": 1}, False),
    "half a surrogate pair in the text": (pair(50, text="\ud800"), {"bad_text": 1}, False),
    "half a surrogate pair in the title": (pair(50, title="\udfff"), {"bad_text": 1}, False),
    "half a surrogate pair in a field of no interest": (pair(50, source_text="\ud800"), {}, True),
    "deep JSON": (DEEP + b"\n", {"bad_json": 1}, False),
    "deep JSON in a document": (ACTION + raw(50, "x", DEEP) + b"\n", {"bad_json": 1}, False),
    "deep JSON in an action": (b'{"index":' + DEEP + b"}\n" + document(50) + b"\n", {"bad_json": 1}, True),
    "a revision of 5,000 digits": (ACTION + raw(50, "version", b"1" * 5_000) + b"\n", {"bad_json": 1}, False),
    "5,000 digits in a field of no interest": (ACTION + raw(50, "x", b"1" * 5_000) + b"\n", {}, True),
    "a revision that no column can hold": (pair(50, version=2**70), {"bad_type": 1}, False),
    "NaN as text": (ACTION + raw(50, "text", b"NaN") + b"\n", {"bad_type": 1}, False),
    "NaN as popularity": (ACTION + raw(50, "popularity_score", b"NaN") + b"\n", {}, True),
    "a page id of another type": (
        ACTION + document(50).replace(b'"page_id": 50', b'"page_id": "fifty"') + b"\n",
        {"bad_type": 1},
        False,
    ),
    "a number as text": (pair(50, text=17), {"bad_type": 1}, False),
    "a list as title": (pair(50, title=["Page"]), {"bad_type": 1}, False),
    "no title": (pair(50, title=None), {"bad_type": 1}, False),
    "a namespace of another type": (pair(50, namespace="0"), {"bad_type": 1}, False),
    "categories of another type": (pair(50, category="Animals"), {}, True),
    "redirects of another type": (pair(50, redirect=[1, 2]), {}, True),
    "links of another type": (pair(50, incoming_links="many"), {}, True),
    "a list for a document": (ACTION + b"[1, 2]\n", {"not_a_page": 1}, False),
    "a string for a document": (ACTION + b'"page"\n', {"not_a_page": 1}, False),
    "a search request": (
        action("AVQXnGH_62ew") + b'\n{"query":{"match":{"all":"x"}},"size":20}\n',
        {"not_a_page": 1},
        False,
    ),
    "page id 0": (action(0) + b"\n" + document(0) + b"\n", {"not_a_page": 1}, False),
    "a negative page id": (action(-5) + b"\n" + document(-5) + b"\n", {"not_a_page": 1}, False),
    "a page id beyond 63 bits": (action(2**63) + b"\n" + document(2**63) + b"\n", {"not_a_page": 1}, False),
}
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
    n_lines = sum(bool(line.rstrip(b"\r")) for line in woven.split(b"\n"))
    n_actions = sum(line.startswith(b'{"index"') for line in woven.split(b"\n"))
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
