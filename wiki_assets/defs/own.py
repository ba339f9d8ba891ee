"""Snapshots that are made here: pages of the live API, or rows of one's own tables, laid out as a dump is.

Under `raw/<date>/` lie dump files, and a manifest that vouches for them, as for any dump that was fetched; so all that
comes after is the same. Beside them `left_out.jsonl` names every title or row that gave no page, and why.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from itertools import chain
from typing import IO, Any

import msgspec
from upath import UPath

from wiki_assets.claims import Claim, claim
from wiki_assets.compression import decoded_chunks, gzip_packer
from wiki_assets.errors import BadRequest, LedgerBroken, SourceUnavailable
from wiki_assets.files import (
    FileRecord,
    Manifest,
    clear_leftovers,
    fingerprint,
    is_local,
    locked,
    read_manifest,
    sha256_of,
    whole_file,
    write_json,
)
from wiki_assets.keys import Snapshot
from wiki_assets.resources.api import Fate, WikiApi
from wiki_assets.resources.datasets import TableFile, find_tables
from wiki_assets.resources.download import FetchedFile
from wiki_assets.resources.store import Store
from wiki_assets.stages.addresses import page_url
from wiki_assets.stages.tables import ENDINGS, PACKED, LeftOut, TableCounts, complete_mapping, documents_of, open_table

OWN_VERSION = "own-1"
TITLES_A_FILE = 1_000  # of the API's pages: what a kill costs
TEXT_A_FILE = 256 << 20  # of tables: about what a split task takes at once
_LISTED = 10_000  # rows that left_out.jsonl names; all are counted
_SAY_EVERY_S = 5.0
_TABLES = tuple(ending + packed for ending in ENDINGS for packed in (PACKED if "json" in ending else ("",)))
Say = Callable[[str], object]


def source_of(store: Store, snapshot: Snapshot) -> str:
    """Where a snapshot's pages are from: `dump`, `api` or `tables`; `own` if that is no longer known."""
    manifest = read_manifest(store.raw(snapshot) / "manifest.json")
    return str(manifest.params.get("source", "dump")) if manifest else "own" if snapshot.is_own else "dump"


def comparable(store: Store, snapshot: Snapshot, published: Snapshot) -> bool:
    """Whether one snapshot should hold about the pages of the other: titles from the API are whatever was asked for."""
    sources = {source_of(store, snapshot), source_of(store, published)}
    return len(sources) == 1 and "api" not in sources


# --- pages of the live API


def fetch_pages(
    snapshot: Snapshot,
    titles: Sequence[str],
    api: WikiApi,
    store: Store,
    say: Say,
    on_size: Callable[[int], object] = lambda size_bytes: None,
) -> Manifest:
    """Fetch pages by their titles. What a killed call had fetched is not fetched again.

    Args:
        snapshot: under which they shall be kept.
        titles: as a person writes them; one fate each.
        api: of the wiki.
        store: where to.
        say: told now and then how far it is.
        on_size: told how large the dump files are, before the manifest is written.

    Returns:
        The manifest. Its `counts["ledger"]` says what became of the titles.

    Raises:
        BadRequest: if other pages are kept under that snapshot, or no title is given.
        SourceUnavailable: if the API does not answer, or no title has a page.
        StoreLocked: if another process does this now.
    """
    if not titles:
        raise BadRequest("no titles: name some, or a file with one a line (--titles FILE)")
    question = fingerprint(OWN_VERSION, "api", api.url, list(titles))
    if made := _made(store, snapshot, question):
        say(f"{snapshot}: these pages are here already")
        return made
    folder, started = store.raw(snapshot), time.monotonic()
    notes = folder / "fetched.json"
    with _alone(folder) as mine:
        clear_leftovers(notes)
        parts, seen = _noted(notes, question, folder), set[int]()
        said = 0.0
        for number, begin in enumerate(range(0, len(titles), TITLES_A_FILE)):
            some = titles[begin : begin + TITLES_A_FILE]
            if number < len(parts):
                seen |= set(parts[number].page_ids)
                continue

            def progress(done: int, before: int = begin) -> None:
                nonlocal said
                if (now := time.monotonic()) - said >= _SAY_EVERY_S:
                    said = now
                    say(f"{snapshot}: {before + done:,} of {len(titles):,} titles, {api.tally.requests:,} requests")

            part = _Part(titles=len(some))
            n_files = sum(len(each.files) for each in parts)
            pages = _pages(snapshot, api.fetch(some, progress), part, seen)
            part.files = list(_written(pages, folder, snapshot, n_files, api.url, mine))
            if part.titles != len(part.page_ids) + len(part.left_out):
                raise LedgerBroken(
                    f"{snapshot}: {part.titles} titles, {len(part.page_ids)} pages, {len(part.left_out)} left out"
                )
            parts.append(part)
            write_json(notes, _Notes(question, parts))
        sources, left_out = Counter[str](), [each for part in parts for each in part.left_out]
        for part in parts:
            sources.update(part.sources)
        reasons = Counter(each.fate for each in left_out)
        ledger = {"titles": len(titles), "pages": sources.total(), "left_out": dict(reasons), "sources": dict(sources)}
        if not sources:
            raise SourceUnavailable(f"{snapshot}: none of {len(titles)} titles has a page: {_list(reasons)}")
        manifest = _vouch(
            store,
            snapshot,
            [file for part in parts for file in part.files],
            question=question,
            params={"source": "api", "url": api.url},
            inputs={"titles": hashlib.sha256("\n".join(titles).encode("utf-8", "replace")).hexdigest()},
            left_out=left_out,
            ledger=ledger,
            stats={"seconds": round(time.monotonic() - started, 1), "requests": api.tally.requests},
            on_size=on_size,
            mine=mine,
        )
        notes.unlink(missing_ok=True)
    return manifest


class _Part(msgspec.Struct):
    """So many titles: their pages' file, if they have any, and what became of the others."""

    titles: int
    files: list[FetchedFile] = []
    page_ids: list[int] = []
    left_out: list[Fate] = []
    sources: dict[str, int] = {}


class _Notes(msgspec.Struct):
    """What a call has fetched that may be killed."""

    question: str
    parts: list[_Part]


def _pages(snapshot: Snapshot, fates: Iterable[Fate], part: _Part, seen: set[int]) -> Iterator[dict[str, Any]]:
    """The documents among fates, each page once; all else is noted in `part`."""
    for fate in fates:
        document = fate.document
        if document is None:
            part.left_out.append(fate)
        elif fate.page_id in seen:
            part.left_out.append(Fate(fate.title, "duplicate", f"page {fate.page_id} is there already"))
        else:
            seen.add(fate.page_id)
            part.page_ids.append(fate.page_id)
            part.sources[fate.source] = part.sources.get(fate.source, 0) + 1
            if document.get("url") == page_url(snapshot.wiki, str(document["title"])):
                document = {name: value for name, value in document.items() if name != "url"}
            yield document


def _noted(notes: UPath, question: str, folder: UPath) -> list[_Part]:
    """The parts that a killed call had fetched for the same question, as far as their files are what they were."""
    try:
        found = msgspec.json.decode(notes.read_bytes(), type=_Notes)
    except (FileNotFoundError, ValueError):
        return []
    whole: list[_Part] = []
    for part in found.parts if found.question == question else ():
        if not all(_is_in_place(folder / file.name, file) for file in part.files):
            break
        whole.append(part)
    return whole


def _is_in_place(path: UPath, file: FetchedFile) -> bool:
    try:
        return sha256_of(path) == file.sha256
    except FileNotFoundError:
        return False


# --- tables of one's own


def import_tables(
    snapshot: Snapshot,
    places: Sequence[str],
    mapping: Mapping[str, str],
    store: Store,
    say: Say,
    on_size: Callable[[int], object] = lambda size_bytes: None,
) -> Manifest:
    """Take the rows of Parquet, Arrow or JSON-lines files for pages.

    Args:
        snapshot: under which they shall be kept.
        places: files, or folders of data sets.
        mapping: which column holds which field, as far as the columns' names do not tell.
        store: where to.
        say: told now and then how far it is.
        on_size: told how large the dump files are, before the manifest is written.

    Returns:
        The manifest. Its `counts["ledger"]` says what became of the rows.

    Raises:
        BadRequest: if other pages are kept under that snapshot, the mapping does not fit, or no row is a page.
        SourceUnavailable: if a part of a data set is missing, or changes meanwhile.
        CorruptDump: if a file is damaged.
        StoreLocked: if another process does this now.
    """
    files = [TableFile.of(path) for path in find_tables(places, _TABLES)]
    hashes = {str(file.path): file.sha256 for file in files}
    question = fingerprint(OWN_VERSION, "tables", [file.sha256 for file in files], dict(mapping))
    if made := _made(store, snapshot, question):
        say(f"{snapshot}: these rows are here already")
        return made
    folder, started = store.raw(snapshot), time.monotonic()
    counts, left_out = TableCounts(), list[dict[str, Any]]()
    maps: dict[str, dict[str, str]] = {}
    said = time.monotonic()

    def documents() -> Iterator[dict[str, Any]]:
        nonlocal said
        for n_files, file in enumerate(files, start=1):

            def leave(row: LeftOut, name: str = file.path.name) -> None:
                if len(left_out) < _LISTED:
                    left_out.append({"file": name, "row": row.row, "reason": row.reason, "detail": row.detail})

            with file.path.open("rb") as source:
                table = open_table(source, file.path.name)
                if not table.columns:
                    continue
                maps[file.path.name] = found = complete_mapping(mapping, table.columns, file.path.name)
                for document in documents_of(table.rows(found), found, counts, leave):
                    if (now := time.monotonic()) - said >= _SAY_EVERY_S:
                        said = now
                        rate = counts.rows / (now - started)
                        say(f"{snapshot}: {counts.rows:,} rows, file {n_files} of {len(files)}, {rate:,.0f} rows/s")
                    yield document
            file.require_unchanged()

    with _alone(folder) as mine:
        written = list(_written(documents(), folder, snapshot, 0, "file:", mine))
        if counts.rows != counts.documents + counts.left_out.total():
            raise LedgerBroken(f"{snapshot}: {counts}")
        if not written:
            raise BadRequest(f"{places[0]}: no row of {counts.rows:,} is a page: {_list(counts.left_out) or 'no rows'}")
        ledger: dict[str, Any] = {"rows": counts.rows, "pages": counts.documents, "left_out": dict(counts.left_out)}
        if counts.dropped:
            ledger["dropped_values"] = dict(counts.dropped)
        return _vouch(
            store,
            snapshot,
            written,
            question=question,
            params={"source": "tables", "mapping": next(iter(maps.values()))},
            inputs=hashes,
            left_out=left_out,
            ledger=ledger,
            stats={"seconds": round(time.monotonic() - started, 1)},
            on_size=on_size,
            mine=mine,
        )


# --- dump files, and what vouches for them


def dump_lines(document: Mapping[str, Any]) -> bytes:
    """A document as a dump has it: an action line and its own."""
    action = msgspec.json.encode({"index": {"_id": document["page_id"]}})
    return action + b"\n" + msgspec.json.encode(document) + b"\n"


def _written(
    documents: Iterator[dict[str, Any]],
    folder: UPath,
    snapshot: Snapshot,
    first_number: int,
    url: str,
    mine: Claim | None,
) -> Iterator[FetchedFile]:
    """Write documents into dump files, each of `TEXT_A_FILE` about; none where there is no document."""
    for number, first in enumerate(documents, start=first_number):
        file = f"{snapshot.wiki}_content-{snapshot.date}-{number:05d}.json.gz"
        n_documents = size = 0
        packer = gzip_packer()

        def require_whole(again: IO[bytes], file: str = file) -> None:
            lines = sum(chunk.count(b"\n") for chunk in decoded_chunks(again, file))
            if lines != 2 * n_documents:  # noqa: B023  # called before the next round
                raise LedgerBroken(f"{file}: {n_documents} documents written, {lines} lines read")  # noqa: B023

        with whole_file(folder / file, require_whole, mine.fence if mine else nullcontext) as out:
            for document in chain((first,), documents):
                lines = dump_lines(document)
                out.write(packer.compress(lines))
                n_documents += 1
                size += len(lines)
                if size >= TEXT_A_FILE:
                    break
            out.write(packer.flush())
        yield FetchedFile(
            name=file,
            url=url,
            size_bytes=out.record.size_bytes,
            sha256=out.record.sha256,
            etag=None,
            last_modified=None,
            decoded_bytes=size,
            lines=2 * n_documents,
            fetched_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def _made(store: Store, snapshot: Snapshot, question: str) -> Manifest | None:
    """What is kept under a snapshot, if it is what is asked for; None where nothing is.

    Raises:
        BadRequest: if it is something else.
    """
    made = store.raw_manifest(snapshot)
    if made is None or made.fingerprint == question:
        return made
    pages = made.counts.get("ledger", {}).get("pages", 0)
    raise BadRequest(
        f"{snapshot}: other pages are kept under it, {pages:,} from {made.params.get('source', 'a dump')}: "
        f"take another --snapshot, or delete {store.raw(snapshot)}"
    )


def _vouch(
    store: Store,
    snapshot: Snapshot,
    files: Sequence[FetchedFile],
    *,
    question: str,
    params: dict[str, Any],
    inputs: dict[str, str],
    left_out: Sequence[Any],
    ledger: dict[str, Any],
    stats: dict[str, Any],
    on_size: Callable[[int], object],
    mine: Claim | None,
) -> Manifest:
    """Write down what was left out, then the manifest, last."""
    folder, size = store.raw(snapshot), sum(file.size_bytes for file in files)
    with whole_file(folder / "left_out.jsonl", fence=mine.fence if mine else nullcontext) as out:
        for each in left_out:
            out.write(msgspec.json.encode(each) + b"\n")
    records = {file.name: FileRecord(file.size_bytes, file.sha256) for file in files} | {"left_out.jsonl": out.record}
    manifest = Manifest(
        artifact="raw_dump",
        wiki=snapshot.wiki,
        snapshot=snapshot.date,
        fingerprint=question,
        code_version=OWN_VERSION,
        params=params,
        inputs=inputs,
        files={f"raw/{snapshot.date}/{name}": record for name, record in records.items()},
        counts={
            "files": [msgspec.to_builtins(file) for file in files],
            "size_bytes": size,
            "decoded_bytes": sum(file.decoded_bytes for file in files),
            "ledger": ledger,
        },
        stats=stats,
    )
    on_size(size)
    if mine:
        return mine.commit(manifest)
    write_json(folder / "manifest.json", manifest)
    return manifest


@contextmanager
def _alone(folder: UPath) -> Iterator[Claim | None]:
    """One process at a time makes a snapshot. On an object store, whoever claimed it last; nobody waits there."""
    busy = "another process is making this snapshot: wait for it, or end it"
    with locked(folder.with_name(f"{folder.name}.lock"), timeout_s=0, busy=busy):
        try:
            yield None if is_local(folder) else claim(folder / "manifest.json")
        finally:
            if is_local(folder) and folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _list(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in sorted(counts.items()))
