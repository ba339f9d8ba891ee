"""Passages to vectors, with whatever engine the worker has; the order of work is fixed, so the result is too."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import IO, Any, Protocol

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wiki_assets import failpoints
from wiki_assets.errors import DamagedArtifact, SchemaMismatch
from wiki_assets.stages.delta import input_hashes, take_over
from wiki_assets.stages.quarantine import Quarantine, Quarantined, is_of_the_row, reason_of

CODE_VERSION = "embeddings-2"
ROW_GROUP_VECTORS = 10_000


class Encoder(Protocol):
    """An embedding model on one device of one worker."""

    dim: int
    engine: str
    batch_pieces: int

    def encode(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors of one padded batch: int64 [n, length] ids and mask to float32 [n, dim]."""
        ...


class EmbeddingParams(msgspec.Struct, frozen=True):
    """What every vector of a collection must agree on."""

    model: str
    model_sha256: str
    dim: int
    dtype: str = "float32"


def embeddings_schema(dim: int, dtype: str) -> pa.Schema:
    """Columns of an embeddings file."""
    width = {"float32": pa.float32(), "float16": pa.float16()}[dtype]
    return pa.schema(
        [
            pa.field("passage_id", pa.string(), nullable=False),
            pa.field("input_hash", pa.string(), nullable=False),  # of the word pieces that the model read
            pa.field("vector", pa.list_(pa.field("element", width, nullable=False), dim), nullable=False),
        ]
    )


def batch_plan(lengths: NDArray[np.integer[Any]], batch_pieces: int) -> Iterator[NDArray[np.int64]]:
    """Rows to encode together: of like length, longest first, padded size within a budget.

    Args:
        lengths: int [n], word pieces of each row.
        batch_pieces: rows times longest row of a batch stay within this; a longer row is a batch of its own.

    Yields:
        int64 [m] row numbers; every row is in exactly one batch. The same lengths give the same batches.
    """
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    start = 0
    while start < len(order):
        size = max(1, batch_pieces // max(1, int(lengths[order[start]])))
        yield order[start : start + size]
        start += size


class BadVector(SchemaMismatch):
    """A vector that is none: NaN, infinite or without length."""

    reason = "not_finite"


def embed_passages(
    input_ids: Sequence[NDArray[np.int32]],
    encoder: Encoder,
    names: Sequence[str],
    set_aside: Callable[[int, BaseException], None] | None = None,
) -> NDArray[np.float32]:
    """Embed passages that are tokenized already.

    Args:
        input_ids: n rows of word pieces, special ones included.
        encoder: the model.
        names: n passage ids, for messages.
        set_aside: called for a row that fails even alone, with why; its vector is NaN then. A batch that fails is
            tried again row by row, so that a bad row costs only itself.

    Returns:
        float32 [n, dim], rows of unit L2 norm, in the order of `input_ids`.

    Raises:
        SchemaMismatch: if a row is empty, or a vector has another width; BadVector if one is not finite, or is zero,
            and it cannot be set aside.
    """
    lengths = np.fromiter(map(len, input_ids), np.int64, len(input_ids))
    if len(lengths) and lengths.min() == 0:
        raise SchemaMismatch(
            f"passage {names[int(lengths.argmin())]}: no word pieces to embed; materialize tokens again"
        )
    vectors = np.empty((len(input_ids), encoder.dim), np.float32)
    for rows in batch_plan(lengths, encoder.batch_pieces):
        try:
            vectors[rows] = _encode(input_ids, rows, encoder, names)
        except BaseException as error:  # a panic of a native library is no Exception
            if set_aside is None or not _is_of_a_row(error):
                raise
            for row in rows:
                try:
                    vectors[row] = _encode(input_ids, [row], encoder, names)[0]
                except BaseException as alone:
                    if not _is_of_a_row(alone):
                        raise
                    vectors[row] = np.nan
                    set_aside(int(row), alone)
    return vectors


def _is_of_a_row(error: BaseException) -> bool:
    """Whether a row may be to blame; another model than it should be is to blame for every one."""
    return is_of_the_row(error) and (isinstance(error, BadVector) or not isinstance(error, SchemaMismatch))


def _encode(
    input_ids: Sequence[NDArray[np.int32]],
    rows: Sequence[int] | NDArray[np.int64],
    encoder: Encoder,
    names: Sequence[str],
) -> NDArray[np.float32]:
    """Unit vectors of some rows, as one batch padded to its first, which is the longest."""
    if failpoints.armed:
        for row in rows:
            failpoints.failpoint("embeddings.passage", names[row])
    longest = len(input_ids[rows[0]])
    ids = np.zeros((len(rows), longest), np.int64)
    mask = np.zeros((len(rows), longest), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(input_ids[row])] = input_ids[row]
        mask[i, : len(input_ids[row])] = 1
    found = np.asarray(encoder.encode(ids, mask), np.float32)
    if found.shape != (len(rows), encoder.dim):
        raise SchemaMismatch(
            f"passage {names[rows[0]]}: {encoder.engine} returned shape {found.shape}, "
            f"expected {(len(rows), encoder.dim)}: is this the model the collection was made with?"
        )
    norms = np.linalg.norm(found, axis=1, keepdims=True)
    bad = ~np.isfinite(norms[:, 0]) | (norms[:, 0] < 1e-6)
    if bad.any():
        raise BadVector(
            f"passage {names[rows[int(bad.argmax())]]}: {encoder.engine} returned NaN, infinity or a zero vector; "
            "set WIKI_ASSETS_ENGINE=torch to rule the engine out"
        )
    return found / norms


def embed_shard(
    passages: IO[bytes],
    out: Any,
    *,
    encoder: Encoder,
    params: EmbeddingParams,
    metadata: dict[str, str],
    quarantine: Quarantine | None = None,
    rows: range | None = None,
    condemned: Mapping[int, str] | None = None,
    known: Sequence[IO[bytes]] = (),
) -> dict[str, Any]:
    """Write one vector for each passage of a shard, in the order of the passages.

    A passage whose word pieces an earlier file has a vector of takes that vector, bit for bit; only the others are
    embedded. A passage that has no vector is set aside, and is not in the file.

    Args:
        passages: the shard's passages, Parquet.
        out: gets Parquet of `embeddings_schema`.
        encoder: the model.
        params: what the vectors must agree on.
        metadata: schema metadata.
        quarantine: gets the passages that are set aside.
        rows: only these rows of `passages`; all of them, if not given.
        condemned: rows that are not to be tried, and why: they have ended workers.
        known: earlier embeddings files of the same model, width and dtype, the one to prefer first.

    Returns:
        The ledger: passages = vectors + quarantined (by reason); vectors = passages_reused + passages_embedded;
        word_pieces and padded_pieces (what the batches really held) of those to be embedded; max_norm_error;
        embed_seconds, that the model took.

    Raises:
        SchemaMismatch: as `embed_passages` does.
        DamagedArtifact: if a known file is none.
        NotPoison: if so many passages fail that it is not they.
    """
    table = pq.read_table(passages, columns=["passage_id", "input_ids"])
    quarantine = quarantine or Quarantine(len(table))
    span = range(len(table)) if rows is None else rows
    places = [row for row in span if row not in (condemned or {})]

    def set_aside(row: int, reason: str, detail: str = "") -> None:
        page_id = pq.read_table(passages, columns=["page_id"])["page_id"][row].as_py()
        quarantine.add(Quarantined(page_id, "", reason, detail, passage_id=table["passage_id"][row].as_py()))

    for row in span:
        if condemned and row in condemned:
            set_aside(row, condemned[row])
    read = table.slice(span.start, len(span)) if len(places) == len(span) else table.take(pa.array(places, pa.int64()))
    names = read["passage_id"].to_pylist()
    pieces = split_lists(read["input_ids"])
    hashes = input_hashes(pieces)
    taken = np.empty((len(pieces) if known else 0, params.dim), np.float32)
    reused = np.zeros(len(pieces), bool)
    for source in known:
        reused |= take_over(source, hashes, taken, ~reused)
    fresh = np.flatnonzero(~reused).tolist()
    began = time.perf_counter()
    vectors = embed_passages(
        [pieces[row] for row in fresh],
        encoder,
        [names[row] for row in fresh],
        lambda row, error: set_aside(places[fresh[row]], *reason_of(error)),
    )
    seconds = time.perf_counter() - began
    if reused.any():
        taken[fresh] = vectors
        vectors = taken
    sound = np.isfinite(vectors).all(axis=1)
    kept = pa.table({"passage_id": read["passage_id"], "input_hash": pa.array(hashes, pa.string())})
    kept = kept.filter(pa.array(sound)).combine_chunks()
    vectors = vectors if sound.all() else vectors[sound]
    stored = vectors.astype(params.dtype)
    schema = embeddings_schema(params.dim, params.dtype)
    flat = pa.array(stored.reshape(-1), schema.field("vector").type.value_type)
    column = pa.FixedSizeListArray.from_arrays(flat, type=schema.field("vector").type)
    columns = [kept["passage_id"], kept["input_hash"], column]
    result = pa.Table.from_arrays(columns, schema=schema).replace_schema_metadata(metadata)
    pq.write_table(
        result, out, compression="zstd", compression_level=3, use_dictionary=False, row_group_size=ROW_GROUP_VECTORS
    )
    lengths = np.fromiter((len(pieces[row]) for row in fresh), np.int64, len(fresh))
    padded = sum(len(batch) * int(lengths[batch[0]]) for batch in batch_plan(lengths, encoder.batch_pieces))
    norms = np.linalg.norm(stored.astype(np.float32), axis=1)
    first = kept["passage_id"][0].as_py() if len(vectors) else None
    return {
        "passages": len(span),
        "vectors": len(vectors),
        "passages_reused": int(reused.sum()),
        "passages_embedded": len(vectors) - int(reused.sum()),
        "distinct": len(set(kept["passage_id"].to_pylist())),
        "embed_seconds": round(seconds, 6),
        "quarantined": quarantine.counts,
        "word_pieces": int(lengths.sum()),
        "padded_pieces": padded,
        "max_norm_error": float(np.abs(norms - 1).max()) if len(norms) else 0.0,
        "sample": {"passage_id": first, "vector": [round(float(x), 5) for x in vectors[0][:6]]} if first else None,
    }


def split_lists(column: pa.ChunkedArray | pa.Array) -> list[NDArray[np.int32]]:
    """The rows of an Arrow list column as numpy views, without a Python object for each number."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not len(array):
        return []
    offsets = array.offsets.to_numpy()
    values = array.values.to_numpy()
    return [values[a:b] for a, b in pairwise(offsets)]


def read_vectors(source: IO[bytes]) -> tuple[list[str], NDArray[np.float32]]:
    """Read an embeddings file back.

    Returns:
        Passage ids, and float32 [n, dim] in the same order.

    Raises:
        DamagedArtifact: if the file holds no such columns.
    """
    names = pq.read_schema(source).names
    if not {"passage_id", "vector"} <= set(names):
        raise DamagedArtifact(f"an embeddings file with columns {names}: materialize embeddings again")
    source.seek(0)
    table = pq.read_table(source, columns=["passage_id", "vector"])
    column = table["vector"].combine_chunks()
    dim = table.schema.field("vector").type.list_size
    flat = column.flatten() if len(column) else pa.array([], pa.float32())
    return table["passage_id"].to_pylist(), np.asarray(flat).astype(np.float32).reshape(-1, dim)
