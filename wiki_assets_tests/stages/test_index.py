"""A collection is added to and never rewritten; a question is asked or refused."""

import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wiki_assets.errors import BadRequest, DamagedArtifact, LedgerBroken, NotPublished, SchemaMismatch, StoreLocked
from wiki_assets.keys import Shard, Snapshot
from wiki_assets.resources.chroma import open_collection, open_store, published_collection, sync_after
from wiki_assets.stages.index import (
    HNSW,
    MAX_K,
    MAX_QUERY_BYTES,
    Hit,
    Row,
    Rows,
    add_rows,
    check_question,
    check_rows,
    has_shard,
    nearest_passages,
    nearest_to_each,
    self_recall,
    shard_rows,
    stored_rows,
)

DIM = 8
SHARD = Shard(Snapshot("tinywiki", "20250105"), 3)


def unit_vectors(n: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def some_rows(n: int = 40, first: int = 0, shard: int = 3) -> Rows:
    """Rows as `shard_rows` makes them; page i holds passage i."""
    place = {"passage": 0, "start": 0, "end": 9, "snapshot": "20250105", "wiki": "tinywiki", "shard": shard}
    about = {"revision": 1, "language": "en"} | place
    numbers = range(first, first + n)
    return Rows(
        [f"{i}-abc" for i in numbers],
        unit_vectors(first + n)[first:],
        [f"Passage {i}." for i in numbers],
        [{"page_id": i, "title": f"Page {i}", "url": f"https://x/{i}"} | about for i in numbers],
    )


def part(rows: Rows, start: int, end: int) -> Rows:
    return Rows(rows.ids[start:end], rows.vectors[start:end], rows.documents[start:end], rows.metadatas[start:end])


@pytest.fixture
def collection(tmp_path):
    with open_store(tmp_path / "chroma", write=True) as client:
        yield open_collection(client, "tinywiki-20250105-1", hnsw=HNSW, metadata={"dim": DIM})


# Adding and checking


@pytest.mark.chroma
def test_rows_that_were_added_are_there(collection):
    rows = some_rows()
    assert add_rows(collection, rows, fresh=True) == 40
    check_rows(collection, rows)
    assert self_recall(collection, rows.ids) == 1.0
    assert has_shard(collection, 3)
    assert not has_shard(collection, 2)


@pytest.mark.chroma
@pytest.mark.parametrize("n_before", [0, 1, 25, 40])
def test_a_shard_that_was_half_added_is_completed(collection, n_before):
    rows = some_rows()
    if n_before:
        add_rows(collection, part(rows, 40 - n_before, 40), fresh=True)
    assert add_rows(collection, rows, fresh=False) == 40 - n_before
    check_rows(collection, rows)
    assert collection.count() == 40


@pytest.mark.chroma
def test_rows_that_are_not_there_are_missed(collection):
    rows = some_rows()
    add_rows(collection, part(rows, 0, 30), fresh=True)
    with pytest.raises(DamagedArtifact, match="10 rows are not there, the first is 30-abc"):
        check_rows(collection, rows)


@pytest.mark.chroma
@pytest.mark.parametrize("change", ["vector", "document", "metadata"])
def test_a_row_that_was_changed_behind_our_back_is_found(collection, change):
    rows = some_rows()
    add_rows(collection, rows, fresh=True)
    match change:
        case "vector":
            collection.update(ids=["17-abc"], embeddings=unit_vectors(1, seed=9))
        case "document":
            collection.update(ids=["17-abc"], documents=["Passage 18."], embeddings=rows.vectors[17:18])
        case "metadata":
            collection.update(ids=["17-abc"], metadatas=[{"revision": 2}])
    assert add_rows(collection, rows, fresh=False) == 0  # it is not rewritten
    with pytest.raises(DamagedArtifact, match="row 17-abc is not what was written"):
        check_rows(collection, rows)


@pytest.mark.chroma
def test_rows_outlive_their_writer(tmp_path):
    rows = some_rows()
    with open_store(tmp_path / "chroma", write=True) as client:
        add_rows(open_collection(client, "c-1", hnsw=HNSW, metadata={"dim": DIM}), rows, fresh=True)
    with open_store(tmp_path / "chroma") as client:
        again = published_collection(client, "c-1")
        check_rows(again, rows)
        assert again.configuration["hnsw"]["space"] == "cosine"
        with pytest.raises(NotPublished, match="c-2"):
            published_collection(client, "c-2")


@pytest.mark.chroma
def test_a_store_has_one_writer(tmp_path):
    with (
        open_store(tmp_path / "chroma", write=True),
        pytest.raises(StoreLocked),
        open_store(tmp_path / "chroma", write=True),
    ):
        pass


def test_where_there_is_no_store_there_is_nothing_to_read(tmp_path):
    with pytest.raises(NotPublished), open_store(tmp_path / "chroma"):
        pass
    assert not list(tmp_path.iterdir())


# A shard's files joined


def parquet(**columns) -> io.BytesIO:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file


@pytest.fixture
def files():
    articles = parquet(
        page_id=[4, 9], title=["Llama", "Tide"], url=["https://x/Llama", "https://x/Tide"], revision=[40, 90],
        language=["en", "en"], text=["Llamas spit. They hum.", "Tides turn."],
    )  # fmt: skip
    ids = ["4-a", "4-b", "9-c"]
    passages = parquet(passage_id=ids, page_id=[4, 4, 9], ordinal=[0, 1, 0], start=[0, 13, 0], end=[13, 22, 11])
    vectors = pa.array(unit_vectors(3).tolist(), pa.list_(pa.float32(), DIM))
    return {"articles": articles, "passages": passages, "embeddings": parquet(passage_id=ids, vector=vectors)}


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_a_row_says_where_it_comes_from(files, batch_size):
    batches = list(shard_rows(**files, shard=SHARD, batch_size=batch_size))
    assert [name for rows in batches for name in rows.ids] == ["4-a", "4-b", "9-c"]
    assert [text for rows in batches for text in rows.documents] == ["Llamas spit.", "They hum.", "Tides turn."]
    np.testing.assert_array_equal(np.concatenate([rows.vectors for rows in batches]), unit_vectors(3))
    assert max(len(rows.ids) for rows in batches) <= batch_size
    second = [row for rows in batches for row in rows.metadatas][1]
    assert second == {
        "page_id": 4, "title": "Llama", "url": "https://x/Llama", "revision": 40, "language": "en", "passage": 1,
        "start": 13, "end": 22, "snapshot": "20250105", "wiki": "tinywiki", "shard": 3,
    }  # fmt: skip


@pytest.mark.parametrize("ids", [["4-a", "9-c", "4-b"], ["4-a", "4-b"], ["4-a", "4-b", "9-x"], []])
def test_vectors_of_other_passages_are_refused(files, ids):
    vectors = pa.array(unit_vectors(len(ids)).tolist(), pa.list_(pa.float32(), DIM))
    files["embeddings"] = parquet(passage_id=pa.array(ids, pa.string()), vector=vectors)
    with pytest.raises(LedgerBroken, match="tinywiki-20250105/00003: 3 passages"):
        list(shard_rows(**files, shard=SHARD, batch_size=10))


@pytest.mark.parametrize("aside", [["4-b"], ["4-a", "9-c"], ["4-a", "4-b", "9-c"]])
def test_passages_that_were_set_aside_need_no_vector(files, aside):
    ids = [name for name in ("4-a", "4-b", "9-c") if name not in aside]
    vectors = pa.array(unit_vectors(len(ids)).tolist(), pa.list_(pa.float32(), DIM))
    files["embeddings"] = parquet(passage_id=pa.array(ids, pa.string()), vector=vectors)
    batches = list(shard_rows(**files, shard=SHARD, batch_size=10, set_aside=aside))
    assert [name for rows in batches for name in rows.ids] == ids
    with pytest.raises(LedgerBroken):
        list(shard_rows(**files, shard=SHARD, batch_size=10, set_aside=aside[:-1]))


# Questions


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\0", "\0 \0", "\u3000"])
def test_an_empty_question_is_refused(text):
    with pytest.raises(BadRequest, match="empty"):
        check_question(text, 10)


@pytest.mark.parametrize("text", ["x" * (MAX_QUERY_BYTES + 1), "é" * (MAX_QUERY_BYTES // 2) + "x", "x" * 10_000_000])
def test_a_question_over_8_kib_is_refused(text):
    with pytest.raises(BadRequest, match="at most 8,192"):
        check_question(text, 10)


@pytest.mark.parametrize("text", ["\ud800", "why \udfff?"])
def test_half_a_surrogate_pair_is_no_question(text):
    with pytest.raises(BadRequest, match="surrogate") as refused:
        check_question(text, 10)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("k", [0, -1, MAX_K + 1, 10**9, 2**64])
def test_a_number_of_passages_out_of_bounds_is_refused(k):
    with pytest.raises(BadRequest, match="expected 1 to 1000"):
        check_question("Which animals spit?", k)


def test_a_question_is_asked_without_blanks_around_it():
    assert check_question("  Which animals\0spit?\n", 1) == "Which animals spit?"
    assert check_question("x" * MAX_QUERY_BYTES, MAX_K) == "x" * MAX_QUERY_BYTES


# Answers


@pytest.mark.chroma
def test_the_nearest_passage_comes_first(collection):
    rows = some_rows()
    add_rows(collection, rows, fresh=True)
    near = nearest_passages(collection, rows.vectors[17], 5)
    similarities = rows.vectors @ rows.vectors[17]
    expected = np.argsort(-similarities)[:5]
    assert [name for name, _ in near] == [rows.ids[i] for i in expected]
    assert [score for _, score in near] == pytest.approx(similarities[expected].tolist(), abs=1e-5)


@pytest.mark.chroma
def test_several_questions_at_once_get_what_each_gets_alone(collection):
    rows = some_rows()
    add_rows(collection, rows, fresh=True)
    asked = [*rows.vectors[5:9], *unit_vectors(3, seed=1)]
    assert nearest_to_each(collection, asked, 5) == [nearest_passages(collection, vector, 5) for vector in asked]


@pytest.mark.chroma
def test_only_the_passages_that_were_named_are_chosen_from(collection):
    rows = some_rows()
    add_rows(collection, rows, fresh=True)
    near = nearest_passages(collection, rows.vectors[17], 5, among=["3-abc", "30-abc"])
    assert {name for name, _ in near} == {"3-abc", "30-abc"}


@pytest.mark.chroma
def test_what_is_shown_of_a_passage_is_what_was_stored(collection):
    add_rows(collection, some_rows(), fresh=True)
    shown = stored_rows(collection, ["17-abc", "no such"])
    assert list(shown) == ["17-abc"]
    assert shown["17-abc"] == Row("17-abc", 17, "Page 17", "https://x/17", 1, 0, 9, "Passage 17.")


def test_a_hit_as_json_begins_with_the_documented_fields():
    hit = Hit(1, 0.5, 17, "Page 17", "https://x/17", 1, "Passage 17.", 0, 9, "20250105", "tinywiki")
    documented = ["rank", "score", "page_id", "title", "url", "revision", "passage", "start", "end", "snapshot", "wiki"]
    assert list(hit.as_dict())[:11] == documented
    assert hit.as_dict()["dense_rank"] is None


@pytest.mark.chroma
def test_a_graph_that_was_synced_is_read_from_disk_and_not_built_again(tmp_path):
    def on_disk() -> int:
        return sum(file.stat().st_size for file in (tmp_path / "chroma").rglob("data_level0.bin"))

    rows = some_rows(400)
    with open_store(tmp_path / "chroma", write=True) as client:
        collection = open_collection(client, "tinywiki-20250105-1", hnsw=HNSW, metadata={"dim": DIM})
        add_rows(collection, rows, fresh=True)
        logged = on_disk()
        sync_after(collection, 2)
    with open_store(tmp_path / "chroma") as client:
        assert nearest_passages(published_collection(client, "tinywiki-20250105-1"), rows.vectors[17], 1)
    assert on_disk() >= logged + 300 * DIM * 4


@pytest.mark.chroma
def test_there_are_no_more_answers_than_passages(collection):
    assert nearest_passages(collection, unit_vectors(1)[0], 10) == []
    add_rows(collection, some_rows(3), fresh=True)
    assert len(nearest_passages(collection, unit_vectors(1)[0], MAX_K)) == 3


@pytest.mark.chroma
@pytest.mark.parametrize("width", [1, 7, 384])
def test_a_question_of_another_width_is_refused(collection, width):
    add_rows(collection, some_rows(), fresh=True)
    with pytest.raises(SchemaMismatch, match=f"{width} dimensions, the collection has 8"):
        nearest_passages(collection, np.ones(width, np.float32), 10)


@pytest.mark.chroma
def test_a_row_and_its_twin_both_count_as_found(collection):
    assert self_recall(collection, []) == 1.0
    add_rows(collection, some_rows(), fresh=True)
    twin = replace(some_rows(1), ids=["twin"])  # the same words on another page
    add_rows(collection, twin, fresh=True)
    assert self_recall(collection, [*some_rows().ids, "twin"]) == 1.0
