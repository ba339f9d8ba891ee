"""Every passage gets one vector, of unit length, in the place where it stands."""

import hashlib
import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wiki_assets.errors import DamagedArtifact, SchemaMismatch
from wiki_assets.stages.embeddings import (
    EmbeddingParams,
    batch_plan,
    embed_passages,
    embed_shard,
    embeddings_schema,
    read_vectors,
    split_lists,
)

BAD = 666  # a word piece that this model has no good vector for


@dataclass
class HashingEncoder:
    """A model without weights: a vector is the hash of the ids it read, three times as long as it should be."""

    dim: int = 8
    engine: str = "hashing"
    batch_pieces: int = 64
    width: int | None = None
    bad: float = np.nan

    def encode(self, input_ids, attention_mask):
        assert input_ids.shape == attention_mask.shape
        assert input_ids.size <= self.batch_pieces or len(input_ids) == 1
        rows = [self.vector(ids[mask == 1]) for ids, mask in zip(input_ids, attention_mask, strict=True)]
        return np.array(rows, np.float32)

    def vector(self, ids) -> np.ndarray:
        seed = hashlib.sha256(np.asarray(ids, np.int64).tobytes()).digest()[:8]
        found = 3 * np.random.default_rng(list(seed)).normal(size=self.width or self.dim)
        return np.where(BAD in ids, self.bad, found)


def names(n: int) -> list[str]:
    return [f"7-{i}" for i in range(n)]


id_rows = st.lists(
    st.lists(st.integers(1, 600), min_size=1, max_size=40).map(lambda ids: np.array(ids, np.int32)), max_size=30
)


# Batches


@given(lengths=st.lists(st.integers(1, 300), max_size=100), budget=st.integers(1, 2_000))
def test_every_row_is_in_one_batch_and_batches_are_within_budget(lengths, budget):
    batches = list(batch_plan(np.array(lengths, np.int64), budget))
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[row] for row in batch)
        assert len(batch) * longest <= budget or len(batch) == 1
        assert lengths[batch[0]] == longest


@given(lengths=st.lists(st.integers(1, 300), max_size=100), budget=st.integers(1, 2_000))
def test_the_same_lengths_give_the_same_batches(lengths, budget):
    plans = [
        [batch.tolist() for batch in batch_plan(np.array(lengths, dtype), budget)] for dtype in (np.int64, np.int32)
    ]
    assert plans[0] == plans[1]


def test_short_rows_do_not_wait_for_long_ones():
    lengths = np.array([3, 250, 4, 240, 5] * 100)
    padded = sum(len(batch) * lengths[batch[0]] for batch in batch_plan(lengths, 1_024))
    assert padded < 1.05 * lengths.sum()


# Vectors


@given(rows=id_rows)
def test_each_vector_stands_where_its_passage_stands(rows):
    encoder = HashingEncoder()
    vectors = embed_passages(rows, encoder, names(len(rows)))
    assert (vectors.dtype, vectors.shape) == (np.float32, (len(rows), 8))
    for row, vector in zip(rows, vectors, strict=True):
        expected = encoder.vector(row)
        np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-6)


@given(rows=id_rows)
def test_vectors_have_unit_length(rows):
    vectors = embed_passages(rows, HashingEncoder(), names(len(rows)))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


@given(rows=id_rows)
def test_the_same_passages_give_the_same_bits(rows):
    once, again = (embed_passages(rows, HashingEncoder(), names(len(rows))) for _ in range(2))
    assert once.tobytes() == again.tobytes()


ROWS = [np.array(ids, np.int32) for ids in ([1, 2], [3] * 9, [4], [5, 6, 7], [8] * 30)]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0])
@pytest.mark.parametrize("place", range(5))
def test_a_vector_that_is_none_is_refused_and_its_passage_named(bad, place):
    rows = [np.append(row, BAD) if i == place else row for i, row in enumerate(ROWS)]
    with pytest.raises(SchemaMismatch, match=rf"passage 7-{place}: hashing .*WIKI_ASSETS_ENGINE"):
        embed_passages(rows, HashingEncoder(bad=bad), names(5))


@pytest.mark.parametrize("width", [1, 7, 9, 384])
def test_a_vector_of_another_width_is_refused(width):
    with pytest.raises(SchemaMismatch, match=rf"passage 7-\d: .*{width}\), expected \(\d+, 8\)"):
        embed_passages(ROWS, HashingEncoder(width=width), names(5))


@pytest.mark.parametrize("place", range(5))
def test_a_passage_without_word_pieces_is_refused_and_named(place):
    rows = [row[:0] if i == place else row for i, row in enumerate(ROWS)]
    with pytest.raises(SchemaMismatch, match=f"passage 7-{place}: no word pieces"):
        embed_passages(rows, HashingEncoder(), names(5))


# Lists of ids

lists = st.lists(st.lists(st.integers(0, 30_000), max_size=8), max_size=20)


@given(values=lists, start=st.integers(0, 20), length=st.integers(0, 20))
def test_lists_come_out_as_they_went_in_even_sliced(values, start, length):
    column = pa.array(values, pa.list_(pa.int32()))
    assert [row.tolist() for row in split_lists(column.slice(start, length))] == values[start : start + length]
    assert [row.tolist() for row in split_lists(pa.chunked_array([column, column[start:]]))] == values + values[start:]


def test_lists_of_nothing_are_nothing():
    assert split_lists(pa.array([], pa.list_(pa.int32()))) == []
    assert split_lists(pa.chunked_array([], pa.list_(pa.int32()))) == []


# Shards


def passages_file(rows) -> io.BytesIO:
    table = pa.table(
        {
            "passage_id": pa.array(names(len(rows)), pa.string()),
            "page_id": pa.array([7] * len(rows), pa.int64()),
            "input_ids": pa.array([list(r) for r in rows], pa.list_(pa.int32())),
        }
    )
    file = io.BytesIO()
    pq.write_table(table, file)
    return file


def params(dtype: str = "float32") -> EmbeddingParams:
    return EmbeddingParams("hashing", "0" * 64, 8, dtype)


@given(rows=id_rows, dtype=st.sampled_from(["float32", "float16"]))
def test_a_shard_is_read_back_as_it_was_embedded(rows, dtype):
    out = io.BytesIO()
    counts = embed_shard(passages_file(rows), out, encoder=HashingEncoder(), params=params(dtype), metadata={"a": "b"})
    ids, vectors = read_vectors(out)
    assert ids == names(len(rows))
    assert (vectors.dtype, vectors.shape) == (np.float32, (len(rows), 8))
    np.testing.assert_allclose(
        vectors, embed_passages(rows, HashingEncoder(), ids), atol=1e-6 if dtype == "float32" else 1e-3
    )
    assert (counts["passages"], counts["vectors"]) == (len(rows), len(rows))
    assert counts["word_pieces"] == sum(map(len, rows)) <= counts["padded_pieces"]
    assert counts["max_norm_error"] < 1e-3
    assert pq.read_schema(out).metadata[b"a"] == b"b"


def test_an_embeddings_file_has_a_column_that_others_can_read():
    out = io.BytesIO()
    embed_shard(passages_file(ROWS), out, encoder=HashingEncoder(), params=params(), metadata={})
    table = pq.read_table(out)
    assert table.schema.equals(embeddings_schema(8, "float32"))
    assert table.to_pandas()["vector"].map(len).tolist() == [8] * 5


def test_a_file_of_other_columns_holds_no_vectors():
    with pytest.raises(DamagedArtifact, match="input_ids"):
        read_vectors(passages_file(ROWS))
