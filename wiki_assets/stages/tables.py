"""Rows of somebody's table to documents as a dump has them: Parquet, Arrow, or a JSON object a line.

A mapping says which column holds which field: `page_id=id,title=title,text=text`. A dot leads into a column of objects
(`revision=version.identifier`). A row without what a page needs is left out, and counted by reason.

Source: the columns of the `wikimedia/wikipedia` sets on the Hugging Face Hub, and of Wikimedia Enterprise's structured
contents, as on Kaggle: sections with nested parts.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from itertools import chain, islice
from typing import IO, Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from wiki_assets.compression import decoded_chunks
from wiki_assets.errors import BadRequest, CorruptDump
from wiki_assets.stages.dump import DumpReader

FIELDS = (
    *("page_id", "title", "text", "url", "opening_text", "revision", "timestamp", "language", "categories"),
    *("redirects", "wikibase_item", "incoming_links", "popularity_score"),
)
REQUIRED = ("page_id", "title", "text")
ENDINGS = (".parquet", ".arrow", ".jsonl", ".ndjson", ".json")
PACKED = ("", ".gz", ".bz2")  # of the ones with lines

HUB = {"page_id": "id", "title": "title", "text": "text", "url": "url"}
ENTERPRISE = {
    "page_id": "identifier",
    "title": "name",
    "text": "sections",
    "url": "url",
    "opening_text": "abstract",
    "revision": "version.identifier",
    "timestamp": "date_modified",
    "language": "in_language.identifier",
    "categories": "categories",
    "redirects": "redirects",
    "wikibase_item": "main_entity.identifier",
}
_BATCH_ROWS = 256
_PEEK_ROWS = 100
_ONE_LINE_BYTES = 200


@dataclass(frozen=True)
class LeftOut:
    """A row that gave no document. `row` counts from 1."""

    row: int
    reason: str
    detail: str = ""


Row = dict[str, Any] | LeftOut


@dataclass
class TableCounts:
    """What became of the rows of some tables; `dropped` are values of fields that a page can do without."""

    rows: int = 0
    documents: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)


def read_mapping(text: str) -> dict[str, str]:
    """A mapping as it is written on the command line: `page_id=id,title=name`.

    Raises:
        BadRequest: if it is not of that form, or names a field that there is none of, or one twice.
    """
    mapping: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, column = (piece.strip() for piece in part.partition("="))
        if not column or set(column) & set("=;") or name not in FIELDS or name in mapping:
            raise BadRequest(
                f"--map {part!r:.80}: expected FIELD=COLUMN, with commas between, each field once; "
                f"the fields are {', '.join(FIELDS)}"
            )
        mapping[name] = column
    return mapping


def complete_mapping(given: Mapping[str, str], columns: Iterable[str], name: str) -> dict[str, str]:
    """The mapping for a table: what is given, and else what its columns' names tell.

    Args:
        given: the person's own; may be empty.
        columns: of the table.
        name: of the table, for the error.

    Raises:
        BadRequest: if a column is not there, or nothing tells where a required field is.
    """
    there = list(dict.fromkeys(columns))
    guess: dict[str, str] = {}
    for known in (HUB, ENTERPRISE, {each: each for each in FIELDS}):
        if all(known[each].partition(".")[0] in there for each in REQUIRED):
            guess = {each: column for each, column in known.items() if column.partition(".")[0] in there}
            break
    mapping = {**guess, **given}
    shown = ", ".join(there[:20]) or "none"
    if absent := [column for column in mapping.values() if column.partition(".")[0] not in there]:
        raise BadRequest(f"{name}: no column {absent[0]!r}; it has {shown}: say what is what with --map")
    if unknown := [each for each in REQUIRED if each not in mapping]:
        raise BadRequest(
            f"{name}: which column is the {unknown[0]}? It has {shown}: say it with --map {unknown[0]}=COLUMN"
        )
    return mapping


class Table:
    """One file of rows."""

    name: str
    columns: list[str]

    def rows(self, mapping: Mapping[str, str]) -> Iterator[Row]:
        """Each row, with the columns of a mapping at least; or why there is none."""
        raise NotImplementedError


def open_table(source: IO[bytes], name: str) -> Table:
    """A table, by the ending of its name.

    Args:
        source: the file, which can be read from anywhere; stays open as long as the table is read.
        name: of the file.

    Raises:
        BadRequest: if the ending is none of ours, or the file is another thing.
        CorruptDump: if it is damaged.
    """
    try:
        if name.endswith(".parquet"):
            return _Parquet(source, name)
        if name.endswith(".arrow"):
            return _Arrow(source, name)
    except (pa.ArrowInvalid, pa.ArrowException, OSError) as error:
        raise CorruptDump(f"{name}: {_line(error)}; expected a whole file: fetch it again") from None
    if name.endswith(tuple(ending + packed for ending in ENDINGS[2:] for packed in PACKED)):
        return _Lines(source, name)
    raise BadRequest(f"{name}: expected a file that ends {', '.join(ENDINGS)}, those with lines also .gz or .bz2")


class _Columns(Table):
    """A table whose columns have types."""

    def __init__(self, schema: pa.Schema, name: str) -> None:
        self.name, self.schema, self.columns = name, schema, schema.names

    def rows(self, mapping: Mapping[str, str]) -> Iterator[Row]:
        _check_types(self.schema, mapping, self.name)
        try:
            for batch in self._batches(list(dict.fromkeys(c.partition(".")[0] for c in mapping.values()))):
                for start in range(0, len(batch), _BATCH_ROWS):
                    yield from batch.slice(start, _BATCH_ROWS).to_pylist()
        except (pa.ArrowInvalid, pa.ArrowException, OSError) as error:
            raise CorruptDump(f"{self.name}: {_line(error)}; expected a whole file: fetch it again") from None

    def _batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        raise NotImplementedError


class _Parquet(_Columns):
    def __init__(self, source: IO[bytes], name: str) -> None:
        # without these a whole row group is in memory: one of a million articles is not rare
        self._file = pq.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20)
        super().__init__(self._file.schema_arrow, name)

    def _batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        return self._file.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False)


class _Arrow(_Columns):
    """Arrow's two forms: the stream, which `datasets` writes, and the file."""

    def __init__(self, source: IO[bytes], name: str) -> None:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        self._reader: Any = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
        self._is_file = is_file
        super().__init__(self._reader.schema, name)

    def _batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        every = map(self._reader.get_batch, range(self._reader.num_record_batches)) if self._is_file else self._reader
        return (batch.select(columns) for batch in every)


class _Lines(Table):
    """A JSON object a line."""

    def __init__(self, source: IO[bytes], name: str) -> None:
        self.name = name
        packed = name.endswith((".gz", ".bz2"))
        chunks = decoded_chunks(source, name) if packed else iter(lambda: source.read(1 << 20), b"")
        self._rows = self._read(chunks)
        self._first = list(islice(self._rows, _PEEK_ROWS))
        good = [row for row in self._first if isinstance(row, dict)]
        if self._first and not good:
            raise BadRequest(f"{name}: {self._first[0].detail}; expected a JSON object a line")  # type: ignore[union-attr]
        self.columns = list(dict.fromkeys(column for row in good for column in row))

    def rows(self, mapping: Mapping[str, str]) -> Iterator[Row]:
        return chain(self._first, self._rows)

    def _read(self, chunks: Iterable[bytes]) -> Iterator[Row]:
        for row, (_, line) in enumerate(DumpReader().lines(chunks), start=1):
            if line is None:
                yield LeftOut(row, "too_long")
                continue
            try:
                found = msgspec.json.decode(line)
            except (ValueError, RecursionError) as error:
                yield LeftOut(row, "bad_json", f"{error}: {line[:80]!r}")
                continue
            yield found if isinstance(found, dict) else LeftOut(row, "bad_json", f"a JSON {type(found).__name__}")


def documents_of(
    rows: Iterable[Row], mapping: Mapping[str, str], counts: TableCounts, on_left_out: Any = lambda row: None
) -> Iterator[dict[str, Any]]:
    """Each row's document.

    Args:
        rows: of one table.
        mapping: which column holds which field.
        counts: added to.
        on_left_out: told of each row that gives none.
    """
    for number, row in enumerate(rows, start=1):
        counts.rows += 1
        found = to_document(row, mapping, counts.dropped) if isinstance(row, dict) else (row.reason, row.detail)
        if isinstance(found, dict):
            counts.documents += 1
            yield found
        else:
            counts.left_out[found[0]] += 1
            on_left_out(LeftOut(number, *found))


def to_document(
    row: Mapping[str, Any], mapping: Mapping[str, str], dropped: Counter[str]
) -> dict[str, Any] | tuple[str, str]:
    """A row's document, or the reason why there is none, and what was found."""
    values = {name: _at(row, column) for name, column in mapping.items()}
    page_id = page_id_of(values["page_id"])
    if page_id is None:
        return "no_id", f"{mapping['page_id']} = {values['page_id']!r:.80}"
    title, text = values["title"], text_of(values["text"])
    if isinstance(title, int | float) and not isinstance(title, bool):
        title = str(title)  # a title such as 1984, in a table that took it for a number
    for name, value in (("title", title), ("text", text)):
        if value is None or (isinstance(value, str) and not value.strip()):
            return f"no_{name}", f"page {page_id}"
        if not isinstance(value, str):
            return "bad_type", f"page {page_id}: {mapping[name]} is {type(value).__name__}, expected text"
        if not _is_utf8(value):
            return "bad_text", f"page {page_id}: {mapping[name]} has half a surrogate pair"
    document: dict[str, Any] = {
        "page_id": page_id,
        "title": title,
        "namespace": 0,
        "text": text,
        "page_type": "primary",
    }
    for name, value in values.items():
        if name in REQUIRED or value is None:
            continue
        to, convert = _OPTIONAL[name]
        try:
            document[to] = convert(value)
        except (ValueError, TypeError, OverflowError):
            dropped[name] += 1
    return document


def page_id_of(value: Any) -> int | None:
    """A page's number: a positive integer as it is, also in digits; anything else by a hash, always the same one.

    Returns:
        1 to 2**63 - 1; None where there is no id.
    """
    if isinstance(value, float):
        if math.isnan(value):
            return None
        value = int(value) if value.is_integer() and abs(value) < 2**53 else repr(value)
    if isinstance(value, str) and value.isascii() and value.isdigit() and str(int(value[:20])) == value:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63:
        return value
    if value is None or isinstance(value, bool | list | dict) or not str(value).strip():
        return None
    data = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(data).digest()[:8]) >> 1 or 1


def text_of(value: Any) -> Any:
    """The text of a page: as it is, or that of sections with nested parts, in order."""
    return "\n".join(_values(value)) if isinstance(value, list) else value


def _values(parts: list[Any]) -> Iterator[str]:
    for part in parts:
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict):
            if isinstance(part.get("value"), str) and part["value"].strip():
                yield part["value"]
            yield from _values(part.get("has_parts") or [])


def _at(row: Any, path: str) -> Any:
    """The value in a column, or in an object in it."""
    for name in path.split("."):
        row = row.get(name) if isinstance(row, Mapping) else None
    return row


def _is_utf8(text: str) -> bool:
    try:
        return bool(text.encode("utf-8")) or True
    except UnicodeEncodeError:
        return False


def _string(value: Any) -> str:
    if not isinstance(value, str) or not _is_utf8(value):
        raise TypeError
    return value


def _whole(value: Any) -> int:
    number = int(value)
    if isinstance(value, bool) or number != float(value) or not -(2**63) <= number < 2**63:
        raise ValueError
    return number


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _time(value: Any) -> str:
    """As dumps write it: to the second, in UTC."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    elif isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if not isinstance(value, datetime):
        raise TypeError
    moment = value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _names(value: Any) -> list[str]:
    """Strings, or the names of objects."""
    if isinstance(value, str):
        return [_string(value)]
    return [_string(each.get("name") or each.get("title") if isinstance(each, dict) else each) for each in value]


def _redirects(value: Any) -> list[dict[str, Any]]:
    return [{"namespace": 0, "title": name} for name in _names(value)]


_OPTIONAL = {  # field: as a document calls it, and what it must be
    "url": ("url", _string),
    "opening_text": ("opening_text", _string),
    "revision": ("version", _whole),
    "timestamp": ("timestamp", _time),
    "language": ("language", _string),
    "categories": ("category", _names),
    "redirects": ("redirect", _redirects),
    "wikibase_item": ("wikibase_item", _string),
    "incoming_links": ("incoming_links", _whole),
    "popularity_score": ("popularity_score", _number),
}


def _check_types(schema: pa.Schema, mapping: Mapping[str, str], file: str) -> None:
    """Refuse a column whose type cannot be what it is taken for, before any row is read."""
    for name in REQUIRED:
        kind = _type_at(schema, mapping[name])
        is_text = kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind))
        is_number = kind is not None and (pa.types.is_integer(kind) or pa.types.is_floating(kind))
        fits = {"page_id": is_text or is_number, "title": is_text or is_number, "text": is_text or _is_list(kind)}[name]
        if not fits:
            raise BadRequest(
                f"{file}: column {mapping[name]!r} is {kind or 'not there'}; expected "
                f"{'numbers or text' if name == 'page_id' else 'text'} for {name}: name another with --map"
            )


def _type_at(schema: pa.Schema, path: str) -> pa.DataType | None:
    """The type of a column, or of a member of its objects; null columns and dictionaries as what they hold."""
    first, *rest = path.split(".")
    kind = schema.field(first).type
    for name in rest:
        if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            return None
        kind = kind.field(name).type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_list(kind: pa.DataType | None) -> bool:
    return kind is not None and (pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:_ONE_LINE_BYTES]
