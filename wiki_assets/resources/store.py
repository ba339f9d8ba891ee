"""Where each artifact of each shard lies, under one data root.

<wiki>/wiki.json                           how many shards: fixed when the first one is made
<wiki>/raw/<date>/…                        as published, and manifest.json
<wiki>/articles/<date>/00003.parquet       one row a page, and 00003.json, its manifest
<wiki>/articles/<date>/split/<file>.json   what became of each dump file; its fragments until they are merged
<wiki>/tokens/<date>/00003.parquet         one row a page
<wiki>/passages/<date>/00003.parquet       one row a passage; made with tokens, under their manifest
<wiki>/embeddings/<date>/00003.parquet     one vector a passage
<wiki>/{tokens,embeddings}/<date>/00003.quarantine.jsonl   rows that could not be taken in, where there are any
<wiki>/lexical/<date>/000001/…             one BM25 index of the snapshot's passages; manifest.json names the newest
<wiki>/index/<date>-<build>/…              build.json, chroma/ (an embedded store) and shards/00003.json
<wiki>/eval/<date>/…                       how well the index answers: report.json, .md and .svg, and manifest.json
<wiki>/published.json                      the pointer that queries follow
<wiki>/published/000007.json               the same in an object store: the newest of its editions, which stay
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from upath import UPath

from wiki_assets.errors import BadRequest, DamagedArtifact, NotPublished, StoreRefused, Superseded
from wiki_assets.files import (
    Manifest,
    is_local,
    json_text,
    local_path,
    locked,
    make_file,
    names_in,
    read_json,
    read_manifest,
    remove,
    root_path,
    seal_holds,
    sealed,
    sizes_agree,
    sync_folder,
    write_json,
)
from wiki_assets.keys import Shard, Snapshot, check_shard_count, check_wiki

_BUILD = re.compile(r"([0-9]{8})-([0-9]+)")


@dataclass(frozen=True)
class Store:
    """The data root: paths and manifests, nothing that stays open. Workers get a copy."""

    root: str

    def wiki(self, wiki: str) -> UPath:
        """The folder of a wiki."""
        return root_path(self.root) / check_wiki(wiki)

    def wikis(self) -> list[str]:
        """Every wiki that has data here, in order."""
        root = root_path(self.root)
        if not root.is_dir():
            return []
        return sorted(folder.name for folder in root.iterdir() if (folder / "wiki.json").exists())

    def shard_count(self, wiki: str) -> int | None:
        """How many shards the wiki's data has; None where there is no data yet."""
        record = read_json(self.wiki(wiki) / "wiki.json")
        return int(record["shards"]) if record else None

    def fix_shard_count(self, wiki: str, count: int) -> int:
        """Record the shard count of a wiki's first data; refuse another one for ever after.

        Raises:
            BadRequest: if the data was made with another count.
        """
        check_shard_count(count)
        known = self.shard_count(wiki)
        if known is None:
            return self._first_shard_count(wiki, count)
        if known != count:
            raise BadRequest(
                f"{wiki}: {count} shards asked for, its data in {self.wiki(wiki)} has {known}: "
                f"set WIKI_ASSETS_SHARDS={known} "
                "(or its line in the wikis file), or use another WIKI_ASSETS_ROOT for a reshuffle"
            )
        return count

    def _first_shard_count(self, wiki: str, count: int) -> int:
        path, record = self.wiki(wiki) / "wiki.json", {"wiki": wiki, "shards": count}
        if is_local(path):
            write_json(path, record)
            return count
        try:
            make_file(path, json_text(record))
        except FileExistsError:  # another run was faster
            return self.fix_shard_count(wiki, count)
        try:
            make_file(path, json_text(record))  # which must be refused, or two runs could have one claim
        except FileExistsError:
            return count
        remove(path)
        raise StoreRefused(
            f"{path}: the store made an object again that was there, though asked not to (If-None-Match: *): "
            "two runs could write one shard; use a store that has conditional writes, or a folder"
        )

    def name(self, path: UPath) -> str:
        """A file as its manifest names it: relative to the wiki's folder."""
        return "/".join(path.parts[len(root_path(self.root).parts) + 1 :])

    def raw(self, snapshot: Snapshot) -> UPath:
        """The folder of a snapshot's dump files."""
        return self.wiki(snapshot.wiki) / "raw" / snapshot.date

    def file(self, artifact: str, shard: Shard) -> UPath:
        """A shard's file: `articles`, `tokens`, `passages` or `embeddings`."""
        return self.wiki(shard.snapshot.wiki) / artifact / shard.snapshot.date / f"{shard.name}.parquet"

    def quarantine(self, artifact: str, shard: Shard) -> UPath:
        """Where the rows of a shard lie that were set aside when `tokens` or `embeddings` was made, if any were."""
        return self.file(artifact, shard).with_suffix(".quarantine.jsonl")

    def manifest_path(self, artifact: str, shard: Shard, build: int | None = None) -> UPath:
        """The manifest of a shard's artifact; that of a row of an index needs its build."""
        if build is not None:
            return self.build(shard.snapshot, build) / "shards" / f"{shard.name}.json"
        return self.wiki(shard.snapshot.wiki) / artifact / shard.snapshot.date / f"{shard.name}.json"

    def manifest(self, artifact: str, shard: Shard) -> Manifest | None:
        """The manifest of a shard's artifact, if it is there and its files have the recorded sizes."""
        return self._with_files(self.manifest_path(artifact, shard), shard.snapshot.wiki)

    def raw_manifest(self, snapshot: Snapshot) -> Manifest | None:
        """The manifest of a snapshot's dump files, if it is there and they have the recorded sizes."""
        return self._with_files(self.raw(snapshot) / "manifest.json", snapshot.wiki)

    def split(self, snapshot: Snapshot) -> UPath:
        """The folder of a snapshot's split dump files."""
        return self.wiki(snapshot.wiki) / "articles" / snapshot.date / "split"

    def lexical(self, snapshot: Snapshot) -> UPath:
        """The folder of a snapshot's lexical indexes."""
        return self.wiki(snapshot.wiki) / "lexical" / snapshot.date

    def lexical_manifest(self, snapshot: Snapshot) -> Manifest | None:
        """The manifest of a snapshot's newest lexical index, if it is there and its files have the recorded sizes."""
        return self._with_files(self.lexical(snapshot) / "manifest.json", snapshot.wiki)

    def evaluation(self, snapshot: Snapshot) -> UPath:
        """The folder of a snapshot's evaluation."""
        return self.wiki(snapshot.wiki) / "eval" / snapshot.date

    def evaluation_manifest(self, snapshot: Snapshot) -> Manifest | None:
        """The manifest of a snapshot's evaluation, if it is there and its files have the recorded sizes."""
        return self._with_files(self.evaluation(snapshot) / "manifest.json", snapshot.wiki)

    def _with_files(self, path: UPath, wiki: str) -> Manifest | None:
        manifest = read_manifest(path)
        return manifest if manifest and sizes_agree(self.wiki(wiki), manifest) else None

    def dates(self, wiki: str, artifact: str = "raw") -> list[str]:
        """The snapshots of which there is anything of an artifact here, oldest first."""
        folder = self.wiki(wiki) / artifact
        return sorted(f.name for f in folder.iterdir() if f.is_dir() and len(f.name) == 8) if folder.is_dir() else []

    def build(self, snapshot: Snapshot, build: int) -> UPath:
        """The folder of one build of a snapshot's index."""
        return self.wiki(snapshot.wiki) / "index" / f"{snapshot.date}-{build}"

    def builds(self, snapshot: Snapshot) -> list[int]:
        """The builds of a snapshot's index, oldest first."""
        return sorted(number for date, number in self._all_builds(snapshot.wiki) if date == snapshot.date)

    def _all_builds(self, wiki: str) -> Iterator[tuple[str, int]]:
        folder = self.wiki(wiki) / "index"
        for entry in folder.iterdir() if folder.is_dir() else ():
            if (match := _BUILD.fullmatch(entry.name)) and (entry / "build.json").exists():
                yield match[1], int(match[2])

    def index_manifest(self, shard: Shard, build: int) -> Manifest | None:
        """The manifest of a shard's rows in one build of the index."""
        return read_manifest(self.manifest_path("index", shard, build))

    def pointer_path(self, wiki: str) -> UPath:
        """Where the pointer lies. In an object store: its newest edition, number 0 where there is none."""
        folder = self.wiki(wiki)
        if is_local(folder):
            return folder / "published.json"
        stems = [name.removesuffix(".json") for name in names_in(folder / "published")]
        return folder / "published" / _edition(max((int(stem) for stem in stems if stem.isdecimal()), default=0))

    def pointer(self, wiki: str) -> dict[str, Any] | None:
        """What is published for a wiki: snapshot, build, collection, model; None before the first time.

        Raises:
            DamagedArtifact: if the file is not what was written.
        """
        path = self.pointer_path(wiki)
        pointer = read_json(path)
        if pointer is None:
            return None
        if not seal_holds(pointer):
            raise DamagedArtifact(
                f"{path}: its bytes are not those that were written: "
                f"run wiki-assets reconcile {wiki}, then wiki-assets materialize {wiki}"
            )
        pointer.pop("seal", None)
        return pointer

    def published(self, wiki: str | None) -> dict[str, Any]:
        """The published index to ask; the only one, where no wiki is named.

        Raises:
            NotPublished: if there is none.
            BadRequest: if there are several and none was named.
        """
        if wiki is not None:
            pointer = self.pointer(wiki)
            if pointer is None:
                known = [w for w in self.wikis() if self.pointer(w)]
                raise NotPublished(
                    f"{wiki}: nothing is published under {root_path(self.root)} "
                    f"(published there: {', '.join(known) or 'no wiki'}): run wiki-assets materialize {wiki}"
                )
            return pointer
        pointers = [p for w in self.wikis() if (p := self.pointer(w))]
        if not pointers:
            raise NotPublished(
                f"nothing is published under {root_path(self.root)}: "
                "run wiki-assets materialize WIKI, or set WIKI_ASSETS_ROOT"
            )
        if len(pointers) > 1:
            raise BadRequest(
                f"several wikis are published: name one with --wiki: {', '.join(p['wiki'] for p in pointers)}"
            )
        return pointers[0]

    def publish(self, wiki: str, pointer: dict[str, Any], *, instead_of: dict[str, Any] | None) -> None:
        """Move the pointer, in one atomic step, if it still is what the caller saw.

        Raises:
            Superseded: if another run has moved it since.
        """
        with locked(self.wiki(wiki) / "published.lock"):
            path = self.pointer_path(wiki)  # before the pointer is read: an edition made since then makes ours fail
            now = self.pointer(wiki)
            if now == instead_of and _replace(path, sealed(pointer)):
                return
            now = self.pointer(wiki)
            raise Superseded(
                f"{wiki}: {now['collection'] if now else 'nothing'} is published, where this run saw "
                f"{instead_of['collection'] if instead_of else 'nothing'}: another run published meanwhile, and "
                "its index stands; materialize published_index again if this one is newer"
            )

    def withdraw(self, wiki: str) -> None:
        """Point to nothing. What the pointer was stays beside it, to be looked at."""
        with locked(self.wiki(wiki) / "published.lock"):
            path = self.pointer_path(wiki)
            if not is_local(path):
                _replace(path, None)
                return
            os.replace(local_path(path), local_path(path.with_name(f"{path.name}.damaged")))
            sync_folder(local_path(path).parent)


def _edition(number: int) -> str:
    return f"{number:06d}.json"


def _replace(path: UPath, pointer: dict[str, Any] | None) -> bool:
    """Put a pointer in place of that in `path`; on an object store as the next edition, if nobody has made it yet."""
    if is_local(path):
        write_json(path, pointer)
        return True
    mine = path.with_name(_edition(int(path.stem) + 1))
    try:
        make_file(mine, json_text(pointer))
    except FileExistsError:
        return read_json(mine) == pointer  # our own, if the answer was lost and the client asked again
    return True
