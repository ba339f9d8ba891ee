"""Documents of a dump to pages by shard: split each dump file, then merge each shard.

*Split* reads one dump file once, in bounded memory, and writes its good pages as Arrow record batches, each
holding pages of one shard, with a directory of which batch is whose. *Merge* gathers one shard's batches from
all dump files, keeps the newest revision of each page, attaches redirect titles, and writes the shard sorted
by page id. Both are deterministic: the same dump gives the same bytes, whichever file came first.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# pyarrow makes its compute functions when it is imported, and types no keyword of its writers

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from upath import UPath

from wiki_assets.errors import LedgerBroken
from wiki_assets.keys import Shard, shards_of
from wiki_assets.stages.addresses import language_of, page_url
from wiki_assets.stages.delta import PAGE_COLUMNS, compare_pages
from wiki_assets.stages.dump import Document

CODE_VERSION = "articles-3"
LICENCE = (
    "CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/), older parts also GFDL; "
    "authors: see each page's history"
)
ROW_GROUP_PAGES = 2_000
_BUFFER_BYTES = 32 << 20  # of pages, before a flush: the split's memory
_ROW_BYTES = 2_000  # of a page beside its text, roughly

FRAGMENT_SCHEMA = pa.schema(
    [
        ("page_id", pa.int64()),
        ("title", pa.string()),
        ("text", pa.string()),
        ("opening_text", pa.string()),
        ("revision", pa.int64()),
        ("timestamp", pa.string()),
        ("language", pa.string()),
        ("redirects", pa.list_(pa.string())),
        ("categories", pa.list_(pa.string())),
        ("incoming_links", pa.int64()),
        ("popularity_score", pa.float64()),
        ("wikibase_item", pa.string()),
        ("url", pa.string()),  # null where it follows from wiki and title
    ]
)
REDIRECT_SCHEMA = pa.schema([("title", pa.string()), ("target", pa.string())])

ARTICLES_SCHEMA = pa.schema(
    [
        pa.field("page_id", pa.int64(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        ("opening_text", pa.string()),  # null where the page has no heading
        pa.field("revision", pa.int64(), nullable=False),
        ("timestamp", pa.timestamp("ms", "UTC")),  # of the last edit
        pa.field("url", pa.string(), nullable=False),
        pa.field("redirects", pa.list_(pa.string()), nullable=False),  # other titles, sorted
        pa.field("categories", pa.list_(pa.string()), nullable=False),
        ("incoming_links", pa.int64()),
        ("popularity_score", pa.float64()),
        ("wikibase_item", pa.string()),
        pa.field("language", pa.string(), nullable=False),
    ]
)


@dataclass
class SplitCounts:
    """What became of the documents of one dump file."""

    pages: int = 0
    text_chars: int = 0
    filtered: Counter[str] = field(default_factory=Counter)
    pages_by_shard: Counter[int] = field(default_factory=Counter)
    batches_by_shard: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))


def split_documents(
    documents: Iterable[Document], fragment: IO[bytes] | Any, redirects: IO[bytes] | Any, *, shards: int
) -> SplitCounts:
    """Sort the pages among `documents` into shards; leave out what is no page, and count it by reason.

    Args:
        documents: of one dump file, each with its page id.
        fragment: gets the pages, as an Arrow IPC file; each record batch holds pages of one shard.
        redirects: gets the redirect documents' titles and targets, as Parquet.
        shards: how many shards the wiki has.

    Returns:
        Counts, and for each shard the numbers of its record batches in `fragment`.
    """
    counts = SplitCounts()
    rows: list[tuple[Any, ...]] = []
    moved: list[tuple[str, str]] = []
    buffered = 0
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_file(fragment, FRAGMENT_SCHEMA, options=options) as writer:
        n_batches = 0

        def flush() -> None:
            nonlocal n_batches, buffered
            owners = shards_of(np.fromiter((row[0] for row in rows), np.int64, len(rows)), shards)
            order = np.argsort(owners, kind="stable")
            table = _table([rows[i] for i in order.tolist()], FRAGMENT_SCHEMA)
            present, starts, sizes = np.unique(owners[order], return_index=True, return_counts=True)
            for shard, start, size in zip(present.tolist(), starts.tolist(), sizes.tolist(), strict=True):
                for batch in table.slice(start, size).to_batches():
                    writer.write_batch(batch)
                    counts.batches_by_shard[shard].append(n_batches)
                    n_batches += 1
                counts.pages_by_shard[shard] += size
            rows.clear()
            buffered = 0

        for document in documents:
            if document.is_redirect:
                counts.filtered["redirect"] += 1
                target = document.redirect_target
                if (
                    target
                    and target.title
                    and target.namespace == 0
                    and not target.interwiki
                    and not document.namespace
                ):
                    moved.append((str(document.title), target.title.replace("_", " ")))
            elif document.namespace:
                counts.filtered["other_namespace"] += 1
            elif not document.text or document.text.isspace():
                counts.filtered["no_text"] += 1
            else:
                rows.append(_row(document))
                counts.pages += 1
                counts.text_chars += len(document.text)
                buffered += len(document.text) * 2 + _ROW_BYTES
                if buffered >= _BUFFER_BYTES:
                    flush()
        if rows:
            flush()
    pq.write_table(_table(moved, REDIRECT_SCHEMA), redirects, compression="zstd")
    return counts


def _row(document: Document) -> tuple[Any, ...]:
    return (
        document.page_id,
        document.title,
        document.text,
        document.opening_text,
        document.version or 0,
        document.timestamp,
        document.language,
        sorted({other.title for other in document.redirect or () if other.namespace == 0}),
        document.category or [],
        document.incoming_links,
        document.popularity_score,
        document.wikibase_item,
        document.url,
    )


def _table(rows: Sequence[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    return pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


@dataclass(frozen=True)
class Fragment:
    """One shard's part of one split dump file."""

    path: UPath | Path
    batches: list[int]
    redirects: UPath | Path


def merge_shard(
    fragments: Sequence[Fragment],
    out: IO[bytes] | Any,
    *,
    shard: Shard,
    metadata: dict[str, str],
    before: IO[bytes] | None = None,
) -> dict[str, Any]:
    """Write one shard: each page once, in its newest revision, sorted by page id.

    Args:
        fragments: of every dump file of the snapshot, in any order.
        out: gets the Parquet file, columns `ARTICLES_SCHEMA`.
        shard: whose pages these are.
        metadata: further schema metadata; the licence is always there.
        before: the same shard's articles of an earlier snapshot, to compare with.

    Returns:
        The shard's ledger: pages in, superseded, out; characters of text; redirects attached; a sample row; and what
        became of the pages since `before`, as `compare_pages` counts them.

    Raises:
        LedgerBroken: if pages in are not pages out plus superseded ones.
    """
    pages = pa.concat_tables([_read_batches(f) for f in fragments] or [FRAGMENT_SCHEMA.empty_table()]).combine_chunks()
    n_in = len(pages)
    tied = pages.select(["page_id", "revision"]).append_column("tie", _ties(pages))
    keys = [("page_id", "ascending"), ("revision", "descending"), ("tie", "ascending")]
    order = pc.sort_indices(tied, keys).to_numpy()
    ids = pages["page_id"].to_numpy()[order]
    newest = np.ones(n_in, dtype=bool)
    newest[1:] = ids[1:] != ids[:-1]
    pages = pages.take(pa.array(order[newest]))
    redirects, attached = _all_redirects(pages, [f.redirects for f in fragments])
    language = pages["language"].fill_null(language_of(shard.snapshot.wiki))
    addressed = zip(pages["title"].to_pylist(), pages["url"].to_pylist(), strict=True)
    table = pa.Table.from_arrays(
        [
            pages["page_id"],
            pages["title"],
            pages["text"],
            pages["opening_text"],
            pages["revision"],
            _timestamps(pages["timestamp"]),
            pa.array([url or page_url(shard.snapshot.wiki, title) for title, url in addressed], pa.string()),
            redirects,
            pages["categories"],
            pages["incoming_links"],
            pages["popularity_score"],
            pages["wikibase_item"],
            language,
        ],
        schema=ARTICLES_SCHEMA,
    ).replace_schema_metadata({"licence": LICENCE, **metadata})
    pq.write_table(
        table,
        out,
        compression="zstd",
        compression_level=3,
        row_group_size=ROW_GROUP_PAGES,
        use_dictionary=["language"],
        sorting_columns=[pq.SortingColumn(0)],
    )
    superseded = n_in - len(table)
    if len(np.unique(ids)) + superseded != n_in:
        raise LedgerBroken(f"{shard}: {n_in} pages in, {len(table)} out and {superseded} superseded do not add up")
    return {
        "pages_in": n_in,
        "superseded": superseded,
        "pages": len(table),
        "text_chars": int(pc.sum(pc.utf8_length(table["text"])).as_py() or 0),
        "redirects": int(pc.sum(pc.list_value_length(table["redirects"])).as_py() or 0),
        "redirects_attached": attached,
        "no_timestamp": table["timestamp"].null_count,
        **(compare_pages(table.select(list(PAGE_COLUMNS)), before) if before else {}),
        "sample": _sample(table),
    }


def _ties(pages: pa.Table) -> pa.Array:
    """What decides between two documents of one page in one revision, so that the files' order does not: all else."""
    ids, revisions = pages["page_id"].to_numpy(), pages["revision"].to_numpy()
    _, group, sizes = np.unique(np.stack([ids, revisions]), axis=1, return_inverse=True, return_counts=True)
    ties = [""] * len(ids)
    for row in np.flatnonzero(sizes[group.reshape(-1)] > 1).tolist():
        document = pages.slice(row, 1).to_pylist()[0]
        shorter = 10**12 - len(document["text"])  # the longer text first
        ties[row] = f"{shorter:013d} {json.dumps(document, sort_keys=True)}"
    return pa.array(ties, pa.string())


def _sample(table: pa.Table) -> dict[str, Any] | None:
    """The first row, for a person to look at."""
    if not len(table):
        return None
    row = table.slice(0, 1).to_pylist()[0]
    return {name: row[name] for name in ("page_id", "title", "revision", "url")} | {"text": row["text"][:200]}


def _read_batches(fragment: Fragment) -> pa.Table:
    if not fragment.batches:
        return FRAGMENT_SCHEMA.empty_table()
    with fragment.path.open("rb") as source, pa.ipc.open_file(source) as reader:
        return pa.Table.from_batches([reader.get_batch(i) for i in fragment.batches], FRAGMENT_SCHEMA)


def _all_redirects(pages: pa.Table, files: Sequence[UPath | Path]) -> tuple[pa.Array, int]:
    """Each page's own redirect titles and those of redirect documents that point to its title, sorted.

    A redirect document lies in any dump file, since its own page id decides where; so every file's list is
    read, a row group at a time, and only the rows that point into this shard are kept.
    """
    wanted = pages["title"].combine_chunks()
    found: dict[str, set[str]] = defaultdict(set)
    for path in files:
        with path.open("rb") as source:
            for batch in pq.ParquetFile(source).iter_batches(batch_size=100_000):
                hits = batch.filter(pc.is_in(batch["target"], value_set=wanted)) if len(wanted) else batch.slice(0, 0)
                for title, target in zip(hits["title"].to_pylist(), hits["target"].to_pylist(), strict=True):
                    found[target].add(title)
    own = pages["redirects"].combine_chunks()
    if not found:
        return own, 0
    place = {title: row for row, title in enumerate(wanted.to_pylist())}
    which = np.arange(len(own))
    longer: list[list[str]] = []
    attached = 0
    for target, titles in found.items():
        known = set(own[place[target]].as_py())
        attached += len(titles - known)
        which[place[target]] = len(own) + len(longer)
        longer.append(sorted(titles | known))
    return pa.concat_arrays([own, pa.array(longer, own.type)]).take(pa.array(which)), attached


def _timestamps(column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    """ISO 8601 with a Z; null where it is anything else, or no day of the calendar."""
    form = "%Y-%m-%dT%H:%M:%SZ"
    found = pc.strptime(column, format=form, unit="s", error_is_null=True)
    real = pc.equal(pc.strftime(found, format=form), column)
    return pc.if_else(real, found, None).cast(pa.timestamp("ms", "UTC"))
