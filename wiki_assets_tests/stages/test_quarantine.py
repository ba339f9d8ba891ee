"""A row that cannot be taken in costs only itself, and is kept with its reason; what is not its fault is no reason."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wiki_assets import failpoints
from wiki_assets.errors import DamagedArtifact, NotPoison, SchemaMismatch
from wiki_assets.keys import Snapshot
from wiki_assets.stages.dump import Document
from wiki_assets.stages.embeddings import embed_passages, embed_shard, read_vectors
from wiki_assets.stages.quarantine import Quarantine, Quarantined, is_of_the_row, read_quarantine
from wiki_assets.stages.tokens import PassageParams, tokenize_shard
from wiki_assets_tests.pipeline import Made, merge_documents
from wiki_assets_tests.stages.test_embeddings import BAD, ROWS, HashingEncoder, names, params, passages_file

N_PAGES = 40


class Panic(BaseException):
    """What a library written in Rust raises."""


@contextmanager
def armed(rules: str) -> Iterator[None]:
    failpoints.arm(rules)
    try:
        yield
    finally:
        failpoints.disarm()


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Made:
    """One shard of some pages, numbered from 1."""
    documents = [
        Document(page_id=i, title=f"Page {i}", namespace=0, text=f"Page {i} has a text. " * i, version=1)
        for i in range(1, N_PAGES + 1)
    ]
    return merge_documents([documents], Snapshot("tinywiki", "20250105"), tmp_path_factory.mktemp("pages"))


def tokenize(pages: Made, encoding, tokenizer, **options):
    """Tokenize the shard; returns counts, the rows of both files, and what was set aside."""
    tokens, passages, quarantine = io.BytesIO(), io.BytesIO(), Quarantine(N_PAGES)
    with pages.path("articles", 0).open("rb") as articles:
        counts = tokenize_shard(
            articles, tokens, passages,
            encoding=encoding, tokenizer=tokenizer, params=PassageParams(64), metadata={}, quarantine=quarantine,
            **options,
        )  # fmt: skip
    return counts, pq.read_table(tokens), pq.read_table(passages), quarantine


# Pages


@pytest.mark.parametrize(("action", "reason"), [("panic", "panic"), ("raise", "error")])
def test_a_page_that_fails_costs_no_other(pages, encoding, tokenizer, action, reason):
    whole = tokenize(pages, encoding, tokenizer)
    with armed(f"tokens.page[7]={action}; tokens.page[40]={action}"):
        counts, tokens, passages, quarantine = tokenize(pages, encoding, tokenizer)
    assert [(row.page_id, row.title, row.reason) for row in quarantine.rows] == [
        (7, "Page 7", reason),
        (40, "Page 40", reason),
    ]
    assert "failpoint tokens.page" in quarantine.rows[0].detail
    assert counts["quarantined"] == {reason: 2}
    assert counts["pages_in"] == counts["pages"] + 2 == N_PAGES
    assert counts["text_chars"] == counts["covered_chars"]
    kept = [page for page in range(1, N_PAGES + 1) if page not in (7, 40)]
    assert tokens["page_id"].to_pylist() == kept
    assert sorted(set(passages["page_id"].to_pylist())) == kept
    left = [row for row in whole[1].to_pylist() if row["page_id"] in kept]
    assert tokens.to_pylist() == left, "the others' tokens are what they were"


@pytest.mark.parametrize("action", ["enospc", "eio"])
def test_the_machines_faults_are_not_blamed_on_a_page(pages, encoding, tokenizer, action):
    with armed(f"tokens.page[7]={action}"), pytest.raises(OSError, match="tokens.page"):
        tokenize(pages, encoding, tokenizer)


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(1), GeneratorExit(), MemoryError(), OSError()])
def test_who_wants_to_stop_is_not_stopped_from_it(stop):
    assert not is_of_the_row(stop)
    assert is_of_the_row(Panic())


def test_when_all_fail_it_is_not_the_pages(pages, encoding, tokenizer):
    with armed("tokens.page=panic"), pytest.raises(NotPoison, match="17 of 40 rows failed"):
        tokenize(pages, encoding, tokenizer)


def test_condemned_pages_are_not_tried(pages, encoding, tokenizer):
    with armed("tokens.page[3]=kill"):
        counts, tokens, _, quarantine = tokenize(pages, encoding, tokenizer, condemned={2: "killed_worker"})
    assert quarantine.rows == [Quarantined(3, "Page 3", "killed_worker")]
    assert counts["quarantined"] == {"killed_worker": 1}
    assert 3 not in tokens["page_id"].to_pylist()


@given(start=st.integers(0, N_PAGES), length=st.integers(0, N_PAGES))
@settings(max_examples=15)
def test_parts_of_a_shard_can_be_tried(pages, encoding, tokenizer, start, length):
    rows = range(start, min(start + length, N_PAGES))
    counts, tokens, _, _ = tokenize(pages, encoding, tokenizer, rows=rows)
    assert tokens["page_id"].to_pylist() == [row + 1 for row in rows]
    assert counts["pages_in"] == len(rows)


# Passages


def embed(passages, encoder=None, **options):
    out, quarantine = io.BytesIO(), Quarantine(len(passages))
    counts = embed_shard(
        passages_file(passages), out,
        encoder=encoder or HashingEncoder(), params=params(), metadata={}, quarantine=quarantine, **options,
    )  # fmt: skip
    return counts, *read_vectors(out), quarantine


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
@pytest.mark.parametrize("place", range(5))
def test_a_passage_without_a_vector_costs_no_other(bad, place):
    rows = [np.append(row, BAD) if i == place else row for i, row in enumerate(ROWS)]
    counts, ids, vectors, quarantine = embed(rows, HashingEncoder(bad=bad))
    others = [i for i in range(5) if i != place]
    assert ids == [f"7-{i}" for i in others]
    np.testing.assert_allclose(vectors, embed_passages(ROWS, HashingEncoder(), names(5))[others], atol=1e-6)
    assert [(row.page_id, row.passage_id, row.reason) for row in quarantine.rows] == [(7, f"7-{place}", "not_finite")]
    assert counts["passages"] == counts["vectors"] + 1 == 5
    assert counts["quarantined"] == {"not_finite": 1}


@pytest.mark.parametrize(("action", "reason"), [("panic", "panic"), ("raise", "error")])
def test_a_passage_that_fails_costs_no_other_of_its_batch(action, reason):
    with armed(f"embeddings.passage[7-2]={action}"):
        counts, ids, _, quarantine = embed(ROWS)
    assert ids == ["7-0", "7-1", "7-3", "7-4"]
    assert [(row.passage_id, row.reason) for row in quarantine.rows] == [("7-2", reason)]
    assert counts["quarantined"] == {reason: 1}


def test_another_model_is_not_blamed_on_passages():
    with pytest.raises(SchemaMismatch, match="expected .*8"):
        embed(ROWS, HashingEncoder(width=7))


def test_an_engine_that_always_fails_is_not_blamed_on_passages():
    with armed("embeddings.passage=panic"), pytest.raises(NotPoison, match="17 of 60 rows failed"):
        embed(ROWS * 12)


def test_condemned_passages_are_not_tried():
    with armed("embeddings.passage[7-1]=kill"):
        counts, ids, _, quarantine = embed(ROWS, condemned={1: "out_of_memory"})
    assert ids == ["7-0", "7-2", "7-3", "7-4"]
    assert quarantine.rows == [Quarantined(7, "", "out_of_memory", passage_id="7-1")]
    assert counts["passages"] == counts["vectors"] + 1 == 5


@given(start=st.integers(0, 5), length=st.integers(0, 5), condemned=st.sets(st.integers(0, 4)))
def test_parts_of_a_shard_can_be_embedded(start, length, condemned):
    rows = range(start, min(start + length, 5))
    counts, ids, _, _ = embed(ROWS, rows=rows, condemned=dict.fromkeys(condemned, "killed_worker"))
    assert ids == [f"7-{row}" for row in rows if row not in condemned]
    assert counts["passages"] == len(rows)


# The file


@given(
    rows=st.lists(
        st.builds(
            Quarantined, st.integers(1, 10**9), st.text(), st.sampled_from(["panic", "error"]), st.text(), st.text()
        )
    )
)
def test_what_is_set_aside_can_be_read_back(rows):
    quarantine, file = Quarantine(10**6), io.BytesIO()
    for row in rows:
        quarantine.add(row)
    quarantine.write(file)
    file.seek(0)
    assert list(read_quarantine(file)) == rows


def test_a_damaged_quarantine_is_told():
    with pytest.raises(DamagedArtifact, match="line 2 of a quarantine file"):
        list(read_quarantine(io.BytesIO(msgspec.json.encode(Quarantined(1, "a", "panic")) + b"\n{}\n")))
