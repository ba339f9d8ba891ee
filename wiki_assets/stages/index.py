"""Vectors to a Chroma collection, shard by shard; a question to hits.

A collection is added to, never rewritten: a changed shard means another build. So a row that is already there
is either the row we would write, and is left alone, or proof that this build holds something else.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import IO, TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wiki_assets.errors import BadRequest, DamagedArtifact, LedgerBroken, SchemaMismatch
from wiki_assets.keys import Shard
from wiki_assets.stages.embeddings import read_vectors

if TYPE_CHECKING:
    from chromadb import Collection

CODE_VERSION = "index-1"
MAX_K = 1_000
MAX_QUERY_BYTES = 8 << 10
HNSW = {
    "space": "cosine",
    "ef_construction": 200,
    "ef_search": 200,
    "max_neighbors": 16,
    "batch_size": 5_000,
    "sync_threshold": 50_000,
}
_TOLERANCE = 1e-5  # Chroma normalizes again, in float32


@dataclass(frozen=True)
class Rows:
    """Some rows of a collection, as they shall stand in it."""

    ids: list[str]
    vectors: NDArray[np.float32]
    documents: list[str]
    metadatas: list[dict[str, Any]]


def shard_rows(
    articles: IO[bytes],
    passages: IO[bytes],
    embeddings: IO[bytes],
    *,
    shard: Shard,
    batch_size: int,
    set_aside: Sequence[str] = (),
) -> Iterator[Rows]:
    """Join a shard's three files into rows for the collection, in the order of the passages.

    Args:
        articles: Parquet, as are the others.
        passages: of which some have no vector, if they are in `set_aside`.
        embeddings: in the order of the passages.
        shard: whose rows these are.
        batch_size: rows at a time.
        set_aside: ids of passages that no vector could be made of.

    Raises:
        LedgerBroken: if there is not exactly one vector for each other passage, in the same order.
    """
    ids, vectors = read_vectors(embeddings)
    spans = pq.read_table(passages, columns=["passage_id", "page_id", "ordinal", "start", "end"])
    if set_aside:
        aside = set(set_aside)
        spans = spans.filter(pa.array([name not in aside for name in spans["passage_id"].to_pylist()]))
    if spans["passage_id"].to_pylist() != ids:
        raise LedgerBroken(
            f"{shard}: {len(spans)} passages and {len(ids)} vectors are not the same rows: materialize embeddings again"
        )
    pages = pq.read_table(articles, columns=["page_id", "title", "url", "revision", "language", "text"])
    place = {page_id: row for row, page_id in enumerate(pages["page_id"].to_pylist())}
    title, url, revision, language, text = (
        pages[c].to_pylist() for c in ("title", "url", "revision", "language", "text")
    )
    page_of, ordinal, start, end = (spans[c].to_pylist() for c in ("page_id", "ordinal", "start", "end"))
    for first in range(0, len(ids), batch_size):
        rows = range(first, min(first + batch_size, len(ids)))
        at = [place[page_of[r]] for r in rows]
        yield Rows(
            ids[first : first + batch_size],
            vectors[first : first + batch_size],
            [text[p][start[r] : end[r]].strip() for r, p in zip(rows, at, strict=True)],
            [
                {
                    "page_id": page_of[r],
                    "title": title[p],
                    "url": url[p],
                    "revision": revision[p],
                    "language": language[p],
                    "passage": ordinal[r],
                    "start": start[r],
                    "end": end[r],
                    "snapshot": shard.snapshot.date,
                    "wiki": shard.snapshot.wiki,
                    "shard": shard.number,
                }
                for r, p in zip(rows, at, strict=True)
            ],
        )


def add_rows(collection: "Collection", rows: Rows, *, fresh: bool) -> int:
    """Add rows; with `fresh` none of them can be there yet, otherwise only those that are missing are added.

    Returns:
        How many rows were added.
    """
    if fresh:
        missing = list(range(len(rows.ids)))
    else:
        present = set(collection.get(ids=rows.ids, include=[])["ids"])
        missing = [i for i, name in enumerate(rows.ids) if name not in present]
    if missing:
        collection.add(
            ids=[rows.ids[i] for i in missing],
            embeddings=rows.vectors[missing],
            documents=[rows.documents[i] for i in missing],
            metadatas=[rows.metadatas[i] for i in missing],  # type: ignore[arg-type]
        )
    return len(missing)


def check_rows(collection: "Collection", rows: Rows) -> None:
    """Read rows back and compare ids, vectors, documents and metadata with what they should be.

    Raises:
        DamagedArtifact: naming the first row that is missing or differs.
    """
    found = collection.get(ids=rows.ids, include=["embeddings", "documents", "metadatas"])
    place = {name: i for i, name in enumerate(found["ids"])}
    lost = [name for name in rows.ids if name not in place]
    if lost:
        raise DamagedArtifact(f"collection {collection.name}: {len(lost)} rows are not there, the first is {lost[0]}")
    order = [place[name] for name in rows.ids]
    vectors = np.asarray(found["embeddings"], np.float32)[order]
    apart = np.abs(vectors - rows.vectors).max(axis=1) if len(order) else np.zeros(0)
    documents, metadatas = found["documents"] or [], found["metadatas"] or []
    for i, name in enumerate(rows.ids):
        if (
            not apart[i] <= _TOLERANCE
            or documents[order[i]] != rows.documents[i]
            or metadatas[order[i]] != rows.metadatas[i]
        ):
            raise DamagedArtifact(
                f"collection {collection.name}: row {name} is not what was written (vector off by {apart[i]:.1e})"
            )


def has_shard(collection: "Collection", number: int) -> bool:
    """Whether any row of a shard is in the collection."""
    return bool(collection.get(where={"shard": number}, limit=1, include=[])["ids"])


def rows_of_shard(collection: "Collection", number: int) -> int:
    """How many rows of a shard the collection holds."""
    return len(collection.get(where={"shard": number}, include=[])["ids"])


def self_recall(collection: "Collection", ids: Sequence[str]) -> float:
    """Share of rows that are among the nearest three of their own vector: 1 unless the graph lost them.

    Three, since a page and its twin may hold the same words.
    """
    if not ids:
        return 1.0
    found = collection.get(ids=list(ids), include=["embeddings"])
    near = collection.query(
        query_embeddings=np.asarray(found["embeddings"], np.float32), n_results=3, include=["distances"]
    )
    distances = near["distances"] or []
    hits = sum(
        name in names or (len(d) > 0 and d[0] < _TOLERANCE)
        for name, names, d in zip(found["ids"], near["ids"], distances, strict=True)
    )
    return hits / len(ids)


class Row(msgspec.Struct, frozen=True):
    """What is shown of a passage. `start` and `end` count characters of the page's text."""

    passage_id: str
    page_id: int
    title: str
    url: str
    revision: int
    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Hit:
    """One passage that answers a question; offsets count characters of the page.

    `score` orders the hits of one answer: cosine similarity, BM25, or both mixed, by the answer's mode. `permalink`
    shows the revision that was read. A rank or similarity is None where that leg did not return the passage.
    """

    rank: int
    score: float
    page_id: int
    title: str
    url: str
    revision: int
    passage: str
    start: int
    end: int
    snapshot: str
    wiki: str
    permalink: str = ""
    similarity: float | None = None
    dense_rank: int | None = None
    lexical_rank: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def check_k(k: int) -> int:
    """Return `k` if so many passages can be asked for.

    Raises:
        BadRequest: if it is not 1 to `MAX_K`.
    """
    if not 1 <= k <= MAX_K:
        raise BadRequest(f"-k {k}: expected 1 to {MAX_K} passages")
    return k


def check_question(text: str, k: int) -> str:
    """Return the question without surrounding blanks, if it can be asked.

    Raises:
        BadRequest: if it is empty, too long, or not text; or if `k` is out of bounds.
    """
    check_k(k)
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise BadRequest("the question is not valid Unicode text (half a surrogate pair): type it again") from None
    if size > MAX_QUERY_BYTES:
        raise BadRequest(f"the question has {size:,} bytes: expected at most {MAX_QUERY_BYTES:,}; ask for less at once")
    question = text.replace("\0", " ").strip()
    if not question:
        raise BadRequest('the question is empty: expected some words, such as "Which animals spit?"')
    return question


def nearest_passages(
    collection: "Collection", vector: NDArray[np.float32], k: int, *, among: Sequence[str] | None = None
) -> list[tuple[str, float]]:
    """The k passages nearest to a question's vector, best first: their ids and cosine similarities.

    Args:
        collection: a published one.
        vector: float32 [dim].
        k: how many.
        among: ids of the only passages to choose from.

    Raises:
        SchemaMismatch: if the vector's width is not the collection's.
    """
    return nearest_to_each(collection, [vector], k, among=among)[0]


def nearest_to_each(
    collection: "Collection", vectors: Sequence[NDArray[np.float32]], k: int, *, among: Sequence[str] | None = None
) -> list[list[tuple[str, float]]]:
    """`nearest_passages` of several questions, in their order, by one request."""
    width = (collection.metadata or {}).get("dim", len(vectors[0]))
    if unlike := [len(vector) for vector in vectors if len(vector) != width]:
        raise SchemaMismatch(
            f"a question of {unlike[0]} dimensions, the collection has {width}: ask with the model it was made with"
        )
    found: Any = collection.query(
        query_embeddings=list(vectors), n_results=k, include=["distances"], ids=None if among is None else list(among)
    )
    return [
        [(name, 1.0 - distance) for name, distance in zip(names, distances, strict=True)]
        for names, distances in zip(found["ids"], found["distances"], strict=True)
    ]


def stored_rows(collection: "Collection", ids: Sequence[str]) -> dict[str, Row]:
    """What the collection shows of some passages, by id; those it does not hold are left out."""
    found: Any = collection.get(ids=list(ids), include=["documents", "metadatas"])
    return {
        name: Row(name, row["page_id"], row["title"], row["url"], row["revision"], row["start"], row["end"], document)
        for name, document, row in zip(found["ids"], found["documents"], found["metadatas"], strict=True)
    }
