"""Rows of a table to documents: every row is one, or is counted with its reason."""

import bz2
import gzip
import io
import json
from collections import Counter
from datetime import UTC, date, datetime, timedelta, timezone

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wiki_assets.errors import BadRequest, CorruptDump
from wiki_assets.stages.dump import DumpReader
from wiki_assets.stages.tables import (
    FIELDS,
    HUB,
    LeftOut,
    TableCounts,
    complete_mapping,
    documents_of,
    open_table,
    page_id_of,
    read_mapping,
    to_document,
)

PLAIN = {"page_id": "id", "title": "title", "text": "text"}


def lines(*rows, end: bytes = b"\n") -> bytes:
    return b"".join(json.dumps(row).encode() + end for row in rows)


def parquet(table: pa.Table, **options) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, **options)
    return out.getvalue()


def arrow(table: pa.Table, form=pa.ipc.new_stream) -> bytes:
    out = io.BytesIO()
    with form(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return out.getvalue()


def read(data: bytes, name: str, **given) -> tuple[list[dict], TableCounts, list[LeftOut]]:
    """The documents of a table, the counts, and what was left out."""
    table, counts, left = open_table(io.BytesIO(data), name), TableCounts(), []
    mapping = complete_mapping(given, table.columns, name)
    found = list(documents_of(table.rows(mapping), mapping, counts, left.append))
    assert counts.rows == counts.documents + counts.left_out.total()
    assert (len(found), len(left)) == (counts.documents, counts.left_out.total())
    return found, counts, left


ROWS = [
    {"id": "12", "url": "https://x/12", "title": "Llama", "text": "A llama.\n\nIt spits."},
    {"id": "13", "url": "https://x/13", "title": "Alpaca", "text": "An alpaca."},
    {"id": "x-1", "url": None, "title": "Vicuña", "text": "A vicuña."},
]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", lines(*ROWS)),
        ("a.ndjson", lines(*ROWS, end=b"\r\n\n")),
        ("a.json.gz", gzip.compress(lines(*ROWS))),
        ("a.jsonl.bz2", bz2.compress(lines(*ROWS))),
        ("a.parquet", parquet(pa.Table.from_pylist(ROWS), row_group_size=2)),
        ("a.arrow", arrow(pa.Table.from_pylist(ROWS))),
        ("b.arrow", arrow(pa.Table.from_pylist(ROWS), pa.ipc.new_file)),
    ],
)
def test_every_form_gives_the_same_documents(name, data):
    found, counts, _ = read(data, name)
    assert [d["page_id"] for d in found] == [12, 13, page_id_of("x-1")]
    assert found[0] == {
        "page_id": 12, "title": "Llama", "namespace": 0, "text": "A llama.\n\nIt spits.", "page_type": "primary",
        "url": "https://x/12",
    }  # fmt: skip
    assert "url" not in found[2] and not counts.left_out and not counts.dropped


def test_rows_without_what_a_page_needs_are_counted_by_reason():
    good = {"id": 1, "title": "T", "text": "x"}
    bad = [
        {**good, "id": None}, {**good, "id": " "}, {**good, "id": True}, {"title": "T", "text": "x"},
        {**good, "title": " "}, {**good, "title": None}, {**good, "text": ""}, {"id": 2, "title": "T"},
        {**good, "text": 7}, {**good, "title": ["a"]}, {**good, "text": {"a": 1}},
    ]  # fmt: skip
    data = lines(good, *bad) + b'{"id": 3, "title": "half\n[1, 2]\n7\n' + b'{"id":4,"title":"T","text":"\xff"}\n'
    found, counts, left = read(data, "a.jsonl")
    assert len(found) == 1
    assert counts.left_out == {"no_id": 4, "no_title": 2, "no_text": 2, "bad_type": 3, "bad_json": 4}
    assert [each.row for each in left] == list(range(2, 17)) and left[0].detail == "id = None"


def test_a_table_that_says_otherwise_is_mapped():
    rows = [{"key": {"n": 5}, "name": "Llama", "body": ["One.", "Two."], "by": "x"}]
    found, _, _ = read(lines(*rows), "a.jsonl", **read_mapping("page_id=key.n, title=name,text=body"))
    assert (found[0]["page_id"], found[0]["title"], found[0]["text"]) == (5, "Llama", "One.\nTwo.")
    found, _, _ = read(parquet(pa.Table.from_pylist(rows)), "a.parquet", page_id="key.n", title="name", text="body")
    assert (found[0]["page_id"], found[0]["title"], found[0]["text"]) == (5, "Llama", "One.\nTwo.")


def test_structured_contents_need_no_mapping():
    row = {
        "name": "Llama", "identifier": 12, "abstract": "A llama is a camelid.", "version": {"identifier": 99},
        "date_modified": "2026-08-23T10:00:00Z", "url": "https://en.wikipedia.org/wiki/Llama",
        "in_language": {"identifier": "en"}, "main_entity": {"identifier": "Q42"},
        "categories": [{"name": "Animals", "url": "https://x"}], "redirects": [{"name": "Lama", "url": "https://x"}],
        "infoboxes": [], "license": [],
        "sections": [
            {"type": "section", "name": "Abstract", "has_parts": [
                {"type": "paragraph", "value": "A llama is a camelid."}
            ]},
            {"type": "section", "name": "Life", "has_parts": [
                {"type": "paragraph", "value": "It spits."},
                {"type": "section", "name": "Wool", "has_parts": [
                    {"type": "list", "has_parts": [
                        {"type": "list_item", "value": "soft"}, {"type": "list_item", "value": "warm"}
                    ]}
                ]},
            ]},
        ],
    }  # fmt: skip
    (found,), counts, _ = read(lines(row), "enwiki_namespace_0_0.jsonl")
    assert found["text"] == "A llama is a camelid.\nIt spits.\nsoft\nwarm"
    assert (found["page_id"], found["version"], found["timestamp"]) == (12, 99, "2026-08-23T10:00:00Z")
    assert (found["language"], found["wikibase_item"], found["category"]) == ("en", "Q42", ["Animals"])
    assert found["redirect"] == [{"namespace": 0, "title": "Lama"}]
    assert not counts.dropped


def test_values_of_other_fields_that_do_not_fit_are_dropped_and_counted():
    mapping = {name: name for name in FIELDS}
    row = {"page_id": 1, "title": "T", "text": "x"}
    dropped: Counter[str] = Counter()
    for name, value in [("revision", "r7"), ("timestamp", "yesterday"), ("url", 7), ("categories", 3),
                        ("popularity_score", "nan"), ("incoming_links", 2**70), ("language", "\ud800"),
                        ("timestamp", 9), ("revision", True)]:  # fmt: skip
        assert to_document({**row, name: value}, mapping, dropped) == to_document(row, mapping, Counter())
    assert dropped == {
        **{"revision": 2, "timestamp": 2, "url": 1, "categories": 1, "popularity_score": 1, "incoming_links": 1},
        **{"language": 1},
    }


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("2026-08-23T10:00:00Z", "2026-08-23T10:00:00Z"),
        ("2026-08-23 12:00:00+02:00", "2026-08-23T10:00:00Z"),
        (datetime(2026, 8, 23, 10, 0, 0, 500), "2026-08-23T10:00:00Z"),
        (datetime(2026, 8, 23, 12, tzinfo=timezone(timedelta(hours=2))), "2026-08-23T10:00:00Z"),
        (datetime(2026, 8, 23, 10, tzinfo=UTC), "2026-08-23T10:00:00Z"),
        (date(2026, 8, 23), "2026-08-23T00:00:00Z"),
    ],
)
def test_times_are_written_as_dumps_write_them(value, written):
    row = {"id": 1, "title": "T", "text": "x", "at": value}
    found = to_document(row, {**PLAIN, "timestamp": "at"}, Counter())
    assert isinstance(found, dict) and found["timestamp"] == written


# Page ids


@given(st.integers(1, 2**63 - 1))
def test_an_id_that_is_a_page_id_stays(number):
    assert page_id_of(number) == page_id_of(str(number)) == number
    assert number >= 2**53 or page_id_of(float(number)) == number


@given(st.text(min_size=1) | st.integers(max_value=0) | st.integers(min_value=2**63) | st.binary(min_size=1))
def test_any_other_id_is_a_number_of_63_bits_always_the_same(value):
    number = page_id_of(value)
    assert number == page_id_of(value)
    assert number is None or 0 < number < 2**63


def test_ids_that_look_alike_stay_apart():
    alike = ["7", "07", "7.0", "+7", " 7", "７", "seven", "-7", 0, 7.5]
    assert len({page_id_of(value) for value in alike}) == len(alike)
    assert page_id_of("https://example.org/a") == 6_546_130_389_932_389_590
    assert [page_id_of(value) for value in (None, "", "  ", float("nan"), [], {}, True)] == [None] * 7


# What is refused before any row is read


@pytest.mark.parametrize(
    "text", ["page_id", "page_id=", "=id", "id=page_id", "page_id=a,page_id=b", "page_id=a;title=b"]
)
def test_a_mapping_that_cannot_be_is_refused(text):
    with pytest.raises(BadRequest, match="expected FIELD=COLUMN"):
        read_mapping(text)


@pytest.mark.parametrize(
    ("columns", "given", "says"),
    [
        (["id", "headline", "body"], {}, "which column is the page_id. It has id, headline, body"),
        (["id", "title", "text"], {"url": "link"}, "no column 'link'; it has id, title, text"),
        (["id", "name"], {"page_id": "id", "title": "name"}, "--map text=COLUMN"),
    ],
)
def test_a_mapping_that_does_not_fit_names_the_columns(columns, given, says):
    with pytest.raises(BadRequest, match=says):
        complete_mapping(given, columns, "a.parquet")


def test_what_is_given_wins_over_what_is_guessed():
    assert complete_mapping({"title": "name"}, ["id", "title", "text", "url", "name"], "x") == {**HUB, "title": "name"}


@pytest.mark.parametrize(
    ("column", "values"),
    [("id", [{"a": 1}]), ("title", [[1]]), ("text", [7]), ("text", [b"bytes"]), ("id", [None])],
)
def test_columns_of_other_types_are_refused(column, values):
    table = pa.table({"id": [1], "title": ["T"], "text": ["x"]} | {column: values})
    with pytest.raises(BadRequest, match=f"column '{column}' is"):
        read(parquet(table), "a.parquet")


@pytest.mark.parametrize(
    ("name", "data", "error"),
    [
        ("a.csv", b"id,title\n", BadRequest),
        ("a.parquet", b"PAR1 and no more", CorruptDump),
        ("a.parquet", parquet(pa.Table.from_pylist(ROWS))[:-9], CorruptDump),
        ("a.arrow", b"\xff\xff\xff\xff", CorruptDump),
        ("a.arrow", arrow(pa.Table.from_pylist(ROWS))[:-40], CorruptDump),
        ("a.json", b"[{}, {}]", BadRequest),
        ("a.jsonl.gz", gzip.compress(lines(*ROWS))[:-9], CorruptDump),
        ("a.jsonl.gz", lines(*ROWS), CorruptDump),
    ],
)
def test_a_file_of_another_kind_or_damaged_is_refused(name, data, error):
    with pytest.raises(error) as caught:
        read(data, name)
    assert "\n" not in str(caught.value)


def test_documents_are_those_that_the_dumps_reader_reads():
    from wiki_assets.defs.own import dump_lines

    found, _, _ = read(lines(*ROWS), "a.jsonl")
    reader = DumpReader()
    documents = list(reader.documents([b"".join(map(dump_lines, found))]))
    assert [(d.page_id, d.title, d.text, d.url) for d in documents] == [
        (d["page_id"], d["title"], d["text"], d.get("url")) for d in found
    ]
    assert not reader.bad_lines
