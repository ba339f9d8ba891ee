"""Build tinywiki: turn the pages in ``pages/`` into dumps as the Wikimedia server published them.

    python -m wiki_assets_tests.tinywiki.build

Everything under ``dumps/``, ``questions.jsonl`` and ``expected.json`` is written anew. The same pages give
the same bytes: dates are fixed, the shuffling is seeded, and the archives carry no time stamps.

The newest dump of each layout also holds what a reader meets in real dumps and has to survive: stray lines,
cut documents, pages without text, an outdated revision. Each row knows what should become of it
(``Row.fate``), and ``expected.json`` is the count of these fates.
"""

import bz2
import gzip
import io
import json
import random
import re
import shutil
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import quote

HERE = Path(__file__).parent
DUMPS = HERE / "dumps"
WIKI = "tinywiki"

FINISHED, UNFINISHED = "20250105", "20250112"  # cirrus_search_index: one file a part
RECENT, EARLIER, EARLIEST = "20241230", "20240101", "20220103"  # cirrussearch: one file a wiki
PARTS = 3

PAGE, REDIRECT, SUPERSEDED = "page", "redirect", "superseded"
FILTERED = (REDIRECT, "other_namespace", "no_text", SUPERSEDED)
QUARANTINED = ("bad_json", "no_document", "no_action", "not_a_page", "bad_text", "bad_type")

FIRST_REDIRECT_ID = 1001
UNLISTED_REDIRECTS = frozenset({"Lama glama", "Apis mellifera"})  # the new layout's targets do not name these
REVISED_PAGE = 8  # appears twice, once as an older revision
PAGE_WITH_BLANK_LINE = 20
PAGE_WITH_CRLF = 17

DEPRECATED = """\
Nothing new is published in this folder any more; the last files here are dated 20241230.
The same data, in another layout, is now found under /other/cirrus_search_index/.
(This notice, like all of tinywiki, was written for tests.)
"""

Document = dict[str, Any]


@dataclass(frozen=True)
class Page:
    """One article as written in ``pages/``."""

    page_id: int
    title: str
    language: str
    revision: int
    timestamp: str
    redirects: list[str]
    categories: list[str]
    questions: list[str]
    body: str
    wikibase_item: str | None = None

    @classmethod
    def read(cls, path: Path) -> "Page":
        """Read a page file: TOML between two lines of ``+++``, then the body."""
        empty, front_matter, body = path.read_text(encoding="utf-8").split("+++\n", 2)
        if empty:
            raise ValueError(f"{path.name} does not begin with +++")
        return cls(**tomllib.loads(front_matter), body=body.strip())

    @property
    def headings(self) -> list[str]:
        """The section titles, of all levels."""
        return re.findall(r"^#{2,6} +(.+)$", self.body, flags=re.MULTILINE)

    @property
    def text(self) -> str:
        """The text of the article on one line, without its headings."""
        return one_line(re.sub(r"^#{2,6} .+$", "", self.body, flags=re.MULTILINE))

    @property
    def opening_text(self) -> str | None:
        """What stands before the first heading; like the real dumps, nothing where there is no heading."""
        return one_line(re.split(r"^#{2,6} ", self.body, flags=re.MULTILINE)[0]) if self.headings else None

    @property
    def wikitext(self) -> str:
        """The body with its headings as MediaWiki writes them."""
        return re.sub(
            r"^(#{2,6}) +(.+)$",
            lambda heading: f"{'=' * len(heading[1])} {heading[2]} {'=' * len(heading[1])}",
            self.body,
            flags=re.MULTILINE,
        )


@dataclass(frozen=True)
class Row:
    """Bytes of a dump, usually an action line and a document line, and what a reader should make of them."""

    fate: str
    data: bytes


@dataclass(frozen=True)
class Layout:
    """How documents were written at some time."""

    action: str
    fields: Callable[[Document], Document]
    escapes: bool = False

    def lines(self, document: Document) -> tuple[str, str]:
        """Return the action line and the document line."""
        return self.action % document["page_id"], dump_json(self.fields(document), self.escapes)

    def row(self, document: Document, fate: str = PAGE) -> Row:
        """Return the pair of lines as a row."""
        return Row(fate, encode(*self.lines(document)))


def one_line(text: str) -> str:
    """Join all white space to single spaces."""
    return " ".join(text.split())


def dump_json(value: object, escapes: bool = False) -> str:
    """Write JSON without spaces, with escapes for non-ASCII characters only where asked for."""
    return json.dumps(value, ensure_ascii=escapes, separators=(",", ":"))


def encode(*lines: str) -> bytes:
    """Return lines as they stand in a file."""
    return "".join(f"{line}\n" for line in lines).encode()


# --- Documents ----------------------------------------------------------------------------------------------


def new_fields(document: Document) -> Document:
    """Keep what has a value: ``page_id`` first, the rest by name."""
    first = {"page_id": document["page_id"]}
    return first | {key: value for key, value in sorted(document.items()) if value is not None}


def old_fields(document: Document) -> Document:
    """Keep the nulls, write a missing sort key as ``false``, and know nothing of page types."""
    known = {key: value for key, value in document.items() if key != "page_type"}
    return known | {"defaultsort": False}


def fields_without_id(document: Document) -> Document:
    """Leave the page id to the action line, as dumps did for many years."""
    return {key: value for key, value in old_fields(document).items() if key != "page_id"}


NEW = Layout('{"index":{"_id":%d}}', new_fields)
OLD = {
    RECENT: Layout('{"index":{"_id":"%d"}}', old_fields),
    EARLIER: Layout('{"index":{"_type":"_doc","_id":"%d"}}', old_fields, escapes=True),
    EARLIEST: Layout('{"index":{"_type":"page","_id":"%d"}}', fields_without_id, escapes=True),
}


def read_pages(folder: Path = HERE / "pages") -> list[Page]:
    """Read all pages, in order of their ids, and check that nothing is used twice."""
    pages = sorted((Page.read(path) for path in folder.glob("*.md")), key=lambda page: page.page_id)
    titles = [title for page in pages for title in (page.title, *page.redirects)]
    for name, values in {
        "page_id": [page.page_id for page in pages],
        "revision": [page.revision for page in pages],
        "title or redirect": titles,
    }.items():
        for value, count in Counter(values).items():
            if count > 1:
                raise ValueError(f"{name} {value!r} is used {count} times")
    if missing := UNLISTED_REDIRECTS - set(titles):
        raise ValueError(f"no page has the redirects {sorted(missing)}")
    return pages


def make_documents(pages: Sequence[Page]) -> list[Document]:
    """Make one document a page, with links between pages that name each other."""
    links = {page.page_id: find_links(page, pages) for page in pages}
    incoming = Counter(title for titles in links.values() for title in titles)
    draw = random.Random("page types")
    documents: list[Document] = []
    for page in pages:
        documents.append(
            {
                "version": page.revision,
                "wiki": WIKI,
                "page_id": page.page_id,
                "namespace": 0,
                "namespace_text": "",
                "title": page.title,
                "timestamp": page.timestamp,
                "category": page.categories,
                "external_link": [],
                "outgoing_link": [title.replace(" ", "_") for title in links[page.page_id]],
                "template": [],
                "text": page.text,
                "source_text": page.wikitext,
                "text_bytes": len(page.wikitext.encode()),
                "content_model": "wikitext",
                "language": page.language,
                "heading": page.headings,
                "opening_text": page.opening_text,
                "auxiliary_text": [],
                "defaultsort": None,
                "display_title": None,
                "redirect": [{"namespace": 0, "title": title} for title in page.redirects],
                "incoming_links": incoming[page.title],
                "popularity_score": round(incoming[page.title] / len(pages), 9),
                "wikibase_item": page.wikibase_item,
                "page_type": "primary" if draw.random() < 0.6 else None,
            }
        )
    return documents


def find_links(page: Page, pages: Iterable[Page]) -> list[str]:
    """Return the titles of the other pages that the text of this one names."""
    return sorted(
        other.title
        for other in pages
        if other is not page and re.search(rf"\b{re.escape(other.title)}\b", page.text, flags=re.IGNORECASE)
    )


def without_unlisted(document: Document) -> Document:
    """Take the unlisted redirects out of a document's list."""
    return document | {"redirect": [r for r in document["redirect"] if r["title"] not in UNLISTED_REDIRECTS]}


def make_redirects(documents: Sequence[Document]) -> list[tuple[Document, Document]]:
    """Make a document for each redirect, paired with the document it leads to."""
    named = [(name["title"], target) for target in documents for name in target["redirect"]]
    pairs: list[tuple[Document, Document]] = []
    for page_id, (title, target) in enumerate(named, FIRST_REDIRECT_ID):
        link = target["title"].replace(" ", "_")
        wikitext = f"#REDIRECT [[{target['title']}]]"
        pointer = {"namespace": 0, "title": target["title"], "fragment": "", "interwiki": "", "link": link}
        fields: Document = {
            "version": 5000 + page_id,
            "page_id": page_id,
            "title": title,
            "category": [],
            "outgoing_link": [link],
            "text": f"Redirect to: {target['title']}",
            "source_text": wikitext,
            "text_bytes": len(wikitext.encode()),
            "heading": [],
            "opening_text": None,
            "redirect": [],
            "incoming_links": 0,
            "popularity_score": 0.0,
            "wikibase_item": None,
            "page_type": "redirect",
            "redirect_target": pointer,
        }
        pairs.append((target | fields, target))
    return pairs


# --- Special rows -------------------------------------------------------------------------------------------


def make_special_rows(documents: Sequence[Document], layout: Layout) -> list[Row]:
    """Make the rows that are not good articles, all but the outdated revision and the redirects."""
    lists = ("category", "outgoing_link", "heading", "redirect")
    nothing: Document = {"opening_text": None, "wikibase_item": None} | {name: [] for name in lists}
    model = documents[0] | nothing

    def variant(page_id: int, title: str, text: object, **fields: object) -> Document:
        content: Document = {"title": title, "text": text, "source_text": "", "text_bytes": 0}
        return model | {"page_id": page_id, "version": 7000 + page_id} | content | fields

    cut_action, cut_line = layout.lines(variant(2002, "Cut page", "The second half of this page got lost."))
    no_id = variant(2003, "Page without a place", "Nobody knows which page this is.")
    no_id_line = dump_json({key: value for key, value in layout.fields(no_id).items() if key != "page_id"})
    surrogate = variant(2004, "Half a character", "Half of a surrogate pair, \ud800, is no character.")
    project: Document = {"namespace": 4, "namespace_text": "Project"}
    portal = variant(2006, "Community portal", "A page for those who write.", **project)
    bad_revision = variant(2008, "Lost revision", None, template=["Template:CirrusSearchBadRevision"])
    del bad_revision["text"]
    stray_action = '{"index":{"_type":"page","_id":"AVQXnGH_62ewIKYZMTMP"}}'
    search_request = {"query": {"match": {"all": "lighthouse"}}, "size": 20, "_source": ["text"]}
    return [
        Row("bad_json", encode("#### this line is no JSON ####")),
        Row("bad_json", encode(cut_action, cut_line[: len(cut_line) // 2])),
        Row("no_document", encode(layout.action % 2001)),
        Row("no_action", encode(no_id_line)),
        Row("not_a_page", encode(stray_action, dump_json(search_request))),
        replace(layout, escapes=True).row(surrogate, "bad_text"),
        layout.row(variant(2005, "Number as text", 17), "bad_type"),
        layout.row(portal, "other_namespace"),
        layout.row(variant(2007, "Empty page", ""), "no_text"),
        layout.row(bad_revision, "no_text"),
    ]


def older_revision(documents: Iterable[Document]) -> Document:
    """Make an earlier, shorter revision of one of the articles."""
    document = next(document for document in documents if document["page_id"] == REVISED_PAGE)
    return document | {
        "version": document["version"] - 500,
        "timestamp": "2021-02-03T04:05:06Z",
        "text": document["text"][: document["text"].index(". ") + 1],
        "opening_text": None,
        "heading": [],
    }


def add_line_quirks(document: Document, row: Row) -> Row:
    """Put a blank line after one article and CRLF line ends into another."""
    if document["page_id"] == PAGE_WITH_BLANK_LINE:
        return replace(row, data=row.data + b"\n")
    if document["page_id"] == PAGE_WITH_CRLF:
        return replace(row, data=row.data.replace(b"\n", b"\r\n"))
    return row


def weave(articles: Sequence[Row], specials: Sequence[Row], seed: str) -> list[Row]:
    """Put special rows between articles, never side by side, lest one be read as half of another."""
    places = sorted(random.Random(seed).sample(range(1, len(articles)), len(specials)))
    before = dict(zip(places, specials, strict=True))
    return [row for place, article in enumerate(articles) for row in (before.get(place), article) if row]


# --- Dumps --------------------------------------------------------------------------------------------------


def make_parts(documents: Sequence[Document]) -> list[list[Row]]:
    """Spread articles, redirects and special rows over the parts of the new layout."""
    shuffled = random.Random(FINISHED).sample(documents, len(documents))
    part_of = {document["page_id"]: place % PARTS for place, document in enumerate(shuffled)}
    articles: list[list[Row]] = [[] for _ in range(PARTS)]
    for document in shuffled:
        row = NEW.row(without_unlisted(document))
        articles[part_of[document["page_id"]]].append(add_line_quirks(document, row))

    for count, (redirect, target) in enumerate(make_redirects(documents)):
        away = 1 if redirect["title"] in UNLISTED_REDIRECTS else count % PARTS
        part = articles[(part_of[target["page_id"]] + away) % PARTS]
        part.insert(random.Random(redirect["title"]).randrange(len(part)), NEW.row(redirect, REDIRECT))

    specials: list[list[Row]] = [[] for _ in range(PARTS)]
    for count, row in enumerate(make_special_rows(documents, NEW)):
        specials[count % PARTS].append(row)
    outdated = NEW.row(without_unlisted(older_revision(documents)), SUPERSEDED)
    specials[(part_of[REVISED_PAGE] + 1) % PARTS].append(outdated)
    return [weave(articles[part], specials[part], f"part {part}") for part in range(PARTS)]


def make_old_dump(documents: Sequence[Document], day: str) -> list[Row]:
    """Make the rows of a dump in the old layout, in the order of its time."""
    layout = OLD[day]
    if day == EARLIEST:  # in the order of the index, that is in none
        return [layout.row(document) for document in random.Random(day).sample(documents, len(documents))]
    if day == EARLIER:
        as_text = sorted(documents, key=lambda document: str(document["page_id"]))
        return [layout.row(document) for document in as_text]
    articles = [add_line_quirks(document, layout.row(document)) for document in documents]
    outdated = layout.row(older_revision(documents), SUPERSEDED)
    return weave(articles, [*make_special_rows(documents, layout), outdated], day)


def compress_bz2(data: bytes, streams: int) -> bytes:
    """Compress to several bzip2 streams in a row, cut anywhere, even within a line."""
    return b"".join(bz2.compress(piece) for piece in cut(data, streams))


def compress_gzip(data: bytes, members: int) -> bytes:
    """Compress to several gzip members in a row, without a file name or time."""
    file = io.BytesIO()
    for piece in cut(data, members):
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as member:
            member.write(piece)
    return file.getvalue()


def cut(data: bytes, count: int) -> list[bytes]:
    """Cut data into pieces of about the same length."""
    length = -(-len(data) // count)
    return [data[start : start + length] for start in range(0, len(data), length)]


def join(rows: Iterable[Row]) -> bytes:
    """Return the bytes of all rows."""
    return b"".join(row.data for row in rows)


def write_file(path: Path, data: bytes) -> None:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_listings(folder: Path, url: str, day: date) -> None:
    """Write an ``index.html`` as nginx shows it into a folder, dated by its name, and into all below."""
    lines = [f"<html>\r\n<head><title>Index of {url}</title></head>\r\n<body>\r\n"]
    lines.append(f'<h1>Index of {url}</h1><hr><pre><a href="../">../</a>\r\n')
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_file(), path.name)):
        changed = date.fromisoformat(path.name) if re.fullmatch(r"\d{8}", path.name) else day
        name, size = (f"{path.name}/", "-") if path.is_dir() else (path.name, str(path.stat().st_size))
        link = f'<a href="{quote(name)}">{name}</a>' + " " * (51 - len(name))
        lines.append(f"{link}{changed:%d-%b-%Y} 12:00{size:>20}\r\n")
        if path.is_dir():
            write_listings(path, url + name, changed)
    lines.append("</pre><hr></body>\r\n</html>\r\n")
    write_file(folder / "index.html", "".join(lines).encode())


def count_fates(rows: Iterable[Row]) -> dict[str, object]:
    """Say what a reader should report about these rows."""
    fates = Counter(row.fate for row in rows)
    return {
        "documents": fates.total(),
        "pages": fates[PAGE],
        "filtered": {reason: fates[reason] for reason in FILTERED},
        "quarantined": {reason: fates[reason] for reason in QUARANTINED},
    }


def build(target: Path = HERE, pages: Sequence[Page] | None = None) -> None:
    """Write the dumps, the questions and the expected counts.

    Args:
        target: The folder to write to; ``dumps/`` in it is deleted first.
        pages: The articles; those in ``pages/`` by default.
    """
    pages = read_pages() if pages is None else pages
    documents = make_documents(pages)
    other = target / "dumps" / "other"
    shutil.rmtree(target / "dumps", ignore_errors=True)

    parts = make_parts(documents)
    index = other / "cirrus_search_index"
    for day, count in ((FINISHED, PARTS), (UNFINISHED, 1)):
        folder = index / day / f"index_name={WIKI}_content"
        for number, rows in enumerate(parts[:count]):
            name = f"{WIKI}_content-{day}-{number:05}.json.bz2"
            write_file(folder / name, compress_bz2(join(rows), streams=3 if number == 1 else 1))
    write_file(index / FINISHED / f"index_name={WIKI}_content" / "_SUCCESS", b"")

    expected = {FINISHED: count_fates(row for rows in parts for row in rows)}
    for day in OLD:
        rows = make_old_dump(documents, day)
        path = other / "cirrussearch" / day / f"{WIKI}-{day}-cirrussearch-content.json.gz"
        write_file(path, compress_gzip(join(rows), members=2 if day == RECENT else 1))
        expected[day] = count_fates(rows)
    write_file(other / "cirrussearch" / "DEPRECATED.txt", DEPRECATED.encode())
    write_listings(other, "/other/", date(2025, 1, 13))

    asked = [(question, page) for page in pages for question in page.questions]
    questions = [
        {"id": f"t{number:03}", "question": question, "page_id": page.page_id, "title": page.title}
        for number, (question, page) in enumerate(asked, 1)
    ]
    lines = [json.dumps(question, ensure_ascii=False) for question in questions]
    write_file(target / "questions.jsonl", encode(*lines))
    write_file(target / "expected.json", encode(json.dumps(expected, indent=2)))


if __name__ == "__main__":
    build()
