"""Proofs of the index: every row of a collection is held against the files it was made from."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec

from wiki_assets.defs.recipes import Cookbook, collection_name
from wiki_assets.defs.upkeep.proof import Evidence, Proof, State, as_written, misplaced, parse_manifest, read_bytes
from wiki_assets.defs.work import passages_set_aside
from wiki_assets.errors import DamagedArtifact, NotPublished, WikiAssetsError
from wiki_assets.keys import Shard, Snapshot
from wiki_assets.resources.chroma import open_store, published_collection
from wiki_assets.stages.index import check_rows, rows_of_shard, self_recall, shard_rows

FILE_ARTIFACTS = ("articles", "tokens", "embeddings")
_COLLECTION = "chroma_collection"
_BATCH_ROWS = 2_000
_RECALL_SAMPLE = 200
_MIN_RECALL = 0.99
_CHROMA = ("chromadb", "chromadb_rust_bindings", "pyo3_runtime", "sqlite3")  # where its errors are from


class IndexProofs:
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
        problem = f"{path}: {problem}" if manifest is None else misplaced(blank, manifest)
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
        sources = [self._cells[artifact][shard.number] for artifact in FILE_ARTIFACTS]
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
        path = store.pointer_path(snapshot.wiki)
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
