"""Proofs of files: each manifest is read, and every file it names is hashed."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from upath import UPath

from wiki_assets.defs.recipes import Cookbook
from wiki_assets.defs.upkeep.proof import Proof, State, misplaced, parse_manifest, read_bytes
from wiki_assets.defs.work import splits_of
from wiki_assets.files import FileRecord, sha256_of
from wiki_assets.keys import Snapshot

_DROPPED = (".arrow", ".redirects.parquet")  # fragments of a split file: gone when every shard is merged
_LOOKS = 3  # at an artifact that is replaced while it is read


class FileProofs:
    """Reads manifests of one snapshot, and hashes what they name, several files at a time."""

    def __init__(self, book: Cookbook, snapshot: Snapshot, pool: ThreadPoolExecutor) -> None:
        self._book = book
        self._snapshot = snapshot
        self._pool = pool
        self._root = book.store.wiki(snapshot.wiki)

    def raw(self) -> Proof:
        """The dump files."""
        return self._of_date("raw_dump", self._book.store.raw(self._snapshot))

    def words(self) -> Proof:
        """The lexical index."""
        return self._of_date("lexical_index", self._book.store.lexical(self._snapshot))

    def evaluation(self) -> Proof:
        """What was measured."""
        return self._of_date("evaluation", self._book.store.evaluation(self._snapshot))

    def _of_date(self, artifact: str, folder: UPath) -> Proof:
        blank = Proof(artifact, self._snapshot, self._snapshot.date, State.ABSENT)
        return self.prove(blank, folder / "manifest.json", at_once=self._pool.map)

    def cells(self, artifact: str) -> list[Proof]:
        """Every shard of an artifact."""
        store = self._book.store
        tasks = []
        for shard in self._book.shards(self._snapshot):
            blank = Proof(artifact, self._snapshot, shard.partition_key, State.ABSENT, shard=shard)
            tasks.append(self._pool.submit(self.prove, blank, store.manifest_path(artifact, shard)))
        return [task.result() for task in tasks]

    def prove(self, blank: Proof, path: UPath, at_once: Any = map) -> Proof:
        """Read a manifest, and every file it names. What is replaced meanwhile is looked at again."""
        found = blank
        try:
            for _ in range(_LOOKS):
                data = read_bytes(path)
                if data is None:
                    return blank
                found = self._look(blank, path, data, at_once)
                if found.state is State.PROVEN or read_bytes(path) == data:
                    return found
        except OSError as error:
            return replace(blank, state=State.DAMAGED, problem=f"{path}: cannot be read ({error.strerror or error})")
        return found

    def _look(self, blank: Proof, path: UPath, data: bytes, at_once: Any) -> Proof:
        manifest, problem = parse_manifest(data)
        if manifest is None:
            return replace(blank, state=State.DAMAGED, problem=f"{path}: {problem}", suspects=(path,))
        named = {name: record for name, record in manifest.files.items() if not name.endswith(_DROPPED)}
        size = sum(record.size_bytes for record in named.values())
        found = replace(blank, manifest=manifest, files=len(named), size_bytes=size)
        if problem := misplaced(blank, manifest):
            return replace(found, state=State.DAMAGED, problem=problem, suspects=(path,))
        wrong = [
            (self._root / name, problem)
            for name, problem in zip(manifest.files, at_once(self._file, manifest.files.items()), strict=True)
            if problem
        ]
        if not wrong:
            return replace(found, state=State.PROVEN)
        # a dump's manifest stays: it says what to fetch again, and every page was made from what it names
        aside = [file for file, _ in wrong if file.exists()] if blank.artifact == "raw_dump" else [path]
        return replace(found, state=State.DAMAGED, problem=wrong[0][1], suspects=tuple(aside))

    def _file(self, named: tuple[str, FileRecord]) -> str:
        """What is wrong with a file; nothing, if it is, byte for byte, the one recorded."""
        name, record = named
        path = self._root / name
        try:
            found = sha256_of(path)
        except FileNotFoundError:
            if name.endswith(_DROPPED):
                return ""
            return f"{path}: missing, its manifest says {record.size_bytes:,} bytes"
        except OSError as error:
            return f"{path}: cannot be read ({error.strerror or error})"
        if found == record.sha256:
            return ""
        return f"{path}: SHA-256 {found[:12]}…, its manifest says {record.sha256[:12]}…"

    def answer_for_splits(self, raw: Proof, articles: list[Proof]) -> None:
        """What became of each dump file's documents, its ledger and its quarantine, belongs to `articles` as a whole.

        One shard answers for each dump file, or range of one: made again, it splits that again.
        """
        book = self._book
        if raw.manifest is None:
            return
        for number, split in enumerate(splits_of(book.store, book.config, raw.snapshot, raw=raw.manifest)):
            at = number % len(articles)
            cell = articles[at]
            if cell.manifest is None:
                continue
            path = split.manifest_path
            ledger = self.prove(Proof("split", raw.snapshot, raw.snapshot.date, State.ABSENT), path)
            cell = replace(cell, files=cell.files + ledger.files, size_bytes=cell.size_bytes + ledger.size_bytes)
            if ledger.state is not State.PROVEN:
                own = self._book.store.manifest_path("articles", cell.shard) if cell.shard else None
                problem = ledger.problem or f"{path}: missing, and with it what became of {split.name}'s documents"
                suspects = dict.fromkeys([*cell.suspects, *ledger.suspects, *([own] if own else [])])
                cell = replace(
                    cell, state=State.DAMAGED, problem=cell.problem or problem, suspects=tuple(suspects)
                )  # fmt: skip
            articles[at] = cell
