"""What the files prove: for each partition, whether every byte that its manifest vouches for is there.

Nothing here asks Dagster, or trusts a size: every file is read and hashed. A partition is

    PROVEN    its manifest is as it was written, and every file has the recorded SHA-256
    DAMAGED   something vouches for it, and is wrong; `problem` says what was found
    ABSENT    nothing vouches for it
    PAST      of `published_index`: another snapshot is the published one, and its index is there or was retired; of
              `chroma_collection`: the index was retired, newer ones are kept
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import msgspec
from upath import UPath

from wiki_assets.defs.lexical import lexical_recipe
from wiki_assets.defs.recipes import SHARD_ARTIFACTS, Blocked, Cookbook, collection_name
from wiki_assets.defs.work import passages_set_aside, splits_of
from wiki_assets.errors import BadRequest, DamagedArtifact, NotPublished, WikiAssetsError
from wiki_assets.files import FileRecord, Manifest, json_text, seal_holds, sealed, sha256_of
from wiki_assets.keys import Shard, Snapshot
from wiki_assets.resources.chroma import open_store, published_collection
from wiki_assets.stages.index import check_rows, rows_of_shard, self_recall, shard_rows

_FILE_ARTIFACTS = SHARD_ARTIFACTS[:3]
_COLLECTION = "chroma_collection"
_DROPPED = (".arrow", ".redirects.parquet")  # fragments of a split file: gone when every shard is merged
_BATCH_ROWS = 2_000
_RECALL_SAMPLE = 200
_MIN_RECALL = 0.99
_CHROMA = ("chromadb", "chromadb_rust_bindings", "pyo3_runtime", "sqlite3")  # where its errors are from
_LOOKS = 3  # at an artifact that is replaced while it is read


class State(StrEnum):
    """What is known of a partition."""

    PROVEN = "proven"
    DAMAGED = "damaged"
    ABSENT = "absent"
    PAST = "past"


@dataclass(frozen=True)
class Proof:
    """What the store proves of one partition of one asset.

    `suspects` are the files to set aside, so that it is made again: the manifest that vouches for what is not so; of
    a dump, the file that is not what was fetched. `stale` tells whether today's recipe would make
    something else; None where that cannot be told. `rows` were compared in the collection.
    """

    artifact: str
    snapshot: Snapshot
    partition: str
    state: State
    manifest: Manifest | None = None
    problem: str = ""
    suspects: tuple[UPath, ...] = ()
    files: int = 0
    size_bytes: int = 0
    rows: int = 0
    stale: bool | None = None
    shard: Shard | None = None

    @property
    def name(self) -> str:
        """As a person names it: `tinywiki articles 20250105|00002`."""
        return f"{self.snapshot.wiki} {self.artifact} {self.partition}"


@dataclass
class Evidence:
    """The proofs of one snapshot, and what else was seen."""

    snapshot: Snapshot
    proofs: list[Proof] = field(default_factory=list)
    pointer: dict[str, Any] | None = None
    build: int | None = None  # the current build of the index
    build_problem: str = ""  # why its collection cannot be gone on with
    unvouched: list[str] = field(default_factory=list)  # data files that no manifest names

    def of(self, artifact: str) -> dict[str, Proof]:
        """The proofs of one asset, by partition."""
        return {proof.partition: proof for proof in self.proofs if proof.artifact == artifact}


def snapshots_of(book: Cookbook) -> list[Snapshot]:
    """Every snapshot of which anything lies in the store, oldest first."""
    wiki = book.config.wiki
    dates: set[str] = set()
    for artifact in ("raw", "articles", "tokens", "passages", "embeddings", "index"):
        folder = book.store.wiki(wiki) / artifact
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        dates |= {name[:8] for name in names if name[:8].isdecimal() and name[8:9] in ("", "-")}
    found = []
    for date in sorted(dates):
        try:
            found.append(Snapshot(wiki, date))
        except BadRequest:  # a folder of somebody else's
            continue
    return found


def gather(book: Cookbook, snapshot: Snapshot, *, index: bool = True) -> Evidence:
    """Read and hash everything of a snapshot.

    Args:
        book: the wiki's recipes; its `chroma` is the server, if there is one.
        snapshot: which one.
        index: also compare every row of the collection with the files it was made from.

    Raises:
        SourceUnavailable: if the Chroma server does not answer.
    """
    evidence = Evidence(snapshot)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        reader = _Reader(book, snapshot, pool)
        raw = reader.raw()
        cells = {artifact: reader.cells(artifact) for artifact in _FILE_ARTIFACTS}
        words = reader.words()
        _answer_for_splits(reader, raw, cells["articles"])
    rows = _Index(book, snapshot, cells, evidence)
    indexed = rows.cells(compare=index)
    evidence.proofs = [raw, *(proof for proofs in cells.values() for proof in proofs), words, *indexed]
    evidence.proofs.append(rows.published(indexed, compare=index))
    evidence.proofs = [_with_staleness(book, proof) for proof in evidence.proofs]
    evidence.unvouched = list(_unvouched(book, snapshot, cells))
    return evidence


# --- files


class _Reader:
    """Reads manifests of one snapshot, and hashes what they name, several files at a time."""

    def __init__(self, book: Cookbook, snapshot: Snapshot, pool: ThreadPoolExecutor) -> None:
        self._book = book
        self._snapshot = snapshot
        self._pool = pool
        self._root = book.store.wiki(snapshot.wiki)

    def raw(self) -> Proof:
        """The dump files."""
        path = self._book.store.raw(self._snapshot) / "manifest.json"
        blank = Proof("raw_dump", self._snapshot, self._snapshot.date, State.ABSENT)
        return self.prove(blank, path, at_once=self._pool.map)

    def words(self) -> Proof:
        """The lexical index."""
        path = self._book.store.lexical(self._snapshot) / "manifest.json"
        blank = Proof("lexical_index", self._snapshot, self._snapshot.date, State.ABSENT)
        return self.prove(blank, path, at_once=self._pool.map)

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
        if problem := _misplaced(blank, manifest):
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


def read_bytes(path: UPath) -> bytes | None:
    """A small file's bytes; None where there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def parse_manifest(data: bytes) -> tuple[Manifest | None, str]:
    """A manifest that is, byte for byte, as it was written; or what is wrong with it."""
    try:
        record = msgspec.json.decode(data)
        manifest = msgspec.convert(record, Manifest)
    except (ValueError, RecursionError):
        return None, "no manifest, though it stands where one should"
    return (manifest, "") if as_written(record, data) else (None, "its bytes are not those that were written")


def as_written(record: dict[str, Any], data: bytes) -> bool:
    """Whether a record's bytes are those that were written: its seal holds, and is not hidden under another name."""
    if not seal_holds(record) or json_text(record) != data:
        return False
    rest = ({key: value for key, value in record.items() if key != name} for name in record if "seal" not in record)
    return all(sealed(body)["seal"] not in record.values() for body in rest)


def _misplaced(blank: Proof, manifest: Manifest) -> str:
    """Whether a manifest is another partition's."""
    found = (manifest.artifact, manifest.wiki, manifest.snapshot, manifest.shard)
    number = blank.shard.number if blank.shard else None
    expected = (blank.artifact, blank.snapshot.wiki, blank.snapshot.date, number)
    return "" if found == expected else f"the manifest of {blank.name} describes {found}, expected {expected}"


def _answer_for_splits(reader: _Reader, raw: Proof, articles: list[Proof]) -> None:
    """What became of each dump file's documents, its ledger and its quarantine, belongs to `articles` as a whole.

    One shard answers for each dump file, or range of one: made again, it splits that again.
    """
    book = reader._book
    if raw.manifest is None:
        return
    for number, split in enumerate(splits_of(book.store, book.config, raw.snapshot, raw=raw.manifest)):
        at = number % len(articles)
        cell = articles[at]
        if cell.manifest is None:
            continue
        path = split.manifest_path
        ledger = reader.prove(Proof("split", raw.snapshot, raw.snapshot.date, State.ABSENT), path)
        cell = replace(cell, files=cell.files + ledger.files, size_bytes=cell.size_bytes + ledger.size_bytes)
        if ledger.state is not State.PROVEN:
            own = reader._book.store.manifest_path("articles", cell.shard) if cell.shard else None
            problem = ledger.problem or f"{path}: missing, and with it what became of {split.name}'s documents"
            suspects = dict.fromkeys([*cell.suspects, *ledger.suspects, *([own] if own else [])])
            cell = replace(
                cell, state=State.DAMAGED, problem=cell.problem or problem, suspects=tuple(suspects)
            )  # fmt: skip
        articles[at] = cell


def _with_staleness(book: Cookbook, proof: Proof) -> Proof:
    """Whether today's recipe would make something else of the same inputs."""
    if proof.artifact == "lexical_index" and proof.state is State.PROVEN and proof.manifest is not None:
        try:
            now = lexical_recipe(book, proof.snapshot).fingerprint
        except (Blocked, WikiAssetsError):
            return proof
        return replace(proof, stale=now != proof.manifest.fingerprint)
    if proof.state is not State.PROVEN or proof.shard is None or proof.manifest is None:
        return proof
    try:
        recipe = book.recipe(proof.artifact, proof.shard)
    except (Blocked, WikiAssetsError):  # its input is not there, or the model is not on this machine
        return proof
    return replace(proof, stale=recipe.fingerprint != proof.manifest.fingerprint)


def _unvouched(book: Cookbook, snapshot: Snapshot, cells: dict[str, list[Proof]]) -> Iterator[str]:
    """Data files that no manifest names: left by a killed run, or robbed of their manifest."""
    named = {name for proofs in cells.values() for p in proofs if p.manifest for name in p.manifest.files}
    for artifact in ("articles", "tokens", "passages", "embeddings"):
        folder = book.store.wiki(snapshot.wiki) / artifact / snapshot.date
        for path in sorted(folder.glob("*.parquet")) if folder.is_dir() else ():
            name = f"{artifact}/{snapshot.date}/{path.name}"
            if name not in named:
                yield name


# --- the index


class _Index:
    """The collection of a snapshot's current build, and the pointer."""

    def __init__(self, book: Cookbook, snapshot: Snapshot, cells: dict[str, list[Proof]], evidence: Evidence) -> None:
        self._book = book
        self._snapshot = snapshot
        self._cells = cells
        self._evidence = evidence

    def cells(self, *, compare: bool) -> list[Proof]:
        """Every shard's rows in the current build."""
        shards = self._book.shards(self._snapshot)
        blanks = [Proof(_COLLECTION, self._snapshot, s.partition_key, State.ABSENT, shard=s) for s in shards]
        build = self._evidence.build = self._current()
        if build is None:
            return [replace(blank, state=State.PAST) for blank in blanks] if self._is_retired() else blanks
        found = [self._manifest(blank, build) for blank in blanks]
        if not compare or not any(proof.state is State.PROVEN for proof in found):
            return found
        return self._compare(build, found)

    def _current(self) -> int | None:
        """The build to go on with. A build whose own note is damaged is none."""
        store, snapshot = self._book.store, self._snapshot
        builds = store.builds(snapshot)
        note, problem = self._note(builds[-1]) if builds else ({}, "")
        if problem:
            self._evidence.build_problem = problem
            return None
        try:
            return self._book.current_build(snapshot)
        except WikiAssetsError:  # the model is not on this machine
            return builds[-1] if builds and not note.get("given_up") else None

    def _is_retired(self) -> bool:
        """Whether the snapshot is kept without its index; see retention.py."""
        builds = self._book.store.builds(self._snapshot)
        return bool(builds) and bool(self._note(builds[-1])[0].get("retired"))

    def _note(self, build: int) -> tuple[dict[str, Any], str]:
        """What a build's own note says, and what is wrong with it."""
        path = self._book.store.build(self._snapshot, build) / "build.json"
        data = read_bytes(path)
        if data is None:
            return {}, f"{path}: missing"
        try:
            note = msgspec.json.decode(data, type=dict[str, Any])
        except (ValueError, RecursionError):
            note = {}
        return note, "" if as_written(note, data) else f"{path}: its bytes are not those that were written"

    def _manifest(self, blank: Proof, build: int) -> Proof:
        assert blank.shard is not None
        path = self._book.store.manifest_path("index", blank.shard, build)
        data = read_bytes(path)
        if data is None:
            return blank
        manifest, problem = parse_manifest(data)
        problem = f"{path}: {problem}" if manifest is None else _misplaced(blank, manifest)
        state = State.DAMAGED if problem else State.PROVEN
        return replace(blank, state=state, manifest=manifest, problem=problem, suspects=(path,) if problem else ())

    def _compare(self, build: int, found: list[Proof]) -> list[Proof]:
        """Hold every row against the Parquet file it came from."""
        name = collection_name(self._snapshot, build)
        try:
            with open_store(self._book.store.build(self._snapshot, build) / "chroma", self._book.chroma) as client:
                collection = published_collection(client, name)
                checked = [self._rows(collection, proof) for proof in found]
                if all(proof.state is State.PROVEN for proof in checked):
                    self._whole(collection, checked)
                return self._blame(checked)
        except NotPublished as error:
            self._evidence.build_problem = str(error)
        except BaseException as error:
            self._evidence.build_problem = _unreadable(name, error)
        return self._blame(found)

    def _rows(self, collection: Any, proof: Proof) -> Proof:
        """Rows of one shard. Where their source changed or is damaged since, only their number can be held to."""
        shard, manifest = proof.shard, proof.manifest
        if proof.state is not State.PROVEN or shard is None or manifest is None:
            return proof
        sources = [self._cells[artifact][shard.number] for artifact in _FILE_ARTIFACTS]
        made_from = sources[-1].manifest.data_version if sources[-1].manifest else None
        whole = all(s.state is State.PROVEN for s in sources) and manifest.inputs.get("embeddings") == made_from
        expected = int(manifest.counts["indexed"])
        try:
            if whole:
                self._same(collection, shard)
            if (rows := rows_of_shard(collection, shard.number)) != expected:
                raise DamagedArtifact(f"collection {collection.name}: {rows} rows of {shard}, {expected} were written")
        except WikiAssetsError as error:
            self._evidence.build_problem = str(error)
            return replace(proof, state=State.DAMAGED, problem=str(error))
        return replace(proof, rows=expected)

    def _same(self, collection: Any, shard: Shard) -> None:
        store = self._book.store
        with (
            store.file("articles", shard).open("rb") as articles,
            store.file("passages", shard).open("rb") as passages,
            store.file("embeddings", shard).open("rb") as embeddings,
        ):
            files = {"articles": articles, "passages": passages, "embeddings": embeddings}
            aside = passages_set_aside(store, shard)
            for rows in shard_rows(**files, shard=shard, batch_size=_BATCH_ROWS, set_aside=aside):
                check_rows(collection, rows)

    def _whole(self, collection: Any, proofs: Sequence[Proof]) -> None:
        """No row too many, and the graph finds them."""
        expected = sum(int(p.manifest.counts["indexed"]) for p in proofs if p.manifest)
        if (rows := collection.count()) != expected:
            self._evidence.build_problem = f"collection {collection.name}: {rows} rows, {expected} were written"
            return
        ids = collection.get(limit=_RECALL_SAMPLE, include=[])["ids"]
        if (recall := self_recall(collection, ids)) < _MIN_RECALL:
            self._evidence.build_problem = (
                f"collection {collection.name}: {recall:.0%} of its rows are found by their own vector"
            )

    def _blame(self, proofs: list[Proof]) -> list[Proof]:
        """A collection is whole or it is not: what is wrong with it is wrong with every shard that claims rows."""
        problem = self._evidence.build_problem
        if not problem:
            return proofs
        return [
            replace(p, state=State.DAMAGED, problem=p.problem or problem) if p.state is State.PROVEN else p
            for p in proofs
        ]

    def published(self, indexed: Sequence[Proof], *, compare: bool) -> Proof:
        """Whether the pointer is at this snapshot, and what it points to is whole."""
        store, snapshot = self._book.store, self._snapshot
        blank = Proof("published_index", snapshot, snapshot.date, State.ABSENT)
        path = store.wiki(snapshot.wiki) / "published.json"
        try:
            pointer = store.pointer(snapshot.wiki)
        except DamagedArtifact as error:
            return replace(blank, state=State.DAMAGED, problem=str(error).partition(": run ")[0], suspects=(path,))
        if pointer is None:
            return blank
        self._evidence.pointer = pointer
        data = read_bytes(path) or b"{}"
        if not as_written(msgspec.json.decode(data), data):
            problem = f"{path}: its bytes are not those that were written"
            return replace(blank, state=State.DAMAGED, problem=problem, suspects=(path,))
        if pointer["snapshot"] != snapshot.date:
            whole = bool(indexed) and all(proof.manifest or proof.state is State.PAST for proof in indexed)
            return replace(blank, state=State.PAST) if whole else blank
        note, problem = self._note(pointer["build"])
        problem = problem or (
            f"build {pointer['build']} was given up: {note['given_up']}" if "given_up" in note else ""
        )
        if compare and not problem:
            problem = self._evidence.build_problem if pointer["build"] == self._evidence.build else self._short(pointer)
        if problem:
            return replace(blank, state=State.DAMAGED, problem=problem)
        return replace(blank, state=State.PROVEN, files=1, size_bytes=len(data))

    def _short(self, pointer: dict[str, Any]) -> str:
        """Whether the published collection is not there, or has not the rows that were published."""
        folder = self._book.store.build(self._snapshot, pointer["build"]) / "chroma"
        try:
            with open_store(folder, self._book.chroma or pointer["server"]) as client:
                rows = published_collection(client, pointer["collection"]).count()
        except NotPublished as error:
            return str(error)
        except BaseException as error:
            return _unreadable(pointer["collection"], error)
        expected = pointer["passages"]
        return "" if rows == expected else f"collection {pointer['collection']}: {rows} rows, {expected} were published"


def _unreadable(name: str, error: BaseException) -> str:
    """What is wrong with a collection that Chroma cannot read; raises what is not Chroma's.

    Its Rust side panics past `Exception`.
    """
    if type(error).__module__.split(".")[0] not in _CHROMA:
        raise error
    return f"collection {name} cannot be read ({type(error).__name__}: {str(error).splitlines()[0]})"
