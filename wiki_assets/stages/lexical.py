"""A snapshot's passages in a BM25 index on disk, and questions to it.

One document a passage: its terms with the title in front, the names of its page, its categories, its last edit; and,
stored, all that an answer shows, so that this index answers alone where the vectors are away. A question scores a
passage by

- BM25 of its words, those that say little (articles, question words) at a fraction and never on their own;
- pairs of words that stand near one another;
- the page's name, if the question holds one of its titles whole: the more of the question it is, the more it counts.
  So "population of Italy" prefers Italy to its cities, and a title asked alone finds its page.

The weights were chosen on one half of the evaluation questions (docs/decisions/0010-hybrid-search.md).
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import msgspec
import pyarrow.parquet as pq
import tantivy

from wiki_assets.errors import BadRequest, DamagedArtifact
from wiki_assets.stages.analysis import Analysis, spread
from wiki_assets.stages.index import Row

CODE_VERSION = "lexical-1"
STOP_WEIGHT = 0.3
NEAR_WEIGHT = 0.2  # of two words that stand near one another
NEAR_SLOP = 3
NAME_WEIGHT = 2.0
ALIAS_SHARE = 0.8  # of a redirect, or of a title without what stands in brackets
_MAX_TERMS = 96  # of a question; the rarest, if it has more
_MAX_NAME_UNITS = 12  # words, or characters of an unspaced script
_MAX_QUESTION_UNITS = 96  # looked through for names
_MOST_PER_WORD = 2.2  # of its weight: BM25 with k1 = 1.2
_FEW_PAGES = 64  # looked up one by one; of more, the whole list of pages is gone through
_FEW_PASSAGES = 1_000
_HEAP_BYTES = 96 << 20  # of one writing thread
_BRACKETS = re.compile(r"\s*\([^()]*\)$")
_EPOCH = date(1970, 1, 1)

_Occur, _Query = tantivy.Occur, tantivy.Query


@dataclass(frozen=True)
class Filters:
    """What a page must be to be in an answer. Dates count its last edit, in UTC; both days belong to the span."""

    category: str | None = None
    updated_after: date | None = None
    updated_before: date | None = None

    def __bool__(self) -> bool:
        return self != Filters()

    def check(self) -> "Filters":
        """Return the filters if a page can pass them.

        Raises:
            BadRequest: if a category is blank or no text, or the span of days is empty.
        """
        if self.category is not None:
            if not self.category.strip() or len(self.category) > 512:
                raise BadRequest(f"category {self.category!r:.60}: expected a category's name, such as Rivers")
            try:
                self.category.encode("utf-8")
            except UnicodeEncodeError:
                raise BadRequest("the category is not valid Unicode text (half a surrogate pair)") from None
        if self.updated_after and self.updated_before and self.updated_after > self.updated_before:
            raise BadRequest(
                f"updated after {self.updated_after} and before {self.updated_before}: no day is both; swap the two"
            )
        return self


class Match(msgspec.Struct, frozen=True):
    """One passage that a question found."""

    passage_id: str
    page_id: int
    score: float
    address: tantivy.DocAddress


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("text", tokenizer_name="words", index_option="position")
    for name in ("name", "alias", "category"):
        builder.add_text_field(name, tokenizer_name="raw", index_option="basic")
    builder.add_integer_field("page_id", indexed=True, fast=True)
    builder.add_unsigned_field("hash", fast=True)  # hash and copy: what a passage's id has beside its page's
    builder.add_unsigned_field("copy", fast=True)
    builder.add_integer_field("updated", indexed=True, fast=True)  # days since 1970
    builder.add_bytes_field("row", stored=True)
    return builder.build()


def build_index(
    folder: Path, shards: Iterable[tuple[IO[bytes], IO[bytes]]], *, language: str, threads: int = 1
) -> dict[str, Any]:
    """Write the index of a snapshot.

    Args:
        folder: an empty one.
        shards: for each shard its articles and its passages, Parquet.
        language: ISO code of the wiki.
        threads: to write with; one gives the same order of documents every time.

    Returns:
        The ledger: pages, documents (one a passage), names, categories.
    """
    analysis = Analysis(language)
    index = tantivy.Index(_schema(), str(folder), reuse=False)
    index.register_tokenizer("words", analysis.analyzer)
    writer = index.writer(_HEAP_BYTES * threads, threads)
    counts = {"pages": 0, "documents": 0, "names": 0, "categories": 0}
    for articles, passages in shards:
        pages = pq.read_table(
            articles,
            columns=["page_id", "title", "text", "revision", "timestamp", "url", "redirects", "categories"],
        ).to_pylist()
        spans = _spans_by_page(passages)
        for page in pages:
            own = spans.get(page["page_id"], [])
            if not own:
                continue
            name, aliases = _names(page["title"], page["redirects"], analysis)
            categories = {category_key(category) for category in page["categories"]}
            counts["pages"] += 1
            counts["documents"] += len(own)
            counts["names"] += 1 + len(aliases)
            counts["categories"] += len(categories)
            for passage_id, start, end in own:
                text = page["text"][start:end].strip()
                row = Row(
                    passage_id, page["page_id"], page["title"], page["url"], page["revision"], start, end, text,
                )  # fmt: skip
                hash_, copy = _parts(passage_id)
                document = tantivy.Document()
                document.add_text("text", spread(f"{page['title']}. {text}"))
                document.add_text("name", name)
                for alias in aliases:
                    document.add_text("alias", alias)
                for category in categories:
                    document.add_text("category", category)
                document.add_integer("page_id", page["page_id"])
                document.add_unsigned("hash", hash_)
                document.add_unsigned("copy", copy)
                if page["timestamp"] is not None:
                    document.add_integer("updated", _day(page["timestamp"].date()))
                document.add_bytes("row", msgspec.json.encode(row))
                writer.add_document(document)
    writer.commit()
    writer.wait_merging_threads()
    return counts


def _spans_by_page(passages: IO[bytes]) -> dict[int, list[tuple[str, int, int]]]:
    table = pq.read_table(passages, columns=["passage_id", "page_id", "start", "end"])
    names, pages, starts, ends = (table[c].to_pylist() for c in ("passage_id", "page_id", "start", "end"))
    spans: dict[int, list[tuple[str, int, int]]] = {}
    for name, page, start, end in zip(names, pages, starts, ends, strict=True):
        spans.setdefault(page, []).append((name, start, end))
    return spans


def _names(title: str, redirects: Sequence[str], analysis: Analysis) -> tuple[str, set[str]]:
    """The key of a page's title, and the keys of its other names."""
    name = analysis.name_key(title) or title
    others = {analysis.name_key(other) for other in (*redirects, _BRACKETS.sub("", title))}
    return name, others - {name, ""}


def category_key(category: str) -> str:
    """A category's name as the index holds it."""
    return " ".join(category.replace("_", " ").split()).casefold()


def page_of(passage_id: str) -> int:
    """The page that a passage belongs to, as its id says."""
    return int(passage_id.partition("-")[0])


def _parts(passage_id: str) -> tuple[int, int]:
    """What a passage's id has beside its page: the hash of its text, and which copy of that text it is."""
    _, hash_, *copy = passage_id.split("-")
    return int(hash_, 16), int(copy[0]) if copy else 1


def _passage_id(page_id: int, hash_: int, copy: int) -> str:
    return f"{page_id}-{hash_:016x}" + (f"-{copy}" if copy > 1 else "")


def _day(day: date) -> int:
    return (day - _EPOCH).days


class LexicalIndex:
    """An index that is open for questions; any number of threads may ask.

    Args:
        folder: where `build_index` wrote it.
        language: the one it was written for.

    Raises:
        DamagedArtifact: if there is no whole index in the folder.
    """

    def __init__(self, folder: Path, language: str) -> None:
        self.analysis = Analysis(language)
        try:
            self._index = tantivy.Index.open(str(folder))
        except ValueError as error:
            raise DamagedArtifact(
                f"{folder}: no lexical index there ({error}); materialize lexical_index again"
            ) from None
        self._index.register_tokenizer("words", self.analysis.analyzer)
        self._schema = self._index.schema
        self._searcher = self._index.searcher()

    @cached_property
    def documents(self) -> int:
        """How many passages it holds."""
        return self._searcher.num_docs

    def search(self, question: str, k: int, filters: Filters | None = None) -> list[Match]:
        """The k passages that match a question best, best first; none where no word of it occurs."""
        query = self._question(question)
        return self._run(query, k, filters) if query is not None and self.documents else []

    def possible(self, question: str) -> float:
        """About the best score that the question's words can give a passage; a word that occurs nowhere counts in."""
        words = {word.term: word.stop for word in self.analysis.words(question)}
        weights = ((self._weight(term) or self._unseen) * (STOP_WEIGHT if stop else 1) for term, stop in words.items())
        return _MOST_PER_WORD * sum(weights)

    def passage_ids(self, filters: Filters, limit: int) -> list[str] | None:
        """The passages that pass the filters; None if there are more than `limit`."""
        found = self._run(_Query.all_query(), limit + 1, filters)
        return None if len(found) > limit else [match.passage_id for match in found]

    def passing(self, page_ids: Iterable[int], filters: Filters) -> set[int]:
        """Those of some pages that pass the filters."""
        wanted = sorted(set(page_ids))
        if not wanted:
            return set()
        return {match.page_id for match in self._all(self._of_pages(wanted), filters)}

    def rows(self, matches: Sequence[Match]) -> list[Row]:
        """What is shown of some passages, in their order."""
        rows: list[Any] = [self._searcher.doc(match.address).get_first("row") for match in matches]
        return [msgspec.json.decode(row, type=Row) for row in rows]

    def page(self, page_id: int) -> list[Match]:
        """The passages of a page; none if it has no such page."""
        return self._all(_Query.term_query(self._schema, "page_id", page_id))

    def find(self, passage_ids: Iterable[str]) -> dict[str, Match]:
        """Where some passages are; those it does not hold are left out."""
        wanted = set(passage_ids)
        pages = sorted({page_of(name) for name in wanted})
        if not pages:
            return {}
        return {m.passage_id: m for m in self._all(self._of_pages(pages)) if m.passage_id in wanted}

    def pages_named(self, name: str) -> list[int]:
        """Pages one of whose names is this one, give or take case, accents and endings; titles first."""
        key = self.analysis.name_key(name) or name
        found: dict[int, None] = {}
        for field in ("name", "alias"):
            query = _Query.term_query(self._schema, field, key, "basic")
            found |= {m.page_id: None for m in self._all(query)}
        return list(found)

    def _of_pages(self, page_ids: Sequence[int]) -> tantivy.Query:
        """The passages of some pages."""
        if len(page_ids) > _FEW_PAGES:
            return _Query.term_set_query(self._schema, "page_id", list(page_ids))
        terms = (_Query.term_query(self._schema, "page_id", page_id) for page_id in page_ids)
        return _any([_Query.const_score_query(term, 1.0) for term in terms])

    def _run(self, query: tantivy.Query, k: int, filters: Filters | None = None) -> list[Match]:
        if filters:
            query = self._filtered(query, filters)
        hits = self._searcher.search(query, limit=max(1, min(k, self.documents or 1)), count=False).hits
        addresses = [address for _, address in hits]
        columns: list[Any] = [self._searcher.fast_field_values(name, addresses) for name in ("page_id", "hash", "copy")]
        return [
            Match(_passage_id(page, hash_, copy), page, score, address)
            for (score, address), page, hash_, copy in zip(hits, *columns, strict=True)
        ]

    def _all(self, query: tantivy.Query, filters: Filters | None = None) -> list[Match]:
        """Every passage that a query finds; of many, counted first, since a search sets aside room for all it may
        return."""
        if filters:
            query = self._filtered(query, filters)
        found = self._run(query, _FEW_PASSAGES)
        if len(found) < _FEW_PASSAGES:
            return found
        counted: Any = self._searcher.search(query, limit=1, count=True)
        return self._run(query, counted.count)

    def _filtered(self, query: tantivy.Query, filters: Filters) -> tantivy.Query:
        return _Query.boolean_query([(_Occur.Must, query), *self._conditions(filters)])

    def _conditions(self, filters: Filters) -> Iterator[tuple[tantivy.Occur, tantivy.Query]]:
        if filters.category is not None:
            term = _Query.term_query(self._schema, "category", category_key(filters.category), "basic")
            yield _Occur.Must, _Query.const_score_query(term, 0.0)
        if filters.updated_after is not None or filters.updated_before is not None:
            span = _Query.range_query(
                self._schema,
                "updated",
                tantivy.FieldType.Integer,
                _day(filters.updated_after or date.min),
                _day(filters.updated_before or date.max),
            )
            yield _Occur.Must, _Query.const_score_query(span, 0.0)

    def _question(self, question: str) -> tantivy.Query | None:
        """The query of a question; None if it has no words."""
        words = self.analysis.words(question)
        if not words:
            return None
        telling = self._rarest(dict.fromkeys(word.term for word in words if not word.stop))
        stops = dict.fromkeys(word.term for word in words if word.stop)
        near = [
            _Query.boost_query(_Query.phrase_query(self._schema, "text", list(pair), NEAR_SLOP), NEAR_WEIGHT)
            for pair in dict.fromkeys(pairwise(word.term for word in words if not word.stop))
            if pair[0] != pair[1] and pair[0] in telling and pair[1] in telling
        ]
        names = self._names_in(question, telling)
        found = _any([*map(self._term, telling), *near, *names])
        if not stops:
            return found
        little = [(_Occur.Should, _Query.boost_query(self._term(term), STOP_WEIGHT)) for term in stops]
        return _Query.boolean_query([(_Occur.Must, found), *little])  # so that their long lists are only looked into

    def _term(self, term: str) -> tantivy.Query:
        return _Query.term_query(self._schema, "text", term, "freq")

    def _weight(self, term: str) -> float:
        """The inverse document frequency of a term, as BM25 has it; 0 for one that does not occur."""
        n = self._searcher.doc_freq("text", term)
        return math.log(1 + (self.documents - n + 0.5) / (n + 0.5)) if n else 0.0

    @property
    def _unseen(self) -> float:
        """The weight of a word that occurs in no text."""
        return math.log(2 * self.documents + 2)

    def _rarest(self, terms: Iterable[str]) -> dict[str, float]:
        """The terms and their weights, in their order; of very many, those that are rarest."""
        weights = {term: self._weight(term) for term in terms}
        if len(weights) <= _MAX_TERMS:
            return weights
        kept = set(sorted(weights, key=weights.__getitem__, reverse=True)[:_MAX_TERMS])
        return {term: weight for term, weight in weights.items() if term in kept}

    def _names_in(self, question: str, weights: dict[str, float]) -> list[tantivy.Query]:
        """Queries for the pages that the question names, as one that counts the best name of a page."""
        units = self.analysis.name_units(question)[:_MAX_QUESTION_UNITS]
        total = sum(weights.values())
        best: dict[tuple[str, str], float] = {}
        for first in range(len(units)):
            for last in range(first + 1, min(first + _MAX_NAME_UNITS, len(units)) + 1):
                key = " ".join(units[first:last])
                for field, share in (("name", 1.0), ("alias", ALIAS_SHARE)):
                    if self._searcher.doc_freq(field, key):
                        terms = set(self.analysis.terms_of_units(units[first:last])) & weights.keys()
                        own = sum(weights[term] or self._unseen for term in terms)
                        score = NAME_WEIGHT * share * own * own / max(total, own) if own else 0.0
                        best[field, key] = max(score, best.get((field, key), 0.0))
        queries = [
            _Query.const_score_query(_Query.term_query(self._schema, field, key, "basic"), score)
            for (field, key), score in best.items()
            if score > 0
        ]
        return [_Query.disjunction_max_query(queries)] if queries else []


def _any(queries: Sequence[tantivy.Query]) -> tantivy.Query:
    return _Query.boolean_query([(_Occur.Should, query) for query in queries])
