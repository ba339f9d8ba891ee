"""Read CirrusSearch dumps: JSON lines in pairs, an index action and then its document.

Source: maintenance/DumpIndex.php of MediaWiki's CirrusSearch extension, the Elasticsearch bulk format, and
the weekly export under `other/cirrus_search_index`. The action line has had three forms: `_type: page` (until
2022), `_type: _doc` (until 2025), and no `_type` with `_id` a string (old layout) or an integer (new layout).

A line that cannot be read costs only itself: the reader finds its place again at the next line by that line's
own shape, never by counting pairs.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec

MAX_LINE_BYTES = 64 << 20
_BOM = b"\xef\xbb\xbf"  # says UTF-8, which we know: at the beginning, or where files were joined
_QUOTED_BYTES = 300  # of a bad line, kept for the person who looks into the quarantine

Quarantined = Literal[
    "bad_json",  # not JSON: garbage, or cut
    "bad_type",  # a field we need has another type than the index gives it
    "bad_text",  # not UTF-8, or half a surrogate pair: no text that anything could store
    "no_action",  # a document without a page id, and no action line before it
    "no_document",  # an action line that no document follows
    "not_a_page",  # neither title nor namespace, or an id that is no page id: not from the content index
    "too_long",  # over MAX_LINE_BYTES
]


Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class Redirect(msgspec.Struct):
    """Another title of a page."""

    title: str = ""
    namespace: int = 0


class RedirectTarget(msgspec.Struct):
    """Where a redirect document points; since June 2026 redirects are documents of their own."""

    title: str = ""
    namespace: int = 0
    interwiki: str | None = None


class Document(msgspec.Struct, gc=False):
    """One document of the content index: the fields that we keep, of about forty.

    Fields without a value are left out in the new layout and null in the old one. `url` is ours: only documents from
    elsewhere have it, whose address does not follow from wiki and title.
    """

    page_id: int | None = None
    title: str | None = None
    namespace: int | None = None
    text: str | None = None
    opening_text: str | None = None
    version: Int64 | None = None
    timestamp: str | None = None
    language: str | None = None
    page_type: str | None = None
    redirect_target: RedirectTarget | None = None
    redirect: list[Redirect] | None = None
    category: list[str] | None = None
    incoming_links: Int64 | None = None
    popularity_score: float | None = None
    wikibase_item: str | None = None
    url: str | None = None

    @property
    def is_redirect(self) -> bool:
        """Documents without `page_type` are articles: older ones lack it."""
        return self.page_type == "redirect"


_REQUIRED = frozenset({"page_id", "title", "namespace", "text", "version", "page_type"})


class _Index(msgspec.Struct):
    id: int | str | None = msgspec.field(name="_id", default=None)


class _Action(msgspec.Struct):
    index: _Index


_looks_like_action = re.compile(rb'\s*\{\s*"index"').match
_decode_action = msgspec.json.Decoder(_Action).decode
_decode_document = msgspec.json.Decoder(Document).decode


@dataclass(frozen=True)
class BadLine:
    """A line, or a pair of lines, that became no document. `line` counts from 1 in the decoded file."""

    reason: Quarantined
    line: int
    detail: str
    start: str

    @classmethod
    def of(cls, reason: Quarantined, line: int, data: bytes, detail: str = "") -> "BadLine":
        return cls(reason, line, detail[:200], data[:_QUOTED_BYTES].decode("utf-8", "replace"))


@dataclass
class DumpReader:
    """Turns the decoded bytes of one dump file, or of a range of it, into documents, and accounts for every line.

    After iterating, `n_documents` documents were yielded, `bad_lines` were not, and
    `n_documents + sum(quarantined.values())` is all that the file held.
    """

    n_documents: int = 0
    bytes_read: int = 0
    lines_before: int = 0  # of the range, in the file
    quarantined: Counter[str] = field(default_factory=Counter)
    bad_lines: list[BadLine] = field(default_factory=list)

    def documents(self, chunks: Iterable[bytes]) -> Iterator[Document]:
        """Yield each readable document, its `page_id` filled in from the action line where it has none."""
        action: tuple[int, bytes, int | str | None] | None = None  # line, data, _id: waiting for its document
        for number, line in self.lines(chunks):
            if line is None:
                self._reject(BadLine.of("too_long", number, b"", f"over {MAX_LINE_BYTES:,} bytes"))
                action = None
                continue
            if _looks_like_action(line):
                if action is not None:
                    self._reject(BadLine.of("no_document", action[0], action[1]))
                    action = None
                try:
                    decoded = _decode_action(line)
                except (ValueError, RecursionError) as error:
                    self._reject(BadLine.of("bad_json", number, line, str(error)))
                    continue
                action = (number, line, decoded.index.id)
                continue
            document = _read_document(line, number)
            if isinstance(document, Document):
                document = self._placed(document, action, number, line)
            if isinstance(document, BadLine):
                self._reject(document)
            else:
                self.n_documents += 1
                yield document
            action = None
        if action is not None:
            self._reject(BadLine.of("no_document", action[0], action[1], "the file ends after an action"))

    def _placed(
        self, document: Document, action: tuple[int, bytes, int | str | None] | None, number: int, line: bytes
    ) -> Document | BadLine:
        """Give the document its page id, or say why it has none."""
        if document.title is None and document.namespace is None:
            return BadLine.of("not_a_page", number, line, "neither title nor namespace")
        given = _page_id(action[2]) if action else None
        if document.page_id is None:
            if action is None:
                return BadLine.of("no_action", number, line, "no page id, and no action line before it")
            document.page_id = given
        elif action is not None and given != document.page_id:
            # the action belongs to a document that is not there; this one brings its own id
            self._reject(BadLine.of("no_document", action[0], action[1], f"followed by page {document.page_id}"))
        if document.page_id is None or not 0 < document.page_id < 1 << 63:
            return BadLine.of("not_a_page", number, line, "no positive integer for a page id")
        if not document.title:
            return BadLine.of("bad_type", number, line, "no title")
        return document

    def _reject(self, bad: BadLine) -> None:
        self.quarantined[bad.reason] += 1
        self.bad_lines.append(bad)

    def lines(self, chunks: Iterable[bytes]) -> Iterator[tuple[int, bytes | None]]:
        """Lines without their ends, numbered as in the file, from 1; blank ones left out; None for one too long."""
        number, rest, overlong = self.lines_before, b"", False
        for chunk in chunks:
            self.bytes_read += len(chunk)
            head, newline, tail = chunk.rpartition(b"\n")
            if not newline:
                if overlong or len(rest) + len(chunk) > MAX_LINE_BYTES:
                    rest, overlong = b"", True
                else:
                    rest += chunk
                continue
            lines = (rest + head).split(b"\n")
            rest = tail
            for line in lines:
                number += 1
                if overlong:
                    overlong = False
                    yield number, None
                elif line := line.removeprefix(_BOM).rstrip(b"\r"):
                    yield number, line if len(line) <= MAX_LINE_BYTES else None
        if overlong or len(rest) > MAX_LINE_BYTES:
            yield number + 1, None
        elif rest := rest.removeprefix(_BOM).rstrip(b"\r"):
            yield number + 1, rest


def _page_id(value: int | str | None) -> int | None:
    """The page id of an action line, which writes it as a number or as a string of ASCII digits."""
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdigit() and len(value) < 20 else None
    return value


def _read_document(line: bytes, number: int) -> Document | BadLine:
    try:
        return _decode_document(line)
    except (ValueError, RecursionError):
        return _read_damaged_document(line, number)


def _read_damaged_document(line: bytes, number: int) -> Document | BadLine:
    """The slow path: find out what is wrong, and drop a field that we can do without."""
    try:
        fields: Any = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadLine.of("bad_text", number, line, str(error))
    except (ValueError, RecursionError) as error:
        return BadLine.of("bad_json", number, line, str(error))
    if not isinstance(fields, dict):
        return BadLine.of("not_a_page", number, line, f"a JSON {type(fields).__name__}")
    kept: dict[str, Any] = {}
    for spec in msgspec.structs.fields(Document):
        if spec.name not in fields:
            continue
        try:
            json.dumps(fields[spec.name], ensure_ascii=False).encode("utf-8")
            kept[spec.name] = msgspec.convert(fields[spec.name], spec.type)
        except UnicodeEncodeError as error:
            return BadLine.of("bad_text", number, line, f"{spec.name}: {error}")
        except (ValueError, RecursionError) as error:
            if spec.name in _REQUIRED:
                return BadLine.of("bad_type", number, line, f"{spec.name}: {error}")
    return Document(**kept)
