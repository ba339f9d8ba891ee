"""What a week changes: pages are followed by id, vectors by what the model read."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wiki_assets.errors import DamagedArtifact
from wiki_assets.stages.delta import LEDGER, compare_pages, input_hashes, take_over
from wiki_assets.stages.embeddings import EmbeddingParams, embed_shard, read_vectors
from wiki_assets.stages.quarantine import Quarantine
from wiki_assets_tests.stages.test_embeddings import (
    BAD,
    ROWS,
    HashingEncoder,
    id_rows,
    names,
    params,
    passages_file,
)

# Pages

pages = st.dictionaries(
    st.integers(1, 40), st.tuples(st.sampled_from("ABC"), st.integers(1, 3), st.sampled_from(["x", "y", "ü"]))
)


def table(found) -> pa.Table:
    rows = [{"page_id": i, "title": t, "revision": r, "text": x} for i, (t, r, x) in sorted(found.items())]
    schema = pa.schema(
        [("page_id", pa.int64()), ("title", pa.string()), ("revision", pa.int64()), ("text", pa.string())]
    )
    return pa.Table.from_pylist(rows, schema=schema)


def compared(now, before) -> dict[str, int]:
    file = io.BytesIO()
    pq.write_table(table(before), file, row_group_size=7)
    return compare_pages(table(now), file)


@given(now=pages, before=pages)
def test_each_page_of_either_week_is_in_one_class(now, before):
    stayed = now.keys() & before.keys()
    moved = {i for i in stayed if now[i][0] != before[i][0]}
    changed = {i for i in stayed - moved if now[i] != before[i]}
    expected = [len(now.keys() - stayed), len(changed), len(moved), len(before.keys() - stayed)]
    assert compared(now, before) == dict(zip(LEDGER, [*expected, len(stayed) - len(moved) - len(changed)], strict=True))


def test_a_text_that_changed_without_a_revision_is_a_change():
    assert compared({1: ("A", 5, "new")}, {1: ("A", 5, "old")})["pages_changed"] == 1


# Vectors


def test_inputs_are_the_same_only_if_every_piece_is():
    rows = [np.array(ids, np.int32) for ids in ([1, 2], [1, 2], [2, 1], [1, 2, 0], [12], [])]
    hashes = input_hashes(rows)
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 5
    assert input_hashes([np.arange(10, dtype=np.int32)[::2]]) == input_hashes([np.array([0, 2, 4, 6, 8], np.int32)])


class OtherEncoder(HashingEncoder):
    """The same model in another mood: whatever it makes can be told from what was taken over."""

    def vector(self, ids) -> np.ndarray:
        return -super().vector(ids)


def embedded(rows, encoder=None, dtype="float32", **options) -> tuple[dict, io.BytesIO]:
    out = io.BytesIO()
    counts = embed_shard(
        passages_file(rows), out, encoder=encoder or HashingEncoder(), params=params(dtype), metadata={}, **options
    )
    out.seek(0)
    return counts, out


@given(before=id_rows, now=id_rows, shared=st.lists(st.integers(0, 50)), dtype=st.sampled_from(["float32", "float16"]))
def test_what_was_read_before_is_taken_over_bit_for_bit_and_the_rest_is_embedded(before, now, shared, dtype):
    now = [*now, *(before[i] for i in shared if i < len(before))]
    _, old = embedded(before, dtype=dtype)
    counts, new = embedded(now, OtherEncoder(), dtype, known=[old])
    known = {tuple(row.tolist()): vector for row, vector in zip(before, read_vectors(old)[1], strict=True)}
    ids, vectors = read_vectors(new)
    assert ids == names(len(now))
    fresh = [row for row in now if tuple(row.tolist()) not in known]
    assert (counts["passages_reused"], counts["passages_embedded"]) == (len(now) - len(fresh), len(fresh))
    assert counts["word_pieces"] == sum(map(len, fresh))
    for row, vector in zip(now, vectors, strict=True):
        if (taken := known.get(tuple(row.tolist()))) is not None:
            assert vector.tobytes() == taken.tobytes()
        else:
            expected = OtherEncoder().vector(row)
            np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=2e-3)


def test_the_first_of_several_files_is_preferred():
    _, first = embedded(ROWS[:3])
    _, second = embedded(ROWS, OtherEncoder())
    counts, out = embedded(ROWS, known=[first, second])
    assert counts["passages_reused"] == 5
    vectors = read_vectors(out)[1]
    assert vectors[:3].tobytes() == read_vectors(first)[1].tobytes()
    assert vectors[3:].tobytes() == read_vectors(second)[1][3:].tobytes()


def test_a_passage_that_was_set_aside_is_tried_again():
    rows = [*ROWS, np.array([BAD, 5], np.int32)]
    counts, old = embedded(rows, HashingEncoder(), quarantine=Quarantine(6))
    assert counts["quarantined"] == {"not_finite": 1}
    counts, out = embedded(rows, HashingEncoder(bad=1.0), known=[old])
    assert (counts["vectors"], counts["passages_reused"], counts["passages_embedded"]) == (6, 5, 1)
    assert len(read_vectors(out)[0]) == 6


def test_a_passage_that_cannot_be_embedded_costs_none_that_is_taken_over():
    _, old = embedded(ROWS)
    rows = [np.array([BAD], np.int32), *ROWS]
    quarantine = Quarantine(6)
    counts, out = embedded(rows, known=[old], quarantine=quarantine)
    assert (counts["vectors"], counts["passages_reused"], counts["passages_embedded"]) == (5, 5, 0)
    assert [row.passage_id for row in quarantine.rows] == ["7-0"]
    assert read_vectors(out)[0] == names(6)[1:]


def test_a_condemned_passage_is_not_taken_over_either():
    _, old = embedded(ROWS)
    counts, _ = embedded(ROWS, known=[old], condemned={1: "killed_worker"}, quarantine=Quarantine(5))
    assert (counts["passages_reused"], counts["quarantined"]) == (4, {"killed_worker": 1})


@pytest.mark.parametrize("other", ["width", "columns"])
def test_a_file_of_something_else_is_refused(other):
    if other == "columns":
        source = passages_file(ROWS)
    else:
        source = io.BytesIO()
        sixteen = EmbeddingParams("hashing", "0" * 64, 16, "float32")
        embed_shard(passages_file(ROWS), source, encoder=HashingEncoder(dim=16), params=sixteen, metadata={})
    with pytest.raises(DamagedArtifact, match="expected input_hash and 8 numbers"):
        take_over(source, input_hashes(ROWS), np.empty((5, 8), np.float32), np.ones(5, bool))
