"""What of a wiki is kept, and the removal of the rest.

Kept are the newest snapshots, and whatever somebody needs: the published build, those to roll back to, what was rolled
back, what a run works on, what a question is being answered from, and the vectors that an unfinished snapshot takes
over. Of a snapshot that is kept only for its files, the index is retired: its rows go, its note stays.

Removing is done in an order in which being killed leaves nothing half-vouched for, and the next time does the rest:
what is derived goes first, each folder is out of sight before it is deleted.
"""

import os
import shutil
import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from upath import UPath

from wiki_assets.defs.previous import earlier, made_alike
from wiki_assets.defs.recipes import Cookbook, Recipe, code_version, collection_name, params
from wiki_assets.defs.rollback import history
from wiki_assets.failpoints import failpoint
from wiki_assets.files import is_local, local_path, locked, read_json, read_manifest, sealed, write_json
from wiki_assets.keys import Snapshot, is_own
from wiki_assets.resources.chroma import open_store
from wiki_assets.resources.pins import is_pinned

_DERIVED_FIRST = ("eval", "index", "lexical", "embeddings", "passages", "tokens", "articles", "raw")
_TRASH = ".trash"

Build = tuple[str, int]  # of which snapshot's date, and its number


@dataclass(frozen=True)
class Plan:
    """What of a wiki stays and what goes.

    Attributes:
        keep: the snapshots that stay, by date, and why.
        dates: the snapshots that go, with everything of them.
        builds: the builds of the others' indexes that are retired.
        words: folders of the others' lexical indexes that go; newer ones took their place.
        size_bytes: of what goes, on a disk.
    """

    wiki: str
    published: str = ""  # the pointer's snapshot; empty, and nothing goes, where nothing is published
    keep: dict[str, str] = field(default_factory=dict)
    dates: list[str] = field(default_factory=list)
    builds: list[Build] = field(default_factory=list)
    words: list[UPath] = field(default_factory=list)
    size_bytes: int = 0

    def __bool__(self) -> bool:
        return bool(self.dates or self.builds or self.words)

    def lines(self) -> Iterator[str]:
        """One a removal, for a person."""
        yield from (f"snapshot {date}" for date in self.dates)
        yield from (f"index {self.wiki}-{date}-{number}" for date, number in self.builds)
        yield from (f"lexical index {'/'.join(folder.parts[-2:])}" for folder in self.words)


def plan(book: Cookbook, *, busy: Collection[str] = ()) -> Plan:
    """What would go now.

    Args:
        book: the wiki's recipes; its config says how many snapshots and builds are kept.
        busy: dates that runs work on.
    """
    store, config = book.store, book.config
    pointer = store.pointer(config.wiki)
    if pointer is None:
        return Plan(config.wiki)
    needed = list(history(pointer))
    dates = dates_on_disk(book)
    pins = {build for build in _builds(book, dates) if is_pinned(_folder(book, build))}
    own = [date for date in dates if is_own(date)]  # counted apart: they sort before every dump
    dumps = [date for date in dates if date not in own]
    newest = [*own[-config.keep_snapshots :], *dumps[-config.keep_snapshots :]]
    keep = dict.fromkeys(newest, f"one of the newest {config.keep_snapshots}")
    keep |= {date: "a run works on it" for date in dates if date in busy}
    keep |= {date: "questions are being answered from it" for date, _ in pins}
    keep |= {p["snapshot"]: "to roll back to" for p in needed}
    keep |= {p["snapshot"]: "was rolled back" for p in pointer.get("rolled_back", ())}
    keep |= {pointer["snapshot"]: "published"}
    for date in sorted(keep):
        if date > pointer["snapshot"] or date in busy:
            for source in _sources_of(book, Snapshot(config.wiki, date), dates):
                keep.setdefault(source, f"{date} takes its vectors over")
    goes = [date for date in dates if date not in keep]
    stays = sorted(date for date in dates if date in keep)
    builds = [build for build in _retired(book, stays, needed, pointer) if build not in pins]
    words = list(_superseded_words(book, stays, needed))
    folders = [folder for date in goes for folder in _folders(book, date)]
    folders += [_folder(book, build) for build in builds] + words
    return Plan(config.wiki, pointer["snapshot"], keep, goes, builds, words, sum(map(_size_bytes, folders)))


def dates_on_disk(book: Cookbook) -> list[str]:
    """Every snapshot of which anything lies in the store, oldest first."""
    found: set[str] = set()
    for artifact in _DERIVED_FIRST:
        folder = book.store.wiki(book.config.wiki) / artifact
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        found |= {name[:8] for name in names if name[:8].isdecimal() and name[8:9] in ("", "-")}
    return sorted(found)


def _sources_of(book: Cookbook, snapshot: Snapshot, dates: Sequence[str]) -> Iterator[str]:
    """Older snapshots whose vectors an unfinished one will take over."""
    older = {date for date in dates if date < snapshot.date}
    for shard in book.shards(snapshot):
        if not older:
            return
        if book.made("embeddings", shard):
            continue
        version, values = code_version("embeddings", book.config), params("embeddings", book.config)
        recipe = Recipe("embeddings", shard, version, values, {})
        for source, _ in earlier(book.store, "embeddings", shard, lambda m, recipe=recipe: made_alike(m, recipe)):
            if source.snapshot.date in older:
                older.discard(source.snapshot.date)
                yield source.snapshot.date
            break


# --- builds of the index


def _builds(book: Cookbook, dates: Sequence[str]) -> list[Build]:
    """Builds that hold anything, oldest first."""
    found = [(date, number) for date in dates for number in book.store.builds(Snapshot(book.config.wiki, date))]
    return [build for build in found if any(True for _ in _content(_folder(book, build)))]


def _retired(book: Cookbook, dates: Sequence[str], needed: Sequence[dict], pointer: dict) -> Iterator[Build]:
    """Builds that nobody will ask: neither needed, nor among the newest whole ones, nor being made."""
    there = _builds(book, dates)
    published = (pointer["snapshot"], pointer["build"])
    protected = {(p["snapshot"], p["build"]) for p in needed}
    given_up = {build for build in there if (read_json(_folder(book, build) / "build.json") or {}).get("given_up")}
    whole = [build for build in reversed(there) if build not in given_up and _is_whole(book, build)]
    taken_back = {(p["snapshot"], p["build"]) for p in pointer.get("rolled_back", ())}
    spare = book.config.keep_builds - len(protected - taken_back)
    protected |= set([build for build in whole if build not in protected and build < published][: max(0, spare)])
    for build in there:
        being_made = build > published and build not in given_up
        if build not in protected and not being_made:
            yield build


def _is_whole(book: Cookbook, build: Build) -> bool:
    shards = book.shards(Snapshot(book.config.wiki, build[0]))
    return all((_folder(book, build) / "shards" / f"{shard.name}.json").exists() for shard in shards)


def _folder(book: Cookbook, build: Build) -> UPath:
    return book.store.build(Snapshot(book.config.wiki, build[0]), build[1])


def _content(folder: UPath) -> Iterator[UPath]:
    """What a build holds beside its note."""
    return (entry for entry in folder.iterdir() if entry.name != "build.json") if folder.is_dir() else iter(())


# --- lexical indexes


def _superseded_words(book: Cookbook, dates: Sequence[str], needed: Sequence[dict]) -> Iterator[UPath]:
    """Folders of a snapshot's lexical indexes but the newest, those that pointers name, and what is being written."""
    named = {p["lexical"]["folder"] for p in needed if p.get("lexical")}
    for date in dates:
        folder = book.store.lexical(Snapshot(book.config.wiki, date))
        manifest = read_manifest(folder / "manifest.json")
        newest = manifest.claim if manifest else 0
        for entry in sorted(folder.iterdir(), key=str) if newest else ():
            old = entry.name.isdecimal() and int(entry.name) < newest
            if old and f"lexical/{date}/{entry.name}" not in named:
                yield entry


# --- removing


def carry_out(book: Cookbook, *, busy: Collection[str] = ()) -> Plan:
    """Remove what nobody needs. What a killed one left goes as well.

    Returns:
        What went.

    Raises:
        SourceUnavailable: if the Chroma server that has collections to be deleted does not answer; nothing went then.
    """
    wiki = book.store.wiki(book.config.wiki)
    _empty(wiki / _TRASH)
    first = plan(book, busy=busy)
    _delete_collections(book, [*first.builds, *_all_builds(book, first.dates)])
    with locked(wiki / "published.lock"):  # the pointer stays where it is meanwhile
        found = plan(book, busy=busy)
        for build in found.builds:
            _retire(book, build)
        for folder in found.words:
            _out_of_sight(folder, wiki)
        for date in found.dates:
            for folder in _folders(book, date):
                _out_of_sight(folder, wiki)
    _empty(wiki / _TRASH)
    return found


def _all_builds(book: Cookbook, dates: Sequence[str]) -> list[Build]:
    return [(date, number) for date in dates for number in book.store.builds(Snapshot(book.config.wiki, date))]


def _delete_collections(book: Cookbook, builds: Sequence[Build]) -> None:
    """Those that servers hold: what a build was begun with says which."""
    for build in builds:
        note = read_json(_folder(book, build) / "build.json") or {}
        if server := note.get("params", {}).get("server"):
            name = collection_name(Snapshot(book.config.wiki, build[0]), build[1])
            with open_store(_folder(book, build) / "chroma", server) as client:
                if name in {collection.name for collection in client.list_collections()}:
                    client.delete_collection(name)


def _retire(book: Cookbook, build: Build) -> None:
    """Take a build's rows away. Its note stays and says so; a build of this number is never begun again."""
    folder = _folder(book, build)
    note = read_json(folder / "build.json") or {}
    reason = note.get("given_up") or "retired: newer ones are kept"
    write_json(folder / "build.json", sealed({**note, "given_up": reason, "retired": True}))
    failpoint("retention.remove")
    for entry in list(_content(folder)):
        _out_of_sight(entry, book.store.wiki(book.config.wiki))


def _folders(book: Cookbook, date: str) -> Iterator[UPath]:
    """Everything of a snapshot, what is derived first and what it was made from last."""
    wiki = book.store.wiki(book.config.wiki)
    for artifact in _DERIVED_FIRST:
        folder = wiki / artifact
        for entry in sorted(folder.iterdir(), key=str) if folder.is_dir() else ():
            if entry.name == date or (artifact == "index" and entry.name.startswith(f"{date}-")):
                yield entry


def _out_of_sight(entry: UPath, wiki: UPath) -> None:
    """On a disk, one step; in an object store, what vouches for the rest first."""
    failpoint("retention.remove")
    if is_local(entry):
        target = local_path(wiki / _TRASH) / f"{uuid.uuid4().hex[:8]}-{entry.name}"
        target.parent.mkdir(exist_ok=True)
        os.replace(local_path(entry), target)
        return
    for manifest in [path for path in entry.rglob("*.json") if path.is_file()]:
        manifest.unlink(missing_ok=True)
    entry.fs.rm(entry.path, recursive=True)


def _empty(trash: UPath) -> None:
    if is_local(trash):
        shutil.rmtree(local_path(trash), ignore_errors=True)


def _size_bytes(folder: UPath) -> int:
    """On a disk; 0 in an object store, where asking takes long."""
    if not is_local(folder):
        return 0
    return sum(Path(root, name).lstat().st_size for root, _, names in os.walk(local_path(folder)) for name in names)
