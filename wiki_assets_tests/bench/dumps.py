"""Which dump files the comparison reads, and a store with them in it, as if they had been fetched."""

import bz2
import gzip
import hashlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import msgspec

from wiki_assets.defs.recipes import RAW_VERSION, Cookbook
from wiki_assets.defs.wikis import WikiConfig
from wiki_assets.files import FileRecord, Manifest, fingerprint, write_json
from wiki_assets.keys import Snapshot
from wiki_assets.resources.models import DEFAULT_MODEL
from wiki_assets.resources.store import Store
from wiki_assets_tests.bench.measure import REPOSITORY

TINYWIKI = REPOSITORY / "wiki_assets_tests" / "tinywiki" / "dumps" / "other"
SHARDS = 2


@dataclass(frozen=True)
class Dump:
    """The dump files of one snapshot."""

    files: tuple[Path, ...]

    @property
    def snapshot(self) -> Snapshot:
        """Wiki and date, from the files' names."""
        name = self.files[0].name
        date = re.search(r"\d{8}", name) or re.search(r"\d{8}", str(self.files[0]))
        return Snapshot(re.split(r"_content|_general|-", name)[0], date[0] if date else "20260101")

    @property
    def label(self) -> str:
        """As the table names it."""
        return f"{self.snapshot} {self.files[0].suffix}"


def find_dumps(chosen: Sequence[Path]) -> list[Dump]:
    """The dumps to read: those named, else the sample of enwiki in both formats, else tinywiki.

    Args:
        chosen: dump files, or folders of the dump files of one snapshot each.
    """
    if chosen:
        return [Dump(tuple(_dump_files(path) if path.is_dir() else [path])) for path in chosen]
    sample = Path(os.environ.get("WIKI_ASSETS_TEST_DATA") or REPOSITORY.parent / "shared" / "data") / "dumps" / "other"
    if not sample.is_dir():
        return [tiny_dump()]
    return [
        Dump((sample / "cirrussearch" / "20251229" / "enwiki-20251229-cirrussearch-content.json.gz",)),
        Dump(tuple(_dump_files(sample / "cirrus_search_index" / "20260823" / "index_name=enwiki_content"))),
    ]


def tiny_dump() -> Dump:
    """Tinywiki, to warm up with: the snapshot without damaged lines, which the plain sides could not read."""
    return Dump((TINYWIKI / "cirrussearch" / "20240101" / "tinywiki-20240101-cirrussearch-content.json.gz",))


def _dump_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in (".gz", ".bz2"))


def unpacked(path: Path) -> BinaryIO:
    """The text of a dump file, to be read."""
    return cast(BinaryIO, (bz2.open if path.suffix == ".bz2" else gzip.open)(path))


def packed(path: Path) -> BinaryIO:
    """A dump file to write text to; packed as dumps are."""
    return cast(BinaryIO, bz2.open(path, "wb") if path.suffix == ".bz2" else gzip.open(path, "wb", compresslevel=6))


def thinned(dump: Dump, n_documents: int, folder: Path) -> Dump:
    """About so many documents of a dump, evenly spaced, so that they are as long as all of them on average."""
    pairs: list[tuple[bytes, bytes]] = []
    for path in dump.files:
        with unpacked(path) as lines:
            pairs += zip(lines, lines, strict=True)
    step = max(1, len(pairs) // n_documents)
    target = folder / dump.files[0].name
    with packed(target) as out:
        for action, document in pairs[::step]:
            out.write(action + document)
    return Dump((target,))


def repeated(dump: Dump, times: int, folder: Path) -> Dump:
    """A dump with each document so many times, under as many page ids: enough for a steady measurement."""
    if times == 1:
        return dump
    found = []
    for path in dump.files:
        target = folder / path.name
        with unpacked(path) as lines:
            pairs = [(json.loads(action)["index"], json.loads(next(lines))) for action in lines]
        with packed(target) as out:
            for number in range(times):
                for action, document in pairs:
                    page_id = int(action["_id"]) + number * 10**9
                    again = {"index": {**action, "_id": str(page_id)}}, {**document, "page_id": page_id}
                    out.writelines(msgspec.json.encode(line) + b"\n" for line in again)
        found.append(target)
    return Dump(tuple(found))


def fill_store(dump: Dump, root: Path, shards: int = SHARDS) -> Cookbook:
    """A store with the dump files and their manifest, as the raw_dump stage leaves it."""
    snapshot = dump.snapshot
    store = Store(str(root))
    folder = Path(store.raw(snapshot))
    folder.mkdir(parents=True)
    records: dict[str, FileRecord] = {}
    listed = []
    for path in dump.files:
        shutil.copyfile(path, folder / path.name)
        data = path.read_bytes()
        records[path.name] = FileRecord(len(data), hashlib.sha256(data).hexdigest())
        decoded_bytes = len((bz2 if path.suffix == ".bz2" else gzip).decompress(data))
        listed.append({"name": path.name, "sha256": records[path.name].sha256, "decoded_bytes": decoded_bytes})
    manifest = Manifest(
        artifact="raw_dump",
        wiki=snapshot.wiki,
        snapshot=snapshot.date,
        fingerprint=fingerprint(RAW_VERSION, [file["sha256"] for file in listed]),
        code_version=RAW_VERSION,
        params={},
        inputs={},
        files={f"raw/{snapshot.date}/{name}": record for name, record in records.items()},
        counts={"files": listed},
    )
    write_json(folder / "manifest.json", manifest)
    store.fix_shard_count(snapshot.wiki, shards)
    return Cookbook(WikiConfig(snapshot.wiki, shards, DEFAULT_MODEL, own_questions=0), store)


def page_texts(dump: Dump, limit: int) -> list[tuple[int, str, str, str]]:
    """Page id, title, text and language of the first pages of a dump."""
    found: list[tuple[int, str, str, str]] = []
    for path in dump.files:
        with unpacked(path) as lines:
            for action in lines:
                document = json.loads(next(lines))
                if document.get("page_type") != "redirect" and document.get("text"):
                    page_id = int(json.loads(action)["index"]["_id"])
                    found.append((page_id, document["title"], document["text"], document.get("language") or "en"))
                    if len(found) >= limit:
                        return found
    return found
