"""What a week changes: which pages are others than they were, and which passages have their vector already.

A vector depends on the word pieces that the model read and on nothing else of a passage, so that is what vectors are
known by: not by a passage's place, which an edit before it moves, nor by its text, which another tokenizer reads
otherwise.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported

import hashlib
from collections.abc import Sequence
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wiki_assets.errors import DamagedArtifact

PAGE_COLUMNS = ("page_id", "title", "revision", "text")
LEDGER = ("pages_added", "pages_changed", "pages_moved", "pages_gone", "pages_unchanged")
_HASH_BYTES = 16


# --- pages


def compare_pages(now: pa.Table, before: IO[bytes]) -> dict[str, int]:
    """What became of the pages of a shard since an earlier snapshot.

    Args:
        now: columns `PAGE_COLUMNS`, page ids rising.
        before: the same shard's articles of the earlier snapshot, Parquet; read a row group at a time.

    Returns:
        Counts named in `LEDGER`. Each page of either snapshot is in one of them: *moved* has another title, whatever
        else changed; *changed* the same title and another revision or text. So now = added + changed + moved +
        unchanged, and before = gone + changed + moved + unchanged.
    """
    ids = now["page_id"].to_numpy()
    counts: dict[str, int] = dict.fromkeys(LEDGER, 0)
    for batch in pq.ParquetFile(before).iter_batches(2_000, columns=list(PAGE_COLUMNS)):
        old = batch["page_id"].to_numpy()
        place = np.searchsorted(ids, old)
        stayed = place < len(ids)
        stayed[stayed] = ids[place[stayed]] == old[stayed]
        there, here = batch.filter(pa.array(stayed)), now.take(pa.array(place[stayed]))
        moved = _differ(here["title"], there["title"])
        changed = (_differ(here["revision"], there["revision"]) | _differ(here["text"], there["text"])) & ~moved
        counts["pages_gone"] += int((~stayed).sum())
        counts["pages_moved"] += int(moved.sum())
        counts["pages_changed"] += int(changed.sum())
        counts["pages_unchanged"] += int((~moved & ~changed).sum())
    followed = counts["pages_moved"] + counts["pages_changed"] + counts["pages_unchanged"]
    counts["pages_added"] = len(now) - followed
    return counts


def _differ(now: pa.ChunkedArray, before: pa.Array) -> NDArray[np.bool_]:
    """Row by row; of two columns without nulls."""
    return pc.not_equal(now.combine_chunks(), before).to_numpy(zero_copy_only=False).astype(bool)


# --- passages


def input_hashes(input_ids: Sequence[NDArray[np.int32]]) -> list[str]:
    """What vectors are known by: a hash of the word pieces that the model reads, 32 hex digits each."""
    return [
        hashlib.blake2b(np.ascontiguousarray(ids, "<i4").tobytes(), digest_size=_HASH_BYTES).hexdigest()
        for ids in input_ids
    ]


def take_over(
    source: IO[bytes], hashes: Sequence[str], vectors: NDArray[np.float32], wanting: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Copy the vectors of an earlier file, bit for bit, to the rows that have the same input.

    Args:
        source: an embeddings file, Parquet, of the same model, width and dtype; read a row group at a time.
        hashes: n, of the rows' inputs; the same one may stand more than once.
        vectors: float32 [n, dim], filled in where the file has one. float16 goes through float32 and back unchanged.
        wanting: bool [n], the rows to fill in.

    Returns:
        bool [n], the rows that were filled in.

    Raises:
        DamagedArtifact: if the file's columns are not those of such a file.
    """
    found = np.zeros(len(hashes), bool)
    wanted: dict[str, list[int]] = {}
    for row in np.flatnonzero(wanting).tolist():
        wanted.setdefault(hashes[row], []).append(row)
    file = pq.ParquetFile(source)
    dim = vectors.shape[1]
    fields = {field.name: field.type for field in file.schema_arrow}
    if getattr(fields.get("vector"), "list_size", None) != dim or "input_hash" not in fields:
        raise DamagedArtifact(f"an embeddings file with columns {fields}: expected input_hash and {dim} numbers a row")
    for batch in file.iter_batches(10_000, columns=["input_hash", "vector"]):
        theirs, ours = [], []
        for row, name in enumerate(batch["input_hash"].to_pylist()):
            places = wanted.pop(name, ())
            theirs += [row] * len(places)
            ours += places
        stored = batch["vector"].flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
        vectors[ours] = stored[theirs].astype(np.float32)
        found[ours] = True
        if not wanted:
            break
    return found
